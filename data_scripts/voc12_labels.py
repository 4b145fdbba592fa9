"""Facts of VOC 2012 that need its labels only: list lengths, share of each class, and the best mIoU a stride-8 map can reach.

    python data_scripts/voc12_labels.py MASKS

MASKS: a folder with trainaug.txt, val.txt and SegmentationClassAug/<name>.png, one byte per pixel, 255 = void.
Writes results/voc12/labels.json.
"""
import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from lc import metrics, paths, records
from lc.cascade import STRIDE, upsample
from lc.data import IGNORE, SPECS
from lc.errors import InputError

CLASSES = len(SPECS["voc12"].names)


def best_map(label: np.ndarray) -> np.ndarray:
    """The label map that perfect stride-8 cells give, bilinear in probabilities as the network's are; a void cell votes for nothing."""
    cells = label[::STRIDE, ::STRIDE]
    present = np.unique(cells[cells != IGNORE])
    one_hot = torch.from_numpy(np.stack([cells == k for k in present]).astype(np.float32))[None]
    return present[upsample(one_hot, label.shape)[0].argmax(0).numpy()]


def facts(folder: Path) -> dict:
    """Counts and shares from all masks of val, and the lengths of both lists; FileNotFoundError names what is missing."""
    lists = {split: (folder / f"{split}.txt").read_text().split() for split in ("trainaug", "val")}
    pixels, confusion = np.zeros(256, np.int64), np.zeros((CLASSES, CLASSES), np.int64)
    for name in tqdm(lists["val"], desc="val masks", unit="mask", disable=None):
        label = np.array(Image.open(folder / f"SegmentationClassAug/{name}.png"))
        if strange := {*np.unique(label).tolist()} - {*range(CLASSES), IGNORE}:
            raise InputError(f"mask {name} holds labels other than 0-{CLASSES - 1} and {IGNORE}: {sorted(strange)}; fetch the masks again")
        pixels += np.bincount(label.ravel(), minlength=256)
        confusion += metrics.confusion(label, best_map(label), CLASSES, IGNORE)
    known, total = pixels[:CLASSES].sum(), pixels.sum()
    return {"images": {split: len(names) for split, names in lists.items()}, "both_lists": len(set(lists["trainaug"]) & set(lists["val"])),
            "list_sha256": {split: hashlib.sha256("\n".join(names).encode()).hexdigest() for split, names in lists.items()},
            "pixels": pixels[:CLASSES].tolist(), "void_share": pixels[IGNORE] / total, "background_of_labelled": pixels[0] / known,
            "background_of_all": pixels[0] / total, "stride8_miou": float(metrics.miou(confusion))}


def main() -> int:
    """Read, count, write; 2 with one line if the masks are not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("masks", type=Path)
    parser.add_argument("--out", type=Path, default=paths.results("voc12") / "labels.json")
    args = parser.parse_args()
    try:
        found = facts(args.masks)
    except (InputError, OSError) as error:
        print(f"voc12_labels: {error}", file=sys.stderr)
        return 2
    records.write_whole(args.out, (json.dumps({**found, **records.provenance("CPU")}, indent=1) + "\n").encode())
    print(json.dumps({k: v for k, v in found.items() if k != "pixels"}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Predictions in the layout that an evaluation server demands, read back before they are packed.

VOC, comp6 (trained on any data but the test set's): results/VOC2012/Segmentation/comp6_<split>_cls/<name>.png, class indices with VOC's palette, in
a .tar.gz. Cityscapes: <city>_<sequence>_<frame>_labelIds.png, label ids (not the 19 training ids), in a .zip.
"""
import shutil
import tempfile
from collections import namedtuple
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn
from tqdm import tqdm

from lc import metrics, paths
from lc.data import Spec, read_image
from lc.errors import InputError
from lc.predict import predict

Sample = tuple[str, np.ndarray, np.ndarray | None]  # name, image (H, W, 3) uint8, label (H, W) uint8 or None
Format = namedtuple("Format", "data place pack")  # the data set it is for; where a prediction lies, by {split} and {name}; shutil's archive format
FORMATS = {"voc": Format("voc12", "results/VOC2012/Segmentation/comp6_{split}_cls/{name}.png", "gztar"),
           "cityscapes": Format("cityscapes", "results/{name}_labelIds.png", "zip")}


def encode(labels: np.ndarray, spec: Spec) -> Image.Image:
    """A label map (H, W) of classes as the data set's own label files hold it: its ids, or the classes with its palette."""
    if spec.ids:
        return Image.fromarray(np.array(spec.ids, np.uint8)[labels])
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette([value for colour in spec.palette for value in colour])
    return image


def unlabelled(folder: Path) -> Iterator[Sample]:
    """The images below a folder (a test set, say), named as their files are."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".jpg"))
    names = [path.stem.removesuffix("_leftImg8bit") for path in files]
    if not files:
        raise InputError(f"{folder} holds no .png or .jpg; give the folder of the test images")
    if len(set(names)) < len(names):
        raise InputError(f"two images below {folder} share the name {max(names, key=names.count)}, and their predictions would too; rename one")
    return ((name, read_image(path), None) for name, path in zip(names, files))


def export(kind: str, split: str, samples: Iterable[Sample], model: nn.Module, spec: Spec, rho: float, out: Path) -> tuple[Path, float | None]:
    """(archive out/results.*, mIoU of the files in it): write each prediction at rho, read it back, pack them. mIoU: in [0, 1], counted from the
    files; None without labels."""
    form, counts, values, out = FORMATS[kind], 0, spec.values(), paths.folder(out)
    with tempfile.TemporaryDirectory() as scratch:
        for name, image, label in tqdm(samples, desc=f"export {kind}", unit="image", disable=None):
            path = Path(scratch, form.place.format(split=split, name=name))
            path.parent.mkdir(parents=True, exist_ok=True)
            labels = predict(model, image, rho).labels
            encode(labels, spec).save(path)
            found = values[read_image(path, None)]
            if not np.array_equal(found, labels):
                raise RuntimeError(f"{path} does not hold what was written")
            if label is not None:
                counts = counts + metrics.confusion(label, found, len(spec.names))
        archive = shutil.make_archive(str(out / "results"), form.pack, scratch, "results")
    return Path(archive), float(metrics.miou(counts)) if np.ndim(counts) else None

"""`lc bench`: measure, and write the timing file that pages read. Time depends on the device, so its name is in the file's.

The dense opponent is the fastest of these forms: folded batch norms in channels last (lc.fast.fold), the region side's own code
(lc.fast.prepare) with every pixel active, and for the network the first with the last stage of the second.
"""
import json
import re
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lc import cost, fast, paths, records, runs
from lc.backbone import irnet
from lc.cascade import LayerCascade, build_irnet_lc
from lc.data import SegmentationSet, to_input
from lc.experiments import experiment
from lc.errors import InputError
from lc.paper import columns, published
from lc.region import Region
from lc.region_conv import RegionTensor


def run(profile_name: str, name: str, root, device: torch.device, images: int = 10, repeats: int = 5, target: Path | None = None) -> Path:
    """Time a trained cascade at the rho of Table 1 on validation images, one at a time; returns the file written."""
    entry = experiment(profile_name, name)
    model, _ = runs.trained(profile_name, name, device)
    data = SegmentationSet(entry.run.data, "val", root)
    picks = [round((i + 0.5) * len(data) / images) for i in range(min(images, len(data)))]
    inputs = [to_input(data.read(min(i, len(data) - 1))[0])[None].to(device, memory_format=torch.channels_last) for i in picks]
    dense = fast.fold(model).to(memory_format=torch.channels_last)
    rows = cost.bench_cascade(fast.prepare(model), dense, inputs, [float(rho) for rho in columns("1", "mIoU")], repeats)
    height, width = inputs[0].shape[2:]
    values = {"experiment": name, "key": entry.run.key(), "profile": profile_name, "batch": 1, "size": [height, width], "images": len(inputs),
              "repeats": repeats, "warm_up": "one round over all images", "left_out": "reading, resizing, upsampling to labels",
              "model": asdict(entry.run.model), "rows": rows}
    return _write("cascade", device, values, target, paths.results(profile_name) / "bench")


def _write(kind: str, device: torch.device, values: dict, target: Path | None, folder: Path) -> Path:
    values = {"schema": records.SCHEMA, "kind": kind, **records.provenance(runs.device_name(device), "fast"),
              "started": datetime.now(timezone.utc).isoformat(timespec="seconds"), "dtype": "float32", "threads": torch.get_num_threads(), **values}
    slug = re.sub(r"[^a-z0-9]+", "-", values["device"].lower()).strip("-")
    target = target or folder / f"{kind}-{slug}.json"
    records.write_whole(target, (json.dumps(values, indent=1) + "\n").encode())
    return target


NOISY = 0.15  # interquartile range over median of the dense side above which a machine is too noisy to tell
SHARES = (1.0, 0.77, 0.5, 0.44, 0.25)


def blob(share: float, size: tuple[int, int], seed: int) -> Tensor:
    """(1, H, W) bool: a region of that share in smooth blobs, as cascades leave them."""
    if share >= 1:
        return torch.ones(1, *size, dtype=torch.bool)
    coarse = torch.randn(1, 1, size[0] // 8, size[1] // 8, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(coarse, size, mode="bicubic")[0]
    return smooth < smooth.flatten().quantile(share)


def _alternate(contestants: dict, repeats: int) -> dict[object, np.ndarray]:
    """Milliseconds of each contestant, measured in turns; one round warms up."""
    samples = {name: [] for name in contestants}
    for repeat in range(-1, repeats):
        for name, call in contestants.items():
            start = cost._now(torch.device("cpu"))
            call()
            if repeat >= 0:
                samples[name].append(1e3 * (cost._now(torch.device("cpu")) - start))
    return {name: np.array(values) for name, values in samples.items()}


def _compare(found: dict[str, np.ndarray], ideal: float) -> dict:
    """The region side against the fastest of the others; InputError if that one was too noisy."""
    dense = min((name for name in found if name != "region"), key=lambda name: np.median(found[name]))
    low, high = np.quantile(found[dense], [0.25, 0.75])
    if (high - low) / np.median(found[dense]) > NOISY:
        raise InputError(f"this machine is too noisy to tell: the dense side's quartiles are {low:.0f} and {high:.0f} ms; run it again when nothing else runs")
    ratios = found[dense] / found["region"]
    low, high = np.quantile(ratios, [0.25, 0.75])
    return {"dense_form": dense, "dense_ms": float(np.median(found[dense])), "region_ms": float(np.median(found["region"])), "speedup": float(np.median(ratios)),
            "speedup_low": float(low), "speedup_high": float(high), "ideal": ideal, "ratio": float(np.median(ratios) / ideal)}


@torch.no_grad()
def region(target: Path | None = None, repeats: int = 9, size: tuple[int, int] = (64, 64), chain: int = 5) -> Path:
    """IRNet-B and -C blocks, full width: `chain` blocks on one region, index building included, against the folded dense block."""
    torch.manual_seed(0)
    rows = []
    for name in ("irnet_b", "irnet_c"):
        block = irnet(1.0, (1, 1, 1))[name].eval()
        holder = torch.nn.Sequential(block[0])
        fast._fold(holder)
        dense, quick = holder[0].requires_grad_(False), fast.FastResidual(holder[0])
        x = torch.randn(1, dense.project.out_channels, *size).to(memory_format=torch.channels_last)

        def on_region(mask: Tensor) -> None:
            part = RegionTensor.select(x, Region(mask))
            for _ in range(chain):
                part = quick(part)

        def densely() -> None:
            y = x
            for _ in range(chain):
                y = dense(y)

        for share in SHARES:
            mask = blob(share, size, seed=len(rows))
            active = mask.float().mean().item()
            found = _alternate({"folded": densely, "all active": lambda: on_region(blob(1.0, size, 0)), "region": lambda: on_region(mask)}, repeats)
            rows.append({"layer": name, "active": active, **_compare(found, 1 / active)})
    return _write("region", torch.device("cpu"), {"size": list(size), "chain": chain, "repeats": repeats, "rows": rows}, target, paths.ROOT / "results" / "bench")


def on_masks(model: LayerCascade, image: Tensor, masks: list[Tensor]) -> Tensor:
    """Logits of the last stage when the given pixels (and no others) are handed to stages 2, 3, ...; every head runs."""
    x = model.stages[0](image)
    model.heads[0](x)
    for stage, head, mask in zip(model.stages[1:], model.heads[1:], masks):
        x = stage(RegionTensor.select(x, Region(mask)))
        logits = head(x)
    return logits.dense()


@torch.no_grad()
def network(target: Path | None = None, repeats: int = 7, size: int = 512) -> Path:
    """The full IRNet-LC at the pixel shares of Table 1 (rho = 0.985 and 0.8), index building and all heads included, against the dense
    network with its last head; random weights, as time does not depend on them. Labels are checked against the plain modules."""
    torch.manual_seed(0)
    model = build_irnet_lc(21).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    quick, dense = fast.prepare(model), fast.fold(model).to(memory_format=torch.channels_last)
    mixed = fast.fold(model).to(memory_format=torch.channels_last)
    mixed.stages[-1] = quick.stages[-1]
    image, grid = torch.randn(1, 3, size, size).to(memory_format=torch.channels_last), (size // 8, size // 8)
    dense_macs, rows = cost.dense_network_macs(model, (size, size)), []
    for rho in ("0.985", "0.800"):
        left = 1 - np.cumsum([published("1", row, rho).value / 100 for row in ("stage-1", "stage-2")])
        first = blob(left[0], grid, seed=0)
        masks = [first, first & blob(left[1], grid, seed=0)]
        shares = [m.float().mean().item() for m in masks]
        plain, found = on_masks(model, image, masks), on_masks(quick, image, masks)
        same = (plain.argmax(1) == found.argmax(1))[masks[-1]].float().mean().item()
        forms = {name: lambda form=form: cost.run_dense(form, image) for name, form in (("folded", dense), ("all active", quick), ("mixed", mixed))}
        times = _alternate({**forms, "region": lambda: on_masks(quick, image, masks)}, repeats)
        ideal = dense_macs / cost.cascade_macs(model, (size, size), [1.0, *shares])
        rows.append({"rho": float(rho), "active": shares, "same_labels": same, **_compare(times, ideal)})
    return _write("network", torch.device("cpu"), {"size": [size, size], "repeats": repeats, "rows": rows}, target, paths.ROOT / "results" / "bench")

"""Timing that holds on a machine with neighbours: contestants take turns, a time that means nothing is an error, and what is timed is kept;
and the regions that they are timed on."""
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from lc import paths, records
from lc.errors import InputError
from lc.machine import alone_in, device_name
from lc.paper import published
from lc.region import Region
from lc.speed import cost

CPU = torch.device("cpu")
NOISY = 0.06  # interquartile range / (median x root of rounds), of the dense side and of the speed-up, above which a machine is too noisy to tell
BUSY, SHORT = 0.2, 0.5  # cores that other processes may use meanwhile; seconds that are too few to tell


def write(kind: str, device: torch.device, values: dict, target: Path | None, profile_name: str = "") -> Path:
    """The timing file, with device, packages and commit."""
    values = {"schema": records.SCHEMA, "kind": kind, **provenance(device), "dtype": "float32", "threads": torch.get_num_threads(), **values}
    target = target or file_of(kind, device, profile_name)
    records.write_whole(target, (json.dumps(values, indent=1) + "\n").encode())
    return target


def check(target: Path | None) -> None:
    """InputError if something that is no timing file lies where one will be written: before the work, not after it."""
    with suppress(OSError, ValueError, AttributeError):
        if not target or not target.exists() or {"kind", "rows"} <= json.loads(target.read_text()).keys():
            return
    raise InputError(f"{target} is there and is no timing file; give another name")


def provenance(device: torch.device) -> dict:
    """`records.provenance` of what is timed on a device."""
    return records.provenance(device_name(device), "speed/fast", "speed/exported", *(["speed/kernels"] if device.type == "cuda" else []))


def file_of(kind: str, device: torch.device, profile_name: str = "") -> Path:
    """Where a timing file lies if no place is given."""
    return paths.results(profile_name) / "bench" / f"{kind}-{re.sub(r'[^a-z0-9]+', '-', device_name(device).lower()).strip('-')}.json"


def by_setting(kind: str, device: torch.device, settings: list[tuple], rows_of: Callable, target: Path | None, **values) -> Path:
    """`write`, after each (dtype, batch, size) of settings, with the rows and the absent opponents that rows_of gives. The file names settings left
    by a call that was cut off, or that failed (noise, memory: InputError, once the others are timed); the next of this code and values does them."""
    target, rows, absent, failed = target or file_of(kind, device), [], {}, {}
    spelt = {f"{str(dtype)[6:]}, batch {batch}, {'x'.join(map(str, size))}": (dtype, batch, size) for dtype, batch, size in settings}
    left, found = list(spelt), json.loads(target.read_text()) if target.exists() else {}
    same = {**values, **{key: provenance(device)[key] for key in ("source_hash", "device")}}
    if set(found.get("left", ())) & set(left) and same.items() <= found.items():
        left, rows, absent = found["left"], found["rows"], found["absent"]
        print(f"{target} was cut off; left: {'; '.join(left)}")
    while left:
        setting = left.pop(0)
        try:
            more, missing = rows_of(*spelt[setting])
        except (InputError, torch.OutOfMemoryError) as error:
            more, missing, failed[setting] = [], {}, str(error)
        rows, absent, still = [*rows, *more], absent | missing, [*failed, *left]
        dtypes = ", ".join(dict.fromkeys(row["dtype"] for row in rows))
        if rows:
            write(kind, device, {"dtype": dtypes, **values, "absent": absent, "rows": rows, **({"left": still} if still else {})}, target)
    if failed:
        raise InputError("; ".join(f"{setting}: {said}" for setting, said in failed.items()))
    return target


def pooled(arguments: list[str], processes: int, device: torch.device, target: Path | None) -> Path:
    """Run `lc bench` with these arguments in so many processes, one after the other, and write the medians of what they measured: one may be faster
    by 5 to 10 % in all that it does (results/NOTES.md). One that finds the machine busy is begun again; InputError once that happened more than half
    as often as processes are needed, if one fails otherwise, or if they differ too much (`compare`). A call that was cut off is gone on with."""
    made, refused = provenance(device), 0
    folder = paths.folder(paths.build("bench") / file_of("-".join([*arguments, made["commit"][:10], made["source_hash"]]), device).stem)
    whole = lambda: [file for path in sorted(folder.glob("*.json")) if "left" not in (file := json.loads(path.read_text()))]
    with alone_in(folder):
        while (kept := len(whole())) < processes:
            part = folder / f"{kept}.json"
            command = [sys.executable, "-m", "lc", "bench", *arguments, "--part", "--json", str(part)]
            done, said = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True), "done"
            if done.returncode:
                refused, said = refused + 1, (done.stderr.strip() or "a process was killed").splitlines()[-1].removeprefix("lc: ")
                if "too noisy" not in said or 2 * refused > processes:
                    raise InputError(said)
            elif json.loads(part.read_text())["source_hash"] != made["source_hash"]:
                part.unlink()
                raise InputError("the code changed while it was timed; run it again")
            print(f"process {kept + refused + (said == 'done')}, {kept + (said == 'done')} of {processes} kept: {said}", flush=True)
        files = whole()
    shutil.rmtree(folder)
    rows = [_together(rows) for rows in zip(*(file["rows"] for file in files))]
    return write(files[0]["kind"], device, {**files[0], "processes": len(files), "refused": refused, "rows": rows}, target)


def _together(rows: tuple[dict, ...]) -> dict:
    """The row that several processes measured: medians, `compare` of theirs, and the speed-up that each of them found."""
    forms = {form: np.array([row["forms_ms"][form] for row in rows]) for form in rows[0]["forms_ms"]}
    found = compare(forms, rows[0]["ideal"])
    return {**_median(rows), **found, "speedups": (forms[found["dense_form"]] / forms["region"]).tolist()}


def _median(values: tuple):
    """Of numbers the median, of dictionaries and lists that of each entry, of anything else the first."""
    if isinstance(values[0], dict):
        return {key: _median([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], list):
        return [_median(entries) for entries in zip(*values)]
    return float(np.median(values)) if isinstance(values[0], float) else values[0]


def blob(share: float, size: tuple[int, int], seed: int, images: int = 1) -> Tensor:
    """(N, H, W) bool: a region of that share in smooth blobs, as cascades leave them."""
    if share >= 1:
        return torch.ones(images, *size, dtype=torch.bool)
    coarse = torch.randn(images, 1, *(max(2, side // 8) for side in size), generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(coarse, size, mode="bicubic")[:, 0]
    return smooth < np.quantile(smooth.numpy(), share)


def shares_left(rho: str) -> np.ndarray:
    """Shares of pixels that reach stages 2 and 3 in Table 1."""
    return 1 - np.cumsum([published("1", row, rho).value / 100 for row in ("stage-1", "stage-2")])


def paper_regions(rho: str, grid: tuple[int, int], batch: int, device: torch.device, fixed: bool = False,
                  halo: int = 0) -> tuple[list[list[Tensor]], list[float]]:
    """Masks for stages 2 and 3 in four versions whose sizes differ by 3 % either way, as from image to image: what a library prepares for one
    size must not be counted as free; and the mean shares of pixels that they compute with a halo. fixed: one version (buffers on a device hold
    any size)."""
    scales = (1.0,) if fixed else (0.97, 0.99, 1.01, 1.03)
    found = [[blob(share * scale, grid, seed, batch).to(device) for share in shares_left(rho)] for seed, scale in enumerate(scales)]
    return found, torch.tensor([[Region(mask).dilate(halo).mask.float().mean() for mask in masks] for masks in found]).mean(0).tolist()


def alternate(contestants: dict, repeats: int, device: torch.device = CPU) -> dict[object, np.ndarray]:
    """Milliseconds of each contestant, measured in turns; one round warms up."""
    samples = {name: [] for name in contestants}
    for repeat in range(-1, repeats):
        for name, call in contestants.items():
            start = cost.now(device)
            call()
            if repeat >= 0:
                samples[name].append(1e3 * (cost.now(device) - start))
    return {name: np.array(values) for name, values in samples.items()}


def quartiles(name: str, values: np.ndarray) -> dict[str, float]:
    """Median, lower quartile and upper quartile as entries of a row."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), np.quantile(values, [0.5, 0.25, 0.75]).tolist()))


def undisturbed(contestants: dict, repeats: int, device: torch.device) -> dict[object, np.ndarray]:
    """`alternate`; InputError if others kept more than BUSY cores busy: they slow some thread pools more than others."""
    own, began = psutil.Process(), cost.now(CPU)
    psutil.cpu_percent(), own.cpu_percent()  # both count from here
    found = alternate(contestants, repeats, device)
    busy = (psutil.cpu_percent() * psutil.cpu_count() - own.cpu_percent()) / 100
    if busy > BUSY and cost.now(CPU) - began > SHORT:
        raise InputError(f"this machine is too noisy to tell: other processes used {busy:.2f} cores, {BUSY:g} allowed; "
                         "run it again when nothing else runs")
    return found


def compare(found: dict[str, np.ndarray], ideal: float) -> dict:
    """Of the medians in milliseconds: "region" against the fastest of the others; InputError if that one, or the speed-up, was too noisy."""
    dense = min((name for name in found if name != "region"), key=lambda name: np.median(found[name]))
    ratios = found[dense] / found["region"]
    for what, values, unit in (("dense side", found[dense], "ms"), ("speed-up", ratios, "x")):
        low, high = np.quantile(values, [0.25, 0.75])
        if (high - low) / np.median(values) / len(values) ** 0.5 > NOISY:
            raise InputError(f"this machine is too noisy to tell: the {what}'s quartiles are {low:.3g} and {high:.3g} {unit}; run it again when "
                             "nothing else runs")
    return {"dense_form": dense, "dense_ms": float(np.median(found[dense])), "region_ms": float(np.median(found["region"])),
            **quartiles("speedup", ratios), "ideal": ideal, "ratio": float(np.median(ratios) / ideal),
            "forms_ms": {name: float(np.median(values)) for name, values in found.items()}}

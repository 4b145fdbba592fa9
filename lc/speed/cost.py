"""What a forward costs: multiply-adds, and measured time.

A multiply-add (MAC) of a convolution: kernel area x inputs x outputs, for each output pixel; PyTorch counts them on dense maps. What a
cascade saves follows from the shares of the pixels that reach each stage.
"""
import copy
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lc.cascade import LayerCascade


def components(model: LayerCascade, size: tuple[int, int]) -> list[dict]:
    """One row per component (stem, IRNet-A, ...) and head: stage, name, parameters, MACs for one image of that size."""
    rows, ghost = [], copy.deepcopy(model).to("meta").eval()  # shapes only, nothing is computed
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ghost(torch.zeros(1, 3, *size, device="meta"), 1.0)
    macs = {name: sum(operations.values()) // 2 for name, operations in counter.get_flop_counts().items()}
    for number, (stage, head) in enumerate(zip(model.stages, model.heads), start=1):
        for place, name, module in [(f"stages.{number - 1}.{n}", n, m) for n, m in stage.named_children()] + \
                                   [(f"heads.{number - 1}", f"head {number}", head)]:
            rows.append({"stage": number, "component": name, "parameters": sum(p.numel() for p in module.parameters()),
                         "macs": macs[f"LayerCascade.{place}"]})
    return rows


def layers(model: LayerCascade) -> list[dict]:
    """The convolutions of the first block of each component, in order (the tables at the right of Fig. 2), from the model."""
    rows = []
    for number, stage in enumerate(model.stages, start=1):
        for component, module in stage.named_children():
            blocks = len(module) if component.startswith("irnet") else 1
            for name, conv in (module[0] if blocks > 1 else module).named_modules():
                if isinstance(conv, nn.Conv2d):
                    rows.append({"stage": number, "component": component, "blocks": blocks, "layer": name.removesuffix(".conv"),
                                 "kernel": "x".join(map(str, conv.kernel_size)), "stride": conv.stride[0], "dilation": max(conv.dilation),
                                 "in": conv.in_channels, "out": conv.out_channels})
    return rows


def cascade_share(model: LayerCascade, size: tuple[int, int], handed: list[float]) -> float:
    """MACs of the cascade, all heads included, when the shares `handed` of the pixels reach each stage, over those of the same network without it:
    all stages, the last head only."""
    rows, last = components(model, size), f"head {len(model.heads)}"
    dense = sum(row["macs"] for row in rows if not row["component"].startswith("head") or row["component"] == last)
    return sum(row["macs"] * handed[row["stage"] - 1] for row in rows) / dense


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def dense(model: LayerCascade) -> nn.Module:
    """The dense opponent: the same stages and the last head, nothing else."""
    return nn.Sequential(*model.stages, model.heads[-1])


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Greatest memory of one call, which keeps nothing, beyond what was held before it: of the CUDA allocator, or of PyTorch's CPU allocator as
    its profiler logs it (buffers inside oneDNN and other libraries are not seen)."""
    call()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = sorted((event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"), key=lambda event: event.start_ns())
    return int(np.cumsum([0, *(event.nbytes() for event in events)]).max())


CAPTIONS = {"forms_ms": "milliseconds of every form that was timed", "stage_ms": "milliseconds of each of our stages",
            "gap": "milliseconds above the ideal", "sparse_ms": "milliseconds of other code on the same pixels",
            "peak_bytes": "peak memory beyond weights and input, MiB",
            "differences": "greatest difference from the plain modules' output, as a share of its greatest value"}


def frames(bench: dict, *parts: str) -> list[pd.DataFrame]:
    """Entries of the rows (keys of CAPTIONS) as tables with captions; no table for what a file does not have."""
    rows, found = pd.DataFrame(bench["rows"]), []
    rows["active"] = [", ".join(f"{100 * v:.0f} %" for v in np.atleast_1d(active)) for active in rows["active"]]
    index = pd.MultiIndex.from_frame(rows[[key for key in ("network", "layer", "rho", "active") if key in rows]].astype(str))
    for part in (part for part in parts if part in rows):
        frame = pd.DataFrame(rows[part].tolist()).set_axis(index).rename(columns=lambda key: f"stage {key + 1}" if part == "stage_ms" else key)
        found.append(frame / 2**20 if part == "peak_bytes" else frame)
        found[-1].attrs["caption"] = f"{bench['where']}: {CAPTIONS[part]}"
    return found


def absentees(bench: dict) -> str:
    """Which opponents were not timed, and why, in a sentence; settings that a call cut off had still to come."""
    missing = [f"{name} ({why})" for name, why in bench["absent"].items()] + [f"{setting} (cut off)" for setting in bench.get("left", ())]
    return f"Not timed: {'; '.join(missing)}." if missing else "Every opponent ran."

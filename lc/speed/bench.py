"""`lc bench`: measure, and write the timing file that pages read. Time depends on the device, so its name is in the file's.

The dense opponent is the fastest of these forms: folded batch norms in channels last (lc.speed.fast.fold), torch.compile of that, ONNX Runtime
and OpenVINO where they are installed (a CUDA graph on a GPU), the region side's own code (lc.speed.fast.prepare, lc.speed.kernels) with every pixel
active. All give the reference's output to TOLERANCE, or the bench stops.
"""
import itertools
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from lc import records, winograd
from lc.backbone import irnet
from lc.cascade import STRIDE, LayerCascade
from lc.config import ModelConfig, Phase, TrainConfig
from lc.data import SPECS, SegmentationSet, TrainingSamples, epoch_loader
from lc.errors import InputError
from lc.experiments import BEST_RHO, SYSTEMS, catalogue, experiment, profile
from lc.networks import build
from lc.region import Region
from lc.region_conv import RegionTensor
from lc.speed import cost, fast
from lc.speed.opponents import capture, dense_forms, difference, ready, with_spconv
from lc.speed.timing import CPU, alternate, blob, by_setting, compare, paper_regions, quartiles, shares_left, undisturbed, write
from lc.speed.trained import forms, network_on, on_device
from lc.train import autocast_dtype, cascade_loss, make_optimizer, set_trainable, training_format

TIMED = {"irnet": "irnet", "vgg16-initial": "vgg16", "resnet101-initial": "resnet101"}  # dense networks: run and name of the row
OTHERS, SHARES = ("vgg16", "resnet101"), (1.0, 0.77, 0.5, 0.44, 0.25)
SETTINGS = {"cpu": [(torch.float32, 1, (512, 512))],  # dtype, batch, image size
            "cuda": [(dtype, batch, size) for dtype in (torch.bfloat16, torch.float16) for batch in (1, 16) for size in ((512, 512), (1024, 2048))]}


def _chain_on(quick: fast.FastResidual, x: Tensor, chain: int, static: bool) -> Callable[[Tensor | Region], Callable]:
    """From a region of x to the call that computes `chain` blocks on it, index building included; static: in device buffers."""
    def rows(region: Tensor | Region) -> RegionTensor:
        part = RegionTensor.select(x, region if isinstance(region, Region) else Region(region, x.device.type == "cpu"))
        for _ in range(chain):
            part = quick(part)
        return part

    if not static:
        return lambda region: partial(rows, region)
    from lc.speed import kernels
    block, flat = kernels.DeviceMixed(quick, x.dtype), x.permute(0, 2, 3, 1).flatten(0, 2)
    every = torch.arange(x[:, 0].numel(), dtype=torch.int32, device=x.device)

    def buffers(mask: Tensor) -> tuple[kernels.DeviceRegion, Tensor]:
        region = kernels.DeviceRegion.of(mask)
        values = kernels.pool(flat, every, region)
        for _ in range(chain):
            values = block(values, region)
        return region, values
    return lambda mask: partial(capture(buffers, mask), mask)


def _left_out(name: str, on: Callable, mask: Tensor, chain: int) -> dict[str, Callable]:
    """The region side on a CPU without one of its costs: its index made before; no gathering nor transforms either; only calls, on 8 channels."""
    ready, zeros, narrow = Region(mask, True), cache(torch.zeros), fast.fold(irnet(0.001, (1, 1, 1))[name].eval()[0])
    few, pixels = torch.zeros(1, narrow.project.out_channels, 16, 16), Region(torch.ones(1, 16, 16, dtype=torch.bool))
    with mock.patch.dict(winograd.WIDE, dict.fromkeys(winograd.WIDE, 0)):  # the narrow block runs what the wide one does
        small = fast.quick(narrow)

    def ungathered() -> None:
        with mock.patch.object(winograd.Sums, "__call__", lambda sums, rows: zeros(len(sums.first), rows.shape[1])):
            on(ready)()
    return {"without index": on(ready), "without index, gathering": ungathered, "calls": _chain_on(small, few, chain, False)(pixels)}


@torch.no_grad()
def region(target: Path | None = None, device: torch.device = CPU, repeats: int = 15, static: bool | None = None, settings: list | None = None,
           chain: int | None = None, width: float = 1.0) -> Path:
    """IRNet-B and -C blocks, full width: `chain` of them (as many as IRNet has) on one region, index building included, against the same blocks
    dense. On a CPU also the milliseconds above the ideal that index building, gathering and calls take. static: the device's buffers (on a
    GPU), and spconv beside them."""
    rows_of = partial(_block_rows, device, repeats, device.type == "cuda" if static is None else static, chain, width)
    return by_setting("region", device, settings or SETTINGS[device.type], rows_of, target, repeats=repeats, blocks=chain)


def _block_rows(device: torch.device, repeats: int, static: bool, blocks: int | None, width: float, dtype: torch.dtype, batch: int,
                size: tuple[int, int]) -> tuple[list[dict], dict]:
    torch.manual_seed(0)
    rows, absent, grid = [], {}, tuple(side // STRIDE for side in size)
    for name, chain in {"irnet_b": blocks or 10, "irnet_c": blocks or 5}.items():
        block = irnet(width, (1, 1, 1))[name].eval().requires_grad_(False).to(device)[0]
        block.scale = 1.0  # takes the time of any other, and what the blocks add, which is compared, stands out from the input's rounding
        folded = fast.fold(block)
        x = torch.randn(batch, block.project.out_channels, *grid, device=device).abs().to(dtype).float().to(memory_format=torch.channels_last)
        on = _chain_on(fast.quick(folded), x.to(dtype), chain, static)
        module = nn.Sequential(*chain * [folded]).to(dtype, memory_format=torch.channels_last)
        dense, missing = dense_forms(module, x.to(dtype))
        full, absent = blob(1.0, grid, 0, batch).to(device), absent | missing
        plain = nn.Sequential(*chain * [block])
        differences = {form: difference(lambda: call() - x, plain(x) - x, form, dtype) for form, call in dense.items()}
        for share in SHARES:
            mask = blob(share, grid, len(rows), batch).to(device)
            active, call = mask.float().mean().item(), on(mask)
            before = RegionTensor.select(x, Region(mask))
            added, as_map = plain(before).rows - before.rows, lambda found: found[0].scatter(found[1]) if static else found.dense()
            differences["region"] = difference(lambda: before.region.gather(as_map(call())) - before.rows, added, "region", dtype)
            sparse = {"spconv": lambda: partial(with_spconv(module, x.to(dtype)), mask)}
            beside, missing = ready(sparse) if static else (_left_out(name, on, mask, chain), {})
            differences |= {form: difference(lambda: other() - before.rows, added, form, dtype) for form, other in beside.items() if static}
            times = undisturbed({**dense, "all active": on(full), "region": call, **beside}, repeats, device)
            parts, absent = {key: float(np.median(times.pop(key))) for key in beside}, absent | missing
            row = {"layer": name, "chain": chain, "active": active, "dtype": str(dtype)[6:], "batch": batch, "size": grid,
                   **compare(times, 1 / active), "differences": {**differences}}
            rows.append(row | ({} if not parts else {"sparse_ms": parts} if static else {"gap": _gap(row, parts)}))
    return rows, absent


def _gap(row: dict, parts: dict[str, float]) -> dict[str, float]:
    """Milliseconds above the ideal (dense x active share), and of these for index building, gathering, and calls."""
    without = [row["region_ms"], parts["without index"], parts["without index, gathering"]]
    return {"all": row["region_ms"] - row["dense_ms"] * row["active"], "index": without[0] - without[1], "gathering": without[1] - without[2],
            "calls": parts["calls"]}


@torch.no_grad()
def network(target: Path | None = None, device: torch.device = CPU, repeats: int = 7, static: bool | None = None, settings: list | None = None,
            names: tuple[str, ...] = ("irnet",), **architecture) -> Path:
    """The full IRNet-LC at the pixel shares of Table 1 (rho = 0.985 and 0.8), index building and all heads included, against the dense
    network with its last head; random weights, as time does not depend on them. Both sides are compared with the plain modules. OTHERS: LC on
    the backbones of Tables 4 to 6. architecture: settings of lc.networks.build; a halo is computed round these pixels; it has a file of its own,
    as has another reading."""
    halo, reading, static = architecture.get("halo", 0), architecture.get("reading", "zero"), device.type == "cuda" if static is None else static
    if reading != "zero" and static:
        raise InputError(f"reading {reading!r} has no form in a GPU's buffers: time it with --device cpu")
    apart = [*([f"halo-{halo}"] if halo else []), *([reading] if reading != "zero" else [])]
    kind = "-".join(apart) or ("networks" if names == OTHERS else "network")

    def rows_of(*setting) -> tuple[list[dict], dict]:
        found = {name: _network_rows(device, repeats, static, *setting, {"network": name, **architecture}) for name in names}
        named = [{"network": name, **row} if names == OTHERS else row for name, (rows, _) in found.items() for row in rows]
        return named, {form: why for _, missing in found.values() for form, why in missing.items()}
    return by_setting(kind, device, settings or SETTINGS[device.type], rows_of, target, repeats=repeats, halo=halo, reading=reading)


def _network_rows(device: torch.device, repeats: int, static: bool, dtype: torch.dtype, batch: int, size: tuple[int, int],
                  architecture: dict) -> tuple[list[dict], dict]:
    torch.manual_seed(0)
    rows, model = [], build(21, **architecture).eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    image, grid = torch.randn(batch, 3, *size, device=device).to(memory_format=torch.channels_last), tuple(side // STRIDE for side in size)
    folded = fast.fold(model).to(dtype, memory_format=torch.channels_last)
    quick = on_device(model, dtype, compiled=device.type == "cuda") if static else fast.prepare(model)
    (dense, absent), reference = dense_forms(cost.dense(folded), image.to(dtype)), cost.dense(model)(image)
    differences = {form: difference(call, reference, form) for form, call in dense.items()}
    in_turn = lambda calls: partial(lambda turn: next(turn)(), itertools.cycle(calls))
    if not static:
        dense["all active"] = partial(cost.dense(quick), image)
    for rho in ("0.985", "0.800"):
        (regions, shares), on = paper_regions(rho, grid, batch, device, static, model.halo), network_on(quick, image.to(dtype))
        calls = [on(masks) for masks in regions]
        plain = [network_on(model, image)(masks)() for masks in regions]
        # random weights make all classes nearly equal: in half precision what sets them apart is compared, which rounding hides from float32
        apart = lambda x: x if dtype is torch.float32 else x - x.mean(1, keepdim=True)
        differences["region"] = max(difference(lambda: apart(call()), apart(wanted), "region", dtype) for call, wanted in zip(calls, plain))
        same = float(np.mean([(wanted.argmax(1) == call().argmax(1)).float().mean().item() for call, wanted in zip(calls, plain)]))
        everything = {"all active": on([torch.ones_like(mask) for mask in regions[0]])} if static else {}
        depths = () if static else range(1, len(quick.stages) + 1)
        until = {depth: in_turn([network_on(quick, image, depth)(masks) for masks in regions]) for depth in depths}
        times = undisturbed({**dense, **everything, "region": in_turn(calls), **until}, repeats, device)
        reached = [float(np.median(times.pop(depth))) for depth in depths]
        # outside its graph, which asks for no memory when it runs
        alone = partial(quick.steps, quick.later, image.to(dtype), image.new_zeros(()), *regions[0]) if static else calls[0]
        ideal = 1 / cost.cascade_share(model, size, [1.0, *shares])
        rows.append({"rho": float(rho), "active": shares, "dtype": str(dtype)[6:], "batch": batch, "size": list(size), "same_labels": same,
                     **compare(times, ideal), "differences": {**differences},
                     "peak_bytes": {"dense": cost.peak_bytes(dense["folded"], device), "region": cost.peak_bytes(alone, device)},
                     **({"stage_ms": np.diff(reached, prepend=0).tolist()} if reached else {})})
    return rows, absent


@torch.no_grad()
def systems(profile_name: str, target: Path | None = None, device: torch.device = CPU, repeats: int = 5, thorough: bool = True) -> Path:
    """Each system of a profile on one image of its size, LC at the shares its record has; random weights. Every network is in the fastest
    of its forms that need no compiler (lc.speed.trained.forms). thorough: InputError where other processes keep the machine busy."""
    entries, size = catalogue(profile_name), profile(profile_name).train.crop
    shares = {name: 1 - np.cumsum(record["metrics"]["val"]["decided"])[:-1] for name in (f"lc-{BEST_RHO}", "lc-0.800", "aspp-lc")
              if name in entries and (record := records.find(entries[name]))}
    chosen = {TIMED.get(name, name): (entry.run.model, shares.get(name)) for name, entry in entries.items() if name in (*SYSTEMS, *TIMED, *shares)}
    classes, measure = len(SPECS[profile(profile_name).data.name].names), undisturbed if thorough else alternate
    return write("systems", device, _systems_rows(chosen, classes, size, device, repeats, measure), target, profile_name)


@torch.no_grad()
def poster(target: Path | None = None, device: torch.device = CPU, repeats: int = 5) -> Path:
    """The poster's networks at full width on an image of 300x500 pixels, LC at the shares of Table 1; forms as in `systems`."""
    chosen = {**{name: (ModelConfig(name), None) for name in ("vgg16", "resnet101", "irnet")},
              **{name: (ModelConfig(), shares_left(rho)) for name, rho in ((f"lc-{BEST_RHO}", BEST_RHO), ("lc-0.800", "0.800"))}}
    return write("poster", device, _systems_rows(chosen, 21, (300, 500), device, repeats), target)


def _systems_rows(chosen: dict[str, tuple[ModelConfig, np.ndarray | None]], classes: int, size: tuple[int, int], device: torch.device, repeats: int,
                  measure: Callable = undisturbed) -> dict:
    torch.manual_seed(0)
    image, calls, found = torch.randn(1, 3, *size, device=device).to(memory_format=torch.channels_last), {}, {}
    for name, (config, left) in chosen.items():
        model = build(classes, **asdict(config)).eval().to(device, memory_format=torch.channels_last)
        found[name], (sides, dense, _) = sum(p.numel() for p in model.parameters()), forms(model, image, False, left is not None)
        if left is None:
            calls |= {(name, form): call for form, call in dense.items()}
        else:
            masks = [blob(share, tuple(-(-side // STRIDE) for side in size), 0).to(device) for share in left]
            calls |= {(name, form): network_on(side, image)(masks) for form, side in sides.items()}
    rows = [{"system": name, "form": form, **quartiles("ms", times), "parameters": found[name]}
            for (name, form), times in measure(calls, repeats, device).items()]
    rows = [min((row for row in rows if row["system"] == name), key=lambda row: row["ms"]) for name in chosen]
    return {"size": list(size), "batch": 1, "repeats": repeats, "rows": rows}


def training(target: Path | None = None, device: torch.device = CPU, repeats: int = 5, size: tuple[int, int] = (512, 512), batch: int = 8,
             **architecture) -> Path:
    """A step of cascade training of the full IRNet-LC, with the paper's mini-batch of 8 (Sec. 3.1), at the pixel shares of Table 1, against a DSN
    step (all stages on all pixels, the same losses): the whole step, and stages 2 and 3 alone (forward, losses, gradients down to stage 1's output;
    head 1, which says where they begin, runs on both sides). Batch norm is fixed (Sec. 3.1). On a GPU in bfloat16, and against torch.compile too.
    Regions change from step to step (`paper_regions`); on a GPU, where kernels are picked by trying them, all are met before the clock starts."""
    torch.manual_seed(0)
    rows, absent, grid, phase = [], {}, tuple(side // STRIDE for side in size), Phase(freeze_bn=True)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = build(21, **architecture).to(device, memory_format=torch.channels_last)
    set_trainable(model, phase)
    optimizer, _ = make_optimizer(model, TrainConfig(), Phase(lr=1e-6), 10)
    image, label = torch.randn(batch, 3, *size, device=device).to(memory_format=torch.channels_last), torch.randint(21, (batch, *size), device=device)
    later = LayerCascade([nn.Identity(), *model.stages[1:]], model.heads)
    features = model.stages[0](image).detach().requires_grad_()

    def step(net: LayerCascade, x: Tensor, masks: list[Tensor], form: Callable | None = None) -> None:
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            out = (form or net)(x, masks=masks)
        cascade_loss(out, label, (1, 2, 3) if net is model else (2, 3)).backward()
        if net is model:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # last, so that gradients count as memory of the step

    for (part, net, x), rho in itertools.product((("stages 2-3", later, features), ("whole step", model, image)), ("0.985", "0.800")):
        regions, left = paper_regions(rho, grid, batch, device)
        for masks in regions if device.type == "cuda" else ():
            step(net, x, masks)
        makers = {"torch.compile": lambda: partial(step, net, x, [], torch.compile(net))} if device.type == "cuda" else {}
        compiled, missing = ready(makers)  # compiled before the clock starts, and before other processes are watched
        calls = {"as trained": partial(step, net, x, []), "all active": partial(step, net, x, [torch.ones_like(mask) for mask in regions[0]]),
                 **compiled, "region": lambda turn=itertools.cycle(regions[1:] + regions[:1]): step(net, x, next(turn))}  # the first of 1.01
        absent |= missing
        before = float(net is model)  # stage 1 counts in the whole step only
        ideal = cost.cascade_share(model, size, [before, 1.0, 1.0]) / cost.cascade_share(model, size, [before, *left])
        rows.append({"layer": part, "rho": float(rho), "active": left, **compare(undisturbed(calls, repeats, device), ideal),
                     "peak_bytes": {"dense": cost.peak_bytes(calls["as trained"], device), "region": cost.peak_bytes(calls["region"], device)}})
    values = {"dtype": str(dtype)[6:], "size": list(size), "batch": batch, "repeats": repeats, "absent": absent, "rows": rows}
    return write("training", device, values, target)


def loader(profile_name: str, root, device: torch.device, target: Path | None = None, repeats: int = 9) -> Path:
    """Images per second that one loader process makes (decoded once before; augmented each time), and that a training step uses."""
    run_ = experiment(profile_name, "initial").run
    data = SegmentationSet(run_.data, "train", root)
    start = cost.now(CPU)
    for i in range(len(data)):
        data.read(i)
    decoded = len(data) / (cost.now(CPU) - start)
    model, amp = build(data.num_classes, **asdict(run_.model)), autocast_dtype(run_.train.amp, device)
    model.to(device, memory_format=training_format(amp, device))
    set_trainable(model, run_.phases[0])
    optimizer, _ = make_optimizer(model, run_.train, run_.phases[0], 10)
    samples = TrainingSamples(data, run_.train, run_.seed)
    batches = itertools.chain.from_iterable(epoch_loader(samples, epoch) for epoch in itertools.count())
    image, label = next(batches)
    image, label = image.to(device, memory_format=training_format(amp, device)), label.to(device)

    def step() -> None:
        with torch.autocast(device.type, amp or torch.bfloat16, enabled=amp is not None):
            out = model(image, 1.0)
        optimizer.zero_grad(set_to_none=True)
        cascade_loss(out, label, (1, 2, 3)).backward()
        optimizer.step()

    times = undisturbed({"loader": lambda: next(batches), "step": step}, repeats, device)
    rows = [{"part": name, **quartiles("images_s", 1e3 * len(image) / values)} for name, values in times.items()]
    return write("loader", device, {"profile": profile_name, "batch": len(image), "size": list(image.shape[2:]), "amp": str(amp), "repeats": repeats,
                                     "decoded_images_s": decoded, "rows": rows}, target)

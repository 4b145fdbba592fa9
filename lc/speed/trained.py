"""Times of trained cascades on the images of their data set, each form of the cascade against each of the dense network's."""
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lc import runs
from lc.cascade import LayerCascade
from lc.data import SegmentationSet, to_input
from lc.experiments import experiment
from lc.paper import columns
from lc.speed import cost, exported, fast
from lc.speed.opponents import dense_forms, difference, ready
from lc.speed.timing import alternate, blob, quartiles, undisturbed, write


def run(profile_name: str, name: str, root, device: torch.device, images: int = 10, repeats: int = 5, target: Path | None = None,
        thorough: bool = True) -> Path:
    """Time a trained cascade at the rho of Table 1 on validation images, one after the other; returns the file written, named after its run.
    thorough: also opponents that need a compiler or `.[bench]`, and InputError where other processes keep the machine busy."""
    entry = experiment(profile_name, name)
    model, _ = runs.trained(profile_name, name, device)
    data = SegmentationSet(entry.run.data, "val", root)
    inputs = [to_input(data.read(i)[0])[None].to(device, memory_format=torch.channels_last) for i in spread(len(data), images)]
    rows, absent = timed(model, inputs, [float(rho) for rho in columns("1", "mIoU")], repeats, thorough)
    values = {"experiment": name, "key": entry.run.key(), "profile": profile_name, "batch": 1, "size": list(inputs[0].shape[2:]),
              "images": len(inputs), "repeats": repeats, "warm_up": "one round over all images",
              "left_out": "reading, resizing, upsampling to labels", "absent": absent, "model": asdict(entry.run.model), "rows": rows}
    return write(name, device, values, target, profile_name)


def spread(images: int, count: int) -> list[int]:
    """`count` of so many images, evenly; each of them once, if there are no more."""
    count = min(count, images)
    return [int((i + 0.5) * images / count) for i in range(count)]


@torch.no_grad()
def timed(model: LayerCascade, images: list[Tensor], rhos: list[float], repeats: int, thorough: bool) -> tuple[list[dict], dict[str, str]]:
    """One row per contestant, rho or None for the dense network, each in its fastest form, and the forms that are absent. Milliseconds an image;
    of each stage, what the cascade that stops behind it takes more than one that stops before it (handing over and its head included); shares
    handed on and computed (a halo is computed, not decided), the speed-up that these allow, and the one measured: median and quartiles of dense /
    cascade, turn by turn."""
    images = alike(images)
    sides, dense, absent = forms(model, images[0], thorough)
    measure, size = undisturbed if thorough else alternate, images[0].shape[2:]
    times = taking_turns(sides, dense, images, rhos, repeats, measure)
    fastest = lambda keys: min(keys, key=lambda key: np.median(times[key]))
    best, chosen = fastest(dense), {rho: fastest((form, rho) for form in sides) for rho in rhos}
    depths = {(rho, depth): lambda rho=rho, depth=depth: [sides[chosen[rho][0]](image, rho, depth) for image in images] for rho in rhos
              for depth in range(1, len(model.stages) + 1)}
    until = {key: float(np.median(ms)) / len(images) for key, ms in measure(depths, repeats, images[0].device).items()}
    rows = [{"rho": None, **quartiles("ms", times[best]), "dense_form": best, **quartiles("speedup", times[best] / times[best]),
             "stage_ms": [float(np.median(times[best]))], "forms_ms": {form: float(np.median(times[form])) for form in dense}}]
    for rho, key in chosen.items():
        outs = [sides["PyTorch"](image, rho) for image in images]
        computed = np.mean([[1.0 if region is None else region.mask.float().mean().item() for region in out.regions] for out in outs],
                           axis=0).tolist()
        rows.append({"rho": rho, **quartiles("ms", times[key]), "dense_form": best, "region_form": key[0],
                     **quartiles("speedup", times[best] / times[key]),
                     "stage_ms": np.diff([until[rho, depth] for depth in range(1, len(model.stages) + 1)], prepend=0).tolist(),
                     "handed": np.mean([out.shares for out in outs], axis=0).tolist(), "computed": computed,
                     "ideal": 1 / cost.cascade_share(model, size, computed),
                     "forms_ms": {form: float(np.median(times[form, rho])) for form in sides}})
    return rows, absent


def alike(images: list[Tensor]) -> list[Tensor]:
    """All (1, 3, H, W) in the size of the first: a dense form has one size, and is timed on that."""
    size = images[0].shape[2:]
    return [x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear") for x in images]


def taking_turns(sides: dict[str, nn.Module], dense: dict[str, Callable], images: list[Tensor], rhos: list[float], repeats: int,
                 measure: Callable = alternate) -> dict[object, np.ndarray]:
    """Milliseconds an image of each dense form, and of each (form of the cascade, rho), over turns: in a turn a contestant takes all images, so
    that what another library leaves running disturbs its first calls only."""
    turns = {form: lambda call=call: [call() for _ in images] for form, call in dense.items()}
    turns |= {(form, rho): lambda side=side, rho=rho: [side(image, rho) for image in images] for form, side in sides.items() for rho in rhos}
    return {key: ms / len(images) for key, ms in measure(turns, repeats, images[0].device).items()}


@torch.no_grad()
def forms(model: LayerCascade, image: Tensor, compiled: bool, cascade: bool = True) -> tuple[dict[str, nn.Module], dict[str, Callable], dict]:
    """The cascade's forms (its own alone, unless `cascade`), calls of the dense network's on the image, and what is absent; those of a cascade are
    compared with the plain modules. compiled: see dense_forms."""
    sides, folded = {"PyTorch": fast.prepare(model)}, fast.fold(model).to(memory_format=torch.channels_last)
    dense, absent = dense_forms(cost.dense(folded), image, compiled)
    dense["all active"] = partial(cost.dense(sides["PyTorch"]), image)
    name, make = ("CUDA graph", partial(on_device, compiled=compiled)) if image.is_cuda else ("ONNX Runtime", exported.Exported)
    if name in dense and cascade:
        made, missing = ready({f"LC, {name}": lambda: partial(make(model), image)})
        sides, absent = sides | {name: call.func for call in made.values()}, absent | missing
    if len(model.heads) > 1:  # SegNet, which has one, unpools by indices that rounding may change
        dtype = torch.float16 if image.is_cuda else torch.float32  # a GPU multiplies in TF32, which rounds like the former
        reference = cost.dense(model)(image)
        masks = [blob(share, reference.shape[2:], 0, len(image)).to(image.device) for share in np.linspace(0.75, 0.25, len(model.heads) - 1)]
        for form, call in dense.items():
            difference(call, reference, form, dtype)
        for form, side in sides.items():
            difference(network_on(side, image)(masks), network_on(model, image)(masks)(), f"the cascade in {form}", dtype)
    return sides, dense, absent


def network_on(model: nn.Module, image: Tensor, depth: int | None = None) -> Callable[[list[Tensor]], Callable[[], Tensor]]:
    """From masks for stages 2, 3, ... to the call that gives the log-probabilities of a cascade, or of one of its forms."""
    return lambda masks: lambda: model(image, depth=depth, masks=tuple(masks)).log_probs


def on_device(*values, **more) -> nn.Module:
    """lc.speed.kernels.DeviceCascade; ImportError where Triton is missing."""
    from lc.speed.kernels import DeviceCascade
    return DeviceCascade(*values, **more)

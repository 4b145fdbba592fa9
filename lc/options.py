"""Options at test time (Sec. 4.4, Table 6): left-right flips, three scales, a fully connected CRF. Studies of finished weights.

Each function takes what those of lc.studies take. values: variants, miou, seconds per image (as run here); arrays: confusions (V, N, K, K).
"""
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lc import metrics
from lc.cascade import LayerCascade, upsample
from lc.crf import dense_crf
from lc.data import SegmentationSet, to_input

SCALES = (0.5, 0.75, 1.0)  # those of DeepLab-v2, which Sec. 4.4 follows; they cost 1.81 of one forward, Table 6 prints 14.3 / 7.7 = 1.86
CRF_ITERATIONS = 10
# the CRF sees every 10th procedural image: in their noise nearly every pixel has a colour of its own, and an exact filter takes seconds
PROCEDURAL = 10


@torch.no_grad()
def probabilities(model: LayerCascade, image: Tensor, rho: float, scales: tuple[float, ...] = (1.0,), flip: bool = False) -> Tensor:
    """(K, H, W): the greatest over the scales, as DeepLab-v2 fuses them, of the mean over the image and its mirror image; rescaled to sum to 1.
    image: (3, H, W), normalised."""
    size, best = tuple(image.shape[1:]), torch.zeros((), device=image.device)
    for scale in scales:
        found = 0.0
        x = F.interpolate(image[None], scale_factor=scale, mode="bilinear", align_corners=False, antialias=scale < 1) if scale != 1 else image[None]
        for mirrored in (False, True)[:1 + flip]:
            seen = (x.flip(3) if mirrored else x).contiguous(memory_format=torch.channels_last)
            probs = upsample(model(seen, rho).log_probs, tuple(x.shape[2:])).softmax(1)
            probs = probs.flip(3) if mirrored else probs
            found = found + F.interpolate(probs, size, mode="bilinear", align_corners=False)[0]
        best = torch.maximum(best, found)
    return best / best.sum(0)


def _compare(variants: dict[str, Callable[[Tensor, np.ndarray], Tensor]], data: SegmentationSet, step: int = 1) -> tuple[dict, dict]:
    """Every variant, a function of the normalised and the plain image, on every image, or every `step`-th."""
    picks = range(0, len(data), step)
    counts, seconds = np.zeros((len(variants), len(picks), data.num_classes, data.num_classes), np.int32), np.zeros(len(variants))
    for row, i in enumerate(picks):
        image, label = data.read(i)
        for v, variant in enumerate(variants.values()):
            start = time.perf_counter()
            guess = variant(to_input(image), image).argmax(0).cpu().numpy()
            seconds[v] += time.perf_counter() - start
            counts[v, row] = metrics.confusion(label, guess, data.num_classes)
    return ({"variants": list(variants), "miou": [float(metrics.miou(c.sum(0))) for c in counts], "seconds": (seconds / len(picks)).tolist(),
             "images": len(picks)},
            {"confusions": counts})


def multiscale(model: LayerCascade, dsn: LayerCascade, data: SegmentationSet, rho: float) -> tuple[dict, dict]:
    """LC and DSN on the image as it is, with its mirror image, at three scales, and both."""
    device = next(model.parameters()).device
    choices = {"single": ((1.0,), False), "flip": ((1.0,), True), "three scales": (SCALES, False), "three scales, flip": (SCALES, True)}
    return _compare({f"{name}, {title}": lambda x, _, m=network, r=at, c=choice: probabilities(m, x.to(device), r, *c)
                     for name, network, at in (("LC", model, rho), ("DSN", dsn, 1.0)) for title, choice in choices.items()}, data)


def crf(model: LayerCascade, dsn: LayerCascade, data: SegmentationSet, rho: float) -> tuple[dict, dict]:
    """LC, single-scale and at three scales, before and after a fully connected CRF."""
    device = next(model.parameters()).device

    def refined(x: Tensor, image: np.ndarray, *choice) -> Tensor:
        return dense_crf(probabilities(model, x.to(device), rho, *choice), torch.from_numpy(image).to(device), CRF_ITERATIONS)

    plain = lambda x, _, *choice: probabilities(model, x.to(device), rho, *choice)
    return _compare({"LC": plain, "LC, CRF": refined, "LC, three scales": lambda x, i: plain(x, i, SCALES),
                     "LC, three scales, CRF": lambda x, i: refined(x, i, SCALES)}, data, PROCEDURAL if data.spec.synthetic else 1)

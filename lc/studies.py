"""Evaluations of finished cascades that ask more than mIoU. One function = one study = one record; nothing is trained.

Each takes the cascade trained at rho, the DSN of the same profile, a split (which, says lc.experiments.STUDIES) and rho, and returns plain values and
arrays. K classes, S stages, cells: the stride-8 grid on which the cascade decides.
"""
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from lc import evaluate, metrics
from lc.cascade import STRIDE, LayerCascade, cells_to_pixels, upsample
from lc.data import IGNORE, SegmentationSet
from lc.experiments import EVERYWHERE
from lc.paper import published

BANDS = tuple(range(1, 21))       # pixels either side of an object boundary
HALOS = (0, 1, 2, 4, 8)           # cells by which a region is grown for computing
OUTSIDE = {"dense": "the stage's input", "features": "features of the stage before", "interpolated": "an interpolation"}
BINS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.985, 0.995, 0.999, 1.0)
DEPTHS = (1, 2, 3, 5, 9)          # cells to the nearest cell that left early; each starts a band
PAIRS = tuple((a, b) for a in (0.8, 0.9, 0.95, 0.985, 1.0) for b in (0.8, 0.9, 0.95, 0.985, 1.0))  # rho of stage 1, of stage 2


def boundary_distance(label: np.ndarray) -> np.ndarray:
    """(H, W) float: pixels to the nearest object boundary, 1 beside it. A boundary runs where the class changes; void, which many data sets draw
    between objects, counts as its nearest class there. Without one: infinity."""
    if (void := label == IGNORE).all():
        return np.full(label.shape, np.inf)
    label = label[tuple(distance_transform_edt(void, return_distances=False, return_indices=True))]
    edge = np.zeros((2 * label.shape[0] - 1, 2 * label.shape[1] - 1), bool)  # pixels at even positions, boundaries between
    edge[1::2, ::2], edge[::2, 1::2] = label[1:] != label[:-1], label[:, 1:] != label[:, :-1]
    if not edge.any():
        return np.full(label.shape, np.inf)
    return (distance_transform_edt(~edge)[::2, ::2] + 1) / 2


def difficulty_sets(label: np.ndarray, prediction: np.ndarray, confidence: np.ndarray, threshold: float) -> np.ndarray:
    """0 easy (right, confident), 1 moderate (not confident), 2 extremely hard (wrong, confident); Sec. 1. Shapes as label."""
    return np.where(confidence < threshold, 1, np.where(prediction == label, 0, 2))


def difficulty(model: LayerCascade, dsn: LayerCascade, data: SegmentationSet, rho: float) -> tuple[dict, dict]:
    """Fig. 1: ES, MS and HS per class, and how near to object boundaries HS pixels lie, for the whole LC and for its stage 1; and how many pixels
    each stage decides within each of BANDS, and in all: `decided` (S, bands + 1)."""
    threshold, classes = published("text", "ms-score-below").value, data.num_classes
    sets, near = np.zeros((2, 3, classes), np.int64), np.zeros((2, 4, len(BANDS)), np.int64)  # near: ES, MS, HS, all
    decided = np.zeros((len(model.stages), len(BANDS) + 1), np.int64)
    for out, labels in evaluate.outputs(model, data, rho):
        distance = np.stack([boundary_distance(label) for label in labels.numpy()])
        known, stage = labels.numpy() != IGNORE, cells_to_pixels(out.decided, labels.shape[1:]).cpu().numpy()
        for s, chosen in enumerate((known & (stage == s) for s in range(1, 1 + len(decided)))):
            decided[s] += [(distance[chosen] <= band).sum() for band in (*BANDS, np.inf)]
        for row, log_probs in enumerate((out.log_probs, out.fused[0])):
            confidence, guess = (x.cpu().numpy() for x in upsample(log_probs, labels.shape[1:]).softmax(1).max(1))
            kind = difficulty_sets(labels.numpy(), guess, confidence, threshold)
            sets[row] += np.bincount((kind * classes + labels.numpy())[known], minlength=3 * classes).reshape(3, classes)
            for k, chosen in enumerate([known & (kind == k) for k in range(3)] + [known]):
                near[row, k] += [(distance[chosen] <= band).sum() for band in BANDS]
    return {"threshold": threshold, "maps": ["LC", "stage 1"]}, {"sets": sets, "near": near, "decided": decided}


def context(model: LayerCascade, dsn: LayerCascade, data: SegmentationSet, rho: float) -> tuple[dict, dict]:
    """What a region reads outside itself, changed at test time only: zeros, a halo of k cells, everything, or another reading (lc.region_conv)."""
    variants = [("zero", h) for h in (*HALOS, EVERYWHERE)] + [(reading, 0) for reading in OUTSIDE]
    confusions, computed = [], []
    for network in (model, dsn):
        before = network.reading, network.halo
        for network.reading, network.halo in variants:
            counts, active, cells = [], np.zeros(len(network.stages)), 0
            for out, labels in evaluate.outputs(network, data, rho):
                counts.append(evaluate.confusions(out.log_probs, labels, data.num_classes))
                active += [out.decided.numel() if region is None else len(region) for region in out.regions]
                cells += out.decided.numel()
            confusions.append(np.concatenate(counts))
            computed.append((active / cells).tolist())
        network.reading, network.halo = before
    names = ["everything" if h == EVERYWHERE else OUTSIDE.get(r) or (f"halo {h}" if h else "zeros") for r, h in variants]
    return ({"variants": names, "networks": ["LC", "DSN"], "computed": computed, "miou": [float(metrics.miou(c.sum(0))) for c in confusions]},
            {"confusions": np.stack(confusions).astype(np.int32)})


def calibration(model: LayerCascade, dsn: LayerCascade, data: SegmentationSet, rho: float) -> tuple[dict, dict]:
    """Is 0.985 really 98.5 %? Cells handed to each stage, by confidence: how many, and how many of them right. (2, S, 2, bins)."""
    counts = np.zeros((2, len(model.stages), 2, len(BINS) - 1), np.int64)
    for row, network in enumerate((model, dsn)):
        for out, labels in evaluate.outputs(network, data, rho):
            at_cells = labels[:, ::STRIDE, ::STRIDE]
            for stage, (fused, handed) in enumerate(zip(out.fused, out.handed)):
                confidence, guess = fused.exp().max(1)
                chosen = handed.cpu() & (at_cells != IGNORE)
                right = (guess.cpu() == at_cells)[chosen].numpy()
                values = confidence.cpu()[chosen].numpy()
                counts[row, stage, 0] += np.histogram(values, BINS)[0]
                counts[row, stage, 1] += np.histogram(values[right], BINS)[0]
    return {"networks": ["LC", "DSN"], "bins": list(BINS)}, {"counts": counts}


def selection(model: LayerCascade, dsn: LayerCascade, data: SegmentationSet, rho: float) -> tuple[dict, dict]:
    """Who should exit where, with every stage computed everywhere so that nothing but the choice counts: by confidence with one
    rho per stage, and by an oracle that lets a cell exit at the first stage that labels it right."""
    rules = [*PAIRS, "oracle"]
    confusions = np.zeros((2, len(rules), data.num_classes, data.num_classes), np.int64)
    handed = np.zeros((2, len(rules), 3))
    for row, network in enumerate((model, dsn)):
        for out, labels in evaluate.outputs(network, data, 1.0):
            stages = torch.stack(out.fused)  # (S, N, K, h, w); at rho = 1 each stage speaks for itself
            confidence, guess = stages.exp().max(2)
            at_cells = labels[:, ::STRIDE, ::STRIDE]
            wrong = (guess.cpu() != at_cells) & (at_cells != IGNORE)
            for number, rule in enumerate(rules):
                on = wrong[:2] if rule == "oracle" else torch.stack([(confidence[s] < r) | (r >= 1) for s, r in enumerate(rule)]).cpu()
                stage = torch.where(on[0], torch.where(on[1], 2, 1), 0)  # (N, h, w)
                chosen = stages.gather(0, stage[None, :, None].expand(1, *stages.shape[1:]).to(stages.device))[0]
                confusions[row, number] += evaluate.confusions(chosen, labels, data.num_classes).sum(0)
                handed[row, number] += [stage.numel(), int((stage > 0).sum()), int((stage > 1).sum())]
    handed /= handed[..., :1]
    return ({"networks": ["LC", "DSN"], "rules": [r if isinstance(r, str) else list(r) for r in rules], "handed": handed.tolist(),
             "miou": metrics.miou(confusions).tolist()}, {})


def border(model: LayerCascade, dsn: LayerCascade, data: SegmentationSet, rho: float) -> tuple[dict, dict]:
    """Where LC loses: labelled pixels by how deep they lie in stage 2's region (the first band left at stage 1), and how many of them
    LC, LC that computes every cell, and the DSN label right. counts: (N, bands, 4)."""
    bands, columns, before = [], [], model.halo
    for network, halo, at in ((model, before, rho), (model, EVERYWHERE, rho), (dsn, dsn.halo, 1.0)):
        network.halo, right = halo, []
        for out, labels in evaluate.outputs(network, data, at):
            if not columns:
                depth = [np.digitize(distance_transform_edt(m) if not m.all() else np.full(m.shape, np.inf), DEPTHS)
                         for m in out.handed[1].cpu().numpy()]
                bands += list(cells_to_pixels(torch.from_numpy(np.stack(depth)), labels.shape[1:]).masked_fill(labels == IGNORE, -1).numpy())
            right += list((upsample(out.log_probs, labels.shape[1:]).argmax(1).cpu() == labels).numpy())
        columns.append(right)
    model.halo = before
    count = lambda chosen: np.stack([np.bincount(band[use], minlength=1 + len(DEPTHS)) for band, use in chosen])
    counts = [count((b, b >= 0) for b in bands)] + [count((b, (b >= 0) & r) for b, r in zip(bands, right)) for right in columns]
    return {"depths": list(DEPTHS), "networks": ["LC", "LC, every cell computed", "DSN"]}, {"counts": np.stack(counts, -1).astype(np.int32)}

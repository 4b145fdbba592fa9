"""Counts and what follows from them: IoU, paired bootstrap intervals, label shares per stage. NumPy only.

K classes, S stages. A confusion matrix is (K, K) with the truth in rows.
"""
import numpy as np


def confusion(label: np.ndarray, prediction: np.ndarray, num_classes: int, ignore_index: int = 255) -> np.ndarray:
    """(K, K) int64 counts over the pixels whose label is not ignore_index."""
    known = label != ignore_index
    pairs = num_classes * label[known].astype(np.int64) + prediction[known]
    return np.bincount(pairs, minlength=num_classes ** 2).reshape(num_classes, num_classes)


def iou(confusion: np.ndarray) -> np.ndarray:
    """(..., K) intersection over union; nan for a class that neither label nor prediction holds."""
    hit = np.diagonal(confusion, axis1=-2, axis2=-1).astype(float)
    union = confusion.sum(-1) + confusion.sum(-2) - hit
    return np.divide(hit, union, out=np.full_like(hit, np.nan), where=union > 0)


def miou(confusion: np.ndarray) -> np.ndarray:
    """(...,) mean IoU over the classes present, in [0, 1]."""
    return np.nanmean(iou(confusion), axis=-1)


def bootstrap_miou(confusions: np.ndarray, other: np.ndarray | None = None, draws: int = 2000, seed: int = 0,
                   level: float = 0.95) -> tuple[float, float, float]:
    """(value, low, high): mIoU of per-image confusions (N, K, K), or its difference to `other`'s on the same images.

    Percentile bootstrap over images, paired when other is given: both are drawn with the same images.
    """
    if other is not None and other.shape != confusions.shape:
        raise ValueError(f"paired bootstrap needs the same images: got {confusions.shape} and {other.shape}")
    n = len(confusions)
    draw = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws).astype(float)  # (draws, N)
    score = lambda counts, weights: miou(np.tensordot(weights, counts, axes=1))
    value, spread = score(confusions, np.ones(n)), score(confusions, draw)
    if other is not None:
        value, spread = value - score(other, np.ones(n)), spread - score(other, draw)
    low, high = np.quantile(spread, [(1 - level) / 2, (1 + level) / 2])
    return float(value), float(low), float(high)


def label_share_ratio(decided: np.ndarray) -> np.ndarray:
    """(S-1, K) ratios of Fig. 5a from decided (S, K), the labelled pixels of each class that each stage decided.

    Row s: class k's share among the pixels handed to stage s+2 over its share among those handed to stage s+1. Stage 1 is
    handed everything. nan where a class, or a stage, has no pixels.
    """
    handed = np.cumsum(decided[::-1], axis=0)[::-1].astype(float)  # (S, K): decided here or later
    with np.errstate(divide="ignore", invalid="ignore"):
        share = handed / handed.sum(axis=1, keepdims=True)
        return share[1:] / share[:-1]


def decided_share(decided: np.ndarray) -> np.ndarray:
    """(S, K) of Fig. 5b: the share of each class's pixels that each stage decided; columns add up to 1."""
    total = decided.sum(axis=0, keepdims=True)
    return np.divide(decided, total, out=np.full(decided.shape, np.nan), where=total > 0)

"""Counts and what follows from them: IoU, label shares per stage. NumPy only.

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

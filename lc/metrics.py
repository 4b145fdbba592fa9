"""Counts and IoU. NumPy only. A confusion matrix of K classes is (K, K), with the truth in rows."""
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

"""Run a cascade over a split and count. Module-level and without state: training, records and notebooks call the same."""
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lc import metrics
from lc.cascade import CascadeOutput, LayerCascade, cells_to_pixels, upsample
from lc.data import IGNORE, SegmentationSet, eval_batches


@dataclass
class Evaluation:
    """Counts over one split at one rho. N images, K classes, S stages.

    confusions: (N, K, K), truth in rows; decided: (S, K), labelled pixels of class k decided by stage s;
    handed: (S,) mean share of the stride-8 cells handed to each stage, the first is 1.
    """
    rho: float
    confusions: np.ndarray
    decided: np.ndarray
    handed: np.ndarray

    @property
    def miou(self) -> float:
        return float(metrics.miou(self.confusions.sum(0)))

    def summary(self) -> dict:
        """Plain numbers for a record: shares in [0, 1]."""
        total = self.confusions.sum(0)
        exits = self.handed - np.append(self.handed[1:], 0.0)
        return {
            "rho": self.rho, "images": len(self.confusions), "miou": self.miou,
            "iou": [None if np.isnan(value) else float(value) for value in metrics.iou(total)],
            "pixel_accuracy": float(np.diagonal(total).sum() / total.sum()),
            "handed": [float(v) for v in self.handed], "decided": [float(v) for v in exits],
            "decided_pixels": self.decided.tolist()}


def confusions(log_probs: Tensor, labels: Tensor, classes: int) -> np.ndarray:
    """(N, K, K) of a batch: log-probabilities (N, K, h, w) on cells against labels (N, H, W) on pixels."""
    guesses = upsample(log_probs, labels.shape[1:]).argmax(1).cpu().numpy()
    return np.stack([metrics.confusion(*pair, classes) for pair in zip(labels.numpy(), guesses)])


@torch.no_grad()
def outputs(model: LayerCascade, data: SegmentationSet, rho: float) -> Iterator[tuple[CascadeOutput, Tensor]]:
    """What a model says of each batch of whole images, and their labels (N, H, W)."""
    for images, labels in eval_batches(data):
        yield model(images.to(next(model.parameters()).device, memory_format=torch.channels_last), rho), labels


def evaluate(model: LayerCascade, data: SegmentationSet, rho: float) -> Evaluation:
    """Evaluate `model` (eval mode is set and left set) on whole images, at the resolution of the labels, in float32."""
    stages, classes = len(model.eval().stages), data.num_classes
    counts, decided, handed = [], np.zeros((stages, classes), np.int64), np.zeros(stages)
    for out, labels in outputs(model, data, rho):
        counts.append(confusions(out.log_probs, labels, classes))
        stage = cells_to_pixels(out.decided, labels.shape[1:]).cpu().numpy()
        known = labels.numpy() != IGNORE
        pairs = (stage[known].astype(np.int64) - 1) * classes + labels.numpy()[known]
        decided += np.bincount(pairs, minlength=stages * classes).reshape(stages, classes)
        handed += np.array(out.shares) * len(labels)
    return Evaluation(rho, np.concatenate(counts), decided, handed / len(data))

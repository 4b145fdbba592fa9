"""Counts, IoU, bootstrap, label shares: against torchmetrics and against arithmetic."""
import numpy as np
import torch

from lc import metrics
from lc.report import tables


def test_confusion_and_iou_agree_with_torchmetrics():
    """On random maps with ignored pixels, confusion matrix and per-class IoU are torchmetrics'."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_jaccard_index
    rng = np.random.default_rng(0)
    label, guess = rng.integers(0, 6, (4, 30, 40)), rng.integers(0, 6, (4, 30, 40))
    label[rng.random(label.shape) < 0.1] = 255
    ours = metrics.confusion(label, guess, 6)
    theirs = multiclass_confusion_matrix(torch.tensor(guess), torch.tensor(label), 6, ignore_index=255)
    np.testing.assert_array_equal(ours, theirs.numpy())
    jaccard = multiclass_jaccard_index(torch.tensor(guess), torch.tensor(label), 6, average=None, ignore_index=255)
    np.testing.assert_allclose(metrics.iou(ours), jaccard.numpy(), rtol=1e-6)


def test_absent_classes_do_not_count():
    """A class that is neither in the labels nor predicted is left out of the mean; one that is only predicted counts 0."""
    counts = np.zeros((3, 3), int)
    counts[0, 0], counts[0, 1] = 3, 1
    np.testing.assert_allclose(metrics.iou(counts), [0.75, 0, np.nan])
    assert metrics.miou(counts) == 0.375


def test_label_shares():
    """Fig. 5 by hand: 100 pixels of class a and 100 of b; stage 1 decides 80 of a and 20 of b, stage 2 10 of a and 30 of b."""
    record = lambda decided: {"metrics": {"val": {"decided_pixels": decided}}, "data": {"classes": ["a", "b"]}}
    made = record([[80, 20], [10, 30], [10, 50]])
    ratios = tables.label_ratios(made)
    np.testing.assert_allclose(ratios["stage 2 / stage 1"], [(20 / 100) / 0.5, (80 / 100) / 0.5])
    np.testing.assert_allclose(ratios["stage 3 / stage 2"], [(10 / 60) / (20 / 100), (50 / 60) / (80 / 100)])
    np.testing.assert_allclose(tables.decided_shares(made).loc["b"], [20, 30, 50])
    np.testing.assert_allclose(tables.count_ratios(made).loc["a"], [10 / 80, 10 / 10])
    few = record([[5, 0], [0, 0]])
    assert tables.label_ratios(few).isna().all(None) and list(tables.count_ratios(few).iloc[:, 0].fillna(-1)) == [0, -1], "no pixels, no ratio"

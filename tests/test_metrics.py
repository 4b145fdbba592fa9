"""Counts, IoU, bootstrap, label shares: against torchmetrics and against arithmetic."""
import numpy as np
import torch

from lc import metrics


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
    decided = np.array([[80, 20], [10, 30], [10, 50]])
    ratios = metrics.label_share_ratio(decided)
    np.testing.assert_allclose(ratios[0], [(20 / 100) / 0.5, (80 / 100) / 0.5])
    np.testing.assert_allclose(ratios[1], [(10 / 60) / (20 / 100), (50 / 60) / (80 / 100)])
    np.testing.assert_allclose(metrics.decided_share(decided)[:, 1], [0.2, 0.3, 0.5])
    assert np.isnan(metrics.label_share_ratio(np.array([[5, 0], [0, 0]]))).any()

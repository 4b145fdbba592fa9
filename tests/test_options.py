"""Options at test time: what flips and scales must do, and that the studies count every variant."""
import torch

from lc import options
from lc.cascade import upsample
from lc.config import DataConfig
from lc.data import SegmentationSet
from lc.evaluate import evaluate
from lc.networks import build


def make(seed: int = 0):
    torch.manual_seed(seed)
    model = build(8, width=0.125, blocks=(1, 1, 1), head_width=8).eval()
    for head in model.heads:
        torch.nn.init.normal_(head.classify.weight, std=0.3)
    return model


def test_flips_and_scales():
    """One scale without flips is the plain cascade; with flips a mirrored image gets the mirrored answer, which it does not without."""
    model, image = make(), torch.randn(3, 64, 80, generator=torch.Generator().manual_seed(1))
    rho = 0.5
    with torch.no_grad():
        plain = upsample(model(image[None], rho).log_probs, (64, 80)).softmax(1)[0]
    torch.testing.assert_close(options.probabilities(model, image, rho), plain)
    one, two = (options.probabilities(model, x, rho, flip=True) for x in (image, image.flip(2)))
    torch.testing.assert_close(two.flip(2), one)
    assert (options.probabilities(model, image.flip(2), rho).flip(2) - plain).abs().max() > 1e-3
    many = options.probabilities(model, image, rho, options.SCALES)
    torch.testing.assert_close(many.sum(0), torch.ones(64, 80))
    parts = [options.probabilities(model, image, rho, (s,)) for s in options.SCALES]
    most = torch.stack(parts).amax(0)
    torch.testing.assert_close(many, most / most.sum(0))


def test_studies_compare_every_variant(monkeypatch):
    """Each variant has its counts of all labelled pixels; the single-scale one has those of `evaluate`; the CRF changes labels."""
    data = SegmentationSet(DataConfig("shapes", 0.5, limit=3), "val")
    model, dsn = make(), make(1)
    values, arrays = options.multiscale(model, dsn, data, 0.5)
    assert len(values["variants"]) == len(values["miou"]) == len(values["seconds"]) == 8 and min(values["seconds"]) > 0
    assert arrays["confusions"].shape == (8, 3, 8, 8) and len(set(arrays["confusions"].sum((1, 2, 3)))) == 1
    assert abs(arrays["confusions"][0] - evaluate(model, data, 0.5).confusions).sum() <= 4  # batches of one: ties may fall otherwise
    assert abs(arrays["confusions"][4] - evaluate(dsn, data, 1.0).confusions).sum() <= 4
    monkeypatch.setattr(options, "CRF_ITERATIONS", 2)
    values, crf = options.crf(model, dsn, data, 0.5)
    assert values["images"] == 1 and crf["confusions"].shape == (4, 1, 8, 8), "every 10th procedural image"
    assert (crf["confusions"][0] == arrays["confusions"][0, :1]).all() and (crf["confusions"][2] == arrays["confusions"][2, :1]).all()
    assert abs(crf["confusions"][1] - crf["confusions"][0]).sum() > 3 and values["seconds"][1] > values["seconds"][0]

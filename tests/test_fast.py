"""The cascade prepared for inference says what the original says."""
import numpy as np
import pytest
import torch

from lc import bench
from lc import fast as fast_module
from lc.cascade import build_irnet_lc
from lc.errors import InputError
from lc.fast import FastMixed, FastResidual, prepare


@pytest.fixture(scope="module")
def model():
    """A small cascade with statistics and biases that are not at their start values."""
    torch.manual_seed(0)
    cascade = build_irnet_lc(4, width=0.125, blocks=(1, 2, 2), head_width=8)
    for module in cascade.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5), torch.nn.init.normal_(module.bias, std=0.3)
            module.running_mean.normal_(std=0.2), module.running_var.uniform_(0.5, 2)
    for head in cascade.heads:
        torch.nn.init.normal_(head.classify.weight, std=0.5)
    return cascade.eval()


@torch.no_grad()
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("quantile", [None, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("onednn", [True, False])
def test_same_probabilities_and_decisions(model, images, quantile, onednn, monkeypatch):
    """Dense (rho = 1) and on regions of several sizes, with oneDNN and without; the original stays as it was."""
    monkeypatch.setattr(fast_module, "ONEDNN", onednn and fast_module.ONEDNN)
    x = torch.randn(images, 3, 72, 88, generator=torch.Generator().manual_seed(images))
    rho = 1.0 if quantile is None else float(model(x, 1.0, depth=1).probs.amax(1).quantile(quantile))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    expected, found = model(x, rho), prepare(model)(x, rho)
    if quantile is not None:
        assert 0 < expected.shares[2] < 1
    torch.testing.assert_close(found.probs, expected.probs, atol=2e-5, rtol=1e-4)
    assert torch.equal(found.decided, expected.decided)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


@torch.no_grad()
def test_empty_and_repeated(model):
    """An empty region is ordinary; a second call gives the same bytes, so nothing is written into what is kept."""
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(9))
    fast = prepare(model)
    assert (fast(x, 0.0).decided == 1).all()
    first = fast(x, 1.0).log_probs.clone()
    assert torch.equal(first, fast(x, 1.0).log_probs)


def test_every_block_of_the_later_stages_is_fast(model):
    """No batch norm is left, and IRNet-B and -C run in the new form."""
    fast = prepare(model)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fast.modules())
    assert sum(isinstance(m, FastResidual) for m in fast.modules()) == 4 and isinstance(fast.stages[1].reduction_b, FastMixed) and all(not p.requires_grad for p in fast.parameters())


def test_blobs_have_the_share_they_are_asked_for():
    """Nested for one seed, so that a later stage's region lies inside the earlier one's."""
    wide, narrow = (bench.blob(share, (64, 64), 0) for share in (0.77, 0.25))
    assert wide.float().mean().item() == pytest.approx(0.77, abs=0.001) and not (narrow & ~wide).any() and bench.blob(1.0, (8, 8), 0).all()


def test_the_fastest_dense_form_is_the_opponent():
    """A slow dense form flatters nobody; a noisy machine says so."""
    steady = lambda value: np.full(8, float(value))
    row = bench._compare({"folded": steady(30), "all active": steady(20), "region": steady(10)}, ideal=2.5)
    assert (row["dense_form"], row["speedup"], row["ratio"]) == ("all active", 2, 0.8)
    with pytest.raises(InputError, match="too noisy to tell: the dense side's quartiles"):
        bench._compare({"folded": np.linspace(10, 40, 8), "region": steady(10)}, ideal=2)


@torch.no_grad()
def test_given_masks_are_what_is_computed(model):
    """Logits of the last stage, the same for the plain and the prepared cascade, zero outside."""
    image = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(2))
    masks = [bench.blob(share, (16, 16), 0) for share in (0.6, 0.3)]
    plain, fast = (bench.on_masks(m, image, masks) for m in (model, prepare(model)))
    torch.testing.assert_close(plain, fast, atol=2e-5, rtol=1e-4)
    assert (fast[:, :, ~masks[1][0]] == 0).all() and (fast[:, :, masks[1][0]] != 0).any()

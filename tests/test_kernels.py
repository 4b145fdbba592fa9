"""The Triton kernels, in Triton's interpreter on a CPU: they agree with the contract, and their forward with the cascade's."""
import os

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import pytest
import torch
from torch.nn import functional as F

kernels = pytest.importorskip("lc.kernels")

from lc.region import Region
from lc.region_conv import RegionTensor, region_conv2d_reference, region_max_pool2d
from test_fast import model  # noqa: F401 (a fixture)

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 4e-3}


def some_mask(share: float, size=(2, 7, 9)):
    return torch.rand(size, generator=torch.Generator().manual_seed(3)) < share


def rows_of(x, region):
    """Rows of the region, in a buffer with room for every pixel; garbage behind them, as on a device."""
    rows = torch.full((region.mask.numel(), x.shape[1]), 1e4, dtype=x.dtype)
    found = Region(region.mask).gather(x)
    rows[:len(found)] = found
    return rows


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.1])
def test_compaction(share):
    """One prefix sum finds what nonzero finds; rows go back to their places, zeros elsewhere, whatever lies behind the last row."""
    mask = some_mask(share)
    region, plain = kernels.DeviceRegion.of(mask), Region(mask)
    assert int(region.count) == len(plain) and torch.equal(region.index[:len(plain)].long(), plain.index)
    assert torch.equal(region.slots.view(mask.shape)[mask], torch.arange(len(plain), dtype=torch.int32)) and (region.slots.view(mask.shape)[~mask] == -1).all()
    x = torch.randn(2, 5, 7, 9)
    assert torch.equal(region.scatter(rows_of(x, region)), x * mask[:, None])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kernel, dilation", [((1, 1), (1, 1)), ((3, 3), (2, 2)), ((1, 7), (2, 2)), ((7, 1), (1, 1))], ids=str)
@pytest.mark.parametrize("share, relu, add", [(0.5, True, True), (0.5, False, False), (0.0, True, False), (1.1, True, False)])
def test_convolution(dtype, kernel, dilation, share, relu, add):
    """Gather, multiply, bias, residual and ReLU in one; rows behind the last active pixel stay as they are."""
    x, weight, bias, residual = (torch.randn(s).to(dtype) for s in ((2, 40, 7, 9), (70, 40, *kernel), (70,), (2, 70, 7, 9)))
    weight = weight / 10
    region = kernels.DeviceRegion.of(some_mask(share))
    expected = region_conv2d_reference(x.float(), region.mask, weight.float(), bias.float(), dilation) + add * residual.float()
    out = rows_of(residual, region) if add else torch.full((126, 70), 1e4, dtype=dtype)
    kernels.convolve(rows_of(x, region), kernels.matrix(weight), bias, region, out, kernel, dilation, relu, add)
    expected = (expected.relu() if relu else expected) * region.mask[:, None]
    torch.testing.assert_close(region.scatter(out).float(), expected, atol=5 * TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert (out[int(region.count):] == out.new_tensor(1e4)).all()


def test_split_columns():
    """Outputs from the split on move right by the gap; the columns between are not touched; inputs may be a slice."""
    region = kernels.DeviceRegion.of(some_mask(0.5))
    wide, weight, bias, out = torch.randn(126, 30), torch.randn(20, 24), torch.randn(24), torch.full((126, 40), 7.0)
    kernels.convolve(wide[:, 10:], weight, bias, region, out, relu=False, split=(8, 16))
    active, expected = int(region.count), wide[:, 10:] @ weight + bias
    torch.testing.assert_close(out[:active], torch.cat([expected[:, :8], torch.full((126, 16), 7.0), expected[:, 8:]], 1)[:active], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.1])
def test_pooling_and_gathering(share):
    """Max pooling by the contract (zeros outside the region, nothing outside the image); 1x1 windows gather from maps and regions."""
    x, region = torch.randn(2, 70, 7, 9) - 1, kernels.DeviceRegion.of(some_mask(share))
    every, flat = torch.arange(126, dtype=torch.int32), x.permute(0, 2, 3, 1).reshape(126, 70)
    rows = kernels.pool(flat, every, region, torch.zeros(126, 70))
    plain = RegionTensor.select(x, Region(region.mask))
    assert torch.equal(rows[:int(region.count)], plain.rows)
    found = kernels.pool(rows, region.slots, region, torch.zeros(126, 70), (3, 3))
    assert torch.equal(region.scatter(found), region_max_pool2d(plain, 3).dense())
    narrow = kernels.DeviceRegion.of(region.mask & some_mask(0.4))
    assert torch.equal(narrow.scatter(kernels.pool(rows, region.slots, narrow, torch.zeros(126, 70))), x * narrow.mask[:, None])


@torch.no_grad()
@pytest.mark.parametrize("images, quantile", [(1, None), (2, 0.5), (1, 0.0)])
def test_forward_in_static_buffers(model, images, quantile):  # noqa: F811
    """The same probabilities and decisions as the cascade: dense, on regions, and when stage 1 decides all."""
    x = torch.randn(images, 3, 40, 48, generator=torch.Generator().manual_seed(images))
    rho = 1.0 if quantile is None else float(model(x, 1.0, depth=1).probs.amax(1).quantile(quantile)) if quantile else 0.0
    expected, (log_probs, decided) = model(x, rho), kernels.capture(kernels.DeviceCascade(model, rho), x)(x)
    torch.testing.assert_close(log_probs.exp(), expected.probs, atol=2e-5, rtol=1e-4)
    assert torch.equal(decided, expected.decided)
    if quantile:
        assert 0 < expected.shares[2] < 1

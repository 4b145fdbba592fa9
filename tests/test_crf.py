"""The fully connected CRF against brute force over all pairs of pixels."""
import numpy as np
import pytest
import torch

from lc import shapes
from lc.crf import GaussianFilter, axis_factor, colour_factor, dense_crf
from lc.errors import InputError

SIZE = (26, 34)


@pytest.fixture(scope="module")
def image():
    """A textured procedural image, small enough for all pairs."""
    full = shapes.sample("val", 3)[0]
    return torch.from_numpy(np.ascontiguousarray(full[:SIZE[0] * 2:2, :SIZE[1] * 2:2]))


def brute(size, sigma_xy, image=None, sigma_rgb=1.0):
    """The kernel matrix (N, N) in double precision."""
    rows, cols = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij")
    points = torch.stack([rows, cols], -1).reshape(-1, 2) / sigma_xy
    if image is not None:
        points = torch.cat([points, image.reshape(-1, 3).double() / sigma_rgb], 1)
    return torch.exp(-0.5 * (points[:, None] - points).square().sum(-1))


@pytest.mark.parametrize("sigma_xy, sigma_rgb", [(20.0, 13.0), (67.0, 3.0), (5.0, 30.0), (3.0, None)])
def test_filter_against_brute_force(image, sigma_xy, sigma_rgb):
    """Within 1e-3 of the exact sum, relative to it, at every pixel."""
    x = torch.rand(4, *SIZE, generator=torch.Generator().manual_seed(0))
    shown = None if sigma_rgb is None else image
    exact = (x.double().flatten(1) @ brute(SIZE, sigma_xy, shown, sigma_rgb or 1.0)).view(4, *SIZE)
    found = GaussianFilter(SIZE, sigma_xy, shown, sigma_rgb or 1.0)(x)
    assert ((found - exact) / exact).abs().max() < 1e-3


def test_factors():
    """Each part of the kernel comes back to its tolerance, with fewer columns than rows."""
    part = axis_factor(90, 12.0, 1e-6)
    at = torch.arange(90.0)
    assert part.shape[1] < 40 and (part @ part.T - torch.exp(-0.5 * ((at[:, None] - at) / 12) ** 2)).abs().max() < 1e-4
    colours = torch.randint(0, 256, (600, 3), generator=torch.Generator().manual_seed(0))
    part = colour_factor(colours, 40.0, 1e-4).double()
    exact = torch.exp(-0.5 * (torch.cdist(colours.double(), colours.double()) / 40) ** 2)
    assert part.shape[1] < 600 and (part @ part.T - exact).abs().max() < 1e-3
    with pytest.raises(InputError, match="need more than 64 terms at sigma_rgb = 1"):
        colour_factor(colours, 1.0, 1e-4, max_rank=64)


def test_mean_field_against_brute_force(image):
    """Ten iterations with exact kernels give the same beliefs."""
    probs = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(1)).softmax(0)
    beliefs = probs.double().flatten(1)
    kernels = []
    for weight, kernel in ((4.0, brute(SIZE, 20.0, image, 13.0)), (3.0, brute(SIZE, 3.0))):
        scale = kernel.sum(1).rsqrt()
        kernels.append(weight * scale[:, None] * kernel * scale)
    for _ in range(10):
        beliefs = (probs.double().flatten(1).log() + sum(beliefs @ k for k in kernels)).softmax(0)
    found = dense_crf(probs, image, sigma_xy=20.0, sigma_rgb=13.0)
    torch.testing.assert_close(found.double().flatten(1), beliefs, atol=2e-3, rtol=0)
    assert (found - probs).abs().max() > 0.1


def test_it_cleans_noise():
    """A label map with one pixel in ten flipped comes out closer to the truth, edges of the image included."""
    full, label = shapes.sample("val", 5)
    truth = torch.from_numpy(np.where(label == 255, 0, label)[:64, :64].astype(np.int64))
    noisy = torch.where(torch.rand(truth.shape, generator=torch.Generator().manual_seed(0)) < 0.1, (truth + 1) % 8, truth)
    probs = torch.nn.functional.one_hot(noisy, 8).permute(2, 0, 1).float() * 0.5 + 0.5 / 8
    found = dense_crf(probs, torch.from_numpy(np.ascontiguousarray(full[:64, :64]))).argmax(0)
    assert (found != truth).float().mean() < 0.5 * (noisy != truth).float().mean()


def test_wrong_shapes_are_named(image):
    """Sizes that differ, and images that are not bytes, say so."""
    with pytest.raises(InputError, match="of one size, got"):
        dense_crf(torch.ones(3, 8, 8) / 3, image)
    with pytest.raises(InputError, match="uint8 image"):
        dense_crf(torch.ones(3, *SIZE) / 3, image.float())

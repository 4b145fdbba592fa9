"""Fully connected CRF (Kraehenbuehl and Koltun, 2011), the post-processing of Sec. 4.4, on CPU and GPU.

Mean field needs, in every iteration, a Gaussian filter over all pairs of pixels, in position and colour. Here the filter is not
approximated on a lattice: the kernel is a product of a row, a column and a colour part, and each part is written as a product of
thin matrices to a stated tolerance (eigenvectors for the first two, random pivoted Cholesky for the third). Cost: pixels x rank.
"""
import torch
from torch import Tensor

from lc.errors import InputError

BLOCK = 256  # pivots chosen at a time
ROWS = 16    # image rows filtered at a time
AXIS = 1e-6  # tolerance of the row and column parts, which are cheap


def axis_factor(length: int, sigma: float, tolerance: float, device=None) -> Tensor:
    """(length, rank) A with A A^T = exp(-(i - j)^2 / 2 sigma^2), each entry to about `tolerance`."""
    at = torch.arange(length, dtype=torch.float64, device=device)
    values, vectors = torch.linalg.eigh(torch.exp(-0.5 * ((at[:, None] - at) / sigma) ** 2))
    keep = values > tolerance * values[-1]
    return (vectors[:, keep] * values[keep].sqrt()).float()


def colour_factor(colours: Tensor, sigma: float, tolerance: float, max_rank: int = 8192, seed: int = 0) -> Tensor:
    """(M, rank) F with F F^T = exp(-|a - b|^2 / 2 sigma^2) for colours (M, 3): pivots are drawn by how much is still missing,
    until no colour misses more than `tolerance`. Double precision inside. InputError if max_rank does not suffice."""
    colours = colours.double()
    generator = torch.Generator(device=colours.device).manual_seed(seed)
    factor, left = colours.new_zeros(len(colours), 0), colours.new_ones(len(colours))
    while left.max() > tolerance:
        if factor.shape[1] >= max_rank:
            raise InputError(f"the colours of this image need more than {max_rank} terms at sigma_rgb = {sigma:g}; raise sigma_rgb or the tolerance")
        pivots = torch.multinomial(left, min(BLOCK, int((left > tolerance / 10).sum())), generator=generator)
        block = torch.exp(-0.5 * (torch.cdist(colours, colours[pivots]) / sigma) ** 2) - factor @ factor[pivots].T
        values, vectors = torch.linalg.eigh(block[pivots])
        keep = values > tolerance * 1e-3
        factor = torch.cat([factor, block @ vectors[:, keep] / values[keep].sqrt()], dim=1)
        left = (1 - factor.square().sum(1)).clamp(min=0)
    return factor.float()


class GaussianFilter:
    """y(p) = sum over all q of exp(-|p - q|^2 / 2 sigma_xy^2 - |I(p) - I(q)|^2 / 2 sigma_rgb^2) x(q).

    size: (H, W); image: (H, W, 3) uint8, or None for a filter in position only. tolerance: of the entries of the colour part; sums over an
    image come out far closer (results/NOTES.md).
    """

    def __init__(self, size: tuple[int, int], sigma_xy: float, image: Tensor | None = None, sigma_rgb: float = 1.0, tolerance: float = 1e-2,
                 device=None):
        device = device if image is None else image.device
        self.rows, self.cols = (axis_factor(n, sigma_xy, AXIS, device) for n in size)
        if image is None:
            self.colours, self.which = torch.ones(1, 1, device=device), torch.zeros(size, dtype=torch.long, device=device)
        else:
            unique, which = torch.unique(image.reshape(-1, 3), dim=0, return_inverse=True)
            self.colours, self.which = colour_factor(unique, sigma_rgb, tolerance), which.view(size)

    def __call__(self, x: Tensor) -> Tensor:
        """x: (K, H, W) float. Returns (K, H, W)."""
        k, h, w = x.shape
        spread = x.new_zeros(self.rows.shape[1], self.colours.shape[1] * k * self.cols.shape[1])  # (I, R K J)
        for rows in torch.arange(h, device=x.device).split(ROWS):
            waves = (x[:, rows].permute(1, 2, 0)[..., None] * self.cols[:, None]).flatten(2)  # (rows, W, K J)
            spread += self.rows[rows].T @ (self.colours[self.which[rows]].mT @ waves).flatten(1)
        out = torch.empty_like(x)
        for rows in torch.arange(h, device=x.device).split(ROWS):
            here = (self.rows[rows] @ spread).view(len(rows), self.colours.shape[1], -1)  # (rows, R, K J)
            waves = (self.colours[self.which[rows]] @ here).view(len(rows), w, k, -1)
            out[:, rows] = (waves * self.cols[:, None]).sum(-1).permute(2, 0, 1)
        return out


def dense_crf(probs: Tensor, image: Tensor, iterations: int = 10, bilateral: float = 4.0, sigma_xy: float = 67.0, sigma_rgb: float = 13.0,
              smooth: float = 3.0, sigma_smooth: float = 3.0, tolerance: float = 1e-2) -> Tensor:
    """Mean field with Potts compatibility; weights and widths default to those of DeepLab-v2's published protocol, but for
    sigma_rgb, which is the CRF authors' own: DeepLab-v2's 3 keeps nearly every colour apart, and needs a GPU to be quick.

    probs: (K, H, W), summing to 1; image: (H, W, 3) uint8. Returns refined probabilities (K, H, W). Filters are normalised symmetrically
    (D^-1/2 K D^-1/2); a pixel's message to itself is included, as in the authors' code.
    """
    if probs.shape[1:] != image.shape[:2] or image.dtype != torch.uint8:
        raise InputError(f"the CRF needs probabilities (K, H, W) and a uint8 image (H, W, 3) of one size, got {tuple(probs.shape)} and {image.dtype} "
                         f"{tuple(image.shape)}")
    filters = [(bilateral, GaussianFilter(image.shape[:2], sigma_xy, image, sigma_rgb, tolerance)),
               (smooth, GaussianFilter(image.shape[:2], sigma_smooth, device=image.device))]
    weighted = [(weight, filter_, filter_(torch.ones_like(probs[:1])).clamp(min=1e-6).rsqrt()) for weight, filter_ in filters]
    unary = probs.clamp(min=1e-8).log()
    beliefs = probs
    for _ in range(iterations):
        message = sum(weight * scale * filter_(beliefs * scale) for weight, filter_, scale in weighted)
        beliefs = (unary + message).softmax(0)
    return beliefs

"""Convolutions of a region by Winograd's minimal filtering (Lavin and Gray, CVPR 2016): F(4, r) along each axis on which the kernel has r taps
(Toom and Cook's construction). A tile of 4 outputs takes 10 products of each input with each output channel where r is 7, not 28; 6, not 12,
where r is 3; a tile of 4x4 outputs of a 3x3 kernel 36, not 144.

Tiles lie along lines of pixels, as far apart as the dilation says. One begins where a run of active pixels begins, and at every fourth pixel of the
run; where one or two are left of it, a short one of 2 outputs: F(2, r). It reads zeros outside the region, or a Ring. Both gradients are filtered as
well (`Filtered`).
"""
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.polynomial.polynomial import polyfromroots
from torch import Tensor

from lc.region import Region

SIZES = (4, 2)  # outputs of a tile along its line; across it 4, where the kernel has taps there
WIDE = {(3, 3): 192, **dict.fromkeys(((1, 3), (3, 1), (1, 7), (7, 1)), 32)}  # channels from which it is worth its tables (results/NOTES.md)
PAYS = 0.75  # products left, of those without filtering, up to which it saves time (results/NOTES.md)
POINTS = {1: (), 4: (0, 1, -1), 6: (0, 1, -1, 2, -2), 8: (0, 1, -1, 2, -2, 1 / 2, -1 / 2),  # by the number of inputs; and infinity
          10: (0, 1, -1, 3 / 2, -3 / 2, 2 / 3, -2 / 3, 5 / 2, -2 / 5)}  # these lose least to rounding of those tried


def transforms(taps: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """For m outputs and n = m + taps - 1 inputs, those of inputs (n, n), kernel (n, taps) and outputs (m, n), in float64: output @ ((kernel @ k) *
    (input @ x)) is k filtering x."""
    n = outputs + taps - 1
    points = np.array(POINTS[n], dtype=float)
    others = [np.delete(points, i) for i in range(n - 1)]
    powers = lambda k: np.vstack([np.vander(points, k, increasing=True), np.eye(k)[-1:]])  # (n, k): of each point, and of infinity
    inputs = np.vstack([*(np.append(polyfromroots(roots), 0) for roots in others), polyfromroots(points)])  # monic: zero at all points but one
    scale = np.array([*(1 / np.prod(point - roots) for point, roots in zip(points, others)), 1])[:, None]
    return tuple(torch.from_numpy(np.ascontiguousarray(matrix)) for matrix in (inputs, powers(taps) * scale, powers(outputs).T))


@lru_cache
def filters(kernel: tuple[int, int], dtype: torch.dtype) -> list[tuple[Tensor, Tensor, Tensor]]:
    """`transforms` of both axes of a kernel in one, for tiles of each of SIZES."""
    across, along = _axes(kernel)
    pairs = [(transforms(across, SIZES[0] if across > 1 else 1), transforms(along, size)) for size in SIZES]
    return [tuple(torch.kron(*matrices).to(dtype) for matrices in zip(*pair)) for pair in pairs]


def _axes(kernel: tuple[int, int]) -> tuple[int, int]:
    """Taps across a line and along it."""
    return sorted(kernel) if 1 in kernel else kernel


class Sums:
    """Sums of rows with factors: gathers and transforms in one pass that stores nothing between. parts: for k sums of each of B sets of n rows, rows
    (B, n) long, `missing` and above where there is nothing to take (0 times row 0: values are finite), and factors (k, B, n), or what is broadcast
    to it."""

    def __init__(self, parts: list[tuple[Tensor, Tensor]], missing: int):
        kept = [(torch.where(rows < missing, rows, 0), factors * (rows < missing)) for rows, factors in parts]
        self.rows = torch.cat([rows.int().expand(factors.shape).flatten() for rows, factors in kept])
        self.factors = torch.cat([factors.flatten() for _, factors in kept])
        lengths = torch.cat([rows.new_full((factors.shape[:-1].numel(),), factors.shape[-1], dtype=torch.int32) for rows, factors in kept])
        self.first = lengths.cumsum(0, dtype=torch.int32) - lengths

    def __call__(self, values: Tensor) -> Tensor:
        """(R, C) to (k B of the first part, then those of the others, C)."""
        return torch.embedding_bag(values, self.rows, self.first, per_sample_weights=self.factors)[0]


def suits(weight: Tensor) -> bool:
    """Whether a kernel (O, C, kh, kw) is wide enough, single or double, and on a CPU."""
    known = weight.is_cpu and weight.dtype in (torch.float32, torch.float64)
    return known and min(weight.shape[:2]) >= WIDE.get(tuple(weight.shape[2:]), math.inf)


def kernel_transform(weight: Tensor) -> Tensor:
    """(n, kh kw), for tiles of each of SIZES one behind the other."""
    return torch.cat([taps for _, taps, _ in filters(tuple(weight.shape[2:]), weight.dtype)])


def transformed(weight: Tensor) -> Tensor:
    """(O, C, kh, kw) to (n, O, C)."""
    return (kernel_transform(weight) @ weight.permute(2, 3, 0, 1).flatten(0, 1).flatten(1)).view(-1, *weight.shape[:2])


def cells_around(mask: Tensor, kernel: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """(N, H, W) bool: cells outside the mask that windows inside it read."""
    below, beside = (d * (k // 2) for k, d in zip(kernel, dilation))
    return (F.max_pool2d(F.pad(mask[:, None].float(), (beside, beside, below, below)), kernel, 1, 0, dilation)[:, 0] > 0) & ~mask


class Ring(Region):
    """A region, and behind its rows those of the Q cells outside that windows of one kernel read. features: (Q, C), what the map `outside`
    (N, C, H, W) has there. Rows are read by this numbering, and computed for the region alone."""

    def __init__(self, region: Region, outside: Tensor, kernel: tuple[int, int], dilation: tuple[int, int]):
        super().__init__(region.mask)
        self.around = cells_around(region.mask, kernel, dilation).flatten().nonzero().squeeze(1)
        self.first, self.rows = region.rows, region.rows + len(self.around)
        self.features = outside.permute(0, 2, 3, 1).flatten(0, 2).index_select(0, self.around)

    def _number(self) -> Tensor:
        """The slots of a Region, with the cells around."""
        slots = super()._number()
        slots.view(-1)[self.around] = torch.arange(self.first, self.rows, device=self.device)
        return slots


@lru_cache(maxsize=32)
def _lines(shape: tuple[int, int, int], kernel: tuple[int, int], dilation: tuple[int, int]) -> np.ndarray:
    """(n, L, X): pixels of a flattened map (N, H, W), N H W where none, that tiles on each of L lines read, n of them across a line. Pixels of a
    line are as far apart as the dilation says; half a kernel lies before the first, half a kernel and a tile behind the last. Lines lie along an
    axis with taps."""
    pixels = np.arange(math.prod(shape)).reshape(shape)
    if kernel[1] == 1:
        pixels, kernel, dilation = pixels.transpose(0, 2, 1), kernel[::-1], dilation[::-1]
    (ky, kx), (dy, dx), (_, h, w) = kernel, dilation, pixels.shape
    n = SIZES[0] + ky - 1 if ky > 1 else 1
    each, length = (n - ky + 1) * dy, -(-w // dx)
    bands = -(-h // each)
    margins = (0, 0), (ky // 2 * dy, bands * each + ky // 2 * dy - h), (kx // 2 * dx, (length + kx // 2 + SIZES[0]) * dx - w)
    y = np.arange(n)[:, None] * dy + (np.arange(bands)[:, None] * each + np.arange(dy)).ravel()
    x = np.arange(dx)[:, None] + np.arange(length + kx - 1 + SIZES[0]) * dx
    found = np.pad(pixels, margins, constant_values=pixels.size)[:, y[:, :, None, None], x].swapaxes(0, 1)
    return found.reshape(n, -1, x.shape[1])


@dataclass
class _Tiles:
    """T tiles of one size. reads: (n, T) rows of their inputs; computes: (m, T) rows of their outputs, or missing; the transforms of both."""
    reads: np.ndarray
    computes: np.ndarray
    inputs: Tensor
    outputs: Tensor


class Tiles:
    """The tiles of a region, which read `reads` (itself, or its Ring); n is the sum over both sizes of what is below, N of n T."""

    def __init__(self, region: Region, reads: Region, kernel: tuple[int, int], dilation: tuple[int, int], dtype: torch.dtype):
        self.missing, self.rows, (across, along) = reads.rows, region.rows, _axes(kernel)
        lines = np.append(reads.slots().numpy(), reads.rows)[_lines(tuple(region.mask.shape), kernel, dilation)]
        inside = lines[across // 2:len(lines) - across // 2, :, along // 2:-(along // 2)]
        active, x = (inside < len(region)).any(0), np.arange(inside.shape[2])
        first, follow = active.copy(), np.zeros_like(active)
        first[:, 1:] &= ~active[:, :-1]
        follow[:, :-2] = active[:, 1:-1] & active[:, 2:]
        step = (x - np.maximum.accumulate(np.where(first, x, 0), axis=1)) % SIZES[0]
        begins = active & (step == 0)
        self.sized = []
        for size, begin, (inputs, _, outputs) in zip(SIZES, (begins & follow, begins & ~follow), filters(kernel, dtype)):
            line, start = begin.nonzero()
            at = start + np.arange(size)[:, None]
            computes = np.where((step[line, at] == at - start) & (inside[:, line, at] < len(region)), inside[:, line, at], region.rows)
            taken = lines[:, line, start + np.arange(size + along - 1)[:, None]]
            self.sized.append(_Tiles(taken.reshape(len(inputs), len(line)), computes.reshape(len(outputs), len(line)), inputs, outputs))
        self.products = sum(tiles.reads.size for tiles in self.sized)

    @classmethod
    def of(cls, region: Region, kernel: tuple[int, int], dilation: tuple[int, int], dtype: torch.dtype, ring: Ring | None = None) -> "Tiles | None":
        """Made once for a region, or the ring that it reads; None where they save too few products: where active pixels lie apart, it may even
        need more."""
        reads = region if ring is None else ring
        tiles = reads.once(("tiles", kernel, dilation, dtype), lambda: cls(region, reads, kernel, dilation, dtype))
        return tiles if tiles.products <= PAYS * math.prod(kernel) * region.rows else None

    @cached_property
    def gather(self) -> Sums:
        """From rows (R, C) to the transformed inputs (N, C)."""
        return Sums([(torch.from_numpy(tiles.reads).t(), tiles.inputs[:, None]) for tiles in self.sized], self.missing)

    @cached_property
    def scatter(self) -> Sums:
        """From products (N, O) to the outputs (R, O), zeros behind P."""
        n, begin = len(self.sized[0].inputs), 0
        (first, apart, output), outputs = np.zeros((3, self.rows + 1), dtype=np.int32), [torch.zeros(1, n, dtype=self.sized[0].outputs.dtype)]
        for tiles in self.sized:  # of each row its first product, how far the others are apart, and its row of outputs
            first[tiles.computes], apart[tiles.computes] = begin + np.arange(tiles.reads.shape[1]), tiles.reads.shape[1]
            output[tiles.computes] = sum(map(len, outputs)) + np.arange(len(tiles.outputs))[:, None]
            outputs.append(F.pad(tiles.outputs, (0, n - len(tiles.inputs))))
            begin += tiles.reads.size
        first, apart, output = (torch.from_numpy(values[:-1]) for values in (first, apart, output))
        rows = first[:, None] + apart[:, None] * torch.arange(n, dtype=torch.int32)
        return Sums([(rows, torch.cat(outputs).index_select(0, output))], self.products)

    @cached_property
    def spread(self) -> Sums:
        """Of `scatter` the transpose: from gradients of outputs (R, O) to those of products (N, O)."""
        return Sums([(torch.from_numpy(tiles.computes).t(), tiles.outputs.t()[:, None]) for tiles in self.sized], self.rows)

    def parts(self, *values: Tensor):
        """Of each size its part (n, T, C) of values (N, C)."""
        split = [value.split([tiles.reads.size for tiles in self.sized]) for value in values]
        return [[part.view(*tiles.reads.shape, part.shape[1]) for part in parts] for tiles, *parts in zip(self.sized, *split)]

    def filter(self, rows: Tensor, weight: Tensor) -> Tensor:
        """(R, C) and (n, C, O) to (R, O), zeros behind P."""
        inputs = self.gather(rows)
        products = inputs.new_empty(self.products, weight.shape[2])
        for (x, out), part in zip(self.parts(inputs, products), weight.split([len(tiles.inputs) for tiles in self.sized])):
            torch.bmm(x, part, out=out)
        return self.scatter(products)


class Filtered(torch.autograd.Function):
    """Tiles of a region, and a kernel (O, C, kh, kw), on its rows (R, C): (R, O)."""

    @staticmethod
    def forward(ctx, rows: Tensor, weight: Tensor, tiles: Tiles) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.tiles = tiles
        return tiles.filter(rows, transformed(weight).mT)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (rows, weight), tiles, grad_rows, grad_weight = ctx.saved_tensors, ctx.tiles, None, None
        if ctx.needs_input_grad[0]:  # neighbours are so mutually
            grad_rows = tiles.filter(grad, transformed(weight.flip(2, 3)))
        if ctx.needs_input_grad[1]:
            products = torch.cat([torch.bmm(g.mT, x) for g, x in tiles.parts(tiles.spread(grad), tiles.gather(rows))])  # (n, O, C)
            grad_weight = (kernel_transform(weight).t() @ products.flatten(1)).view(*weight.shape[2:], *weight.shape[:2]).permute(2, 3, 0, 1)
        return grad_rows, grad_weight, None

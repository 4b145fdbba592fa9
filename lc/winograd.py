"""Convolutions of a region by Winograd's minimal filtering (Lavin and Gray, CVPR 2016): F(4, r) along each axis on which the kernel has r taps
(Toom and Cook's construction). A tile of 4 outputs takes 10 products of each input with each output channel where r is 7, not 28; 6, not 12,
where r is 3; a tile of 4x4 outputs of a 3x3 kernel 36, not 144.

A tile is computed if one of its pixels is active, and reads zeros outside the region, or a Ring. With a dilation of d a tile lies on every d-th
pixel. Both gradients are filtered as well (`Filtered`).
"""
import math
from functools import cached_property, lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lc.region import Region

TILE = 4  # outputs of a tile, along an axis with taps
WIDE = {(3, 3): 192, **dict.fromkeys(((1, 3), (3, 1), (1, 7), (7, 1)), 32)}  # channels from which it is worth its tables (results/NOTES.md)
PAYS = 0.75  # products left, of those without filtering, up to which it saves time (results/NOTES.md)
# and infinity; these lose least to rounding of those tried
POINTS = {1: (), 3: (0, 1, -1, 2, -2), 7: (0, 1, -1, 3 / 2, -3 / 2, 2 / 3, -2 / 3, 5 / 2, -2 / 5)}


def transforms(taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of inputs (n, n), kernel (n, taps) and outputs (m, n), in float64: output @ ((kernel @ k) * (input @ x)) is k filtering x, for n = m + taps - 1
    inputs and m = 4 outputs. One tap: nothing to transform, n = m = 1."""
    n = len(POINTS[taps]) + 1
    powers = lambda k: np.vstack([np.vander(POINTS[taps], k, increasing=True), np.eye(k)[-1:]])  # (n, k): of each point, and of infinity
    inputs = np.linalg.inv(powers(n)).T
    scale = np.append(inputs[:-1, n - 2], 1)[:, None]  # makes its polynomials monic
    return tuple(torch.from_numpy(np.ascontiguousarray(matrix)) for matrix in (inputs / scale, powers(taps) * scale, powers(n + 1 - taps).T))


class Sums:
    """k sums of each of B sets of n rows: gathers and transforms in one pass that stores nothing between. rows: (B, n) long, `missing` and above
    where there is nothing to take (0 times row 0: values are finite); factors of the rows: (k, B, n), or what is broadcast to it."""

    def __init__(self, rows: Tensor, factors: Tensor, missing: int):
        there = rows < missing
        factors = factors * there
        self.rows, self.factors = torch.where(there, rows, 0).int().expand(factors.shape).flatten(), factors.flatten()
        self.first = torch.arange(0, factors.numel(), rows.shape[1], dtype=torch.int32, device=rows.device)

    def __call__(self, values: Tensor) -> Tensor:
        """(R, C) to (k B, C)."""
        return torch.embedding_bag(values, self.rows, self.first, per_sample_weights=self.factors)[0]


@lru_cache
def filters(kernel: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """`transforms` of both axes of a kernel in one."""
    return tuple(torch.kron(*pair).to(dtype) for pair in zip(*map(transforms, kernel)))


def suits(weight: Tensor) -> bool:
    """Whether a kernel (O, C, kh, kw) is wide enough, single or double, and on a CPU."""
    known = weight.is_cpu and weight.dtype in (torch.float32, torch.float64)
    return known and min(weight.shape[:2]) >= WIDE.get(tuple(weight.shape[2:]), math.inf)


def transformed(weight: Tensor) -> Tensor:
    """(O, C, kh, kw) to (n, O, C)."""
    _, taps, _ = filters(tuple(weight.shape[2:]), weight.dtype)
    return (taps @ weight.permute(2, 3, 0, 1).flatten(0, 1).flatten(1)).view(-1, *weight.shape[:2])


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
    n = TILE + ky - 1 if ky > 1 else 1
    each, length = (n - ky + 1) * dy, -(-w // dx)
    bands = -(-h // each)
    margins = (0, 0), (ky // 2 * dy, bands * each + ky // 2 * dy - h), (kx // 2 * dx, (length + kx // 2 + TILE) * dx - w)
    y = np.arange(n)[:, None] * dy + (np.arange(bands)[:, None] * each + np.arange(dy)).ravel()
    x = np.arange(dx)[:, None] + np.arange(length + kx - 1 + TILE) * dx
    found = np.pad(pixels, margins, constant_values=pixels.size)[:, y[:, :, None, None], x].swapaxes(0, 1)
    return found.reshape(n, -1, x.shape[1])


class Tiles:
    """The T tiles of a region, which read `reads` (itself, or its Ring), of m outputs and n inputs each. Along a line a tile begins where a run of
    active pixels begins, and at every fourth pixel of the run."""

    def __init__(self, region: Region, reads: Region, kernel: tuple[int, int], dilation: tuple[int, int], dtype: torch.dtype):
        self.missing, self.pixels, self.rows, (self.inputs, self.taps, self.outputs) = reads.rows, len(region), region.rows, filters(kernel, dtype)
        across, along = sorted(kernel) if 1 in kernel else kernel  # taps
        self.lines, self.along = np.append(reads.slots().numpy(), reads.rows)[_lines(tuple(region.mask.shape), kernel, dilation)], along
        self.inside = self.lines[across // 2:len(self.lines) - across // 2, :, along // 2:-(along // 2 + TILE)]
        active = (self.inside < self.pixels).any(0)
        first, x = active.copy(), np.arange(active.shape[1])
        first[:, 1:] &= ~active[:, :-1]
        self.step = (x - np.maximum.accumulate(np.where(first, x, 0), axis=1)) % TILE
        self.begins = active & (self.step == 0)
        self.count = int(self.begins.sum())

    @classmethod
    def of(cls, region: Region, kernel: tuple[int, int], dilation: tuple[int, int], dtype: torch.dtype, ring: Ring | None = None) -> "Tiles | None":
        """Made once for a region, or the ring that it reads; None where they save too few products: where active pixels lie apart, it may even
        need more."""
        reads = region if ring is None else ring
        tiles = reads.once(("tiles", kernel, dilation, dtype), lambda: cls(region, reads, kernel, dilation, dtype))
        return tiles if tiles.count * len(tiles.inputs) <= PAYS * math.prod(kernel) * region.rows else None

    def filter(self, rows: Tensor, weight: Tensor) -> Tensor:
        """(R, C) and (n, C, O) to (R, O), zeros behind P."""
        return self.scatter(torch.bmm(self.read(rows), weight).flatten(0, 1))

    def read(self, rows: Tensor) -> Tensor:
        """(R, C) to the transformed inputs (n, T, C)."""
        return self.gather(rows).view(len(self.inputs), self.count, rows.shape[1])

    @cached_property
    def gather(self) -> Sums:
        """From rows (R, C) to the transformed inputs (n T, C)."""
        line, start = self.begins.nonzero()
        taken = self.lines[:, line, start + np.arange(TILE + self.along - 1)[:, None]].reshape(len(self.inputs), self.count)
        return Sums(torch.from_numpy(taken).t(), self.inputs[:, None], self.missing)

    @cached_property
    def place(self) -> np.ndarray:
        """(P,): the output of each pixel, as m numbers a tile."""
        place = np.zeros(self.rows + 1, dtype=np.int64)
        tile = self.begins.cumsum().reshape(self.step.shape) - 1
        place[np.minimum(self.inside, self.rows)] = tile * len(self.outputs) + np.arange(len(self.inside))[:, None, None] * TILE + self.step
        return place[:self.pixels]

    @cached_property
    def scatter(self) -> Sums:
        """From products (n T, O) to the outputs (R, O)."""
        m, n = self.outputs.shape
        place = torch.from_numpy(np.pad(self.place, (0, self.rows - self.pixels), constant_values=m * n * self.count))
        return Sums(place[:, None] // m + torch.arange(n) * self.count, self.outputs[place % m], n * self.count)

    @cached_property
    def spread(self) -> Sums:
        """Of `scatter` the transpose: from gradients of outputs (R, O) to those of products (n T, O)."""
        taken = np.full(self.count * len(self.outputs), self.rows)
        taken[self.place] = np.arange(self.pixels)
        return Sums(torch.from_numpy(taken).view(self.count, len(self.outputs)), self.outputs.t()[:, None], self.rows)


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
            inputs = tiles.read(rows)
            products = torch.bmm(tiles.spread(grad).view(*inputs.shape[:2], grad.shape[1]).mT, inputs)  # (n, O, C)
            grad_weight = (tiles.taps.t() @ products.flatten(1)).view(*weight.shape[2:], *weight.shape[:2]).permute(2, 3, 0, 1)
        return grad_rows, grad_weight, None

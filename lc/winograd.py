"""Convolutions of a region by Winograd's minimal filtering (Lavin and Gray, CVPR 2016): F(4, r) along each axis on which the kernel has r taps
(Toom and Cook's construction). A tile of 4 outputs takes 10 products of each input with each output channel where r is 7, not 28; 6, not 12,
where r is 3; a tile of 4x4 outputs of a 3x3 kernel 36, not 144.

Tiles lie along lines of pixels, as far apart as the dilation says. One begins where a run of active pixels begins, and at every fourth pixel of the
run. It reads zeros outside the region, or a Ring. Both gradients are filtered as well (`Filtered`). Products of rows are one grouped 1x1 convolution,
a group for each of the n inputs of a tile: oneDNN uses what the CPU has, MKL's batched products half of it on some (results/NOTES.md).
"""
import math
from functools import cached_property, lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.polynomial.polynomial import polyfromroots
from torch import Tensor

from lc.region import Region

SIZE = 4    # outputs of a tile along its line, and across it where the kernel has taps there
IMAGE = 32  # tiles of one image of the grouped convolution: oneDNN packs weights for a size of image, and any number of them
PLAIN = [0, 0], [1, 1], [1, 1]  # its padding, stride and dilation
ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available()
WIDE = {(3, 3): 192, **dict.fromkeys(((1, 3), (3, 1), (1, 7), (7, 1)), 32)}  # channels from which it is worth its tables (results/NOTES.md)
PAYS = 0.75  # products left, of those without filtering, up to which it saves time (results/NOTES.md)
POINTS = {1: (), 6: (0, 1, -1, 2, -2),  # by the number of inputs; and infinity
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
def filters(kernel: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """`transforms` of both axes of a kernel in one."""
    return tuple(torch.kron(*both).to(dtype) for both in zip(*(transforms(taps, SIZE if taps > 1 else 1) for taps in _axes(kernel))))


def _axes(kernel: tuple[int, int]) -> tuple[int, int]:
    """Taps across a line and along it."""
    return sorted(kernel) if 1 in kernel else kernel


class Sums:
    """Weighted sums of rows: gathers and transforms in one pass that stores nothing between. Each of B sets takes n rows (B, n) and gives k sums
    with factors (k, n), or (B, k, n). A row number of `missing` or above counts as zeros (row 0 with a factor of 0: values must be finite)."""

    def __init__(self, rows: Tensor, factors: Tensor, missing: int | None = None):
        if missing is not None:
            rows, factors = torch.where(there := rows < missing, rows, 0), factors * there[:, None]
        shape = len(rows), *factors.shape[-2:]
        self.rows, self.factors = rows.int()[:, None].expand(shape).flatten(), factors.expand(shape).flatten()
        self.first = torch.arange(0, len(self.rows), factors.shape[-1], dtype=torch.int32, device=rows.device)

    def __call__(self, values: Tensor) -> Tensor:
        """(R, C) to (B k, C), the k of a set one behind the other."""
        return torch.embedding_bag(values, self.rows, self.first, per_sample_weights=self.factors)[0]


def suits(weight: Tensor) -> bool:
    """Whether a kernel (O, C, kh, kw) is wide enough, single or double, and on a CPU."""
    known = weight.is_cpu and weight.dtype in (torch.float32, torch.float64)
    return known and min(weight.shape[:2]) >= WIDE.get(tuple(weight.shape[2:]), math.inf)


def transformed(weight: Tensor) -> Tensor:
    """(O, C, kh, kw) to (n O, C, 1, 1)."""
    _, taps, _ = filters(tuple(weight.shape[2:]), weight.dtype)
    return (taps @ weight.permute(2, 3, 0, 1).flatten(0, 1).flatten(1)).view(-1, weight.shape[1], 1, 1)


def in_onednn(x: Tensor) -> bool:
    """Whether oneDNN's own operators, and weights packed for them, can be had for this input."""
    return ONEDNN and not torch.jit.is_tracing() and x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0


def packed(weight: Tensor, n: int) -> Tensor:
    """A transformed kernel (n O, C, 1, 1) for `multiplied`: packed, where that can be had."""
    return torch.ops.mkldnn._reorder_convolution_weight(weight, *PLAIN, n, [1, n * weight.shape[1], IMAGE, 1]) if in_onednn(weight) else weight


def multiplied(inputs: Tensor, weight: Tensor, n: int) -> Tensor:
    """(T n, C) and (n O, C, 1, 1), which may be packed, to (T n, O): the i-th row of each tile times the i-th matrix."""
    tiles = inputs.unflatten(0, (-1, n))
    if not in_onednn(inputs):
        return torch.bmm(tiles.transpose(0, 1), weight.view(n, -1, weight.shape[1]).mT).transpose(0, 1).flatten(0, 1)
    images = tiles.flatten(1).view(-1, IMAGE, 1, n * inputs.shape[1]).permute(0, 3, 1, 2)  # channels last
    made = torch.ops.mkldnn._convolution_pointwise(images, weight, None, *PLAIN, n, "none", [], "")
    return made.permute(0, 2, 3, 1).reshape(len(inputs), -1)


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
    n = SIZE + ky - 1 if ky > 1 else 1
    each, length = (n - ky + 1) * dy, -(-w // dx)
    bands = -(-h // each)
    margins = (0, 0), (ky // 2 * dy, bands * each + ky // 2 * dy - h), (kx // 2 * dx, (length + kx // 2 + SIZE) * dx - w)
    y = np.arange(n)[:, None] * dy + (np.arange(bands)[:, None] * each + np.arange(dy)).ravel()
    x = np.arange(dx)[:, None] + np.arange(length + kx - 1 + SIZE) * dx
    found = np.pad(pixels, margins, constant_values=pixels.size)[:, y[:, :, None, None], x].swapaxes(0, 1)
    return found.reshape(n, -1, x.shape[1])


class Tiles:
    """The T tiles of a region, which read `reads` (itself, or its Ring). reads: (T, n) rows of their inputs; computes: (T, m) rows of their
    outputs; missing and rows where there are none. The last tiles may be empty, so that T is a multiple of IMAGE."""

    def __init__(self, region: Region, reads: Region, kernel: tuple[int, int], dilation: tuple[int, int], dtype: torch.dtype):
        self.missing, self.rows, (across, along) = reads.rows, region.rows, _axes(kernel)
        self.inputs, self.taps, self.outputs = filters(kernel, dtype)
        lines = np.append(reads.slots().numpy().astype(np.int32), np.int32(reads.rows))[_lines(tuple(region.mask.shape), kernel, dilation)]
        middle, outputs = slice(across // 2, len(lines) - across // 2), slice(along // 2, along // 2 + SIZE)
        active = (lines[middle, :, along // 2:-(along // 2)] < len(region)).any(0)
        x = np.arange(active.shape[1])
        line, start = (active & ((x - np.maximum.accumulate(np.where(active, -1, x), axis=1)) % SIZE == 1)).nonzero()
        taken = lines[:, line, start + np.arange(SIZE + along - 1)[:, None]]
        inside = taken[middle, outputs] < len(region)
        computes = np.where(inside & np.logical_and.accumulate(inside.any(0)), taken[middle, outputs], region.rows)  # up to the end of the run
        whole = lambda rows, none: F.pad(torch.from_numpy(rows).flatten(0, 1).t(), (0, 0, 0, -len(line) % IMAGE), value=none)
        self.reads, self.computes = whole(taken, self.missing), whole(computes, self.rows)

    @classmethod
    def of(cls, region: Region, kernel: tuple[int, int], dilation: tuple[int, int], dtype: torch.dtype, ring: Ring | None = None) -> "Tiles | None":
        """Made once for a region, or the ring that it reads; None where they save too few products: where active pixels lie apart, it may even
        need more."""
        reads = region if ring is None else ring
        tiles = reads.once(("tiles", kernel, dilation, dtype), lambda: cls(region, reads, kernel, dilation, dtype))
        return tiles if tiles.reads.numel() <= PAYS * math.prod(kernel) * region.rows else None

    @cached_property
    def gather(self) -> Sums:
        """From rows (R, C) to the transformed inputs (T n, C)."""
        return Sums(self.reads, self.inputs, self.missing)

    @cached_property
    def scatter(self) -> Sums:
        """From products (T n, O) to the outputs (R, O), zeros behind P."""
        (t, m), n, at = self.computes.shape, self.reads.shape[1], self.computes.long()
        tile, output = torch.zeros(self.rows + 1, 1, dtype=torch.int32), torch.full((self.rows + 1,), m)  # of each row; behind P 0 times the first's
        tile[at], output[at] = torch.arange(t, dtype=torch.int32)[:, None, None], torch.arange(m)
        return Sums(n * tile[:-1] + torch.arange(n, dtype=torch.int32), F.pad(self.outputs, (0, 0, 0, 1))[output[:-1], None])

    @cached_property
    def spread(self) -> Sums:
        """Of `scatter` the transpose: from gradients of outputs (R, O) to those of products (T n, O)."""
        return Sums(self.computes, self.outputs.t(), self.rows)

    def filter(self, rows: Tensor, weight: Tensor) -> Tensor:
        """(R, C) and a transformed kernel (n O, C, 1, 1), which may be packed, to (R, O), zeros behind P."""
        return self.scatter(multiplied(self.gather(rows), weight, self.reads.shape[1]))


class Filtered(torch.autograd.Function):
    """Tiles of a region, and a kernel (O, C, kh, kw), on its rows (R, C): (R, O)."""

    @staticmethod
    def forward(ctx, rows: Tensor, weight: Tensor, tiles: Tiles) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.tiles = tiles
        return tiles.filter(rows, transformed(weight))

    @staticmethod
    def backward(ctx, grad: Tensor):
        (rows, weight), tiles, grad_rows, grad_weight = ctx.saved_tensors, ctx.tiles, None, None
        if ctx.needs_input_grad[0]:  # neighbours are so mutually
            grad_rows = tiles.filter(grad, transformed(weight.flip(2, 3).transpose(0, 1)))
        if ctx.needs_input_grad[1]:
            x, g = (made.unflatten(0, tiles.reads.shape) for made in (tiles.gather(rows), tiles.spread(grad)))  # (T, n, C), (T, n, O)
            products = torch.bmm(g.permute(1, 2, 0), x.transpose(0, 1))  # (n, O, C)
            grad_weight = (tiles.taps.t() @ products.flatten(1)).view(*weight.shape[2:], *weight.shape[:2]).permute(2, 3, 0, 1)
        return grad_rows, grad_weight, None

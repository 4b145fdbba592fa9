"""The prepared cascade as one ONNX Runtime graph: all stages, and the choice of pixels between them, as products and gathers for any number of
pixels. Same weights, same labels as lc.speed.fast, whose parts it spells out; it spares the calls and tables on which a small network spends its
time in PyTorch (results/NOTES.md).

Cells: the K = N h w places of the stride-8 grid, as rows. A map of the active ones has a row of zeros in front, so that 0 says "not there".
"""
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lc.region import Region, _pair
from lc.region_conv import _as_rows
from lc.speed.fast import FastConv, FastMixed, FastPool, FastResidual, GraphCascade, Product
from lc.speed.opponents import session
from lc.winograd import cells_around


class Exported(GraphCascade):
    """A trained cascade for inference on a CPU, in ONNX Runtime: sizes that a graph leaves open cost half of stage 1's speed."""

    def graph(self, later: list, *values: Tensor) -> Callable[..., list[Tensor]]:
        """A session of ONNX Runtime."""
        names = ["image", "rho", *(f"mask{i}" for i in range(len(values) - 2))]
        return session(Graph(self.first, later, self.halo, self.reading == "features"), values, names)


class Graph(nn.Module):
    """LayerCascade.forward in operations that any engine has. first, later: of a GraphCascade; features: are they read."""

    def __init__(self, first: nn.ModuleList, later: list, halo: int, features: bool):
        super().__init__()
        self.first, self.later, self.halo, self.features = first, later, halo, features

    def forward(self, image: Tensor, rho: Tensor, *masks: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W), () and (N, h, w) each to log_probs (N, K, h, w) and handed (S, N, h, w)."""
        features = self.first[0](image)
        log_probs = self.first[1](features).log_softmax(dim=1)
        shape = [int(side) for side in (len(log_probs), *log_probs.shape[2:])]  # numbers, so that tables of the grid are constants
        grid = Region(torch.ones(shape, dtype=torch.bool))
        source, place, log_probs, handed = _as_rows(features), None, _as_rows(log_probs), [grid.mask]  # place: the row of each cell, None: its own
        for number, (stage, head) in enumerate(self.later):
            handed.append(handed[-1] & (masks[number] if masks else (log_probs.amax(1).exp() < rho).view(shape)))
            pixels = Pixels(Region(handed[-1]).dilate(self.halo).mask, grid)
            rows = source.index_select(0, pixels.index if place is None else place.index_select(0, pixels.index))
            rows, outside = _run(stage, rows, pixels, source if self.features else None)
            logits = pixels.cells(_run(head, rows, pixels)[0]).log_softmax(dim=1)
            log_probs = torch.where(handed[-1].view(-1, 1), logits, log_probs)
            source, place = (pixels.cells(rows, outside), None) if self.features else (_behind_zeros(rows), pixels.rows_of)
        return log_probs.view(*shape, -1).permute(0, 3, 1, 2), torch.stack(handed)


class Pixels(Region):
    """The pixels that a stage computes, P left open. grid: all cells; mask, index: as of a Region; rows_of: (K,) each cell's row, from 1; 0: none."""

    def __init__(self, mask: Tensor, grid: Region):
        super().__init__(mask)
        self.grid, self.rows_of = grid, mask.flatten().long().cumsum(0) * mask.flatten()

    def cells(self, rows: Tensor, outside: Tensor | None = None) -> Tensor:
        """(P, C) to (K, C): zeros, or what `outside` (K, C) has, on other cells."""
        found = _behind_zeros(rows).index_select(0, self.rows_of)
        return found if outside is None else torch.where(self.mask.view(-1, 1), found, outside)

    def reads(self, kernel: tuple[int, int], dilation: tuple[int, int], around: bool) -> tuple[Tensor, Tensor | None]:
        """(P T,), the row that each tap reads; around: behind those of the pixels come those of the Q other cells that windows reach, (Q,)."""
        rows, ring = self.rows_of, None
        if around:
            ring = cells_around(self.mask, kernel, dilation).flatten()
            rows, ring = rows + ring * (self.mask.long().sum() + ring.long().cumsum(0)), ring.nonzero().squeeze(1)
        windows = self.grid.table(kernel, dilation, dense=True).index_select(0, self.index)  # cells; K: behind the border
        return torch.cat([rows, rows.new_zeros(1)]).index_select(0, windows.flatten()), ring


def _behind_zeros(rows: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, int(rows.shape[1]), dtype=rows.dtype), rows])  # a number, so that the zeros are a constant


def _run(parts: list[nn.Module], rows: Tensor, pixels: Pixels, outside: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Rows (P, C) to (P, O), and what is left outside them: only residual sums carry it along."""
    for part in parts:
        run = _mixed if isinstance(part, FastMixed) else _pooled if isinstance(part, FastPool) else _conv
        rows, outside = run(part, rows, pixels, outside), outside if isinstance(part, FastResidual) else None
    return rows, outside


def _gathered(rows: Tensor, pixels: Pixels, window: tuple, outside: Tensor | None, entry: Product | None = None) -> Tensor:
    """(P T, C): what windows read of the rows and, through `entry`, of the map outside."""
    read, ring = pixels.once((window, outside is not None), lambda: pixels.reads(*window, outside is not None))
    if ring is not None:
        around = outside.index_select(0, ring)
        rows = torch.cat([rows, around if entry is None else entry(around)])
    return _behind_zeros(rows).index_select(0, read)


def _conv(part: FastConv, rows: Tensor, pixels: Pixels, outside: Tensor | None = None, entry: Product | None = None) -> Tensor:
    if part.wide:
        rows = _gathered(rows, pixels, part.window, outside, entry).view(-1, math.prod(part.conv.kernel_size) * part.conv.in_channels)
    return part.product(rows)


def _pooled(part: FastPool, rows: Tensor, pixels: Pixels, outside: Tensor | None = None) -> Tensor:
    kernel, dilation = _pair(part.pool.kernel_size), _pair(part.pool.dilation)
    return _gathered(rows, pixels, (kernel, dilation), outside).view(-1, math.prod(kernel), rows.shape[1]).amax(1)


def _mixed(part: FastMixed, rows: Tensor, pixels: Pixels, outside: Tensor | None = None) -> Tensor:
    outputs = []
    for piece, entry, chain in zip(part.entry(rows).split(part.widths, dim=1), part.entries, part.chains):
        for number, conv in enumerate(chain):
            piece = _conv(conv, piece, pixels, *((outside, entry) if number == 0 else ()))
        outputs.append(piece)
    made = torch.cat([*outputs, *([] if part.pool is None else [_pooled(part.pool, rows, pixels, outside)])], dim=1)
    if not isinstance(part, FastResidual):
        return made
    made = (rows if part.shortcut is None else part.shortcut(rows)) + part.project(made)
    return made.relu() if part.relu else made

"""The prepared cascade in ONNX Runtime: a graph for each stage and head, for any number of pixels. Same weights, same labels as lc.speed.fast, whose
parts it spells out as products and gathers; a graph spares the calls on which a small network spends its time in PyTorch (results/NOTES.md).
"""
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lc.cascade import LayerCascade
from lc.region import Region, _pair
from lc.region_conv import RegionTensor
from lc.speed.fast import FastConv, FastMixed, FastPool, FastResidual, FastStage, Product, fold
from lc.speed.fast import prepare as prepared
from lc.speed.opponents import session
from lc.speed.winograd import Ring

SPINS = False  # the threads of each graph would disturb the next


def prepare(model: LayerCascade) -> LayerCascade:
    """A copy of a trained cascade for inference on a CPU, as lc.speed.fast.prepare gives it, in ONNX Runtime: call it like the original. ImportError without
    ONNX Runtime, ValueError for a cascade whose later stages have no fast form."""
    first, model = fold(model), prepared(model)
    if not all(isinstance(stage, FastStage) for stage in model.stages[1:]):
        raise ValueError(f"a cascade with reading {model.reading!r} has no graph: call it itself, or lc.speed.fast.prepare")
    model.stages[0], model.heads[0] = (Dense(part) for part in (first.stages[0], first.heads[0]))
    for number in range(1, len(model.stages)):
        model.stages[number] = Pixels(model.stages[number], model.reading)
        if isinstance(model.heads[number], FastStage):
            model.heads[number] = Pixels(model.heads[number], "zero")
    return model


class Dense(nn.Module):
    """A module on maps; a graph for each size, as sizes that a graph leaves open cost half of its speed."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.calls, self.module = {}, module

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as in the original."""
        if x.shape not in self.calls:
            self.calls[x.shape] = session(self.module, (x,), {"x": {}}, SPINS)
        return self.calls[x.shape](x)


class Pixels(nn.Module):
    """A FastStage on any pixels. reading: what its windows read outside the region, "zero" or "features"."""

    def __init__(self, stage: FastStage, reading: str):
        super().__init__()
        self.graph, self.reading, self.call = Graph(stage, reading == "features"), reading, None

    def forward(self, x: RegionTensor | Tensor) -> RegionTensor | Tensor:
        """Shapes as in the original."""
        if not isinstance(x, RegionTensor):
            full = Region(torch.ones(x.shape[0], *x.shape[2:], dtype=torch.bool))
            return self.forward(RegionTensor.select(x, full, self.reading)).dense()  # no call: hooks count it once
        given = [x.rows[:len(x.region)], *(value for window, around in self.graph.reads for value in self._read(x, window, around))]
        if self.call is None:
            names = ["rows", *(f"{what}{i}" for i, (_, around) in enumerate(self.graph.reads) for what in ("table", "around")[:1 + around])]
            self.call = session(self.graph, tuple(given), {name: {0: name} for name in names}, SPINS)
        return x.with_rows(self.call(*given))

    def _read(self, x: RegionTensor, window: tuple, around: bool) -> Iterator[Tensor]:
        """What Graph takes of a window: the rows that it reads, (P T,), and the features round the region, (Q, C)."""
        if not around:
            yield x.region.table(*window)[:len(x.region)].flatten()
            return
        ring = x.region.once(("ring", window, x.outside), lambda: Ring(x.region, x.outside, *window))
        yield ring.table(*window)[:len(x.region)].flatten().clamp(max=ring.rows - 1)
        yield ring.features[:-1]


class Graph(nn.Module):
    """The parts of a FastStage on rows (P, C), as operations that any engine has. reads: windows (kernel, dilation), and whether they read cells around the
    region too, in the order of their inputs."""

    def __init__(self, stage: FastStage, features: bool):
        super().__init__()
        self.parts, around, windows = [], features, []
        for part in (part for item in stage for part in (item if type(item) is nn.Sequential else [item])):
            if not isinstance(part, (FastConv, FastPool, FastMixed)):
                raise ValueError(f"no graph for {type(part).__name__}: call the cascade itself, or lc.speed.fast.prepare")
            for first, one in ((n == 0, one) for chain in (part.chains if isinstance(part, FastMixed) else [[part]]) for n, one in enumerate(chain)):
                windows += [(_window(one), around and first)] if isinstance(one, FastPool) or one.wide else []
            windows += [(_window(part.pool), around)] if isinstance(part, FastMixed) and part.pool is not None else []
            self.parts.append((part, around))
            around = around and isinstance(part, FastResidual)
        self.reads = list(dict.fromkeys(windows))

    def forward(self, rows: Tensor, *given: Tensor) -> Tensor:
        """(P, C), and what Pixels says of each window, to (P, O)."""
        values = iter(given)
        read = {key: (next(values), next(values) if key[1] else None) for key in self.reads}
        for part, around in self.parts:
            run = _mixed if isinstance(part, FastMixed) else _pooled if isinstance(part, FastPool) else _conv
            rows = run(part, rows, read, around)
        return rows


def _window(part: FastConv | FastPool) -> tuple:
    return (_pair(part.pool.kernel_size), _pair(part.pool.dilation)) if isinstance(part, FastPool) else part.window


def _linear(product: Product, rows: Tensor, relu: bool | None = None) -> Tensor:
    made = F.linear(rows, product.weight, product.bias)
    return made.relu() if (product.relu if relu is None else relu) else made


def _gathered(rows: Tensor, table: Tensor, around: Tensor | None) -> Tensor:
    """(P T, C): of the rows, those around and a row of zeros."""
    return torch.cat([rows, *([] if around is None else [around]), rows.new_zeros(1, rows.shape[1])]).index_select(0, table)


def _conv(part: FastConv, rows: Tensor, read: dict, around: bool, entry: Product | None = None) -> Tensor:
    if part.wide:
        table, outside = read[part.window, around]
        outside = outside if entry is None or outside is None else _linear(entry, outside)
        rows = _gathered(rows, table, outside).view(-1, math.prod(part.conv.kernel_size) * part.conv.in_channels)
    return _linear(part.product, rows)


def _pooled(part: FastPool, rows: Tensor, read: dict, around: bool) -> Tensor:
    kernel, _ = window = _window(part)
    return _gathered(rows, *read[window, around]).view(-1, math.prod(kernel), rows.shape[1]).amax(1)


def _mixed(part: FastMixed, rows: Tensor, read: dict, around: bool) -> Tensor:
    outputs = []
    for piece, entry, chain in zip(_linear(part.entry, rows).split(part.widths, dim=1), part.entries, part.chains):
        for n, conv in enumerate(chain):
            piece = _conv(conv, piece, read, around and n == 0, entry)
        outputs.append(piece)
    made = torch.cat([*outputs, *([] if part.pool is None else [_pooled(part.pool, rows, read, around)])], dim=1)
    if not isinstance(part, FastResidual):
        return made
    made = (rows if part.shortcut is None else _linear(part.shortcut, rows)) + _linear(part.project, made, relu=False)
    return made.relu() if part.project.relu else made

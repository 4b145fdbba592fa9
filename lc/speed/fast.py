"""The cascade made ready for inference on a CPU: same weights, same labels, fewer passes over memory.

Batch norms are folded into their convolutions. An Inception-ResNet block becomes a few matrix products on the P x C matrix of its
active pixels: the 1x1 entries of all branches in one, each larger kernel as gather and multiply (lc.winograd where it is wide), and
a projection that is added to the residual in place. Products run in oneDNN with packed weights and fused ReLU where PyTorch has it (10 % faster than
its matmul here), as plain matrix products elsewhere. A dense map is the full region. timm's blocks are of the same kinds: a ResNet's
bottleneck is a residual block with one branch.
"""
import copy
import itertools
import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct, DropPath
from timm.models.inception_resnet_v2 import Block8, Block17, Block35, Mixed_7a
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lc import winograd
from lc.backbone import ConvBN, Head, Mixed, Residual
from lc.cascade import CascadeOutput, LayerCascade
from lc.errors import check_rho
from lc.machine import keep_memory
from lc.region import Region
from lc.region_conv import RegionTensor, _as_image

PLAIN = {Bottleneck, nn.Conv2d, nn.ReLU, nn.Identity, nn.Sequential, DropPath}  # all that a bottleneck's fast form computes, or need not


def prepare(model: LayerCascade) -> LayerCascade:
    """A copy of a trained cascade for inference: call it like the original. Gradients and batch norm statistics are gone; new weights, another
    device or dtype need a new copy, made of the original. Stage 1 always gets its fast form; later stages get theirs where regions read zeros outside
    themselves, or are IRNet's and read features. With other readings, and of modules that are not known here, only batch norms are folded."""
    model = fold(model)
    model.stages[0] = _dense(model.stages[0])
    at_work = (m for m in model.stages[0].modules() if isinstance(m, FastStage) or m._parameters or m._buffers)
    if isinstance(next(at_work, None), FastStage | None):  # a block, here or in the next stage, would overwrite the caller's image
        model.stages[0].register_forward_pre_hook(lambda _, images: images[0].clone())
    blocks = [block for stage in model.stages[1:] for block in _in_a_row(stage)]
    if not (model.reading == "zero" or model.reading == "features" and all(isinstance(block, (Residual, Mixed)) for block in blocks)):
        return model
    for number, (stage, head) in enumerate(zip(model.stages[1:], model.heads[1:]), start=1):
        if _in_order(stage):
            model.stages[number] = FastStage(OrderedDict((name, quick(part)) for name, part in stage._modules.items()))
        if isinstance(head, Head) and (model.reading == "zero" or head.hidden[0].kernel_size == (1, 1)):  # a wider one reads features
            model.heads[number] = FastStage(*_run(head))
    return model


def _in_order(part: nn.Module) -> bool:
    """Whether a module calls its children one after the other, as they were defined."""
    return type(part).forward is nn.Sequential.forward


def _in_a_row(stage: nn.Module) -> list[nn.Module]:
    """What a stage calls one after the other."""
    return [part for child in stage for part in _in_a_row(child)] if _in_order(stage) or isinstance(stage, FastStage) else [stage]


def quick(part: nn.Module) -> nn.Module:
    """A folded part in its fast form; as it is, if it has none."""
    if isinstance(part, Residual):
        made = FastResidual(part.mixed.branches, part.project, part.scale)
    elif isinstance(part, (Block35, Block17, Block8)):
        made = FastResidual(_branches(part), part.conv2d, part.scale, relu=getattr(part, "relu", part) is not None)
    elif isinstance(part, Bottleneck) and {type(m) for m in part.modules()} <= PLAIN and all(c.bias is not None for c in (part.conv1, part.conv3)):
        made = FastResidual([nn.ModuleList([part.conv1, part.conv2])], part.conv3, shortcut=part.downsample)
    elif isinstance(part, (Mixed, Mixed_7a)):
        made = FastMixed(part.branches if isinstance(part, Mixed) else _branches(part))
    elif isinstance(part, ConvNormAct) or _in_order(part):
        return nn.Sequential(*_run(part._modules.values()))
    elif isinstance(part, nn.MaxPool2d) and part.stride in (1, (1, 1)):
        return FastPool(part)
    else:
        return part
    return made if made.fits else part


def _dense(part: nn.Module) -> nn.Module:
    """A folded part of the first stage, its residual blocks and wide convolutions in their fast form on a CPU."""
    if isinstance(part, Residual) and part.project.weight.device.type == "cpu":
        return FastStage(quick(part))
    if _keeps_grid(part) and winograd.suits(part.weight):  # filtering saves time
        return FastStage(FastConv(part, relu=False))
    for name, child in part.named_children():
        setattr(part, name, _dense(child))
    return part


def _branches(part: nn.Module) -> list[nn.Module]:
    return [child for name, child in part.named_children() if name.startswith("branch")]


def _run(parts: Iterable[nn.Module]) -> Iterable[nn.Module]:
    """Parts in a row, each in its fast form; a convolution takes the ReLU behind it along."""
    parts = [part for part in parts if not isinstance(part, (nn.Identity, nn.Dropout))]
    for before, part, after in zip([None, *parts], parts, [*parts[1:], None]):
        if _keeps_grid(part):
            yield FastConv(part, relu=isinstance(after, nn.ReLU))
        elif not (isinstance(part, nn.ReLU) and _keeps_grid(before)):
            yield quick(part)


def _keeps_grid(part: nn.Module | None) -> bool:
    """Whether this is a convolution that regions can compute."""
    plain = type(part) is nn.Conv2d and part.padding_mode == "zeros" and part.stride == (1, 1) and part.groups == 1
    return plain and part.padding == tuple(d * (k // 2) for k, d in zip(part.kernel_size, part.dilation))


def fold(module: nn.Module) -> nn.Module:
    """A copy for inference with batch norms folded, and nothing else changed; a cascade's dense opponent (in channels last). From
    then on the process keeps its memory (`keep_memory`)."""
    keep_memory()
    module = copy.deepcopy(module).eval().requires_grad_(False)
    _fold(module)
    return module


def _fold(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, ConvBN):
            setattr(module, name, nn.Sequential(fuse_conv_bn_eval(child.conv, child.bn), nn.ReLU(inplace=True)))
        else:
            _fold(child)
    known = _in_order(module) or isinstance(module, (ConvNormAct, BasicBlock, Bottleneck))  # of others, who knows what they call in which order
    for (name, conv), (after, norm) in itertools.pairwise(list(module._modules.items()) if known else ()):
        if type(conv) is nn.Conv2d and isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:  # timm's may hold its activation
            setattr(module, name, fuse_conv_bn_eval(conv, norm))
            setattr(module, after, getattr(norm, "act", nn.Identity()))


@lru_cache(maxsize=8)
def _full(shape: tuple[int, int, int], device: torch.device) -> Region:
    return Region(torch.ones(shape, dtype=torch.bool, device=device))


class Product:
    """rows @ weight^T + bias and then ReLU (or not), for rows (P, C) and weight (O, C); packed for oneDNN at first use on a CPU in float32.

    As linear layers: weights packed for a convolution of one image fit some numbers of rows, and are reordered at every call for the others."""

    def __init__(self, weight: Tensor, bias: Tensor, relu: bool = True):
        self.weight, self.bias, self.relu, self.packed = weight.contiguous(), bias, relu, None

    def __call__(self, rows: Tensor) -> Tensor:
        if not winograd.in_onednn(rows):
            made = F.linear(rows, self.weight, self.bias)
            return made.relu_() if self.relu else made
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, len(rows))
        return torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, "relu" if self.relu else "none", [], "")


class FastStage(nn.Sequential):
    """Parts in their fast form; a dense map goes through them as its full region, and may be overwritten."""

    def forward(self, x: RegionTensor | Tensor) -> RegionTensor | Tensor:
        """Shapes as in the original."""
        if isinstance(x, RegionTensor):
            return super().forward(x)
        n, c, h, w = x.shape
        pixels = RegionTensor(_as_image(x.permute(0, 2, 3, 1).reshape(n * h * w, c)), _full((n, h, w), x.device))
        return super().forward(pixels).rows.view(n, h, w, -1).permute(0, 3, 1, 2)


class OnRows(nn.Module):
    """Something on the pixels of a region. A FastResidual overwrites the values of its input: in a cascade nobody reads them again."""

    def forward(self, x: RegionTensor) -> RegionTensor:
        """Shapes as in the original."""
        return x.with_rows(self.on_rows(x.rows, x.region, x.outside))


class FastConv(OnRows):
    """A folded convolution, and the ReLU behind it."""

    def __init__(self, conv: nn.Conv2d, relu: bool = True):
        super().__init__()
        self.conv, self.wide, self.window = conv, conv.kernel_size != (1, 1), (conv.kernel_size, conv.dilation)
        weight, bias = conv.weight, conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
        self.product = Product(weight.permute(0, 2, 3, 1).flatten(1), bias, relu)
        self.filtered = None  # the kernel transformed, and packed
        if winograd.suits(weight):
            kernel = winograd.transformed(weight.double()).to(weight.dtype)
            self.filtered = winograd.packed(kernel, len(kernel) // conv.out_channels)

    def on_rows(self, rows: Tensor, region: Region, outside: Tensor | None = None, ring: winograd.Ring | None = None) -> Tensor:
        """(R, C) to (R, O); with a ring of the region the rows are the ring's, without one windows read zeros, whatever is outside."""
        filters = self.filtered is not None and rows.dtype == self.filtered.dtype and len(region) > 0
        if filters and (tiles := winograd.Tiles.of(region, *self.window, rows.dtype, ring)) is not None:
            made = tiles.filter(rows, self.filtered)
            return torch._add_relu_(made, self.product.bias) if self.product.relu else made.add_(self.product.bias)
        if self.wide:  # the window of each pixel, zeros where a neighbour is missing: (R, T C)
            reads = region if ring is None else ring
            taken = reads.once(("windows", self.window, rows.dtype), lambda: winograd.Sums(
                reads.table(*self.window)[:region.rows].view(-1, 1), rows.new_ones(1, 1), reads.rows))
            rows = taken(rows).view(region.rows, math.prod(self.conv.kernel_size) * rows.shape[1])
        return self.product(rows)


class FastPool(OnRows):
    """Max pooling on a map with zeros (or features) outside: cheaper than nine gathers, and the same by the contract."""

    def __init__(self, pool: nn.MaxPool2d):
        super().__init__()
        self.pool = pool

    def on_rows(self, rows: Tensor, region: Region, outside: Tensor | None = None) -> Tensor:
        """(R, C) to (R, C)."""
        if len(region) == len(rows) == region.mask.numel():  # the rows are the map
            return self.pool(rows.unflatten(0, region.mask.shape).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(0, 2)
        return region.gather(self.pool(region.scatter(rows, outside)))


class FastMixed(OnRows):
    """Parallel branches of folded convolutions (each with a ReLU) and at most one pool, stride 1, concatenated. A map outside is read by the pool,
    and through a branch's entry by the window next to it (the reading "features")."""

    def __init__(self, branches: Iterable[nn.Module]):
        super().__init__()
        chains = [[m for m in branch.modules() if isinstance(m, nn.Conv2d)] for branch in branches if not isinstance(branch, nn.MaxPool2d)]
        self.pool = next((FastPool(branch) for branch in branches if isinstance(branch, nn.MaxPool2d)), None)
        # a 1x1 first, so that windows meet only zeros outside the region
        self.fits = all(chain[0].kernel_size == (1, 1) and all(map(_keeps_grid, chain)) for chain in chains)
        if self.fits:
            self.entry = Product(torch.cat([chain[0].weight.flatten(1) for chain in chains]), torch.cat([chain[0].bias for chain in chains]))
            self.entries = [Product(chain[0].weight.flatten(1), chain[0].bias) for chain in chains]
        self.widths = [chain[0].out_channels for chain in chains]
        self.chains = nn.ModuleList(nn.Sequential(*map(FastConv, chain[1:])) for chain in chains)

    def on_rows(self, rows: Tensor, region: Region, outside: Tensor | None = None) -> Tensor:
        """(R, C) to (R, O)."""
        outputs = []
        for part, entry, chain in zip(self.entry(rows).split(self.widths, dim=1), self.entries, self.chains):
            ring = None
            if outside is not None and len(chain) and chain[0].wide:
                ring = region.once(("ring", chain[0].window, outside), lambda: winograd.Ring(region, outside, *chain[0].window))
                part = torch.cat([part, entry(ring.features)])
            for conv in chain:
                part, ring = conv.on_rows(part, region, None, ring), None
            outputs.append(part)
        if self.pool is not None:
            outputs.append(self.pool.on_rows(rows, region, outside))
        return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]


class FastResidual(FastMixed):
    """shortcut(x) + scale * project(branches(x)), and then ReLU (or not)."""

    def __init__(self, branches: Iterable[nn.Module], project: nn.Conv2d, scale: float = 1.0, relu: bool = True, shortcut: nn.Module | None = None):
        super().__init__(branches)
        self.project, self.relu = Product(scale * project.weight.flatten(1), scale * project.bias, relu=False), relu
        convs = [] if shortcut is None else [m for m in shortcut.modules() if isinstance(m, nn.Conv2d)]
        self.fits = self.fits and len(convs) < 2 and all(conv.kernel_size == (1, 1) and _keeps_grid(conv) for conv in convs)
        self.shortcut = Product(convs[0].weight.flatten(1), convs[0].bias, relu=False) if convs else None

    def forward(self, x: RegionTensor) -> RegionTensor:
        """Shapes as in the original; the sum carries along what lies outside."""
        return replace(super().forward(x), outside=x.outside, reading=x.reading)

    def on_rows(self, rows: Tensor, region: Region, outside: Tensor | None = None) -> Tensor:
        """(R, C) to (R, O); in place where the shortcut is the input itself."""
        total = rows if self.shortcut is None else self.shortcut(rows)
        made = super().on_rows(rows, region, outside)
        more = self.project(made)
        if self.relu and winograd.in_onednn(made):
            return torch._add_relu_(total, more)  # one pass over memory, not two
        return total.add_(more).relu_() if self.relu else total.add_(more)


class GraphCascade(nn.Module):
    """A cascade for inference whose calls run in graphs, one for each size of image and depth, made at its first call: call it like the original.
    first: stage 1 and its head, folded; later: of each other stage the fast parts, and those of its head. ValueError for a part that has none.
    A subclass has graph(later, *values): what gives log_probs (N, K, h, w) and handed (S, N, h, w) of image (N, 3, H, W), rho () and masks (N, h,
    w) of the sizes of these values."""

    def __init__(self, model: LayerCascade):
        super().__init__()
        folded, prepared = fold(model), prepare(model)
        self.first = nn.ModuleList([folded.stages[0], folded.heads[0]])
        self.later = [(_in_a_row(stage), _in_a_row(head)) for stage, head in zip(prepared.stages[1:], prepared.heads[1:])]
        self.reading, self.halo, self.graphs = model.reading, model.halo, {}
        unknown = {type(part).__name__ for parts in itertools.chain(*self.later) for part in parts if not isinstance(part, OnRows)}
        if unknown:
            raise ValueError(f"no graph for {', '.join(sorted(unknown))} with reading {model.reading!r}: call the cascade itself, or "
                             "lc.speed.fast.prepare")

    @torch.no_grad()
    def forward(self, image: Tensor, rho: float = 1.0, depth: int | None = None, masks: tuple[Tensor, ...] = ()) -> CascadeOutput:
        """As LayerCascade; of the output log_probs, decided and handed. masks: (N, h, w) bool each, pixels to hand to stages 2, 3, ... whatever
        they are sure of."""
        rho, key = check_rho(rho), (*image.shape, depth, len(masks))
        values = (image, torch.full((), rho if rho < 1 else math.inf, device=image.device), *masks)  # rho = 1 is a rule: nobody exits
        if key not in self.graphs:
            self.graphs[key] = self.graph(self.later[:None if depth is None else depth - 1], *values)
        log_probs, handed = self.graphs[key](*values)
        return CascadeOutput(log_probs, handed.sum(0, dtype=torch.uint8), handed=list(handed))

"""The cascade made ready for inference on a CPU: same weights, same labels, fewer passes over memory.

Batch norms are folded into their convolutions. An Inception-ResNet block becomes a few matrix products on the P x C matrix of its
active pixels: the 1x1 entries of all branches in one, each wide convolution as gather and multiply, and a projection that adds
itself to the residual in place. Products run in oneDNN with packed weights and fused ReLU where PyTorch has it (10 % faster than
its matmul here), as plain matrix products elsewhere. A dense map is the full region.
"""
import copy
from collections import OrderedDict
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lc.backbone import ConvBN, Mixed, Residual
from lc.cascade import LayerCascade
from lc.region import Region
from lc.region_conv import RegionTensor, _as_image

SMALL = 1200  # rows under which oneDNN's fused addition can be three times slower than a plain product (results/NOTES.md)
ONEDNN = hasattr(torch.ops.mkldnn, "_convolution_pointwise_") and torch.backends.mkldnn.is_available()


def prepare(model: LayerCascade) -> LayerCascade:
    """A copy of a trained cascade for inference: call it like the original. Gradients and batch norm statistics are gone. Regions that
    read the dense map outside themselves have no faster form: their batch norms are folded, no more."""
    model = fold(model)
    if model.reading == "dense":
        return model
    for number, stage in enumerate(model.stages[1:], start=1):
        model.stages[number] = FastStage(OrderedDict((name, _quick(part)) for name, part in stage.named_children()))
    return model


def _quick(part: nn.Module) -> nn.Module:
    if isinstance(part, Mixed) and _fits(part):
        return FastMixed(part)
    if isinstance(part, Residual) and _fits(part.mixed):
        return FastResidual(part)
    return nn.Sequential(*map(_quick, part)) if type(part) is nn.Sequential else part


def fold(module: nn.Module) -> nn.Module:
    """A copy for inference with batch norms folded, and nothing else changed; a cascade's dense opponent (in channels last)."""
    module = copy.deepcopy(module).eval().requires_grad_(False)
    _fold(module)
    return module


def _fold(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, ConvBN):
            setattr(module, name, nn.Sequential(fuse_conv_bn_eval(child.conv, child.bn), nn.ReLU(inplace=True)))
        else:
            _fold(child)


def _fits(mixed: Mixed) -> bool:
    """Whether every branch starts with a 1x1 convolution (or is a pool), so that windows meet only zeros outside the region."""
    return all(isinstance(branch, nn.MaxPool2d) or branch[0][0].kernel_size == (1, 1) for branch in mixed.branches)


@lru_cache(maxsize=8)
def _full(shape: tuple[int, int, int], device: torch.device) -> Region:
    return Region(torch.ones(shape, dtype=torch.bool, device=device))


def _table(region: Region, conv: nn.Conv2d) -> Tensor:
    """The region's table for a convolution, with one number for both kinds of missing neighbours."""
    key = ("one zero row", conv.kernel_size, conv.dilation)
    if key not in region._tables:
        region._tables[key] = region.table(conv.kernel_size, conv.dilation).clamp(max=len(region))
    return region._tables[key]


class Product:
    """relu(rows @ weight^T + bias) for rows (P, C) and weight (O, C); packed for oneDNN at first use on a CPU in float32."""

    GEOMETRY = ((0, 0), (1, 1), (1, 1))  # padding, stride, dilation of a 1x1 convolution

    def __init__(self, weight: Tensor, bias: Tensor):
        self.weight, self.bias, self.packed = weight.contiguous(), bias, None

    def _ready(self, rows: Tensor) -> bool:
        if not ONEDNN or rows.device.type != "cpu" or rows.dtype != torch.float32 or not len(rows):
            return False
        if self.packed is None:
            kernel = self.weight[:, :, None, None].contiguous(memory_format=torch.channels_last)
            self.packed = torch.ops.mkldnn._reorder_convolution_weight(kernel, *self.GEOMETRY, 1, [1, rows.shape[1], 1, len(rows)])
        return True

    def __call__(self, rows: Tensor) -> Tensor:
        if not self._ready(rows):
            return F.linear(rows, self.weight, self.bias).relu_()
        return _as_rows(torch.ops.mkldnn._convolution_pointwise(_as_image(rows), self.packed, self.bias, *self.GEOMETRY, 1, "relu", [], ""))

    def add_to(self, total: Tensor, rows: Tensor) -> Tensor:
        """total (P, O) becomes relu(total + rows @ weight^T + bias), in place."""
        if len(rows) < SMALL or not self._ready(rows):
            return total.addmm_(rows, self.weight.t()).add_(self.bias).relu_()
        torch.ops.mkldnn._convolution_pointwise_(_as_image(total), _as_image(rows), self.packed, self.bias, *self.GEOMETRY, 1, "add", 1.0, "relu", [], "")
        return total


def _as_rows(image: Tensor) -> Tensor:
    return image[0, :, 0].t()  # (1, C, 1, P) -> (P, C)


class FastStage(nn.Sequential):
    """A later stage; a dense map goes through it as its full region."""

    def forward(self, x: RegionTensor | Tensor) -> RegionTensor | Tensor:
        """Shapes as in the original."""
        if isinstance(x, RegionTensor):
            return super().forward(x)
        return super().forward(RegionTensor.select(x, _full((x.shape[0], *x.shape[2:]), x.device))).dense()


class FastMixed(nn.Module):
    """Parallel branches of a folded Mixed, stride 1, concatenated; on a RegionTensor."""

    def __init__(self, mixed: Mixed):
        super().__init__()
        self.pool = next((branch for branch in mixed.branches if isinstance(branch, nn.MaxPool2d)), None)
        branches = [[layer[0] for layer in branch] for branch in mixed.branches if branch is not self.pool]
        self.entry = Product(torch.cat([b[0].weight.flatten(1) for b in branches]), torch.cat([b[0].bias for b in branches]))
        self.widths = [b[0].out_channels for b in branches]
        self.chains = [[(conv, Product(conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)) for conv in b[1:]] for b in branches]

    def forward(self, x: RegionTensor) -> RegionTensor:
        """Shapes as in the original. A FastResidual overwrites the values of its input: in a cascade nobody reads them again."""
        return x.with_rows(self.on_rows(x.rows, x.region))

    def on_rows(self, rows: Tensor, region: Region) -> Tensor:
        """(P, C) to (P, O)."""
        outputs = []
        for part, chain in zip(self.entry(rows).split(self.widths, dim=1), self.chains):
            for conv, product in chain:
                part = product(_windows(part, _table(region, conv)))
            outputs.append(part)
        if self.pool is not None:  # on a map with zeros outside: cheaper than nine gathers, and the same by the contract
            outputs.append(region.gather(self.pool(region.scatter(rows))))
        return torch.cat(outputs, dim=1)


class FastResidual(FastMixed):
    """ReLU(x + scale * conv1x1(branches(x))) of a folded Residual."""

    def __init__(self, block: Residual):
        super().__init__(block.mixed)
        self.project = Product(block.scale * block.project.weight.flatten(1), block.scale * block.project.bias)

    def on_rows(self, rows: Tensor, region: Region) -> Tensor:
        """(P, C) to (P, C), in place."""
        return self.project.add_to(rows, super().on_rows(rows, region))


def _windows(rows: Tensor, table: Tensor) -> Tensor:
    """(P, T C): the window of each pixel, zeros where the table points behind the last row."""
    padded = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
    return padded.index_select(0, table.flatten()).view(len(table), table.shape[1] * rows.shape[1])

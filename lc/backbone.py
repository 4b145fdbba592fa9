"""Networks cut into stages. Here: the paper's IRNet (Sec. 3.1, Fig. 2), an Inception-ResNet-v2 of stride 8.

Channels and kernels are those of the Inception-ResNet-v2 paper (Szegedy et al. 2016), which Fig. 2 refers to.
Left open by the LC paper and chosen here: "same" padding everywhere (so that 512 x 512 gives 64 x 64), residual scales
0.17 / 0.10 / 0.20 (timm's), dilation 2 in IRNet-B and Reduction-B and 4 in IRNet-C (what keeps the field of view when the
strides of the reductions become 1), a head of a 1x1 and a 3x3 convolution with 128 channels between them.
"""
from collections import OrderedDict

import torch
from torch import Tensor, nn

from lc.errors import InputError

Kernel = int | tuple[int, int]
RESIDUAL_SCALE = {"irnet_a": 0.17, "irnet_b": 0.10, "irnet_c": 0.20}


class ConvBN(nn.Sequential):
    """Convolution, batch norm, ReLU; "same" padding."""

    def __init__(self, inputs: int, outputs: int, kernel: Kernel, stride: int = 1, dilation: int = 1):
        super().__init__(OrderedDict(
            conv=_same_conv(inputs, outputs, kernel, stride, dilation, bias=False),
            bn=nn.BatchNorm2d(outputs, eps=1e-3), relu=nn.ReLU(inplace=True)))


def _same_conv(inputs: int, outputs: int, kernel: Kernel, stride: int = 1, dilation: int = 1, bias: bool = True) -> nn.Conv2d:
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    dilation = dilation if max(kernel) > 1 else 1
    padding = tuple(dilation * (k // 2) for k in kernel)
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=bias)


class Mixed(nn.Module):
    """Parallel branches on one input, concatenated. A branch is a list of (channels, kernel); the stride sits on its last
    convolution. pool=True adds a 3x3 max-pooling branch."""

    def __init__(self, inputs: int, branches: list[list[tuple[int, Kernel]]], pool: bool = False, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.branches = nn.ModuleList(_chain(inputs, branch, stride, dilation) for branch in branches)
        if pool:
            self.branches.append(nn.MaxPool2d(3, stride, padding=1))
        self.channels = sum(branch[-1][0] for branch in branches) + (inputs if pool else 0)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def _chain(inputs: int, branch: list[tuple[int, Kernel]], stride: int, dilation: int) -> nn.Sequential:
    layers, last = [], len(branch) - 1
    for i, (outputs, kernel) in enumerate(branch):
        layers.append(ConvBN(inputs, outputs, kernel, stride if i == last else 1, dilation))
        inputs = outputs
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """Inception-ResNet block: ReLU(x + scale * conv1x1(branches(x))) (Fig. 2, right; Fig. 3c)."""

    def __init__(self, channels: int, branches: list[list[tuple[int, Kernel]]], scale: float, dilation: int):
        super().__init__()
        self.mixed = Mixed(channels, branches, dilation=dilation)
        self.project = _same_conv(self.mixed.channels, channels, 1)
        self.relu = nn.ReLU(inplace=True)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.project(self.mixed(x)) * self.scale)


def irnet(width: float = 1.0, blocks: tuple[int, int, int] = (5, 10, 5)) -> OrderedDict[str, nn.Module]:
    """The six components of IRNet in order; each maps (N, C, H, W) on, the stem at stride 8, all others at stride 1.

    width multiplies every channel count (rounded to a multiple of 8, at least 8); blocks: IRNet-A / -B / -C blocks.
    """
    c = lambda channels: max(8, 8 * round(channels * width / 8))
    at = lambda *branches: [[(c(channels), kernel) for channels, kernel in branch] for branch in branches]

    mixed_1 = Mixed(c(64), at([(96, 3)]), pool=True, stride=2)
    mixed_2 = Mixed(mixed_1.channels, at([(64, 1), (96, 3)], [(64, 1), (64, (7, 1)), (64, (1, 7)), (96, 3)]))
    mixed_3 = Mixed(mixed_2.channels, at([(192, 3)]), pool=True, stride=2)
    stem = nn.Sequential(ConvBN(3, c(32), 3, stride=2), ConvBN(c(32), c(32), 3), ConvBN(c(32), c(64), 3), mixed_1, mixed_2, mixed_3)

    def stack(name: str, channels: int, count: int, dilation: int, *branches) -> nn.Sequential:
        return nn.Sequential(*(Residual(channels, at(*branches), RESIDUAL_SCALE[name], dilation) for _ in range(count)))

    a = mixed_3.channels
    reduction_a = Mixed(a, at([(384, 3)], [(256, 1), (256, 3), (384, 3)]), pool=True)
    b = reduction_a.channels
    reduction_b = Mixed(b, at([(256, 1), (384, 3)], [(256, 1), (288, 3)], [(256, 1), (288, 3), (320, 3)]), pool=True, dilation=2)
    return OrderedDict(
        stem=stem,
        irnet_a=stack("irnet_a", a, blocks[0], 1, [(32, 1)], [(32, 1), (32, 3)], [(32, 1), (48, 3), (64, 3)]),
        reduction_a=reduction_a,
        irnet_b=stack("irnet_b", b, blocks[1], 2, [(192, 1)], [(128, 1), (160, (1, 7)), (192, (7, 1))]),
        reduction_b=reduction_b,
        irnet_c=stack("irnet_c", reduction_b.channels, blocks[2], 4, [(192, 1)], [(192, 1), (224, (1, 3)), (256, (3, 1))]))


def cut_stages(components: OrderedDict[str, nn.Module], cut: tuple[int, ...]) -> list[nn.Sequential]:
    """Stages: components before cut[0], from cut[0] to cut[1], ..., to the end.

    The paper's IRNet: (3, 5) = each reduction ends a stage ("stage-1 contains Stem, five IRNet-A and one Reduction-A",
    Sec. 3.1; "in stage-2, IRNet-B and Reduction-B", Sec. 3.1); (2, 4) = each reduction starts one (the other sentence).
    """
    items, edges = list(components.items()), (0, *cut, len(components))
    if any(low >= high for low, high in zip(edges, edges[1:])):
        raise InputError(f"cut must rise strictly between 0 and {len(components)}, got {cut}")
    return [nn.Sequential(OrderedDict(items[low:high])) for low, high in zip(edges, edges[1:])]


class Head(nn.Sequential):
    """Two convolutions (Sec. 3.1) from a stage's features to logits (N, K, H, W); softmax belongs to loss and cascade."""

    def __init__(self, inputs: int, num_classes: int, width: int = 128, kernels: tuple[int, int] = (1, 3), dropout: float = 0.1):
        super().__init__(OrderedDict(
            hidden=ConvBN(inputs, width, kernels[0]), dropout=nn.Dropout(dropout), classify=_same_conv(width, num_classes, kernels[1])))
        nn.init.normal_(self.classify.weight, std=0.01)
        nn.init.zeros_(self.classify.bias)


class ASPP(nn.Module):
    """The head of DeepLab-v2 (Table 6): 3x3 convolutions with four dilations side by side, summed to logits (N, K, H, W)."""

    def __init__(self, inputs: int, num_classes: int, rates: tuple[int, ...] = (6, 12, 18, 24)):
        super().__init__()
        self.branches = nn.ModuleList(_same_conv(inputs, num_classes, 3, dilation=rate) for rate in rates)
        for branch in self.branches:
            nn.init.normal_(branch.weight, std=0.01)
            nn.init.zeros_(branch.bias)

    def forward(self, x: Tensor) -> Tensor:
        return sum(branch(x) for branch in self.branches)

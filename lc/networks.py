"""Any network as a cascade: timm's networks cut into stages by one mechanism, and the choice of a network by name.

LC "can be easily applied" to other networks (Sec. 1): name the network's components in order and say where stages end (`TIMM`);
`keep_stride` makes every grid after stride 8 the same, which is what a region needs. A new timm network is one such entry.
"""
import copy
from collections import OrderedDict
from collections.abc import Callable
from pickle import UnpicklingError

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from timm.models.vgg import VGG, cfgs
from torch import Tensor, nn

from lc import baselines
from lc.backbone import ASPP, Head, cut_stages, irnet
from lc.cascade import STRIDE, LayerCascade
from lc.config import CHOICES
from lc.errors import InputError

Components = OrderedDict[str, nn.Module]


class Renormalise(nn.Module):
    """An image normalised with ImageNet's statistics (lc.data) -> normalised as a network's weights expect."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        from lc.data import MEAN, STD
        ours, theirs = ([torch.tensor(v).view(3, 1, 1) for v in pair] for pair in ((MEAN, STD), (mean, std)))
        self.register_buffer("scale", ours[1] / theirs[1], persistent=False)
        self.register_buffer("shift", (ours[0] - theirs[0]) / theirs[1], persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        return image * self.scale + self.shift


def _timm(name: str, weights: str, **settings) -> nn.Module:
    """A timm network; weights: "" (random), "imagenet" (fetched once, then cached by timm) or a file of its weights."""
    try:
        return timm.create_model(name, pretrained=weights == "imagenet", checkpoint_path=weights if weights != "imagenet" else "", **settings)
    except (OSError, RuntimeError, SafetensorError, UnpicklingError, TypeError, AttributeError) as error:
        why = (str(error).strip() or "no such file").splitlines()[0]  # timm's FileNotFoundError has no text
        raise InputError(f"{weights} weights of timm's {name} cannot be had ({why}); give imagenet, or a .safetensors or .pth file that it can "
                         "load (model.weights=FILE)") from None


def vgg16(width: float = 1.0, weights: str = "") -> Components:
    """VGG16 with batch norm: conv1 ... conv5, each ending in its pooling."""
    if width == 1:
        layers = _timm("vgg16_bn", weights).features
    else:
        layers = VGG([v if v == "M" else _scaled(v, width) for v in cfgs["vgg16"]], norm_layer=nn.BatchNorm2d).features
    ends = [i + 1 for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    return OrderedDict((f"conv{i}", layers[a:b]) for i, (a, b) in enumerate(zip([0, *ends], ends), start=1))


def resnet101(width: float = 1.0, weights: str = "") -> Components:
    """ResNet-101: stem and layer1 ... layer4; a narrow one keeps the stem's 64 channels."""
    settings = {} if width == 1 else {"channels": tuple(_scaled(c, width) for c in (64, 128, 256, 512))}
    network = _timm("resnet101", weights, **settings)
    stem = nn.Sequential(network.conv1, network.bn1, network.act1, network.maxpool)
    return OrderedDict(stem=stem, layer1=network.layer1, layer2=network.layer2, layer3=network.layer3, layer4=network.layer4)


def inception_resnet_v2(width: float = 1.0, weights: str = "") -> Components:
    """timm's Inception-ResNet-v2 (10/20/10 blocks, where IRNet has 5/10/5), up to its last convolution."""
    if width != 1:
        raise InputError(f"inception_resnet_v2 has one width in timm: model.width must be 1, got {width:g}")
    network = _timm("inception_resnet_v2", weights)
    parts = OrderedDict((name, part) for name, part in network.named_children() if name not in ("global_pool", "head_drop", "classif"))
    names = list(parts)
    config = network.pretrained_cfg
    first = {name: parts.pop(name) for name in names[:names.index("mixed_5b")]}
    stem = nn.Sequential(OrderedDict(renormalise=Renormalise(config["mean"], config["std"]), **first))
    return OrderedDict(stem=stem, **parts)


def _scaled(channels: int, width: float) -> int:
    return max(8, 8 * round(channels * width / 8))


# components by width and weights, and how many of them come before stage 2 and stage 3
TIMM: dict[str, tuple[Callable[..., Components], tuple[int, int]]] = {
    "vgg16": (vgg16, (3, 4)), "resnet101": (resnet101, (3, 4)), "inception_resnet_v2": (inception_resnet_v2, (4, 6))}


def keep_stride(components: Components, output_stride: int = STRIDE) -> Components:
    """Give every window "same" padding, in place, and trade strides beyond output_stride for dilation (a trous). Pooling
    windows of 2 pixels become 3 pixels wide, as DeepLab's do: an even window has no middle."""
    stride = dilation = 1
    for unit in (unit for part in components.values() for unit in (part if isinstance(part, nn.Sequential) else [part])):  # a block, or a lone layer
        layers = [m for m in unit.modules() if isinstance(m, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d))]
        strided = any(m.stride not in (1, (1, 1)) for m in layers)
        keep = stride < output_stride
        for layer in layers:
            _same(layer, dilation, strided and not keep)
        stride, dilation = (2 * stride, dilation) if strided and keep else (stride, dilation * (2 if strided else 1))
    return components


def _same(layer: nn.Module, dilation: int, unstride: bool) -> None:
    if isinstance(layer, nn.Conv2d):
        layer.dilation = (dilation, dilation)
        layer.padding = tuple(dilation * (k // 2) for k in layer.kernel_size)
        layer.stride = (1, 1) if unstride else layer.stride
        return
    layer.kernel_size += layer.kernel_size % 2 == 0
    layer.padding = dilation * (layer.kernel_size // 2)
    layer.stride = 1 if unstride else layer.stride
    if isinstance(layer, nn.MaxPool2d):
        layer.dilation = dilation
        layer.__class__ = SameMaxPool2d  # in place: a pooling may be a component of its own


class SameMaxPool2d(nn.MaxPool2d):
    """Max pooling with "same" padding at any dilation; PyTorch allows padding up to half the undilated window only."""

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Tensor) and self.dilation > 1:
            return F.max_pool2d(F.pad(x, (self.padding,) * 4, value=float("-inf")), self.kernel_size, self.stride, 0, self.dilation)
        return super().forward(x)


def channels(stages: list[nn.Module]) -> list[int]:
    """Channels that each stage hands on."""
    x, found = torch.zeros(1, 3, 2 * STRIDE, 2 * STRIDE, device="meta"), []
    for stage in stages:
        x = copy.deepcopy(stage).to("meta").eval()(x)  # shapes only
        found.append(x.shape[1])
    return found


def build(num_classes: int, network: str = "irnet", weights: str = "", width: float = 1.0, blocks: tuple[int, int, int] = (5, 10, 5),
          cut: tuple[int, int] = (3, 5), head: str = "conv", head_width: int = 128, head_kernels: tuple[int, int] = (1, 3),
          reading: str = "zero", halo: int = 0) -> LayerCascade:
    """The network of a run. Arguments: lc.config.ModelConfig. IRNet and timm's networks become three stages with a head each; the
    systems of lc.baselines are cascades of one stage. InputError for an unknown network, or no class."""
    if network not in CHOICES["network"] or num_classes < 1:
        raise InputError(f"a network is one of {', '.join(CHOICES['network'])} with 1 class or more, got {network!r} with {num_classes}")
    if weights and (network == "irnet" or width != 1):
        raise InputError(f"model.weights={weights!r}: neither IRNet nor a network of another width than its own has ImageNet weights; use "
                         "model.network=inception_resnet_v2, or model.width=1")
    if network in baselines.SYSTEMS:
        return LayerCascade(*baselines.SYSTEMS[network](num_classes, width, weights))
    if network == "irnet":
        components = irnet(width, blocks)
    else:
        make, cut = TIMM[network]
        components = keep_stride(make(width, weights))
    stages = cut_stages(components, cut)
    heads = [ASPP(c, num_classes) if head == "aspp" else Head(c, num_classes, head_width, head_kernels) for c in channels(stages)]
    return LayerCascade(stages, heads, reading, halo)

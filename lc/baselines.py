"""The systems that the paper compares with (Sec. 4.3, 4.4), under our training and evaluation. Each is a cascade of one stage.

VGG16 and ResNet-101 come from timm, VGG16 with batch norm because nothing here starts from ImageNet weights unless a profile
says so. FCN-8s, SegNet and CRF-RNN label every pixel, the others every 8th. A function returns (stages, heads) for LayerCascade.
"""
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lc.backbone import ASPP, ConvBN, _same_conv

System = tuple[list[nn.Module], list[nn.Module]]
CRF_STRIDE = 4           # the grid of CRF-RNN's messages, so small that the filter can be the full matrix
CRF_XY, CRF_RGB, CRF_NEAR = 67.0, 0.23, 3.0  # pixels; image units after normalisation (13 grey levels); pixels


def _vgg(width: float, weights: str, dilated: bool) -> list[nn.Sequential]:
    from lc.networks import keep_stride, vgg16
    parts = vgg16(width, weights)
    return list((keep_stride(parts) if dilated else parts).values())


def _classifier(inputs: int, width: float, middle: int, kernel: int, dilation: int, num_classes: int) -> nn.Sequential:
    """VGG's fully connected layers as convolutions: fc6, fc7, score."""
    c = max(8, 8 * round(middle * width / 8))
    return nn.Sequential(ConvBN(inputs, c, kernel, dilation=dilation), nn.Dropout(0.5), ConvBN(c, c, 1), nn.Dropout(0.5),
                         nn.Conv2d(c, num_classes, 1))


def _last_channels(part: nn.Sequential) -> int:
    return [m for m in part.modules() if isinstance(m, nn.Conv2d)][-1].out_channels


class FCN8s(nn.Module):
    """Long et al. 2015: VGG16 with scores of pool3, pool4 and fc7, summed at stride 8, bilinear to pixels (theirs begin as such).
    (N, 3, H, W) -> logits (N, K, H, W); with_image appends the image, for a head that needs it."""

    def __init__(self, num_classes: int, width: float, weights: str, with_image: bool = False):
        super().__init__()
        self.parts = nn.ModuleList(_vgg(width, weights, dilated=False))
        self.scores = nn.ModuleList(nn.Conv2d(_last_channels(part), num_classes, 1) for part in self.parts[2:4])
        self.classifier = _classifier(_last_channels(self.parts[4]), width, 4096, 7, 1, num_classes)
        self.with_image = with_image

    def forward(self, image: Tensor) -> Tensor:
        h, w = image.shape[2:]
        x, taps = F.pad(image, (0, -w % 32, 0, -h % 32)), []
        for part in self.parts:
            taps.append(x := part(x))
        x = self.classifier(x)
        for tap, score in zip((taps[3], taps[2]), (self.scores[1], self.scores[0])):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False) + score(tap)
        x = F.interpolate(x, scale_factor=8, mode="bilinear", align_corners=False)[:, :, :h, :w]
        return torch.cat([x, image.to(x.dtype)], 1) if self.with_image else x


class SegNet(nn.Module):
    """Badrinarayanan et al. 2017: VGG16's convolutions and their mirror image; the decoder unpools with the encoder's indices."""

    def __init__(self, num_classes: int, width: float, weights: str):
        super().__init__()
        self.encoder = nn.ModuleList(part[:-1] for part in _vgg(width, weights, dilated=False))
        decoder, below = [], None
        for part in self.encoder:  # group i of the decoder ends with the channels that group i - 1 hands up
            sizes = [m.out_channels for m in part if isinstance(m, nn.Conv2d)]
            ends = [sizes[0] if below is None else below, *sizes[1:]]
            decoder.insert(0, nn.Sequential(*(ConvBN(a, b, 3) for a, b in zip(reversed(sizes), reversed(ends)))))
            below = sizes[-1]
        self.decoder = nn.ModuleList(decoder)
        self.score = _same_conv(self.encoder[0][0].out_channels, num_classes, 3)

    def forward(self, image: Tensor) -> Tensor:
        x, taken = image, []
        for part in self.encoder:
            x = part(x)
            taken.append((x.shape[2:], *F.max_pool2d(x, 2, 2, return_indices=True, ceil_mode=True)))
            x = taken[-1][1]
        for part, (size, _, index) in zip(self.decoder, reversed(taken)):
            x = part(F.max_unpool2d(x, index, 2, 2, output_size=size))
        return self.score(x)


class Context(nn.Sequential):
    """Yu and Koltun 2016: the basic context module, begun as the identity. K channels throughout."""

    def __init__(self, num_classes: int):
        layers = []
        for dilation in (1, 1, 2, 4, 8, 16, 1):
            layers += [_same_conv(num_classes, num_classes, 3, dilation=dilation), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.Conv2d(num_classes, num_classes, 1))
        for layer in list(self)[::2]:
            nn.init.dirac_(layer.weight)
            nn.init.zeros_(layer.bias)


class MeanField(nn.Module):
    """Zheng et al. 2015: a dense CRF as layers, 5 iterations in training and 10 in testing; weights and compatibility are learned.
    (N, K + 3, H, W) logits and image -> (N, K, H, W). The messages are exact sums on a grid of every 4th pixel."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[4.0], [3.0]]).repeat(1, num_classes))  # bilateral, spatial
        self.compatibility = nn.Parameter(torch.eye(num_classes))

    def forward(self, x: Tensor) -> Tensor:
        half = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if half else torch.float32
        with torch.autocast(x.device.type, enabled=False):  # else both kernels are cast in every iteration
            unary, image = x[:, :-3].float(), x[:, -3:].float()
            filters = [(kernel.to(dtype), scale) for kernel, scale in self._filters(F.avg_pool2d(image, CRF_STRIDE, ceil_mode=True))]
            logits = unary
            for _ in range(5 if self.training else 10):
                beliefs = F.avg_pool2d(logits.softmax(1), CRF_STRIDE, ceil_mode=True)
                flat = beliefs.flatten(2).mT  # (N, P, K)
                messages = [w * scale * (kernel @ (scale * flat).to(dtype)).float() for w, (kernel, scale) in zip(self.weight, filters)]
                message = (sum(messages) @ self.compatibility).mT.unflatten(2, beliefs.shape[2:])
                logits = unary + F.interpolate(message, unary.shape[2:], mode="bilinear", align_corners=False)
            return logits

    @staticmethod
    @torch.no_grad()
    def _filters(image: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Bilateral (N, P, P) and spatial (1, P, P) Gaussian kernels, each with the (., P, 1) scale that normalises it symmetrically."""
        n, _, h, w = image.shape
        at = CRF_STRIDE * torch.cartesian_prod(*(torch.arange(side, device=image.device) for side in (h, w))).to(image)[None]
        seen = torch.cat([at.expand(n, -1, -1) / CRF_XY, image.flatten(2).mT / CRF_RGB], 2)
        found = []
        for points in (seen, at / CRF_NEAR):
            points = points - points.mean(1, keepdim=True)
            half, one = points.square().sum(2, keepdim=True) / -2, torch.ones_like(points[..., :1])
            kernel = (torch.cat([points, half, one], 2) @ torch.cat([points, one, half], 2).mT).exp_()  # exp(-|p - q|^2 / 2), in one product
            found.append((kernel, kernel.sum(2, keepdim=True).rsqrt()))
        return found


def deeplab(num_classes: int, width: float, weights: str) -> System:
    """DeepLab with a large field of view (Chen et al. 2015): VGG16 at stride 8, fc6 3x3 with dilation 12."""
    body = nn.Sequential(*_vgg(width, weights, dilated=True))
    return [body], [_classifier(_last_channels(body), width, 1024, 3, 12, num_classes)]


def deeplab_v2(num_classes: int, width: float, weights: str) -> System:
    """DeepLab-v2 (Chen et al. 2016): ResNet-101 at stride 8 and ASPP; CRF and multi-scale testing are studies of their own."""
    from lc.networks import keep_stride, resnet101
    body = nn.Sequential(keep_stride(resnet101(width, weights)))
    return [body], [ASPP(body.layer4[-1].conv3.out_channels, num_classes)]


def dilation(num_classes: int, width: float, weights: str) -> System:
    """Yu and Koltun 2016: a VGG16 front end without its last two poolings, and the context module."""
    parts = _vgg(width, weights, dilated=True)
    parts = [part[:-1] if i >= 3 else part for i, part in enumerate(parts)]
    body = nn.Sequential(*parts)
    front = _classifier(_last_channels(body), width, 4096, 7, 4, num_classes)
    return [body], [nn.Sequential(OrderedDict(front=front, context=Context(num_classes)))]


SYSTEMS = {  # by number of classes, width and weights; CRF-RNN's stage has the parameters of FCN-8s, from whose weights it starts
    "fcn8s": lambda *of: ([FCN8s(*of)], [nn.Identity()]), "segnet": lambda *of: ([SegNet(*of)], [nn.Identity()]), "deeplab": deeplab,
    "deeplab-v2": deeplab_v2, "dilation": dilation, "crf-rnn": lambda *of: ([FCN8s(*of, with_image=True)], [MeanField(of[0])])}

"""A user's own cascade, made ready for inference, says what it said before: whatever is not known to be faster is left as it is."""
import copy
from collections import OrderedDict

import pytest
import torch
from timm.layers import StdConv2d
from torch import nn

from lc.cascade import LayerCascade
from lc.networks import build
from lc.speed.fast import FastStage, prepare

C = 16


def conv(kernel: int = 3, **settings) -> nn.Conv2d:
    return nn.Conv2d(C, C, kernel, padding=kernel // 2, **settings)


class Skips(nn.Sequential):
    """Children in order, and the input added."""

    def forward(self, x):
        return x + super().forward(x)


class NormFirst(nn.Module):
    """Its convolution is defined before the norm that it is called after."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = conv(), nn.BatchNorm2d(C)

    def forward(self, x):
        return self.conv(torch.relu(self.norm(x)))


def shared(part: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(a=conv(), b=part, c=conv(1), d=part))


STAGES = {"a ReLU used twice": lambda: shared(nn.ReLU()), "a convolution used twice": lambda: shared(conv()), "norm first": lambda: nn.Sequential(NormFirst(), conv()),
          "a skip of its own": lambda: Skips(conv(), nn.BatchNorm2d(C), nn.ReLU()), "standardised weights": lambda: nn.Sequential(StdConv2d(C, C, 3, padding=1), nn.BatchNorm2d(C)),
          "a ReLU between": lambda: nn.Sequential(relu := nn.ReLU(), conv(), relu, nn.BatchNorm2d(C)), "a module": NormFirst, "a convolution": conv,
          "as usual": lambda: nn.Sequential(conv(), nn.BatchNorm2d(C), nn.ReLU(), conv(1))}


def cascade(first: nn.Module, second: nn.Module) -> LayerCascade:
    """Two stages with heads, statistics as training leaves them."""
    torch.manual_seed(0)
    model = LayerCascade([first, second], [nn.Conv2d(C, 4, 1), nn.Conv2d(C, 4, 1)])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5), nn.init.normal_(module.bias), module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
    return model.eval()


@torch.no_grad()
def agree(model: LayerCascade, x: torch.Tensor, **close) -> LayerCascade:
    """With every pixel handed on, and with half of them."""
    quick, confidence = prepare(model), model(x, 1.0, depth=1).log_probs.exp().amax(1).flatten().sort().values
    for rho in (1.0, float(confidence[len(confidence) // 2 - 1:][:2].mean())):
        wanted = model(x, rho)
        torch.testing.assert_close(quick(x, rho).log_probs, wanted.log_probs, **close)
        assert wanted.shares[1] == 1 if rho == 1 else 0.4 < wanted.shares[1] < 0.6
    return quick


@pytest.mark.parametrize("made", STAGES.values(), ids=STAGES)
def test_stages_of_your_own(made):
    """On all pixels and on a region; what is a row of known parts is fast, the rest is left."""
    torch.manual_seed(0)
    quick = agree(cascade(nn.Sequential(nn.Conv2d(3, C, 3, padding=1), made()), made()), torch.randn(2, 3, 17, 19), atol=1e-4, rtol=1e-4)
    assert isinstance(quick.stages[1], FastStage) == (type(made()) is nn.Sequential)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype):
    """A network in double or half precision, whose windows are not filtered or not packed."""
    model = cascade(nn.Conv2d(3, C, 3, padding=1), nn.Sequential(STAGES["as usual"]())).to(dtype)
    agree(model, torch.randn(2, 3, 16, 16, dtype=dtype), atol=1e-9 if dtype is torch.float64 else 0.1, rtol=0)


@pytest.mark.parametrize("settings", [{"padding_mode": "reflect"}, {"bias": False}])
def test_wide_convolutions(settings):
    """Wide enough to be filtered, but what it reads outside is not zero; or it has no bias."""
    torch.manual_seed(0)
    wide = nn.Conv2d(3, C, 3, padding=1), nn.Conv2d(C, 192, 1), nn.Conv2d(192, 192, 3, padding=1, **settings), nn.Conv2d(192, C, 1)
    agree(cascade(nn.Sequential(*wide), conv()), torch.randn(1, 3, 16, 16), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_images_stay_as_they_are():
    """Also where the first thing that sees them is a block that works in place."""
    block = build(4, width=0.125, blocks=(1, 1, 1)).stages[1].irnet_b[0].eval()
    channels = block.project.out_channels
    x = torch.randn(1, channels, 8, 8).to(memory_format=torch.channels_last)
    before = x.clone()
    for first in (nn.Identity(), nn.Sequential(), nn.Sequential(nn.Dropout(), copy.deepcopy(block)), nn.Sequential(copy.deepcopy(block))):
        prepare(LayerCascade([first, nn.Sequential(block)], [nn.Conv2d(channels, 4, 1), nn.Conv2d(channels, 4, 1)]).eval())(image=x, rho=1.0)
        assert torch.equal(x, before)


@torch.no_grad()
@pytest.mark.parametrize("kernels", [(3, 3), (3, 1), (1, 3)])
def test_heads_that_read_features(kernels):
    """A head whose first window is wide reads the features that lie outside the region."""
    torch.manual_seed(0)
    model = build(4, width=0.125, blocks=(1, 1, 1), head_width=8, head_kernels=kernels, reading="features").eval()
    agree(model, torch.randn(1, 3, 72, 88), atol=1e-4, rtol=1e-4)

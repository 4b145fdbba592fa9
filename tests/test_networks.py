"""Other networks: timm's, cut into stages by one mechanism, and the systems that the paper compares with."""
from dataclasses import asdict

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from lc import networks
from lc.baselines import CRF_NEAR, CRF_RGB, CRF_STRIDE, CRF_XY, SYSTEMS, MeanField
from lc.config import ModelConfig
from lc.errors import InputError
from lc.experiments import catalogue
from lc.networks import TIMM, build, keep_stride
from lc.paper import published
from lc.train import cascade_loss

ODD = (1, 3, 68, 84)  # no multiple of 8


def full(name: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(TIMM[name][0]())


@pytest.mark.parametrize("name", TIMM)
def test_components_are_all_of_timms_network(name, monkeypatch):
    """Run one after the other, the components give timm's own features (timm's strides and padding), to 1e-5."""
    made = []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: made.append(create(*a, **k).eval()) or made[0])
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        parts = full(name).eval()
        seen = parts.stem[0](image) if name == "inception_resnet_v2" else image
        theirs = made[0].features(seen) if name == "vgg16" else made[0].forward_features(seen)
        torch.testing.assert_close(parts(image), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TIMM)
def test_dilation_replaces_stride(name):
    """A trous: every fourth pixel of the stride-8 network is the stride-32 network's, to 1e-5 of its greatest value."""
    image = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        coarse, fine = (nn.Sequential(keep_stride(TIMM[name][0](), stride)) for stride in (32, 8))
        fine.load_state_dict(coarse.state_dict())
        coarse, fine = coarse.eval()(image), fine.eval()(image)
    assert fine.shape[2:] == (12, 16) and coarse.shape[2:] == (3, 4)
    torch.testing.assert_close(fine[:, :, ::4, ::4], coarse, rtol=1e-5, atol=1e-5 * float(coarse.abs().max()))


def test_dilated_resnet_is_timms():
    """timm can dilate a ResNet itself: the same map, to 1e-5."""
    theirs = timm.create_model("resnet101", output_stride=8).eval()
    parts = networks.resnet101()
    ours = nn.Sequential(keep_stride(parts)).eval()
    state = {("stem." + {"conv1": "0", "bn1": "1"}[k.split(".")[0]] + k[k.index("."):] if k[:3] in ("con", "bn1") else k): v
             for k, v in theirs.state_dict().items() if not k.startswith("fc")}
    ours.load_state_dict(state)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs.forward_features(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name, width", [("vgg16", 0.125), ("resnet101", 0.125), ("inception_resnet_v2", 1.0)])
def test_cascade_on_any_network(name, width):
    """Regions through timm's untouched modules: with everything computed the handed pixels get the dense network's logits;
    with zeros outside the others stay zero, and gradients flow to every stage."""
    torch.manual_seed(0)
    model = build(5, name, width=width, head_width=16).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        dense = model(image, 1.0)
        rho = float(dense.fused[0].exp().amax(1).median())
        model.halo = 99
        exits = model(image, rho)
        handed = exits.handed[1]
        assert 0.2 < handed.float().mean() < 0.8
        torch.testing.assert_close(exits.logits[1].mT.flatten(), dense.logits[1].mT.flatten(), rtol=1e-4, atol=1e-5)
    model.halo = 0
    out = model(image, rho)
    assert (out.logits[1].permute(0, 2, 3, 1)[~handed] == 0).all() and (out.logits[1].permute(0, 2, 3, 1)[handed] != 0).any()
    cascade_loss(out, torch.randint(0, 5, (1, 64, 64)), (1, 2, 3)).backward()
    assert all(any(p.grad is not None and p.grad.abs().sum() > 0 for p in stage.parameters()) for stage in model.stages)


def test_aspp_is_a_sum_of_dilated_convolutions():
    """Every head of DeepLab-v2's kind, on the dense map and on a region."""
    torch.manual_seed(0)
    model = build(4, width=0.125, blocks=(1, 1, 1), head="aspp").eval()
    features = model.stages[0](torch.randn(1, 3, 64, 64))
    by_hand = sum(torch.nn.functional.conv2d(features, b.weight, b.bias, padding=rate, dilation=rate)
                  for b, rate in zip(model.heads[0].branches, (6, 12, 18, 24)))
    torch.testing.assert_close(model.heads[0](features), by_hand)
    assert torch.isfinite(model(torch.randn(1, 3, 64, 64), 0.26).log_probs).all()


@pytest.mark.parametrize("system", SYSTEMS)
def test_system_labels_any_size_and_learns(system):
    """Logits on pixels, or on every 8th; each parameter gets a gradient; the loss falls when one image is learnt."""
    torch.manual_seed(0)
    model = build(5, system, width=0.125).train()
    image = torch.randn(2, *ODD[1:])
    label = (image[:, 0] > 0).long() + 2 * (torch.arange(ODD[3]) > 40)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(6):
        out = model(image, 1.0)
        loss = cascade_loss(out, label, (1,))
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        missing = [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
        assert not missing
        optimizer.step()
    pixels = system in ("fcn8s", "segnet", "crf-rnn")
    assert out.log_probs.shape == ((2, 5, *ODD[2:]) if pixels else (2, 5, 9, 11))
    assert losses[-1] < 0.97 * losses[0]


@pytest.mark.parametrize("system, row", [("fcn8s", "CRF-RNN"), ("crf-rnn", "CRF-RNN"), ("deeplab-v2", "DeepLab-v2")])
def test_parameters_are_those_of_table_6(system, row):
    """Full width: within 2 % of the parameters that the paper prints (CRF-RNN is FCN-8s and a few hundred numbers)."""
    with torch.device("meta"):
        millions = sum(p.numel() for p in build(21, system).parameters()) / 1e6
    assert abs(millions / published("6", row, "params").value - 1) < 0.02


def test_mean_field():
    """Without weights the unary stays; with them a lone wrong pixel takes its neighbours' label, but not across a colour edge."""
    head = MeanField(2).eval()
    image = torch.zeros(1, 3, 32, 32)
    image[..., 16:] = 3.0
    logits = torch.zeros(1, 2, 32, 32)
    logits[:, 0, :, :16], logits[:, 1, :, 16:] = 3.0, 3.0
    logits[:, :, 8, 8] = torch.tensor([0.0, 1.0])
    x = torch.cat([logits, image], 1)
    with torch.no_grad():
        smoothed = head(x).argmax(1)[0]
        head.weight.zero_()
        torch.testing.assert_close(head(x), logits)
    assert (smoothed[:, :16] == 0).all() and (smoothed[:, 16:] == 1).all()


def test_crf_rnn_starts_from_fcn8s():
    """The run of CRF-RNN can load what the run of FCN-8s leaves; only its head is new."""
    entries = catalogue("smoke")
    run = entries["crf-rnn"].run
    assert run.start == entries["fcn8s"].run
    fcn, crf = (build(8, **asdict(r.model)).state_dict() for r in (run.start, run))
    assert set(fcn) < set(crf) and all(name.startswith("heads.") for name in set(crf) - set(fcn))


def test_weights(tmp_path, monkeypatch):
    """ImageNet weights from a file, through timm; no file, no network, a narrow Inception-ResNet and IRNet are clear errors."""
    saved = timm.create_model("resnet101")
    torch.save(saved.state_dict(), tmp_path / "resnet101.pth")
    parts = networks.resnet101(weights=str(tmp_path / "resnet101.pth"))
    torch.testing.assert_close(parts["layer3"][5].conv2.weight, saved.layer3[5].conv2.weight)
    with pytest.raises(InputError, match="give imagenet, or a .safetensors or .pth file"):
        networks.vgg16(weights="nowhere.pth")
    with pytest.raises(InputError, match="model.width must be 1, got 0.5"):
        networks.inception_resnet_v2(0.5)
    with pytest.raises(InputError, match="use model.network=inception_resnet_v2"):
        build(3, **asdict(ModelConfig(weights="imagenet")))
    with pytest.raises(InputError, match="neither IRNet nor a network of another width .* or model.width=1"):
        build(3, "vgg16", "imagenet", 0.5)
    for wrong in ({"num_classes": 3, "network": "foo"}, {"num_classes": 0}):
        with pytest.raises(InputError, match="a network is one of irnet, .* with 1 class or more"):
            build(**wrong)

    def offline(*args, **kwargs):
        raise OSError("no route to host")
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match="imagenet weights of timm's resnet101 cannot be had .no route to host.*model.weights=FILE"):
        networks.resnet101(weights="imagenet")


def test_mean_field_against_all_pairs():
    """CRF-RNN's ten iterations against plain sums over all pairs of grid points, in double precision; half precision stays close."""
    torch.manual_seed(0)
    layer, x = MeanField(5).eval(), torch.randn(2, 8, 24, 32)
    unary, image = x[:, :-3].double(), F.avg_pool2d(x[:, -3:].double(), CRF_STRIDE)
    at = CRF_STRIDE * torch.stack(torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij"), -1).reshape(-1, 2).double()
    apart = lambda points: (points[:, None] - points).square().sum(-1) / 2
    logits = unary.clone()
    for n in range(2):
        kernels = [torch.exp(-apart(at / CRF_XY) - apart(image[n].flatten(1).T / CRF_RGB)), torch.exp(-apart(at / CRF_NEAR))]
        kernels = [k / (k.sum(0, keepdim=True) * k.sum(1, keepdim=True)).sqrt() for k in kernels]
        for _ in range(10):
            beliefs = F.avg_pool2d(logits[n].softmax(0)[None], CRF_STRIDE)[0].flatten(1)
            message = (4 * beliefs @ kernels[0] + 3 * beliefs @ kernels[1]).view(1, 5, 6, 8)
            logits[n] = unary[n] + F.interpolate(message, (24, 32), mode="bilinear", align_corners=False)[0]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=False):
        torch.testing.assert_close(layer(x).double(), logits, rtol=1e-4, atol=1e-4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert (layer(x) - logits).abs().max() < 0.1

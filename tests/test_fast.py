"""The cascade prepared for inference says what the original says; benches and videos that rest on it."""
import copy
import json
import re
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import DropPath
from timm.models.resnet import Bottleneck
from torch import nn

from lc import experiments, predict, winograd
from lc.__main__ import main
from lc.backbone import Mixed
from lc.config import ModelConfig
from lc.errors import InputError
from lc.networks import build
from lc.region import Region
from lc.region_conv import READINGS, RegionTensor
from lc.report import speedups
from lc.speed import bench, cost, exported, opponents, timing, trained
from lc.speed import fast as fast_module
from lc.speed.fast import FastMixed, FastResidual, prepare


@pytest.fixture(scope="module")
def model():
    """A small cascade with statistics and biases that are not at their start values."""
    torch.manual_seed(0)
    return seasoned(build(4, width=0.125, blocks=(1, 2, 2), head_width=8))


def seasoned(cascade):
    """As training would leave it."""
    for module in cascade.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5), torch.nn.init.normal_(module.bias, std=0.3)
            module.running_mean.normal_(std=0.2), module.running_var.uniform_(0.5, 2)
    for head in cascade.heads:
        torch.nn.init.normal_(head.classify.weight, std=0.5)
    return cascade.eval()


@torch.no_grad()
def between(model, x, share: float) -> float:
    """A rho under which that share of the cells stays: half way between two cells, so that rounding moves none of them across it."""
    confidence = model(x, 1.0, depth=1).log_probs.exp().amax(1).flatten().sort().values
    return float(confidence[(at := int(share * len(confidence))) - 1:at + 1].mean())


@torch.no_grad()
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("quantile", [None, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("onednn, reading, wide", [(True, "zero", 192), (False, "zero", 192), (False, "zero", 1), (True, "features", 192), (True, "features", 1)])
def test_same_probabilities_and_decisions(model, images, quantile, onednn, reading, wide, monkeypatch):
    """Dense (rho = 1) and on regions of several sizes, with oneDNN and without, reading zeros or features (also by Winograd's filtering); the original stays as it was."""
    monkeypatch.setattr(winograd, "ONEDNN", onednn and winograd.ONEDNN)
    monkeypatch.setattr(winograd, "WIDE", dict.fromkeys(winograd.WIDE, wide))
    monkeypatch.setattr(winograd, "PAYS", 999 if wide == 1 else winograd.PAYS)
    monkeypatch.setattr(model, "reading", reading)
    x = torch.randn(images, 3, 72, 88, generator=torch.Generator().manual_seed(images))
    rho = 1.0 if quantile is None else between(model, x, quantile)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    expected, found = model(x, rho), prepare(model)(x, rho)
    if quantile is not None:
        assert 0 < expected.shares[2] < 1
    torch.testing.assert_close(found.log_probs.exp(), expected.log_probs.exp(), atol=2e-5, rtol=1e-4)
    assert torch.equal(found.decided, expected.decided)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


@torch.no_grad()
def test_one_prepared_cascade_takes_images_of_several_sizes(model):
    """Packings made for one size serve for the next; additions in place give what the modules give."""
    quick = prepare(model)
    for seed, size in enumerate([(72, 88), (40, 120), (72, 88)]):
        x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed))
        for rho in (1.0, between(model, x, 0.5)):
            torch.testing.assert_close(quick(x, rho).log_probs.exp(), model(x, rho).log_probs.exp(), atol=2e-5, rtol=1e-4)


def test_winograd_is_for_cpus(model):
    """Elsewhere its weights would be of no use, and the first stage's blocks stay dense modules."""
    first = {device: fast_module._dense(fast_module.fold(model.stages[0]).to(device)) for device in ("cpu", "meta")}
    assert [any(isinstance(m, FastResidual) for m in stage.modules()) for stage in first.values()] == [True, False]
    wide = {device: nn.Conv2d(256, 256, 3, padding=1, device=device) for device in ("cpu", "meta")}
    assert [fast_module.winograd.suits(conv.weight) for conv in (*wide.values(), copy.deepcopy(wide["cpu"]).half())] == [True, False, False]


def test_sums_stay_on_their_device():
    """Where each set of rows begins is said on the device of the rows: a GPU, of which this machine has a stand-in without values."""
    rows, factors = torch.zeros(2, 3, dtype=torch.long, device="meta"), torch.ones(1, 3, device="meta")
    sums = winograd.Sums(rows, factors, 5)
    assert sums.rows.device == sums.factors.device == sums.first.device == rows.device


@pytest.mark.parametrize("taps, size", [(1, 1), (3, 4), (7, 4)])
def test_transforms_filter(taps, size):
    """Lavin and Gray's identity, in float64."""
    inputs, kernel, outputs = winograd.transforms(taps, size)
    x, k = torch.randn(inputs.shape[1], dtype=torch.float64), torch.randn(taps, dtype=torch.float64)
    assert outputs.shape == (size, len(x)) == (size, size + taps - 1)
    torch.testing.assert_close(outputs @ ((kernel @ k) * (inputs @ x)), x.unfold(0, taps, 1) @ k)


@pytest.mark.parametrize("run, count", [(0, 0), (1, 1), (3, 1), (4, 1), (5, 2), (9, 3)])
@pytest.mark.parametrize("kernel, dilation", [((1, 7), (1, 2)), ((3, 1), (3, 1)), ((3, 3), (1, 1))])
def test_tiles_of_a_run(run, count, kernel, dilation):
    """Four pixels of a line a tile. Each pixel is computed by one tile; empty ones fill up an image of the grouped convolution."""
    mask = torch.zeros(1, 40, 40, dtype=torch.bool)
    at = 5 + torch.arange(run) * max(dilation)
    mask[(0, at, 9) if kernel[1] == 1 else (0, 9, at)] = True
    tiles = winograd.Tiles(region := Region(mask), region, kernel, dilation, torch.float32)
    computed = tiles.computes[(tiles.computes < region.rows).any(1)]
    assert len(computed) == count and len(tiles.reads) == len(tiles.computes) == (winograd.IMAGE if run else 0)
    assert sorted(row for row in computed.flatten().tolist() if row < region.rows) == list(range(run))


@torch.no_grad()
@pytest.mark.parametrize("kernel", winograd.WIDE)
def test_winograd_only_where_pixels_lie_together(kernel, monkeypatch):
    """On scattered pixels most of a tile would be thrown away: windows are read instead, and the result is the same."""
    conv = nn.Conv2d(256, 256, kernel, padding=[k // 2 for k in kernel]).requires_grad_(False)
    fast, x = fast_module.FastConv(conv), torch.randn(1, 256, 32, 32, generator=torch.Generator().manual_seed(0))
    scattered, together = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    scattered[:, ::5, ::5], together[:, :24, :24] = True, True
    for mask, pays in ((scattered, False), (together, True)):
        region = Region(mask)
        with monkeypatch.context() as patch:
            filtered = []
            patch.setattr(winograd.Tiles, "filter", lambda *args, plain=winograd.Tiles.filter: filtered.append(1) or plain(*args))
            found = fast.on_rows(region.gather(x * mask[:, None]), region)
        assert bool(filtered) == pays
        torch.testing.assert_close(found, region.gather(conv(x * mask[:, None]).relu()), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_empty_and_repeated(model):
    """An empty region is ordinary; a second call gives the same bytes, so nothing is written into what is kept."""
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(9))
    fast = prepare(model)
    assert (fast(x, 0.0).decided == 1).all()
    first = fast(x, 1.0).log_probs.clone()
    assert torch.equal(first, fast(x, 1.0).log_probs)


@torch.no_grad()
@pytest.mark.parametrize("name, reading, halo", [("irnet", "zero", 0), ("irnet", "zero", 1), ("irnet", "features", 0), ("cut", "features", 0), ("vgg16", "zero", 0), ("resnet101", "zero", 0)])
def test_exported(model, name, reading, halo):
    """The cascade as one graph in ONNX Runtime: the same on regions of several sizes, dense, empty, on images of another size and number, stopped early, and with
    the pixels given. cut: stage 2 ends with residual sums, which carry on what lies outside."""
    torch.manual_seed(0)
    cascade = copy.deepcopy(model) if name == "irnet" else other(name, 0.125) if name != "cut" else \
        seasoned(build(4, width=0.125, blocks=(1, 1, 1), head_width=8, cut=(3, 4)))
    cascade.reading, cascade.halo = reading, halo
    made = exported.Exported(cascade)
    for images, size in ((1, (72, 88)), (2, (64, 64))):
        x = torch.randn(images, 3, *size, generator=torch.Generator().manual_seed(images))
        for rho, depth in ((1.0, None), (between(cascade, x, 0.5), None), (between(cascade, x, 0.2), None), (between(cascade, x, 0.2), 2), (0.0, None)):
            same(made(x, rho, depth), cascade(x, rho, depth))
        masks = [timing.blob(share, (8, 8), 0, 2) for share in (0.6, 0.3)]
    same(made(x, masks=masks), cascade(x, masks=masks))


@torch.no_grad()
def test_exported_sends_everybody_on_at_rho_1(model):
    """A probability of exactly 1 does not exit there, and does at any rho below."""
    cascade = copy.deepcopy(model)
    cascade.heads[0].classify.bias[0] = 1000.0
    made, x = exported.Exported(cascade), torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert (made(x, 1.0).decided == 3).all() and (made(x, 0.999).decided == 1).all()


def same(found, wanted) -> None:
    """The two outputs of a cascade agree."""
    torch.testing.assert_close(found.log_probs.exp(), wanted.log_probs.exp(), atol=2e-5, rtol=1e-4)
    assert torch.equal(found.decided, wanted.decided) and all(map(torch.equal, found.handed, wanted.handed)) and found.shares == wanted.shares


def test_what_cannot_be_exported_says_so(model):
    """A reading without a fast form, and parts without a graph, alone or in a row."""
    cascade = copy.deepcopy(model)
    cascade.reading = "interpolated"
    with pytest.raises(ValueError, match="no graph for Conv2d, Dropout, Mixed, .* with reading 'interpolated': call the cascade itself"):
        exported.Exported(cascade)
    cascade.reading, cascade.heads[1], cascade.heads[2] = "zero", nn.Sequential(nn.Sigmoid()), nn.Conv2d(256, 256, 1)
    with pytest.raises(ValueError, match="no graph for Conv2d, Sigmoid with reading 'zero': call the cascade itself"):
        exported.Exported(cascade)


def test_every_block_is_fast(model):
    """No batch norm is left, and IRNet-A, -B and -C run in the new form."""
    fast = prepare(model)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fast.modules())
    assert sum(isinstance(m, FastResidual) for m in fast.modules()) == 5 and isinstance(fast.stages[1].reduction_b, FastMixed) and all(not p.requires_grad for p in fast.parameters())


def other(name: str, width: float):
    """A cascade on one of timm's networks, small, with statistics and biases that are not at their start values."""
    torch.manual_seed(0)
    cascade = seasoned(build(4, network=name, width=width, head_width=8))
    with torch.no_grad():
        for head, logits in zip(cascade.heads, cascade(torch.randn(1, 3, 48, 56), 1.0).logits):
            head.classify.weight /= logits.std()  # or confidences are all 1
    return cascade


OTHERS = [("vgg16", 0.125), ("resnet101", 0.125), ("inception_resnet_v2", 1.0)]


@torch.no_grad()
@pytest.mark.parametrize("wide", [192, 1])
@pytest.mark.parametrize("name, width", OTHERS)
def test_other_networks(name, width, wide, monkeypatch):
    """One mechanism for every network: nothing but fast parts is left in the later stages, and the cascade says the same; also where all 3x3
    convolutions are Winograd's."""
    monkeypatch.setattr(winograd, "WIDE", dict.fromkeys(winograd.WIDE, wide))
    monkeypatch.setattr(winograd, "PAYS", 999 if wide == 1 else winograd.PAYS)
    filtered, model = [], other(name, width)
    monkeypatch.setattr(winograd.Tiles, "filter", lambda *args, plain=winograd.Tiles.filter: filtered.append(1) or plain(*args))
    x, quick = torch.randn(1, 3, 48, 56, generator=torch.Generator().manual_seed(1)), prepare(model)
    expected = model(x, rho := between(model, x, 0.6))
    parts = [part for stage in quick.stages[1:] for item in stage for part in (item if isinstance(item, nn.Sequential) else [item])]
    assert parts and all(isinstance(part, fast_module.OnRows) for part in parts) and 0 < expected.shares[1] < 1
    torch.testing.assert_close(quick(x, rho).log_probs.exp(), expected.log_probs.exp(), atol=2e-5, rtol=1e-4)
    assert (len(filtered) > 2) == (wide == 1)
    torch.testing.assert_close(quick(x, 1.0).log_probs.exp(), model(x, 1.0).log_probs.exp(), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_winograd_in_every_stage(model, monkeypatch):
    """IRNet's wide convolutions, dense and on regions, for a batch."""
    monkeypatch.setattr(winograd, "WIDE", dict.fromkeys(winograd.WIDE, 8))
    x, quick = torch.randn(2, 3, 72, 88, generator=torch.Generator().manual_seed(4)), prepare(model)
    for stage in quick.stages[:2]:
        assert len([part for part in stage.modules() if getattr(part, "filtered", None) is not None]) > 2
    monkeypatch.setattr(winograd, "PAYS", 99)
    for rho in (1.0, between(model, x, 0.4)):
        torch.testing.assert_close(quick(x, rho).log_probs.exp(), model(x, rho).log_probs.exp(), atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kernel", winograd.WIDE)
@pytest.mark.parametrize("dilation", [(1, 1), (3, 2)])
@pytest.mark.parametrize("size", [(9, 14), (16, 16), (5, 3)])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("padded", [False, True])
def test_winograd_is_the_convolution(kernel, dilation, size, share, padded, monkeypatch):
    """On regions of a batch, empty and full ones included, and sides that are no multiple of a tile."""
    monkeypatch.setattr(winograd, "WIDE", dict.fromkeys(winograd.WIDE, 1)), monkeypatch.setattr(winograd, "PAYS", 999)
    draw = torch.Generator().manual_seed(0)
    region = Region(torch.rand(2, *size, generator=draw) <= share, padded) if share else Region(torch.zeros(2, *size, dtype=torch.bool), padded)
    x = torch.randn(2, 5, *size, generator=draw) * region.mask[:, None]
    conv = nn.Conv2d(5, 7, kernel, padding=[d * (k // 2) for d, k in zip(dilation, kernel)], dilation=dilation).requires_grad_(False)
    for relu, onednn in ((True, winograd.ONEDNN), (False, False)):
        monkeypatch.setattr(winograd, "ONEDNN", onednn)
        rows, expected = region.gather(x), conv(x).relu() if relu else conv(x)
        rows[len(region):] = 7  # behind P lies anything
        if share:
            monkeypatch.setattr(fast_module, "Product", lambda _, bias, relu: SimpleNamespace(bias=bias, relu=relu))  # no windows
        fast = fast_module.FastConv(conv, relu)
        found = fast.on_rows(rows, region)
        assert found.shape == (region.rows, 7) and fast.filtered.is_mkldnn == onednn
        torch.testing.assert_close(found[:len(region)], region.gather(expected)[:len(region)], atol=2e-5, rtol=1e-4)


def test_a_convolution_off_the_grid_stays_as_it_is():
    """What a region cannot compute is not made fast, so that its error comes; ReLU goes with the convolution before it only."""
    parts = [nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1), nn.MaxPool2d(2)]
    assert [type(part).__name__ for part in fast_module.quick(nn.Sequential(*parts))] == ["FastConv", "Conv2d", "ReLU", "Conv2d", "FastConv", "MaxPool2d"]
    assert [type(part).__name__ for part in fast_module.quick(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1)))] == ["ReLU", "FastConv"]
    blocks = [Mixed(8, [[(8, 1)], [(8, 1), (8, 3)]], stride=stride) for stride in (1, 2)]
    blocks += [Bottleneck(16, 4, **settings) for settings in ({"drop_path": DropPath(0.1)}, {"cardinality": 2, "base_width": 32}, {"act_layer": nn.SiLU}, {"norm_layer": lambda c, **_: nn.GroupNorm(2, c)}, {"norm_layer": lambda c, **_: nn.Identity()},
                                                              {"downsample": nn.Conv2d(16, 16, 3, padding=1)})]
    assert [type(fast_module.quick(fast_module.fold(block))) for block in blocks] == [FastMixed, Mixed, FastResidual, *[Bottleneck] * 5]


def test_blobs_have_the_share_they_are_asked_for():
    """Nested for one seed, so that a later stage's region lies inside the earlier one's."""
    wide, narrow = (timing.blob(share, (64, 64), 0) for share in (0.77, 0.25))
    assert wide.float().mean().item() == pytest.approx(0.77, abs=0.001) and not (narrow & ~wide).any() and timing.blob(1.0, (8, 8), 0).all()


def test_the_fastest_dense_form_is_the_opponent():
    """A slow dense form flatters nobody; a noisy machine says so, whichever side shook."""
    steady = lambda value: np.full(8, float(value))
    row = timing.compare({"folded": steady(30), "OpenVINO": steady(20), "region": steady(10)}, ideal=2.5)
    assert (row["dense_form"], row["speedup"], row["ratio"]) == ("OpenVINO", 2, 0.8) and row["forms_ms"] == {"folded": 30, "OpenVINO": 20, "region": 10}
    with pytest.raises(InputError, match="too noisy to tell: the dense side's quartiles"):
        timing.compare({"folded": np.linspace(10, 40, 8), "region": steady(10)}, ideal=2)
    with pytest.raises(InputError, match="too noisy to tell: the speed-up's quartiles are 0.277 and 0.542 x"):
        timing.compare({"folded": steady(10), "region": np.linspace(10, 45, 8)}, ideal=2)


def test_a_busy_machine_is_no_place_to_time(monkeypatch):
    """Other processes' use of the cores is measured while the contestants run."""
    calls = {"region": lambda: time.sleep(0.01)}
    monkeypatch.setattr(timing, "BUSY", float("inf"))
    assert len(timing.undisturbed(calls, 3, torch.device("cpu"))["region"]) == 3
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        monkeypatch.setattr(timing, "BUSY", 0.05)
        with pytest.raises(InputError, match="too noisy to tell: other processes used .* 0.05 allowed"):
            timing.undisturbed(calls, 100, torch.device("cpu"))
        timing.undisturbed(calls, 3, torch.device("cpu"))  # too short for a clock that ticks every 10 ms
    finally:
        other.kill()


@torch.no_grad()
def test_given_masks_are_what_is_computed(model):
    """The same for the plain and the prepared cascade: these pixels reach stages 2 and 3, one after the other, call after call."""
    image = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(2))
    masks = [timing.blob(share, (16, 16), 0) for share in (0.6, 0.3)]
    plain, fast, again = (m(image, 0.5, masks=masks) for m in (model, prepare(model), model))
    assert torch.equal(plain.handed[1], masks[0]) and torch.equal(fast.handed[2], masks[1]) and torch.equal(again.handed[2], masks[1])
    torch.testing.assert_close(plain.log_probs.exp(), fast.log_probs.exp(), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_opponents(model, monkeypatch):
    """Those that run say what the module says; those that cannot are named with the reason; one that is wrong stops the bench."""
    def missing(module, x):
        import a_runtime_that_is_not_here  # noqa: F401
    def broken(module, x):
        raise RuntimeError("no C++ compiler\nand more")
    assert opponents.ready({"traced": lambda: {}["a form this release lacks"]}) == ({}, {"traced": "'a form this release lacks'"})
    monkeypatch.setattr(opponents, "_openvino", missing), monkeypatch.setattr(opponents, "_compiled", broken)
    module, x = nn.Sequential(*fast_module.fold(model).stages), torch.randn(1, 3, 64, 64)
    calls, absent = opponents.dense_forms(module, x)
    assert absent["OpenVINO"] == "not installed (a_runtime_that_is_not_here)" and absent["torch.compile"] == "no C++ compiler"
    assert set(calls) | set(absent) == {"folded", "torch.compile", "ONNX Runtime", "OpenVINO"}
    assert all(opponents.difference(call, nn.Sequential(*model.stages)(x), name) < 1e-4 for name, call in calls.items())
    with pytest.raises(RuntimeError, match="folded is off by .* 0.0001 allowed for torch.float32"):
        opponents.difference(calls["folded"], 1.01 * module(x), "folded")
    assert 0.005 < opponents.difference(calls["folded"], 1.01 * module(x), "folded", torch.bfloat16) < 0.02, "log-probabilities of a network in half precision are float32"


def test_onnx_runtime_sleeps_between_calls():
    """Its threads do not spin behind a call, where they would slow the contestant that comes next (results/NOTES.md)."""
    x = torch.randn(1, 64, 128, 128)
    call = opponents.session(nn.Conv2d(64, 64, 3), (x,), ["x"])
    call(x)
    start = time.process_time()
    time.sleep(0.05)
    assert time.process_time() - start < 0.02


@torch.no_grad()
@pytest.mark.parametrize("stage, name", [(1, "irnet_b"), (2, "irnet_c")])
def test_with_spconv(model, one_thread, stage, name):
    """spconv computes what the region side computes: two blocks, biases and dilations included, on two images."""
    pytest.importorskip("spconv.pytorch", reason="spconv has no wheel for this platform")
    blocks = fast_module.fold(getattr(model.stages[stage], name))
    x, mask = torch.randn(2, blocks[0].project.out_channels, 9, 11), torch.rand(2, 9, 11) < 0.6
    torch.testing.assert_close(opponents.with_spconv(blocks, x)(mask), blocks(RegionTensor.select(x, Region(mask))).rows, rtol=1e-4, atol=1e-5)


def test_peak_memory():
    """b and c, then c and d, live at once."""
    a = torch.zeros(1000, 250)
    def call():
        b = a + 1
        c = b + 1
        del b
        return c + 1
    assert cost.peak_bytes(call, torch.device("cpu")) == pytest.approx(2e6, rel=0.05)
    kept = []
    cost.peak_bytes(lambda: kept.append(torch.zeros(1000, 500)), torch.device("cpu"))
    assert cost.peak_bytes(call, torch.device("cpu")) == pytest.approx(2e6, rel=0.05), "what an earlier call kept is not counted"


@pytest.fixture
def unhurried(monkeypatch):
    """Benches whose times mean nothing: a busy machine is not the test's matter, nor is compiling."""
    def compiler(module, x):
        raise RuntimeError("left out in tests")
    monkeypatch.setattr(timing, "NOISY", float("inf")), monkeypatch.setattr(timing, "BUSY", float("inf")), monkeypatch.setattr(bench, "SHARES", (1.0, 0.5)), monkeypatch.setattr(opponents, "_compiled", compiler)


SMALL = {"width": 0.125, "blocks": (1, 1, 1), "head_width": 16}


def test_bench_region(unhurried, tmp_path):
    """A row per layer and share; every form agrees with the plain blocks; the parts of the gap are measured."""
    values = json.loads(bench.region(tmp_path / "x.json", repeats=1, settings=[(torch.float32, 1, (128, 128))], chain=1, width=0.125).read_text())
    assert [(row["layer"], round(row["active"], 1), row["ideal"]) for row in values["rows"]] == [(n, s, 1 / s) for n in ("irnet_b", "irnet_c") for s in (1, 0.5)]
    for row in values["rows"]:
        assert {"folded", "all active", "region"} <= set(row["forms_ms"]) and max(row["differences"].values()) < 1e-4 and set(row["gap"]) == {"all", "index", "gathering", "calls"}
    assert values["absent"]["torch.compile"] == "left out in tests" and values["kind"] == "region" and values["threads"] >= 1


def test_cut_off_bench_goes_on(tmp_path):
    """What was timed is kept for the next call of the same code and values, and for no other; a finished file is timed anew."""
    settings, timed, cut = [(dtype, 2, (8, 16)) for dtype in (torch.float32, torch.bfloat16, torch.float16)], [], [torch.bfloat16]
    def rows_of(dtype, batch, size):
        if dtype in cut:
            raise KeyboardInterrupt
        timed.append(str(dtype)[6:])
        return [{"dtype": timed[-1], "batch": batch, "size": size}], {timed[-1]: "no"}
    def call(**values):
        return json.loads(timing.by_setting("region", timing.CPU, settings, rows_of, tmp_path / "x.json", **values).read_text())
    with pytest.raises(KeyboardInterrupt):
        call(repeats=3)
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["left"] == ["bfloat16, batch 2, 8x16", "float16, batch 2, 8x16"] and len(found["rows"]) == 1 and "bfloat16, batch 2, 8x16 (cut off)" in cost.absentees(found)
    cut.clear()
    found = call(repeats=3)
    assert timed == ["float32", "bfloat16", "float16"] and [row["dtype"] for row in found["rows"]] == timed and found["dtype"] == "float32, bfloat16, float16"
    assert "left" not in found and set(found["absent"]) == set(timed)
    call(repeats=3)
    assert len(timed) == 6
    cut.append(torch.float16)
    with pytest.raises(KeyboardInterrupt):
        call(repeats=3)
    cut.clear(), call(repeats=4)
    assert len(timed) == 8 + 3


@pytest.mark.parametrize("error", [InputError("too noisy to tell"), torch.OutOfMemoryError("no memory")])
def test_a_setting_that_fails_costs_no_other(tmp_path, error):
    """The others are timed and kept, then what failed is told; the next call does that alone. Without any row there is no file."""
    settings, timed, bad = [(dtype, 2, (8, 16)) for dtype in (torch.float32, torch.bfloat16)], [], [torch.float32, torch.bfloat16]
    def rows_of(dtype, batch, size):
        if dtype in bad:
            raise error
        timed.append(str(dtype)[6:])
        return [{"dtype": timed[-1], "batch": batch, "size": size}], {}
    call = lambda: timing.by_setting("region", timing.CPU, settings, rows_of, tmp_path / "x.json", repeats=3)
    with pytest.raises(InputError, match=f"float32, batch 2, 8x16: {error}; bfloat16, batch 2, 8x16: {error}"):
        call()
    assert not (tmp_path / "x.json").exists()
    bad.pop()
    with pytest.raises(InputError, match=f"^float32, batch 2, 8x16: {error}$"):
        call()
    assert json.loads((tmp_path / "x.json").read_text())["left"] == ["float32, batch 2, 8x16"] and timed == ["bfloat16"]
    bad.clear(), call()
    assert timed == ["bfloat16", "float32"] and "left" not in json.loads((tmp_path / "x.json").read_text())


def test_bench_of_several_processes(house, tmp_path, monkeypatch, capsys):
    """Medians over processes, the dense form that is fastest by them, and each process's speed-up over it; a noisy process is begun again, not for ever.
    A call goes on with the processes that another of the same code and arguments kept before it was cut off; processes that differ too much are not
    kept."""
    said, asked, code = [], [], []
    def run(command, **_):
        asked.append(command)
        times = said.pop(0)
        if isinstance(times, str):
            return mock.Mock(returncode=2, stderr=f"UserWarning: a thing\nlc: {times}\n")
        if times is None:
            raise KeyboardInterrupt
        row = {"layer": "x", "batch": 1, "gap": {"calls": times[2] / 2}, "stage_ms": [times[0]], **timing.compare(dict(zip(("folded", "all active", "region"), (np.array([t]) for t in times))), 2.5)}
        Path(command[-1]).write_text(json.dumps({"kind": "network", "source_hash": code.pop() if code else "0123456789", "commit": "c", "rows": [row]}))
        return mock.Mock(returncode=0)
    monkeypatch.setattr(timing, "subprocess", mock.Mock(run=run)), monkeypatch.setattr(timing, "NOISY", float("inf"))
    def call(*times):
        said[:] = times
        return json.loads(timing.pooled(["network", "--device=cpu"], 3, timing.CPU, tmp_path / "x.json").read_text())
    noisy, rounds = "this machine is too noisy to tell", [(9.0, 10.0, 5.0), (12.0, 10.0, 4.0), (12.0, 11.0, 5.0)]
    found = call(rounds[0], noisy, *rounds[1:])
    assert capsys.readouterr().out == f"process 1, 1 of 3 kept: done\nprocess 2, 1 of 3 kept: {noisy}\nprocess 3, 2 of 3 kept: done\nprocess 4, 3 of 3 kept: done\n"
    assert asked[0][3:-1] == ["bench", "network", "--device=cpu", "--part", "--json"] and {key: found[key] for key in ("kind", "commit", "processes", "refused")} == {"kind": "network", "commit": "c", "processes": 3, "refused": 1}
    row = found["rows"][0]
    assert (row["dense_form"], row["dense_ms"], row["region_ms"], row["speedups"], row["speedup"]) == ("all active", 10, 5, [2, 2.5, 2.2], 2.2)
    assert row["ratio"] == pytest.approx(0.88) and row["gap"] == {"calls": 2.5} and row["stage_ms"] == [12] and row["layer"] == "x" and row["batch"] == 1
    assert row["speedup_low"] == pytest.approx(2.1) and row["speedup_high"] == pytest.approx(2.35)
    with pytest.raises(KeyboardInterrupt):
        call(*rounds[:2], None)
    parts = next((house / "build" / "bench").iterdir())
    (parts / "2.json").write_text(json.dumps({"left": ["a setting that a process which was cut off did not come to"], "rows": []}))
    with pytest.raises(InputError, match="^no such option$"):
        said.append("no such option"), timing.pooled(["network", "--device=cpu", "--repeats=2"], 3, timing.CPU, None)
    assert call(rounds[2])["rows"] == found["rows"] and said == []
    with pytest.raises(InputError, match=f"^{noisy}$"):
        call(noisy, rounds[0], noisy, *rounds[1:])
    assert call(*rounds[1:])["rows"] == found["rows"] and said == []
    with pytest.raises(InputError, match="^no such device$"):
        call("no such device")
    monkeypatch.setattr(timing, "NOISY", 0.06)
    with pytest.raises(InputError, match="the dense side's quartiles are 10 and 15 ms"):
        call((30.0, 10.0, 5.0), (30.0, 10.0, 5.0), (30.0, 20.0, 5.0))
    monkeypatch.setattr(timing, "NOISY", float("inf"))
    code[:] = ["another", "0123456789"]
    with pytest.raises(InputError, match="the code changed while it was timed"):
        call(*rounds)
    assert call(*rounds[1:])["rows"] == found["rows"] and said == []


def test_a_file_of_several_settings_is_shown_by_setting(house):
    """An entry for each, which says where it was timed; a file whose rows name no setting has one."""
    folder = house / "results" / "bench"
    folder.mkdir(parents=True)
    rows = [{"dtype": dtype, "batch": 1, "size": [8, 16], "rho": rho} for dtype in ("bfloat16", "float16") for rho in (0.985, 0.8)]
    (folder / "network-a-gpu.json").write_text(json.dumps({"kind": "network", "device": "a GPU", "rows": rows}))
    (folder / "training-a-gpu.json").write_text(json.dumps({"kind": "training", "device": "a GPU", "dtype": "bfloat16", "batch": 2, "size": [1, 1], "rows": [{"layer": "whole step"}]}))
    found = speedups.speed_files("network")
    assert [(bench["where"], bench["rows"]) for bench in found] == [("a GPU, bfloat16, batch 1, 8x16", rows[:2]), ("a GPU, float16, batch 1, 8x16", rows[2:])]
    assert [bench["where"] for bench in speedups.speed_files("training")] == ["a GPU, bfloat16, batch 2, 1x1"]
    for kind in ("halo-4", "halo-4-features"):
        (folder / f"{kind}-a-gpu.json").write_text(json.dumps({"kind": kind, "halo": 4, "device": "a GPU", "rows": rows[:1]}))
    assert [bench["kind"] for bench in speedups.speed_files("halo")] == ["halo-4", "halo-4-features"], "with another reading, too"


def test_bench_network(unhurried, tmp_path):
    """The paper's shares, the labels of the plain modules, time by stage, memory of both sides."""
    values = {"where": "here", **json.loads(bench.network(tmp_path / "x.json", repeats=1, settings=[(torch.float32, 1, (128, 128))], **SMALL).read_text())}
    assert [f.attrs["caption"] for f in cost.frames(values, "forms_ms", "gap", "stage_ms")] == [f"here: {cost.CAPTIONS[part]}" for part in ("forms_ms", "stage_ms")]
    for row, shares in zip(values["rows"], ((0.77, 0.48), (0.44, 0.15))):
        assert row["active"] == pytest.approx(shares, abs=0.01) and row["same_labels"] > 0.999 and len(row["stage_ms"]) == 3 and sum(row["stage_ms"]) > row["stage_ms"][0] > 0
        assert {"folded", "all active", "region"} <= set(row["forms_ms"]) and min(row["peak_bytes"].values()) > 1e5 and row["ideal"] > 1
    values = json.loads(bench.network(tmp_path / "y.json", repeats=1, settings=[(torch.float32, 1, (128, 128))], reading="features", **SMALL).read_text())
    assert values["kind"] == values["reading"] == "features" and all(row["same_labels"] > 0.999 and row["differences"]["region"] < 1e-4 for row in values["rows"])


def test_time_by_stage_is_what_one_stage_more_takes(tmp_path, monkeypatch):
    """Of forwards that stop behind stage 1, 2 and 3, not their sums; with random and with trained weights."""
    def given(contestants, repeats, device=None):
        stages = {name: name[-1] if isinstance(name, tuple) else name for name in contestants}
        return {name: np.full(3, 10.0 * stage ** 2 if isinstance(stage, int) else 100.0) for name, stage in stages.items()}

    monkeypatch.setattr(bench, "undisturbed", given), monkeypatch.setattr(trained, "alternate", given)
    rows = json.loads(bench.network(tmp_path / "x.json", repeats=3, settings=[(torch.float32, 1, (64, 64))], **SMALL).read_text())["rows"]
    rows += trained.timed(build(3, **SMALL).eval(), [torch.randn(1, 3, 64, 64)], [0.9], repeats=3, thorough=False)[0][1:]
    assert [row["stage_ms"] for row in rows] == 3 * [[10, 30, 50]]


def test_bench_networks(unhurried, tmp_path):
    """LC on timm's networks, in rows that name them."""
    rows = json.loads(bench.network(tmp_path / "x.json", repeats=1, names=bench.OTHERS, settings=[(torch.float32, 1, (128, 128))], width=0.125, head_width=16).read_text())["rows"]
    assert [(row["network"], row["rho"]) for row in rows] == [("vgg16", 0.985), ("vgg16", 0.8), ("resnet101", 0.985), ("resnet101", 0.8)]
    assert all(row["same_labels"] > 0.999 and row["ideal"] > 1 for row in rows)


def test_images_that_are_timed_are_different_ones():
    """Spread over the split; all of them where more are asked for."""
    assert trained.spread(101, 3) == [16, 50, 84] and trained.spread(101, 101) == [*range(101)] and trained.spread(12, 1000) == [*range(12)]


def test_bench_systems(tmp_path, monkeypatch):
    """Every system of a profile beside the others, the poster's networks at their size; LC only where its shares are known."""
    monkeypatch.setattr(timing, "BUSY", -1.0), monkeypatch.setattr(timing, "SHORT", 0)
    with pytest.raises(InputError, match="too noisy to tell"):
        bench.systems("smoke", tmp_path / "x.json", repeats=1)
    values = json.loads(bench.systems("smoke", tmp_path / "x.json", repeats=1, thorough=False).read_text())
    rows = {row["system"]: row for row in values["rows"]}
    assert set(rows) - {"lc-0.985", "lc-0.800", "aspp-lc"} == {*experiments.SYSTEMS, "irnet", "vgg16", "resnet101"} and values["size"] == [64, 64]
    assert all(row["ms_low"] <= row["ms"] <= row["ms_high"] for row in rows.values()) and rows["irnet"]["parameters"] < rows["segnet"]["parameters"]
    assert rows["irnet"]["parameters"] == sum(p.numel() for p in build(8, **asdict(experiments.experiment("smoke", "irnet").run.model)).parameters())
    monkeypatch.setattr(bench, "ModelConfig", lambda *name: ModelConfig(*name, width=0.125))
    monkeypatch.setattr(timing, "BUSY", float("inf"))
    values = json.loads(bench.poster(tmp_path / "y.json", repeats=1).read_text())
    assert values["size"] == [300, 500] and [row["system"] for row in values["rows"]] == ["vgg16", "resnet101", "irnet", "lc-0.985", "lc-0.800"]


def test_bench_training_and_loader(unhurried, tmp_path):
    """Stages 2-3 alone have more to gain than the whole step; a region's step keeps less; the loader's speed stands beside the step's."""
    rows = json.loads(bench.training(tmp_path / "x.json", repeats=1, size=(128, 128), **SMALL).read_text())["rows"]
    assert [row["layer"] for row in rows] == 2 * ["stages 2-3"] + 2 * ["whole step"] and rows[1]["ideal"] > rows[3]["ideal"] > 1
    assert all({"as trained", "all active", "region"} == set(row["forms_ms"]) for row in rows) and rows[1]["peak_bytes"]["region"] < rows[1]["peak_bytes"]["dense"]
    values = json.loads(bench.loader("smoke", None, torch.device("cpu"), tmp_path / "y.json", repeats=2).read_text())
    assert [row["part"] for row in values["rows"]] == ["loader", "step"] and all(0 < row["images_s_low"] <= row["images_s"] <= row["images_s_high"] for row in values["rows"])


def test_rho_for_a_target():
    """The greatest rho that is fast enough, as its labels are best; the fastest where none is."""
    rates = {0.8: 9.0, 0.95: 6.0, 0.985: 5.0}
    assert [predict.pick_rho(rates, target) for target in (4, 5.5, 8, 20)] == [0.985, 0.95, 0.8, 0.8]


def test_video_of_a_folder(tmp_path, capsys):
    """One picture per frame, labels beside stages, in the order of the names; both speeds are printed."""
    for name in ("b", "a"):
        Image.fromarray(np.random.default_rng(ord(name)).integers(0, 256, (30, 40, 3)).astype(np.uint8)).save(tmp_path / f"{name}.png")
    assert [name for name, _ in predict.frames(tmp_path)[1]] == ["a", "b"]
    assert main(["video", str(tmp_path), "--height", "48", "--fps", "0.001", "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"- rho = 1\ndense [\d.]+ FPS \| LC at rho = 1 [\d.]+ FPS on the first 2 frames, [\d.]+ over all 2; network alone", said)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "b.png"] and Image.open(tmp_path / "out" / "a.png").size == (80, 30)


def test_frames_that_would_share_a_picture(tmp_path):
    """Two endings of one name; and a photo that its camera turned is turned back."""
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "a.jpg", exif=turned)
    assert next(predict.frames(tmp_path)[1])[1].shape == (8, 6, 3)
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="two frames in .* share a name but for its ending"):
        predict.frames(tmp_path)


def test_a_file_without_pictures(tmp_path, monkeypatch):
    """A sound file opens, and has nothing to label."""
    monkeypatch.setitem(sys.modules, "av", SimpleNamespace(open=lambda name: SimpleNamespace(streams=SimpleNamespace(video=[]))))
    (tmp_path / "sound.ogg").touch()
    with pytest.raises(InputError, match="sound.ogg holds no pictures, only sound or text; give a folder of frames, or another file"):
        predict.frames(tmp_path / "sound.ogg")


@pytest.mark.parametrize("broken, held", [(True, 12), (False, 12), (True, 0)])
def test_a_damaged_video(tmp_path, monkeypatch, capsys, broken, held):
    """What can be read of it is labelled, and that this is not all is said: PyAV stops with an error, also where a file does not say how many frames it
    holds, or without one."""
    def decode(video):
        yield from 2 * [SimpleNamespace(to_ndarray=lambda format: np.zeros((30, 40, 3), np.uint8))]
        if broken:
            raise ValueError("Invalid data found when processing input")
    file = SimpleNamespace(name="cut.mp4", streams=SimpleNamespace(video=[SimpleNamespace(frames=held)]), decode=decode)
    monkeypatch.setitem(sys.modules, "av", SimpleNamespace(open=lambda name: file))
    (tmp_path / "cut.mp4").touch()
    assert main(["video", str(tmp_path / "cut.mp4"), "--height", "48", "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert f"cut.mp4 is damaged: only its first 2 frames can be read{' (Invalid data found when processing input)' * broken}" in said and "over all 2" in said
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["000000.png", "000001.png"]


@pytest.mark.parametrize("arguments, message", [
    (("EMPTY",), "no frames in"), (("missing.mp4",), "video not found: missing.mp4"), (("EMPTY", "--fps", "0"), "--fps must be from 0.001 to 1000000, got 0"),
    (("README.md",), "is no folder of frames; a video file needs PyAV|is no video that can be read"), (("EMPTY", "--rho", "2"), "rho must be in")])
def test_bad_videos(arguments, message, tmp_path, capsys):
    """One line each."""
    assert main(["video", *(str(tmp_path) if a == "EMPTY" else a for a in arguments), "--device", "cpu"]) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("name", READINGS[1:])
@pytest.mark.parametrize("network", ["irnet", "resnet101"])
@torch.no_grad()
def test_other_readings_are_kept(model, network, name):
    """A cascade that reads more than zeros outside its regions says the same; only IRNet's that reads features has a form of its own, the others are folded."""
    reading = copy.deepcopy(model) if network == "irnet" else other(network, 0.125)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    rho = between(reading, x, 0.5)
    zeros, reading.reading = reading(x, rho), name
    wanted, fast = reading(x, rho), prepare(reading)
    assert any(isinstance(m, FastMixed) for m in fast.stages[1:].modules()) == (name == "features" and network == "irnet")
    assert torch.equal(wanted.log_probs, zeros.log_probs) == (name == "dense" and network == "resnet101")  # its branches begin with 1x1
    torch.testing.assert_close(fast(x, rho).log_probs.exp(), wanted.log_probs.exp(), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_a_ring_is_what_windows_reach(model):
    """Cells outside the region that a window of one of its pixels reads, with their features."""
    mask = torch.zeros(1, 5, 9, dtype=torch.bool)
    mask[0, 2, 4] = True
    outside, region = torch.arange(45.0).view(1, 1, 5, 9), Region(mask, padded=True)
    ring = winograd.Ring(region, outside, (1, 3), (2, 2))
    assert ring.around.tolist() == [20, 24] and ring.features.flatten().tolist() == [20, 24]
    assert ring.rows == region.rows + 2 and len(ring) == 1 and ring.table((1, 3), 2)[0].tolist() == [region.rows, 0, region.rows + 1]
    mask[0, 2, 1:5] = True
    four = Region(mask, padded=True)
    tiles = [winograd.Tiles(four, reads, (1, 3), (1, 1), torch.float32) for reads in (four, winograd.Ring(four, outside, (1, 3), (1, 1)))]
    assert [(made.computes < four.rows).any(1).sum() for made in tiles] == [1, 1], "cells around are read, not computed"

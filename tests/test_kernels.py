"""The Triton kernels, in Triton's interpreter on a CPU: they agree with the contract, and their forward with the cascade's."""
import copy
import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

kernels = pytest.importorskip("lc.speed.kernels")

from lc.errors import InputError
from lc.region import Region
from lc.region_conv import RegionTensor, region_conv2d_reference
from lc.speed import bench, opponents, timing, trained
from test_fast import OTHERS, SMALL, between, model, other, same, unhurried  # noqa: F401 (fixtures)

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 4e-3}


def some_mask(share: float, size=(2, 7, 9)):
    return torch.rand(size, generator=torch.Generator().manual_seed(3)) < share


def rows_of(x, region):
    """Rows of the region, in a buffer with room for every pixel; garbage behind them, as on a device."""
    rows = torch.full((region.mask.numel(), x.shape[1]), 1e4, dtype=x.dtype)
    found = Region(region.mask).gather(x)
    rows[:len(found)] = found
    return rows


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.1])
def test_compaction(share):
    """One prefix sum finds what nonzero finds; rows go back to their places, zeros elsewhere, whatever lies behind the last row."""
    mask = some_mask(share)
    region, plain = kernels.DeviceRegion.of(mask), Region(mask)
    assert int(region.count) == len(plain) and torch.equal(region.index[:len(plain)].long(), plain.index)
    assert torch.equal(region.slots.view(mask.shape)[mask], torch.arange(len(plain), dtype=torch.int32)) and (region.slots.view(mask.shape)[~mask] == -1).all()
    x = torch.randn(2, 5, 7, 9)
    assert torch.equal(region.scatter(rows_of(x, region)), x * mask[:, None])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kernel, dilation", [((1, 1), (1, 1)), ((3, 3), (2, 2)), ((1, 7), (2, 2)), ((7, 1), (1, 1))], ids=str)
@pytest.mark.parametrize("share, relu, add", [(0.5, True, True), (0.5, False, False), (0.0, True, False), (1.1, True, False)])
def test_convolution(dtype, kernel, dilation, share, relu, add):
    """Gather, multiply, bias, residual and ReLU in one; rows behind the last active pixel stay as they are."""
    x, weight, bias, residual = (torch.randn(s).to(dtype) for s in ((2, 40, 7, 9), (70, 40, *kernel), (70,), (2, 70, 7, 9)))
    weight = weight / 10
    region = kernels.DeviceRegion.of(some_mask(share))
    expected = region_conv2d_reference(x.float(), region.mask, weight.float(), bias.float(), dilation) + add * residual.float()
    out = rows_of(residual, region) if add else torch.full((126, 70), 1e4, dtype=dtype)
    kernels.convolve(rows_of(x, region), weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous(), bias, region, out, kernel, dilation, relu, add)
    expected = (expected.relu() if relu else expected) * region.mask[:, None]
    torch.testing.assert_close(region.scatter(out).float(), expected, atol=5 * TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert (out[int(region.count):] == out.new_tensor(1e4)).all()


def test_split_columns():
    """Outputs from the split on move right by the gap; the columns between are not touched; inputs may be a slice."""
    region = kernels.DeviceRegion.of(some_mask(0.5))
    wide, weight, bias, out = torch.randn(126, 30), torch.randn(20, 24), torch.randn(24), torch.full((126, 40), 7.0)
    kernels.convolve(wide[:, 10:], weight, bias, region, out, relu=False, split=(8, 16))
    active, expected = int(region.count), wide[:, 10:] @ weight + bias
    torch.testing.assert_close(out[:active], torch.cat([expected[:, :8], torch.full((126, 16), 7.0), expected[:, 8:]], 1)[:active], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.1])
def test_pooling_and_gathering(share):
    """Max pooling by the contract (zeros outside the region, nothing outside the image); 1x1 windows gather from maps and regions."""
    x, region = torch.randn(2, 70, 7, 9) - 1, kernels.DeviceRegion.of(some_mask(share))
    every, flat = torch.arange(126, dtype=torch.int32), x.permute(0, 2, 3, 1).reshape(126, 70)
    rows = kernels.pool(flat, every, region, torch.zeros(126, 70))
    plain = RegionTensor.select(x, Region(region.mask))
    assert torch.equal(rows[:int(region.count)], plain.rows)
    found = kernels.pool(rows, region.slots, region, torch.zeros(126, 70), (3, 3))
    assert torch.equal(region.scatter(found), F.max_pool2d(plain, 3, 1, 1).dense())
    narrow = kernels.DeviceRegion.of(region.mask & some_mask(0.4))
    assert torch.equal(narrow.scatter(kernels.pool(rows, region.slots, narrow, torch.zeros(126, 70))), x * narrow.mask[:, None])


@torch.no_grad()
@pytest.mark.parametrize("halo", [0, 1])
def test_forward_in_static_buffers(model, monkeypatch, halo):  # noqa: F811
    """Called like the cascade, and the same: dense, on regions, when stage 1 decides all, stopped early, on another number of images, and with the pixels given."""
    def only_these_sizes(call, *first):  # as a CUDA graph
        return lambda *inputs: call(*inputs) if [x.shape for x in inputs] == [x.shape for x in first] else pytest.fail("a graph for other sizes")
    monkeypatch.setattr(kernels, "capture", only_these_sizes)
    monkeypatch.setattr(model, "halo", halo)
    made = kernels.DeviceCascade(model)
    cases = ((1, 1.0, None), (2, 0.5, None), (2, 0.2, 2), (2, 0.0, None), (2, 0.5, 1)) if not halo else ((2, 0.5, None),)
    for images, quantile, depth in cases:
        x = torch.randn(images, 3, 40, 48, generator=torch.Generator().manual_seed(images))
        rho = between(model, x, quantile) if 0 < quantile < 1 else quantile
        same(made(x, rho, depth), model(x, rho, depth))
    masks = tuple(some_mask(share, (2, 5, 6)) for share in (0.6, 0.3))
    same(made(x, masks=masks), model(x, 0.5, masks=masks))


@torch.no_grad()
def test_everybody_goes_on_at_rho_1(model):  # noqa: F811
    """A probability of exactly 1 does not exit there, and does at any rho below."""
    cascade, x = copy.deepcopy(model), torch.randn(1, 3, 40, 48)
    cascade.heads[0].classify.bias[0] = 1000.0
    made = kernels.DeviceCascade(cascade)
    assert (made(x, 1.0).decided == 3).all() and (made(x, 0.999).decided == 1).all()


@torch.no_grad()
@pytest.mark.parametrize("name, width", OTHERS)
def test_other_networks_in_static_buffers(name, width):
    """timm's networks go through the same kernels: plain convolutions, dilated pools, shortcuts with a convolution, a block without ReLU."""
    cascade, x = other(name, width), torch.randn(1, 3, 32, 40, generator=torch.Generator().manual_seed(1))
    rho = between(cascade, x, 0.6)
    same(kernels.DeviceCascade(cascade)(x, rho), cascade(x, rho))
    assert 0 < cascade(x, rho).shares[1] < 1


@torch.no_grad()
def test_forward_in_half_precision(model):  # noqa: F811
    """Every part of the forward is in the precision that was asked for, stage 1 too."""
    x = torch.randn(1, 3, 40, 48, generator=torch.Generator().manual_seed(1))
    log_probs = kernels.DeviceCascade(model, torch.bfloat16)(x).log_probs
    torch.testing.assert_close(log_probs.exp(), model(x, 1.0).log_probs.exp(), atol=0.1, rtol=0)


@torch.no_grad()
def test_stage_1_can_be_compiled(model, monkeypatch):  # noqa: F811
    """As the dense opponent is on a GPU: stage 1 and its head, nothing else, and only if asked; the result is the same."""
    compiled, original = [], torch.nn.Module.compile

    def traced(part, **options):
        compiled.append(options)
        original(part, backend="eager", dynamic=options["dynamic"])
    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    x = torch.randn(1, 3, 40, 48, generator=torch.Generator().manual_seed(1))
    plain = kernels.DeviceCascade(model)
    assert not compiled
    made = kernels.DeviceCascade(model, compiled=True)
    assert compiled == 2 * [{"mode": "max-autotune-no-cudagraphs", "dynamic": False}] and all(part._compiled_call_impl for part in made.first)
    rho = between(model, x, 0.5)
    torch.testing.assert_close(made(x, rho).log_probs, plain(x, rho).log_probs)


def test_what_has_no_kernel():
    """An error that names the parts."""
    cascade = other("vgg16", 0.125)
    cascade.heads[2] = torch.nn.Conv2d(64, 4, 1)
    with pytest.raises(ValueError, match="no graph for Conv2d with reading 'zero': call the cascade itself"):
        kernels.DeviceCascade(cascade)


@torch.no_grad()
def test_forms_on_a_gpu(model, monkeypatch):  # noqa: F811
    """There both sides are CUDA graphs, LC without a kernel for its reading is named as absent, and a trained cascade is timed in its fastest form."""
    class Pretended(torch.Tensor):
        is_cuda = True
    for module in (opponents, kernels):
        monkeypatch.setattr(module, "capture", lambda call, *inputs: call)
    image = torch.randn(1, 3, 40, 48).as_subclass(Pretended)
    sides, dense, absent = trained.forms(model, image, compiled=False)
    assert set(dense) == {"folded", "CUDA graph", "all active"} and isinstance(sides["CUDA graph"], kernels.DeviceCascade) and not absent
    rows, _ = trained.timed(model, [image], [0.9], repeats=1, thorough=False)
    assert set(rows[1]["forms_ms"]) == {"PyTorch", "CUDA graph"} and len(rows[1]["stage_ms"]) == 3
    monkeypatch.setattr(model, "reading", "features")
    sides, _, absent = trained.forms(model, image, compiled=False)
    assert set(sides) == {"PyTorch"} and "got reading 'features'" in absent["LC, CUDA graph"]


def test_benches_of_a_gpu_run_through(unhurried, one_thread, tmp_path):  # noqa: F811
    """The code that a GPU is timed with, in the interpreter: every form agrees with the plain modules, or it would stop; spconv too, where it is installed."""
    values = json.loads(bench.region(tmp_path / "x.json", repeats=1, settings=[(torch.float32, 1, (64, 64))], chain=1, static=True, width=0.125).read_text())
    assert len(values["rows"]) == 4 and all("gap" not in row and {"all active", "region"} <= set(row["forms_ms"]) for row in values["rows"])
    there = find_spec("spconv") is not None
    assert all(("spconv" in row.get("sparse_ms", ())) == ("spconv" in row["differences"]) == there for row in values["rows"]) and ("spconv" in values["absent"]) != there
    assert max(max(row["differences"].values()) for row in values["rows"]) < 1e-4
    values = json.loads(bench.network(tmp_path / "y.json", repeats=1, static=True, settings=[(torch.float32, 2, (64, 64))], **SMALL).read_text())
    assert len(values["rows"]) == 2 and all(row["same_labels"] == 1 and {"all active", "region"} <= set(row["forms_ms"]) for row in values["rows"])
    grown = json.loads(bench.network(tmp_path / "z.json", repeats=1, static=True, settings=[(torch.float32, 2, (64, 64))], halo=1, **SMALL).read_text())
    with pytest.raises(InputError, match="reading 'features' has no form in a GPU's buffers"):
        bench.network(tmp_path / "z.json", repeats=1, static=True, reading="features", **SMALL)
    assert grown["kind"] == "halo-1" and all(1 >= more["active"][1] > row["active"][1] and more["ideal"] < row["ideal"] for more, row in zip(grown["rows"], values["rows"]))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_bench_stops_where_a_kernel_is_wrong(unhurried, one_thread, monkeypatch, tmp_path, dtype):  # noqa: F811
    """In every dtype: right kernels pass, windows whose taps are swapped do not."""
    monkeypatch.setattr(bench, "dense_forms", lambda module, x, compiled=True: ({"folded": lambda: module(x)}, {})), monkeypatch.setattr(bench, "SHARES", (0.5,))
    benches = {"network": lambda: bench.network(tmp_path / "x.json", repeats=1, static=True, **SMALL),
               "region": lambda: bench.region(tmp_path / "x.json", repeats=1, chain=1, static=True, width=0.125)}
    monkeypatch.setattr(bench, "SETTINGS", {"cpu": [(dtype, 1, (64, 64))]})
    for call in benches.values():
        assert all(0 <= row["differences"]["region"] <= TOLERANCE[dtype] for row in json.loads(call().read_text())["rows"])
    right = kernels.convolve
    swapped = lambda rows, weight, bias, region, out, kernel=(1, 1), *rest, **more: right(rows, weight.flip(0) if kernel != (1, 1) else weight, bias, region, out, kernel, *rest, **more)
    monkeypatch.setattr(kernels, "convolve", swapped)
    for call in benches.values():
        with pytest.raises(RuntimeError, match="region is off by .* its time means nothing"):
            call()


def test_buffers_beyond_32_bits():
    """Refused: kernels would read and write elsewhere."""
    region = kernels.DeviceRegion.of(torch.ones(1, 1, 2, dtype=torch.bool))
    rows, out = torch.empty(2, 8), torch.empty_strided((2, 8), (2**30, 1), device="meta")
    for call in (lambda: kernels.convolve(rows, torch.empty(8, 8), torch.empty(8), region, out), lambda: kernels.pool(rows, region.slots, region, out)):
        with pytest.raises(ValueError, match=r"a buffer of 2147483648 numbers: kernels reach 2\^31 - 1; give fewer or smaller images"):
            call()


@pytest.mark.parametrize("tile", [0, -1])
def test_compiles_for_a_gpu(tile):
    """Triton's compiler takes the kernel, with the smallest and the largest tiles, for an H100's architecture, with tensor cores, copies of 16 bytes
    that wait for nothing, and stores of eight numbers, though no GPU is here; and the tiles fit its shared memory."""
    code = f"""
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from lc.speed.kernels import TILES, _convolve
tile, kernel = TILES[{tile}], _convolve.fn
constants = dict(KW=3, TAPS=9, DY=2, DX=2, RELU=True, ADD=True, SPLIT=True, EIGHTS=True, PRECISION="ieee", WIDEN=False, **tile.kwargs)
even = {{(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name not in (*constants, "count", "first", "gap")}}
kinds = ["*bf16"] * 4 + ["*i32"] * 3 + ["i32"] * (len(kernel.arg_names) - 7)
signature = {{name: "constexpr" if name in constants else kind for name, kind in zip(kernel.arg_names, kinds)}}
source = ASTSource(kernel, signature, {{(kernel.arg_names.index(k),): v for k, v in constants.items()}}, even)
found = compile(source, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=tile.num_warps, num_stages=tile.num_stages))
ptx = found.asm["ptx"]
print(*("wgmma" in ptx, "cp.async.cg" in ptx, len(found.asm["cubin"]) > 1000, "st.global.v4" in ptx, "st.global.b16" in ptx, found.metadata.shared < 227 << 10))"""
    run = subprocess.run([sys.executable, "-c", code], env=os.environ | {"TRITON_INTERPRET": "0"}, capture_output=True, text=True)
    assert run.stdout.split() == ["True"] * 4 + ["False", "True"], run.stderr

"""The contract of region convolution: compact == dense-then-mask, forward and backward, for every region and reading."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lc import winograd
from lc.backbone import Mixed, Residual
from lc.region import SIZES, WIDTH, Region
from lc.region_conv import READINGS, RegionTensor, interpolated, region_conv2d, region_conv2d_reference

KERNELS = [(1, 1), (3, 3), (1, 7), (7, 1), (1, 3), (3, 1)]
SHAPE = (2, 9, 11)


def mask_of(kind: str) -> torch.Tensor:
    """(2, 9, 11) bool: one of the regions that must all be ordinary."""
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    if kind == "full":
        mask[:] = True
    elif kind == "one pixel":
        mask[1, 4, 5] = True
    elif kind == "border":
        mask[:, 0], mask[:, -1], mask[:, :, 0], mask[:, :, -1] = True, True, True, True
    elif kind == "random":  # with different counts in the two images
        mask[:] = torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) < torch.tensor([0.6, 0.2])[:, None, None]
    return mask


REGIONS = ["empty", "full", "one pixel", "border", "random"]


@pytest.fixture
def form(request, monkeypatch):
    """"windows", or "filtered": in training every kernel that can be filtered is, however narrow it is and far apart pixels lie. Says at the end
    that the form was used."""
    used, plain = [], winograd.Filtered.forward
    monkeypatch.setattr(winograd.Filtered, "forward", lambda *args: used.append(1) or plain(*args))
    if request.param == "filtered":
        monkeypatch.setattr(winograd, "WIDE", dict.fromkeys(winograd.WIDE, 1))
        monkeypatch.setattr(winograd, "PAYS", 999)
    yield request.param
    assert bool(used) == (request.param == "filtered")


with_forms = pytest.mark.parametrize("form", ["windows", "filtered"], indirect=True)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("kind", REGIONS)
@pytest.mark.parametrize("kernel, reading, form", [*((kernel, reading, "windows") for kernel in KERNELS for reading in READINGS),
                                                   *((kernel, "zero", "filtered") for kernel in winograd.WIDE)], indirect=["form"])
def test_compact_equals_reference(kernel, kind, reading, dtype, tolerance, form):
    """Values inside M and all gradients agree for dilations 1 to 4, with and without bias."""
    torch.manual_seed(0)
    mask, tolerance = mask_of(kind), tolerance * (10 if form == "filtered" else 1)  # sums of large terms
    for dilation in (1, 2, 3, 4):
        for with_bias in (False, True):
            x = torch.randn(2, 5, 9, 11, dtype=dtype, requires_grad=True)
            weight = torch.randn(4, 5, *kernel, dtype=dtype, requires_grad=True)
            bias = torch.randn(4, dtype=dtype, requires_grad=True) if with_bias else None
            wanted = region_conv2d_reference(x, mask, weight, bias, dilation, reading)
            out = region_conv2d(RegionTensor.select(x, Region(mask), reading), weight, bias, dilation)
            got = out.region.scatter(out.rows)
            torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
            seed = torch.randn_like(wanted)
            inputs = [x, weight, *([bias] if with_bias else [])]
            for a, b in zip(torch.autograd.grad(got, inputs, seed), torch.autograd.grad(wanted, inputs, seed)):
                torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("reading, form", [*((reading, "windows") for reading in READINGS), ("zero", "filtered")], indirect=["form"])
def test_gradcheck_through_the_output(reading, form):
    """Numerical derivatives of the output agree with the backward pass, for the map, the weight and the bias."""
    torch.manual_seed(0)
    mask = torch.rand(1, 4, 5) < 0.5
    region = Region(mask)
    run = lambda x, w, b: region_conv2d(RegionTensor.select(x, region, reading), w, b, 2).dense()
    inputs = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((1, 2, 4, 5), (3, 2, 3, 3), (3,))]
    assert torch.autograd.gradcheck(run, inputs)


@with_forms
@pytest.mark.parametrize("kind", REGIONS)
@pytest.mark.parametrize("freeze_bn", [True, False])
def test_padding_changes_nothing(kind, freeze_bn, form):
    """On a CPU rows are padded to an image: outputs, all gradients, batch norm's statistics and the random numbers drawn stay the same,
    in a region and in one inside it."""
    found = []
    for padded in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(Residual(8, [[(4, 1)], [(4, 1), (6, (1, 7)), (8, (7, 1))]], 0.1, 2), Mixed(8, [[(4, 3)]], pool=True), nn.Dropout(0.3)).double().train()
        for module in net.modules() if freeze_bn else ():
            module.train(not isinstance(module, nn.BatchNorm2d))
        x = torch.randn(2, 8, 9, 11, dtype=torch.float64, requires_grad=True)
        region, inside = Region(mask_of(kind), padded), Region(mask_of(kind) & (torch.arange(11) % 3 > 0), padded)
        assert region.rows % (WIDTH if padded else 1) == 0 and region.rows - len(region) < (WIDTH if padded else 1)
        part = RegionTensor.select(x, region)
        out = torch.cat([net(part).dense(), net(RegionTensor.select(part, inside)).dense()])
        grads = torch.autograd.grad((out * torch.randn_like(out)).sum(), [x, *net.parameters()])
        found.append([out, *grads, *net.buffers(), torch.randn(3)])
    for first, second in zip(*found):
        torch.testing.assert_close(first, second)


def test_few_sizes_and_little_waste():
    """Large regions are rounded up by a 64th of a power of two at most."""
    rows = lambda pixels: Region((torch.arange(8192) < pixels).view(1, 64, 128), True).rows
    assert (rows(1), rows(2048), rows(2049), rows(4095), rows(0)) == (WIDTH, 2048, 2048 + 2048 // SIZES, 4096, 0)
    assert len({rows(pixels) for pixels in range(2049, 4097, 3)}) == SIZES


def outside_read(x: torch.Tensor, mask: torch.Tensor, reading: str) -> torch.Tensor:
    """The map that windows read."""
    return x * mask[:, None].to(x.dtype) if reading == "zero" else interpolated(x, mask) if reading == "interpolated" else x


@pytest.mark.parametrize("kind", REGIONS)
@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("dilation", [1, 2])
def test_max_pool(kind, reading, dilation):
    """Pooling reads zeros (or the carried map, or the interpolation) outside M, and never wins from outside the image."""
    torch.manual_seed(0)
    x, mask = torch.randn(2, 5, 9, 11, requires_grad=True), mask_of(kind)
    inside, weight = mask[:, None].float(), torch.randn(2, 5, 9, 11)
    bordered = F.pad(outside_read(x, mask, reading), (dilation,) * 4, value=float("-inf"))
    wanted = F.max_pool2d(bordered, 3, 1, 0, dilation) * inside
    got = F.max_pool2d(RegionTensor.select(x, Region(mask), reading), 3, 1, dilation, dilation).dense() * inside
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(*(torch.autograd.grad((out * weight).sum(), x)[0] for out in (got, wanted)))


def masked(module: nn.Module, mask: torch.Tensor, reading: str) -> nn.Module:
    """The contract for a whole module, plainly: every convolution, norm and pool works on dense maps and is masked after, except, for
    "features", the 1x1 convolutions that begin a branch, with their norms. What a window reads is masked or interpolated before."""
    inside = mask[:, None].float()
    begins = [layer for name, layer in module.named_modules() if reading == "features" and "branches" in name and name.split(".")[-2:-1] == ["0"]]
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d)):
            if layer not in begins:
                layer.register_forward_hook(lambda m, i, out: out * inside)
            if not isinstance(layer, nn.BatchNorm2d):
                layer.register_forward_pre_hook(lambda m, args: (outside_read(args[0], mask, reading),))
    return module


@pytest.mark.parametrize("kind", REGIONS)
@pytest.mark.parametrize("reading", READINGS)
def test_blocks_equal_masked_dense(kind, reading):
    """A residual block and then a pooling reduction, unmodified modules: inside M equal to masked dense ones (eval mode)."""
    torch.manual_seed(0)
    mask = mask_of(kind)
    build = lambda: nn.Sequential(Residual(8, [[(4, 1)], [(4, 1), (6, (1, 7)), (8, (7, 1))]], 0.1, 2), Mixed(8, [[(4, 3)]], pool=True)).eval()
    compact = build()
    plain = build()
    plain.load_state_dict(compact.state_dict())
    x = torch.randn(2, 8, 9, 11).relu()
    inside = mask[:, None].float()
    wanted = masked(plain, mask, reading)(x) * inside
    got = compact(RegionTensor.select(x, Region(mask), reading))
    torch.testing.assert_close(got.region.scatter(got.rows), wanted, rtol=1e-5, atol=1e-5)


def test_readings_differ_where_the_contract_says():
    """Behind a 1x1 convolution both readings agree; for a wide first layer they do not."""
    torch.manual_seed(0)
    x, region = torch.randn(2, 5, 9, 11), Region(mask_of("random"))
    first, wide = torch.randn(4, 5, 1, 1), torch.randn(4, 4, 3, 3)
    zero, dense, features, between = (region_conv2d(region_conv2d(RegionTensor.select(x, region, r), first), wide).rows for r in READINGS)
    torch.testing.assert_close(zero, dense)
    assert all((zero - other).abs().max() > 0.1 for other in (features, between))
    direct = torch.randn(4, 5, 3, 3)
    zero, dense, features, between = (region_conv2d(RegionTensor.select(x, region, r), direct).rows for r in READINGS)
    torch.testing.assert_close(features, dense)
    assert all((zero - other).abs().max() > 0.1 for other in (dense, between))


@pytest.mark.parametrize("kind", REGIONS)
def test_interpolation_is_a_weighted_mean(kind):
    """Cell by cell: the mean over the 7x7 window's cells of M, by exp(-d^2 / 2); a constant map stays that wherever a cell of M is near."""
    x, mask = torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(0)), mask_of(kind)
    got = interpolated(x, mask)
    for n, i, j in (~mask).nonzero().tolist():
        near = [(a, b) for n_, a, b in mask.nonzero().tolist() if n_ == n and abs(a - i) <= 3 and abs(b - j) <= 3]
        weights = torch.tensor([2.718281828459045 ** (-((a - i) ** 2 + (b - j) ** 2) / 2) for a, b in near])
        wanted = sum(w * x[n, :, a, b] for w, (a, b) in zip(weights, near)) / weights.sum() if near else torch.zeros(3)
        torch.testing.assert_close(got[n, :, i, j], wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got * mask[:, None], x * mask[:, None])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dilation", [1, 2])
def test_equals_spconv(kernel, dilation, one_thread):
    """An independent implementation, spconv's SubMConv2d on the CPU, gives the same numbers with the same random weights.

    On one thread: on two, spconv's own output changes from call to call (results/NOTES.md).
    """
    spconv = pytest.importorskip("spconv.pytorch", reason="spconv has no wheel for this platform")
    torch.manual_seed(0)
    x, mask = torch.randn(2, 5, 9, 11), mask_of("random")
    tensor = RegionTensor.select(x, Region(mask))
    layer = spconv.SubMConv2d(5, 4, list(kernel), bias=False, dilation=dilation)
    sparse = spconv.SparseConvTensor(tensor.rows.contiguous(), mask.nonzero().int().contiguous(), list(SHAPE[1:]), SHAPE[0])
    weight = layer.weight.detach().reshape(4, *kernel, 5).permute(0, 3, 1, 2)
    if kernel == (1, 1):  # spconv multiplies by the same memory read as (in, out)
        weight = layer.weight.detach().reshape(5, 4).t()[:, :, None, None]
    torch.testing.assert_close(region_conv2d(tensor, weight, None, dilation).rows, layer(sparse).features.detach(), rtol=1e-5, atol=1e-5)


def test_timm_block_runs_unmodified():
    """timm's Inception-ResNet Block17 on a region equals itself, masked dense."""
    timm_block = pytest.importorskip("timm.models.inception_resnet_v2").Block17
    torch.manual_seed(0)
    block, mask = timm_block(0.1).eval(), torch.rand(1, 12, 12) < 0.4
    x = torch.randn(1, 1088, 12, 12)
    with torch.no_grad():
        got = block(RegionTensor.select(x, Region(mask)))
        wanted = masked(block, mask, "zero")(x * mask[:, None].float()) * mask[:, None].float()
    torch.testing.assert_close(got.dense(), wanted, rtol=1e-4, atol=1e-5)


def test_batch_norm_of_one_pixel():
    """Training batch norm on fewer than two pixels keeps its running statistics instead of failing."""
    norm = nn.BatchNorm2d(5).train()
    for kind in ("empty", "one pixel"):
        out = norm(RegionTensor.select(torch.randn(2, 5, 9, 11), Region(mask_of(kind))))
        assert torch.isfinite(out.values).all() and norm.running_mean.abs().max() == 0


def test_rows_and_halo():
    """A smaller region finds its rows in a larger one; a halo grows by a square window; a larger one is refused."""
    big, small = Region(mask_of("random")), None
    small = Region(big.mask & (torch.rand(SHAPE, generator=torch.Generator().manual_seed(2)) < 0.5))
    x = torch.randn(2, 3, 9, 11)
    torch.testing.assert_close(big.gather(x)[small.rows_in(big)], small.gather(x))
    assert Region(mask_of("one pixel")).dilate(2).mask.sum() == 25 and Region(mask_of("empty")).dilate(3).mask.sum() == 0
    with pytest.raises(ValueError, match="can only shrink"):
        big.rows_in(small)


@pytest.mark.parametrize("call, message", [
    (lambda x: F.conv2d(x, torch.randn(4, 5, 3, 3), stride=2, padding=1), "keeps the grid: stride 1"),
    (lambda x: F.conv2d(x, torch.randn(4, 5, 3, 3)), "padding (1, 1)"),
    (lambda x: F.max_pool2d(x, 2), "max pooling on a region keeps the grid"),
    (lambda x: F.avg_pool2d(x, 2), "only convolutions, max pooling"),
    (lambda x: x + RegionTensor.select(torch.randn(2, 5, 9, 11), Region(mask_of("full"))), "share one region"),
    (lambda x: F.max_pool2d(x, 2, 1, 1), "odd kernel"),
    (lambda x: x + x.dense(), "(2, 5, 9, 11) beside a RegionTensor"),
    (lambda x: x * torch.rand(2, 1, 1, 1), "(2, 1, 1, 1) beside a RegionTensor"), (lambda x: x * torch.rand(2, 5, 1, 1), "(2, 5, 1, 1) beside a RegionTensor"),
    (lambda x: torch.mul(x, other=torch.rand(11)), "(11,) beside a RegionTensor"), (lambda x: torch.cat([x, torch.rand(1, 5, 1, 9)], 1), "(1, 5, 1, 9) beside"),
    (lambda x: F.softmax(x, 2), "softmax on a RegionTensor works along channels, dim=1 only; got dim=2"),
    (lambda x: torch.log_softmax(x, dim=-1), "got dim=-1"),
    (lambda x: torch.cat([x, x]), "cat on a RegionTensor works along channels"),
    (lambda x: RegionTensor.select(x.dense()[:1], x.region), "the map is (1, 5, 9, 11), the region's mask (2, 9, 11)"),
    (lambda x: RegionTensor.select(x.dense(), x.region, "foo"), "reading must be one of"),
    (lambda x: x.region.dilate(-1), "pixels must be 0 or more, got -1"),
])
def test_what_a_region_refuses(call, message):
    """Operations that would need other pixels, another grid or another region say so."""
    x = RegionTensor.select(torch.randn(2, 5, 9, 11), Region(mask_of("random")))
    with pytest.raises((ValueError, NotImplementedError), match=message.replace("(", r"\(").replace(")", r"\)")):
        call(x)


def test_arithmetic_of_regions():
    """Sums, differences, products and quotients with regions, numbers and channels' scales are those of the maps."""
    region, m, scale = Region(mask_of("random")), torch.randn(2, 5, 9, 11), torch.rand(1, 5, 1, 1)
    x = RegionTensor.select(m, region)
    for call in (lambda t: -t, lambda t: t - 2 * t, lambda t: t / 2, lambda t: t * scale, lambda t: torch.cat([t, t], dim=1), lambda t: F.softmax(t, -3)):
        torch.testing.assert_close(call(x).rows, region.gather(call(m)))


def test_region_wants_a_bool_mask():
    """A mask of another kind is refused with its type and shape."""
    with pytest.raises(ValueError, match=r"bool of shape \(N, H, W\), got torch.float32 \(3, 4\)"):
        Region(torch.zeros(3, 4))

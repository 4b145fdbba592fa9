"""LayerCascade: who decides which pixel, and that skipping changes nothing else."""
import pytest
import torch

from lc.cascade import cells_to_pixels, undecided, upsample
from lc.errors import InputError, check_rho
from lc.networks import build
from lc.region_conv import READINGS
from lc.train import stage_loss


@pytest.fixture(scope="module")
def model():
    """A small cascade whose heads are sharp enough that pixels exit at every stage."""
    torch.manual_seed(0)
    cascade = build(4, width=0.125, blocks=(1, 1, 1), head_width=8).eval()
    for head in cascade.heads:
        torch.nn.init.normal_(head.classify.weight, std=0.5)
    return cascade


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 64, 80, generator=torch.Generator().manual_seed(3))


def middle_rho(model, images):
    """A threshold at which all three stages decide some pixels."""
    confidence = model(images, 1.0, depth=1).log_probs.exp().amax(1)
    return confidence.quantile(0.5).item()


@torch.no_grad()
def test_rho_one_is_the_dense_network(model, images):
    """rho = 1: nobody exits, and the result is that of the plain network with its last head."""
    out = model(images, 1.0)
    x = images
    for stage in model.stages:
        x = stage(x)
    torch.testing.assert_close(out.log_probs.exp(), model.heads[-1](x).softmax(1))
    assert (out.decided == 3).all() and out.shares == [1, 1, 1] and out.regions == [None, None, None]


@torch.no_grad()
def test_rho_zero_leaves_all_to_stage_one(model, images):
    """rho = 0: stage 1 decides every pixel; the later regions are empty and are ordinary input."""
    out = model(images, 0.0)
    assert (out.decided == 1).all() and out.shares == [1, 0, 0]
    torch.testing.assert_close(out.log_probs.exp(), model.heads[0](model.stages[0](images)).softmax(1))


@torch.no_grad()
def test_each_pixel_keeps_the_answer_of_its_stage(model, images):
    """Decided pixels are confident, keep their probabilities, and regions shrink."""
    rho = middle_rho(model, images)
    out = model(images, rho)
    assert 1 > out.shares[1] > out.shares[2] > 0
    for stage in (1, 2, 3):
        mine = out.decided == stage
        assert mine.any()
        torch.testing.assert_close(out.log_probs.permute(0, 2, 3, 1)[mine], out.logits[stage - 1].log_softmax(1).permute(0, 2, 3, 1)[mine])
        if stage < 3:
            assert (out.log_probs.exp().amax(1)[mine] >= rho).all()
    assert not (out.handed[2] & ~out.handed[1]).any()


@torch.no_grad()
def test_full_region_equals_dense(model, images):
    """With a threshold that nobody reaches, the compact form computes every pixel and gives the dense network's numbers."""
    out = model(images, 0.9999999)
    assert out.shares == [1, 1, 1] and out.regions[2] is not None
    torch.testing.assert_close(out.log_probs, model(images, 1.0).log_probs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reading", READINGS)
@torch.no_grad()
def test_batched_equals_single(model, images, reading):
    """Images of one batch do not see each other, though their pixels share one matrix and their counts differ."""
    rho = middle_rho(model, images)
    model.reading = reading
    together = model(images, rho)
    alone = [model(image[None], rho) for image in images]
    model.reading = "zero"
    assert len({mask.sum().item() for mask in together.handed[1]}) > 1
    torch.testing.assert_close(together.log_probs, torch.cat([out.log_probs for out in alone]), rtol=1e-4, atol=1e-5)
    assert torch.equal(together.decided, torch.cat([out.decided for out in alone]))


@torch.no_grad()
def test_halo_computes_more_and_decides_the_same_pixels(model, images):
    """A halo grows what is computed, not what is decided; a very large one gives the dense network's answers."""
    rho = middle_rho(model, images)
    plain = model(images, rho)
    model.halo = 16
    grown = model(images, rho)
    model.halo = 0
    assert torch.equal(plain.handed[1], grown.handed[1]) and len(grown.regions[1]) > len(plain.regions[1])
    dense = model(images, 1.0)
    inside = grown.handed[1]
    torch.testing.assert_close(grown.logits[1].permute(0, 2, 3, 1)[inside], dense.logits[1].permute(0, 2, 3, 1)[inside], rtol=1e-4, atol=1e-4)


def test_gradients_reach_only_what_took_part(model, images):
    """Skipped pixels send no gradient into stage 2: with an empty region its weights get none, stage 1's do."""
    model.zero_grad()
    rho = middle_rho(model, images)
    model(images, rho).fused[1].sum().backward()
    assert model.stages[1].irnet_b[0].project.weight.grad.abs().sum() > 0
    model.zero_grad()
    model(images, 0.0).fused[1].sum().backward()
    grad = model.stages[1].irnet_b[0].project.weight.grad
    assert grad is None or grad.abs().sum() == 0
    model.zero_grad()


def test_a_stage_s_loss_stays_in_the_stage(model, images):
    """Upsampling mixes neighbouring cells, but a cell that an earlier stage decided passes no gradient of a later stage's loss."""
    model.zero_grad()
    out = model(images, middle_rho(model, images))
    label = torch.randint(0, 4, (3, 64, 80), generator=torch.Generator().manual_seed(0))
    stage_loss(out.fused[1], out.handed[1], label).backward()
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in model.heads[0].parameters())
    assert model.heads[1].classify.weight.grad.abs().sum() > 0
    model.zero_grad()


def test_undecided_rule():
    """A float32 softmax reaches 1.0; still nobody exits at rho = 1. The threshold itself is confident enough."""
    certain = torch.tensor([[100.0], [0.0]])[None, :, :, None].log_softmax(1)
    assert certain.exp().max() == 1 and undecided(certain, 1.0).all() and not undecided(certain, 0.999).any()
    half = torch.zeros(1, 2, 1, 1).log_softmax(1)
    assert not undecided(half, 0.5).any() and undecided(half, 0.5001).all()


@pytest.mark.parametrize("rho", [1.5, -0.1, "much", float("nan"), None])
def test_rho_out_of_range(rho):
    """A threshold that is none says value and rule."""
    with pytest.raises(InputError, match=r"rho must be (a number )?in \[0, 1\], got"):
        check_rho(rho)


def test_upsample_puts_cells_where_strided_convolutions_put_them():
    """Cell i of the stride-8 grid sits at pixel 8 i; between cells values are linear; beyond the last cell they stay."""
    ramp = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 3, 4)
    for width in (25, 27, 32):
        up = upsample(ramp, (17, width))[0, 0, 5]
        assert len(up) == width
        torch.testing.assert_close(up[:25], torch.arange(25.0) / 8)
        assert (up[25:] == 3).all()
    pixels = cells_to_pixels(torch.arange(4).view(1, 1, 4).expand(1, 3, 4), (17, 32))[0, 5]
    assert [int(pixels[i]) for i in (0, 3, 4, 8, 11, 12, 31)] == [0, 0, 1, 1, 1, 2, 3]


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (8, 9), (47, 33), (180, 240)])
def test_any_image_size(model, size):
    """Every image size gives maps that upsample to it."""
    out = model(torch.randn(1, 3, *size), 0.5)
    assert upsample(out.log_probs, size).shape == (1, 4, *size) and cells_to_pixels(out.decided, size).shape == (1, *size)


def test_stages_and_heads_must_match(model):
    """A cascade without a head for each stage is refused."""
    from lc.cascade import LayerCascade
    with pytest.raises(ValueError, match="one head per stage: got 3 stages and 2 heads"):
        LayerCascade(model.stages, model.heads[:2])
    with pytest.raises(ValueError, match="reading must be one of"):
        LayerCascade(model.stages, model.heads, reading="ones")


def test_rows_are_padded_on_a_cpu():
    """In training and in evaluation; regions still count their own pixels."""
    model = build(5, width=0.125, blocks=(1, 1, 1), head_width=16)
    for training in (True, False):
        out = model.train(training)(torch.randn(2, 3, 64, 64), 0.999)
        assert [region.padded for region in out.regions[1:]] == [True] * 2
        assert [len(region) for region in out.regions[1:]] == [int(mask.sum()) for mask in out.handed[1:]]

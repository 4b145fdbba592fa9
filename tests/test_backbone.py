"""IRNet is the paper's: channels, parameters, multiply-adds, resolution; and costs are counted right."""
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lc.speed import cost, opponents, timing, trained
from lc.backbone import cut_stages, irnet
from lc.networks import build
from lc.errors import InputError
from lc.paper import published

COMPONENTS = ("stem", "irnet_a", "reduction_a", "irnet_b", "reduction_b", "irnet_c")


@pytest.fixture(scope="module")
def full():
    return build(21)


def stated(row: str, column: str = "value") -> float:
    return published("text", row, column).value


def test_structure_the_paper_states(full):
    """Three stages, two convolutions a head, a 384-channel stem of stride 8, five IRNet-A, 21 x 64 x 64 for 512 x 512."""
    assert len(full.stages) == stated("stages")
    assert all(sum(isinstance(m, torch.nn.Conv2d) for m in head.modules()) == stated("head-convolutions") for head in full.heads)
    first = full.stages[0].to("meta").eval()
    image = torch.zeros(1, *(int(stated("input", side)) for side in ("channels", "height", "width")), device="meta")
    stem = first.stem(image)
    assert stem.shape[1] == stated("stem-channels") and len(first.irnet_a) == stated("irnet-a-blocks")
    label_map = full.heads[0].to("meta").eval()(first(image))
    assert label_map.shape[1:] == tuple(stated("stage-1-label-map", side) for side in ("channels", "height", "width"))
    strides = {m.stride for name in ("reduction_a", "reduction_b") for m in irnet()[name].modules() if isinstance(m, torch.nn.Conv2d)}
    assert strides == {(int(stated("reduction-stride-after")),) * 2}


def test_parameters_and_macs():
    """The counts that Fig. 2's channels lead to, at 512 x 512: 30.29 M parameters without heads, 128.58 G multiply-adds."""
    rows = {row["component"]: row for row in cost.components(build(21), (512, 512))}
    millions = [round(rows[name]["parameters"] / 1e6, 2) for name in COMPONENTS]
    giga = [round(rows[name]["macs"] / 1e9, 2) for name in COMPONENTS]
    assert millions == [0.61, 0.69, 2.90, 11.72, 3.93, 10.44] and giga == [7.22, 2.80, 11.88, 47.90, 16.08, 42.70]
    assert sum(rows[name]["parameters"] for name in COMPONENTS) == pytest.approx(30.29e6, abs=5e3)


def test_the_stated_parameter_count_can_be_reached():
    """Table 6's 35.5 M: two 3x3 convolutions with 128 channels, Reduction-A in stage 1, Reduction-B in stage 3."""
    model = build(21, cut=(3, 4), head_width=128, head_kernels=(3, 3))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == published("6", "IRNet-LC", "params").value


@torch.no_grad()
def test_macs_of_the_cascade_are_those_of_the_layers_that_ran():
    """What the table of parts predicts from shares is what PyTorch counts in a real forward with regions; an index lookup is no multiply-add."""
    torch.manual_seed(0)
    model = build(5, width=0.125, blocks=(1, 1, 1)).eval()
    torch.nn.init.normal_(model.heads[0].classify.weight, std=0.5)
    image = torch.randn(1, 3, 64, 64)
    rho = float(model(image, 1.0, depth=1).log_probs.exp().amax(1).median())
    with FlopCounterMode(display=False) as counter:
        out = model(image, rho)
    with FlopCounterMode(display=False) as dense:
        cost.dense(model)(image)
    assert 0 < out.shares[1] < 1
    rows = [1.0, *(region.rows / region.mask.numel() for region in out.regions[1:])]
    assert all(0 <= row - share < 16 / 64 for row, share in zip(rows, out.shares)), "on a CPU a region has up to 15 rows more than pixels"
    assert counter.get_total_flops() / 2 == pytest.approx(cost.cascade_share(model, (64, 64), rows) * dense.get_total_flops() / 2)
    assert cost.cascade_share(model, (64, 64), [1, 1, 1]) > 1, "two heads more"


@torch.no_grad()
def test_rows_of_a_trained_cascade(monkeypatch):
    """Times of all stages, one per stage; the dense row's speed-up against itself is 1; a halo is computed, and counts for what multiply-adds allow; a bench refuses a busy machine."""
    torch.manual_seed(0)
    model, images = build(3, width=0.125, blocks=(1, 1, 1), halo=1).eval(), [torch.randn(1, 3, 96, 96), torch.randn(1, 3, 96, 128)]
    torch.nn.init.normal_(model.heads[0].classify.weight, std=0.5)
    rho = float(model(images[0], 1.0, depth=1).log_probs.exp().amax(1).quantile(0.2))
    rows, absent = trained.timed(model, images, [1.0, rho], repeats=3, thorough=False)
    assert [row["rho"] for row in rows] == [None, 1.0, rho] and rows[0]["speedup"] == 1 and not absent
    assert rows[0]["ms"] == min(rows[0]["forms_ms"].values()) == rows[0]["forms_ms"][rows[2]["dense_form"]] and set(rows[0]["forms_ms"]) == {"folded", "ONNX Runtime", "all active"}
    assert all(len(row["stage_ms"]) == 3 and sum(row["stage_ms"]) > 0 and set(row["forms_ms"]) == {"PyTorch", "ONNX Runtime"} for row in rows[1:])
    with pytest.raises(InputError, match="too noisy to tell"), monkeypatch.context() as noisy:
        noisy.setattr(timing, "BUSY", -1.0), noisy.setattr(opponents, "_compiled", opponents._onnxruntime), noisy.setattr(opponents, "_openvino", opponents._onnxruntime)
        trained.timed(model, images[:1], [rho], repeats=1, thorough=True)
    assert rows[1]["handed"] == rows[1]["computed"] == [1, 1, 1] and rows[1]["ideal"] < 1, "every pixel, and two more heads"
    outs = [model(image, rho) for image in trained.alike(images)]  # the second brought to 96x96
    assert all(out.decided.shape == (1, 12, 12) for out in outs)
    handed, computed = np.mean([out.shares for out in outs], axis=0), np.mean([out.regions[1].mask.float().mean().item() for out in outs])
    assert rows[2]["handed"] == handed.tolist() and handed[1] < rows[2]["computed"][1] == pytest.approx(computed) and computed < 1
    assert rows[2]["ideal"] == 1 / cost.cascade_share(model, (96, 96), rows[2]["computed"]) > rows[1]["ideal"]


@pytest.mark.parametrize("part, form", [("prepare", "all active"), ("fold", "folded"), ("regions", "the cascade in PyTorch")])
def test_forms_of_a_trained_cascade_are_right_before_they_are_timed(monkeypatch, part, form):
    """Whichever side it is: what computes something else has no time, on the whole map or on regions alone."""
    torch.manual_seed(0)
    model = build(3, width=0.125, blocks=(1, 1, 1)).eval()
    made, pooled = getattr(trained.fast, part, None), trained.fast.FastPool.on_rows

    def wrong_on_regions(self, rows, region, outside=None):
        return pooled(self, rows, region, outside) * (1 if region.mask.all() else 2)

    def wrong(given):
        found = made(given)
        convs = [m for m in found.heads[-1].modules() if isinstance(m, torch.nn.Conv2d)]
        convs[-1].bias.data[0] += 1
        return found
    monkeypatch.setattr(*(trained.fast, part, wrong) if made else (trained.fast.FastPool, "on_rows", wrong_on_regions))
    with pytest.raises(RuntimeError, match=f"^{form} is off by .* its time means nothing"):
        trained.forms(model, torch.randn(1, 3, 64, 64), compiled=False)


def test_width_and_cut():
    """The width multiplier scales channels; a cut that does not rise is refused."""
    assert irnet(0.25)["stem"][-1].channels == 96 and irnet(0.01)["stem"][0].conv.out_channels == 8
    assert [list(s._modules) for s in cut_stages(irnet(0.125, (1, 1, 1)), (2, 4))] == [list(COMPONENTS[:2]), list(COMPONENTS[2:4]), list(COMPONENTS[4:])]
    with pytest.raises(ValueError, match=r"cut must rise strictly between 0 and 6, got \(5, 3\)"):
        cut_stages(irnet(0.125, (1, 1, 1)), (5, 3))

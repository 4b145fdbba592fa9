"""Training: each loss sees its own pixels, what is fixed stays fixed, and a run cut off goes on as if it had not been."""
import ast
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lc import data as sets, paths, records, shapes, train as training
from lc.cascade import CascadeOutput, cells_to_pixels, upsample
from lc.config import DataConfig, ModelConfig, Phase, RunConfig, TrainConfig
from lc.data import IGNORE, SegmentationSet
from lc.errors import InputError
from lc.networks import build
from lc.train import Trainer, cascade_loss, load_model, make_optimizer, save_weights, set_trainable, stage_loss

TINY = ModelConfig(width=0.125, blocks=(1, 1, 1), head_width=8)


def run_config(*phases: Phase, **train) -> RunConfig:
    return RunConfig("test", DataConfig("shapes", scale=0.5, limit=4), TINY, TrainConfig(batch_size=2, crop=(48, 48), **train), phases, rho=0.9)


def fit(run: RunConfig, folder, **options):
    data, val = (SegmentationSet(run.data, split) for split in ("train", "val"))
    trainer = Trainer(run, data, val, folder, torch.device("cpu"), **options)
    return trainer.fit(), trainer


def test_stage_loss_is_cross_entropy_on_the_pixels_handed_over():
    """With everything handed over it is plain weighted cross-entropy; otherwise pixels of other cells have no influence."""
    torch.manual_seed(0)
    fused = torch.randn(2, 3, 4, 4).log_softmax(1).requires_grad_()
    label = torch.randint(0, 3, (2, 32, 32))
    label[:, :3] = IGNORE
    weight = torch.tensor([1.0, 2.0, 0.5])
    everything = torch.ones(2, 4, 4, dtype=torch.bool)
    wanted = F.cross_entropy(upsample(fused, (32, 32)), label, weight, ignore_index=IGNORE)
    torch.testing.assert_close(stage_loss(fused, everything, label, weight), wanted)
    some = everything.clone()
    some[:, :2] = False
    spoiled = label.clone()
    spoiled[:, :12] = 2  # pixels nearest to the cells that were not handed over
    assert stage_loss(fused, some, label) == stage_loss(fused, some, spoiled) != stage_loss(fused, everything, spoiled)
    assert stage_loss(fused, ~everything, label) == 0


@pytest.mark.parametrize("size", [(32, 40), (25, 33), (31, 34), (28, 36), (4, 5)])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_stage_loss_is_that_of_upsampled_maps(size, share):
    """Value and gradient, for every way in which an image can end between two cells, and for maps as large as the image."""
    torch.manual_seed(0)
    fused = torch.randn(2, 3, 4, 5, dtype=torch.float64).log_softmax(1).requires_grad_()
    label, handed, weight = torch.randint(0, 3, (2, *size)), torch.rand(2, 4, 5) < share, torch.rand(3, dtype=torch.float64)
    label[:, :2, 3:] = IGNORE
    own = label.masked_fill(~cells_to_pixels(handed, size), IGNORE)
    for hard_above in (1.0, 0.4):
        scores = upsample(fused, size)
        confidence, guess = scores.softmax(1).max(1)
        kept = own.masked_fill((confidence > hard_above) & (guess != own), IGNORE)
        wanted = F.cross_entropy(scores, kept, weight, ignore_index=IGNORE) if (kept != IGNORE).any() else 0 * scores.sum()
        found = stage_loss(fused, handed, label, weight, hard_above)
        for pair in zip(*((loss, *torch.autograd.grad(loss, fused)) for loss in (found, wanted))):
            torch.testing.assert_close(*pair)


def test_label_dropout_drops_at_the_given_rate():
    """Survival 0 leaves no loss, 1 changes nothing, and in between the share of cells is as asked."""
    torch.manual_seed(0)
    log_probs = torch.zeros(1, 2, 100, 100).log_softmax(1)
    handed = torch.ones(1, 100, 100, dtype=torch.bool)
    out = CascadeOutput(log_probs, handed.to(torch.uint8), [log_probs], [log_probs], [handed], [None])
    label = torch.zeros(1, 800, 800, dtype=torch.long)
    assert cascade_loss(out, label, (1,), keep=[0.0]) == 0
    torch.testing.assert_close(cascade_loss(out, label, (1,), keep=[1.0]), cascade_loss(out, label, (1,)))
    seen = []
    original = training.stage_loss
    training.stage_loss = lambda fused, handed, *rest: seen.append(handed.float().mean().item()) or fused.sum()
    try:
        cascade_loss(out, label, (1,), keep=[0.44])
    finally:
        training.stage_loss = original
    assert seen[0] == pytest.approx(0.44, abs=0.02)


def test_fixed_stages_and_frozen_norms_do_not_move(tmp_path):
    """A phase that trains stage 2 changes stage 2 and nothing else, batch norm statistics included; frozen norms never move."""
    run = run_config(Phase(1, 1e-2, heads=(2,), stages=(2,), rho=0.9))
    torch.manual_seed(run.seed)
    before = build(8, **{k: v for k, v in vars(TINY).items()}).state_dict()
    after = fit(run, tmp_path / "a")[0].state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith(("stages.1.", "heads.1.")) for name in moved)
    frozen = fit(run_config(Phase(1, 1e-2, freeze_bn=True)), tmp_path / "b")[0].state_dict()
    moved = {name for name in before if not torch.equal(before[name], frozen[name])}
    assert moved and not any(".bn." in name for name in moved)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_resume_gives_the_same_bytes(tmp_path, monkeypatch, ema):
    """A run killed after epoch 3 of 2 + 3, in the middle of its second phase, ends with the weights of one that was not."""
    run = run_config(Phase(2, 1e-3), Phase(3, 1e-3, rho=0.9, freeze_bn=True), ema=ema, jitter=0.2)
    whole = fit(run, tmp_path / "whole")[0].state_dict()
    save, calls = Trainer._save_state, []

    def dying(self, state):
        save(self, state)
        calls.append(state)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_save_state", dying)
    monkeypatch.setattr(training, "SAVED", 0)
    with pytest.raises(KeyboardInterrupt):
        fit(run, tmp_path / "cut")
    model, trainer = fit(run, tmp_path / "cut")
    assert len(calls) == 5 and [row["epoch"] for row in trainer.history] == [1, 2, 3, 4, 5]
    assert all(torch.equal(value, whole[name]) for name, value in model.state_dict().items())


def test_states_are_kept_now_and_then(tmp_path, monkeypatch):
    """After each phase, and after an epoch only where the last one is SAVED seconds old: on a GPU writing one takes as long as a third of an epoch."""
    kept = []
    monkeypatch.setattr(Trainer, "_save_state", lambda self, state: kept.append(state["epochs"]))
    fit(run_config(Phase(2, 1e-3), Phase(3, 1e-3)), tmp_path)
    assert kept == [2, 5]


def test_loaders_processes_find_decoded_images(tmp_path, monkeypatch):
    """Their epochs' processes would decode each image anew."""
    decoded, decode = [], SegmentationSet.decode
    monkeypatch.setattr(SegmentationSet, "decode", lambda self, i: decoded.append((self.split, i)) or decode(self, i))
    monkeypatch.setattr(training, "epoch_loader", lambda samples, epoch, workers: decoded.append(workers) or sets.epoch_loader(samples, epoch))
    fit(run_config(Phase(1, 1e-3)), tmp_path / "a", workers=1)
    assert decoded[:5] == [*(("train", i) for i in range(4)), 1]
    decoded.clear(), fit(run_config(Phase(1, 1e-3)), tmp_path / "b")
    assert decoded[0] == 0, "without such processes an image is decoded when it is asked for"


def test_training_learns_and_skips(tmp_path):
    """A few epochs lower the loss; in cascade training later stages are handed fewer pixels, and the history says how many."""
    run = run_config(Phase(8, 5e-3), Phase(2, 1e-3, rho=0.6, freeze_bn=True))
    history = fit(run, tmp_path)[1].history
    assert history[7]["loss"] < history[0]["loss"] - 0.5
    assert history[0]["handed"] == [1, 1, 1] and history[-1]["handed"][1] < 1
    assert "val_miou" in history[-1] and (tmp_path / "history.jsonl").read_text().count("\n") == 10
    assert list((tmp_path / "tensorboard").iterdir())


def test_easy_pixels_can_keep_a_loss():
    """easy_weight adds that share of each later stage's own cross-entropy on the pixels decided before it, and nothing for stage 1."""
    torch.manual_seed(0)
    model = build(3, width=0.125, blocks=(1, 1, 1), head_width=8, halo=99).eval()
    image, label = torch.randn(2, 3, 32, 32), torch.randint(0, 3, (2, 32, 32))
    rho = float(model(image).fused[0].detach().exp().amax(1).median())
    out = model(image, rho)
    easy = sum(stage_loss(out.logits[s].log_softmax(1), ~out.handed[s], label) for s in (1, 2))
    assert easy > 0.5 and (~out.handed[1]).any()
    torch.testing.assert_close(cascade_loss(out, label, (1, 2, 3), easy_weight=0.1), cascade_loss(out, label, (1, 2, 3)) + 0.1 * easy)
    torch.testing.assert_close(cascade_loss(out, label, (1,), easy_weight=0.1), cascade_loss(out, label, (1,)))


def fit_loss(folder, **phase) -> float:
    return fit(run_config(Phase(1, 1e-6, **phase)), folder)[1].history[0]["loss"]


def test_hard_pixels_can_lose_their_loss(tmp_path):
    """hard_above takes the pixels out that are wrong and more confident than it: neither their loss nor their gradient counts."""
    probs = torch.tensor([[0.97, 0.02, 0.01], [0.97, 0.02, 0.01], [0.90, 0.06, 0.04], [0.01, 0.96, 0.03]])
    label = torch.tensor([1, 0, 1, IGNORE]).view(1, 1, 4)
    scores = probs.log().t().reshape(1, 3, 1, 4).requires_grad_()
    every, none = torch.ones(1, 1, 4, dtype=torch.bool), torch.zeros(3, 1)
    stage_loss(scores, every, label, hard_above=0.95).backward()
    torch.testing.assert_close(stage_loss(scores, every, label, hard_above=0.95), -(probs[1, 0].log() + probs[2, 1].log()) / 2)
    torch.testing.assert_close(scores.grad[0, :, 0, [0, 3]], none.expand(3, 2))
    assert (scores.grad[0, :, 0, [1, 2]] != 0).all()
    torch.testing.assert_close(stage_loss(scores, every, label), -(probs[0, 1].log() + probs[1, 0].log() + probs[2, 1].log()) / 3)
    assert fit_loss(tmp_path / "a", hard_above=0.0) < fit_loss(tmp_path / "b") - 0.1
    out = CascadeOutput(scores, every, [scores] * 2, [scores] * 2, [every] * 2)
    torch.testing.assert_close(cascade_loss(out, label, (1, 2), hard_above=0.95), 2 * stage_loss(scores, every, label, hard_above=0.95))


@pytest.mark.parametrize("changes", [{"optimizer": "sgd", "schedule": "poly"}, {"balance": "median"}, {"amp": "none"}])
def test_options_train(tmp_path, changes):
    """Every optimizer, schedule, balancing and precision runs and gives finite losses."""
    history = fit(run_config(Phase(1, 1e-3), **changes), tmp_path)[1].history
    assert history[0]["loss"] > 0


def test_start_weights_are_used(tmp_path):
    """A run that starts from another run's weights begins with them."""
    donor = fit(run_config(Phase(1, 1e-3)), tmp_path / "a")[0]
    zero = replace(run_config(Phase(1, 1e-9)), seed=3)
    started = fit(zero, tmp_path / "b", start=donor.state_dict())[0]
    name = "stages.0.stem.0.conv.weight"
    torch.testing.assert_close(started.state_dict()[name], donor.state_dict()[name])
    other = {**donor.state_dict(), "heads.2.classify.weight": torch.zeros(99, 1, 1, 1), "heads.2.classify.bias": torch.zeros(99)}
    assert all(key in donor.state_dict() for key in other)
    started = fit(zero, tmp_path / "c", start=other)[0]  # of other classes: the layer that names them stays new, the rest is used
    torch.testing.assert_close(started.state_dict()[name], donor.state_dict()[name])
    with pytest.raises(RuntimeError, match="nowhere"):
        fit(zero, tmp_path / "d", start={**donor.state_dict(), "nowhere": torch.zeros(1)})


@pytest.mark.parametrize("change, message", [
    ({"stages.0.stem.0.conv.weight": torch.zeros(9, 3, 3, 3)}, r"stem.0.conv.weight is \(8, 3, 3, 3\) here and \(9, 3, 3, 3\) there"),
    ({"stages.0.stem.0.conv.weight": None}, "here and absent there")])
def test_start_weights_of_another_network_are_refused(tmp_path, change, message):
    """A stage that would stay random beside trained ones is an error, not a silence."""
    run = run_config(Phase(1, 1e-3))
    weights = {**build(8, **vars(TINY)).state_dict(), **change}
    with pytest.raises(InputError, match=message):
        fit(run, tmp_path, start={name: value for name, value in weights.items() if value is not None})


def test_a_state_belongs_to_its_run(tmp_path):
    """Going on in a folder that holds another run's state is refused; the time of a run that was cut off is added up."""
    run = run_config(Phase(1, 1e-3))
    first = fit(run, tmp_path)[1]
    again = fit(run, tmp_path)[1]
    assert 0 < again.earlier < first.seconds and again.seconds > again.earlier
    with pytest.raises(InputError, match=f"state.pt is the state of run {run.key()}, this is run .*; give another folder .*, or delete {tmp_path}"):
        fit(run_config(Phase(1, 2e-3)), tmp_path)


def test_a_state_belongs_to_its_code(tmp_path, monkeypatch):
    """A run that other code, or other images, began is not gone on with: its record would name today's alone."""
    run = run_config(Phase(1, 1e-3))
    fit(run, tmp_path)
    before = (tmp_path / "state.pt").read_bytes()
    monkeypatch.setattr(records, "source_hash", lambda *_: "0123456789")
    with pytest.raises(InputError, match=f"state.pt was trained with code .*, images .*, here is code 0123456789, images .* delete {tmp_path} to begin anew"):
        fit(run, tmp_path)
    assert (tmp_path / "state.pt").read_bytes() == before


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 10])
def test_schedules_of_any_length(steps):
    """One-cycle has no number of steps at which it fails."""
    optimizer, schedule = make_optimizer(torch.nn.Linear(2, 2), TrainConfig(), Phase(1, 1e-3), steps)
    for _ in range(steps - 1):
        optimizer.step()
        schedule.step()
    assert 0 < schedule.get_last_lr()[0] <= 1e-3


def test_weights_on_disk(tmp_path):
    """Weights on disk are half precision: close to the trained ones, and saving them again changes nothing more."""
    run = run_config(Phase(1, 1e-3))
    model = fit(run, tmp_path / "run")[0]
    save_weights(model, tmp_path / "w.safetensors")
    again = load_model(run, 8, tmp_path / "w.safetensors")
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(again(image, 1.0).log_probs, model(image, 1.0).log_probs, rtol=1e-2, atol=1e-2)
    save_weights(again, tmp_path / "w2.safetensors")
    assert (tmp_path / "w2.safetensors").read_bytes() == (tmp_path / "w.safetensors").read_bytes()
    assert [p.name for p in tmp_path.glob("w.*")] == ["w.safetensors"]


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    """A diverged run says so, with the setting to change, and keeps the last good state."""
    with pytest.raises(InputError, match=r"lower phases.\*.lr \(now 1e\+30\)"):
        fit(run_config(Phase(6, 1e30)), tmp_path)


def test_frozen_phase_sets_modes():
    """set_trainable: gradients and train mode follow the phase."""
    model = build(3, width=0.125, blocks=(1, 1, 1), head_width=8)
    set_trainable(model, Phase(stages=(1, 3), freeze_bn=True))
    assert not any(p.requires_grad for p in model.stages[1].parameters()) and model.heads[2].training
    assert not any(m.training for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    set_trainable(model, Phase(freeze_bn=True), new_heads=True)  # batch norms without pretrained values learn
    norms = lambda part: [m.training for m in part.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not any(norms(model.stages)) and norms(model.heads) and all(norms(model.heads))


def test_heads_are_new_once(tmp_path, monkeypatch):
    """On pretrained stages the batch norms of heads learn in the phase that trains these heads first, and are frozen behind it as the others are;
    a run that starts from another has no new heads."""
    monkeypatch.setattr(training, "build", lambda *_, **given: build(8, **{**given, "weights": ""}))
    asked, right = [], training.set_trainable
    monkeypatch.setattr(training, "set_trainable", lambda model, phase, new_heads=False: asked.append((phase.heads, new_heads)) or right(model, phase, new_heads))
    phases = [Phase(1, 1e-3, heads=heads, freeze_bn=True) for heads in ((1,), (2, 3), (1,), (3,))]
    fit(replace(run := run_config(*phases), model=replace(run.model, weights="imagenet")), tmp_path / "a")
    assert dict.fromkeys(asked) == dict.fromkeys([((1,), True), ((2, 3), True), ((1,), False), ((3,), False)])
    asked.clear()
    fit(replace(run, model=replace(run.model, weights="imagenet")), tmp_path / "b", start=build(8, **vars(TINY)).state_dict())
    assert asked and not any(new for _, new in asked)


def test_a_head_that_the_network_lacks(tmp_path):
    """Systems of one stage have one head."""
    with pytest.raises(InputError, match=r"network segnet has 1 stage, got a phase with head 3; give heads=\(1,\)"):
        fit(replace(run_config(Phase(1, 1e-3)), model=ModelConfig("segnet", width=0.125)), tmp_path)


@pytest.mark.skipif(training.autocast_dtype("bf16", torch.device("cpu")) is None, reason="this CPU does not compute in bfloat16")
@pytest.mark.parametrize("kernel, dilation", [((7, 1), (2, 1)), ((1, 7), (1, 2)), ((3, 3), (2, 2))])
def test_the_layout_of_training_gives_right_gradients(kernel, dilation):
    """oneDNN's weight gradients of dilated convolutions in bfloat16 are wrong in channels last on CPUs without AMX."""
    generator, found = torch.Generator().manual_seed(0), []
    x, weight, grad = (torch.randn(*shape, generator=generator) for shape in ((8, 40, 23, 30), (48, 40, *kernel), (8, 48, 23, 30)))
    for dtype in (torch.float32, torch.bfloat16):
        layout = training.training_format(None if dtype is torch.float32 else dtype, torch.device("cpu"))
        taps = weight.to(dtype, memory_format=layout).requires_grad_()
        padding = [d * (k // 2) for k, d in zip(kernel, dilation)]
        made = F.conv2d(x.to(dtype, memory_format=layout), taps, padding=padding, dilation=dilation)
        made.backward(grad.to(dtype, memory_format=layout))
        found.append(taps.grad.float())
    assert (found[0] - found[1]).abs().max() < 0.02 * found[0].abs().max()


def test_from_python_as_the_readme_says(tmp_path, monkeypatch):
    """The README's first example runs as it stands: the committed cascade, one of two stages of one's own, and a region by itself."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 80, 3)).astype(np.uint8)).save("photo.jpg")
    example = next(part for part in (paths.ROOT / "README.md").read_text().split("```") if 'runs.trained("camvid-lite"' in part).removeprefix("python")
    told = {}
    exec(compile(example, "README.md", "exec"), told)
    assert told["out"].logits[1].shape == (1, 11, 8, 10) and told["pixels"].shape == (1, 32, 8, 10)
    computed = told["stage2"](told["pixels"]).dense()
    assert computed.shape == (1, 64, 8, 10) and not computed.detach().permute(0, 2, 3, 1)[~told["out"].handed[1]].any()


def test_own_data_as_the_readme_says(tmp_path, monkeypatch, capsys):
    """The README's recipe for a data set of one's own, made small: it trains on files that lie as its Spec says, and prints what it promises."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sets, "SPECS", dict(sets.SPECS))
    for split in ("train", "val"):
        for i in range(3):
            image, label = shapes.sample(split, i)
            for folder, ending, values in ((split, "jpg", image), (f"{split}-labels", "png", np.where(label == 0, 0, 1).astype(np.uint8))):
                (tmp_path / "data" / "mine" / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(tmp_path / "data" / "mine" / folder / f"{i}.{ending}")
    recipe = next(part for part in (paths.ROOT / "README.md").read_text().split("```") if 'SPECS["mine"]' in part).removeprefix("python")
    for given, small in (("width=0.25", "width=0.125, blocks=(1, 1, 1), head_width=8"), ("(256, 256)", "(48, 48)"), ("Phase(50", "Phase(1"), ("Phase(12", "Phase(1")):
        assert given in recipe
        recipe = recipe.replace(given, small)
    exec(compile(recipe, "README.md", "exec"), {})
    said = ast.literal_eval(capsys.readouterr().out)
    assert said["images"] == 3 and len(said["iou"]) == 2 and len(said["decided"]) == 3 and (tmp_path / "out" / "weights.safetensors").exists()

"""Training (Sec. 3.3): initial training, cascade training, and the comparisons of Table 2, all as lists of phases.

A run is trained in one sweep over its phases; a state is kept on disk, so a run that was cut off goes on where it was SAVED last, and gives the
same bytes as one that was not.
"""
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR, PolynomialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from lc import records
from lc.cascade import STRIDE, CascadeOutput, LayerCascade
from lc.config import Phase, RunConfig, TrainConfig
from lc.data import IGNORE, SegmentationSet, TrainingSamples, epoch_loader, median_frequency_weights
from lc.errors import InputError
from lc.evaluate import evaluate
from lc.networks import build
from lc.region import Region
from lc.region_conv import windows

SAVED = 30  # seconds after which an epoch's end is kept on disk


def stage_loss(fused: Tensor, handed: Tensor, label: Tensor, weight: Tensor | None = None, hard_above: float = 1.0) -> Tensor:
    """Cross-entropy of one stage on the pixels handed to it ("gradients are only propagated to the region of interest").

    fused: (N, K, h, w) log-probabilities after the stage; handed: (N, h, w) bool; label: (N, H, W) long, 255 = ignore;
    weight: (K,) class weights; hard_above: lc.config.Phase. The mean over the stage's own labelled pixels, zero when it has none.
    """
    scores, target = _of_cells(fused, handed, label)
    if hard_above < 1:
        confidence, predicted = scores.detach().softmax(1).max(1)
        target = target.masked_fill((confidence > hard_above) & (predicted != target), IGNORE)
    total = F.cross_entropy(scores, target, weight, ignore_index=IGNORE, reduction="sum")
    known = target != IGNORE
    mass = known.sum() if weight is None else (weight[target.masked_fill(~known, 0)] * known).sum()
    return total / mass.clamp(min=1e-6)


def _of_cells(x: Tensor, cells: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """(P, K, T) and (P, T): what `upsample` makes of x (N, K, h, w) at the T pixels nearest to each of the P cells (`cells_to_pixels`), from the
    3x3 cells around; and their labels, 255 outside the image. On the whole map the work would not shrink with P."""
    (n, k, h, w), (height, width), half = x.shape, label.shape[1:], STRIDE // 2
    if (h, w) == (height, width):
        return x, label.masked_fill(~cells, IGNORE)
    # pixels half a stride behind the last cells are nearest to a copy of these
    x, mask = (F.pad(m, (0, 1, 0, 1), mode="replicate") for m in (x, cells[:, None].float()))
    region = Region(mask[:, 0] > 0)
    near = windows(x.permute(0, 2, 3, 1).flatten(0, 2), region.table(3, dense=True)).view(-1, 9, k)
    at = torch.arange(-half, half, dtype=x.dtype, device=x.device) / STRIDE
    weight = torch.stack([(-at).clamp(min=0), 1 - at.abs(), at.clamp(min=0)], 1)  # of the cell before, here and behind, along an axis
    label = F.pad(label, (half, STRIDE * (w + 1) - half - width, half, STRIDE * (h + 1) - half - height), value=IGNORE)
    label = label.view(n, h + 1, STRIDE, w + 1, STRIDE).transpose(2, 3).reshape(-1, STRIDE ** 2)
    return F.linear(near.mT, torch.kron(weight, weight)), label[region.index]


def cascade_loss(out: CascadeOutput, label: Tensor, heads: tuple[int, ...], weight: Tensor | None = None,
                 keep: list[float] | None = None, easy_weight: float = 0.0, hard_above: float = 1.0) -> Tensor:
    """Sum of the stage losses of `heads` (1-based). keep[s]: share of label cells of stage s+1 that survive label dropout;
    easy_weight, hard_above: lc.config.Phase."""
    total = out.log_probs.new_zeros(())
    for head in heads:
        handed = out.handed[head - 1]
        if keep is not None:
            handed = handed & (torch.rand(handed.shape, device=handed.device) < keep[head - 1])
        total = total + stage_loss(out.fused[head - 1], handed, label, weight, hard_above)
        if easy_weight and head > 1:
            total = total + easy_weight * stage_loss(out.logits[head - 1].float().log_softmax(1), ~out.handed[head - 1], label, weight)
    return total


def set_trainable(model: LayerCascade, phase: Phase, new_heads: bool = False) -> None:
    """Train mode and gradients for the stages of the phase; the others, and all batch norms if frozen (but those of new heads), are fixed."""
    model.train()
    for number, parts in enumerate(zip(model.stages, model.heads), start=1):
        learns = number in phase.stages
        for part in parts:
            part.train(learns)
            part.requires_grad_(learns)
    if phase.freeze_bn:
        for module in (model.stages if new_heads else model).modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
                module.requires_grad_(False)


def make_optimizer(model: nn.Module, train: TrainConfig, phase: Phase, steps: int):
    """Optimizer over the parameters that learn (no weight decay on biases and norms), and its per-step schedule."""
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in params if p.dim() > 1], "weight_decay": train.weight_decay},
              {"params": [p for p in params if p.dim() <= 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=phase.lr) if train.optimizer == "adamw" else torch.optim.SGD(groups, lr=phase.lr, momentum=0.9)
    if train.schedule == "poly":
        return optimizer, PolynomialLR(optimizer, total_iters=steps, power=0.9)
    rise = 0.25 if steps == 5 else 0.2  # a rise of one step would divide by zero
    return optimizer, OneCycleLR(optimizer, phase.lr, total_steps=steps, pct_start=rise)


def _ramped_ema(decay: float):
    """An exponential average that follows closely at first, so that short phases do not remember their random start."""
    def average(kept, current, count):
        return get_ema_multi_avg_fn(min(decay, (1 + int(count)) / (10 + int(count))))(kept, current, count)
    return average


@dataclass
class Trainer:
    """One run on one device. folder: where its state, history and logs lie. start: weights to begin with. keep: survival rates for label dropout.
    workers: processes that load images."""
    run: RunConfig
    data: SegmentationSet
    validation: SegmentationSet
    folder: Path
    device: torch.device
    start: dict[str, Tensor] | None = None
    keep: list[float] | None = None
    workers: int = 0

    def fit(self) -> LayerCascade:
        """Train every phase that is not finished yet; returns the model, in eval mode."""
        torch.manual_seed(self.run.seed)
        self.model = build(self.data.num_classes, **asdict(self.run.model))
        stages, asked = len(self.model.stages), max(head for phase in self.run.phases for head in phase.heads)
        if asked > stages:
            raise InputError(f"network {self.run.model.network} has {stages} stage{'s' * (stages > 1)}, got a phase with head {asked}; give "
                             f"heads={(*range(1, stages + 1),)}")
        if self.start is not None:
            self._begin_with(self.start)
        self.amp = autocast_dtype(self.run.train.amp, self.device)
        self.format = training_format(self.amp, self.device)
        self.model.to(self.device, memory_format=self.format)
        self.weight = median_frequency_weights(self.data).to(self.device) if self.run.train.balance == "median" else None
        for i in range(len(self.data) if self.workers else 0):
            self.data.read(i)  # into memory, where the loader's processes, which end with their epoch, find them
        self.samples = TrainingSamples(self.data, self.run.train, self.run.seed)
        self.steps = max(1, len(self.data) // min(self.run.train.batch_size, len(self.data)))  # per epoch
        self.history: list[dict] = []
        self.earlier = 0.0  # seconds of training before it was cut off
        self.made_by = f"code {records.source_hash(*records.modules(self.run.model.network))}, images {self.data.fingerprint()}"
        state = self._load_state()
        done = state["epochs"] if state else 0
        total = sum(phase.epochs for phase in self.run.phases)
        self.clock = self.saved = time.perf_counter()
        with tqdm(total=total * self.steps, initial=done * self.steps, desc=self.folder.name, unit="step", mininterval=2) as bar:
            first, learnt = 0, set()
            for phase in self.run.phases:
                new_heads = bool(self.run.model.weights) and self.start is None and not learnt & {*phase.heads}  # on top of pretrained stages
                if done < first + phase.epochs:
                    self._phase(phase, first, state if done > first else None, bar, new_heads)
                first, learnt = first + phase.epochs, learnt | {*phase.heads}
        return self.model.eval()

    @property
    def seconds(self) -> float:
        """Of training, also before it was cut off."""
        return self.earlier + time.perf_counter() - self.clock

    def _begin_with(self, start: dict[str, Tensor]) -> None:
        """Load another run's weights. Heads of other classes, or that it lacks (CRF-RNN's), stay new; anything else must fit."""
        new = self.model.state_dict()
        fits = {name for name in new if name in start and start[name].shape == new[name].shape}
        if odd := [name for name in new if name not in fits and not name.startswith("heads.")]:
            there = tuple(start[odd[0]].shape) if odd[0] in start else "absent"
            raise InputError(f"the start's weights do not fit: {odd[0]} is {tuple(new[odd[0]].shape)} here and {there} there; "
                             "change the start's model in the same way (start.model.*), or train a run without a start")
        self.model.load_state_dict({**new, **{name: value for name, value in start.items() if name in fits or name not in new}})

    def _phase(self, phase: Phase, first: int, state: dict | None, bar: tqdm, new_heads: bool) -> None:
        set_trainable(self.model, phase, new_heads)
        optimizer, schedule = make_optimizer(self.model, self.run.train, phase, phase.epochs * self.steps)
        decay = self.run.train.ema
        average = AveragedModel(self.model, multi_avg_fn=_ramped_ema(decay), use_buffers=True) if decay else None
        parts = {"model": self.model, "optimizer": optimizer, "schedule": schedule, "average": average}
        for name in parts if state else ():
            if parts[name] is not None:
                parts[name].load_state_dict(state[name])
        for epoch in range(state["epochs"] if state else first, first + phase.epochs):
            row = {"epoch": epoch + 1, "lr": schedule.get_last_lr()[0], **self._epoch(phase, epoch, optimizer, schedule, average, bar)}
            last = epoch + 1 == first + phase.epochs
            if last and average is not None:
                self.model.load_state_dict(average.module.state_dict())
            if last or (epoch + 1) % max(1, phase.epochs // 8) == 0:
                judged = self.model if average is None else average.module
                row["val_miou"] = evaluate(judged, self.validation, self.run.rho).miou
                set_trainable(self.model, phase, new_heads)
            self._log(row)
            bar.set_postfix({k: f"{row[k]:.3f}" for k in ("loss", "val_miou") if k in row})
            if last or time.perf_counter() - self.saved >= SAVED:
                self._save_state({"epochs": epoch + 1, **{k: v.state_dict() for k, v in parts.items() if v is not None}})

    def _epoch(self, phase: Phase, epoch: int, optimizer, schedule, average, bar: tqdm) -> dict:
        torch.manual_seed(1_000_003 * self.run.seed + epoch)
        keep = self.keep if phase.label_dropout else None
        losses, handed = [], []
        for images, labels in epoch_loader(self.samples, epoch, self.workers):
            images = images.to(self.device, memory_format=self.format, non_blocking=True)
            labels = labels.to(self.device, non_blocking=True)
            with torch.autocast(self.device.type, self.amp or torch.bfloat16, enabled=self.amp is not None):
                out = self.model(images, phase.rho, depth=max(phase.heads))
            loss = cascade_loss(out, labels, phase.heads, self.weight, keep, phase.easy_weight, phase.hard_above)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            if average is not None:
                average.update_parameters(self.model)
            losses.append(loss.detach())
            handed.append(torch.stack([mask.float().mean() for mask in out.handed]))
            bar.update()
        loss = torch.stack(losses).mean().item()
        if loss != loss:
            raise InputError(f"the loss of epoch {epoch + 1} is not a number; lower phases.*.lr (now {phase.lr})")
        return {"loss": loss, "handed": [round(v, 5) for v in torch.stack(handed).mean(0).tolist()]}

    def _log(self, row: dict) -> None:
        self.history.append(row)
        (self.folder / "history.jsonl").write_text("".join(json.dumps(r) + "\n" for r in self.history))
        with suppress(ImportError):  # a machine with torch only
            from torch.utils.tensorboard import SummaryWriter
            with SummaryWriter(self.folder / "tensorboard") as writer:
                for name in row.keys() & {"loss", "lr", "val_miou"}:
                    writer.add_scalar(name, row[name], row["epoch"])

    def _save_state(self, state: dict) -> None:
        target = self.folder / "state.pt"
        about = {"history": self.history, "run": self.run.key(), "made_by": self.made_by, "seconds": self.seconds}
        torch.save({**state, **about}, target.with_suffix(".tmp"))
        os.replace(target.with_suffix(".tmp"), target)
        self.saved = time.perf_counter()

    def _load_state(self) -> dict | None:
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / "state.pt"
        if not target.exists():
            return None
        state = torch.load(target, map_location="cpu")  # where AdamW reads its counts of steps at each of them
        if state.get("run") != self.run.key():
            raise InputError(f"{target} is the state of run {state.get('run', 'of an older version')}, this is run {self.run.key()}; give another "
                             f"folder (--out), or delete {target.parent}")
        if state.get("made_by") != self.made_by:
            raise InputError(f"{target} was trained with {state.get('made_by', 'an older version')}, here is {self.made_by}: a record can name "
                             f"but one; go on with those, or delete {target.parent} to begin anew")
        self.earlier = state["seconds"]
        self.history = state["history"]
        self.model.load_state_dict(state["model"])
        return state


def autocast_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """bfloat16 where the run asks for it and the device computes in it; None for float32."""
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported() if device.type == "cpu" else True
    return torch.bfloat16 if amp == "bf16" and native else None


def training_format(amp: torch.dtype | None, device: torch.device) -> torch.memory_format:
    """Channels last, except in bfloat16 on a CPU without AMX: there oneDNN's weight gradients of dilated convolutions are wrong in that
    layout (results/NOTES.md), and the plain layout is about as fast."""
    broken = device.type == "cpu" and amp is not None and not torch.cpu._is_amx_tile_supported()
    return torch.contiguous_format if broken else torch.channels_last


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the weights as safetensors, whole or not at all; matrices in half precision, which is what is then evaluated."""
    small = {name: value.half() if value.dim() > 1 else value for name, value in model.state_dict().items()}
    records.write_whole(path, save({name: value.contiguous().cpu() for name, value in small.items()}))


def load_model(run: RunConfig, num_classes: int, path: Path, device: torch.device | str = "cpu") -> LayerCascade:
    """The cascade of a run with the weights at path, in eval mode."""
    model = build(num_classes, **{**asdict(run.model), "weights": ""})
    model.load_state_dict(load_file(path))
    return model.to(device, memory_format=torch.channels_last).eval()

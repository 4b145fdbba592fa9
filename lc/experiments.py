"""The catalogue: one entry = one run = one cell of the paper. Standard library only, so that `plan` needs no set-up.

A method of Table 2 is a list of phases (lc.config.Phase); every method of a profile has the same budget: `epochs` of
initial training and `cascade_epochs` after it. LC, DSN (LC at rho = 1: Sec. 4.1) and DSN + dropout start from the same
initial weights; IRNet and MC, which have no such common start, train from the beginning within one run. MC trains each stage
for half the epochs: a stage costs less than the network, so this is about the same computing time.
"""
import os
import shutil
import subprocess
from dataclasses import dataclass, replace

from lc.config import DataConfig, ModelConfig, Phase, RunConfig, TrainConfig
from lc.errors import InputError
from lc.paper import columns

BEST_RHO = "0.985"  # "used in all the following experiments" (Sec. 4.1)
TIERS = ("smoke", "stand-in", "full")
STUDIES = {"difficulty": "easy, moderate and extremely hard pixels (Fig. 1)", "context": "what a region reads outside itself",
           "calibration": "is a confidence of rho right that often", "selection": "who exits: rho per stage, and an oracle"}


@dataclass(frozen=True)
class Profile:
    """One data set, one network, one budget. tier: smoke (checks the plumbing), stand-in (real training, not the paper's
    data), full (the paper's data and protocol). epoch_seconds: a dense epoch on the machine the profile is made for."""
    name: str
    tier: str
    made_for: str
    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    epochs: int
    cascade_epochs: int
    lr: float
    cascade_lr: float
    epoch_seconds: float
    seed: int = 0


@dataclass(frozen=True)
class Experiment:
    """A named run. cells: the published cells it is compared with; publish: its weights are small and are committed;
    sweep: all heads are trained, so that it can also be evaluated at every other rho; study: a function of lc.studies, which
    evaluates the finished run instead of training it."""
    name: str
    title: str
    run: RunConfig
    minutes: float
    cells: tuple[tuple[str, str, str], ...] = ()
    publish: bool = False
    sweep: bool = True
    study: str = ""


PROFILES = {p.name: p for p in (
    Profile("smoke", "smoke", "tests: the whole chain in about two minutes on 2 cores", DataConfig("shapes", 0.5, limit=12),
            ModelConfig(width=0.125, blocks=(1, 1, 1), head_width=16), TrainConfig(batch_size=6, crop=(64, 64)),
            epochs=2, cascade_epochs=1, lr=3e-3, cascade_lr=1e-3, epoch_seconds=0.5),
    Profile("shapes", "stand-in", "2 cores, no download", DataConfig("shapes"),
            ModelConfig(width=0.125, blocks=(1, 2, 1), head_width=32), TrainConfig(batch_size=16, crop=(128, 128), jitter=0.2),
            epochs=10, cascade_epochs=3, lr=6e-3, cascade_lr=2e-3, epoch_seconds=6),
    Profile("camvid-lite", "stand-in", "2 cores", DataConfig("camvid", scale=0.5),
            ModelConfig(width=0.25, blocks=(2, 3, 2), head_width=64),
            TrainConfig(crop=(180, 240), scales=(0.9, 1.2), balance="median", ema=0.995, weight_decay=0.03),
            epochs=64, cascade_epochs=12, lr=4e-3, cascade_lr=1e-3, epoch_seconds=16),
    Profile("camvid", "stand-in", "one GPU", DataConfig("camvid"), ModelConfig(),
            TrainConfig(crop=(360, 480), scales=(0.75, 1.5), balance="median", ema=0.995, weight_decay=0.03),
            epochs=200, cascade_epochs=60, lr=1e-3, cascade_lr=3e-4, epoch_seconds=6),
)}
NOT_YET = {name: f"profile {name} needs its data script and ImageNet weights, which this version does not prepare yet (README, "
                 "State); run PROFILE=camvid or PROFILE=shapes" for name in ("voc12", "cityscapes")}


def profile(name: str) -> Profile:
    """The profile of that name, or InputError that lists them."""
    if name in NOT_YET:
        raise InputError(NOT_YET[name])
    if name not in PROFILES:
        raise InputError(f"unknown profile {name!r}; profiles: {', '.join(PROFILES)}")
    return PROFILES[name]


def default_profile() -> tuple[str, str]:
    """(name, reason): voc12 on a machine with a GPU, shapes without."""
    smi = shutil.which("nvidia-smi")
    gpus = subprocess.run([smi, "-L"], capture_output=True, text=True).stdout.strip() if smi else ""
    if gpus:
        return "voc12", f"a GPU is here ({gpus.splitlines()[0].split(' (UUID')[0]})"
    return "shapes", "no GPU is here (nvidia-smi lists none)"


def catalogue(name: str) -> dict[str, Experiment]:
    """Every run of a profile, in the order in which they can be made."""
    p = profile(name)
    cascade = Phase(p.cascade_epochs, p.cascade_lr, freeze_bn=True)
    initial = RunConfig(name, p.data, p.model, p.train, (Phase(p.epochs, p.lr),), seed=p.seed)

    def tuned(rho: float, **changes) -> RunConfig:
        return replace(initial, phases=(replace(cascade, rho=rho),), rho=rho, start=initial, **changes)

    entries = [Experiment("initial", "initial training (DSN, all stages, all pixels)", initial, 0, publish=True)]
    for column in columns("1", "mIoU"):
        rho = float(column)
        row = "DSN" if rho == 1 else "LC"
        cells = (("1", "mIoU", column),) + ((("2", row, "mIoU"),) if column in ("1", BEST_RHO) else ())
        label = "dsn" if rho == 1 else f"lc-{column}"
        entries.append(Experiment(label, f"{row} at rho = {column}", tuned(rho), 0, cells, publish=column in ("1", BEST_RHO)))
    best = tuned(float(BEST_RHO))
    dropout = replace(tuned(1.0, dropout_like=best), phases=(replace(cascade, label_dropout=True),))
    entries.append(Experiment("dsn-dropout", f"DSN, labels dropped at LC's rates at rho = {BEST_RHO}", dropout, 0, (("2", "DSN + Dropout", "mIoU"),)))
    last = (len(p.model.blocks),)
    irnet = replace(initial, phases=(Phase(p.epochs, p.lr, heads=last), replace(cascade, heads=last)))
    entries.append(Experiment("irnet", "IRNet: the last head alone", irnet, 0, (("2", "IRNet", "mIoU"),), sweep=False))
    mc = replace(initial, rho=float(BEST_RHO), phases=tuple(
        Phase((p.epochs + p.cascade_epochs) // 2, p.lr, heads=(s,), stages=(s,), rho=float(BEST_RHO)) for s in (1, 2, 3)))
    entries.append(Experiment("mc", f"model cascade at rho = {BEST_RHO}: stage by stage, earlier ones fixed", mc, 0, (("2", "MC", "mIoU"),)))
    entries += [Experiment(f"study-{study}", title, best, 0, sweep=False, study=study) for study, title in STUDIES.items()]
    return {e.name: replace(e, minutes=_minutes(e, p)) for e in entries}


def _minutes(entry: Experiment, p: Profile) -> float:
    if entry.study:
        return 3 * p.epoch_seconds / 60
    epochs = sum(phase.epochs for phase in entry.run.phases)
    return (epochs * p.epoch_seconds + (10 if entry.sweep else 2) * p.epoch_seconds / 4) / 60


def experiment(profile_name: str, name: str) -> Experiment:
    """One entry of the catalogue, or InputError that lists them."""
    entries = catalogue(profile_name)
    if name not in entries:
        raise InputError(f"unknown experiment {name!r} of profile {profile_name}; experiments: {', '.join(entries)}")
    return entries[name]


def threads() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

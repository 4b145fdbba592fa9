"""What a run is: frozen dataclasses, and the hash that names the run's record. Standard library only."""
import dataclasses
import hashlib
import json
import types
import typing
from dataclasses import dataclass

from lc.errors import InputError, check_rho

CHOICES = {"optimizer": ("adamw", "sgd"), "schedule": ("one-cycle", "poly"), "balance": ("none", "median"), "amp": ("none", "bf16"),
           "head_kernels": (1, 3, 5, 7), "reading": ("zero", "dense", "features", "interpolated"), "head": ("conv", "aspp"),
           "network": ("irnet", "vgg16", "resnet101", "inception_resnet_v2", "fcn8s", "segnet", "deeplab", "deeplab-v2", "dilation", "crf-rnn")}

ANY, TINY = float("inf"), 1e-9
RANGES = {**dict.fromkeys(("batch_size", "epochs", "head_width", "blocks", "crop"), (1, ANY)), "heads": (1, 3), "stages": (1, 3),
          **dict.fromkeys(("limit", "halo", "jitter", "weight_decay", "easy_weight"), (0, ANY)), "hard_above": (0, 1), "ema": (0, 0.9999),
          **dict.fromkeys(("lr", "scale", "scales", "width"), (TINY, 1e3))}  # least and greatest value


@dataclass(frozen=True)
class DataConfig:
    """A data set as the network sees it. name: one of lc.data.SPECS; scale: resize on loading (labels: nearest pixel)."""
    name: str = "shapes"
    scale: float = 1.0
    limit: int = 0                                  # use only the first images of each split; 0 = all


@dataclass(frozen=True)
class ModelConfig:
    """A network (lc.networks.build). weights: "", imagenet or a file, for networks of timm; width: of all channels; blocks, cut:
    IRNet's; head: conv (head_width channels between two convolutions of head_kernels) or aspp; reading, halo: LayerCascade."""
    network: str = "irnet"
    weights: str = ""
    width: float = 1.0
    blocks: tuple[int, int, int] = (5, 10, 5)
    cut: tuple[int, int] = (3, 5)
    head: str = "conv"
    head_width: int = 128
    head_kernels: tuple[int, int] = (1, 3)
    reading: str = "zero"
    halo: int = 0


@dataclass(frozen=True)
class Phase:
    """One stretch of training (Sec. 3.3). All methods of Table 2 are settings of these:

    heads: which stages have a loss (1-based); rho: who is handed on while training; stages: which stages learn, the others
    are fixed; label_dropout: label pixels are dropped at random, per stage, at the rates of `RunConfig.dropout_like`;
    easy_weight: of a stage's loss on the pixels that were decided before it (0 in the paper; needs a halo that computes them);
    hard_above: pixels that a stage gets wrong with a confidence above it have no loss there (0.95: the HS of Fig. 1; 1: all have; easy_weight's
    share is not touched).
    """
    epochs: int = 1
    lr: float = 1e-3
    heads: tuple[int, ...] = (1, 2, 3)
    rho: float = 1.0
    stages: tuple[int, ...] = (1, 2, 3)
    label_dropout: bool = False
    easy_weight: float = 0.0
    hard_above: float = 1.0
    freeze_bn: bool = False                         # "fixing the values of all parameters in BNs" (Sec. 3.1)


@dataclass(frozen=True)
class TrainConfig:
    """The budget and the tricks, the same for every method of a profile."""
    batch_size: int = 8
    optimizer: str = "adamw"                        # adamw, or sgd with momentum 0.9
    weight_decay: float = 1e-2
    schedule: str = "one-cycle"                     # one-cycle, or poly (power 0.9, per step)
    crop: tuple[int, int] = (128, 128)              # height, width
    scales: tuple[float, float] = (0.75, 1.5)       # random resize before the crop
    flip: bool = True
    exact_labels: bool = False                      # resize labels on the image's own grid; else up to 0.6 pixels off it, as in older records
    jitter: float = 0.0                             # brightness, contrast, saturation
    balance: str = "none"                           # none, or median (median-frequency class weights)
    ema: float = 0.0                                # decay of the weight average that is evaluated; 0 = off
    amp: str = "bf16"                               # bf16 or none


@dataclass(frozen=True)
class RunConfig:
    """Everything that can change a number of one run. start: the run whose weights this one begins with."""
    profile: str
    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    phases: tuple[Phase, ...]
    rho: float = 1.0                                # threshold at evaluation
    seed: int = 0
    start: "RunConfig | None" = None
    dropout_like: "RunConfig | None" = None

    def key(self) -> str:
        """Ten hex digits: the hash of every field that is not at its default, so that a new setting renames no old record."""
        canonical = json.dumps(_changed(self), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def _changed(value):
    """A config as plain values, without the fields that are at their default."""
    if not dataclasses.is_dataclass(value):
        return [_changed(item) for item in value] if isinstance(value, tuple) else value
    return {f.name: _changed(getattr(value, f.name)) for f in dataclasses.fields(value)
            if f.default is dataclasses.MISSING or getattr(value, f.name) != f.default}


def from_dict(cls: type, values: dict, where: str = "") -> typing.Any:
    """Build a config dataclass from plain JSON values; unknown keys and wrong types raise InputError."""
    hints = typing.get_type_hints(cls)
    needed = [field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING]
    if not isinstance(values, dict) or not {*needed} <= {*values}:
        raise InputError(f"{where.removesuffix('.') or 'a run'} must be settings by name ({', '.join(needed or hints)}, ...), got {values!r}")
    for name in values:
        if name not in hints:
            raise InputError(f"unknown setting {where}{name!r}; settings here: {', '.join(hints)}")
    return cls(**{name: _convert(hints[name], value, f"{where}{name}") for name, value in values.items()})


def _convert(hint, value, where: str):
    if isinstance(hint, types.UnionType):
        return None if value is None else _convert(hint.__args__[0], value, where)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, f"{where}.")
    if typing.get_origin(hint) is tuple:
        args = hint.__args__
        if not isinstance(value, (list, tuple)) or not value or (args[-1] is not ... and len(value) != len(args)):
            raise InputError(f"{where} must be a list like {hint}, got {value!r}")
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint:
        raise InputError(f"{where} must be {hint.__name__}, got {value!r}")
    name = where.rpartition(".")[2].partition("[")[0]
    if value not in CHOICES.get(name, (value,)):
        raise InputError(f"{where} must be one of {', '.join(map(str, CHOICES[name]))}, got {value!r}")
    low, high = RANGES.get(name, (-ANY, ANY))
    if hint in (int, float) and not low <= value <= high:
        raise InputError(f"{where} must be {f'{low:g} or more' if high == ANY else f'from {low:g} to {high:g}'}, got {value!r}")
    return check_rho(value) if where.endswith("rho") else value


def override(run: RunConfig, settings: list[str]) -> RunConfig:
    """A copy of run with "train.batch_size=4" style settings applied; values are JSON."""
    values = dataclasses.asdict(run)
    for setting in settings:
        path, sign, text = setting.partition("=")
        *parents, last = path.split(".")
        try:
            spot = values
            for part in parents:
                spot = spot[int(part) if part.isdigit() else part]
            spot[last]
        except (KeyError, IndexError, TypeError):
            raise InputError(f"unknown setting {path!r}; settings look like train.batch_size=4 or phases.0.rho=0.9") from None
        if not sign:
            raise InputError(f"a setting looks like {path}=VALUE, got {setting!r}")
        try:
            spot[last] = json.loads(text)
        except json.JSONDecodeError:
            spot[last] = text
    return from_dict(RunConfig, values)

"""The catalogue: one entry = one run = one cell of the paper. Standard library only, so that `plan` needs no set-up.

A method of Table 2 is a list of phases (lc.config.Phase); every method of a profile has the same budget: `epochs` of initial training and
`cascade_epochs` after it. LC, DSN (LC at rho = 1: Sec. 4.1) and DSN + dropout start from the same initial weights; IRNet and MC, which have no such
common start, train from the beginning within one run. MC trains each stage for half the epochs: a stage costs less than the network, so this is
about the same computing time. Beside the paper's own runs there are those that change one thing of LC's cascade training at a time (group "why"),
the systems that the paper compares with, LC on other backbones, and the main runs from other seeds.
"""
import math
import shutil
import subprocess
from dataclasses import dataclass, replace

from lc.config import DataConfig, ModelConfig, Phase, RunConfig, TrainConfig
from lc.errors import InputError
from lc.paper import columns, published

EVERYWHERE = 10_000  # a halo, in cells, that covers any image
SYSTEMS = {"fcn8s": "FCN-8s", "segnet": "SegNet (pooling indices)", "deeplab": "DeepLab (VGG16, large field of view)",
           "deeplab-v2": "DeepLab-v2 (ResNet-101, ASPP)", "dilation": "Dilation (front end, context module)",
           "crf-rnn": "CRF-RNN (FCN-8s, mean field)"}
LEAST = 22_000  # MiB of a GPU on which voc12 is chosen without being asked for
BEST_RHO = "0.985"  # "used in all the following experiments" (Sec. 4.1)
HALOS = {f"lc-halo-{k}": k for k in (1, 2, 4)}  # in cells
LARGER = {"": {}, "-features": {"reading": "features"}, "-halo-2": {"halo": 2}}  # LC of changed networks and data: name behind lc-large; change
FULL = (24, 6)  # epochs of the paper's network in a small profile, initial and cascade training: what 2 cores with AMX train in two hours
CASCADES = (f"lc-{BEST_RHO}", *HALOS, "lc-features", *(f"lc-{what}{key}" for what in ("large", "wide", "unbalanced") for key in LARGER),
            *(f"lc-{what}{key}" for what in ("wide-unbalanced", "full-unbalanced") for key in ("", "-features")),
            "lc-full", "lc-full-halo-2")  # the runs that are timed
SEEDED = {"initial", "dsn", f"lc-{BEST_RHO}", "lc-halo-2", "lc-features", "dsn-dropout", "irnet", "mc",  # repeated with the other seeds
          "initial-wide", "dsn-wide", "lc-wide-features", "lc-unbalanced-halo-2",
          *(f"{row}-{what}" for what in ("unbalanced", "wide-unbalanced") for row in ("initial", "dsn", "lc")),
          "lc-unbalanced-features", "lc-wide-unbalanced-features", "irnet-wide-unbalanced",
          *(f"{row}-unbalanced" for row in ("irnet", "dsn-dropout"))}
STUDIES = {  # function, and split if it is not val: the module that holds it, title
    "difficulty": ("studies", "easy, moderate and extremely hard pixels (Fig. 1)"), "context": ("studies", "what a region reads outside itself"),
    "context-test": ("studies", "what a region reads outside itself, on test images"),
    "border": ("studies", "how deep in a region LC's errors lie"),
    "calibration": ("studies", "is a confidence of rho right that often"), "selection": ("studies", "who exits: rho per stage, and an oracle"),
    "multiscale": ("options", "flips and three scales at test time (Table 6)"), "crf": ("options", "a fully connected CRF on the result (Table 6)")}


@dataclass(frozen=True)
class Profile:
    """One data set, one network, one budget. tier: smoke (checks the plumbing), stand-in (real training, not the paper's
    data), full (the paper's data and protocol). epoch_seconds: a dense epoch on the machine the profile is made for, as many at a time as
    machine.jobs() says."""
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
    seeds: tuple[int, ...] = (0,)                   # the first is that of all runs; the main ones are repeated with the others
    freeze_bn: bool = False                         # also in initial training, which then needs pretrained weights


@dataclass(frozen=True)
class Experiment:
    """A named run. cells: the published cells it is compared with; publish: its weights are small and are committed;
    sweep: it is evaluated at every other rho too, for which all heads must be trained; study: a name in STUDIES, what
    evaluates the finished run instead of training it; control: the run that its gain is counted from."""
    name: str
    title: str
    run: RunConfig
    cells: tuple[tuple[str, str, str], ...] = ()
    publish: bool = False
    sweep: bool = True
    study: str = ""
    group: str = ""  # "why": one thing of LC changed
    control: str = ""
    minutes: float = 0  # an estimate, made by `catalogue`


PROFILES = {p.name: p for p in (
    Profile("smoke", "smoke", "tests: the whole chain in about two minutes on 2 cores", DataConfig("shapes", 0.5, limit=12),
            ModelConfig(width=0.125, blocks=(1, 1, 1), head_width=16), TrainConfig(batch_size=6, crop=(64, 64)),
            epochs=2, cascade_epochs=1, lr=3e-3, cascade_lr=1e-3, epoch_seconds=0.5),
    Profile("shapes", "stand-in", "2 cores, no download", DataConfig("shapes", limit=96),
            ModelConfig(width=0.125, blocks=(1, 2, 1), head_width=32), TrainConfig(batch_size=12, crop=(128, 128), jitter=0.2),
            epochs=8, cascade_epochs=2, lr=6e-3, cascade_lr=2e-3, epoch_seconds=3.2),
    Profile("camvid-lite", "stand-in", "2 cores", DataConfig("camvid", scale=0.5),
            ModelConfig(width=0.25, blocks=(2, 3, 2), head_width=64),
            TrainConfig(crop=(180, 240), scales=(0.9, 1.2), balance="median", ema=0.995, weight_decay=0.03),
            epochs=64, cascade_epochs=12, lr=4e-3, cascade_lr=1e-3, epoch_seconds=35, seeds=(0, 1, 2)),
    Profile("camvid", "stand-in", "one GPU", DataConfig("camvid"), ModelConfig(),
            TrainConfig(crop=(360, 480), scales=(0.75, 1.5), ema=0.995, weight_decay=0.03, exact_labels=True),  # classes as in the paper
            epochs=200, cascade_epochs=60, lr=1e-3, cascade_lr=3e-4, epoch_seconds=6, seeds=(0, 1, 2)),
    # The paper's own. results/choices.csv gives the source of each setting: the paper, or DeepLab's protocol where it is silent.
    # epoch_seconds: 6 x 132 GMAC an image at 60 TFLOP/s and some loss, an estimate.
    Profile("voc12", "full", "one GPU of 24 GB or more", DataConfig("voc12"), ModelConfig("inception_resnet_v2", "imagenet"),
            TrainConfig(optimizer="sgd", weight_decay=5e-4, schedule="poly", crop=(512, 512), scales=(0.5, 1.5), exact_labels=True),
            epochs=19, cascade_epochs=6, lr=1e-3, cascade_lr=2.5e-4, epoch_seconds=180, freeze_bn=True),
    Profile("cityscapes", "full", "one GPU of 48 GB or more", DataConfig("cityscapes"), ModelConfig("inception_resnet_v2", "imagenet"),
            TrainConfig(optimizer="sgd", weight_decay=5e-4, schedule="poly", crop=(768, 768), scales=(0.5, 1.5), exact_labels=True),
            epochs=67, cascade_epochs=22, lr=1e-3, cascade_lr=2.5e-4, epoch_seconds=110, freeze_bn=True),
)}


def profile(name: str) -> Profile:
    """The profile of that name, or InputError that lists them."""
    if name not in PROFILES:
        raise InputError(f"unknown profile {name!r}; profiles: {', '.join(PROFILES)}")
    return PROFILES[name]


def chosen_profile(asked: str | None = None) -> tuple[str, str]:
    """(name, reason): the one asked for; without one voc12 on a machine with a GPU that is large enough, shapes elsewhere."""
    if asked:
        return asked, "asked for"
    query = [shutil.which("nvidia-smi"), "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    found = query[0] and subprocess.run(query, capture_output=True, text=True)
    if not found or found.returncode or not found.stdout.strip():  # its errors are on stdout, too
        return "shapes", "no GPU is here (nvidia-smi lists none)"
    name, _, memory = found.stdout.splitlines()[0].rpartition(", ")
    if memory.isdigit() and int(memory) < LEAST:
        return "shapes", f"the GPU here ({name}) has {memory} MiB, voc12 is made for {PROFILES['voc12'].made_for}; PROFILE=voc12 tries it"
    return "voc12", f"a GPU is here ({name})"


def catalogue(name: str) -> dict[str, Experiment]:
    """Every run of a profile, in the order in which they can be made."""
    p = profile(name)
    entries = [*_paper(p), *_why(p), *_unbalanced(p), *_systems(p), *_networks(p)]
    return {e.name: replace(e, minutes=_minutes(e, p)) for e in [*entries, *_seeds(p, entries)]}


def _initial(p: Profile, seed: int) -> RunConfig:
    return RunConfig(p.name, p.data, p.model, p.train, (Phase(p.epochs, p.lr, freeze_bn=p.freeze_bn),), seed=seed)


def _tuned(p: Profile, initial: RunConfig, rho: float = float(BEST_RHO), **phase) -> RunConfig:
    """Cascade training at rho from the initial weights; `phase`: what differs from the profile's settings."""
    return replace(initial, phases=(Phase(**{"epochs": p.cascade_epochs, "lr": p.cascade_lr, "freeze_bn": True, "rho": rho, **phase}),),
                   rho=rho, start=initial)


def _paper(p: Profile) -> list[Experiment]:
    """Tables 1 and 2, and the studies of their weights."""
    initial = _initial(p, p.seeds[0])
    entries = [Experiment("initial", "initial training (DSN, all stages, all pixels)", initial, publish=True)]
    for column in columns("1", "mIoU"):
        row = "DSN" if column == "1" else "LC"
        cells = (("1", "mIoU", column),) + ((("2", row, "mIoU"),) if column in ("1", BEST_RHO) else ())
        label = "dsn" if row == "DSN" else f"lc-{column}"
        entries.append(Experiment(label, f"{row} at rho = {column}", _tuned(p, initial, float(column)), cells, publish=column in ("1", BEST_RHO)))
    last, best = (len(p.model.blocks),), _tuned(p, initial)
    dropout = replace(_tuned(p, initial, 1.0, label_dropout=True), dropout_like=best)
    irnet = replace(initial, phases=(Phase(p.epochs, p.lr, heads=last, freeze_bn=p.freeze_bn),
                                     Phase(p.cascade_epochs, p.cascade_lr, heads=last, freeze_bn=True)))
    mc = replace(initial, rho=best.rho, phases=tuple(
        Phase((p.epochs + p.cascade_epochs) // 2, p.lr, heads=(s,), stages=(s,), rho=best.rho, freeze_bn=p.freeze_bn) for s in (1, 2, 3)))
    methods = {"dsn-dropout": ("DSN + Dropout", f"DSN, labels dropped at LC's rates at rho = {BEST_RHO}", dropout),
               "irnet": ("IRNet", "IRNet: the last head alone", irnet),
               "mc": ("MC", f"model cascade at rho = {BEST_RHO}: stage by stage, earlier ones fixed", mc)}
    return [*entries,
            *(Experiment(name, title, run, (("2", row, "mIoU"),), sweep=name != "irnet") for name, (row, title, run) in methods.items()),
            *(Experiment(f"study-{study}", title, best, sweep=False, study=study) for study, (_, title) in STUDIES.items()
              if study != "context-test" or p.data.name == "camvid")]  # the one data set whose test labels are public


def _changed(name: str, title: str, run: RunConfig, control: str = "dsn") -> Experiment:
    """A run with one thing of LC, or of the DSN, changed; one that is timed is also evaluated at every other rho."""
    return Experiment(name, title, run, sweep=name in CASCADES, group="why", control=control)


def _why(p: Profile) -> list[Experiment]:
    """LC at the best rho with one thing changed, and the DSN with the same change where it can have it."""
    initial, hs = _initial(p, p.seeds[0]), published("text", "hs-confidence-above").value / 100
    best = _tuned(p, initial)
    halos = [_changed(name, f"LC, a halo of {k} cell{'s' * (k > 1)} is computed round each region", replace(best, model=replace(p.model, halo=k)))
             for name, k in HALOS.items()]
    readings = [_changed(name, f"LC, windows read {what} outside the region", replace(best, model=replace(p.model, reading=reading)))
                for name, reading, what in (("lc-dense-read", "dense", "the stage's input"),
                                            ("lc-features", "features", "features of the stage before"),
                                            ("lc-interpolated", "interpolated", "an interpolation of the region"))]
    changes = {"long": ("twice the cascade epochs", {"epochs": 2 * p.cascade_epochs}),
               "fast": ("four times the learning rate", {"lr": 4 * p.cascade_lr}),
               "slow": ("a quarter of the learning rate", {"lr": p.cascade_lr / 4}), "bn": ("batch norm not frozen", {"freeze_bn": False}),
               "no-hs": (f"no loss on pixels that a stage gets wrong with a confidence above {hs:g} (HS)", {"hard_above": hs})}
    pairs = [_changed(f"{row}-{key}", f"{row.upper()}, {title}", _tuned(p, initial, rho, **change), f"dsn-{key}" if row == "lc" else "dsn")
             for key, (title, change) in changes.items() for row, rho in (("dsn", 1.0), ("lc", best.rho))]
    everywhere = [_changed(name, f"LC, later stages compute every cell; easy ones keep {weight:g} of the loss", replace(
        _tuned(p, initial, easy_weight=weight), model=replace(p.model, halo=EVERYWHERE)))
                  for name, weight in (("lc-everywhere", 0.0), ("lc-easy", 0.1))]
    return [*halos, *readings, *everywhere, *pairs, *_pretrained(p), *_larger(p)]


def _pretrained(p: Profile) -> list[Experiment]:
    """DSN and LC whose initial training does not begin at random: half as long on procedural images before, where nothing else is to be had."""
    if p.model.weights or p.data.name == "shapes":
        return []
    first = replace(_initial(p, p.seeds[0]), data=DataConfig("shapes"), train=replace(p.train, crop=(128, 128)), phases=(Phase(p.epochs // 2, p.lr),))
    return [Experiment("pretraining", "initial training on procedural images", first, sweep=False),
            *_pair(p, "pretrained", "pretrained on procedural images", replace(_initial(p, p.seeds[0]), start=first))]


def _changed_profiles(p: Profile) -> dict[str, tuple[str, Profile]]:
    """By name, title and profile: larger images, twice the channels, the paper's network; without class weights, and the last two so; where the
    profile shrinks the paper's."""
    if p.data.name == "shapes" or p.model.width >= 1:
        return {}
    full, crop = PROFILES["camvid"], tuple(round(side / p.data.scale) for side in p.train.crop)
    wide = replace(p, model=replace(p.model, width=2 * p.model.width))
    paper = replace(p, model=full.model, epochs=FULL[0], cascade_epochs=FULL[1], lr=full.lr, cascade_lr=full.cascade_lr)
    same, without = lambda q: replace(q, train=replace(q.train, balance="none")), "without class weights"
    found = {"large": ("images of their own size", replace(p, data=replace(p.data, scale=1.0), train=replace(p.train, crop=crop))),
             "wide": ("twice the width", wide), "full": ("the paper's network", paper), "unbalanced": (without, same(p)),
             "wide-unbalanced": (f"twice the width, {without}", same(wide)), "full-unbalanced": (f"the paper's network, {without}", same(paper))}
    return {name: (title, changed) for name, (title, changed) in found.items() if changed != p}


def _larger(p: Profile) -> list[Experiment]:
    """DSN and LC of `_changed_profiles`, LC also as those that are timed."""
    timed = lambda name: {key: change for key, change in LARGER.items() if f"lc-{name}{key}" in CASCADES}
    return [entry for name, (title, q) in _changed_profiles(p).items() for entry in _pair(q, name, title, _initial(q, q.seeds[0]), timed(name))]


def _unbalanced(p: Profile) -> list[Experiment]:
    """The rest of Tables 1 and 2 without balanced classes, which the paper does not balance, and so IRNet of the larger networks; `_larger` has
    LC and its DSN."""
    pair = {e.run for e in _larger(p)}
    return [replace(e, name=f"{e.name}-{name}", title=f"{e.title}, {title}", cells=(), publish=False, sweep=False)
            for name, (title, q) in _changed_profiles(p).items() if name.endswith("unbalanced")
            for e in _paper(q) if not e.study and e.run not in pair and (name == "unbalanced" or e.name == "irnet")]


def _pair(p: Profile, name: str, title: str, initial: RunConfig, variants: dict[str, dict] = {"": {}}) -> list[Experiment]:
    """Initial training, and from its weights DSN and LC (and LC's `variants`: changes of its network)."""
    best, control = _tuned(p, initial), f"dsn-{name}"
    return [Experiment(f"initial-{name}", f"initial training, {title}", initial, sweep=False),
            _changed(control, f"DSN, {title}", _tuned(p, initial, 1.0)),
            *(_changed(f"lc-{name}{key}", f"LC, {title}{key and f', as lc{key}'}", replace(best, model=replace(initial.model, **change)), control)
              for key, change in variants.items())]


def _systems(p: Profile) -> list[Experiment]:
    """The other systems, trained as long as IRNet is. CRF-RNN starts from FCN-8s, as its authors do, and so gets more."""
    def run(network: str) -> RunConfig:
        frozen = p.freeze_bn and network == "deeplab-v2"  # the others put new batch norms on top of VGG16
        phases = (Phase(p.epochs, p.lr, heads=(1,), freeze_bn=frozen), Phase(p.cascade_epochs, p.cascade_lr, heads=(1,), freeze_bn=True))
        return replace(_initial(p, p.seeds[0]), model=ModelConfig(network, p.model.weights, p.model.width), phases=phases)

    runs = {network: run(network) for network in ("fcn8s", "segnet", "deeplab", "deeplab-v2", "dilation")}
    if p.data.name != "cityscapes":  # whose images would need filters of 69 GB each
        crf_rnn = run("crf-rnn")
        runs["crf-rnn"] = replace(crf_rnn, phases=crf_rnn.phases[1:], start=runs["fcn8s"])
    cells = {"segnet": (("3", "SegNet", "mIoU"),), "deeplab-v2": (("3", "DeepLab-v2", "mIoU"),)}
    return [Experiment(name, f"{SYSTEMS[name]}, the same training", r, cells.get(name, ()), sweep=False) for name, r in runs.items()]


def _networks(p: Profile) -> list[Experiment]:
    """LC on other networks of timm, and IRNet-LC with ASPP heads: initial weights, DSN, LC."""
    entries = []
    models = {name: ModelConfig(name, p.model.weights, p.model.width, head_width=p.model.head_width) for name in ("vgg16", "resnet101")}
    for name, model in {**models, "aspp": replace(p.model, head="aspp")}.items():
        initial = replace(_initial(p, p.seeds[0]), model=model)
        runs = {"initial": initial, "dsn": _tuned(p, initial, 1.0), "lc": _tuned(p, initial)}
        entries += [Experiment(f"{name}-{row}", f"{row} on {name}", run, sweep=row == "lc",
                               control=f"{name}-dsn" if row == "lc" else "") for row, run in runs.items()]
    return entries


def _seeds(p: Profile, entries: list[Experiment]) -> list[Experiment]:
    """The runs of SEEDED from other seeds."""
    return [Experiment(f"{e.name}-seed-{seed}", f"{e.name}, seed {seed}", _seeded(e.run, seed), sweep=e.name in CASCADES)
            for seed in p.seeds[1:] for e in entries if e.name in SEEDED]


def _seeded(run: RunConfig | None, seed: int) -> RunConfig | None:
    return run and replace(run, seed=seed, start=_seeded(run.start, seed), dropout_like=_seeded(run.dropout_like, seed))


def _minutes(entry: Experiment, p: Profile) -> float:
    if entry.study:
        return 3 * p.epoch_seconds / 60
    epochs = sum(phase.epochs for phase in entry.run.phases)
    larger = math.prod(entry.run.train.crop) / math.prod(p.train.crop) * entry.run.model.width / p.model.width
    larger *= sum(entry.run.model.blocks) / sum(p.model.blocks) if entry.run.model.network == "irnet" else 1
    return (epochs * p.epoch_seconds + (10 if entry.sweep else 2) * p.epoch_seconds / 4) * larger / 60


def experiment(profile_name: str, name: str) -> Experiment:
    """One entry of the catalogue, or InputError that lists them."""
    entries = catalogue(profile_name)
    if name not in entries:
        raise InputError(f"unknown experiment {name!r} of profile {profile_name}; experiments: {', '.join(entries)}")
    return entries[name]

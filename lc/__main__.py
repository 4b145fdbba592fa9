"""`python -m lc COMMAND`: parse, call, print. Bad input ends in one line and exit code 2.

Nothing heavy is imported before a command needs it, so that `plan` and `list` answer at once, and on a bare Python.
"""
import argparse
import re
import sys
from pathlib import Path

from lc import experiments, machine, paths, records
from lc.errors import InputError, check_rho

SHOWN = "camvid-lite"  # the profile whose weights are committed, and whose numbers the README shows
LIMITS = {"jobs": (1, 256), "workers": (0, 256), "repeats": (1, 10**6), "processes": (1, 100), "chain": (1, 100), "images": (1, 10**6),
          "halo": (0, 64), "height": (32, 8192), "fps": (1e-3, 10**6)}  # least and greatest value of options that are numbers
POOLED = {"region": 7, "network": 7, "networks": 5, "training": 1}  # timings that may be medians over processes: rounds of each
BENCH = {"images": (["cascade"], "validation images of a round (default: 10)"),  # options of `bench`: the kinds that take each, and its help
         "halo": (["network"], "cells computed round each region (default: 0, as in the paper)"),
         "reading": (["network"], "what windows read outside a region, on a CPU (default: zeros)"),
         "chain": (["region"], "blocks on one region (default: as many as IRNet has, 10 of IRNet-B and 5 of IRNet-C)"),
         "experiment": (["cascade"], f"the trained cascade (default: lc-{experiments.BEST_RHO})"),
         "profile": (["cascade", "loader", "systems"], "whose data and runs (default: voc12 with a GPU of 24 GB, else shapes)"),
         "data": (["cascade", "loader"], "folder of the data sets (default: $LC_DATA, else data/)"),
         "processes": ([*POOLED], "processes whose medians are taken (default: 5; with a GPU 1)")}
NUMBERS = ("<!-- numbers: written by `python -m lc table readme` -->", "<!-- end of numbers -->")


def _device(name: str, timing: bool = False):
    """The device to compute on; from then on the process keeps its memory. timing: cuDNN, which all sides use, picks convolutions by trying them."""
    import torch
    machine.keep_memory()
    torch.backends.cudnn.benchmark = timing  # images of many sizes, as evaluation has them, would try anew for each
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if name.startswith("cuda") and int(name[5:] or 0) >= (count := torch.cuda.device_count()):
        raise InputError(f"device {name!r} asked for, but PyTorch sees {count or 'no'} GPU here; use {'a lower number' if count else '--device cpu'}")
    if ":" in name:
        torch.cuda.set_device(name)  # kernels and graphs go to the current one
    return torch.device(name)


def _asked(args, profile: str = SHOWN) -> tuple[str, experiments.RunConfig, float]:
    """The profile and the run that are asked for, and the threshold, by default the run's own; InputError outside [0, 1]."""
    run = experiments.experiment(name := args.profile or profile, args.experiment).run
    return name, run, check_rho(run.rho if args.rho is None else args.rho)


def plan(args) -> None:
    """Say what `make reproduce` will do; with --only just its name, data set or count."""
    name, why = experiments.chosen_profile(args.profile)
    profile = experiments.profile(name)
    due, every = records.missing(name), experiments.catalogue(name)
    if args.only:
        print({"name": name, "dataset": profile.data.name, "count": len(due) + len(records.bench_missing(name))}[args.only])
        return
    print(f"Profile {name} ({why}): {profile.data.name} data, tier {profile.tier}, made for {profile.made_for}.")
    if not due:
        print(f"All {len(every)} runs have their records; nothing is trained.")
    else:
        print(f"{len(due)} of {len(every)} runs are missing: {', '.join(e.name for e in due)}.")
        jobs = 1 if "GPU" in profile.made_for else machine.jobs()
        print(f"Training takes about {sum(e.minutes for e in due) / jobs:.0f} minutes on {profile.made_for.split(',')[0]}, {jobs} at a time; the "
              "book about 5 more.")
    for entry in every.values():
        record = records.find(entry)
        if record and record.stale:
            print(f"Stale: {name}/{entry.name}: {record.stale}; it is shown as such. Remake it with `python -m lc run --profile {name} --again`.")
        for path in records.outdated(entry):
            print(f"Not used: {path.name}, made with other settings of {entry.name} than today's.")


def list_(args) -> None:
    """The catalogue: experiment, state, minutes, the published cells it is compared with, title."""
    for name in [args.profile] if args.profile else experiments.PROFILES:
        profile = experiments.profile(name)
        print(f"{name} ({profile.tier}; made for {profile.made_for})")
        for entry in experiments.catalogue(name).values():
            record = records.find(entry)
            state = "missing" if record is None else "stale" if record.stale else "done"
            cells = "; ".join(f"Table {t} {r} {c}" for t, r, c in entry.cells)
            print(f"  {entry.name:<12} {state:<8} {entry.minutes:6.1f} min  {entry.title}{f'  [{cells}]' if cells else ''}")


def run(args) -> None:
    """Make every record that is missing, and the timings if there are none."""
    from lc import runs
    from lc.data import SegmentationSet
    name, _ = experiments.chosen_profile(args.profile)
    chosen = [experiments.experiment(name, e) for e in args.experiments] or list(experiments.catalogue(name).values())
    due = [entry for entry in chosen if (record := records.find(entry)) is None or args.again and record.stale
           or args.experiments and not entry.study and runs.weights_path(entry.name, entry.run) is None]  # a record may have come without its weights
    timings = [] if args.experiments else records.bench_missing(name)
    if not due and not timings:
        print(f"{name}: no run is missing")
        return
    from lc.speed import bench, trained
    device, profile = _device(args.device), experiments.profile(name)
    print(f"device: {machine.device_name(device)}; data set: {profile.data.name}, looked for under {paths.data_root(args.data)}")
    if device.type == "cpu" and "GPU" in profile.made_for:
        print(f"{name} is made for {profile.made_for}: minutes below are a GPU's, this device needs far longer")
    SegmentationSet(profile.data, "train", args.data)  # data that are not there need not wait for the first run
    runs.run_all(due, args.data, device, args.workers, args.jobs)
    device = _device(args.device, timing=True)
    for kind in timings:
        if kind == "systems":
            print(bench.systems(name, device=device, thorough=False))
        elif runs.weights_path(kind, experiments.experiment(name, kind).run) is None:
            print(f"{kind} is not timed: its record came without its weights; train it with `python -m lc run --profile {name} {kind}`")
        else:
            print(trained.run(name, kind, args.data, device, thorough=False))


def train(args) -> None:
    """Train one experiment with changed settings, into --out; its record stays. Runs it needs, whose weights are not here, are made first."""
    from dataclasses import replace
    from lc import config, runs
    from lc.data import SegmentationSet
    from lc.evaluate import evaluate
    from lc.train import Trainer, save_weights
    name, _ = experiments.chosen_profile(args.profile)
    entry = experiments.experiment(name, args.experiment)
    settings = config.override(entry.run, args.set)
    out = paths.folder(args.out or paths.build(name) / "train" / records.stem(args.experiment, settings))
    data, val = (SegmentationSet(settings.data, split, args.data) for split in ("train", "val"))
    device = _device(args.device)
    runs.run_all(runs.with_needed([replace(entry, run=settings, study="")])[:-1], args.data, device, args.workers)
    with machine.alone_in(out):
        model = Trainer(settings, data, val, out, device, *runs.begins_with(settings), args.workers).fit()
        save_weights(model, out / "weights.safetensors")
    print(f"val mIoU {evaluate(model, val, settings.rho).miou:.4f} at rho = {settings.rho:g}; weights, history and state in {out}")


def bench(args) -> None:
    """Time against the fastest dense form, and write a file that names the device: a trained cascade at each rho (default), blocks on regions
    (`region`), the full network (`network`), LC on timm's (`networks`) and a training step (`training`) at the paper's pixel shares, the loader, a
    profile's systems (`systems`), the poster's networks (`poster`). On a CPU region, network, networks and training take several processes, on a GPU
    blocks and networks eight settings (dtype, batch, size); a call that is cut off there goes on with those that are left."""
    for option, (kinds, _) in BENCH.items():
        if (value := getattr(args, option)) and args.kind not in kinds:
            raise InputError(f"--{option} {value} is for `bench {'`, `bench '.join(kinds)}`, got `bench {args.kind}`"
                             + "; a trained cascade has its own: --experiment lc-halo-4" * (kinds == ["network"]))
    from lc.speed import bench as benches, timing, trained
    timing.check(args.json)
    device, (name, _) = _device(args.device, timing=True), experiments.chosen_profile(args.profile)
    chosen = {key: value for key in ("repeats", "images", "halo", "reading", "chain") if (value := getattr(args, key))}
    processes = 1 if args.part or args.kind not in POOLED else args.processes or (5 if device.type == "cpu" else 1)
    if args.part:  # what its rounds differ by is nothing to refuse: the pool says whether processes agree
        timing.NOISY = float("inf")
    call = {"cascade": lambda: trained.run(name, args.experiment or f"lc-{experiments.BEST_RHO}", args.data, device, target=args.json, **chosen),
            "loader": lambda: benches.loader(name, args.data, device, args.json, **chosen),
            "networks": lambda: benches.network(args.json, device, names=benches.OTHERS, **chosen),
            "systems": lambda: benches.systems(name, args.json, device, **chosen)}
    options = [f"--{key}={value}" for key, value in {"device": device, "repeats": POOLED.get(args.kind), **chosen}.items()]
    print(timing.pooled([args.kind, *options], processes, device, args.json) if processes > 1 else
          call.get(args.kind, lambda: getattr(benches, args.kind)(args.json, device, **chosen))())


def _trained(args, timing: bool = False):
    """The cascade that is asked for, its data set, rho, and the height of the images it is given; timing: see _device."""
    from lc import runs
    name, run, rho = _asked(args)
    return *runs.trained(name, args.experiment, _device(args.device, timing), args.weights), rho, args.height or run.train.crop[0]


def predict(args) -> None:
    """Label, stage and confidence maps of images, as PNG overlays."""
    _asked(args)
    from lc.speed import fast
    from lc import predict as predictor
    images = predictor.read_images(args.images)  # all of them, before anything is written
    model, spec, rho, height = _trained(args)
    print(*predictor.write_overlays(images, args.out, fast.prepare(model), spec, rho, height), sep="\n")


def export(args) -> None:
    """Write predictions as the evaluation server of VOC (comp6) or Cityscapes takes them."""
    from lc import export as exporter, runs
    from lc.data import SegmentationSet
    form = exporter.FORMATS[args.format]
    name, run, rho = _asked(args, form.data)
    if run.data.name != form.data:
        raise InputError(f"format {args.format} is for {form.data}, profile {name} has {run.data.name}; give a --profile with that data")
    data = None if args.images else SegmentationSet(run.data, args.split, args.data)
    samples = exporter.unlabelled(args.images) if data is None else ((data.name(i), *data.read(i)) for i in range(len(data)))
    out = args.out or paths.build(name) / "export" / f"{args.experiment}-{args.split}"
    archive, miou = exporter.export(args.format, args.split, samples, *runs.trained(name, args.experiment, _device(args.device)), rho, out)
    print(f"{archive}: {args.split}, rho = {rho:g}" + ("" if miou is None else f", mIoU {miou:.4f} counted from its files"))


def video(args) -> None:
    """Label and stage overlays of a folder of frames or a video file, at a chosen rho or a target in frames per second."""
    if None not in (args.fps, args.rho):
        raise InputError(f"--rho {args.rho:g} and --fps {args.fps:g} exclude each other, as --fps picks rho; leave one out")
    from lc import predict as predictor
    model, spec, rho, height = _trained(args, timing=True)
    predictor.video(args.source, args.out, model, spec, rho, args.fps, height)
    print(args.out)


def table(args) -> None:
    """Print a table of the paper beside ours; "readme" renews the numbers in README.md."""
    from lc.report import summary, tables
    if args.table == "readme":
        head, _, rest = (paths.ROOT / "README.md").read_text().partition(NUMBERS[0])
        tail = rest.partition(NUMBERS[1])[2]
        block = summary.block(tables.evidence(args.profile or SHOWN))
        records.write_whole(paths.ROOT / "README.md", f"{head}{NUMBERS[0]}\n{block}\n{NUMBERS[1]}{tail}".encode())
        return
    frames = {"1": tables.rho_table, "2": tables.methods}
    if args.table not in frames:
        raise InputError(f"table {args.table!r} is not printed here; tables: {', '.join(frames)}, readme; the book has the others")
    for frame in frames[args.table](tables.evidence(args.profile or SHOWN)):
        print(frame.round(2).to_string(na_rep="-"), end="\n\n")


def equivalent(args) -> None:
    """Show by training in miniature that stale records would come out the same today (writes results/equivalent.json)."""
    from lc import equivalence
    print("\n".join(equivalence.check(experiments.chosen_profile(args.profile)[0], args.data)) or "no record is stale")


def notebook(args) -> None:
    """Execute one chapter with papermill, parameters checked."""
    from lc.report import pages
    print(pages.execute(args.name, dict(setting.partition("=")[::2] for setting in args.set), args.out))
    if args.html:
        print(pages.to_html(args.out), *pages.answers(args.out), sep="\n")


def stage(args) -> None:
    """Lay out the book's sources beside the executed notebooks, and refuse if one of them failed."""
    from lc.report import pages
    print(pages.stage(args.profile))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m lc", description="Deep Layer Cascade, reproduced.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(call, *options: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(call.__name__.rstrip("_"), help=call.__doc__.split("\n")[0], description=call.__doc__)
        sub.set_defaults(call=call)
        workers = min(16, machine.threads() - 1) if experiments.shutil.which("nvidia-smi") else 0
        usual = {predict: SHOWN, video: SHOWN, table: SHOWN, list_: "all", export: "the format's"}.get(call, "voc12 with a GPU of 24 GB, else shapes")
        shared = {"profile": dict(help=f"one of {', '.join(experiments.PROFILES)} (default: {usual})"),
                  "data": dict(help="folder of the data sets (default: $LC_DATA, else data/)"),
                  "device": dict(default="auto", help="auto, cpu, cuda or cuda:N"),
                  "workers": dict(type=int, default=workers, help="loader processes (default: up to 16 with a GPU, none without)"),
                  "jobs": dict(type=int, default=machine.jobs(), help="runs made at a time, which share the cores (default: up to 4, with a GPU 1)"),
                  "experiment": dict(default=f"lc-{experiments.BEST_RHO}", help="default: %(default)s"),
                  "rho": dict(type=float, help="threshold (default: the experiment's own)"),
                  "weights": dict(type=Path, help="a file that `lc train` made (default: the experiment's own)"),
                  "height": dict(type=int, help="rows the network sees (default: what it was trained on)"),
                  "out": dict(type=Path, default=Path("build") / call.__name__, help="folder (default: %(default)s)")}
        for option in options:
            sub.add_argument(f"--{option}", **shared[option])
        return sub

    add(plan, "profile").add_argument("--only", choices=("name", "dataset", "count"))
    add(list_, "profile")
    sub = add(run, "profile", "data", "device", "workers", "jobs")
    sub.add_argument("experiments", nargs="*", help="only these (default: every missing one)")
    sub.add_argument("--again", action="store_true", help="also remake stale records")
    sub = add(train, "profile", "data", "device", "workers")
    sub.add_argument("experiment")
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. phases.0.rho=0.9 or train.batch_size=4")
    sub.add_argument("--out", type=Path, help="default: build/<profile>/train/<experiment>-<key>; a second call resumes there")
    sub = add(bench, "device")
    sub.add_argument("kind", nargs="?", default="cascade", choices=("cascade", *POOLED, "loader", "systems", "poster"))
    for option, (kinds, meaning) in BENCH.items():
        values = {"reading": {"choices": ["features"]}, "experiment": {}, "profile": {}, "data": {}}.get(option, {"type": int})
        sub.add_argument(f"--{option}", help=f"of `{'`, `'.join(kinds)}`: {meaning}", **values)
    sub.add_argument("--repeats", type=int, help="rounds of a process after its warm-up (default: 1 to 15, by kind)")
    sub.add_argument("--part", action="store_true", help=argparse.SUPPRESS)  # one process of several
    sub.add_argument("--json", type=Path, metavar="FILE", help="default: results/[PROFILE/]bench/KIND-DEVICE.json, in place of what is there")
    photos, film = (add(call, "profile", "device", "rho", "experiment", "weights", "height", "out") for call in (predict, video))
    photos.add_argument("images", nargs="+")
    film.add_argument("source", type=Path)
    film.add_argument("--fps", type=float, help="pick rho for this many frames per second, measured on the first frames, instead of --rho")
    sub = add(export, "profile", "data", "device", "experiment", "rho")
    sub.add_argument("--format", required=True, choices=("voc", "cityscapes"), help="whose evaluation server")
    sub.add_argument("--split", default="val", help="what is labelled, as the server calls it")
    sub.add_argument("--images", type=Path, metavar="FOLDER", help="label these instead, e.g. the test images")
    sub.add_argument("--out", type=Path, help="default: build/<profile>/export/<experiment>-<split>")
    add(table, "profile").add_argument("table", help="1, 2 or readme")
    add(equivalent, "profile", "data")
    sub = add(notebook)
    sub.add_argument("name")
    sub.add_argument("--set", action="append", default=[], metavar="PARAMETER=VALUE")
    sub.add_argument("--out", type=Path, required=True)
    sub.add_argument("--html", action="store_true", help="also write a page, and print the answer")
    add(stage).add_argument("--profile", required=True)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 when it succeeded, 2 when the input was bad."""
    args = parser().parse_args(arguments)
    try:
        for option, (least, most) in LIMITS.items():
            value = getattr(args, option, None)
            if isinstance(value, int | float) and not least <= value <= most:
                raise InputError(f"--{option} must be from {least} to {most}, got {value}")
        args.call(args)
    except InputError as error:
        print(f"lc: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""From the catalogue to records: plan what is missing, train it, evaluate it, write it down."""
import importlib
import io
import os
import shutil
import time
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from lc import paths, records
from lc.cascade import LayerCascade
from lc.config import RunConfig
from lc.data import SPECS, SegmentationSet, Spec
from lc.errors import InputError
from lc.evaluate import evaluate
from lc.experiments import CASCADES, STUDIES, Experiment, catalogue, experiment, profile
from lc.machine import alone_in, device_name, end_with_parent, keep_memory, threads
from lc.paper import columns
from lc.train import Trainer, load_model, save_weights


def weights_path(name: str, run: RunConfig) -> Path | None:
    """Weights of a finished run: committed ones first, then those trained here; None if there are none."""
    file = f"{records.stem(name, run)}.safetensors"
    places = (paths.results(run.profile) / "weights" / file, paths.checkpoints(run.profile) / file)
    return next((place for place in places if place.exists()), None)


def trained(profile_name: str, name: str, device: torch.device | str = "cpu", weights: Path | None = None) -> tuple[LayerCascade, Spec]:
    """The cascade of a finished run, or with the weights of a file, and its data set's names and colours; InputError if they are not here."""
    entry = experiment(profile_name, name)
    if entry.study:
        raise InputError(f"{name} evaluates finished weights and has none of its own; give --experiment {_name_of(entry.run)}")
    if (path := weights and paths.need(weights, "weights", "`lc train` says where it left some") or weights_path(name, entry.run)) is None:
        raise InputError(f"no weights of {profile_name}/{name} here; train it with `python -m lc run --profile {profile_name} {name}`")
    spec = SPECS[entry.run.data.name]
    try:
        return load_model(entry.run, len(spec.names), path, device), spec
    except (RuntimeError, SafetensorError, OSError) as error:
        raise InputError(f"{path} does not fit the network of {profile_name}/{name} ({str(error).splitlines()[0]}); give its experiment") from None


def _name_of(run: RunConfig) -> str:
    name = next((entry.name for entry in catalogue(run.profile).values() if entry.run == run), None)
    if name is None:
        raise InputError(f"a run can begin only with one that profile {run.profile} lists; leave out what changes its start, or --set start=null")
    return name


def run_all(due: list[Experiment], root, device: torch.device, workers: int = 0, jobs: int = 1) -> None:
    """Make the records of `due`, `jobs` at a time, each in a process of its own with its share of the cores. A run waits for what it starts
    from. After an error no run is begun; those under way end, and the error is raised."""
    due = with_needed(due)
    jobs = max(1, min(jobs, len(due)))  # one run has all the cores
    waiting, running = {entry.name: entry for entry in due}, {}
    with ProcessPoolExecutor(jobs, get_context("spawn"), _take_share, (max(1, threads() // jobs), os.getpid())) if jobs > 1 else _Here() as pool:
        while waiting or running:
            free = [entry for entry in waiting.values() if not needs(entry) & (waiting.keys() | set(running.values()))]
            for entry in free[:jobs - len(running)]:
                left = sum(e.minutes for e in waiting.values()) / jobs
                print(f"[{len(due) - len(waiting) + 1}/{len(due)}] {entry.run.profile}/{entry.name}: {entry.title}; about {entry.minutes:.0f} min, "
                      f"all that is left {left:.0f} min{f', {jobs} at a time' if jobs > 1 else ''}", flush=True)
                running[pool.submit(execute, waiting.pop(entry.name), root, device, workers)] = entry.name
            for ended in wait(running, return_when=FIRST_COMPLETED).done:
                del running[ended]
                ended.result()


class _Here(Executor):
    """Makes runs in this thread, which alone hears of an interrupt."""

    def submit(self, call, *args) -> Future:
        (done := Future()).set_result(call(*args))
        return done


def with_needed(due: list[Experiment]) -> list[Experiment]:
    """`due`, each behind the runs that it needs and whose weights (record, where only its shares are needed) are not here."""
    queue: dict[str, Experiment] = {}

    def add(entry: Experiment) -> None:
        for needed in [catalogue(entry.run.profile)[name] for name in sorted(needs(entry))]:
            if (records.find(needed) if needed.run == entry.run.dropout_like else weights_path(needed.name, needed.run)) is None:
                add(needed)
        queue.setdefault(entry.name, entry)

    for entry in due:
        add(entry)
    return [*queue.values()]


def _take_share(cores: int, parent: int) -> None:
    """What a process does first that makes runs beside others."""
    end_with_parent(parent)
    torch.set_num_threads(cores)
    keep_memory()


def needs(entry: Experiment) -> set[str]:
    """Names of the runs that must be made before this one."""
    before = [entry.run] if entry.study else [entry.run.start, entry.run.dropout_like]
    return {_name_of(run) for run in before if run} | ({"dsn"} if entry.study else set())


_split = lru_cache(maxsize=8)(SegmentationSet)  # a split, with the images that it keeps in memory, for all runs of a process


def execute(entry: Experiment, root, device: torch.device, workers: int = 0) -> records.Record:
    """Train one run to its end (or go on with it), evaluate it and write its record. InputError if another process does just that."""
    if entry.study:
        return study(entry, root, device)
    folder = paths.checkpoints(entry.run.profile) / records.stem(entry.name, entry.run)
    with alone_in(paths.folder(folder)):
        return _execute(entry, root, device, workers, folder)


def _execute(entry: Experiment, root, device: torch.device, workers: int, folder: Path) -> records.Record:
    train = _split(entry.run.data, "train", root)
    splits = {split: _split(entry.run.data, split, root) for split in ("val", "test") if split in train.spec.counts}
    made_on = records.provenance(device_name(device), *records.modules(entry.run.model.network))
    trainer = Trainer(entry.run, train, splits["val"], folder, device, *begins_with(entry.run), workers)
    model = trainer.fit()
    seconds, trained = trainer.seconds, time.perf_counter()
    file = f"{records.stem(entry.name, entry.run)}.safetensors"
    committed = paths.results(entry.run.profile) / "weights"
    home = committed if entry.publish or (committed / file).exists() else paths.checkpoints(entry.run.profile)  # where `weights_path` looks first
    save_weights(model, folder / file)
    model = load_model(entry.run, train.num_classes, folder / file, device)  # numbers are those of the weights on disk
    results = {split: evaluate(model, data, entry.run.rho) for split, data in splits.items()}
    arrays = {f"confusions_{split}": found.confusions.astype(np.int32) for split, found in results.items()}
    swept = splits if entry.name.partition("-seed-")[0] in CASCADES else ["val"]  # a timed one's rho is chosen on val, told on test
    sweep = {split: [evaluate(model, splits[split], float(rho)) for rho in columns("1", "mIoU")] for split in swept if entry.sweep}
    for split, found in sweep.items():
        arrays["sweep_confusions" + ("" if split == "val" else f"_{split}")] = np.stack([e.confusions for e in found]).astype(np.int32)
    values = {
        **made_on, "train_seconds": round(seconds, 1), "evaluate_seconds": round(time.perf_counter() - trained, 1),
        "seed": entry.run.seed, "amp": str(trainer.amp or torch.float32).removeprefix("torch."),
        "data": _describe(train, *splits.values()),
        "parameters": sum(p.numel() for p in model.parameters()), "weights": file if home == committed else None,
        "metrics": {split: e.summary() for split, e in results.items()}, "sweep": [e.summary() for e in sweep.get("val", [])]}
    anew = " was written anew" if records.find(entry) else ""
    records.write_whole(home / file, (folder / file).read_bytes())  # only now: a run cut off before leaves earlier weights with their record
    record = records.write(entry, values, arrays, (folder / "history.jsonl").read_text())
    if entry.run.data == profile(entry.run.profile).data:
        _keep_examples(entry.run.profile, splits["val"])
    shutil.rmtree(folder)  # the state that a finished run no longer needs
    found = ", ".join(f"{split} {e.miou:.4f}" for split, e in results.items())
    print(f"  {entry.name}: mIoU {found}; record {record.path.relative_to(paths.ROOT)}{anew}", flush=True)
    return record


def study(entry: Experiment, root, device: torch.device) -> records.Record:
    """Evaluate finished weights as lc.studies says, on the split that its name ends in or else on val, and write a record of that."""
    clock, run = time.perf_counter(), entry.run
    made_on = records.provenance(device_name(device), *records.modules(run.model.network, entry.name))
    function, _, split = entry.study.partition("-")
    data = _split(run.data, split or "val", root)
    model, dsn = (trained(run.profile, name, device)[0] for name in (_name_of(run), "dsn"))
    module, _ = STUDIES[entry.study]
    values, arrays = getattr(importlib.import_module(f"lc.{module}"), function)(model, dsn, data, run.rho)
    record = records.write(entry, {
        **made_on, "seed": run.seed, "of": records.stem(_name_of(run), run),
        "evaluate_seconds": round(time.perf_counter() - clock, 1), "data": _describe(data), "study": values}, arrays)
    print(f"  {entry.name}: {record['evaluate_seconds']} s; record {record.path.relative_to(paths.ROOT)}", flush=True)
    return record


def _describe(*splits: SegmentationSet) -> dict:
    """What a record says of its data."""
    spec = splits[0].spec
    return {"name": spec.title, "synthetic": spec.synthetic, "classes": spec.names, "images": {s.split: len(s) for s in splits},
            "sha256": {s.split: s.fingerprint() for s in splits}, "size": list(splits[0].read(0)[1].shape)}


def begins_with(run: RunConfig) -> tuple[dict | None, list[float] | None]:
    """Weights that a run begins with, and the share of labels that survive dropout in each stage: what the other run handed on in its last epoch."""
    like = run.dropout_like and records.find(catalogue(run.profile)[_name_of(run.dropout_like)])
    return run.start and load_file(weights_path(_name_of(run.start), run.start)), like and like.history[-1]["handed"]


def _keep_examples(profile_name: str, data: SegmentationSet) -> None:
    """Keep three validation images and labels, as the figures show them: pages render without the data set."""
    target = paths.results(profile_name) / "examples.npz"
    if target.exists():
        return
    packed = io.BytesIO()
    picks = [round((i + 0.5) * len(data) / 3) for i in range(min(3, len(data)))]
    arrays = {f"{what}{n}": part for n, i in enumerate(picks) for what, part in zip(("image", "label"), data.read(i))}
    np.savez_compressed(packed, names=np.array([data.name(i) for i in picks]), **arrays)
    records.write_whole(target, packed.getvalue())

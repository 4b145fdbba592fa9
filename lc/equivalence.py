"""Do records made by other sources still hold? Each stale run is trained in miniature by the commit that made it and by today's code.

If weights and counts agree bit for bit, results/equivalent.json says so and the record is no longer stale. If only the order of sums has changed,
weights differ by rounding; then the miniature is trained again in double precision, where they must agree to ROUNDING (or as well as the same
code does with itself on another number of threads), and the counts exactly (what a run does in half precision only is not compared then). A proof
names the commit that it was shown for; the next comparison of that run begins there, and differences add up. A refactoring or a faster kernel
then costs minutes instead of hours, and a change that moves a number cannot hide. `python -m lc equivalent`. A study is made again on a few
images by both sides, from the weights in their trees, and must agree bit for bit.
"""
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from lc import paths, records
from lc.errors import InputError
from lc.experiments import catalogue
from lc.machine import threads
from lc.records import Record

IMAGES = 6  # of each split
ROUNDING = 1e-9
LEAST = 1.0  # least magnitude that a difference is divided by: a bias in front of batch norm has no influence, and all of its value is rounding


def check(profile: str, root: str | None) -> list[str]:
    """Compare every stale record of a profile; one line per pair of sources. Raises InputError where a number has changed."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in map(records.find, catalogue(profile).values()):
        if record and record.stale:
            groups.setdefault((record["source_hash"], record.source_now), []).append(record)
    lines = []
    for (made, now), group in groups.items():
        known, apart = records.equivalents(), {}
        for (commit, already), same in _by_proof(group).items():
            apart |= {stem: already + more for stem, more in differences(same, commit, root).items()}
        far = [record for record in group if not apart[record.path.stem] <= ROUNDING]
        if changed := [record.experiment for record in far if not apart[record.path.stem] <= noise(record, root)]:
            raise InputError(f"sources {made} and {now} do not compute the same for {', '.join(changed)}; remake these runs with "
                             f"`python -m lc run --profile {profile} --again`")
        worst, before, here = max(apart.values()), known.get(made, {}), records.provenance("")
        before = before if before.get("now") == now else {"difference": 0.0, "runs": [], "made_by": []}
        known[made] = {"now": now, "difference": max(worst, before["difference"]), "runs": [*before["runs"], *apart],
                       "made_by": sorted({*before["made_by"], *(r["commit"] for r in group)}), "shown_for": "" if here["dirty"] else here["commit"]}
        records.write_whole(paths.ROOT / records.EQUIVALENT, (json.dumps(known, indent=1) + "\n").encode())
        records.equivalents.cache_clear()
        how = f"but for rounding (in double precision to {worst:.0e})" if worst else "bit for bit"
        lines.append(f"{made} and {now} agree {how} on {len(group)} runs: {', '.join(record.experiment for record in group)}")
    return lines


def _by_proof(group: list[Record]) -> dict[tuple[str, float], list[Record]]:
    """Records by the commit to compare with, and how far from the record it is: that of the last proof, else the record's own."""
    found: dict[tuple[str, float], list[Record]] = {}
    for record in group:
        proof = records.equivalents().get(record["source_hash"], {"runs": ()})
        proved = record.path.stem in proof["runs"] and proof.get("shown_for")
        found.setdefault((proof["shown_for"], proof["difference"]) if proved else (record["commit"], 0.0), []).append(record)
    return found


def differences(group: list[Record], commit: str, root: str | None) -> dict[str, float]:
    """By the record's file: 0.0 if the miniature by that commit and by the code here is the same, bit for bit; else the greatest difference
    between them in double precision, relative to the greatest entry of the same array, LEAST at least; infinity if a count differs."""
    with tempfile.TemporaryDirectory() as scratch:
        old = Path(scratch, "old")
        git = ["git", "-C", str(paths.ROOT)]
        if subprocess.run([*git, "worktree", "add", "--detach", "--quiet", str(old), commit]).returncode:
            raise InputError(f"commit {commit[:10]}, which made or last proved {group[0].path.name}, is not in this clone; fetch the whole history")
        try:
            apart = _compared(old, group, root, False)
            again = [record for record in group if apart[record.path.stem] and "study" not in record.values]
            return apart | {stem: found or np.finfo(float).eps for stem, found in _compared(old, again, root, True).items()}
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(old)])


def _compared(old: Path, group: list[Record], root: str | None, double: bool) -> dict[str, float]:
    with ThreadPoolExecutor() as pool:  # both sides at once, on half of the cores each
        sides = pool.map(lambda tree: _arrays(tree, group, root, double) if group else [], (old, paths.ROOT))
    return {record.path.stem: _distance(*pair) for record, *pair in zip(group, *sides)}


def noise(record: Record, root: str | None) -> float:
    """What the order of sums alone does to a run, 1e-6 at most: the difference of its miniatures by the code here on one thread and on two."""
    return min(1e-6, _distance(*(_arrays(paths.ROOT, [record], root, True, cores)[0] for cores in (1, 2))))


def _distance(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> float:
    if [*first] != [*second] or any(first[name].shape != second[name].shape for name in first):
        return np.inf
    apart = {name: np.abs(first[name].astype(float) - second[name]).max(initial=0) / np.abs(first[name]).max(initial=LEAST)
             for name in first if first[name].tobytes() != second[name].tobytes()}
    return np.inf if any(first[name].dtype.kind != "f" for name in apart) else float(max(apart.values(), default=0))


def _arrays(tree: Path, group: list[Record], root: str | None, double: bool, cores: int = max(1, threads() // 2)) -> list[dict[str, np.ndarray]]:
    """What `probe` or `probe_study` gives for each record, run in `tree`: all in one process, as starting one takes longer than a miniature."""
    with tempfile.TemporaryDirectory() as scratch:
        targets = [Path(scratch, f"{record.path.stem}.npz") for record in group]
        task = {"configs": [record["config"] for record in group],
                "studies": [record.experiment if "study" in record.values else "" for record in group],
                "double": double, "root": str(paths.data_root(root)), "targets": [*map(str, targets)]}
        answer = subprocess.run([sys.executable, "-P", __file__, json.dumps(task)], capture_output=True, text=True, cwd=tree,
                                env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(cores)})
        if answer.returncode:
            failed = next(record.experiment for record, target in zip(group, targets) if not target.exists())
            raise InputError(f"the miniature of {failed} failed in {tree}: {(answer.stderr.strip() or 'killed').splitlines()[-1]}")
        return [dict(np.load(target)) for target in targets]


def probe(config: dict, double: bool, root: str) -> dict[str, np.ndarray]:
    """Run in one tree: train the miniature; its weights and counts."""
    import torch
    from lc.config import RunConfig, from_dict
    from lc.data import SegmentationSet
    from lc.evaluate import evaluate
    from lc.train import Trainer
    config = {**config, "data": {**config["data"], "limit": IMAGES}, "train": {**config["train"], "batch_size": IMAGES // 2}, "start": None,
              "phases": [{**phase, "epochs": 1} for phase in config["phases"]]}  # a few images, one epoch a phase, from random weights
    if double:
        torch.set_default_dtype(torch.float64)
        torch.float32, torch.Tensor.float = torch.float64, torch.Tensor.double  # what the sources make single on purpose
        config["train"]["amp"] = "none"
    run = from_dict(RunConfig, config)
    train, val = (SegmentationSet(run.data, split, root) for split in ("train", "val"))
    keep = [1.0, 0.5, 0.4] if run.dropout_like else None
    with tempfile.TemporaryDirectory() as folder:
        model = Trainer(run, train, val, Path(folder), torch.device("cpu"), None, keep).fit()
    weights = {name: value.contiguous().numpy() for name, value in model.state_dict().items()}
    return {**weights, **{f"confusions at {rho}": evaluate(model, val, rho).confusions for rho in (run.rho, 0.6)}}


def probe_study(name: str, config: dict, root: str) -> dict[str, np.ndarray]:
    """Run in one tree: its study of that name on a few images; its arrays, and what it says but for the time it took. Calls only what older
    trees have too."""
    import importlib
    from lc import runs
    from lc.config import RunConfig, from_dict
    from lc.data import SegmentationSet
    from lc.experiments import STUDIES, experiment
    entry, data = experiment(config["profile"], name), from_dict(RunConfig, {**config, "data": {**config["data"], "limit": IMAGES}}).data
    model, dsn = (runs.trained(config["profile"], of, "cpu")[0] for of in (runs._name_of(entry.run), "dsn"))
    module = importlib.import_module(f"lc.{STUDIES[entry.study][0]}")
    values, arrays = getattr(module, entry.study.partition("-")[0])(model, dsn, SegmentationSet(data, "val", root), entry.run.rho)
    said = json.dumps({key: value for key, value in values.items() if key != "seconds"})
    return {**arrays, "values": np.frombuffer(said.encode(), np.uint8)}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    for one, study, target in zip(asked["configs"], asked["studies"], asked["targets"]):
        np.savez(target, **(probe_study(study, one, asked["root"]) if study else probe(one, asked["double"], asked["root"])))

"""Do records made by other sources still hold? Each stale run is trained in miniature by the commit that made it and by today's code.

If weights, counts and study values agree bit for bit, results/equivalent.json says so and the record is no longer stale. A
refactoring then costs minutes instead of hours, and a change that moves a number cannot hide. `python -m lc equivalent`.
"""
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from lc import paths, records
from lc.errors import InputError
from lc.experiments import catalogue
from lc.records import Record

IMAGES = 6  # of each split


def check(profile: str, root: str | None) -> list[str]:
    """Compare every stale record of a profile; one line per pair of sources. Raises InputError where a number has changed."""
    found = [record for record in (records.find(entry) for entry in catalogue(profile).values()) if record]
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in found:
        if record.stale:
            groups.setdefault((record["source_hash"], record.source_now), []).append(record)
    lines = []
    for (made, now), group in groups.items():
        changed = [record.experiment for record in group if len(set(_both(record, root))) != 1]
        if changed:
            raise InputError(f"sources {made} and {now} do not compute the same for {', '.join(changed)}; remake these runs with "
                             f"`python -m lc run --profile {profile} --again`")
        known = records.equivalents()
        known[made] = {"now": now, "runs": [record.path.stem for record in group], "made_by": sorted({r["commit"] for r in group})}
        records.write_whole(paths.ROOT / records.EQUIVALENT, (json.dumps(known, indent=1) + "\n").encode())
        records.equivalents.cache_clear()
        lines.append(f"{made} and {now} agree bit for bit on {len(group)} runs: {', '.join(record.experiment for record in group)}")
    return lines


def _both(record: Record, root: str | None) -> list[str]:
    """Digests of the miniature of a run, by the commit that made it and by the code here."""
    with tempfile.TemporaryDirectory() as scratch:
        old = Path(scratch, "old")
        git = ["git", "-C", str(paths.ROOT)]
        if subprocess.run([*git, "worktree", "add", "--detach", "--quiet", str(old), record["commit"]]).returncode:
            raise InputError(f"commit {record['commit'][:10]}, which made {record.path.name}, is not in this clone; fetch the whole history")
        try:
            return [_digest(tree, record, root) for tree in (old, paths.ROOT)]
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(old)])


def _digest(tree: Path, record: Record, root: str | None) -> str:
    task = json.dumps({"config": record["config"], "study": record["experiment"].removeprefix("study-") if "study" in record.values else "",
                       "results": str(paths.results(record["config"]["profile"])), "root": str(paths.data_root(root))})
    answer = subprocess.run([sys.executable, "-P", __file__, task], env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True, text=True, cwd=tree)
    if answer.returncode:
        raise InputError(f"the miniature of {record.experiment} failed in {tree}: {answer.stderr.strip().splitlines()[-1]}")
    return answer.stdout.split()[-1]


def _miniature(config: dict) -> dict:
    """The same run on a few images, one epoch a phase, from random weights."""
    return {**config, "data": {**config["data"], "limit": IMAGES}, "train": {**config["train"], "batch_size": IMAGES // 2}, "start": None,
            "phases": [{**phase, "epochs": 1} for phase in config["phases"]]}


def probe(task: dict) -> str:
    """Run in one tree: train the miniature (or evaluate the study of the committed weights) and hash all that comes out."""
    import numpy as np
    import torch
    from lc.config import RunConfig, from_dict
    from lc.data import SegmentationSet
    from lc.evaluate import evaluate
    from lc.train import Trainer, load_model
    digest, run = hashlib.sha256(), from_dict(RunConfig, _miniature(task["config"]))
    train, val = (SegmentationSet(run.data, split, task["root"]) for split in ("train", "val"))
    if task["study"]:
        from lc import studies
        weights = [next(Path(task["results"], "weights").glob(f"{name}*")) for name in ("lc-", "dsn-")]
        values, arrays = studies.STUDIES[task["study"]](*(load_model(run, val.num_classes, w) for w in weights), val, run.rho)
        digest.update(json.dumps(values, sort_keys=True).encode() + b"".join(np.ascontiguousarray(a).tobytes() for a in arrays.values()))
        return digest.hexdigest()
    keep = [1.0, 0.5, 0.4] if run.dropout_like else None
    with tempfile.TemporaryDirectory() as folder:
        model = Trainer(run, train, val, Path(folder), torch.device("cpu"), None, keep).fit()
    for value in model.state_dict().values():
        digest.update(value.contiguous().numpy().tobytes())
    for rho in (run.rho, 0.6):
        digest.update(evaluate(model, val, rho).confusions.tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    print(probe(json.loads(sys.argv[1])))

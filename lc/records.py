"""Run records: what a run gave, from what, where and when. Written whole or not at all. Standard library, NumPy on demand.

results/<profile>/runs/<experiment>-<key>.json, beside it .npz (small arrays) and .history.jsonl (one line per epoch).
"""
import ast
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path

from lc import paths
from lc.config import RunConfig
from lc.errors import InputError
from lc.experiments import CASCADES, STUDIES, SYSTEMS, Experiment, catalogue, profile

SCHEMA = 1
NUMERIC = ("backbone", "cascade", "config", "data", "evaluate", "metrics", "networks", "region", "region_conv", "shapes", "train", "winograd")
EQUIVALENT = "results/equivalent.json"  # sources that were shown to compute the same (lc.equivalence)
PACKAGES = ("torch", "torchvision", "numpy", "pillow")


@dataclass(frozen=True)
class Record:
    """One finished run, read from disk. `values` is the JSON; properties name what pages ask for."""
    path: Path
    values: dict

    def __getitem__(self, name: str):
        return self.values[name]

    @property
    def experiment(self) -> str:
        return self["experiment"]

    @property
    def source_now(self) -> str:
        """Hash of the modules that would compute this record today."""
        return source_hash(*modules(self["config"]["model"].get("network", "irnet"), self.experiment if "study" in self.values else ""))

    @property
    def stale(self) -> str:
        """Empty, or in words: the code that computes numbers has changed since (both hashes), and was not shown to be equivalent."""
        made, now = self["source_hash"], self.source_now
        proof = equivalents().get(made, {"runs": ()})
        shown = proof.get("now") == now and self.path.stem in proof["runs"]
        return "" if shown or made == now else f"made by source {made}, source now {now}"

    @cached_property
    def arrays(self) -> dict:
        """The arrays beside the record, by name."""
        import numpy as np
        with np.load(self.path.with_suffix(".npz")) as file:
            return dict(file)

    @property
    def history(self) -> list[dict]:
        """One dict per epoch."""
        return [json.loads(line) for line in self.path.with_suffix(".history.jsonl").read_text().splitlines()]


def stem(name: str, run: RunConfig) -> str:
    """File name of a run, without ending."""
    return f"{name}-{run.key()}"


def record_path(entry: Experiment) -> Path:
    """Where the record of an experiment lies, made or not."""
    return paths.results(entry.run.profile) / "runs" / f"{stem(entry.name, entry.run)}.json"


def find(entry: Experiment) -> Record | None:
    """The record of an experiment as configured now, or None; InputError if it is not JSON, or of another schema."""
    path = record_path(entry)
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"record {path} is not JSON ({error}); delete it and run `make reproduce` again") from None
    if values.get("schema") != SCHEMA:
        raise InputError(f"record {path} has schema {values.get('schema')}, this version reads {SCHEMA}; delete it and run again")
    return Record(path, values)


def outdated(entry: Experiment) -> list[Path]:
    """Records of the same experiment made with another configuration."""
    folder, now = paths.results(entry.run.profile) / "runs", record_path(entry)
    return [p for p in sorted(folder.glob(f"{entry.name}-??????????.json")) if p != now]


def missing(profile_name: str) -> list[Experiment]:
    """The experiments of a profile that have no record as configured now."""
    return [entry for entry in catalogue(profile_name).values() if find(entry) is None]


def bench_missing(profile_name: str) -> list[str]:
    """The timings of a profile, its cascades' and its systems', of which there is no file, of any device."""
    made = {json.loads(path.read_text())["kind"] for path in (paths.results(profile_name) / "bench").glob("*.json")}
    return [kind for kind in (*CASCADES, "systems") if kind not in made and kind in {*catalogue(profile_name), "systems"}]


def write(entry: Experiment, values: dict, arrays: dict, history: str = "") -> Record:
    """Write arrays and history, then the JSON last: a record that is there is complete."""
    import numpy as np
    path = record_path(entry)
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    write_whole(path.with_suffix(".npz"), packed.getvalue())
    if history:
        write_whole(path.with_suffix(".history.jsonl"), history.encode())
    head = {"schema": SCHEMA, "experiment": entry.name, "title": entry.title, "profile": entry.run.profile,
            "tier": profile(entry.run.profile).tier, "key": entry.run.key(), "config": asdict(entry.run)}
    write_whole(path, (json.dumps({**head, **values}, indent=1) + "\n").encode())
    return Record(path, {**head, **values})


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # two processes may write the same
    part.write_bytes(content)
    os.replace(part, path)


@cache
def source_hash(*more: str) -> str:
    """Hash of the modules that compute numbers (and `more`), blind to comments, docstrings and layout, the same on every Python."""
    digest = hashlib.sha256()
    for name in NUMERIC + more:
        digest.update(_skeleton(ast.parse((paths.ROOT / "lc" / f"{name}.py").read_text())).encode())
    return digest.hexdigest()[:10]


def _skeleton(node) -> str:
    """A syntax tree as text without positions, empty fields and docstrings."""
    if isinstance(node, list):
        docless = node[1:] if node and isinstance(node[0], ast.Expr) and isinstance(node[0].value, ast.Constant) else node
        return f"[{','.join(map(_skeleton, docless))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
    return f"{type(node).__name__}({','.join(name + _skeleton(value) for name, value in fields)})"


@cache
def equivalents() -> dict:
    """Source hashes that were shown to compute what a later source computes: {made: {"now": hash, "runs": stems, ...}}."""
    path = paths.ROOT / EQUIVALENT
    return json.loads(path.read_text()) if path.exists() else {}


def modules(network: str, study: str = "") -> list[str]:
    """Modules beside NUMERIC that a run of this network, or this study (its name, or its experiment's), depends on."""
    study = study.removeprefix("study-")
    return [*(["baselines"] if network in SYSTEMS else []), *([STUDIES[study][0]] if study else []), *(["crf"] if study == "crf" else [])]


def provenance(device: str, *more: str) -> dict:
    """Who made a number: commit, source (of `more` modules too), packages, machine."""
    def git(*command: str) -> str | None:
        return shutil.which("git") and subprocess.run(["git", "-C", str(paths.ROOT), *command], capture_output=True, text=True).stdout.strip()

    return {"started": datetime.now(timezone.utc).isoformat(timespec="seconds"), "commit": git("rev-parse", "HEAD") or "unknown",
            "dirty": bool(git("status", "--porcelain", "--", "lc")),
            "source_hash": source_hash(*more), "python": sys.version.split()[0], "device": device,
            "packages": {name: metadata.version(name) for name in PACKAGES}}

"""Where things lie, wherever in the tree a notebook starts."""
import os
from pathlib import Path

from lc.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
LISTS = ROOT / "results"  # published.csv, claims.csv and others that are of no profile


def results(profile: str) -> Path:
    """Committed evidence of a profile: run records, histories, arrays, small weights, timings."""
    return ROOT / "results" / profile


def checkpoints(profile: str) -> Path:
    """Training states, git-ignored."""
    return ROOT / "checkpoints" / profile


def build(profile: str) -> Path:
    """Everything that can be made again: executed notebooks, the book."""
    return ROOT / "build" / profile


def data_root(given: str | Path | None = None) -> Path:
    """The folder that holds one folder per data set: `given`, else $LC_DATA, else data/."""
    return Path(given or os.environ.get("LC_DATA") or ROOT / "data").expanduser().resolve()


def folder(path: Path) -> Path:
    """The folder, made if it is not there; InputError if it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"no folder can be made at {path} ({error.strerror}); give another place with --out") from None
    return path


def need(path: Path, what: str, next_step: str) -> Path:
    """The path if it exists; otherwise InputError that says what is missing and what to do."""
    if not path.exists():
        raise InputError(f"{what} not found: {path} does not exist; {next_step}")
    return path

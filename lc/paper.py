"""The paper's numbers, by address. They live in results/published.csv; no other file holds one as a literal."""
import csv
from dataclasses import dataclass
from functools import cache

from lc import paths
from lc.errors import InputError


@dataclass(frozen=True)
class Published:
    """One printed number. value is None where the paper prints none; place says where it stands; note what does not fit."""
    table: str
    row: str
    column: str
    value: float | None
    unit: str
    dataset: str
    split: str
    metric: str
    place: str
    note: str


@cache
def all_published() -> dict[tuple[str, str, str], Published]:
    """Every published number, keyed by (table, row, column), in reading order."""
    with open(paths.PUBLISHED, encoding="utf-8", newline="") as file:
        rows = [Published(**{**row, "value": float(row["value"]) if row["value"] else None}) for row in csv.DictReader(file)]
    return {(row.table, row.row, row.column): row for row in rows}


def published(table: str, row: str, column: str = "value") -> Published:
    """The number printed in a cell, e.g. published("2", "LC", "mIoU"); text facts: published("text", "stem-channels")."""
    try:
        return all_published()[table, row, column]
    except KeyError:
        near = [f"{r}/{c}" for t, r, c in all_published() if t == table and (r == row or c == column)]
        raise InputError(f"no published number at table {table!r}, row {row!r}, column {column!r}; "
                         f"near it: {', '.join(near[:12]) or 'tables are 1-6, poster, slides, text'}") from None


def columns(table: str, row: str) -> list[str]:
    """Column headings of a printed row, in order; of Table 1 they are the eight thresholds."""
    return [c for t, r, c in all_published() if (t, r) == (table, row)]

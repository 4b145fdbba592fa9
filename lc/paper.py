"""The paper's numbers, by address. They live in results/published.csv; no other file holds one as a literal."""
import csv
from collections import namedtuple
from functools import cache

from lc import paths
from lc.errors import InputError

Published = namedtuple("Published", "value place")  # a printed number (None where the paper prints none), and where it stands


@cache
def all_published() -> dict[tuple[str, str, str], Published]:
    """Every published number, keyed by (table, row, column), in reading order."""
    with open(paths.LISTS / "published.csv", encoding="utf-8", newline="") as file:
        return {(row["table"], row["row"], row["column"]): Published(float(row["value"]) if row["value"] else None, row["place"])
                for row in csv.DictReader(file)}


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

"""Claims: every row of results/claims.csv is judged by a rule, and the rules can say each verdict."""
import csv

import numpy as np
import pytest

from lc import claims, paths, tables
from lc.paper import published
from tests.conftest import fake_record

with open(paths.ROOT / "results" / "claims.csv", encoding="utf-8", newline="") as file:
    ROWS = list(csv.DictReader(file))
KINDS = {"open", "not here", *claims.COMPARISONS, *claims.FACTS, "early share", "stage 1 share", "easy classes", "hard boundary", "ratios",
         "harder deeper", "easy first"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["claim"][:40])
def test_rows_are_complete(row):
    """A known test, a page that exists, a published number where one is named."""
    assert row["test"] in KINDS and row["place"]
    assert (paths.ROOT / "book" / f"{row['page']}.ipynb").exists() or row["test"] in ("open", "not here")
    if row["claimed"]:
        claims._claimed(row["claimed"])


def test_claimed_numbers_are_the_published_ones():
    """An address is a number, two addresses are a difference."""
    assert claims._claimed("2|LC|mIoU") == published("2", "LC", "mIoU").value
    assert claims._claimed("2|LC|mIoU - 2|DSN|mIoU") == published("2", "LC", "mIoU").value - published("2", "DSN", "mIoU").value


def judged(ev) -> dict:
    table = claims.claims(ev)
    return dict(zip(table["claim"], zip(table["verdict"], table["number"])))


def test_verdicts_follow_the_records(house, monkeypatch):
    """Planted gains are found, planted losses contradict, equality shows nothing; missing runs stay open."""
    monkeypatch.setattr(claims.paths, "ROOT", house)
    (house / "results").mkdir(exist_ok=True)
    monkeypatch.setattr(claims, "_fact", lambda *row: ("reproduced", "-"))
    with open(house / "results" / "claims.csv", "w", newline="") as copy:
        csv.DictWriter(copy, ROWS[0]).writeheader()
        csv.DictWriter(copy, ROWS[0]).writerows(ROWS)
    for name, shift in (("initial", 0), ("dsn", 0), ("irnet", 0), ("lc-0.985", 40), ("mc", 60), ("lc-0.950", -15)):
        fake_record("camvid-lite", name, shift)
    found = judged(tables.evidence("camvid-lite"))
    assert found["LC is more accurate than its backbone IRNet"][0] == "reproduced"
    assert found["Deep supervision gains over IRNet"][0] == "not shown"
    assert found["LC is more accurate than a model cascade"][0] == "not"
    assert found["At rho = 0.95, LC still beats IRNet"][0] == "not"
    assert found["Random label dropout brings no significant effect"] == ("open", "not run")
    assert found["Half of the pixels are decided early at rho = 0.985"] == ("reproduced", "60 %; paper 52 %")
    assert found["Stage 1 decides nearly 40 % at rho = 0.95"][0] == "reproduced"
    assert found["A rho under 1 is best"][0] == "reproduced" and "rho = 0.985" in found["A rho under 1 is best"][1]
    assert found["LC accelerates training"][0] == "open" and found["80.3 and 82.7 on VOC 2012 test"][0] == "not here"


def test_difficulty_claims(house):
    """Planted sets and bands give the verdicts that they should."""
    record = fake_record("camvid-lite", "lc-0.985")
    sets = np.array([[[60, 20, 40], [30, 70, 40], [10, 10, 20]]] * 2)  # ES, MS, HS by class: ES 60, 20, 40 %
    near = np.zeros((2, 4, 20), int)
    near[0, 2], near[0, 3] = 32, 90                                      # 32 of 40 HS, 90 of 300 pixels
    record.arrays.update(sets=sets, near=near)
    judge = lambda test, address: claims._count(test, record, published(*address).value)
    hard = ("hard boundary", ("text", "hs-on-boundary"))
    assert judge("easy classes", ("text", "es-share-at-least")) == ("reproduced", "2 of 3 classes")
    assert judge(*hard) == ("reproduced", "80 % of HS within 3 pixels, 30 % of all pixels")
    near[0, 2] = 14
    assert judge(*hard)[0] == "in part"
    near[0, 2] = 8
    assert judge(*hard)[0] == "not"
    with pytest.raises(ValueError, match="unknown test 'hardness'"):
        claims._count("hardness", record, None)


def test_facts_hold():
    """What needs no run: the label map's size, the parameters, and the labels of VOC 2012."""
    assert claims._fact("label map", "", None) == ("reproduced", "21 x 64 x 64")
    assert claims._fact("voc lists", "", None)[0] == "reproduced"
    assert claims._fact("parameters", "", published("6", "IRNet-LC", "params").value)[0] == "in part"

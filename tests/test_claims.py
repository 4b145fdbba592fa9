"""Claims and coverage: every row of results/claims.csv is judged by a rule, and no row or panel of the paper is without its line."""
import csv
import json

import numpy as np
import pandas as pd
import pytest

from lc import paths
from lc.report import claims, plots, systems, tables, verdicts
from lc.experiments import catalogue, profile
from lc.paper import all_published, published
from tests.conftest import fake_record

with open(paths.ROOT / "results" / "claims.csv", encoding="utf-8", newline="") as file:
    ROWS = list(csv.DictReader(file))
KINDS = {"not here", *claims.COMPARISONS, *claims.FACTS, "early share", "stage 1 share", "easy classes", "hard boundary", "ratios",
         "harder deeper", "harder focus", "boundary later", "easy first", "adds", "few wrong"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["claim"][:40])
def test_rows_are_complete(row):
    """A known test, a page that exists, a published number where one is named."""
    assert row["test"] in KINDS and row["place"]
    assert (paths.ROOT / "book" / f"{row['page']}.ipynb").exists() or row["test"] == "not here"
    if row["claimed"]:
        tables.difference_printed(row["claimed"])


def test_claimed_numbers_are_the_published_ones():
    """An address is a number, two addresses are a difference."""
    assert tables.difference_printed("2|LC|mIoU") == published("2", "LC", "mIoU").value
    assert tables.difference_printed("2|LC|mIoU - 2|DSN|mIoU") == published("2", "LC", "mIoU").value - published("2", "DSN", "mIoU").value


def judged(ev) -> dict:
    table = claims.claims(ev)
    return dict(zip(table["claim"], zip(table["verdict"], table["number"])))


def test_verdicts_follow_the_records(house, monkeypatch):
    """Planted gains are found, planted losses contradict, equality shows nothing; missing runs stay open."""
    monkeypatch.setattr(claims, "_fact", lambda *row: ("reproduced", "-"))
    for name, shift in (("initial", 0), ("dsn", 0), ("irnet", 0), ("lc-0.985", 40), ("mc", 60), ("lc-0.950", -15)):  # 40 counts are 14 points
        fake_record("camvid-lite", name, shift)
    found = judged(tables.evidence("camvid-lite"))
    assert found["LC is more accurate than its backbone IRNet"][0] == "reproduced"
    assert found["Deep supervision gains over IRNet"][0] == "not shown"
    assert found["LC is more accurate than a model cascade"][0] == "not"
    assert found["At rho = 0.95, LC still beats IRNet"][0] == "not"
    assert found["Random label dropout brings no significant effect"] == ("open", "not run")
    assert found["Half of the pixels are decided early at rho = 0.985"] == ("reproduced", "60 % on val; paper 52 %, give or take 10")
    assert found["Stage 1 decides nearly 40 % at rho = 0.95"][0] == "reproduced"
    assert found["A rho under 1 is best"] == ("open", "not run"), "not while a run of Table 1 is missing"
    for name in ("lc-0.995", "lc-0.970", "lc-0.930", "lc-0.900", "lc-0.800"):
        fake_record("camvid-lite", name, -30)
    found = judged(tables.evidence("camvid-lite"))
    assert found["A rho under 1 is best"][0] == "reproduced" and "rho = 0.985" in found["A rho under 1 is best"][1]
    assert found["A lower rho decides more pixels early"][0] == "reproduced", "equal shares do not fall"
    assert found["Time falls with rho throughout"][0] == "open" and found["80.3 and 82.7 on VOC 2012 test"][0] == "not here"
    monkeypatch.setattr(claims, "_count", lambda *_: {}["no such thing"])
    with pytest.raises(KeyError):
        claims.claims(tables.evidence("camvid-lite"))  # an error of ours is not a test that was not run


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
    said, number = judge(*hard)
    assert said == "in part" and number.startswith("80 % of HS within 3 pixels, 30 % of all pixels;")
    near[0, 2] = 8
    assert judge(*hard)[0] == "not"
    assert judge("few wrong", ("text", "es-share-at-least")) == ("reproduced", "25.0 % of the confident pixels are wrong; ES, MS and HS hold 40, 47, 13 % of all")
    sets[:, 2] *= 9
    assert claims._count("few wrong", record, None)[0] == "not"
    record.arrays["decided"] = np.stack([[40] * 21, [30] * 21, [30] * 21])  # within each band, and in all
    record.arrays["decided"][:, -1] = 80, 10, 10
    assert claims._count("boundary later", record, None) == ("reproduced", "decided in stages 2 and 3: 30 and 30 % of the pixels within 3 of a boundary, 10 and 10 % of all")
    record.arrays["decided"][:, 2] = 50, 45, 5
    assert claims._count("boundary later", record, None)[0] == "in part"
    record.arrays["decided"][:, 2] = 90, 5, 5
    assert claims._count("boundary later", record, None)[0] == "not"
    with pytest.raises(ValueError, match="unknown test 'hardness'"):
        claims._count("hardness", record, None)


@pytest.mark.parametrize("classes, above, said", [
    (["background", "b", "c"], [0.5, 1.1, 1.2], ("reproduced", "2 of 2 classes beside the background above 1")),
    (["background", "b", "c"], [0.5, 1.1, 0.9], ("not", "1 of 2 classes beside the background above 1")),
    (["a", "b", "c"], [0.5, 1.1, 1.2], ("not here", "needs a background class, which alone loses weight; without one 2 of 3 classes above 1"))])
def test_the_foreground_gains_weight_where_there_is_a_background(house, monkeypatch, classes, above, said):
    """Shares of classes that make up the whole image cannot all grow."""
    monkeypatch.setattr(claims, "label_ratios", lambda record: pd.DataFrame({"stage 2 / stage 1": above}, index=classes))
    assert claims._count("ratios", fake_record("camvid-lite", "lc-0.985"), None) == said


@pytest.mark.parametrize("deep, said", [((1, 2, 3), "not"), ((3, 2, 1), "reproduced"), ((2, 1, 2.5), "not shown")])
def test_harder_classes_go_deeper_if_the_correlation_is_clear(house, monkeypatch, deep, said):
    """Both claims of Sec. 4.2 on harder classes, of shares decided last and of label ratios: a weak correlation shows nothing."""
    record = fake_record("camvid-lite", "lc-0.985")
    record["metrics"]["val"]["iou"] = [0.2, 0.4, 0.6]
    values = pd.DataFrame({"stage 1": [0, 0, 0], "last": deep}, index=["a", "b", "c"], dtype=float)
    for test, frame in (("harder deeper", "decided_shares"), ("harder focus", "label_ratios")):
        with monkeypatch.context() as patch:
            patch.setattr(claims, frame, lambda record: values)
            assert claims._count(test, record, None)[0] == said


def test_verdicts_are_those_of_the_mean_over_seeds(house):
    """A claim that the first seed shows and the mean does not is not shown; the number says which it is."""
    names = {name: fake_record("camvid-lite", name, shift) for name, shift in (("dsn", 0), ("lc-0.985", 40))}
    ev = tables.Evidence(profile("camvid-lite"), names)
    alone = claims._compare("gain", ev, ["lc-0.985", "dsn"], 1.2)
    assert alone[0] == "reproduced" and "seeds" not in alone[1]
    for seed, shift in ((1, -20), (2, -20)):
        ev.records.update({name: fake_record("camvid-lite", name, s) for name, s in ((f"dsn-seed-{seed}", 0), (f"lc-0.985-seed-{seed}", shift))})
    said, number = claims._compare("gain", ev, ["lc-0.985", "dsn"], 1.2)
    assert said == "not shown" and number.endswith("on test (6 images, mean of 3 seeds); paper +1.20")
    for name in ("dsn", "dsn-seed-1", "dsn-seed-2"):
        ev.records[name.replace("dsn", "lc-0.985")].arrays["confusions_val"] = ev[name].arrays["confusions_val"] + 40 * np.eye(3, dtype=int)
    said, number = claims._compare("gain", ev, ["lc-0.985", "dsn"], 1.2)
    assert said == "not shown" and number.endswith("on test (6 images, mean of 3 seeds); paper +1.20; on val alone *reproduced*")
    assert claims._compare("no effect", ev, ["lc-0.985", "dsn"], 0)[1].endswith("; too wide an interval to say that there is none")


@pytest.mark.parametrize("stages, said", [(([3, 2, 1], [3, 6, 4]), "reproduced"), (([3, 2, 1], [9, 3, 2]), "not")])
def test_later_stages_take_the_time(house, stages, said):
    """Of the time between the smallest rho and 1, whatever the order of the rows."""
    folder = house / "results" / "camvid-lite" / "bench"
    folder.mkdir(parents=True)
    rows = [{"rho": rho, "stage_ms": ms} for rho, ms in zip((0.8, 1.0, 0.9), (*stages, [1, 1, 1]))] + [{"rho": None, "stage_ms": [9]}]
    ev = tables.Evidence(profile("camvid-lite"), {"lc-0.985": fake_record("camvid-lite", "lc-0.985")})
    (folder / "lc-0.985-test.json").write_text(json.dumps({"kind": "lc-0.985", "key": ev["lc-0.985"]["key"], "device": "test", "dtype": "float32", "batch": 1, "size": [1, 1], "rows": rows}))
    verdict, number = claims._compare("later time", ev, [], None)
    assert verdict == said and number.startswith(f"from rho = 0.8 to 1: stage 1 {stages[1][0] - 3:+.1f} ms")


@pytest.mark.parametrize("times, said", [((5, 6, 7, 8, 9, 10), "reproduced"), ((8, 9, 10, 5, 6, 7), "not"), ((5, 6, 9, 8, 9, 10), "not shown")])
def test_faster_needs_quartiles_apart(house, times, said):
    """Times of two systems count only where their quartiles do not overlap; each says its form."""
    rows = [dict(zip(("system", "form", "ms_low", "ms", "ms_high"), (name, "folded", *times[3 * i:3 * i + 3]))) for i, name in enumerate(("lc-0.985", "segnet"))]
    folder = house / "results" / "camvid-lite" / "bench"
    folder.mkdir(parents=True)
    (folder / "systems-test.json").write_text(json.dumps({"kind": "systems", "device": "test", "dtype": "float32", "batch": 1, "size": [1, 1], "rows": rows}))
    ev = tables.Evidence(tables.profile("camvid-lite"), {})
    verdict, words = claims._compare("faster", ev, ["lc-0.985", "segnet"], None)
    assert verdict == said and f"segnet {times[4]:.1f} ms ({times[3]:.1f} to {times[5]:.1f}, folded)" in words
    assert not systems.missing(ev, "time:segnet") and systems.missing(ev, "time:deeplab-v2")


def test_what_an_option_adds(house):
    """One named variant of a study against another, with its interval, whatever else it holds; sign and size decide."""
    record = fake_record("camvid-lite", "lc-0.985", study={"variants": ["LC, one scale", "LC, three scales", "DSN"]})
    better = record.arrays["confusions_val"] + 40 * np.eye(3, dtype=int)
    record.arrays["confusions"] = np.stack([record.arrays["confusions_val"], better, better + 90 * np.eye(3, dtype=int)])
    names = ["LC, three scales", "LC, one scale"]
    said, number = claims._adds(record, names, 1.3)
    assert said == "reproduced" and number.startswith("LC, three scales over LC, one scale: +") and number.endswith("paper +1.30")
    assert claims._adds(record, names, 50)[0] == "in part" and claims._adds(record, names[::-1], 1.3)[0] == "not"


LINES = tables.listed("coverage")
def test_nothing_of_the_paper_is_without_a_line():
    """Every row of the published tables, once, and every panel of Figures 1 to 7."""
    rows = list(dict.fromkeys((f"Table {t}" if t.isdigit() else t.capitalize(), row) for t, row, _ in all_published() if t != "text"))
    found = [(line["where"], line["row"]) for line in LINES]
    assert sorted(place for place in found if "figure" not in place[0].lower()) == sorted(rows)
    panels = [row.split(":")[0].split()[0] for where, row in found if where.startswith("Figure")]
    assert set(panels) == {"1a", "1b", "2a", "2b", "2", "3a", "3b", "3c", "4", "5a", "5b", "6", "7a", "7b"} and panels.count("1b") == 2


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line['where']} {line['row']}")
def test_lines_name_what_exists(line):
    """A page of the book; runs and studies of the catalogue; kinds of timing files; what is only quoted names nothing else."""
    made, known = line["on"].split(), {*catalogue("camvid"), "model", "bench:lc-0.985"}
    assert (paths.ROOT / "book" / f"{line['page']}.ipynb").exists() and made
    assert made == ["published"] or all(
        word in known or word.startswith("time:") and word[5:] in known or word.startswith("poster:") and word[7:] in known | {"vgg16", "resnet101"} for word in made)


def test_coverage_follows_the_records(house, monkeypatch):
    """Done with all records there, missing by name without, quoted rows as such."""
    monkeypatch.setattr(systems, "listed", lambda name: [
        {"where": "Table 2", "row": "LC", "page": "methods", "on": on, "note": note} for on, note in
        (("lc-0.985", ""), ("lc-0.985 dsn time:segnet", ""), ("published", ""), ("bench:lc-0.985", "on a CPU"), ("model", "another one"))])
    table = systems.coverage(tables.Evidence(tables.profile("camvid-lite"), {"lc-0.985": fake_record("camvid-lite", "lc-0.985")}))
    assert list(table["state"]) == ["done", "missing: dsn, time:segnet", "published row only", "missing: bench:lc-0.985 (on a CPU)", "substitute (another one)"]
    assert '<a href="records/lc-0.985-' in table["made from"][1] and table["made from"][1].endswith(">lc-0.985</a>, dsn, time:segnet")
    assert systems.summary(table) == "Of 5 table rows and figure panels: 2 missing, 1 done, 1 published row only, 1 substitute."


def test_facts_hold():
    """What needs no run: the label map's size, the parameters, and the labels of VOC 2012."""
    assert claims._fact("label map", "", None) == ("reproduced", "21 x 64 x 64")
    assert claims._fact("voc lists", "", None)[0] == "reproduced"
    assert claims._fact("parameters", "", published("6", "IRNet-LC", "params").value)[0] == "in part", "heads may make up the rest"
    assert claims._fact("parameters", "", 30.0)[0] == "not"


def test_crowded_points_stay_unlabelled():
    """A label that would lie on another is left out, whichever curve its point is of; the points stay."""
    from matplotlib.figure import Figure
    far, near = (pd.DataFrame({"ms": ms, "mIoU": miou}, index=index) for ms, miou, index in (([1.0, 9.0], [10.0, 90.0], ["a", "b"]), ([1.01], [10.1], ["c"])))
    axes = plots.trade_off({"one": far, "other": near}, "ms", Figure(figsize=(6, 4)).subplots(), "title")
    assert [text.get_text() for text in axes.texts] == ["a", "b"] and sum(len(line.get_xdata()) for line in axes.lines) == 3


def test_claims_without_class_weights(house):
    """Judged on the runs without, by the same rules; empty where a claim is on time, needs no run, or its runs are missing."""
    names = ("dsn", "irnet", "lc-0.985", "dsn-unbalanced", "irnet-unbalanced", "lc-unbalanced")
    found = {name: fake_record("camvid-lite", name, 40 * (name == "lc-unbalanced")) for name in names}
    ev = tables.Evidence(profile("camvid-lite"), found)
    table = claims.claims(ev).assign(plain=claims.without_weights(ev)).set_index("claim")
    gain = "LC is more accurate than deep supervision alone (DSN)"
    assert table.loc[gain, "verdict"] == "not shown" and table.loc[gain, "plain"].startswith(f"reproduced: {verdicts.difference(ev, 'lc-unbalanced', 'dsn-unbalanced', 'val')}")
    told = set(table.index[table["plain"] != ""])
    assert "Deep supervision gains over IRNet" in told and "LC is more accurate than a model cascade" not in told, "MC is missing"
    assert not told & set(table.index[table["test"].isin((*claims.FACTS, *claims.TIMES))])
    assert not claims.without_weights(tables.Evidence(ev.profile, {name: found[name] for name in names[:3]})).str.startswith("reproduced: +").any()

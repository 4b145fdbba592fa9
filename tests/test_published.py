"""Checks of results/published.csv: its form, its arithmetic, and the paper's own text.

The paper and its copies lie beside the repository in ../shared/paper; they are
not part of it, so the tests that read them are skipped where they are absent.
"""

import csv
import re
from functools import reduce
from pathlib import Path

import pytest

from lc.experiments import profile

ROOT = Path(__file__).resolve().parents[1]
PAPER = ROOT.parent / "shared" / "paper"
HEADER = "table,row,column,value,unit,dataset,split,metric,place,note".split(",")
TABLES = ["1", "2", "3", "4", "5", "6", "poster", "slides", "text"]
UNITS = set("percent ms FPS M images pixels count ratio bool probability".split())
NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
WORDS = dict(zero=0, one=1, single=1, two=2, three=3, four=4, five=5, six=6, thousand=1000)

with open(ROOT / "results" / "published.csv", encoding="utf-8", newline="") as f:
    READER = csv.DictReader(f)
    ROWS = list(READER)

needs_paper = pytest.mark.skipif(not PAPER.is_dir(), reason=f"no copy of the paper at {PAPER}")


def table(name):
    """One table as {row: {column: value as printed}}, in the order of the file."""
    rows = {}
    for r in ROWS:
        if r["table"] == name:
            rows.setdefault(r["row"], {})[r["column"]] = r["value"]
    return rows


def split_miou(cells):
    """The per-class IoUs of a row of Table 4 or 5, and its printed mIoU."""
    return [float(v) for c, v in cells.items() if c not in ("mIoU", "sub")], float(cells["mIoU"])


def copy(name):
    return (PAPER / name).read_text(encoding="utf-8")


def printed_tables(text):
    """The lines of numbers of each table in a copy of the paper: {"1": [[cell, ...], ...]}."""
    found, lines, inside = {}, [], False
    for line in text.splitlines():
        if caption := re.match(r"Table (\d):", line):
            lines = found.setdefault(caption[1], [])
            inside = True
        elif inside:
            cells = [c.strip() for c in line.split("\t")]
            if len(cells) > 1 and NUMBER.fullmatch(cells[-1]):
                lines.append(cells)
            elif lines:  # the table has ended
                inside = False
    return found


def short_name(cell):
    """A printed row heading without citation, and with one spelling of the dagger."""
    cell = re.sub(r"\s*\[\d+\]", "", cell).replace(" [†]", "†").replace("^{\\dagger}", "†")
    return {"Model Cascade (MC)": "MC", "Layer Cascade (LC)": "LC"}.get(cell, cell)


def numbers(text):
    """The numbers of a text, digits and small words, without citations, table lines and 'Fig. 3'."""
    text = "\n".join(line for line in text.splitlines() if "\t" not in line)
    text = re.sub(r"\[\d+(, \d+)*\]", " ", text)
    text = re.sub(r"(?:Fig\.|Figure|Tables?|Sec\.|[Ss]tage)[ -]*[\d.]+", " ", text)
    text = re.sub(r"(\d), ?(\d{3})\b", r"\1\2", text)  # 10, 582
    return {float(n) for n in NUMBER.findall(text)} | {
        float(v) for w, v in WORDS.items() if re.search(rf"\b{w}\b", text, re.I)
    }


def test_form():
    """Columns, vocabulary, reading order, no number twice, no empty cell unexplained."""
    assert READER.fieldnames == HEADER
    keys = [(r["table"], r["row"], r["column"]) for r in ROWS]
    assert len(keys) == len(set(keys))
    order = [TABLES.index(r["table"]) for r in ROWS]
    assert order == sorted(order) and set(order) == set(range(len(TABLES)))
    for r in ROWS:
        assert None not in r and None not in r.values(), r
        assert r["row"] and r["column"] and r["metric"] and r["place"], r
        assert r["unit"] in UNITS, r
        assert r["dataset"] in ("VOC12", "Cityscapes", "ImageNet", "COCO", ""), r
        assert r["split"] in ("train", "val", "test", ""), r
        assert NUMBER.fullmatch(r["value"]) or (r["value"] == "" and r["note"]), r
        if r["unit"] == "bool":
            assert r["value"] in ("0", "1", ""), r
        if r["value"] and r["unit"] in ("percent", "probability"):
            assert float(r["value"]) <= (100 if r["unit"] == "percent" else 1), r


def test_table_1_shares():
    """Stage-1 and stage-2 together are at most all pixels, and make the 52% of Sec. 4.1 at 0.985."""
    t = table("1")
    total = {rho: float(t["stage-1"][rho]) + float(t["stage-2"][rho]) for rho in t["mIoU"]}
    assert all(0 <= v <= 100 for v in total.values())
    assert total["1"] == 0 and total["0.985"] == float(table("text")["early-stage-share"]["value"])


def test_table_4_background():
    """Table 4 does not average to its mIoU, which counts the unprinted background as 21st class.

    What holds: in all ten rows the mean of the 20 printed classes lies 0.7 to 1.5
    below the mIoU, and the background IoU implied lies between 91 and 98.
    """
    rows = table("4")
    assert len(rows) == 10
    for name, cells in rows.items():
        ious, miou = split_miou(cells)
        assert len(ious) == 20
        assert 0.7 <= miou - sum(ious) / 20 <= 1.5, name
        assert 91 <= 21 * miou - sum(ious) <= 98, name


def test_table_5_averages():
    """Rows of Table 5 average to the printed mIoU, save LC: 72.3 where 71.1 is printed."""
    rows = table("5")
    assert len(rows) == 8
    for name, cells in rows.items():
        ious, miou = split_miou(cells)
        assert len(ious) == 19
        if name == "LC":
            assert miou == 71.1 and sum(ious) / 19 == pytest.approx(72.3, abs=0.05)
        else:
            assert sum(ious) / 19 == pytest.approx(miou, abs=0.1), name


def test_table_3_speed():
    """1000 / ms is the printed FPS within 0.11, save LC: 65.1 ms (15.4 FPS) beside 14.7 FPS."""
    rows = {name: (1000 / float(c["ms"]), float(c["FPS"])) for name, c in table("3").items()}
    assert list(rows) == ["DeepLab-v2", "SegNet", "LC", "LC (fast)"]
    from_ms, fps = rows.pop("LC")
    assert fps == 14.7 and from_ms == pytest.approx(15.36, abs=0.01)
    for name, (from_ms, fps) in rows.items():
        assert from_ms == pytest.approx(fps, abs=0.11), name


def test_gains_and_repeats():
    """Gains claimed in the text follow from Tables 1-3, and numbers printed twice are equal."""
    text = {row: cells["value"] for row, cells in table("text").items() if "value" in cells}
    t1, t2, t3, t4 = table("1")["mIoU"], *(
        {row: cells["mIoU"] for row, cells in table(n).items()} for n in "234"
    )
    base = float(t2["IRNet"])
    for row, better in [
        ("dsn-gain-over-irnet", t2["DSN"]),
        ("accuracy-gain-over-irnet", t2["LC"]),
        ("rho-0.985-gain-over-irnet", t1["0.985"]),
        ("near-real-time-gain-over-irnet", t1["0.950"]),
    ]:
        digits = len(text[row].split(".")[1])
        assert round(float(better) - base, digits) == float(text[row]), row
    assert float(t3["DeepLab-v2"]) - float(t3["SegNet"]) > float(text["segnet-loss-above"])
    assert t1["1"] == t2["DSN"]
    assert t1["0.985"] == t2["LC"] == t3["LC"] == text["lc-miou"]
    assert t1["0.800"] == t3["LC (fast)"] == text["lc-fast-miou"]
    assert t4["LC"] == table("6")["IRNet-LC multi-scale CRF"]["mIoU"] == text["lc-miou-voc-test"]
    assert table("5")["LC"]["mIoU"] == text["lc-miou-cityscapes-test"]
    assert table("poster")["Layer Cascade"]["FPS"] == table("3")["LC"]["FPS"] == text["lc-speed"]


@needs_paper
@pytest.mark.parametrize("source, names", [("paper.md", "12345"), ("reading-notes.md", "123456")])
def test_tables_against_copies(source, names):
    """Every number of the tables, digit by digit; Table 6 is printed in the reading notes only."""
    printed = printed_tables(copy(source))
    assert "".join(printed) == names
    for name in names:
        lines, ours = printed[name], table(name)
        if name == "1":  # its first line holds the thresholds, our columns
            head, *lines = lines
            assert all(list(cells) == head[1:] for cells in ours.values())
            lines = [[line[0].removesuffix(" (%)"), *line[1:]] for line in lines]
        if name == "6":  # row, backbone, params, COCO, multi-scale, CRF, FPS, mIoU
            assert [line[0].split(" [")[0] for line in lines] == [row.split(" multi")[0] for row in ours]
            lines = [[row, line[2].removesuffix("M"), *line[3:]] for row, line in zip(ours, lines)]
        blank = {"yes": "1", "no": "" if name == "5" else "0", "-": ""}
        assert [[short_name(line[0]), *(blank.get(c, c) for c in line[1:])] for line in lines] == [
            [row, *cells.values()] for row, cells in ours.items()
        ], f"Table {name}"


@needs_paper
def test_poster_and_slides():
    """The poster's speeds and the slides' numbers stand beside their names in those copies."""
    poster, slides = copy("poster.txt"), re.sub(r"</?b>|\*\*", "", copy("slides.md"))
    for row, cells in table("poster").items():
        assert f"{row} {cells['FPS']} fps\n" in poster
    lines = {}
    for line in slides.splitlines():
        head, *cells = line.split("\t")
        lines[head.replace(" ", "").lower()] = cells
    for row, cells in table("slides").items():
        if "mIoU" not in cells:
            assert f"{row} ({cells['FPS']} FPS)" in slides
        else:
            printed = [c.replace("-", "") for c in lines[row.replace(" ", "").lower()]]
            assert printed == [cells["mIoU"], cells["FPS"]], row


@needs_paper
def test_text_against_copies():
    """Each number of the running text occurs in every section or copy its place names."""
    body = copy("paper.md").split("\nReferences\n")[0]
    parts = re.split(r"^(\d(?:\.\d)?)\. (?=[A-Z])", body, flags=re.M)
    known = {f"Sec. {n}": numbers(t) for n, t in zip(parts[1::2], parts[2::2])}
    known["Fig. 1 caption"] = numbers(re.search(r"^Figure 1: (.*)$", body, re.M)[1])
    known["poster"] = numbers(copy("poster.txt"))
    for r in ROWS:
        if r["table"] == "text":
            for place in r["place"].split("; "):
                assert float(r["value"]) in known[place], (r["row"], r["column"], place)


@pytest.mark.parametrize("name", ["voc12", "cityscapes"])
def test_every_choice_of_a_full_profile_has_its_source(name):
    """results/choices.csv says what the profile does, and leaves out no setting of training that is on."""
    with open(ROOT / "results" / "choices.csv", encoding="utf-8", newline="") as file:
        listed = {row["setting"]: row for row in csv.DictReader(file)}
    assert {key: str(reduce(getattr, key.split("."), profile(name))) for key in listed} == {key: row[name] for key, row in listed.items()}
    assert all(re.match("(paper, Sec|DeepLab-v[23], Sec|ours: )", row["source"]) for row in listed.values())
    assert {f"train.{key}" for key, value in vars(profile(name).train).items() if value} <= set(listed)

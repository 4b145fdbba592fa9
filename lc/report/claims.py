"""Every claim of the paper, poster and slides (results/claims.csv) -> verdict, number, record, by the rules below.

reproduced: the interval, or the count, is on the claimed side. not: it is on the other. not shown: the interval holds zero.
in part: the direction holds, the size does not. open: could be tested here, and is not yet. not here: needs what this place lacks.
"""
import csv
import json

import pandas as pd
import torch

from lc import paths
from lc.report import audit, verdicts
from lc.cascade import build_irnet_lc
from lc.speed.cost import components
from lc.paper import published
from lc.records import Record
from lc.report.tables import (Evidence, decided_shares, difficulty_shares, draws, interval, label_ratios, near_boundary, percent, rho_runs,
                       speed_files, system_times)

BOUNDARY = 3     # pixels: how near "on a boundary" is, at most
SHARE = 10       # points by which a share of pixels may differ
FACTS = ("audit", "voc lists", "voc background", "label map", "parameters", "speed")
COMPARISONS = ("gain", "no effect", "robust", "peak", "applies", "faster")
VERDICTS = ("reproduced", "in part", "not shown", "not", "open", "not here")


def claims(ev: Evidence) -> pd.DataFrame:
    """One row per claim: place, page, verdict, number, record. Claims whose records are missing are open."""
    table = []
    for row in listed("claims"):
        try:
            verdict, number = _judge(ev, row)
        except (KeyError, FileNotFoundError, StopIteration):
            verdict, number = "open", "not run"
        table.append({"claim": row["claim"], "place": row["place"], "page": link(row["page"]), "verdict": verdict, "number": number,
                      "records": ", ".join(name for name in row["on"].split() if name in ev.records)})
    return pd.DataFrame(table)


def listed(name: str) -> list[dict]:
    """The rows of results/<name>.csv."""
    with open(paths.ROOT / "results" / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def link(page: str) -> str:
    """A page of the book as a link, empty for none."""
    return f'<a href="{page}.html">{page}</a>' if page else ""


def summary(table: pd.DataFrame) -> str:
    """How many claims got which verdict, in one sentence."""
    counts = table["verdict"].value_counts()
    return f"Of {len(table)} claims: " + ", ".join(f"{counts[v]} {v}" for v in VERDICTS if v in counts) + "."


def _claimed(text: str) -> float | None:
    """A published number, or the difference of two: "table|row|column - table|row|column"; None where nothing is claimed."""
    values = [published(*address.strip().split("|")).value for address in text.split(" - ")] if text else []
    return values[0] - sum(values[1:]) if values else None


def _judge(ev: Evidence, row: dict) -> tuple[str, str]:
    test, names, claimed = row["test"], row["on"].split(), _claimed(row["claimed"])
    if test in ("open", "not here"):
        return test, row["on"]
    if test in FACTS:
        return _fact(test, row["on"], claimed)
    if ev.profile.tier == "smoke":
        return "open", "smoke runs give no verdict"
    for name in names:
        ev.records[name]  # KeyError: the run is missing
    return _compare(test, ev, names, claimed) if test in COMPARISONS else _count(test, ev[names[0]], claimed)


def _grade(full: bool, partly: bool = False) -> str:
    return "reproduced" if full else "in part" if partly else "not"


def _sign(found: verdicts.Difference, claimed: float, effect: bool = True) -> str:
    said = found.verdict(claimed, effect).split(":")[0]
    return {"reproduced in sign": "reproduced", "contradicted": "not"}.get(said, said)


def _compare(test: str, ev: Evidence, names: list[str], claimed: float | None) -> tuple[str, str]:
    """What follows from the difference of two runs and its interval."""
    if test == "peak":
        best = max(runs := rho_runs(ev), key=lambda rho: percent(runs[rho], "val"))
        if best == "1":
            return "not", "best on val: rho = 1"
        gain = verdicts.difference(ev, f"lc-{best}", "dsn")
        return "reproduced" if gain.low > 0 else "not shown", f"best on val: rho = {best}; there {gain}"
    if test == "applies":
        return "reproduced", "cut into stages and trained; " + "; ".join(
            f"{lc} less {dsn}: {verdicts.difference(ev, lc, dsn)}" for lc, dsn in zip(names[::2], names[1::2]))
    if test == "faster":
        ours, other = (system_times(ev.profile.name).loc[name] for name in names)
        said = _grade(ours["ms_high"] < other["ms_low"]) if ours["ms_high"] < other["ms_low"] or other["ms_high"] < ours["ms_low"] else "not shown"
        return said, f"{ours['ms']:.1f} against {other['ms']:.1f} ms an image; apart if the quartiles are"
    found = verdicts.difference(ev, *names)
    if test == "robust":
        said = "not shown" if found.low < claimed <= found.high else _grade(found.low >= claimed)
    else:
        said = _sign(found, claimed, test == "gain")
    return said, f"{found}; paper {claimed:+.2f}"


def _count(test: str, record: Record, claimed: float | None) -> tuple[str, str]:
    """What follows from the shares and counts of one record."""
    match test:
        case "early share" | "stage 1 share":
            ours = 100 * sum(record["metrics"]["val"]["decided"][:2 if test == "early share" else 1])
            return _grade(abs(ours - claimed) <= SHARE, True), f"{ours:.0f} %; paper {claimed:g} %"
        case "adds":
            drawn = [draws(confusions) for confusions in record.arrays["confusions"]]
            best = verdicts.Difference(*interval(drawn[-1] - drawn[0]), len(record.arrays["confusions"][0]), "val")
            return _sign(best, claimed), \
                f"{record['study']['variants'][-1]} over {record['study']['variants'][0]}: {best}; paper {claimed:+.2f}"
        case "easy classes":
            enough = difficulty_shares(record)["ES"].dropna() >= claimed
            return _grade(enough.mean() > 0.5), f"{enough.sum()} of {len(enough)} classes"
        case "hard boundary":
            hard, every = near_boundary(record).loc[BOUNDARY, ["HS", "all"]]
            return _grade(hard >= claimed - SHARE, hard > every), f"{hard:.0f} % of HS within {BOUNDARY} pixels, {every:.0f} % of all pixels"
        case "ratios":
            above = label_ratios(record).iloc[:, 0].dropna() > 1
            return _grade(above.all(), above.mean() > 0.5), \
                f"{above.sum()} of {len(above)} classes above 1 (our data has no background class to lose weight)"
        case "harder deeper":
            tie = verdicts.deeper(record)
            return _grade(tie < -0.5, tie < 0), f"rank correlation of IoU and share decided in stage 3: {tie:+.2f}"
        case "easy first":
            first = decided_shares(record).loc[["road", "building", "pole", "pedestrian"], "stage 1"]
            easy, hard = first.iloc[:2], first.iloc[2:]
            return _grade(easy.min() > hard.max(), easy.mean() > hard.mean()), ", ".join(f"{k} {v:.0f} %" for k, v in first.items())
    raise ValueError(f"results/claims.csv names an unknown test {test!r}")


def _fact(test: str, on: str, claimed: float | None) -> tuple[str, str]:
    """What needs no run of ours: the paper's own numbers, the labels of VOC, the network, timing files."""
    match test:
        case "audit":
            found = next(f for f in audit.findings() if f.subject == on)
            return _grade(found.agrees), f"paper against itself: {found.stated}; {found.computed}"
        case "voc lists":
            counts, stated = voc_labels()["images"], [published("text", f"voc-{split}-images").value for split in ("train", "val")]
            return _grade(list(counts.values()) == stated), f"{counts['trainaug']:,} and {counts['val']:,} masks, none in both lists"
        case "voc background":
            labelled, every = (100 * voc_labels()[f"background_of_{part}"] for part in ("labelled", "all"))
            near = min(abs(labelled - claimed), abs(every - claimed)) <= 0.05
            return _grade(near, True), f"{labelled:.1f} % of the labelled, {every:.1f} % of all pixels"
        case "label map":
            size = build_irnet_lc(21).to("meta").eval()(torch.zeros(1, 3, 512, 512, device="meta"), 1.0).log_probs.shape[1:]
            return _grade(tuple(size) == (21, 64, 64)), " x ".join(map(str, size))
        case "parameters":
            rows = components(build_irnet_lc(21), (512, 512))
            total, heads = (sum(r["parameters"] for r in rows if r["component"].startswith(start)) / 1e6 for start in ("", "head"))
            return _grade(abs(total - claimed) < 0.05, True), f"{total - heads:.2f} M, and {heads:.2f} M in heads of an assumed width"
        case "speed":
            bench, paper = next(iter(speed_files("network"))), verdicts.paper_speedups()[float(on)]
            row = next(r for r in bench["rows"] if r["rho"] == float(on))
            low, high = row["speedup_low"], row["speedup_high"]
            return "not shown" if low <= 1 < high else _grade(high >= paper, low > 1), \
                f"{row['speedup']:.2f}x, full network at the paper's pixel shares, {bench['device']}; ideal {row['ideal']:.2f}x; paper {paper:.2f}x"


def voc_labels() -> dict:
    """Facts counted on the masks of VOC 2012 by data_scripts/voc12_labels.py."""
    return json.loads((paths.results("voc12") / "labels.json").read_text())

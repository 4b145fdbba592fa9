"""Every claim of the paper, poster and slides (results/claims.csv) -> verdict, number, record, by the rules below.

reproduced: the interval reaches the claimed size, or the count agrees. in part: the direction holds, the size does not. not: the opposite is
seen. not shown: the interval includes zero. open: could be tested here, and is not yet. not here: needs what this place lacks.
"""
import json

import numpy as np
import pandas as pd
import torch

from lc import paths
from lc.experiments import BEST_RHO
from lc.networks import build
from lc.paper import published
from lc.records import Record
from lc.report import audit, verdicts
from lc.report.speedups import cascade_files, paper_speedups, speed_files, system_times
from lc.report.tables import (BOUNDARY, Evidence, decided_near, decided_shares, difference_printed, difficulty_shares, interval, label_ratios, listed,
                               near_boundary, percent, variant)

SHARE = 10       # points by which a share of pixels may differ
OPEN = "open", "not run"  # what it takes is not here
CHECKED = ("audit", "voc lists", "voc background", "label map", "parameters", "stage parameters")  # against the paper itself, or the labels of VOC
FACTS, TIMES = (*CHECKED, "speed", "training", "order"), ("faster", "time falls", "later time")
COMPARISONS = ("gain", "no effect", "robust", "peak", "applies", "monotone", *TIMES)
SPELT = {"reproduced": "reproduced", "in part": "in part", "not shown": "no difference shown", "not": "not reproduced", "open": "not tested yet",
         "not here": "not testable here"}  # verdicts, in sentences


def claims(ev: Evidence, **only: str) -> pd.DataFrame:
    """One row per claim (only="...": those of a page or a test): place, page, verdict, number, record. Claims whose records are missing are open."""
    table = []
    for row in (row for row in listed("claims") if only.items() <= row.items()):
        verdict, number = _judge(ev, row)
        table.append({"test": row["test"], "claim": row["claim"], "place": row["place"], "page": link(row["page"]), "verdict": verdict,
                      "number": number, "records": ", ".join(name for name in row["on"].partition("|")[0].split() if name in ev.records)})
    return pd.DataFrame(table)


def sentences(ev: Evidence, **only: str) -> list[str]:
    """`claims` that are tested, with numbers and verdicts, as sentences."""
    return [f"*{row.claim}* ({row.place}): {row.number}. **{SPELT[row.verdict].capitalize()}**." for row in claims(ev, **only).itertuples()
            if row.verdict != "open"] or ["Smoke runs, or runs are missing: no verdict."]


def without_weights(ev: Evidence) -> pd.Series:
    """What becomes of each claim on accuracy and on shares of pixels in the runs without balanced classes; empty for the others."""
    table = claims(ev.unbalanced)
    tells = ~table["test"].isin((*FACTS, *TIMES)) & ~table["verdict"].isin(["open", "not here"])
    return (table["verdict"] + ": " + table["number"]).where(tells, "")


def link(page: str) -> str:
    """A page of the book as a link, empty for none."""
    return f'<a href="{page}.html">{page}</a>' if page else ""


def summary(table: pd.DataFrame) -> str:
    """How many claims got which verdict, in two sentences: what our runs tested, and what was checked without any."""
    parts = []
    for checked, what in ((False, "that need runs, timings or what is not here"), (True, "checked against the paper's own numbers and VOC's labels")):
        counts = table.loc[table["test"].isin(CHECKED) == checked, "verdict"].value_counts()
        parts.append(f"Of {counts.sum()} claims {what}: " + ", ".join(f"{counts[v]} *{said}*" for v, said in SPELT.items() if v in counts) + ".")
    return " ".join(parts)


def _judge(ev: Evidence, row: dict) -> tuple[str, str]:
    test, claimed = row["test"], difference_printed(row["claimed"])
    names, *variants = row["on"].split("|")
    names = names.split()
    if test == "not here":
        return test, row["on"]
    if test in FACTS:
        return _fact(test, row["on"], claimed)
    if ev.profile.tier == "smoke":
        return "open", "smoke runs give no verdict"
    there = system_times(ev.profile.name).index if test == "faster" else ev.records
    if not {*names} <= {*there} or test in TIMES[1:] and not cascade_files(ev, f"lc-{BEST_RHO}"):
        return OPEN
    if test == "adds":
        return _adds(ev[names[0]], variants, claimed)
    return _compare(test, ev, names, claimed) if test in COMPARISONS else _count(test, ev[names[0]], claimed)


def _grade(full: bool, partly: bool = False) -> str:
    return "reproduced" if full else "in part" if partly else "not"


def _adds(record: Record, variants: list[str], claimed: float) -> tuple[str, str]:
    """What follows from one variant of a study less another."""
    more, less = (variant(record, name) for name in variants)
    found = verdicts.Difference(*interval(more - less), record.arrays["confusions"].shape[1], "val")
    return found.verdict(claimed), f"{variants[0]} over {variants[1]}: {found}; paper {claimed:+.2f}"


def _compare(test: str, ev: Evidence, names: list[str], claimed: float | None) -> tuple[str, str]:
    """What follows from the difference of two runs and its interval."""
    if test == "peak":
        best = max(names[1:], key=lambda name: percent(ev[name], "val"))
        gain = verdicts.difference(ev, best, "dsn")
        return gain.verdict(claimed), f"the best on val below 1{', judged there too, which flatters it' * (len(ev.splits) == 1)}: rho = " \
            f"{best.removeprefix('lc-')}; there {gain}; paper {claimed:+.2f}"
    if test == "monotone":
        early = [100 * sum(ev[name]["metrics"]["val"]["decided"][:2]) for name in names]
        return _grade(early == sorted(early), early[-1] > early[0]), ", ".join(f"{v:.0f}" for v in early) + " % on val, by falling rho"
    rows = [row for row in cascade_files(ev, f"lc-{BEST_RHO}")[0]["rows"] if row["rho"] is not None] if test in TIMES[1:] else []
    if test == "time falls":
        ms = [row["ms"] for row in rows]
        return _grade(ms == sorted(ms, reverse=True), ms[-1] < ms[0]), ", ".join(f"{v:.1f}" for v in ms) + " ms, by falling rho"
    if test == "later time":
        low, high = (pick(rows, key=lambda row: row["rho"]) for pick in (min, max))
        first, *later = np.subtract(high["stage_ms"], low["stage_ms"])
        said = f"from rho = {low['rho']:g} to {high['rho']:g}: stage 1 {first:+.1f} ms, later ones {sum(later):+.1f} ms"
        return _grade(sum(later) > max(first, 0)), said
    if test == "applies":
        found = {lc: verdicts.difference(ev, lc, dsn) for lc, dsn in zip(names[::2], names[1::2])}
        return _grade(all(d.high >= 0 for d in found.values()), True), "cut into stages and trained; less its DSN: " + "; ".join(
            f"{lc} {d}" for lc, d in found.items())
    if test == "faster":
        ours, other = (system_times(ev.profile.name).loc[name] for name in names)
        said = _grade(ours["ms_high"] < other["ms_low"]) if ours["ms_high"] < other["ms_low"] or other["ms_high"] < ours["ms_low"] else "not shown"
        return said, ", ".join(f"{name} {row['ms']:.1f} ms ({row['ms_low']:.1f} to {row['ms_high']:.1f}, {row['form']})"
                               for name, row in zip(names, (ours, other))) + "; different if the quartiles do not overlap"
    splits = [verdicts.difference(ev, *names, split) for split in ev.splits]
    if test == "robust":
        judged = ["not shown" if d.low < claimed <= d.high else _grade(d.low >= claimed) for d in splits]
    else:
        judged = [d.verdict(1e-9 if claimed is None else claimed, test == "gain") for d in splits]
    apart = f"; on {ev.splits[0]} alone *{SPELT[judged[0]]}*" * (judged[0] != judged[-1])
    wide = "; too wide an interval to say that there is none" * (test == "no effect" and judged[-1] == "not shown")
    return judged[-1], "; ".join(map(str, splits)) + ("" if claimed is None else f"; paper {claimed:+.2f}") + apart + wide


def _count(test: str, record: Record, claimed: float | None) -> tuple[str, str]:
    """What follows from the shares and counts of one record."""
    match test:
        case "early share" | "stage 1 share":
            ours = 100 * sum(record["metrics"]["val"]["decided"][:2 if test == "early share" else 1])
            return _grade(abs(ours - claimed) <= SHARE), f"{ours:.0f} % on val; paper {claimed:g} %, give or take {SHARE}"
        case "easy classes":
            enough = difficulty_shares(record)["ES"].dropna() >= claimed
            return _grade(enough.mean() > 0.5), f"{enough.sum()} of {len(enough)} classes"
        case "hard boundary":
            hard, every = near_boundary(record).loc[BOUNDARY, ["HS", "all"]]
            said = f"{hard:.0f} % of HS within {BOUNDARY} pixels, {every:.0f} % of all pixels"
            return _grade(False, hard > every), f"{said}; the paper gives no width, so {claimed:g} % cannot be checked"
        case "few wrong":
            easy, _, hard = record.arrays["sets"][0].sum(1)
            shares = ", ".join(f"{100 * share:.0f}" for share in record.arrays["sets"][0].sum(1) / record.arrays["sets"][0].sum())
            return _grade(hard < easy), f"{100 * hard / (easy + hard):.1f} % of the confident pixels are wrong; ES, MS and HS hold {shares} % of all"
        case "ratios":
            above = label_ratios(record).iloc[:, 0].dropna() > 1
            said = f"{above.sum()} of {len(above)} classes above 1"
            if "background" not in above:
                return "not here", f"needs a background class, which alone loses weight; without one {said}"
            above = above.drop("background")
            return _grade(above.all(), above.mean() > 0.5), f"{above.sum()} of {len(above)} classes beside the background above 1"
        case "harder deeper" | "harder focus":
            tie, what = verdicts.tied(record, decided_shares(record).iloc[:, -1]), "share decided in stage 3"
            if test == "harder focus":
                tie, what = verdicts.tied(record, label_ratios(record).iloc[:, -1]), "label share in stage 3 over that in stage 2"
            return _grade(tie < 0) if abs(tie) > 0.5 else "not shown", f"rank correlation of IoU and {what}: {tie:+.2f}"
        case "boundary later":
            near, every = decided_near(record).to_numpy()[1:].T
            return _grade((near > every).all(), near.sum() > every.sum()), f"decided in stages 2 and 3: {near[0]:.0f} and {near[1]:.0f} % of the " \
                f"pixels within {BOUNDARY} of a boundary, {every[0]:.0f} and {every[1]:.0f} % of all"
        case "easy first":
            first = decided_shares(record)["stage 1"].reindex(["road", "building", "pole", "pedestrian"])
            if first.isna().any():
                return "not here", "needs street scenes labelled as CamVid's are"
            easy, hard, every = first.iloc[:2], first.iloc[2:], 100 * record["metrics"]["val"]["decided"][0]
            return _grade(easy.min() > max(every, hard.max()), easy.mean() > hard.mean()), \
                f"decided in stage 1: {', '.join(f'{k} {v:.0f} %' for k, v in first.items())}, all pixels {every:.0f} %"
    raise ValueError(f"results/claims.csv names an unknown test {test!r}")


def _fact(test: str, on: str, claimed: float | None) -> tuple[str, str]:
    """What needs no run of ours: the paper's own numbers, the labels of VOC, the network, timing files."""
    match test:
        case "audit":
            found = {finding.subject: finding for finding in audit.findings()}[on]
            return _grade(found.agrees, found.partly), f"paper against itself: {found.stated}; {found.computed}"
        case "voc lists":
            counts, stated = voc_labels()["images"], [published("text", f"voc-{split}-images").value for split in ("train", "val")]
            return _grade(list(counts.values()) == stated), f"{counts['trainaug']:,} and {counts['val']:,} masks, none in both lists"
        case "voc background":
            labelled, every = (100 * voc_labels()[f"background_of_{part}"] for part in ("labelled", "all"))
            near = min(abs(labelled - claimed), abs(every - claimed)) <= 0.05
            return _grade(near), f"{labelled:.1f} % of the labelled, {every:.1f} % of all pixels"
        case "label map":
            size = build(21).to("meta").eval()(torch.zeros(1, 3, 512, 512, device="meta"), 1.0).log_probs.shape[1:]
            return _grade(tuple(size) == (21, 64, 64)), " x ".join(map(str, size))
        case "parameters":
            body, heads = audit.parts().groupby("head")["parameters"].sum() / 1e6
            return _grade(abs(body + heads - claimed) < 0.05, body < claimed), f"{body:.2f} M, and {heads:.2f} M in heads of an assumed width"
        case "training":
            rows = [row for bench in speed_files("training") for row in bench["rows"] if row["layer"] == "whole step"]
            return _grade(False, all(row["speedup_low"] > 1 for row in rows)) if rows else "open", "a step: " + ", ".join(
                f"{row['speedup']:.2f}x [{row['speedup_low']:.2f}, {row['speedup_high']:.2f}] at rho = {row['rho']:g} (ideal {row['ideal']:.2f}x)"
                for row in rows) + "; the paper's width, depth and pixel shares; time to equal accuracy not tested, no size is claimed"
        case "stage parameters":
            first, *later = audit.parts().groupby("stage")["parameters"].sum() / 1e6
            said = ", ".join(f"{m:.1f} M" for m in (first, *later))
            return _grade(min(later) > 2 * first, min(later) > first), f"{said} in stages 1, 2, 3"
        case "order":
            if (ms := system_times("")["ms"].reindex(on.split())).isna().any():
                return OPEN
            said = ", ".join(f"{name} {v:.0f} ms" for name, v in ms.items())
            return _grade(ms.is_monotonic_decreasing and ms.is_unique, ms.iloc[-1] < ms.max()), f"{said}, full width, 300x500"
        case "speed":
            paper = paper_speedups()[float(on)]
            rows = [{**row, "where": bench["where"]} for bench in speed_files("network") for row in bench["rows"] if row["rho"] == float(on)]
            if not rows:
                return OPEN
            low, high = min(row["speedup_low"] for row in rows), min(row["speedup_high"] for row in rows)
            return "not shown" if low <= 1 < high else _grade(high >= paper, low > 1), "full network at the paper's pixel shares, " + "; ".join(
                f"{row['speedup']:.2f}x ({row['where']}; ideal {row['ideal']:.2f}x)" for row in rows) + f"; paper {paper:.2f}x"


def voc_labels() -> dict:
    """Facts counted on the masks of VOC 2012 by data_scripts/voc12_labels.py."""
    return json.loads((paths.LISTS / "voc12" / "labels.json").read_text())

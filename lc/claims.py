"""Every claim of the paper, poster and slides (results/claims.csv) -> verdict, number, record, by the rules below.

reproduced: the interval, or the count, is on the claimed side. not: it is on the other. not shown: the interval holds zero.
in part: the direction holds, the size does not. open: could be tested here, and is not yet. not here: needs what this place lacks.
"""
import csv
import json
from collections import Counter

import pandas as pd

from lc import audit, paths, verdicts
from lc.cascade import build_irnet_lc
from lc.cost import components
from lc.paper import published
from lc.tables import Evidence, decided_shares, difficulty_shares, label_ratios, near_boundary, percent, rho_runs, speed_files

BOUNDARY = 3     # pixels: how near "on a boundary" is, at most
SHARE = 10       # points by which a share of pixels may differ


def claims(ev: Evidence) -> pd.DataFrame:
    """One row per claim: place, page, verdict, number, record. Claims whose records are missing are open."""
    with open(paths.ROOT / "results" / "claims.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    table = []
    for row in rows:
        try:
            verdict, number = _judge(ev, row)
        except (KeyError, FileNotFoundError, StopIteration):
            verdict, number = "open", "not run"
        runs = [name for name in row["on"].split() if name in ev.records]
        table.append({"claim": row["claim"], "place": row["place"], "page": f'<a href="{row["page"]}.html">{row["page"]}</a>' if row["page"] else "",
                      "verdict": verdict, "number": number, "records": ", ".join(runs)})
    return pd.DataFrame(table)


def summary(table: pd.DataFrame) -> str:
    """How many claims got which verdict, in one sentence."""
    counts = Counter(table["verdict"])
    return f"Of {len(table)} claims: " + ", ".join(f"{counts[v]} {v}" for v in ("reproduced", "in part", "not shown", "not", "open", "not here") if counts[v]) + "."


def _claimed(text: str) -> float:
    """A published number, or the difference of two: "table|row|column - table|row|column"."""
    values = [published(*address.strip().split("|")).value for address in text.split(" - ")]
    return values[0] - sum(values[1:])


def _judge(ev: Evidence, row: dict) -> tuple[str, str]:
    test, names = row["test"], row["on"].split()
    if test in ("open", "not here"):
        return test, row["on"]
    if test == "audit":
        found = next(f for f in audit.findings() if f.subject == row["on"])
        return "reproduced" if found.agrees else "not", f"paper against itself: {found.stated}; {found.computed}"
    if test in FACTS:
        return FACTS[test](row)
    if ev.profile.tier == "smoke":
        return "open", "smoke runs give no verdict"
    for name in names:
        ev.records[name]  # KeyError: the run is missing
    if test in ("gain", "no effect"):
        found = verdicts.difference(ev, *names)
        said = found.verdict(_claimed(row["claimed"]), effect=test == "gain").split(":")[0]
        return {"reproduced in sign": "reproduced", "contradicted": "not"}.get(said, said), f"{found}; paper {_claimed(row['claimed']):+.2f}"
    return RULES[test](ev, row, names)


def _share(stages: int):
    def judge(ev: Evidence, row: dict, names: list[str]) -> tuple[str, str]:
        ours, paper = 100 * sum(ev[names[0]]["metrics"]["val"]["decided"][:stages]), _claimed(row["claimed"])
        return "reproduced" if abs(ours - paper) <= SHARE else "in part", f"{ours:.0f} %; paper {paper:g} %"
    return judge


def _robust(ev: Evidence, row: dict, names: list[str]) -> tuple[str, str]:
    found, loss = verdicts.difference(ev, *names), _claimed(row["claimed"])
    return "reproduced" if found.low >= loss else "not" if found.high < loss else "not shown", f"{found}; paper {loss:+.2f}"


def _peak(ev: Evidence, row: dict, names: list[str]) -> tuple[str, str]:
    runs = {rho: percent(run, "val") for rho, run in rho_runs(ev).items()}
    best = max(runs, key=runs.get)
    gain = None if best == "1" else verdicts.difference(ev, f"lc-{best}", "dsn", "test")
    said = "not" if gain is None else "reproduced" if gain.low > 0 else "not shown"
    return said, f"best on val: rho = {best}" + (f"; there {gain}" if gain else "")


def _speed(row: dict) -> tuple[str, str]:
    bench, rho = next(iter(speed_files("network"))), float(row["on"])
    found = next(r for r in bench["rows"] if r["rho"] == rho)
    paper = published("3", "LC" if rho > 0.9 else "LC (fast)", "FPS").value / published("text", "inception-resnet-speed").value
    said = "not" if found["speedup_high"] <= 1 else "not shown" if found["speedup_low"] <= 1 else "reproduced" if found["speedup_high"] >= paper else "in part"
    return said, f"{found['speedup']:.2f}x, full network at the paper's pixel shares, {bench['device']}; ideal {found['ideal']:.2f}x; paper {paper:.2f}x"


def _easy_classes(ev: Evidence, row: dict, names: list[str]) -> tuple[str, str]:
    shares = difficulty_shares(ev[names[0]])["ES"].dropna()
    enough = int((shares >= _claimed(row["claimed"])).sum())
    return "reproduced" if 2 * enough > len(shares) else "not", f"{enough} of {len(shares)} classes"


def _hard_boundary(ev: Evidence, row: dict, names: list[str]) -> tuple[str, str]:
    near = near_boundary(ev[names[0]]).loc[BOUNDARY]
    said = "reproduced" if near["HS"] >= _claimed(row["claimed"]) - SHARE else "in part" if near["HS"] > near["all"] else "not"
    return said, f"{near['HS']:.0f} % of HS within {BOUNDARY} pixels, {near['all']:.0f} % of all pixels"


def _ratios(ev: Evidence, row: dict, names: list[str]) -> tuple[str, str]:
    ratios = label_ratios(ev[names[0]]).iloc[:, 0].dropna()
    above = int((ratios > 1).sum())
    return "reproduced" if above == len(ratios) else "in part" if 2 * above > len(ratios) else "not", f"{above} of {len(ratios)} classes above 1 (our data has no background class to lose weight)"


def _harder_deeper(ev: Evidence, row: dict, names: list[str]) -> tuple[str, str]:
    record = ev[names[0]]
    shares = decided_shares(record).iloc[:, -1]
    tie = pd.Series(record["metrics"]["val"]["iou"], index=shares.index, dtype=float).corr(shares, method="spearman")
    return "reproduced" if tie < -0.5 else "in part" if tie < 0 else "not", f"rank correlation of IoU and share decided in stage 3: {tie:+.2f}"


def _easy_first(ev: Evidence, row: dict, names: list[str]) -> tuple[str, str]:
    first = decided_shares(ev[names[0]])["stage 1"]
    easy, hard = first[["road", "building"]], first[["pole", "pedestrian"]]
    return "reproduced" if easy.min() > hard.max() else "in part" if easy.mean() > hard.mean() else "not", ", ".join(f"{k} {v:.0f} %" for k, v in {**easy, **hard}.items())


def voc_labels() -> dict:
    """Facts counted on the masks of VOC 2012 by data_scripts/voc12_labels.py."""
    return json.loads((paths.results("voc12") / "labels.json").read_text())


def _voc_lists(row: dict) -> tuple[str, str]:
    counts, stated = voc_labels()["images"], [int(published("text", f"voc-{split}-images").value) for split in ("train", "val")]
    return "reproduced" if list(counts.values()) == stated else "not", f"{counts['trainaug']:,} and {counts['val']:,} masks, none in both lists"


def _voc_background(row: dict) -> tuple[str, str]:
    facts, stated = voc_labels(), _claimed(row["claimed"])
    values = [100 * facts["background_of_labelled"], 100 * facts["background_of_all"]]
    return "reproduced" if min(abs(v - stated) for v in values) <= 0.05 else "in part", f"{values[0]:.1f} % of the labelled, {values[1]:.1f} % of all pixels"


def _label_map(row: dict) -> tuple[str, str]:
    import torch
    with torch.device("meta"):
        size = build_irnet_lc(21).to("meta").eval()(torch.zeros(1, 3, 512, 512), 1.0).log_probs.shape[1:]
    return "reproduced" if tuple(size) == (21, 64, 64) else "not", " x ".join(map(str, size))


def _parameters(row: dict) -> tuple[str, str]:
    rows = components(build_irnet_lc(21), (512, 512))
    all_, heads = (sum(r["parameters"] for r in rows if r["component"].startswith(start)) / 1e6 for start in ("", "head"))
    return "reproduced" if abs(all_ - _claimed(row["claimed"])) < 0.05 else "in part", f"{all_ - heads:.2f} M, and {heads:.2f} M in heads of an assumed width"


FACTS = {"voc lists": _voc_lists, "voc background": _voc_background, "label map": _label_map, "parameters": _parameters, "speed": _speed}
RULES = {"early share": _share(2), "stage 1 share": _share(1), "robust": _robust, "peak": _peak, "easy classes": _easy_classes,
         "hard boundary": _hard_boundary, "ratios": _ratios, "harder deeper": _harder_deeper, "easy first": _easy_first}

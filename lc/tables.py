"""Records and published numbers -> frames and sentences. No training, no torch.

A number of ours travels with its tier. `beside_paper` is the only way into a column next to the paper's, and it refuses
smoke runs and procedural data; `paper_and_ours` then gives two tables instead of one.
"""
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from lc import metrics, paths, records
from lc.errors import InputError
from lc.experiments import BEST_RHO, Profile, catalogue, profile
from lc.paper import columns, published

METHODS = {"IRNet": "irnet", "DSN": "dsn", "DSN + Dropout": "dsn-dropout", "MC": "mc", "LC": f"lc-{BEST_RHO}"}


class TierError(ValueError):
    """A number of too low a tier was about to stand beside the paper's."""


@dataclass(frozen=True)
class Evidence:
    """All records of one profile; experiments without a record are simply absent."""
    profile: Profile
    records: dict[str, records.Record]

    @cached_property
    def comparable(self) -> bool:
        """Whether these numbers may stand in a column beside the paper's: real data, real training."""
        return self.profile.tier != "smoke" and not any(r["data"]["synthetic"] for r in self.records.values())

    def __getitem__(self, name: str) -> records.Record:
        if name not in self.records:
            raise InputError(f"no record of {self.profile.name}/{name}; make it with `make reproduce PROFILE={self.profile.name}`")
        return self.records[name]

    @property
    def label(self) -> str:
        """Data set, resolution and tier, as column headings say them."""
        first = next(iter(self.records.values()), None)
        if first is None:
            raise InputError(f"profile {self.profile.name} has no record yet; run `make reproduce PROFILE={self.profile.name}`")
        height, width = first["data"]["size"]
        return f"{first['data']['name']} {height}x{width} ({self.profile.tier})"


def evidence(profile_name: str) -> Evidence:
    """Read every record of a profile."""
    found = {name: records.find(entry) for name, entry in catalogue(profile_name).items()}
    return Evidence(profile(profile_name), {name: record for name, record in found.items() if record})


def percent(record: records.Record, split: str) -> float:
    """mIoU of a record in percent."""
    return 100 * record["metrics"][split]["miou"]


def beside_paper(paper: pd.DataFrame, ours: pd.DataFrame, ev: Evidence) -> pd.DataFrame:
    """One table with the paper's columns and ours, headed by what they are; TierError for smoke and procedural numbers."""
    if not ev.comparable:
        raise TierError(f"{ev.label} numbers may not stand beside the paper's; show them in a table of their own")
    return pd.concat({"paper": paper, ev.label: ours}, axis=1)


def paper_and_ours(paper: pd.DataFrame, ours: pd.DataFrame, ev: Evidence) -> list[pd.DataFrame]:
    """What a page shows: one table where that is allowed, otherwise the paper's and ours apart."""
    if ev.comparable:
        return [beside_paper(paper, ours, ev)]
    return [pd.concat({"paper": paper}, axis=1), pd.concat({ev.label: ours}, axis=1)]


def methods(ev: Evidence) -> list[pd.DataFrame]:
    """Table 2: mIoU of the five methods, in percent, and the epochs that each was trained in all."""
    paper = pd.DataFrame({"VOC12 val": {row: published("2", row, "mIoU").value for row in METHODS}})
    runs = {row: ev.records[name] for row, name in METHODS.items() if name in ev.records}
    ours = pd.DataFrame({split: {row: percent(run, split) for row, run in runs.items()} for split in ("val", "test")})
    ours["epochs"] = pd.Series({row: epochs(run["config"]) for row, run in runs.items()}).map("{:g}".format)
    return paper_and_ours(paper, ours.reindex(paper.index), ev)


def epochs(config: dict) -> int:
    """Epochs of all phases of a run, those of its start included."""
    return sum(phase["epochs"] for phase in config["phases"]) + (epochs(config["start"]) if config["start"] else 0)


def rho_runs(ev: Evidence) -> dict[str, records.Record]:
    """The runs of Table 1, keyed by rho as printed: cascade training at each rho; rho = 1 is the DSN."""
    names = {rho: "dsn" if float(rho) == 1 else f"lc-{rho}" for rho in columns("1", "mIoU")}
    return {rho: ev.records[name] for rho, name in names.items() if name in ev.records}


def rho_table(ev: Evidence) -> list[pd.DataFrame]:
    """Table 1: share of pixels decided in stages 1 and 2, and mIoU, by rho (rows here), all in percent."""
    paper = pd.DataFrame({row: {rho: published("1", row, rho).value for rho in columns("1", row)} for row in ("stage-1", "stage-2", "mIoU")})
    ours = pd.DataFrame({rho: rho_row(run["metrics"]["val"], percent(run, "test")) for rho, run in rho_runs(ev).items()}).T
    return paper_and_ours(paper.rename_axis("rho"), ours.reindex(paper.index), ev)


def rho_row(val: dict, test: float | None = None) -> dict:
    """A line of Table 1 from the metrics of one split, in percent."""
    row = {"stage-1": 100 * val["decided"][0], "stage-2": 100 * val["decided"][1], "mIoU val": 100 * val["miou"]}
    return row if test is None else {**row, "mIoU test": test}


def sweep_table(record: records.Record) -> pd.DataFrame:
    """One model, swept at test time over the eight rho on the validation split; percent."""
    return pd.DataFrame({columns("1", "mIoU")[i]: rho_row(row) for i, row in enumerate(record["sweep"])}).T.rename_axis("rho")


@dataclass(frozen=True)
class Difference:
    """mIoU of one run less another's, in points, with a 95 % paired bootstrap interval over images."""
    value: float
    low: float
    high: float
    images: int
    split: str

    def __str__(self) -> str:
        return f"{self.value:+.2f} points [{self.low:+.2f}, {self.high:+.2f}] on {self.split} ({self.images} images)"

    def verdict(self, claimed: float, effect: bool = True) -> str:
        """Rule, fixed before any run. A claimed effect counts by its sign, and only if the interval leaves out zero; a
        claimed absence of effect (effect=False) holds if the interval does not leave it out."""
        zero_inside = self.low <= 0 <= self.high
        if not effect:
            return "reproduced: no effect shown" if zero_inside else "contradicted: there is an effect"
        if zero_inside:
            return "not shown: the interval holds zero"
        return "reproduced in sign" if (self.value > 0) == (claimed > 0) else "contradicted"


def difference(ev: Evidence, a: str, b: str, split: str = "test") -> Difference:
    """mIoU of experiment a less that of b."""
    first, second = (ev[name].arrays[f"confusions_{split}"] for name in (a, b))
    value, low, high = (100 * v for v in metrics.bootstrap_miou(first, second))
    return Difference(value, low, high, len(first), split)


def verdict(ev: Evidence, a: str, b: str, claimed: float, claim: str, effect: bool = True) -> str:
    """One sentence: the claim, the paper's number, ours with its interval on both splits, and what follows."""
    if ev.profile.tier == "smoke":
        return f"*{claim}* This is a smoke run, which only shows that the page works: no verdict."
    val, test = difference(ev, a, b, "val"), difference(ev, a, b, "test")
    return (f"*{claim}* The paper: {claimed:+.2f} points (VOC12 val). Ours, {ev.label}: {val}: **{val.verdict(claimed, effect)}**; "
            f"{test}: **{test.verdict(claimed, effect)}**.")


def method_verdicts(ev: Evidence) -> list[str]:
    """The claims of Table 2 as sentences."""
    pairs = [("DSN", "IRNet", "Deep supervision alone gains little over IRNet."),
             ("DSN + Dropout", "DSN", "Random label dropout does not bring a significant effect."),
             ("MC", "IRNet", "A model cascade is far worse than IRNet."),
             ("LC", "DSN", "Layer cascade gains over DSN."), ("LC", "IRNet", "Layer cascade gains over IRNet.")]
    return [verdict(ev, METHODS[a], METHODS[b], published("2", a, "mIoU").value - published("2", b, "mIoU").value, claim, effect=a != "DSN + Dropout")
            for a, b, claim in pairs if {METHODS[a], METHODS[b]} <= set(ev.records)]


def rho_verdicts(ev: Evidence) -> list[str]:
    """What Table 1 claims, as sentences: a peak inside the range of rho, and losses when rho is too small."""
    miou = {rho: published("1", "mIoU", rho).value for rho in columns("1", "mIoU")}
    runs = {rho: run.experiment for rho, run in rho_runs(ev).items()}
    if len(runs) < len(miou) or ev.profile.tier == "smoke":
        return ["Not all runs of Table 1 are there, or they are smoke runs: no verdict."]
    best = max(runs, key=lambda rho: percent(ev[runs[rho]], "val"))
    low = list(miou)[-1]
    return [f"Best on val: rho = {best} ({percent(ev[runs[best]], 'val'):.2f} %); in the paper rho = {max(miou, key=miou.get)}.",
            verdict(ev, runs[best], "dsn", max(miou.values()) - miou["1"], "Some rho below 1 is better than rho = 1 (ours: the best on val, so val flatters it).")
            if best != "1" else "*Some rho below 1 is better than rho = 1.* Ours: none is, on val: **contradicted**.",
            verdict(ev, runs[low], "dsn", miou[low] - miou["1"], f"The smallest rho, {low}, loses.")]


def decided_counts(record: records.Record, split: str = "val") -> pd.DataFrame:
    """Labelled pixels by class (rows) and the stage that decided them (columns)."""
    counts = np.array(record["metrics"][split]["decided_pixels"])
    return pd.DataFrame(counts.T, index=record["data"]["classes"], columns=[f"stage {s + 1}" for s in range(len(counts))])


def label_ratios(record: records.Record, split: str = "val") -> pd.DataFrame:
    """Fig. 5a: each class's share of the pixels handed to a stage over its share one stage earlier."""
    counts = decided_counts(record, split)
    ratios = metrics.label_share_ratio(counts.to_numpy().T)
    return pd.DataFrame(ratios.T, index=counts.index, columns=[f"stage {s + 2} / stage {s + 1}" for s in range(len(ratios))])


def decided_shares(record: records.Record, split: str = "val") -> pd.DataFrame:
    """Fig. 5b: share of each class's pixels that each stage decided, in percent."""
    counts = decided_counts(record, split)
    return pd.DataFrame(100 * metrics.decided_share(counts.to_numpy().T).T, index=counts.index, columns=counts.columns)


def stage_verdicts(ev: Evidence) -> list[str]:
    """What Sec. 4.2 claims, as sentences: most classes gain weight in deeper stages, and harder classes go deeper."""
    record = ev[METHODS["LC"]]
    ratios, shares = label_ratios(record), decided_shares(record)
    low, high = (published("text", "stage-2-label-ratio", side).value for side in ("low", "high"))
    iou = pd.Series(record["metrics"]["val"]["iou"], index=ratios.index, dtype=float)
    lines = []
    for column in ratios:
        values = ratios[column].dropna()
        lines.append(f"{column}: {int((values > 1).sum())} of {len(values)} classes have a ratio above 1; range {values.min():.2f} to {values.max():.2f} "
                     f"(lowest: {values.idxmin()}; highest: {values.idxmax()})." if len(values) else f"{column}: no pixel gets that far.")
    last = shares.iloc[:, -1]
    tie = iou.corr(last, method="spearman") if iou.nunique() > 1 and last.nunique() > 1 else float("nan")
    lines.append(f"The paper: all 20 foreground classes of VOC between {low:g} and {high:g} in stage 2 / stage 1. Harder classes go deeper: "
                 f"rank correlation of a class's IoU with its share of pixels decided in the last stage: {tie:+.2f} over {len(iou)} classes.")
    return lines


def readme_block(ev: Evidence) -> str:
    """The README's numbers, as Markdown: headline, Table 2 and Table 1 (each on val and test), and where they come from."""
    parts = []
    for title, shown in (("The two claims", headline(ev)), ("Table 2, mIoU", methods(ev)), ("Table 1, by rho, percent", rho_table(ev))):
        for frame in shown:
            heads = [title, *(" ".join(map(str, column)) for column in frame.columns)]
            rows = [[str(index), *("-" if pd.isna(v) else f"{v:.2f}" if isinstance(v, float) else str(v) for v in row)]
                    for index, row in zip(frame.index, frame.to_numpy(dtype=object))]
            parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *rows]))
    first = ev["initial"]
    parts.append(f"Ours: {ev.label}, seed {first['seed']}, {first['device']}; records in results/{ev.profile.name}/runs, written by commits "
                 f"{', '.join(sorted({r['commit'][:10] for r in ev.records.values()}))}. Intervals: 95 %, paired bootstrap over images.")
    return "\n\n".join(parts)


def sources(ev: Evidence, names: list[str] | None = None) -> pd.DataFrame:
    """Where the numbers of a page come from: one row per record, with a link that works from the built book."""
    rows = {}
    for name in names or list(ev.records):
        r = ev[name]
        rows[name] = {"record": f'<a href="records/{r.path.name}">{r.path.name}</a>', "tier": r["tier"], "seed": r["seed"],
                      "commit": r["commit"][:10] + (" + changes" if r["dirty"] else ""), "device": r["device"],
                      "data": r["data"]["sha256"]["val"], "state": r.stale or "current"}
    return pd.DataFrame(rows).T


def benches(profile_name: str) -> list[dict]:
    """The timing files of a profile, one per device."""
    return [json.loads(path.read_text()) for path in sorted((paths.results(profile_name) / "bench").glob("*.json"))]


def bench_table(bench: dict) -> pd.DataFrame:
    """Fig. 7: time by rho, dense first; milliseconds, images per second, speed-up against dense, time per stage."""
    rows = {}
    for row in bench["rows"]:
        stages = {f"stage {i + 1} ms": ms for i, ms in enumerate(row["stage_ms"])} if row["rho"] is not None else {}
        rows["dense" if row["rho"] is None else f"{row['rho']:g}"] = {
            "ms": row["ms"], "quartiles": f"{row['ms_low']:.1f}-{row['ms_high']:.1f}", "images/s": 1000 / row["ms"], "speed-up": row["speedup"], **stages}
    return pd.DataFrame(rows).T.rename_axis("rho")


def headline(ev: Evidence) -> list[pd.DataFrame]:
    """The first page's table: the paper's two claims, accuracy and speed, as numbers; gains in points, speed-ups as factors."""
    irnet_fps, fps = published("text", "inception-resnet-speed").value, {r: published("3", r, "FPS").value for r in ("LC", "LC (fast)")}
    miou = {row: published("2", row, "mIoU").value for row in METHODS}
    paper = {"mIoU gain of LC over DSN": f"{miou['LC'] - miou['DSN']:+.2f}", "mIoU gain of LC over IRNet": f"{miou['LC'] - miou['IRNet']:+.2f}",
             "speed-up at rho = 0.985": f"{fps['LC'] / irnet_fps:.2f}x", "speed-up at rho = 0.8": f"{fps['LC (fast)'] / irnet_fps:.2f}x"}
    ours = {}
    for row, other in zip(paper, ("dsn", "irnet")):
        if {METHODS["LC"], other} <= set(ev.records):
            ours[row] = {split: str(difference(ev, METHODS["LC"], other, split)).split(" on ")[0] for split in ("val", "test")}
    for bench in benches(ev.profile.name):
        for rho, row in ((0.985, "speed-up at rho = 0.985"), (0.8, "speed-up at rho = 0.8")):
            ours.setdefault(row, {})[bench["device"]] = f"{next(r['speedup'] for r in bench['rows'] if r['rho'] == rho):.2f}x"
    return paper_and_ours(pd.DataFrame({"VOC12": paper}), pd.DataFrame(ours).T.reindex(list(paper)), ev)

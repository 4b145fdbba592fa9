"""Records and published numbers -> sentences with intervals: whether a claim of the paper held. The rule is in Difference.verdict."""
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lc import metrics
from lc.paper import columns, published
from lc.tables import (METHODS, Evidence, benches, context_table, decided_shares, difficulty_shares, label_ratios, methods, near_boundary,
                       paper_and_ours, percent, rho_runs, rho_table, selection_table, speed_files)


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


def difficulty_verdicts(ev: Evidence) -> list[str]:
    """What Fig. 1 claims, as sentences: ES in most classes, HS at boundaries."""
    record = ev["study-difficulty"]
    shares, near = difficulty_shares(record), near_boundary(record)
    total = record.arrays["sets"][0].sum(1) / record.arrays["sets"][0].sum()
    least, claimed = published("text", "es-share-at-least").value, published("text", "hs-on-boundary").value
    reached = near.index[near["HS"] >= claimed]
    where = f"within {reached[0]} pixels, where {near['all'][reached[0]]:.0f} % of all pixels lie" if len(reached) else \
        f"not even within {near.index[-1]} pixels, where {near['HS'].iloc[-1]:.0f} % of HS and {near['all'].iloc[-1]:.0f} % of all pixels lie"
    return [f"*ES holds at least {least:g} % of most objects.* Ours, {ev.label} val: it does in {int((shares['ES'] >= least).sum())} of {shares['ES'].notna().sum()} classes. "
            f"Of all pixels, ES holds {100 * total[0]:.0f} %, MS {100 * total[1]:.0f} %, HS {100 * total[2]:.1f} %.",
            f"*{claimed:g} % of HS lies on object boundaries* (width not given). Ours: {claimed:g} % of HS lies {where}. "
            f"One pixel wide: {near['HS'].iloc[0]:.0f} % of HS, {near['all'].iloc[0]:.0f} % of all pixels."]


def context_verdicts(ev: Evidence) -> list[str]:
    """How much of what early exits cost is missing context, and how much is the decisions themselves."""
    table = context_table(ev["study-context"])["mIoU"].astype(float)
    dense = {"LC": ev[METHODS["LC"]]["sweep"][0]["miou"], "DSN": ev[METHODS["DSN"]]["sweep"][0]["miou"]}
    return [f"The cascade trained as {name}: with nobody exiting {100 * dense[name]:.2f} %; with exits and zeros outside {table[name, 'zeros'] - 100 * dense[name]:+.2f} points; "
            f"with exits and everything computed {table[name, 'everything'] - 100 * dense[name]:+.2f}: so {table[name, 'everything'] - table[name, 'zeros']:.2f} points are "
            f"context that a region lacks, of which a halo of 2 cells gives back {table[name, 'halo 2'] - table[name, 'zeros']:.2f}." for name in dense]


def calibration_verdicts(ev: Evidence) -> list[str]:
    """How often the cells that exit are right."""
    record, lines = ev["study-calibration"], []
    rho, bins = record["config"]["rho"], np.array(record["study"]["bins"])
    for network, stages in zip(record["study"]["networks"], record.arrays["counts"]):
        right = [100 * counts[1, bins[:-1] >= rho].sum() / max(counts[0, bins[:-1] >= rho].sum(), 1) for counts in stages[:-1]]
        lines.append(f"{network}: of the cells that reach {rho:g}, " + ", ".join(f"{v:.1f} % are right in stage {s}" for s, v in enumerate(right, start=1)) + ".")
    return lines


def selection_verdicts(ev: Evidence) -> list[str]:
    """What a better choice of exits could give."""
    table = selection_table(ev["study-selection"])
    rules = table.drop("oracle")
    best = rules["mIoU"].idxmax()
    return [f"Best pair of thresholds: {best} ({rules['mIoU'].max():.2f} %); nobody exits: {rules.loc['1 / 1', 'mIoU']:.2f} %; the oracle: {table.loc['oracle', 'mIoU']:.2f} % "
            f"with {table.loc['oracle', 'to stage 2']:.0f} % of the cells handed to stage 2 and {table.loc['oracle', 'to stage 3']:.0f} % to stage 3."]


def speed_verdicts() -> list[str]:
    """The full network at the paper's pixel shares, as sentences."""
    base, names = published("text", "inception-resnet-speed").value, {0.985: "LC", 0.8: "LC (fast)"}
    return [f"At the pixel shares of rho = {row['rho']:g} ({' and '.join(f'{100 * a:.0f} %' for a in row['active'])} active in stages 2 and 3) the full IRNet-LC takes "
            f"{row['region_ms']:.0f} ms where the fastest dense form takes {row['dense_ms']:.0f} ms: **{row['speedup']:.2f}x** "
            f"[{row['speedup_low']:.2f}, {row['speedup_high']:.2f}], {100 * row['ratio']:.0f} % of the {row['ideal']:.2f}x that its multiply-adds allow. "
            f"The paper: {published('3', names[row['rho']], 'FPS').value / base:.2f}x ({bench['device']}; quartiles in brackets)."
            for bench in speed_files("network") for row in bench["rows"]]


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
    timed = {f"{bench['device']}": {f"speed-up at rho = {row['rho']:g}": f"{row['speedup']:.2f}x [{row['speedup_low']:.2f}, {row['speedup_high']:.2f}], ideal {row['ideal']:.2f}x"
                                   for row in bench["rows"]} for bench in speed_files("network")}
    full = [pd.concat({"full IRNet-LC at the pixel shares of Table 1 (Speed)": pd.DataFrame(timed)}, axis=1)] if timed else []
    return paper_and_ours(pd.DataFrame({"VOC12": paper}), pd.DataFrame(ours).T.reindex(list(paper)), ev) + full


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

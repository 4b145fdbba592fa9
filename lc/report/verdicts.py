"""Records and published numbers -> sentences with intervals: whether a claim of the paper held. The rule is in Difference.verdict."""
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from lc.experiments import catalogue
from lc.paper import published
from lc.report.speedups import SMALL, answer
from lc.report.tables import (BOUNDARY, METHODS, Evidence, class_iou, decided_near, decided_shares, difference_printed, difficulty_shares,
                               gain, interval, label_ratios, listed, methods, near_boundary, over_seeds, paper_and_ours, percent, printed, rho_runs,
                               seed_gains, selection_table, words)

ALSO = ("lc-halo-2", "lc-features", "lc-dense-read", "lc-large", "lc-full",
        *(f"lc-{what}{key}" for what in ("wide", "unbalanced", "wide-unbalanced") for key in ("", "-features")))


@dataclass(frozen=True)
class Difference:
    """mIoU of one run less another's, in points, with a 95 % paired bootstrap interval over images (and seeds, of a mean)."""
    value: float
    low: float
    high: float
    images: int
    split: str

    def __str__(self) -> str:
        return f"{self.value:+.2f} points [{self.low:+.2f}, {self.high:+.2f}] on {self.split} ({self.images} images)"

    def verdict(self, claimed: float, effect: bool = True) -> str:
        """One rule for all pages. Fixed before any run: a claimed effect counts by its sign, and only if the interval excludes zero; a claimed
        absence of effect (effect=False) only if it includes it. Added later, and only ever stricter: an effect counts in full if the interval
        reaches the claimed size, its absence if the interval stays within SMALL points."""
        zero_inside, most = self.low <= 0 <= self.high, max(abs(self.low), abs(self.high))
        if not effect:
            if not zero_inside:
                return "not: there is an effect"
            return f"reproduced: less than {SMALL:g} points" if most <= SMALL else "not shown: the interval is wide"
        if zero_inside:
            return "not shown: the interval includes zero"
        if (self.value > 0) != (claimed > 0):
            return "not: the opposite is seen"
        return "reproduced" if most >= abs(claimed) else "in part: the direction holds, the size does not"


def difference(ev: Evidence, a: str, b: str, split: str = "", seeds: bool = False) -> Difference | None:
    """mIoU of experiment a less that of b, on a split or (by default) on test where there is one. seeds: the mean over all seeds of the profile;
    None if it has one, or one is missing."""
    split = split or ev.splits[-1]
    drawn = [*seed_gains(ev, a, b, split).values()] if seeds else [gain(ev, a, b, split)]
    if not seeds and drawn[0] is None or seeds and not 1 < len(drawn) == len(ev.profile.seeds):
        return None
    return Difference(*interval(over_seeds(drawn)), len(ev[a].arrays[f"confusions_{split}"]), split)


def verdict(ev: Evidence, a: str, b: str, claimed: float, claim: str, effect: bool = True) -> str:
    """A sentence or two: the claim, the paper's number, ours with its interval on both splits, and what follows; then their mean over seeds."""
    if ev.profile.tier == "smoke":
        return f"*{claim}* This is a smoke run, which only shows that the page works: no verdict."
    judged = lambda found: "; ".join(f"{d}: **{d.verdict(claimed, effect)}**" for d in found) + "."
    means = [mean for split in ev.splits if (mean := difference(ev, a, b, split, seeds=True))]
    return (f"*{claim}* The paper: {claimed:+.2f} points (VOC12 val). Ours, {ev.label}: {judged(difference(ev, a, b, split) for split in ev.splits)}"
            + (f" Mean of {len(ev.profile.seeds)} seeds: {judged(means)}" if means else ""))


def method_verdicts(ev: Evidence) -> list[str]:
    """The claims of Table 2 (results/claims.csv) as sentences."""
    rows = [(row, row["on"].split()) for row in listed("claims") if row["page"] == "methods"]
    return [verdict(ev, *runs, difference_printed(row["claimed"]), f"{row['claim']}.", row["test"] == "gain") for row, runs in rows
            if set(runs) <= set(ev.records)]


def rho_verdicts(ev: Evidence) -> list[str]:
    """What Table 1 claims, as sentences: a peak inside the range of rho, and losses when rho is too small."""
    miou, runs = printed("1").loc["mIoU"], rho_runs(ev)
    if len(runs) < len(miou) or ev.profile.tier == "smoke":
        return ["Not all runs of Table 1 are there, or they are smoke runs: no verdict."]
    best, low = max(runs, key=lambda rho: percent(runs[rho], "val")), miou.index[-1]
    below = max((rho for rho in runs if rho != "1"), key=lambda rho: percent(runs[rho], "val"))
    peak = verdict(ev, f"lc-{below}", "dsn", miou.max() - miou["1"],
                   f"Some rho below 1 is better than rho = 1 (ours: {below}, the best of them on val, so val flatters it).")
    return [f"Best on val: rho = {best} ({percent(runs[best], 'val'):.2f} %); in the paper rho = {miou.idxmax()}.", peak,
            verdict(ev, f"lc-{low}", "dsn", miou[low] - miou["1"], f"The smallest rho, {low}, loses.")]


def stage_verdicts(ev: Evidence) -> list[str]:
    """What Sec. 4.2 claims, as sentences: most classes gain weight in deeper stages, boundaries are decided later, and harder classes go deeper."""
    record, lines = ev[METHODS["LC"]], []
    for column, values in label_ratios(record).items():
        values = values.dropna()
        lines.append(f"{column}: {(values > 1).sum()} of {len(values)} classes have a ratio above 1; range {values.min():.2f} to "
                     f"{values.max():.2f} (lowest: {values.idxmin()}; highest: {values.idxmax()})."
                     if len(values) else f"{column}: no pixel gets that far.")
    if study := ev.records.get("study-difficulty"):
        near, every = (", ".join(f"{share:.0f}" for share in shares) for shares in decided_near(study).to_numpy().T)
        lines.append(f"Within {BOUNDARY} pixels of an object boundary the stages decide {near} % of the pixels, of all pixels {every} %.")
    low, high = (published("text", "stage-2-label-ratio", side).value for side in ("low", "high"))
    return [*lines, f"The paper: all 20 foreground classes of VOC between {low:g} and {high:g} in stage 2 / stage 1. Harder classes go deeper: "
            "rank correlation of a class's IoU with its share of pixels decided in the last stage: "
            f"{tied(record, decided_shares(record).iloc[:, -1]):+.2f} over {len(record['data']['classes'])} classes; with its ratio in that stage: "
            f"{tied(record, label_ratios(record).iloc[:, -1]):+.2f}."]


def tied(record, values: pd.Series) -> float:
    """Rank correlation, over classes, of their IoU on val and these values; nan where nothing varies."""
    iou = class_iou(record, "val")
    return iou.corr(values, method="spearman") if min(iou.nunique(), values.nunique()) > 1 else float("nan")


def difficulty_verdicts(ev: Evidence) -> list[str]:
    """What Fig. 1 claims, as sentences: ES in most classes, HS at boundaries."""
    record = ev["study-difficulty"]
    easy, near = difficulty_shares(record)["ES"], near_boundary(record)
    total = 100 * record.arrays["sets"][0].sum(1) / record.arrays["sets"][0].sum()
    least, claimed = published("text", "es-share-at-least").value, published("text", "hs-on-boundary").value
    first, last = near.iloc[0], near.iloc[-1]
    if len(reached := near.index[near["HS"] >= claimed]):
        where = f"{near['HS'][reached[0]]:.0f} % of HS lies within {reached[0]} pixels, where {near['all'][reached[0]]:.0f} % of all pixels lie"
    else:
        where = f"{last['HS']:.0f} % of HS and {last['all']:.0f} % of all pixels lie within {near.index[-1]} pixels"
    return [f"*ES holds at least {least:g} % of most objects.* Ours, {ev.label} val: it does in {(easy >= least).sum()} of "
            f"{easy.notna().sum()} classes. Of all pixels, ES holds {total[0]:.0f} %, MS {total[1]:.0f} %, HS {total[2]:.1f} %.",
            f"*{claimed:g} % of HS lies on object boundaries* (width not given). Ours: {where}. "
            f"One pixel wide: {first['HS']:.0f} % of HS, {first['all']:.0f} % of all pixels."]


def calibration_verdicts(ev: Evidence) -> list[str]:
    """How often the cells that exit are right."""
    record, lines = ev["study-calibration"], []
    rho = record["config"]["rho"]
    sure = np.array(record["study"]["bins"][:-1]) >= rho
    for network, stages in zip(record["study"]["networks"], record.arrays["counts"]):
        seen, right = stages[:-1, :, sure].sum(2).T
        lines.append(f"{network}: of the cells that reach {rho:g}, " + ", ".join(
            f"{100 * r / max(n, 1):.1f} % are right in stage {s}" for s, (n, r) in enumerate(zip(seen, right), start=1)) + ".")
    return lines


def selection_verdicts(ev: Evidence) -> list[str]:
    """What a better choice of exits could give."""
    table = selection_table(ev["study-selection"])
    rules, oracle = table.drop("oracle")["mIoU"], table.loc["oracle"]
    return [f"Best pair of thresholds: {rules.idxmax()} ({rules.max():.2f} %); nobody exits: {rules['1 / 1']:.2f} %; "
            f"the oracle: {oracle['mIoU']:.2f} % with {oracle['to stage 2']:.0f} % of the cells handed to stage 2 and "
            f"{oracle['to stage 3']:.0f} % to stage 3."]


def answers(ev: Evidence) -> list[str]:
    """The first page in sentences: did the accuracy gain hold, did the speed gain, is there one at equal accuracy, and how far does this reach."""
    judged = lambda of: {METHODS[row] for row in ("LC", "DSN", "IRNet")} <= set(of.records)
    if ev.profile.tier == "smoke" or not judged(ev):
        return ["This is a smoke run, or LC, DSN or IRNet is missing: no answer."]
    plain = [f"**And without class weights, of which the paper says nothing? {_held(ev.unbalanced)}"] if judged(ev.unbalanced) else []
    weights = ", with class weights in the loss" * bool(plain)
    return [f"**Did the accuracy gain hold{weights}? {_held(ev)}", *plain, *answer(ev), _scope(ev)]


def _held(ev: Evidence) -> str:
    """Whether LC is better than DSN and IRNet, in a word, by all seeds where they are here and on each split; and the order of the methods."""
    miou, kinds = printed("2")["mIoU"], set()
    for other in ("DSN", "IRNet"):
        means = [difference(ev, METHODS["LC"], METHODS[other], split, seeds=True) for split in ev.splits]
        found = means if None not in means else [difference(ev, METHODS["LC"], METHODS[other], split) for split in ev.splits]
        kinds |= {d.verdict(miou["LC"] - miou[other]).split(":")[0] for d in found}
    short = {"reproduced": "Yes", "in part": "In direction, not in size", "not": "No, LC is less accurate here", "not shown": "No difference shown"}
    means = f", by means over {len(ev.profile.seeds)} seeds" * (found is means)
    return f"{short[kinds.pop()] if len(kinds) == 1 else 'Not throughout'}.** {ev.label}{means}. {_order(ev)}"


def _order(ev: Evidence) -> str:
    """What Tables 1 and 2 say by order alone, in the paper and here."""
    ours, runs, paper = methods(ev)[-1][ev.label], rho_runs(ev), printed("1").loc["mIoU"]
    ranks = "; ".join(_ranked(ev, ours, split) for split in ev.splits)
    better = lambda scores: f"{sum(value > scores['1'] for value in scores.values())} of {len(scores) - 1}"
    theirs = " > ".join(printed("2")["mIoU"].sort_values(ascending=False).index)
    above = ", ".join(f"{better({rho: percent(run, split) for rho, run in runs.items()})} ({split})" for split in ev.splits)
    peak = f" Thresholds below 1 that beat rho = 1{', one seed' * (len(ev.profile.seeds) > 1)}: {above}; paper: {better(dict(paper))}."
    return f"The methods by mIoU (~: no difference shown between neighbours): {ranks}; paper: {theirs}." + peak * (len(runs) == len(paper))


def _ranked(ev: Evidence, table: pd.DataFrame, split: str) -> str:
    """The methods that are here by mIoU on a split, of all seeds where there are several; ~ where the interval of a step includes zero."""
    mean = table.get(f"{split}, mean of {len(ev.profile.seeds)} seeds", table[split])
    scores = (table[split] if mean.isna().any() else mean).dropna().sort_values(ascending=False, kind="stable")
    steps = [difference(ev, METHODS[a], METHODS[b], split, seeds=scores.name != split) for a, b in pairwise(scores.index)]
    of = scores.name + ", one seed" * (scores.name == split and len(ev.profile.seeds) > 1)
    return scores.index[0] + "".join(f" {'>' if step.low > 0 else '~'} {name}" for step, name in zip(steps, scores.index[1:])) + f" ({of})"


def _scope(ev: Evidence) -> str:
    sizes = [record["parameters"] / 1e6 for name, record in ev.records.items() if name.startswith("initial")]
    reach = " to ".join(dict.fromkeys(f"{size:.2f}" for size in (min(sizes), max(sizes))))
    weights = " What does not say *without class weights* is with them (classes are balanced in training); the paper mentions none."
    return (f"**How far does this reach?** Networks of {reach} M parameters (paper: "
            f"{published('6', 'IRNet-LC', 'params').value:g} M), {'ImageNet' if ev.profile.model.weights else 'random'} initial weights (paper: "
            f"ImageNet), one seed where no mean is named.{weights * (ev.profile.train.balance != 'none')}"
            + ("" if ev.profile.tier == "full" else " It says what happens in this setting, not that the paper's own numbers are wrong."))


def gains(ev: Evidence) -> list[pd.DataFrame]:
    """The paper's two gains in accuracy beside ours, in points of mIoU with 95 % intervals, means over the seeds that are here and each seed's own;
    and of what the causes that matter most (lc.report.why) leave, where they are here."""
    miou, entries, paper, ours = printed("2")["mIoU"], catalogue(ev.profile.name), {}, {}
    pairs = {f"LC - {other}": (METHODS["LC"], METHODS[other], f"{miou['LC'] - miou[other]:+.2f}") for other in ("DSN", "IRNet")}
    for entry in (entries[name] for name in ALSO if name in entries):
        if {entry.name, entry.control} <= set(ev.records):
            size = f"{'x'.join(map(str, ev[entry.name]['data']['size']))}, {ev[entry.name]['parameters'] / 1e6:.2f} M parameters"
            pairs[f"LC - DSN, {entry.title.partition(', ')[2]} ({entry.name}; {size})"] = entry.name, entry.control, None
    for head, (a, b, stated) in pairs.items():
        drawn = {split: [*seed_gains(ev, a, b, split).values()] for split in ev.splits}
        head += f", mean of {len(drawn['val'])} seeds" * (len(drawn["val"]) > 1)
        paper[head], ours[head] = stated, {split: words(over_seeds(found) if found else None) for split, found in drawn.items()} | {
            f"{split}, by seed": ", ".join(f"{one[0]:+.2f}" for one in found) for split, found in drawn.items() if len(found) > 1}
    return paper_and_ours(pd.DataFrame({"VOC12 val": paper}), pd.DataFrame(ours).T, ev)

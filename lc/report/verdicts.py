"""Records and published numbers -> sentences with intervals: whether a claim of the paper held. The rule is in Difference.verdict."""
from dataclasses import dataclass
from itertools import pairwise, product

import pandas as pd

from lc.experiments import catalogue
from lc.paper import published
from lc.report.speedups import SMALL, answer
from lc.report.tables import (METHODS, Evidence, class_iou, interval, methods, over_seeds, paper_and_ours, percent, printed, rho_runs, seed_gains,
                              words)

ALSO = ("lc-halo-2", "lc-features", "lc-dense-read", "lc-large", "lc-full",
        *(f"lc-{what}{key}" for what in ("wide", "unbalanced", "wide-unbalanced", "full-unbalanced") for key in ("", "-features")))


@dataclass(frozen=True)
class Difference:
    """mIoU of one run less another's, in points, with a 95 % paired bootstrap interval over images (and seeds, of a mean)."""
    value: float
    low: float
    high: float
    images: int
    split: str
    seeds: int = 1

    def __str__(self) -> str:
        return f"{self.value:+.2f} points [{self.low:+.2f}, {self.high:+.2f}] on {self.split} ({self.images} images{self.by_seeds})"

    @property
    def by_seeds(self) -> str:
        """Of how many seeds it is the mean; nothing of one."""
        return f", mean of {self.seeds} seeds" * (self.seeds > 1)

    def verdict(self, claimed: float, effect: bool = True) -> str:
        """One rule for all pages. Fixed before any run: a claimed effect counts by its sign, and only if the interval excludes zero; a claimed
        absence of effect (effect=False) only if it includes it. Added later, and only ever stricter: an effect counts in full if the interval
        reaches the claimed size, its absence if the interval stays within SMALL points."""
        zero_inside, most = self.low <= 0 <= self.high, max(abs(self.low), abs(self.high))
        if not effect:
            return "not" if not zero_inside else "reproduced" if most <= SMALL else "not shown"
        if zero_inside:
            return "not shown"
        return "not" if (self.value > 0) != (claimed > 0) else "reproduced" if most >= abs(claimed) else "in part"


def difference(ev: Evidence, a: str, b: str, split: str = "") -> Difference | None:
    """mIoU of experiment a less that of b, on a split or (by default) on test where there is one: the mean over all seeds of the profile, or the
    first seed's where one is missing; None without that."""
    split, first = split or ev.splits[-1], ev.profile.seeds[0]
    drawn = seed_gains(ev, a, b, split)
    if first not in drawn:
        return None
    found = [*drawn.values()] if len(drawn) == len(ev.profile.seeds) else [drawn[first]]
    return Difference(*interval(over_seeds(found)), len(ev[a].arrays[f"confusions_{split}"]), split, len(found))


def tied(record, values: pd.Series) -> float:
    """Rank correlation, over classes, of their IoU on val and these values; nan where nothing varies."""
    iou = class_iou(record, "val")
    return iou.corr(values, method="spearman") if min(iou.nunique(), values.nunique()) > 1 else float("nan")


def answers(ev: Evidence) -> list[str]:
    """The first page in sentences: did the accuracy gain hold, did the speed gain, is there one at equal accuracy, and how far does this reach."""
    judged = lambda of: {METHODS[row] for row in ("LC", "DSN", "IRNet")} <= set(of.records)
    if ev.profile.tier == "smoke" or not judged(ev):
        return ["This is a smoke run, or LC, DSN or IRNet is missing: no answer."]
    plain = _without_weights(ev) if judged(ev.unbalanced) else []
    weights = ", with class weights in the loss" * bool(plain)
    return [f"**Did the accuracy gain hold{weights}? {_held(ev)}", *plain, *answer(ev), _scope(ev)]


def _without_weights(ev: Evidence) -> list[str]:
    """The same for every network that was trained without balanced classes, and the order of the methods."""
    entries, told = catalogue(ev.profile.name), {}
    for name in (name for name in ev.records if name.startswith("lc") and name.endswith("unbalanced") and entries[name].control in ev.records):
        others = {"the DSN": entries[name].control, "IRNet": entries[name].control.replace("dsn", "irnet")}
        for split, (other, run) in product(ev.splits, others.items()):
            if apart := difference(ev, name, run, split):
                sign = "more accurate than" if apart.low > 0 else "less accurate than" if apart.high < 0 else "not shown to differ from"
                told.setdefault(name, {}).setdefault(split, {}).setdefault(sign, []).append(other)
    said = [f"{_size(ev, name, entries[name].control)}: " + "; ".join(
        f"on {split} " + ", ".join(f"{sign} {' and '.join(others)}" for sign, others in signs.items()) for split, signs in splits.items())
        for name, splits in told.items()]
    words = {"more accurate than": "Yes", "less accurate than": "No, LC is less accurate", "not shown to differ from": "No difference shown"}
    signs = {sign for splits in told.values() for signs in splits.values() for sign in signs}
    word = words[signs.pop()] if len(signs) == 1 else "It depends on the network and the split"
    return [f"**And without class weights, of which the paper says nothing? {word}.** {'. '.join(said)}. {_order(ev.unbalanced, ' of the first')}"]


def _held(ev: Evidence) -> str:
    """Whether LC is better than DSN and IRNet, in a word, by all seeds where they are here and on each split; and the order of the methods."""
    miou, kinds = printed("2")["mIoU"], set()
    for other in ("DSN", "IRNet"):
        kinds |= {difference(ev, METHODS["LC"], METHODS[other], split).verdict(miou["LC"] - miou[other]) for split in ev.splits}
    short = {"reproduced": "Yes", "in part": "In direction, not in size", "not": "No, LC is less accurate here", "not shown": "No difference shown"}
    size = _size(ev, METHODS["LC"], METHODS["DSN"])
    return f"{short[kinds.pop()] if len(kinds) == 1 else 'Not throughout'}.** {ev.label}, {size}. {_order(ev)}"


def _size(ev: Evidence, name: str, control: str) -> str:
    """A cascade by its parameters and name, and of how many seeds its difference to its control is the mean."""
    return f"{ev[name]['parameters'] / 1e6:.2f} M parameters ({name}{difference(ev, name, control).by_seeds})"


def _order(ev: Evidence, of: str = "") -> str:
    """What Tables 1 and 2 say by order alone, in the paper and here; of: which network's, if several were named."""
    ours, runs, paper = methods(ev)[-1][ev.label], rho_runs(ev), printed("1").loc["mIoU"]
    ranks = "; ".join(_ranked(ev, ours, split) for split in ev.splits)
    better = lambda scores: f"{sum(value > scores['1'] for value in scores.values())} of {len(scores) - 1}"
    theirs = " > ".join(printed("2")["mIoU"].sort_values(ascending=False).index)
    above = ", ".join(f"{better({rho: percent(run, split) for rho, run in runs.items()})} ({split})" for split in ev.splits)
    peak = f" Thresholds below 1 that beat rho = 1{', one seed' * (len(ev.profile.seeds) > 1)}: {above}; paper: {better(dict(paper))}."
    return f"The methods{of} by mIoU (~: no difference shown between neighbours): {ranks}; paper: {theirs}." + peak * (len(runs) == len(paper))


def _ranked(ev: Evidence, table: pd.DataFrame, split: str) -> str:
    """The methods that are here by mIoU on a split, those of all seeds by their means where there are some, the others behind them; ~ where the
    interval of a step includes zero."""
    one, mean = (table.get(column, pd.Series()).dropna() for column in (split, f"{split}, mean of {len(ev.profile.seeds)} seeds"))
    scores = (mean if len(mean) > 1 else one).sort_values(ascending=False, kind="stable")
    steps = [difference(ev, METHODS[a], METHODS[b], split) for a, b in pairwise(scores.index)]
    of = scores.name + ", one seed" * (scores.name == split and len(ev.profile.seeds) > 1)
    rest = "".join(f"; {name} {score:.2f}, one seed" for name, score in one.drop(scores.index).items())
    return scores.index[0] + "".join(f" {'>' if step.low > 0 else '~'} {name}" for step, name in zip(steps, scores.index[1:])) + f" ({of}{rest})"


def _scope(ev: Evidence) -> str:
    sizes = [record["parameters"] / 1e6 for name, record in ev.records.items() if name.startswith("initial")]
    reach = " to ".join(dict.fromkeys(f"{size:.2f}" for size in (min(sizes), max(sizes))))
    weights = " Results not marked *without class weights* were trained with them (classes are balanced); the paper mentions none."
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

"""Why LC gains or loses: one thing changed at a time, over seeds. Records -> frames and sentences.

A cause counts by what its removal does: `moved` is the gain of LC over its control with the change, less that without, in points of
mIoU, from paired draws over images. The rule for words is in `said`; nothing here knows which side is ahead.
"""
import itertools

import numpy as np
import pandas as pd

from lc import metrics, records
from lc.experiments import CASCADES, FULL, HALOS, SEEDED, catalogue
from lc.report.tables import METHODS, MISSING, Evidence, draws, gain, interval, over_seeds, percent, seed_gains, variant, words

LC, DSN, IRNET = METHODS["LC"], METHODS["DSN"], METHODS["IRNet"]
HALO = "lc-halo-2"
BEFORE = {"lc-easy": "lc-everywhere"}  # what a change is counted from, where not from plain LC
CAUSES = {**{name: f"context missing at region borders ({k} cell{'s' * (k > 1)} given back)" for name, k in HALOS.items()},
          "lc-dense-read": "zeros where a window could read the stage's input",
          "lc-features": "zeros where it could read features of the stage before",
          "lc-interpolated": "zeros where it could read an interpolation of the region (ADP-C)", "lc-long": "too short a cascade training",
          "lc-pretrained": "random weights at the start (pretrained on procedural images instead)",
          "lc-large": "small images (twice the sides instead)", "lc-wide": "a narrow network (twice the width instead)",
          "lc-full": f"a small network (the paper's width and depth instead, all in {sum(FULL)} epochs)",
          "lc-unbalanced": "class weights (classes balanced by their frequency)",
          "lc-fast": "too low a learning rate", "lc-slow": "too high a learning rate", "lc-bn": "frozen batch norms",
          "lc-no-hs": "a loss on pixels that are wrong and confident (HS; left out instead)",
          "lc-everywhere": "cells left out of later stages (all are computed, easy ones get no loss)",
          "lc-easy": "no loss on easy pixels (a tenth of it; all cells are computed before and after)",
          "aspp-lc": "heads with a small field of view (ASPP instead)"}
CLIPS = {"CamVid": {"between trained frames (val)": ("val", slice(None)), "where a trained clip goes on (test, 0001TP)": ("test", slice(62)),
                    "another drive (test, Seq05VD)": ("test", slice(62, None))}}  # by data set: split and images of each clip
UNTESTED = ("ImageNet pretraining (the weights cannot be had here)", "the paper's data", "SGD, and the last weights (here AdamW, and an average)",
            "other weights of the stages' losses, another cut", "batch norms that are fixed in initial training, too")


def used(ev: Evidence) -> list[str]:
    """Names of the records that the tables and sentences below come from."""
    entries = catalogue(ev.profile.name).values()
    names = {DSN, LC, IRNET, "study-context", "study-context-test", "study-border"}
    names |= {name for e in entries if e.group == "why" or "-seed-" in e.name for name in (e.name, e.control)}
    return [name for name in ev.records if name in names]


def changes(ev: Evidence) -> pd.DataFrame:
    """One thing changed at a time: mIoU, gain over the run's control and over plain LC on both splits."""
    entries = catalogue(ev.profile.name)
    rows = {}
    for name, title, control in [(DSN, "", ""), (LC, "", DSN), *((e.name, e.title, e.control) for e in entries.values() if e.group == "why")]:
        row = rows[name] = {("", "control"): control, ("", "change"): title.partition(", ")[2] or "none"}
        for split in ev.splits:
            row[split, "mIoU"] = f"{percent(ev[name], split):.2f}" if name in ev.records else MISSING
            row[split, "over control"] = words(gain(ev, name, control, split)) if control else ""
            row[split, "over plain LC"] = words(gain(ev, name, LC, split)) if name.startswith("lc") and name != LC else ""
    return pd.DataFrame(rows).T.rename_axis("run")


def said(before: np.ndarray, after: np.ndarray, better: np.ndarray) -> str:
    """What a change says of its cause, from draws of LC's gain without and with it, and of what it does to LC itself. A word needs an interval
    that excludes zero, and a loss that shrinks only because the control gets worse explains nothing."""
    clear = lambda drawn: np.prod(interval(drawn)[1:]) > 0
    if not clear(before):
        return "nothing to explain"
    if not clear(after - before):
        return "no effect shown"
    share = 100 * (before - after)[0] / before[0]
    if share < 0:
        return f"the difference grows by {-share:.0f} %"
    if before[0] < 0 and interval(better)[1] <= 0:
        return f"control worse: the difference shrinks by {share:.0f} %, LC is no better"
    return f"explains it ({share:.0f} %)" if not clear(after) or share >= 100 else f"explains part ({share:.0f} %)"


def causes(ev: Evidence) -> pd.DataFrame:
    """One row per cause: the gain that LC has over its control once the cause is removed, how far that moves it and LC, and what follows."""
    entries, rows = catalogue(ev.profile.name), {}
    for name, cause in [(name, cause) for name, cause in CAUSES.items() if name in entries]:
        plain = BEFORE.get(name, LC)
        for split in ev.splits:
            before, after, better = gain(ev, plain, DSN, split), gain(ev, name, entries[name].control, split), gain(ev, name, plain, split)
            known = before is not None and after is not None
            verdict = MISSING if not known else "smoke run" if ev.profile.tier == "smoke" else said(before, after, better)
            rows[cause, split] = {"run": name, "gain with the change": words(after), "moved by": words(after - before if known else None),
                                  "LC itself": words(better), "so": verdict}
    return pd.DataFrame(rows).T.rename_axis(["cause", "split"])


def summary(table: pd.DataFrame) -> list[str]:
    """The causes by what became of them, as lists; a cause counts where both splits say the same kind of thing."""
    groups: dict[str, list[str]] = {}
    for cause, so in table["so"].groupby(level=0, sort=False):
        (kind, *others), said_ = so.str.split().str[0].unique(), "; ".join(f"{split}: {text}" for (_, split), text in so.items())
        groups.setdefault("mixed" if others else kind, []).append(f"{cause}: {said_}" if kind in ("explains", "control") or others else cause)
    heads = {"explains": "Explains it, or part of it", "mixed": "The splits disagree", "control": "The control gets worse, LC no better",
             "the": "The difference grows", "no": "No effect shown", "nothing": "Nothing to explain", "not": "Not run yet",
             "smoke": "Smoke runs, no verdict"}
    listed = {heads[kind]: groups[kind] for kind in heads if kind in groups} | {"Not tested here": UNTESTED}
    return [f"**{head}**\n" + "".join(f"\n- {cause}" for cause in found) for head, found in listed.items()]


def account(ev: Evidence) -> str:
    """Where plain LC's difference to the DSN comes from: what a region cannot read, and training and early decisions; by split, then by clip."""
    parts, told = [], lambda drawn: words(drawn) + ("" if np.prod(interval(drawn)[1:]) > 0 else " (no effect shown)")
    for split in ev.splits:
        study, total = ev.records.get("study-context" + f"-{split}" * (split != "val")), gain(ev, LC, DSN, split)
        if study is not None and total is not None:
            whole, zeros = (variant(study, name) for name in ("everything", "zeros"))
            left = whole - draws(ev[DSN], f"confusions_{split}")
            parts.append(f"On {split} LC less the DSN is {words(total)} points.")
            parts.append(f"Context that convolutions and poolings miss outside their region: {told(zeros - whole)}.")
            parts.append(f"What remains if the same weights compute every cell, due to training and early decisions: {told(left)}.")
    if not parts:
        return f"The account needs `study-context`, LC and DSN: {MISSING}."
    by = by_clip(ev).T.get("LC's weights: zeros less every cell computed", {})
    clips = " What missing context changes, by clip: " + "; ".join(f"{clip}, {lost}" for clip, lost in [*by.items()][:-1]) + "."
    return " ".join([f"Of {LC}, seed {ev.profile.seeds[0]}.", *parts]) + clips * bool(len(by))


def context_table(record: records.Record) -> pd.DataFrame:
    """What a region reads outside itself: mIoU (percent), its difference to `zeros` with its interval, cells computed (percent)."""
    study, count = record["study"], len(record["study"]["variants"])
    index = pd.MultiIndex.from_product([study["networks"], study["variants"]], names=["trained as", "reads outside"])
    scores = draws(record, record.arrays["confusions"].swapaxes(0, 1)).T  # (networks x variants, draws)
    more = scores - scores[::count].repeat(count, axis=0)
    computed = {f"stage {s} computes": 100 * shares for s, shares in enumerate(np.transpose(study["computed"])[1:], start=2)}
    return pd.DataFrame({"mIoU": scores[:, 0], "against zeros": [words(m) if i % count else "" for i, m in enumerate(more)], **computed}, index)


def border(ev: Evidence) -> pd.DataFrame:
    """Where the drop sits (val), by depth in stage 2's region: pixels, how many are right, LC less DSN, share of what LC loses net (percent)."""
    record = ev["study-border"]
    counts, depths, networks = record.arrays["counts"], record["study"]["depths"], record["study"]["networks"]
    deep = lambda a, b: f"{a} cells deep and more" if b is None else f"{a} cell{'s' * (a > 1)} deep" if a == b else f"{a} to {b} cells deep"
    names = ["decided in stage 1", *map(deep, depths, [*(d - 1 for d in depths[1:]), None])]
    apart = draws(record, counts, lambda c: (c[..., 1] - c[..., 3]) / np.maximum(c[..., 0], 1))
    total = pd.DataFrame(counts.sum(0), names, ["pixels", *networks])
    lost = total["DSN"] - total["LC"]
    table = (100 * total[networks].div(total["pixels"], axis=0)).add_suffix(" right")
    table.insert(0, "share of all pixels", 100 * total["pixels"] / total["pixels"].sum())
    return table.assign(**{"LC - DSN": [*map(words, apart.T)], "share of what LC loses": 100 * lost / (lost.sum() or np.nan)})[total["pixels"] > 0]


def seeds(ev: Evidence) -> pd.DataFrame:
    """Gains of LC, plain, with a halo and reading features, over DSN and IRNet, of twice the width and without balanced classes over theirs, and of
    the other methods of Table 2: per seed and their mean, on both splits; intervals over images, of the mean over seeds too."""
    others = ("LC", "MC"), ("LC", "DSN + Dropout"), ("DSN + Dropout", "DSN"), ("MC", "IRNet"), ("DSN", "IRNet")
    pairs = [(lc, control) for lc in (LC, HALO, "lc-features") for control in (DSN, IRNET)]
    changed = [(e.name, e.control) for e in catalogue(ev.profile.name).values() if e.group == "why" and e.control != DSN and e.name in SEEDED]
    rows = {}
    for a, b in [*pairs, *(pair for pair in changed if {*pair} <= set(ev.records)), *((METHODS[a], METHODS[b]) for a, b in others)]:
        for split in ev.splits:
            there = [*(found := seed_gains(ev, a, b, split)).values()]
            rows[f"{a} over {b}", split] = {**{f"seed {seed}": words(found.get(seed)) for seed in ev.profile.seeds},
                                            "mean": words(over_seeds(there)) if there else MISSING,
                                            "apart": f"{np.ptp([d[0] for d in there]):.2f}" if len(there) > 1 else ""}
    return pd.DataFrame(rows).T.rename_axis(["gain", "split"])


def by_clip(ev: Evidence) -> pd.DataFrame:
    """Points on each of CLIPS, and on the last less on the first (images drawn apart): the timed cascades less their DSNs, means over the seeds that
    are here; and the same weights with zeros outside a region, or a halo of 2, less with every cell computed."""
    entries, clips, rows = catalogue(ev.profile.name), CLIPS.get(next(iter(ev.records.values()))["data"]["name"], {}), {}
    for name in CASCADES if clips else ():
        gains = [[*seed_gains(ev, name, entries[name].control or DSN, *clip).values()] for clip in clips.values()]
        if seen := len(gains[0]):
            rows[f"{name} less its DSN" + f", mean of {seen} seeds" * (seen > 1)] = [over_seeds(found) for found in gains]
    studies = {split: ev.records.get(f"study-context{key}") for split, key in (("val", ""), ("test", "-test"))}
    for network, less in itertools.product(("LC", "DSN"), ("zeros", "halo 2")) if clips and all(studies.values()) else ():
        rows[f"{network}'s weights: {less} less every cell computed"] = [
            np.subtract(*(variant(studies[split], v, network == "DSN", images) for v in (less, "everything"))) for split, images in clips.values()]
    apart = lambda drawn: np.append(drawn[-1][0], np.roll(drawn[-1][1:], 1)) - drawn[0]
    return pd.DataFrame({name: dict(zip((*clips, "the last less the first"), map(words, (*drawn, apart(drawn))))) for name, drawn in rows.items()}
                        ).T.rename_axis("points")


def by_class(ev: Evidence, split: str) -> pd.DataFrame:
    """IoU of LC and DSN by class, and LC less DSN with its interval, in percent."""
    drawn = {name: draws(ev[name], f"confusions_{split}", metrics.iou) for name in (LC, DSN)}
    gains = drawn[LC] - drawn[DSN]
    low, high = pd.DataFrame(gains[1:]).quantile([0.025, 0.975]).to_numpy()  # blind to samples without a class
    return pd.DataFrame({"DSN": drawn[DSN][0], "LC": drawn[LC][0], "LC - DSN": gains[0], "low": low, "high": high},
                        index=ev[LC]["data"]["classes"])

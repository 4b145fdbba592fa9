"""The first page in numbers: the paper's gains and factors, and under them ours by setting."""
from fractions import Fraction

import pandas as pd

from lc.experiments import BEST_RHO, catalogue
from lc.paper import published
from lc.records import Record
from lc.report.speedups import equal_accuracy, fastest, paper_equal, paper_speedups, span, spelt, timings
from lc.report.tables import METHODS, Evidence, over_seeds, printed, seed_gains, words

SETTINGS = f"lc-{BEST_RHO}", "lc-unbalanced", "lc-wide-unbalanced", "lc-wide-unbalanced-features", "lc-full"


def summary(ev: Evidence) -> list[pd.DataFrame]:
    """LC minus DSN and minus IRNet in points of mIoU, LC's speed-up at the paper's two rho, and its greatest where it is equal to the DSN: the
    paper's, of each of SETTINGS that is here, and of the full network. A table of accuracy and one of speed, the paper's apart where it must be."""
    if ev.profile.tier == "smoke":
        return []
    miou, timed, equal, ours = printed("2")["mIoU"], timings(ev), equal_accuracy(ev), {}
    paper = {f"LC - {other}, points, val": f"{miou['LC'] - miou[other]:+.2f}" for other in ("DSN", "IRNet")} | {
        f"speed-up, rho = {rho:g}": f"{factor:.2f}x" for rho, factor in paper_speedups().items()} | {_equal_on("val"): paper_equal()}
    for name in (name for name in SETTINGS if name in ev.records):
        gains, seeds = _gains(ev, name)
        its = equal[equal.index.get_level_values(0) == name]
        equals = {_equal_on(split): fastest(its, split) for split in ev.splits}
        ours[f"{_setting(ev[name], seeds)}: {name}"] = gains | _factors(its.reset_index()) | equals
    full = timed[timed["kind"] == "network"] if len(timed) else timed
    ideals = ", ".join(f"{x:.2f}x" for x in dict.fromkeys(full["ideal"].round(2))) if len(full) else ""
    ours["speed alone: the paper's width and depth, untrained, its pixel shares" + f" (ideal {ideals})" * bool(ideals)] = _factors(full)
    head = f"the paper: VOC12, {published('6', 'IRNet-LC', 'params').value:g} M parameters, Titan X"
    frame = pd.DataFrame({head: {**dict.fromkeys(next(iter(ours.values()))), **paper}, **ours}).T
    gains = frame.columns.str.startswith("LC - ")
    apart = lambda whole: [whole] if ev.comparable else [whole.iloc[:1], whole.iloc[1:]]
    return [part for columns in (gains, ~gains) for part in apart(frame.loc[:, columns].dropna(how="all"))]


def _equal_on(split: str) -> str:
    return f"speed-up where equal to the DSN, {split}"


def _setting(record: Record, seeds: int) -> str:
    """What was trained, in words, and from how many seeds."""
    config = record["config"]
    weights = "without" if config["train"]["balance"] == "none" else "with"
    width = "the paper's width" if config["model"]["width"] == 1 else f"{Fraction(config['model']['width']).limit_denominator(64)} of its width"
    features = ", reading features at a region's border" * (config["model"]["reading"] == "features")
    of = f"{seeds} seeds" if seeds > 1 else "one seed"
    return f"{weights} class weights, {width} ({record['parameters'] / 1e6:.1f} M){features}, {of}"


def _gains(ev: Evidence, name: str) -> tuple[dict[str, str | None], int]:
    """A cascade minus its DSN, and minus the IRNet that was trained alike, means over the seeds that are here; how many there are of the first."""
    control, found, seeds = catalogue(ev.profile.name)[name].control or METHODS["DSN"], {}, 0
    for other, run in (("DSN", control), ("IRNet", control.replace("dsn", "irnet"))):
        for split in ev.splits:
            drawn = [*seed_gains(ev, name, run, split).values()]
            seeds = seeds or len(drawn)
            found[f"LC - {other}, points, {split}"] = words(over_seeds(drawn)) + f", {len(drawn)} of them" * (len(drawn) != seeds) if drawn else None
    return found, seeds


def _factors(timed: pd.DataFrame) -> dict[str, str | None]:
    """Speed-ups at the paper's two rho: with quartiles, or of several machines the span."""
    at = {float(rho): rows for rho, rows in timed.groupby("rho")} if len(timed) else {}
    told = lambda rows: spelt(rows.iloc[0]) if len(rows) == 1 else span(rows["speed-up"])
    return {f"speed-up, rho = {rho:g}": told(at[rho]) if rho in at else None for rho in paper_speedups()}

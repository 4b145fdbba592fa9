"""The first page in numbers: the paper's gains and factors, and under them ours by setting; and the README's: what `lc table readme` writes."""
from fractions import Fraction

import pandas as pd

from lc.experiments import BEST_RHO, catalogue
from lc.paper import published
from lc.records import Record
from lc.report import claims, speedups, systems
from lc.report.speedups import equal_accuracy, fastest, paper_equal, paper_speedups, span, spelt, timings
from lc.report.tables import METHODS, Evidence, methods, over_seeds, printed, rho_table, seed_gains, words
from lc.report.verdicts import answers, gains
from lc.report.why import account

SETTINGS = (f"lc-{BEST_RHO}", "lc-unbalanced", "lc-wide-unbalanced", "lc-wide-unbalanced-features", "lc-full",
            "lc-full-unbalanced", "lc-full-unbalanced-features")


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


def block(ev: Evidence) -> str:
    """The README's numbers, as Markdown: summary, answers, why, claims, gains, speed, Tables 2, 1 and 3, and where they come from."""
    written = lambda title, frames: [_markdown(title, frame, ev.label) for frame in frames]
    devices = "; ".join(dict.fromkeys(r["device"] for r in ev.trained))
    hours = sum(r.values.get("train_seconds", 0) + r["evaluate_seconds"] for r in ev.records.values()) / 3600
    origin = (f"Ours: {ev.label}, seed {ev.profile.seeds[0]} where no other is named. Trained on: {devices}. {len(ev.records)} records in "
              f"results/{ev.profile.name}/runs, each with its commit; their training and evaluation add up to {hours:.0f} hours. Brackets: 95 % "
              "intervals from a paired bootstrap over images, of videos in blocks of ten frames, of means over seeds too; of speed-ups, quartiles.")
    return "\n\n".join([*written(ev.label, summary(ev)), *answers(ev), f"**Why?** {account(ev)}",
                        f"**And all that the paper claims?** {claims.summary(claims.claims(ev))} One by one: page *Claims*.",
                        *written("Accuracy, points of mIoU", gains(ev)), *written("Speed", speedups.table(ev)),
                        *written("Table 2, mIoU", methods(ev)), *written("Table 1, by rho, percent", rho_table(ev)),
                        *written("Table 3", systems.table(ev, "3")), origin])


def _equal_on(split: str) -> str:
    return f"speed-up where equal to the DSN, {split}"


def _setting(record: Record, seeds: int) -> str:
    """What was trained, in words, and from how many seeds."""
    config = record["config"]
    weights = "without" if config["train"]["balance"] == "none" else "with"
    width = f"{Fraction(config['model']['width']).limit_denominator(64)} of ".removeprefix("1 of ") + "the paper's width"
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


def _markdown(title: str, frame: pd.DataFrame, label: str) -> str:
    """A frame as a table of Markdown; columns under the evidence's label are called ours."""
    columns = [" ".join([column] if isinstance(column, str) else map(str, column)) for column in frame.columns]
    heads = [title + f"; ours: {label}" * any(label in column for column in columns), *map(str, frame.index.names[1:]),
             *(column.replace(label, "ours") for column in columns)]
    rows = [[*map(str, index), *("-" if pd.isna(v) else f"{v:.2f}" if isinstance(v, float) else str(v) for v in row)]
            for index, row in zip(frame.index.to_frame().to_numpy(), frame.to_numpy(dtype=object))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *rows])

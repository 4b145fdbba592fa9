"""The first page in numbers: the paper's gains and factors, and under them ours by setting."""
import pandas as pd

from lc.experiments import BEST_RHO, catalogue
from lc.paper import published
from lc.records import Record
from lc.report.speedups import equal_accuracy, fastest, paper_equal, paper_speedups, span, timings
from lc.report.tables import METHODS, Evidence, over_seeds, printed, seed_gains, words

SETTINGS = f"lc-{BEST_RHO}", "lc-unbalanced", "lc-wide-unbalanced", "lc-wide-unbalanced-features"


def summary(ev: Evidence) -> list[pd.DataFrame]:
    """LC less DSN and less IRNet in points of mIoU, LC's speed-up at the paper's two rho, and its greatest at equal accuracy: the paper's, of each of
    SETTINGS that is here (means over the seeds that are), and the factors of the full network. One table where ours may stand beside the paper's."""
    if ev.profile.tier == "smoke":
        return []
    miou, timed, equal = printed("2")["mIoU"], timings(ev), equal_accuracy(ev)
    paper = {f"LC - {other}, val": f"{miou['LC'] - miou[other]:+.2f}" for other in ("DSN", "IRNet")} | {
        f"faster, rho = {rho:g}": f"{factor:.2f}x" for rho, factor in paper_speedups().items()} | {"faster, equal on val": paper_equal()}
    ours = {}
    for name in (name for name in SETTINGS if name in ev.records):
        its = equal[equal.index.get_level_values(0) == name]
        ours[_setting(ev[name])] = _gains(ev, name) | _factors(its.reset_index(), "speed-up") | {
            f"faster, equal on {split}": fastest(its, split) for split in ev.splits}
    ours["the full network, random weights"] = _factors(timed[timed["kind"] == "network"] if len(timed) else timed, "speedup")
    head = f"the paper, VOC12, {published('6', 'IRNet-LC', 'params').value:g} M parameters"
    frame = pd.DataFrame({head: {**dict.fromkeys(next(iter(ours.values()))), **paper}, **ours}).T
    return [frame] if ev.comparable else [frame.iloc[:1], frame.iloc[1:]]


def _setting(record: Record) -> str:
    config = record["config"]
    weights = "all pixels weigh the same" if config["train"]["balance"] == "none" else "classes balanced"
    features = ", LC reads features at a region's border" * (config["model"]["reading"] == "features")
    return f"{record['parameters'] / 1e6:.1f} M parameters, {weights}{features}"


def _gains(ev: Evidence, name: str) -> dict[str, str | None]:
    """A cascade less its DSN, and less the IRNet that was trained alike."""
    control, found = catalogue(ev.profile.name)[name].control or METHODS["DSN"], {}
    for other, run in (("DSN", control), ("IRNet", control.replace("dsn", "irnet"))):
        for split in ev.splits:
            drawn = [*seed_gains(ev, name, run, split).values()]
            found[f"LC - {other}, {split}"] = words(over_seeds(drawn)) + f", {len(drawn)} seeds" * (len(drawn) > 1) if drawn else None
    return found


def _factors(timed: pd.DataFrame, column: str) -> dict[str, str | None]:
    """Speed-ups at the paper's two rho, as spans over the machines."""
    spans = {float(rho): span(at) for rho, at in timed.groupby("rho")[column]} if len(timed) else {}
    return {f"faster, rho = {rho:g}": spans.get(rho) for rho in paper_speedups()}

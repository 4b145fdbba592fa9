"""Records and published numbers -> frames. No training, no torch.

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
    def trained(self) -> list[records.Record]:
        """The records of trainings, without the studies."""
        return [record for record in self.records.values() if "study" not in record.values]

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


def speed_files(kind: str) -> list[dict]:
    """Timing files that belong to no profile, one per device; kind: "region" or "network"."""
    return [json.loads(path.read_text()) for path in sorted((paths.ROOT / "results" / "bench").glob(f"{kind}-*.json"))]


def speed_table(bench: dict) -> pd.DataFrame:
    """Rows of a region or network bench: milliseconds of the fastest dense form and of the region side, speed-up with quartiles, ideal."""
    rows = [{("layer" if "layer" in r else "rho of the shares"): r.get("layer", r.get("rho")),
             "active, %": ", ".join(f"{100 * a:.0f}" for a in np.atleast_1d(r["active"])), "dense ms": r["dense_ms"], "dense form": r["dense_form"],
             "region ms": r["region_ms"], "speed-up": r["speedup"], "quartiles": f"{r['speedup_low']:.2f}-{r['speedup_high']:.2f}", "ideal": r["ideal"],
             "measured / ideal": r["ratio"]} for r in bench["rows"]]
    return pd.DataFrame(rows).set_index(list(rows[0])[0])


def bench_table(bench: dict) -> pd.DataFrame:
    """Fig. 7: time by rho, dense first; milliseconds, images per second, speed-up against dense, time per stage."""
    rows = {}
    for row in bench["rows"]:
        stages = {f"stage {i + 1} ms": ms for i, ms in enumerate(row["stage_ms"])} if row["rho"] is not None else {}
        rows["dense" if row["rho"] is None else f"{row['rho']:g}"] = {
            "ms": row["ms"], "quartiles": f"{row['ms_low']:.1f}-{row['ms_high']:.1f}", "images/s": 1000 / row["ms"], "speed-up": row["speedup"], **stages}
    return pd.DataFrame(rows).T.rename_axis("rho")


def difficulty_shares(record: records.Record, whose: int = 0) -> pd.DataFrame:
    """Fig. 1b left: share of each class's pixels in ES, MS and HS, percent; whose: 0 for LC, 1 for its stage 1."""
    sets = pd.DataFrame(record.arrays["sets"][whose].T, index=record["data"]["classes"], columns=["ES", "MS", "HS"])
    return 100 * sets.div(sets.sum(axis=1), axis=0)


def near_boundary(record: records.Record, whose: int = 0) -> pd.DataFrame:
    """Fig. 1b right as a curve: share of the pixels of each set within so many pixels (rows) of an object boundary, percent."""
    total = record.arrays["sets"][whose].sum(1)
    near = 100 * record.arrays["near"][whose].T / np.append(total, total.sum())
    return pd.DataFrame(near, index=pd.RangeIndex(1, len(near) + 1, name="band"), columns=["ES", "MS", "HS", "all"])


def context_table(record: records.Record) -> pd.DataFrame:
    """What a region reads outside itself: mIoU (percent), its difference to `zeros` with its interval, cells computed (percent)."""
    study, rows = record["study"], {}
    for i, network in enumerate(study["networks"]):
        for j, variant in enumerate(study["variants"]):
            at = i * len(study["variants"]) + j
            _, low, high = (100 * v for v in metrics.bootstrap_miou(*(record.arrays["confusions"][k] for k in (at, i * len(study["variants"])))))
            rows[network, variant] = {"mIoU": 100 * study["miou"][at], "against zeros": f"[{low:+.2f}, {high:+.2f}]",
                                      **{f"stage {s} computes": 100 * v for s, v in enumerate(study["computed"][at], start=1) if s > 1}}
    return pd.DataFrame(rows).T.rename_axis(["trained as", "reads outside"])


def calibration_table(record: records.Record) -> pd.DataFrame:
    """Cells handed to each stage by confidence: share right (percent), one column per network and stage; few cells: empty."""
    bins = record["study"]["bins"]
    index = pd.Index([f"{a:g} to {b:g}" for a, b in zip(bins, bins[1:])], name="confidence")
    columns_ = {}
    for network, stages in zip(record["study"]["networks"], record.arrays["counts"]):
        for s, (seen, right) in enumerate(stages, start=1):
            columns_[network, f"stage {s}"] = np.where(seen >= 50, 100 * right / np.maximum(seen, 1), np.nan)
    return pd.DataFrame(columns_, index=index)


def selection_table(record: records.Record, network: int = 0) -> pd.DataFrame:
    """mIoU (percent) and cells handed to stages 2 and 3 (percent) by rule: one rho per stage, or the oracle."""
    study = record["study"]
    names = ["oracle" if r == "oracle" else f"{r[0]:g} / {r[1]:g}" for r in study["rules"]]
    return pd.DataFrame({"mIoU": 100 * np.array(study["miou"][network]), "to stage 2": 100 * np.array(study["handed"][network])[:, 1],
                         "to stage 3": 100 * np.array(study["handed"][network])[:, 2]}, index=pd.Index(names, name="rho of stage 1 / stage 2"))


def train_test_grid(ev: Evidence) -> pd.DataFrame:
    """mIoU (percent, val) of each run of Table 1 (rows: rho in training) at each rho in testing (columns)."""
    return pd.DataFrame({rho: {test: 100 * row["miou"] for test, row in zip(columns("1", "mIoU"), run["sweep"])} for rho, run in rho_runs(ev).items()}).T \
        .rename_axis("rho in training").rename_axis("rho in testing", axis=1)

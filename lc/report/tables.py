"""Records and published numbers -> frames. No training, no torch.

A number of ours travels with its tier: only where `Evidence.comparable` says so may it stand in a table with the paper's (`paper_and_ours`); smoke
runs and procedural data get a table of their own.
"""
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
import pandas as pd

from lc import metrics, paths, records
from lc.errors import InputError
from lc.experiments import BEST_RHO, Profile, catalogue, profile
from lc.paper import all_published, columns, published

VIDEO = {"CamVid": 10}  # data sets whose images are frames of videos: frames in a block of the bootstrap
MISSING = "not run yet"
BOUNDARY = 3  # pixels: how near "on a boundary" is, at most
METHODS = {"IRNet": "irnet", "DSN": "dsn", "DSN + Dropout": "dsn-dropout", "MC": "mc", "LC": f"lc-{BEST_RHO}"}


@dataclass(frozen=True)
class Evidence:
    """All records of one profile; experiments without a record are simply absent."""
    profile: Profile
    records: dict[str, records.Record]

    @cached_property
    def comparable(self) -> bool:
        """Whether these numbers may stand in a column beside the paper's: real data, real training."""
        return self.profile.tier != "smoke" and not any(r["data"]["synthetic"] for r in self.records.values() if r.experiment != "pretraining")

    def __getitem__(self, name: str) -> records.Record:
        if name not in self.records:
            raise InputError(f"no record of {self.profile.name}/{name}; make it with `make reproduce PROFILE={self.profile.name}`")
        return self.records[name]

    @property
    def trained(self) -> list[records.Record]:
        """The records of trainings, without the studies."""
        return [record for record in self.records.values() if "study" not in record.values]

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that every run is evaluated on: val and test, or val alone where test labels are not public."""
        first = next(iter(self.trained), None)
        return tuple(first["metrics"]) if first else ("val",)

    @property
    def unbalanced(self) -> "Evidence":
        """The runs without balanced classes, under the names of those with."""
        named = lambda name: re.sub("^lc(?=-seed|$)", METHODS["LC"], name.replace("-unbalanced", ""))
        return Evidence(self.profile, {named(name): record for name, record in self.records.items() if named(name) != name})

    @property
    def label(self) -> str:
        """Data set, resolution, tier, and that classes are not balanced where the profile's are, as column headings say them."""
        if not self.records:
            raise InputError(f"profile {self.profile.name} has no record yet; run `make reproduce PROFILE={self.profile.name}`")
        first = next(iter(self.records.values()))
        data, balance = first["data"], first["config"]["train"]["balance"]
        weights = ", without class weights" * (balance != self.profile.train.balance)
        return f"{data['name']} {data['size'][0]}x{data['size'][1]} ({self.profile.tier}{weights})"


def evidence(profile_name: str) -> Evidence:
    """Read every record of a profile."""
    return Evidence(profile(profile_name), {name: found for name, entry in catalogue(profile_name).items() if (found := records.find(entry))})


def percent(record: records.Record, split: str) -> float:
    """mIoU of a record in percent."""
    return 100 * record["metrics"][split]["miou"]


def class_iou(record: records.Record, split: str) -> pd.Series:
    """IoU of each class in percent; nan where neither labels nor predictions hold it."""
    return 100 * pd.Series(record["metrics"][split]["iou"], index=record["data"]["classes"], dtype=float)


def draws(record: records.Record, counts: str | np.ndarray, score=metrics.miou) -> np.ndarray:
    """(2001, ...) a score in percent from per-image counts (N, ...) of a record, an array or its name: of all images, then of bootstrap
    samples of them. Frames of one video resemble their neighbours, so there blocks of consecutive frames are drawn (circular block bootstrap).

    Equal N gives equal samples, so sums and differences of draws are paired."""
    counts = record.arrays[counts] if isinstance(counts, str) else counts
    return 100 * score(np.tensordot(_samples(len(counts), VIDEO.get(record["data"]["name"], 1)), counts, axes=1))


@lru_cache
def _samples(n: int, block: int) -> np.ndarray:
    """(2001, n) how often each image is taken: once, then as often as it is drawn."""
    starts = np.random.default_rng(0).integers(n, size=(2000, -(-n // block), 1))
    chosen = ((starts + np.arange(block)) % n).reshape(len(starts), -1)[:, :n]
    return np.stack([np.ones(n), *(np.bincount(row, minlength=n) for row in chosen)])


def interval(drawn: np.ndarray) -> tuple[float, float, float]:
    """(value, low, high) of draws (D,): all images, and the 95 % percentile interval."""
    return drawn[0], *np.quantile(drawn[1:], [0.025, 0.975])


def words(drawn: np.ndarray | None) -> str:
    """A difference with its interval, in points."""
    return MISSING if drawn is None else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*interval(drawn))


def gain(ev: Evidence, a: str, b: str, split: str, images: slice = slice(None)) -> np.ndarray | None:
    """Draws of the mIoU of run a less that of b on these images of a split, in points; None if one has no record."""
    if not {a, b} <= set(ev.records):
        return None
    return np.subtract(*(draws(ev[run], ev[run].arrays[f"confusions_{split}"][images]) for run in (a, b)))


def of_seeds(ev: Evidence, name: str) -> list[str]:
    """Names of a run by seed of the profile."""
    return [name, *(f"{name}-seed-{seed}" for seed in ev.profile.seeds[1:])]


def seed_gains(ev: Evidence, a: str, b: str, split: str, images: slice = slice(None)) -> dict[int, np.ndarray]:
    """`gain` of each seed of the profile whose runs are both here."""
    drawn = {seed: gain(ev, *pair, split, images) for seed, *pair in zip(ev.profile.seeds, of_seeds(ev, a), of_seeds(ev, b))}
    return {seed: found for seed, found in drawn.items() if found is not None}


def over_seeds(drawn: list[np.ndarray]) -> np.ndarray:
    """Draws of the mean over seeds, from those of each seed: of the seeds there are, then each of as many drawn from them with replacement. With
    few seeds the interval is still too narrow for what another seed would do."""
    values = np.stack(drawn)
    picks = np.random.default_rng(0).integers(len(values), size=values.shape[::-1])
    picks[0] = np.arange(len(values))
    return np.take_along_axis(values.T, picks, 1).mean(1)


def variant(record: records.Record, name: str, network: int = 0, images: slice = slice(None)) -> np.ndarray:
    """Draws of the mIoU of one variant of a study, of its first network or this one, on these images, in percent."""
    names = record["study"]["variants"]
    return draws(record, record.arrays["confusions"][network * len(names) + names.index(name)][images])


def printed(table: str) -> pd.DataFrame:
    """A published table, rows and columns in its order; empty where nothing is printed."""
    cells = pd.Series({(row, column): cell.value for (t, row, column), cell in all_published().items() if t == table}, dtype=float)
    return cells.unstack(sort=False)


def difference_printed(text: str) -> float | None:
    """A published number, or the difference of two: "table|row|column - table|row|column"; None where nothing is claimed."""
    values = [published(*address.strip().split("|")).value for address in text.split(" - ")] if text else []
    return values[0] - sum(values[1:]) if values else None


def listed(name: str) -> list[dict]:
    """The rows of results/<name>.csv."""
    return pd.read_csv(paths.LISTS / f"{name}.csv", dtype=str, keep_default_na=False).to_dict("records")


def paper_and_ours(paper: pd.DataFrame, ours: pd.DataFrame, ev: Evidence, label: str = "") -> list[pd.DataFrame]:
    """What a page shows, in the paper's rows: one table where that is allowed, else the paper's and ours (the evidence's label, or this) apart."""
    frames = {"paper": paper if ev.comparable else paper.dropna(how="all"), label or ev.label: ours.reindex(paper.index)}
    return [pd.concat(frames, axis=1)] if ev.comparable else [pd.concat({head: frame}, axis=1) for head, frame in frames.items()]


def methods(ev: Evidence) -> list[pd.DataFrame]:
    """Table 2: mIoU of the five methods, in percent, its mean over seeds where all are here, and the epochs that each was trained in all."""
    runs = {row: ev.records[name] for row, name in METHODS.items() if name in ev.records}
    ours = pd.DataFrame({split: {row: percent(run, split) for row, run in runs.items()} for split in ev.splits})
    complete = {row: names for row, name in METHODS.items() if set(names := of_seeds(ev, name)) <= set(ev.records)}
    for split in ev.splits if len(ev.profile.seeds) > 1 else ():
        ours[f"{split}, mean of {len(ev.profile.seeds)} seeds"] = pd.Series(
            {row: np.mean([percent(ev[name], split) for name in names]) for row, names in complete.items()}, dtype=float)
    ours["epochs"] = pd.Series({row: epochs(run["config"]) for row, run in runs.items()}).map("{:g}".format)
    return paper_and_ours(printed("2").rename(columns={"mIoU": "VOC12 val"}), ours, ev)


def epochs(config: dict) -> int:
    """Epochs of all phases of a run, those of its start included."""
    return sum(phase["epochs"] for phase in config["phases"]) + (epochs(config["start"]) if config["start"] else 0)


def rho_runs(ev: Evidence) -> dict[str, records.Record]:
    """The runs of Table 1, keyed by rho as printed: cascade training at each rho; rho = 1 is the DSN."""
    names = {rho: "dsn" if float(rho) == 1 else f"lc-{rho}" for rho in columns("1", "mIoU")}
    return {rho: ev.records[name] for rho, name in names.items() if name in ev.records}


def rho_table(ev: Evidence) -> list[pd.DataFrame]:
    """Table 1: share of pixels decided in stages 1 and 2, and mIoU, by rho (rows here), all in percent."""
    ours = {rho: {**rho_row(run["metrics"]["val"]), **{f"mIoU {s}": percent(run, s) for s in ev.splits[1:]}} for rho, run in rho_runs(ev).items()}
    return paper_and_ours(printed("1").T.rename_axis("rho"), pd.DataFrame(ours).T, ev)


def rho_row(val: dict) -> dict:
    """A line of Table 1 from the metrics of the validation split, in percent."""
    return {"stage-1": 100 * val["decided"][0], "stage-2": 100 * val["decided"][1], "mIoU val": 100 * val["miou"]}


def sweep_table(record: records.Record) -> pd.DataFrame:
    """One model, swept at test time over the eight rho on the validation split; percent."""
    return pd.DataFrame(map(rho_row, record["sweep"]), index=pd.Index(columns("1", "mIoU"), name="rho"))


def train_test_grid(ev: Evidence) -> pd.DataFrame:
    """mIoU (percent, val) of each run of Table 1 (rows: rho in training) at each rho in testing (columns)."""
    rows = pd.DataFrame({rho: sweep_table(run)["mIoU val"] for rho, run in rho_runs(ev).items()}).T
    return rows.rename_axis("rho in training").rename_axis("rho in testing", axis=1)


def _decided(record: records.Record) -> pd.DataFrame:
    """Labelled pixels of val: a row for each class, a column for each stage that decided them."""
    pixels = np.array(record["metrics"]["val"]["decided_pixels"], float)
    return pd.DataFrame(pixels.T, record["data"]["classes"], [f"stage {s + 1}" for s in range(len(pixels))])


def _steps(frame: pd.DataFrame, note: str = "") -> pd.DataFrame:
    """Each column over the one before it; nan where that has no pixels."""
    later, before = frame.iloc[:, 1:], frame.iloc[:, :-1]
    return (later / before.where(before > 0).to_numpy()).set_axis([f"{b} / {a}{note}" for a, b in pairwise(frame)], axis=1)


def label_ratios(record: records.Record) -> pd.DataFrame:
    """Fig. 5a: each class's share of the pixels handed to a stage over its share one stage earlier (val); stage 1 is handed everything."""
    handed = _decided(record).iloc[:, ::-1].cumsum(axis=1).iloc[:, ::-1]  # decided there or later
    return _steps(handed / handed.sum())


def count_ratios(record: records.Record) -> pd.DataFrame:
    """Fig. 5a, read the other way: pixels of each class that a stage decided over those that the stage before decided (val)."""
    return _steps(_decided(record), ", decided")


def decided_shares(record: records.Record) -> pd.DataFrame:
    """Fig. 5b: share of each class's pixels that each stage decided, in percent (val)."""
    decided = _decided(record)
    return 100 * decided.div(decided.sum(axis=1), axis=0)


def difficulty_shares(record: records.Record, of: int = 0) -> pd.DataFrame:
    """Fig. 1b left: share of each class's pixels in ES, MS and HS, percent; of the whole cascade (0) or of stage 1 alone (1)."""
    sets = pd.DataFrame(record.arrays["sets"][of].T, record["data"]["classes"], ["ES", "MS", "HS"])
    return 100 * sets.div(sets.sum(axis=1), axis=0)


def near_boundary(record: records.Record) -> pd.DataFrame:
    """Fig. 1b right as a curve: share of the pixels of each set within so many pixels (rows) of an object boundary, percent."""
    total = record.arrays["sets"][0].sum(1)
    near = 100 * record.arrays["near"][0].T / np.append(total, total.sum())
    return pd.DataFrame(near, index=pd.RangeIndex(1, len(near) + 1, name="band"), columns=["ES", "MS", "HS", "all"])


def decided_near(record: records.Record) -> pd.DataFrame:
    """Share of the pixels within BOUNDARY of an object boundary, and of all, that each stage decides, percent."""
    counts = record.arrays["decided"][:, [BOUNDARY - 1, -1]]
    return pd.DataFrame(100 * counts / counts.sum(0), columns=["near", "all"])


def sources(ev: Evidence, names: list[str] | None = None) -> pd.DataFrame:
    """Where the numbers of a page come from: one row per record (of these runs, or of all), with a link that works from the built book."""
    found = [ev[name] for name in names or ev.records if name in ev.records]
    return pd.DataFrame({r.experiment: {
        "record": f'<a href="records/{r.path.name}">{r.path.name}</a>', "tier": r["tier"], "seed": r["seed"],
        "commit": r["commit"][:10] + (" + changes" if r["dirty"] else ""), "device": r["device"],
        "data": r["data"]["sha256"].get("val") or r["data"]["sha256"]["test"], "state": r.stale or "current"} for r in found}).T


def calibration_table(record: records.Record) -> pd.DataFrame:
    """Cells handed to each stage by confidence: share right (percent), one column per network and stage; few cells: empty."""
    bins, networks = record["study"]["bins"], zip(record["study"]["networks"], record.arrays["counts"])
    right = {(network, f"stage {s}"): np.where(seen >= 50, 100 * hits / np.maximum(seen, 1), np.nan)
             for network, stages in networks for s, (seen, hits) in enumerate(stages, start=1)}
    return pd.DataFrame(right, index=pd.Index([f"{a:g} to {b:g}" for a, b in zip(bins, bins[1:])], name="confidence"))


def selection_table(record: records.Record) -> pd.DataFrame:
    """mIoU of the LC's stages (percent) and cells handed to stages 2 and 3 (percent) by rule: one rho per stage, or the oracle."""
    study = record["study"]
    names = ["oracle" if rule == "oracle" else f"{rule[0]:g} / {rule[1]:g}" for rule in study["rules"]]
    cells = 100 * np.column_stack([study["miou"][0], np.array(study["handed"][0])[:, 1:]])
    return pd.DataFrame(cells, pd.Index(names, name="rho of stage 1 / stage 2"), ["mIoU", "to stage 2", "to stage 3"])

"""Timing files -> frames; how much faster LC is than the fastest dense form, what it loses there, and whether anything is left at equal accuracy."""
import json

import numpy as np
import pandas as pd

from lc import paths
from lc.experiments import BEST_RHO, CASCADES, catalogue
from lc.paper import published
from lc.report.tables import METHODS, Evidence, draws, interval, of_seeds, over_seeds, percent, printed, seed_gains, sweep_table, words

SMALL = 0.5  # points of mIoU
LOSS = {split: f"LC - DSN, points ({split})" for split in ("val", "test")}
PLAIN = f"lc-{BEST_RHO}", "lc-unbalanced", "lc-wide", "lc-wide-unbalanced", "lc-full", "lc-full-unbalanced"  # what the paper's factors are held to
VARIANTS = "lc-halo-2", "lc-wide-unbalanced-features", "lc-full-unbalanced-features"  # shown beside them


def speed_files(kind: str, profile_name: str = "") -> list[dict]:
    """Timing files of a kind: those of trained cascades and "systems" belong to a profile, the others ("halo" is a network's) to none. An entry for
    each device and setting: "where" names the device, the dtype, the batch and the image's size, "rounds" how often it was timed."""
    found = []
    for path in sorted((paths.results(profile_name) / "bench").glob(f"{kind}-*.json")):
        bench, settings = json.loads(path.read_text()), {}
        if bench["kind"] != kind and kind != "halo":  # of a run whose name begins like this one's
            continue
        for row in bench["rows"]:
            dtype, batch, size = ({**bench, **row}[key] for key in ("dtype", "batch", "size"))
            settings.setdefault(f"{bench['device']}, {dtype}, batch {batch}, {size[0]}x{size[1]}", []).append(row)
        rounds = f"{bench.get('repeats')} rounds after a warm-up" + (f" in each of {bench['processes']} processes" if "processes" in bench else "")
        found += [{**bench, "rows": rows, "where": where, "rounds": rounds} for where, rows in settings.items()]
    return found


def cascade_files(ev: Evidence, name: str) -> list[dict]:
    """`speed_files` of a trained cascade that is configured as its record is."""
    record = ev.records.get(name)
    return [bench for bench in speed_files(name, ev.profile.name) if record and bench["key"] == record["key"]]


def system_times(profile_name: str, device: str | None = None) -> pd.DataFrame:
    """Milliseconds (ms, ms_low, ms_high), form and parameters of each system by name, on one device (None: the first); no profile: the poster's."""
    found = [bench["rows"] for bench in speed_files("systems" if profile_name else "poster", profile_name) if device in (None, bench["device"])]
    return pd.DataFrame(found[0] if found else [], columns=["system", "ms", "ms_low", "ms_high", "form", "parameters"]).set_index("system")


def speed_table(bench: dict) -> pd.DataFrame:
    """Rows of a bench: milliseconds of the fastest dense form and of the region side, the speed-up with its quartiles, and the ideal."""
    rows = pd.DataFrame(bench["rows"])
    rows["active, %"] = [", ".join(f"{100 * a:.0f}" for a in np.atleast_1d(active)) for active in rows["active"]]
    rows["quartiles"] = [f"{low:.2f}-{high:.2f}" for low, high in zip(rows["speedup_low"], rows["speedup_high"])]
    rows = rows.assign(rho=rows["rho"].map("{:g}".format)) if "rho" in rows else rows
    heads = {"layer": "layer", "chain": "blocks", "network": "network", "rho": "rho of the shares", "active, %": "active, %", "dense_ms": "dense ms",
             "dense_form": "dense form", "region_ms": "region ms", "speedup": "speed-up", "quartiles": "quartiles",
             "ideal": "ideal", "ratio": "measured / ideal"}
    shown = [head for head in heads if head in rows]
    return rows[shown].rename(columns=heads).set_index(heads[shown[0]])


def bench_table(bench: dict) -> pd.DataFrame:
    """Fig. 7: time by rho, dense first; milliseconds, images per second, speed-up against dense, time per stage."""
    rows = {}
    for row in bench["rows"]:
        dense = row["rho"] is None
        rows["dense" if dense else f"{row['rho']:g}"] = {
            "ms": row["ms"], "quartiles": f"{row['ms_low']:.1f}-{row['ms_high']:.1f}", "images/s": 1000 / row["ms"], "speed-up": row["speedup"],
            "form": row["dense_form" if dense else "region_form"],
            **({} if dense else {f"stage {i} ms": ms for i, ms in enumerate(row["stage_ms"], start=1)})}
    return pd.DataFrame(rows.values(), index=list(rows)).rename_axis("rho")


def paper_speedups() -> dict[float, float]:
    """The paper's speed-ups over its dense network, by rho."""
    fps = printed("3")["FPS"] / published("text", "inception-resnet-speed").value
    return {0.985: fps["LC"], 0.8: fps["LC (fast)"]}


def timings(ev: Evidence, names: tuple[str, ...] = PLAIN) -> pd.DataFrame:
    """Every measured speed-up of LC at the paper's two rho, of the network with random weights and of these cascades: a row for each kind, device,
    setting and rho."""
    found = pd.DataFrame([{"kind": kind, **row, "where": bench["where"]} for kind in ("network", *names)
                          for bench in (speed_files(kind) if kind == "network" else cascade_files(ev, kind))
                          for row in bench["rows"] if row["rho"] in paper_speedups()])
    return found.rename(columns={"speedup": "speed-up", "speedup_low": "lower", "speedup_high": "upper", "dense_form": "dense form"})


def span(factors: pd.Series) -> str:
    """The least and the greatest of some speed-ups."""
    return " to ".join(dict.fromkeys(f"{x:.2f}x" for x in (factors.min(), factors.max())))


def paper_equal() -> str:
    """The paper's speed-up at equal accuracy."""
    fps = [published("text", f"{name}-speed").value for name in ("near-real-time", "inception-resnet")]
    return f"{fps[0] / fps[1]:.2f}x at rho = 0.95"


def answer(ev: Evidence) -> list[str]:
    """Whether the paper's two factors held, and what equal accuracy leaves of them, as sentences; none without a timing, nor of a smoke run."""
    timed = timings(ev)
    if timed.empty or ev.profile.tier == "smoke":
        return []
    faster, reached = timed["lower"] > 1, timed["upper"] >= timed["rho"].map(paper_speedups())
    spans = ", ".join(f"{span(at)} at rho = {rho:g} (paper: {paper_speedups()[rho]:.2f}x)"
                      for rho, at in timed.groupby("rho", sort=False)["speed-up"])
    word = "No" if not faster.any() else "In part" if not faster.all() else "Yes" if reached.all() else "In direction, not in size"
    full = (timed["kind"] == "network").sum()
    return [f"**Did the speed gain hold? {word}.** Plain LC is faster than the fastest dense form of its network in {faster.sum()} of {len(timed)} "
            f"timings (lower quartile above 1; {full} are of the untrained full network) and reaches the paper's factor in {reached.sum()}: {spans}.",
            *_equal(ev)]


def _apart(ev: Evidence, name: str, control: str, split: str, i: int) -> tuple[float | None, str | None, str | None]:
    """The mIoU of a cascade at the i-th rho of its sweep less its control's, the mean over the seeds that are here: points, the same in words, and
    whether it is equal (the whole interval above -SMALL); None where it is not tested at that rho on that split. At the rho of its training every
    run is."""
    counts = "sweep_confusions" + ("" if split == "val" else f"_{split}")
    if ev[name]["sweep"][i]["rho"] == ev[name]["config"]["rho"]:
        drawn = [*seed_gains(ev, name, control, split).values()]
    else:
        pairs = [(a, b) for a, b in zip(of_seeds(ev, name), of_seeds(ev, control)) if {a, b} <= set(ev.records) and counts in ev[a].arrays]
        drawn = [draws(ev[a], ev[a].arrays[counts][i]) - draws(ev[b], f"confusions_{split}") for a, b in pairs if pairs[0][0] == name]
    if not drawn:
        return None, None, None
    mean, seeds = over_seeds(drawn), f", {len(drawn)} seed{'s' * (len(drawn) > 1)}" * (len(ev.profile.seeds) > 1)
    return mean[0], words(mean) + seeds, "yes" if interval(mean)[1] > -SMALL else "no"


def equal_accuracy(ev: Evidence) -> pd.DataFrame:
    """Each timed cascade (lc.experiments.CASCADES) at each rho below 1: mIoU on val; on each split the difference in points to the DSN with the same
    images and width, of the seeds that were tested at that rho, and whether it is `equal` (the whole interval above -SMALL); cells that stages 2 and
    3 compute, the speed-up over its dense form, its quartiles, and what its multiply-adds allow. No row without a timing, or of a smoke run."""
    rows, entries = {}, catalogue(ev.profile.name)
    for name in CASCADES if ev.profile.tier != "smoke" else ():
        control = (entries[name].control or METHODS["DSN"]) if name in entries else ""
        for bench in cascade_files(ev, name) if control in ev.records else ():
            timed = {row["rho"]: row for row in bench["rows"]}
            for i, at in enumerate(ev[name]["sweep"]):
                if at["rho"] == 1 or at["rho"] not in timed:
                    continue
                row, apart = timed[at["rho"]], {split: _apart(ev, name, control, split, i) for split in ev.splits}
                rows[name, f"{at['rho']:g}", bench["where"]] = {
                    "mIoU": 100 * at["miou"], "points": apart["val"][0], **{LOSS[split]: loss for split, (_, loss, _) in apart.items()},
                    **{f"equal ({split})": equal for split, (_, _, equal) in apart.items()},
                    **{f"stage {s}, %": 100 * share for s, share in enumerate(row["computed"][1:], start=2)},
                    "speed-up": row["speedup"], "lower": row["speedup_low"], "upper": row["speedup_high"], "ideal": row["ideal"],
                    "dense form": row["dense_form"]}
    return pd.DataFrame(rows.values(), pd.MultiIndex.from_tuples(rows, names=["cascade", "rho", "where"]))


def spelt(row: pd.Series) -> str:
    """A speed-up of `equal_accuracy`, or of `timings`, with its quartiles."""
    return f"{row['speed-up']:.2f}x [{row['lower']:.2f}, {row['upper']:.2f}]"


def _fastest(table: pd.DataFrame, split: str) -> tuple | None:
    """Index of that row of `equal_accuracy` whose speed-up is greatest (by its lower quartile) of those equal on a split; None without one."""
    same = table[table[f"equal ({split})"] == "yes"] if len(table) else table
    return same["lower"].idxmax() if len(same) else None


def fastest(table: pd.DataFrame, split: str) -> str | None:
    """The greatest speed-up of rows of `equal_accuracy` that are equal on a split, and its rho; None where not all were tested."""
    if at := _fastest(table, split):
        return f"{table.loc[at, 'speed-up']:.2f}x at rho = {at[1]}"
    return "none shown equal" if len(table) and table[f"equal ({split})"].notna().all() else None


def _equal(ev: Evidence) -> list[str]:
    """The greatest speed-up (by its lower quartile) among the rows of `equal_accuracy` that are equal, on each split, and the paper's, as a sentence;
    none without a timing."""
    table, miou, found, parts = equal_accuracy(ev), printed("1").loc["mIoU"], {}, []
    if table.empty:
        return []
    for split in (split for split in ev.splits if table[f"equal ({split})"].notna().any()):
        best, found[split] = "none is shown equal", "no"
        if at := _fastest(table, split):
            (name, rho, where), row = at, table.loc[at]
            found[split] = "yes" if row["lower"] > 1 else "no"
            best = (f"the fastest is {name} at rho = {rho} (LC - DSN {row[LOSS[split]]}): {spelt(row)} over {row['dense form']}"
                    f"{'' if row['lower'] > 1 else ', not faster'}, ideal {row['ideal']:.2f}x ({where})")
        parts.append(f"On {split} {best}.")
    word = " and ".join(f"{said} on {split}" for split, said in found.items()) if len({*found.values()}) > 1 else found["val"]
    return [f"**Is there a gain at equal accuracy? {word.capitalize()}.** *Equal*: the whole 95 % interval of LC - DSN lies above -{SMALL:g} points; "
            f"the DSN has the same width and images. Of all timed cascades and rho below 1, chosen on the split that is named. {' '.join(parts)} The "
            f"paper: {paper_equal()} ({miou['0.950']:.2f} against {miou['1']:.2f} %)."]


def table(ev: Evidence) -> list[pd.DataFrame]:
    """Every measured speed-up of LC at the paper's two rho, what its multiply-adds allow, the opponent, and what LC loses, under the paper's."""
    data, miou, lost = next(iter(ev.records.values()))["data"]["name"], printed("1").loc["mIoU"], equal_accuracy(ev).to_dict("index")
    named = lambda kind: f"{kind}, {data} ({ev.profile.tier})" if kind != "network" else "the paper's network, random weights, blobs of its shares"
    rows = {("the paper's frame rates, Titan X, VOC12", f"{rho:g}"): {"speed-up": f"{value:.2f}x", "ideal": None, "dense form": None,
                                                                      LOSS["val"]: f"{miou[f'{rho:.3f}'] - miou['1']:+.2f}"}
            for rho, value in paper_speedups().items()}
    for _, row in timings(ev, (*PLAIN, *VARIANTS)).iterrows():
        losses = lost.get((row["kind"], f"{row['rho']:g}", row["where"]), {})
        rows[f"{named(row['kind'])}: {row['where']}", f"{row['rho']:g}"] = {
            "speed-up": spelt(row), "ideal": f"{row['ideal']:.2f}x", **row[["dense form"]], **{LOSS[s]: losses.get(LOSS[s]) for s in ev.splits}}
    found = pd.DataFrame(rows.values(), pd.MultiIndex.from_tuples(rows, names=["", "rho"]))
    apart = found.index.get_level_values(0).str.startswith("lc-") & (not ev.comparable)
    return [part for part in (found[~apart], found[apart]) if len(found) > 2 and len(part)]


def speed_points(ev: Evidence, bench: dict) -> dict[str, pd.DataFrame]:
    """Fig. 7a: ms and mIoU (percent, val) of the timed cascade along rho, of the same network run densely, and of DeepLab-v2 and
    SegNet where both their time on that device and their record are there."""
    times, sweep = bench_table(bench)["ms"], sweep_table(ev[bench["experiment"]])["mIoU val"]
    along = pd.DataFrame({"ms": times.drop("dense"), "mIoU": sweep.set_axis([f"{float(rho):g}" for rho in sweep.index])})
    points = {f"LC, {ev.label}": along, "the same, dense": pd.DataFrame({"ms": times["dense"], "mIoU": sweep["1"]}, index=["dense"])}
    for row in system_times(ev.profile.name, bench["device"]).loc[lambda t: t.index.isin(("deeplab-v2", "segnet"))].itertuples():
        if row.Index in ev.records:
            points[row.Index] = pd.DataFrame({"ms": row.ms, "mIoU": percent(ev[row.Index], "val")}, index=[row.Index])
    return points

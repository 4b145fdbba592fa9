"""Why LC gains or loses, and the other systems: what the frames and sentences say of planted records, and of missing ones."""
import json
import re

import numpy as np
import pandas as pd
import pytest

from lc import metrics
from lc.report import claims, speedups, summary, systems, tables, verdicts, why
from lc.report.tables import Evidence, draws, profile
from tests.conftest import fake_record

STUDY = {"variants": ["zeros", "halo 2", "everything"], "networks": ["LC", "DSN"], "miou": [0.5] * 6,
         "computed": [[1, 0.6, 0.4], [1, 0.8, 0.7], [1, 1, 1]] * 2}


def evidence(profile_name: str = "camvid-lite", **shifts) -> Evidence:
    """Records of a profile by name, `_` for `-`, `p` for `.`: points of made-up counts on the diagonal."""
    names = {name.replace("_", "-").replace("0p", "0."): shift for name, shift in shifts.items()}
    return Evidence(profile(profile_name), {name: fake_record(profile_name, name, shift, parameters=1_000_000) for name, shift in names.items()})


def planted(value: float, spread: float) -> np.ndarray:
    return value + np.append(0, spread * np.linspace(-1, 1, 200))


@pytest.mark.parametrize("before, after, better, said", [
    ((-2, 0.3), (-0.1, 0.3), 1.9, "explains it (95 %)"), ((-2, 0.3), (-1, 0.2), 1, "explains part (50 %)"), ((2, 0.3), (1, 0.2), -1, "explains part (50 %)"),
    ((-2, 0.3), (1, 0.2), 3, "explains it (150 %)"), ((-2, 0.3), (-2.05, 0.5), 0, "no effect shown"),
    ((-2, 0.3), (-3, 0.2), -1, "the difference grows by 50 %"), ((-0.1, 0.3), (1, 0.2), 1, "nothing to explain"),
    ((-2, 0.3), (-0.5, 0.2), -1, "control worse: the difference shrinks by 75 %, LC is no better")])
def test_a_cause_counts_by_what_its_removal_does(before, after, better, said):
    """Losses and gains alike; nothing is said without an interval that excludes zero, and a worse control explains nothing."""
    assert why.said(planted(*before), planted(*after), planted(better, 0.1)) == said


def test_draws_are_a_paired_bootstrap(house):
    """The first is of all images; the others are of images drawn with replacement, the same ones for every array; in percent."""
    record = fake_record("camvid-lite", "dsn")
    counts = np.random.default_rng(1).integers(1, 30, (12, 4, 4))
    first, second = draws(record, counts), draws(record, counts + 5 * np.eye(4, dtype=int))
    assert first[0] == 100 * metrics.miou(counts.sum(0)) and len(first) == 2001 and (second > first).all()
    plain = np.random.default_rng(2).integers(12, size=(2000, 12))
    spread = np.std([100 * metrics.miou(counts[row].sum(0)) for row in plain])
    assert np.std(first[1:]) == pytest.approx(spread, rel=0.1) and first[1:].mean() == pytest.approx(first[0], abs=spread)


def test_frames_of_a_video_are_drawn_in_blocks(house):
    """Neighbours that are alike carry less than their number: the interval of a video is wider, that of a set of photos is not."""
    photos, video = (fake_record("camvid-lite", name, data={"name": data}) for name, data in (("dsn", "photos"), ("irnet", "CamVid")))
    right = np.repeat(np.random.default_rng(0).integers(5, 60, 8), 10)  # stretches of ten like frames
    counts = np.stack([np.array([[r, 60 - r], [60 - r, r]]) for r in right])
    widths = [np.ptp(tables.interval(draws(record, counts))[1:]) for record in (photos, video)]
    assert 2 < widths[1] / widths[0] < 4, "about the root of ten"


def test_missing_runs_say_so(house):
    """With nothing but LC and DSN, every table renders, and each change is not run yet."""
    ev = evidence(dsn=0, lc_0p985=40)
    table, found = why.changes(ev), why.causes(ev)
    assert table.loc["lc-0.985", ("val", "over control")].startswith("+") and (table.loc["lc-halo-2", "val"] == why.MISSING).all()
    assert set(found["so"]) == {why.MISSING} and why.summary(found)[0].startswith("**Not run yet**\n\n- context missing")
    assert why.MISSING in why.account(ev)
    assert why.seeds(evidence("camvid", dsn=0, lc_0p985=40)).loc[("lc-0.985 over dsn", "val"), "seed 1"] == why.MISSING


def test_causes_and_summary(house):
    """A change that brings LC level with its control explains the difference; one that moves nothing shows no effect."""
    ev = evidence(dsn=40, lc_0p985=0, lc_halo_2=40, dsn_long=40, lc_long=0)
    found = why.causes(ev)
    so = found.reset_index().set_index(["run", "split"])["so"]
    assert so["lc-halo-2", "val"] == so["lc-halo-2", "test"] == "explains it (100 %)" and so["lc-long", "val"] == "no effect shown"
    lines = why.summary(found)
    assert lines[0].startswith("**Explains it, or part of it**\n\n- context missing at region borders (2 cells given back): val: explains it")
    assert lines[1] == "**No effect shown**\n\n- too short a cascade training"
    ev["lc-long"].arrays["confusions_test"] = ev["dsn-long"].arrays["confusions_test"]
    lines = why.summary(why.causes(ev))
    assert lines[1].startswith("**The splits disagree**\n\n- too short a cascade training: val: no effect shown; test: explains")


def test_account_adds_up(house):
    """What training and decisions change, and what windows cannot read, make the whole; all read from per-image counts."""
    ev = evidence(dsn=20, lc_0p985=0, study_context=0)
    lc, dsn = (ev[name].arrays["confusions_val"] for name in ("lc-0.985", "dsn"))
    ev["study-context"].values["study"] = STUDY
    ev["study-context"].arrays["confusions"] = np.stack([lc, lc, dsn] * 2)
    text = why.account(ev)
    total = why.words(why.gain(ev, "lc-0.985", "dsn", "val"))
    assert f"On val LC less the DSN is {total} points. Context that convolutions and poolings miss outside their region: {total}. What remains if" in text
    assert text.endswith("early decisions: +0.00 [+0.00, +0.00] (no effect shown).")
    assert "On test" not in text and "by clip" not in text
    against = why.context_table(ev["study-context"])["against zeros"]  # the first variant of each network has nothing to be compared with
    assert against.iloc[0] == "" and re.fullmatch(r"\+\d+\.\d\d \[\+.*, \+.*\]", against.iloc[2])


def test_seeds_have_a_mean(house):
    """Gain per seed, their mean, and how far they are apart."""
    ev = evidence("camvid", dsn=0, lc_0p985=40, **{"dsn_seed_1": 0, "lc_0p985_seed_1": 0})
    row = why.seeds(ev).loc["lc-0.985 over dsn", "test"]
    assert row["seed 1"] == "+0.00 [+0.00, +0.00]" and float(row["mean"].split()[0]) == pytest.approx(float(row["apart"]) / 2, abs=0.02)
    ev.records.update(evidence("camvid", initial=0, irnet=0).records)
    mean = why.seeds(ev).loc[("lc-0.985 over dsn", "val"), ["mean", "seed 0"]]
    found = verdicts.gains(ev)[0][ev.label]["val"]
    assert list(found.index) == ["LC - DSN, mean of 2 seeds", "LC - IRNet"] and found.iloc[0] == mean["mean"]
    frame = verdicts.gains(ev)[0]
    assert frame[ev.label]["val, by seed"].iloc[0] == f"{mean['seed 0'].split()[0]}, +0.00" and list(frame["paper"]["VOC12 val"]) == ["+1.21", "+1.69"]
    ev = evidence(dsn=0, lc_0p985=40, dsn_large=0, lc_large=40, lc_wide=40)
    found = verdicts.gains(ev)[0][ev.label]
    larger = tables.words(tables.gain(ev, "lc-large", "dsn-large", "val"))
    assert list(found.index) == ["LC - DSN", "LC - IRNet", "LC - DSN, images of their own size (lc-large; 8x9, 1.00 M parameters)"], "lc-wide lacks its DSN"
    assert found["val"].iloc[2] == larger and larger.startswith("+")


def test_what_clips_say(house):
    """LC less its DSN, by clip and between the last and the first, over the seeds that are here; nothing of a data set without clips."""
    ev = evidence(dsn=0, lc_0p985=0, lc_wide=0)
    assert why.by_clip(ev).empty
    better, same = 60 * np.eye(11, dtype=int), 10 + np.random.default_rng(0).integers(1, 9, (80, 11, 11))
    for name, val, last in (("dsn", 0, 0), ("lc-0.985", -1, 1)):
        ev[name].values["data"] = {**ev[name]["data"], "name": "CamVid"}
        ev[name].arrays["confusions_val"] = same[:30] + (1 + val) * better
        ev[name].arrays["confusions_test"] = same + last * (np.arange(80) > 61)[:, None, None] * better  # 62 images, then another drive
    table = why.by_clip(ev)
    assert list(table.index) == ["lc-0.985 less its DSN"], "lc-wide lacks its DSN"
    val, first, last, apart = (float(words.split()[0]) for words in table.iloc[0])
    assert val < 0 == first < last and apart == pytest.approx(last - val, abs=0.011) and " [-" not in table.iloc[0, 3]
    for name in ("dsn", "lc-0.985"):
        ev.records[f"{name}-seed-1"] = ev["dsn"]
    assert float(why.by_clip(ev).loc["lc-0.985 less its DSN, mean of 2 seeds"].iloc[0].split()[0]) == pytest.approx(val / 2, abs=0.011)
    for key, counts in (("", "confusions_val"), ("-test", "confusions_test")):  # zeros, a halo of 2, everything; of LC and of the DSN
        lc, dsn = (ev[name].arrays[counts] for name in ("lc-0.985", "dsn"))
        ev.records[f"study-context{key}"] = fake_record("camvid-lite", "study-context", study=STUDY)
        ev.records[f"study-context{key}"].arrays["confusions"] = np.stack([lc, dsn, dsn, lc, lc, lc])
        ev.records[f"study-context{key}"].values.update(experiment=f"study-context{key}", data={**ev["dsn"]["data"], "sha256": {key[1:] or "val": f"hash{key}"}})
    assert list(tables.sources(ev, ["study-context", "study-context-test"])["data"]) == ["hash", "hash-test"]
    table = why.by_clip(ev)
    rows = {name: table.loc[f"{name} less every cell computed"].iloc[0].split()[0] for name in (
        "LC's weights: zeros", "LC's weights: halo 2", "DSN's weights: zeros", "DSN's weights: halo 2")}
    assert float(rows.pop("LC's weights: zeros")) == val and set(rows.values()) == {"+0.00"}
    assert f"What missing context changes, by clip: between trained frames (val), {val:+.2f} [" in why.account(ev)


def test_the_recipe_without_balanced_classes_is_told(house):
    """On the first page, with its own word, by its mean over seeds where they are here; nothing where LC, DSN or IRNet was not trained so."""
    ev = evidence(initial=0, irnet=0, dsn=0, lc_0p985=0)
    told = lambda: [line for line in verdicts.answers(ev) if line.startswith("**And without class weights")]
    ev.records.update(evidence(dsn_unbalanced=0, lc_unbalanced=40).records)
    assert not told() and len(verdicts.answers(ev)) == 2
    ev.records.update(evidence(irnet_unbalanced=0).records)
    better = "1.00 M parameters (lc-unbalanced): on val more accurate than the DSN and IRNet; on test more accurate than the DSN and IRNet. "
    assert len(told()) == 1 and f"says nothing? Yes.** {better}The methods of the first by mIoU" in told()[0]
    ev.records.update(evidence(dsn_wide_unbalanced=0, lc_wide_unbalanced=0).records)
    wide = "1.00 M parameters (lc-wide-unbalanced): on val not shown to differ from the DSN; on test not shown to differ from the DSN. The methods of the first"
    assert f"says nothing? It depends on the network and the split.** {better}{wide}" in told()[0], "its IRNet is not here"
    del ev.records["lc-wide-unbalanced"]
    for seed in (1, 2):
        ev.records.update({f"{row}-unbalanced-seed-{seed}": fake_record("camvid-lite", f"{row}-unbalanced-seed-{seed}") for row in ("dsn", "irnet", "lc")})
    assert "says nothing? No difference shown.** 1.00 M parameters (lc-unbalanced, mean of 3 seeds): on val not" in told()[0]


def test_the_summary_holds_the_first_page_in_numbers(house, monkeypatch):
    """A row for the paper, one for each setting that is here, one for the full network; means over the seeds that are here; factors as spans over
    machines; a dash where nothing was run; procedural data apart from the paper's numbers, and nothing of a smoke run."""
    ev = evidence(dsn=0, lc_0p985=40, irnet=0, dsn_wide_unbalanced=0, lc_wide_unbalanced=40, dsn_wide_unbalanced_seed_1=0, lc_wide_unbalanced_seed_1=0)
    timed = lambda factors: [{"rho": rho, "speedup": v, "speedup_low": v, "speedup_high": v, "ideal": 3, "computed": [1, 0.5, 0.3], "dense_form": "folded"}
                             for rho, v in zip((0.985, 0.8), factors)]
    for split, counts in (("val", "sweep_confusions"), ("test", "sweep_confusions_test")):
        ev["lc-0.985"].arrays[counts] = np.stack([ev["dsn"].arrays[f"confusions_{split}"]] * 2)
    ev["lc-0.985"].values["sweep"] = [{"rho": rho, "miou": 0.5} for rho in (0.985, 0.8)]
    monkeypatch.setattr(speedups, "speed_files", lambda kind, *_: [
        {"device": where, "where": where, "key": ev["lc-0.985"]["key"], "rows": timed(factors)} for where, factors in
        {"network": [("old", (1.3, 2.1)), ("new", (1.4, 2.1))], "lc-0.985": [("old", (1.1, 0.9))]}.get(kind, ())])
    gained, faster = summary.summary(ev)
    assert gained.shape == faster.shape == (3, 4), "what has no accuracy, or no timing, has no row"
    table = pd.concat([gained, faster], axis=1)
    paper, small, wide, full = (row.dropna() for _, row in table.iterrows())
    assert list(paper) == ["+1.21", "+1.69", "1.63x", "2.62x", "2.00x at rho = 0.95"] and list(full) == ["1.30x to 1.40x", "2.10x"]
    assert small["LC - IRNet, points, test"] == tables.words(tables.gain(ev, "lc-0.985", "irnet", "test"))
    assert list(small[4:]) == ["1.10x [1.10, 1.10]", "0.90x [0.90, 0.90]", "1.10x at rho = 0.985", "1.10x at rho = 0.985"]
    assert wide["LC - DSN, points, val"] == verdicts.gains(ev)[0][ev.label]["val"].iloc[-1] and "LC - IRNet, points, val" not in wide
    assert list(table.index) == ["the paper: VOC12, 35.5 M parameters, Titan X", "with class weights, 1/4 of the paper's width (1.0 M), one seed: lc-0.985",
                                 "without class weights, 1/2 of the paper's width (1.0 M), 2 seeds: lc-wide-unbalanced",
                                 "speed alone: the paper's width and depth, untrained, its pixel shares (ideal 3.00x)"]
    ev.records["irnet-wide-unbalanced"] = fake_record("camvid-lite", "irnet-wide-unbalanced")
    assert summary.summary(ev)[0]["LC - IRNet, points, val"].iloc[2].endswith(", 1 of them"), "fewer seeds than of the DSN"
    shapes = Evidence(profile("shapes"), {name: fake_record("shapes", name, parameters=1_000_000) for name in ("dsn", "lc-0.985")})
    assert [list(frame.index)[0] for frame in summary.summary(shapes)] == [table.index[0], "without class weights, 1/8 of the paper's width (1.0 M), one seed: lc-0.985", *table.index[[0, 3]]]
    assert summary.summary(Evidence(profile("smoke"), {})) == []


def test_a_mean_over_seeds_draws_seeds():
    """Its first is the mean; seeds that differ widen the interval, seeds that agree do not; equal numbers of seeds are drawn alike, so differences are
    paired."""
    images = np.random.default_rng(0).normal(0, 0.1, 2001)
    apart, alike = (tables.over_seeds([images + shift for shift in shifts]) for shifts in ((-1, 0, 1), (0, 0, 0)))
    assert apart[0] == pytest.approx(images[0]) and np.allclose(alike, images)
    low, high = tables.interval(apart)[1:]
    assert low < -0.7 and high > 0.7 and np.ptp(tables.interval(alike)[1:]) < 0.5
    assert np.allclose(tables.over_seeds([images - 1 + 5, images + 5, images + 1 + 5]) - apart, 5)


def test_the_order_of_methods_says_where_it_is_not_clear(house):
    """By mIoU on each split, of all seeds where all are here; ~ between two whose difference includes zero."""
    ev = evidence(initial=0, irnet=0, dsn=0, lc_0p985=40)
    for name in ("irnet", "dsn", "lc-0.985"):
        for split in ev.splits:
            ev[name]["metrics"][split]["miou"] = metrics.miou(ev[name].arrays[f"confusions_{split}"].sum(0))
    assert "The methods by mIoU (~: no difference shown between neighbours): LC > IRNet ~ DSN (val, one seed); LC > IRNet ~ DSN (test, one seed); paper: LC > DSN > DSN + Dropout > IRNet > MC." in verdicts.answers(ev)[0]


def test_speed_at_equal_accuracy(house, monkeypatch):
    """The fastest rho below 1 at which a cascade is at most half a point under the DSN by its whole interval: what is fast and worse does not count, nor what
    may be worse; rho = 1 never counts; each cascade by itself, from its own file."""
    ev = evidence(initial=0, irnet=0, dsn=0, lc_0p985=0, lc_halo_4=0)
    rhos, same = [float(rho) for rho in tables.columns("1", "mIoU")], ev["dsn"].arrays["confusions_val"]
    wide = same + np.stack([np.diag([0, 0, 40 * sign]) for sign in (1, -1)] * 3)  # as good on the whole, and not image by image
    worse = same + 10 * np.roll(np.eye(3, dtype=int), 1, axis=1)
    for name, found in (("lc-0.985", [same, *[worse] * 7]), ("lc-halo-4", [same, same, same, wide, *[worse] * 4])):
        ev[name].arrays["sweep_confusions"] = np.stack(found)
        ev[name].values["sweep"] = [{"rho": rho, "miou": metrics.miou(counts.sum(0))} for rho, counts in zip(rhos, found)]
        ev[name].arrays["confusions_val"] = found[2]  # at 0.985, the rho of its training
    rows = [{"rho": rho, "speedup": v, "speedup_low": v, "speedup_high": v, "ideal": 2 * v, "computed": [1, 0.5, 0.3], "dense_form": "folded"} for rho, v in zip([None, *rhos], (1, 9, 1.3, 1.2, 1.6, 2, 2, 2, 3))]
    rows[3]["speedup"] += 0.2  # at 0.985: faster by the median, not by the lower quartile
    others = [{**row, "speedup": 7} for row in rows]
    monkeypatch.setattr(speedups, "speed_files", lambda kind, *_: [{"device": "a CPU", "where": "a CPU, as set", "key": ev[run]["key"], "rows": timed}
                        for run, timed in {"lc-0.985": [("lc-0.985", rows)], "lc-halo-4": [("lc-halo-4", rows), ("dsn", others)]}.get(kind, ())])
    answer, worst = verdicts.answers(ev)[2], tables.words(draws(ev["dsn"], worse) - draws(ev["dsn"], same)) + ", 1 seed"
    assert answer.startswith("**Is there a gain at equal accuracy? Yes.**") and ("*Equal*: the whole 95 % interval of LC - DSN lies above -0.5 points; the DSN has the same width and images. Of all timed cascades and rho below 1, chosen on the split that is named. On val the fastest is lc-halo-4 at rho = 0.995 (LC - DSN +0.00 [+0.00, +0.00], 1 seed): "
            "1.30x [1.30, 1.30] over folded, ideal 2.60x (a CPU, as set). "
            "On test the fastest is lc-0.985 at rho = 0.985 (LC - DSN +0.00 [+0.00, +0.00], 1 seed): 1.40x [1.20, 1.20] over folded, ideal 2.40x (a CPU, as set). The paper: 2.00x") in answer
    table = speedups.equal_accuracy(ev)
    assert speedups.fastest(table, "val") == "1.30x at rho = 0.995" and speedups.fastest(table.loc[["lc-0.985"]], "val") == "none shown equal"
    assert speedups.fastest(table, "test") == "1.40x at rho = 0.985" and table["equal (test)"].isna().sum() == 12, "not swept there, only its own rho"
    assert speedups.fastest(table.assign(**{"equal (test)": ["no", *[None] * 13]}), "test") is None, "not all were tested"
    loss = speedups.table(ev)[0]["LC - DSN, points (val)"]
    assert list(loss.xs("0.985", level="rho")) == ["+1.21", worst] and list(loss.xs("0.8", level="rho")) == ["-5.75", worst], "what the speed-up costs, beside it"
    assert list(table.xs("lc-halo-4")["equal (val)"]) == ["yes", "yes", *["no"] * 5] and list(table["stage 3, %"]) == [30] * 14
    for row in rows:
        row["speedup_low"] = 1
    assert "accuracy? No.**" in verdicts.answers(ev)[2], "the lower quartile counts"
    del ev.records["dsn"]
    assert len(speedups.answer(ev)) == 1 and speedups.equal_accuracy(ev).empty


def test_equal_accuracy_on_test_and_over_seeds(house, monkeypatch):
    """By the same rule on test, where a record is swept there; of more seeds the mean, whose interval draws seeds: one that loses makes it unequal."""
    ev = evidence("camvid-lite", initial=0, irnet=0, dsn=0, lc_0p985=0, dsn_wide=0, lc_wide_features=0)
    lc, (val, test) = ev["lc-wide-features"], (ev["dsn-wide"].arrays[f"confusions_{split}"] for split in ("val", "test"))
    worse = lambda counts: counts + 10 * np.roll(np.eye(3, dtype=int), 1, axis=1)
    lc.values["sweep"] = [{"rho": rho, "miou": 0.5} for rho in (0.995, 0.8)]
    lc.arrays.update(sweep_confusions=np.stack([worse(val), worse(val)]), sweep_confusions_test=np.stack([test, worse(test)]))
    rows = [{"rho": rho, "speedup": 2, "speedup_low": 2, "speedup_high": 2, "ideal": 3, "computed": [1, 0.5, 0.3], "dense_form": "OpenVINO"} for rho in (0.995, 0.8)]
    monkeypatch.setattr(speedups, "speed_files", lambda kind, *_: [{"device": "a CPU", "where": "a CPU", "key": lc["key"], "rows": rows}] if kind == "lc-wide-features" else [])
    said = speedups._equal(ev)[0]
    assert "No on val and yes on test.**" in said and "On val none is shown equal. On test the fastest is lc-wide-features at rho = 0.995 (LC - DSN +0.00 [+0.00, +0.00], 1 seed): 2.00x" in said
    shown = speedups.equal_accuracy(ev).iloc[0]
    assert shown["equal (val)"] == "no" and shown[speedups.LOSS["test"]] == "+0.00 [+0.00, +0.00], 1 seed" and shown[speedups.LOSS["val"]].startswith("-")
    for name, like in (("dsn-wide-seed-1", ev["dsn-wide"]), ("lc-wide-features-seed-1", lc)):
        ev.records[name] = fake_record("camvid-lite", name)
        ev.records[name].arrays.update(like.arrays)
    lost = tables.words(draws(lc, worse(test)) - draws(lc, test))
    lc.arrays["sweep_confusions_test"] = np.stack([worse(test)] * 2)
    assert ev["lc-wide-features-seed-1"].arrays["sweep_confusions_test"] is not lc.arrays["sweep_confusions_test"]
    mean = speedups.equal_accuracy(ev)[speedups.LOSS["test"]].iloc[0]
    assert mean.endswith(", 2 seeds") and float(mean.split()[0]) == pytest.approx(float(lost.split()[0]) / 2, abs=0.01) and "No.**" in speedups._equal(ev)[0]


def test_a_cascade_is_compared_with_its_own_dsn(house, monkeypatch):
    """The wide LC with the wide DSN, whatever the narrow one reaches."""
    ev = evidence(initial=0, irnet=0, dsn=40, lc_0p985=40, dsn_wide=0, lc_wide=0)
    for name in ("lc-0.985", "lc-wide"):
        ev[name].values["sweep"], ev[name].arrays["sweep_confusions"] = [{"rho": 0.8, "miou": 0.5}], ev["dsn-wide"].arrays["confusions_val"][None]
    rows = [{"rho": 0.8, "speedup": 2, "speedup_low": 2, "speedup_high": 2, "ideal": 3, "computed": [1, 0.5, 0.3], "dense_form": "OpenVINO"}]
    monkeypatch.setattr(speedups, "speed_files", lambda kind, *_: [{"device": "a CPU", "where": "a CPU", "key": ev[kind]["key"], "rows": rows}]
                        if kind in ("lc-0.985", "lc-wide") else [])
    table = speedups.equal_accuracy(ev)
    assert dict(zip(table.index.get_level_values(0), table["equal (val)"])) == {"lc-0.985": "no", "lc-wide": "yes"} and set(table["dense form"]) == {"OpenVINO"}
    assert "Yes.**" in speedups._equal(ev)[0] and "lc-wide at rho = 0.8" in speedups._equal(ev)[0]
    ev["lc-wide"].values["sweep"] = []
    assert "No.**" in speedups._equal(ev)[0] and "is named. On val none is shown equal. The paper" in speedups._equal(ev)[0]


@pytest.mark.parametrize("full, small, word, counts", [
    ((1.9, 2.9), (1.9, 2.9), "Yes.", (4, 4)), ((1.2, 1.5), (1.2, 1.5), "In direction, not in size.", (4, 0)), ((0.9, 0.8), (0.9, 0.8), "No.", (0, 0)),
    ((1.2, 1.5), (0.9, 1.1), "In part.", (3, 0)), ((0.8, 2.9), (0.9, 0.8), "In part.", (1, 1))])
def test_the_answer_on_speed(house, monkeypatch, full, small, word, counts):
    """Yes only where every row reaches the paper's factor, No where none gained; the factors as spans over the networks."""
    rows = {"network": full, "lc-0.985": small}
    monkeypatch.setattr(speedups, "speed_files", lambda kind, *_: [{"device": "that CPU", "where": "that CPU, as set", "rows": [
        {"rho": rho, "speedup": v, "speedup_low": v, "speedup_high": v, "ideal": 3} for rho, v in zip((0.985, 0.8), rows[kind])]}] if kind in rows else [])
    monkeypatch.setattr(speedups, "cascade_files", lambda ev, kind: speedups.speed_files(kind))
    monkeypatch.setattr(speedups, "_equal", lambda ev: [])
    answer = verdicts.answers(evidence(initial=0, irnet=0, dsn=0, lc_0p985=0))[1]
    assert answer.startswith(f"**Did the speed gain hold? {word}**") and re.findall(r"in (\d)(?: of 4|: \d)", answer) == [str(n) for n in counts]
    assert speedups.answer(Evidence(profile("smoke"), {})) == [], "a smoke run gives no verdict"
    spans = [" to ".join(f"{x:.2f}x" for x in sorted({*pair})) for pair in zip(full, small)]
    assert f": {spans[0]} at rho = 0.985 (paper: 1.63x), {spans[1]} at rho = 0.8 (paper: 2.62x)." in answer


def test_many_settings_are_one_sentence(house, monkeypatch):
    """Spans over the settings of a device, and in how many of them the network is faster; the table has a row for each; a claim needs all of them."""
    monkeypatch.setattr(speedups, "speed_files", lambda kind, *_: [{"device": "a GPU", "where": f"a GPU, batch {batch}", "rows": [
        {"rho": rho, "speedup": v, "speedup_low": v - 0.1, "speedup_high": v + 0.1, "ideal": 3, "dense_form": "folded"}
        for rho, v in ((0.985, 0.8 + 0.2 * batch), (0.8, 2.0))]} for batch in (1, 16) if kind == "network"])
    ev = evidence(initial=0, irnet=0, dsn=0, lc_0p985=0)
    assert verdicts.answers(ev)[1].startswith(
        "**Did the speed gain hold? In part.** Plain LC is faster than the fastest dense form of its network in 3 of 4 timings (lower quartile above 1; 4 are of the untrained full network) and reaches the "
        "paper's factor in 1: 1.00x to 4.00x at rho = 0.985 (paper: 1.63x), 2.00x at rho = 0.8 (paper: 2.62x).")
    table = speedups.table(ev)[0].xs("0.985", level="rho")
    assert [index.split(": ")[-1] for index in table.index] == ["the paper's frame rates, Titan X, VOC12", "a GPU, batch 1", "a GPU, batch 16"]
    assert list(table["speed-up"]) == ["1.63x", "1.00x [0.90, 1.10]", "4.00x [3.90, 4.10]"] and list(table["ideal"])[1:] == ["3.00x"] * 2
    monkeypatch.setattr(claims, "speed_files", speedups.speed_files)
    monkeypatch.setattr(speedups, "speed_files", lambda kind, *_: [{"where": kind, "key": "", "rows": [{"rho": 0.8, "speedup": 2, "speedup_low": 2, "speedup_high": 2, "ideal": 3, "dense_form": "folded"}]}])
    monkeypatch.setattr(speedups, "cascade_files", lambda ev, kind: speedups.speed_files(kind))
    monkeypatch.setattr(speedups, "equal_accuracy", lambda ev: pd.DataFrame())
    assert [len(frame) for frame in speedups.table(ev)] == [3 + len(speedups.PLAIN) + len(speedups.VARIANTS)]
    shapes = Evidence(profile("shapes"), {"dsn": fake_record("shapes", "dsn")})
    assert [list(frame.index.get_level_values(0)) for frame in speedups.table(shapes)][1] == [f"{kind}, test data (stand-in): {kind}" for kind in (*speedups.PLAIN, *speedups.VARIANTS)], "procedural data stay out of the paper's table"
    assert claims._fact("speed", "0.985", None)[0] == "not shown" and claims._fact("speed", "0.8", None)[0] == "in part"
    monkeypatch.setattr(claims, "speed_files", lambda _: [])
    assert claims._fact("speed", "0.985", None) == ("open", "not run")


def test_a_data_set_without_test_labels(house):
    """Tables, sentences and the README's block name val alone."""
    ev = evidence("camvid", initial=0, irnet=0, dsn=0, lc_0p985=40)
    for record in ev.records.values():
        del record.values["metrics"]["test"], record.arrays["confusions_test"]
    assert ev.splits == ("val",)
    shown = summary.block(ev) + " ".join(verdicts.answers(ev) + claims.sentences(ev, page="methods"))
    assert "on val" in shown and not any(word in shown for word in ("mIoU test", "on test", "(test)", "stand-in) test"))
    assert "below 1, judged there too, which flatters it: rho = 0.985" in claims._compare("peak", ev, ["dsn", "lc-0.985"], 1.2)[1]
    assert systems.systems(ev).loc["DSN", "LC - it, points"].startswith("+") and len(systems.by_class(ev)) == 3
    assert why.changes(ev).loc["lc-0.985", ("val", "over control")].startswith("+")


def test_where_lc_differs(house):
    """A class that gains has an interval above zero, one without a difference an interval around it."""
    ev = evidence(dsn=0, lc_0p985=0)
    more = np.stack([np.diag([0, 90, sign * 5]) for sign in (1, -1)] * 3)  # b gains in every image, c in every other one
    ev["lc-0.985"].arrays["confusions_test"] = ev["dsn"].arrays["confusions_test"] + more
    table = why.by_class(ev, "test")
    assert table.loc["b", "low"] > 0 and table.loc["c", "low"] < 0 < table.loc["c", "high"] and table.loc["a", "LC - DSN"] == 0


@pytest.mark.parametrize("name", ["3", "4", "5", "6", "slides"])
def test_tables_of_systems(house, name):
    """Rows are the paper's; a run that is there is named, one that is not says so, quoted rows are marked; no system, no crash."""
    ev = evidence(dsn=0, lc_0p985=40)
    frame = systems.table(ev, name)[0]
    ours = frame[ev.label]["run"]
    assert list(frame.index) == list(tables.printed(name).index) and ours.notna().all()
    assert "SegNet" not in frame.index or ours["SegNet"] == "segnet: not run yet"
    assert "LC" not in frame.index or ours["LC"] == "lc-0.985"
    assert "Adelaide" not in frame.index or ours["Adelaide"] == "published row only"
    if name in "45":
        assert list(frame["paper"]) == [f"Table {name}, {'VOC12' if name == '4' else 'Cityscapes'} test"]
    if name == "6":
        assert list(frame["paper"].loc["IRNet-LC multi-scale CRF", ["COCO", "multi-scale", "CRF"]]) == ["no", "yes", "yes"]


def test_times_reach_the_tables(house):
    """Milliseconds come from the systems' file of the device; a study stands for its last variant of LC; Fig. 7a gets its outside points."""
    folder = house / "results" / "camvid-lite" / "bench"
    folder.mkdir(parents=True)
    for kind in ("lc-wide", "lc-wide-features", "halo-4", "features"):
        (folder / f"{kind}-test.json").write_text(json.dumps({"kind": kind, "halo": 4 if kind == "halo-4" else 0, "device": "test", "dtype": "float32", "batch": 1, "size": [1, 1], "rows": [{}]}))
    assert [[bench["kind"] for bench in speedups.speed_files(kind, "camvid-lite")] for kind in ("lc-wide", "halo", "features")] == [["lc-wide"], ["halo-4"], ["features"]]
    rows = [{"system": "segnet", "ms": 8.0, "ms_low": 7, "ms_high": 9, "parameters": 5}]
    (folder / "systems-test.json").write_text(json.dumps({"kind": "systems", "device": "test", "dtype": "float32", "batch": 1, "size": [1, 1], "rows": rows}))
    ev = evidence(dsn=0, lc_0p985=40)
    ev.records["segnet"] = fake_record("camvid-lite", "irnet", parameters=5_000_000)
    ev.records["study-crf"] = fake_record("camvid-lite", "study-context", study={"variants": ["LC", "LC, CRF", "LC, CRF, flip", "DSN"], "miou": [0.5, 0.6, 0.65, 0.7], "seconds": [1, 2, 3, 4]})
    row = systems.table(ev, "3")[0][ev.label].loc["SegNet"]
    assert (row["ms"], row["images/s"], row["M parameters"]) == (8, 125, 5)
    poster = "full width, random weights"
    assert systems.table(ev, "poster")[0][poster].isna().all(axis=None)
    (house / "results" / "bench").mkdir()
    (house / "results" / "bench" / "poster-test.json").write_text(json.dumps({"kind": "poster", "device": "test", "dtype": "float32", "batch": 1, "size": [1, 1], "rows": [{**rows[0], "system": "vgg16", "ms": 20.0}]}))
    assert list(systems.table(ev, "poster")[0][poster].loc["VGG16"]) == [5e-6, 20, 50]
    assert list(systems.table(ev, "6")[0][ev.label].loc["IRNet-LC multi-scale CRF", ["run", "mIoU val"]]) == ["study-crf: LC, CRF", 60]
    bench = {"experiment": "lc-0.985", "device": "test", "rows": [{"rho": rho, "ms": 1, "ms_low": 1, "ms_high": 1, "speedup": 1, "stage_ms": [1], "dense_form": "folded", "region_form": "PyTorch"}
                                                                  for rho in (None, *map(float, tables.columns("1", "mIoU")))]}
    points = speedups.speed_points(ev, bench)
    assert list(points)[-1] == "segnet" and points["segnet"].loc["segnet", "ms"] == 8 and len(points) == 3
    assert len(speedups.speed_points(ev, {**bench, "device": "another"})) == 2


def test_border_table(house):
    """What is lost lies where LC is right less often than the DSN; shares add up to all of it."""
    ev = evidence(dsn=0)
    one = np.array([[80, 70, 70, 70], [10, 4, 7, 8], [10, 9, 9, 9]])
    ev.records["study-border"] = fake_record("camvid-lite", "study-context", study={"depths": [1, 3], "networks": ["LC", "all", "DSN"]})
    ev["study-border"].arrays["counts"] = np.stack([one] * 5)
    table = why.border(ev)
    assert list(table.index) == ["decided in stage 1", "1 to 2 cells deep", "3 cells deep and more"] and list(table["share of all pixels"]) == [80, 10, 10]
    assert table.loc["1 to 2 cells deep", ["LC right", "all right", "DSN right", "LC - DSN", "share of what LC loses"]].tolist() == [40, 70, 80, "-40.00 [-40.00, -40.00]", 100]
    ev["study-border"].arrays["counts"] = np.stack([one * [[1], [1], [0]]] * 5)
    assert list(why.border(ev).index) == ["decided in stage 1", "1 to 2 cells deep"], "no row without pixels"


def test_sources_of_the_page(house):
    """Every record that its tables come from, with controls and seeds; none of another page."""
    ev = evidence(dsn=0, lc_0p985=0, lc_no_hs=0, dsn_no_hs=0, dsn_seed_1=0, dsn_dropout=0, study_crf=0)
    assert why.used(ev) == ["dsn", "lc-0.985", "lc-no-hs", "dsn-no-hs", "dsn-seed-1"]


def test_easy_pixels_count_from_every_cell(house):
    """The loss on easy pixels is one change of the run that computes every cell, not a second one of plain LC."""
    found = why.causes(evidence(dsn=40, lc_0p985=0, lc_everywhere=20, lc_easy=20))
    rows = found[found["run"] == "lc-easy"]
    assert (rows["moved by"] == "+0.00 [+0.00, +0.00]").all() and (rows["so"] == "no effect shown").all()
    assert (found[found["run"] == "lc-everywhere"]["so"] != rows["so"].iloc[0]).all()

"""Records, configuration and tables: what names a run, what makes it stale, and what may stand beside the paper."""
import json
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from lc import config, experiments, paths, records
from lc.report import claims, tables, verdicts
from lc.config import DataConfig, ModelConfig, Phase, RunConfig, TrainConfig, from_dict, override
from lc.errors import InputError
from lc.experiments import PROFILES, catalogue
from lc.paper import all_published, published
from tests.conftest import fake_record


def test_key_names_every_setting():
    """Any changed setting gives another key, nested and parent runs included; equal settings the same."""
    run = catalogue("camvid-lite")["lc-0.985"].run
    assert run.key() == replace(run).key() == from_dict(RunConfig, json.loads(json.dumps(asdict(run)))).key()
    changed = [replace(run, seed=1), replace(run, model=replace(run.model, halo=2)), replace(run, start=replace(run.start, seed=1)),
               replace(run, train=replace(run.train, ema=0.9)), override(run, ["phases.0.rho=0.97"])]
    assert len({r.key() for r in [run, *changed]}) == 6


def test_no_two_experiments_share_a_run():
    """Every training of every catalogue is another run; what an entry compares with is published."""
    for name in PROFILES:
        entries = catalogue(name)
        trained = [e.run.key() for e in entries.values() if not e.study]
        assert len(set(trained)) == len(trained)
        assert all(published(*cell).value is not None for e in entries.values() for cell in e.cells)


def test_larger_runs_are_changed_in_one_thing_and_take_longer():
    """Where the profile shrinks images and network: images of their own size, twice the channels; elsewhere neither."""
    entries = catalogue("camvid-lite")
    plain, large, wide = (entries[name].run for name in ("lc-0.985", "lc-large", "lc-wide"))
    assert replace(large, data=plain.data, train=plain.train, start=plain.start) == plain and large.data.scale == 1 and large.train.crop == (360, 480)
    assert replace(wide, model=plain.model, start=plain.start) == plain and wide.model.width == wide.start.model.width == 2 * plain.model.width
    first = entries["initial-pretrained"].minutes
    assert entries["initial-large"].minutes == pytest.approx(4 * first) and entries["initial-wide"].minutes == pytest.approx(2 * first)
    assert not any({"lc-large", "lc-wide"} & set(catalogue(name)) for name in ("smoke", "shapes", "camvid", "voc12"))


@pytest.mark.parametrize("setting, message", [
    ("train.batchsize=4", "unknown setting 'train.batchsize'"), ("train.batch_size=x", "train.batch_size must be int, got 'x'"),
    ("phases.0.rho=1.5", r"rho must be in \[0, 1\], got 1.5"), ("phases.7.rho=1", "unknown setting 'phases.7.rho'"),
    ("model.blocks=[1,2]", "model.blocks must be a list like"), ("train.flip=1", "train.flip must be bool, got 1"), ("seed", "a setting looks like seed=VALUE"),
    ("train.optimizer=adam", "train.optimizer must be one of adamw, sgd, got 'adam'"), ("model.reading=one", "model.reading must be one of zero, dense"),
    ("data=camvid", r"data must be settings by name \(name, scale, limit, ...\), got 'camvid'"), ("start={}", r"start must be settings by name \(profile, data"), ("phases=[1]", r"phases\[0\] must be"),
    ("phases=[]", "phases must be a list like"), ("phases.0.heads=[]", "heads must be a list like"), ("phases.0.heads=[0]", r"heads\[0\] must be from 1 to 3, got 0"),
    ("phases.0.stages=[7]", "stages.* must be from 1 to 3, got 7"), ("phases.0.lr=-1", "lr must be from 1e-09 to 1000, got -1.0"), ("phases.0.lr=NaN", "lr must be from .* got nan"),
    ("train.crop=[0,0]", r"train.crop\[0\] must be 1 or more, got 0"), ("train.scales=[0,0]", "train.scales.* must be from"), ("train.ema=1.0", "train.ema must be from 0 to 0.9999, got 1.0"),
    ("model.head_kernels=[2,2]", r"model.head_kernels\[0\] must be one of 1, 3, 5, 7, got 2"), ("train.jitter=-1", "train.jitter must be 0 or more"), ("data.scale=0", "data.scale must be from"),
])
def test_bad_settings_are_named(setting, message):
    """Unknown names, wrong types and impossible values say which, and what is allowed."""
    with pytest.raises(InputError, match=message):
        override(catalogue("smoke")["initial"].run, [setting])


def test_a_new_setting_renames_no_record(monkeypatch):
    """Fields at their default do not enter the key, so adding one later keeps every record's name."""
    run = RunConfig("p", DataConfig(), ModelConfig(), TrainConfig(), (Phase(),))
    assert run.key() == RunConfig("p", DataConfig(), ModelConfig(halo=0), TrainConfig(batch_size=TrainConfig.batch_size), (Phase(epochs=Phase.epochs),)).key()
    assert config._changed(run.model) == {} and config._changed(replace(run.model, halo=1)) == {"halo": 1}


def test_records_are_whole_and_read_back(house):
    """What was written is read; the experiment is then not missing; nothing temporary stays; a damaged record says so."""
    entry = catalogue("smoke")["dsn"]
    assert records.find(entry) is None and len(records.missing("smoke")) == len(catalogue("smoke"))
    written = fake_record("smoke", "dsn")
    found = records.find(entry)
    assert found.values == json.loads(json.dumps(written.values)) and found["tier"] == "smoke" and found["config"]["rho"] == 1
    assert found.arrays["confusions_val"].shape == (6, 3, 3) and found.history[0]["epoch"] == 1
    assert [e.name for e in records.missing("smoke")].count("dsn") == 0 and not list(house.rglob("*.tmp"))
    found.path.write_text("{")
    with pytest.raises(InputError, match="is not JSON .*; delete it and run"):
        records.find(entry)


def test_an_interrupted_write_leaves_no_record(house, monkeypatch):
    """If the last step fails, the experiment is still missing."""
    monkeypatch.setattr(records.json, "dumps", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fake_record("smoke", "dsn")
    monkeypatch.undo()
    assert not list((house / "results").rglob("*.json"))


def test_stale_and_outdated_are_said(house, monkeypatch):
    """Other code: stale, with both hashes, and still shown. Other settings: not used, and listed."""
    fake_record("smoke", "dsn")
    entry = catalogue("smoke")["dsn"]
    assert records.find(entry).stale == ""
    monkeypatch.setattr(records, "source_hash", lambda *more: "fedcba9876")
    assert records.find(entry).stale == "made by source 0123456789, source now fedcba9876"
    other = replace(entry, run=replace(entry.run, seed=9))
    assert records.find(other) is None and [p.name for p in records.outdated(other)] == [records.record_path(entry).name]


def test_source_hash_sees_code_but_not_comments():
    """A changed number or operator changes the hash; comments, docstrings and layout do not."""
    import ast
    skeleton = lambda text: records._skeleton(ast.parse(text))
    base = skeleton('def f(x):\n    "doc"\n    return x + 1\n')
    assert base == skeleton('# note\ndef f(x):\n    """other"""\n    return (x +\n            1)  # why\n')
    assert base != skeleton('def f(x):\n    "doc"\n    return x + 2\n') and base != skeleton('def f(x):\n    "doc"\n    return x - 1\n')
    assert len(records.source_hash()) == 10


@pytest.mark.parametrize("profile, allowed", [("smoke", False), ("shapes", False), ("camvid-lite", True)])
def test_only_real_evidence_stands_beside_the_paper(house, profile, allowed):
    """Smoke and procedural numbers are kept out of the columns next to the paper's; pages get two tables instead."""
    for name in ("initial", "dsn", "lc-0.985"):
        fake_record(profile, name)
    ev = tables.evidence(profile)
    shown = tables.methods(ev)
    heads = [set(frame.columns.get_level_values(0)) for frame in shown]
    assert heads == ([{"paper", "test data 8x9 (stand-in)"}] if allowed else [{"paper"}, {ev.label}])


def test_tables_and_verdicts_from_records(house):
    """Numbers in tables and sentences are those of the records and of the published file; missing runs stay empty."""
    for name, shift in (("initial", 0), ("dsn", 0), ("lc-0.985", 40), ("irnet", 0)):
        fake_record("camvid-lite", name, shift)
    ev = tables.evidence("camvid-lite")
    table = tables.methods(ev)[0]
    assert table.loc["LC", ("paper", "VOC12 val")] == published("2", "LC", "mIoU").value
    assert table.loc["LC", (ev.label, "val")] == pytest.approx(90) and pd.isna(table.loc["MC", (ev.label, "val")])
    gain = verdicts.difference(ev, "lc-0.985", "dsn")
    assert gain.low > 0 and gain.verdict(+1) == "reproduced" and gain.verdict(-1) == "not" and gain.verdict(+50) == "in part"
    same = verdicts.difference(ev, "irnet", "dsn")
    assert same.value == 0 and same.verdict(+1) == "not shown" and same.verdict(-0.07, effect=False) == "reproduced"
    wide = verdicts.Difference(0.1, -2, 2, 9, "val")
    assert wide.verdict(0.0, effect=False) == "not shown" and gain.verdict(0.0, effect=False) == "not"
    sentences, val = claims.sentences(ev, page="methods"), verdicts.difference(ev, "lc-0.985", "dsn", "val")
    assert len(sentences) == 3 and sentences[1] == (
        f"*LC is more accurate than deep supervision alone (DSN)* (Sec. 4.1; Table 2): {val}; {gain}; paper +1.21. **Reproduced**.")
    assert claims.sentences(ev, page="difficulty") == ["Smoke runs, or runs are missing: no verdict."]
    sources = tables.sources(ev)
    assert list(sources.index) == ["initial", "dsn", "lc-0.985", "irnet"] and "records/dsn-" in sources.loc["dsn", "record"]
    with pytest.raises(InputError, match="no record of camvid-lite/mc; make it with `make reproduce PROFILE=camvid-lite`"):
        ev["mc"]


def test_means_over_seeds(house):
    """Table 2 and its sentences have a mean where all seeds are here, and none where one is missing."""
    for seed, shift in (("", 20), ("-seed-1", 40), ("-seed-2", 0)):
        fake_record("camvid-lite", f"lc-0.985{seed}", shift), fake_record("camvid-lite", f"dsn{seed}", 0)
    fake_record("camvid-lite", "mc", 0), fake_record("camvid-lite", "mc-seed-1", 0)
    ev = tables.evidence("camvid-lite")
    means = tables.methods(ev)[0][ev.label]["test, mean of 3 seeds"]
    assert means["LC"] == pytest.approx(np.mean([tables.percent(ev[name], "test") for name in tables.of_seeds(ev, "lc-0.985")])) and pd.isna(means["MC"])
    mean, alone = verdicts.difference(ev, "lc-0.985", "dsn", "val"), verdicts.difference(ev, "lc-0.985", "mc", "val")
    assert mean.value == pytest.approx(np.mean([d[0] for d in tables.seed_gains(ev, "lc-0.985", "dsn", "val").values()])) and mean.seeds == 3
    assert alone.value == pytest.approx(tables.seed_gains(ev, "lc-0.985", "mc", "val")[0][0]) and alone.seeds == 1, "a seed is missing"
    assert verdicts.difference(ev, "lc-0.985", "irnet") is None
    number = claims.claims(ev).set_index("claim").loc["LC is more accurate than deep supervision alone (DSN)", "number"]
    assert number == f"{mean}; {verdicts.difference(ev, 'lc-0.985', 'dsn')}; paper +1.21" and "mean of 3 seeds" in number


def test_published_addresses():
    """A cell is found by address; a wrong one names its neighbours."""
    assert published("2", "LC", "mIoU").place == "Table 2" and len(all_published()) > 500
    with pytest.raises(InputError, match="no published number at table '2', row 'LCC'.*LC/mIoU"):
        published("2", "LCC", "mIoU")


def test_timings_that_are_missing(house):
    """Of a profile's cascades and systems; another seed's timing is not the run's, nor one of a run whose name only begins alike."""
    folder = paths.results("camvid-lite") / "bench"
    folder.mkdir(parents=True)
    large = [f"lc-{what}{key}" for what in ("large", "wide", "unbalanced") for key in ("", "-features", "-halo-2")]
    large += [f"lc-{what}-unbalanced{key}" for what in ("wide", "full") for key in ("", "-features")] + ["lc-full", "lc-full-halo-2"]
    assert records.bench_missing("camvid-lite") == ["lc-0.985", "lc-halo-1", "lc-halo-2", "lc-halo-4", "lc-features", *large, "systems"]
    assert not set(large) & set(records.bench_missing("camvid"))
    for kind in ("lc-0.985", "lc-halo-2-seed-1", "lc-halo-4", "lc-wide-features"):
        (folder / f"{kind}-a-cpu.json").write_text(json.dumps({"kind": kind}))
    large.remove("lc-wide-features")
    assert records.bench_missing("camvid-lite") == ["lc-halo-1", "lc-halo-2", "lc-features", *large, "systems"]


def test_larger_runs_where_there_is_something_to_enlarge():
    """Images that have their own size already are not trained on twice; the paper's network has profile camvid's rates in every training."""
    lite, full = experiments.profile("camvid-lite"), experiments.profile("camvid")
    names = [entry.name for entry in experiments._larger(replace(lite, data=full.data))]
    assert "initial-wide" in names and "lc-full" in names and "initial-large" not in names and not experiments._larger(full)
    entries = {entry.name: entry for entry in experiments._larger(lite)}
    initial, dsn, lc = (entries[f"{row}-full"] for row in ("initial", "dsn", "lc"))
    assert [entry.run.phases[0].lr for entry in (initial, dsn, lc)] == [full.lr, full.cascade_lr, full.cascade_lr] and lc.run.start == dsn.run.start == initial.run
    assert lc.run.model == full.model and (dsn.run.rho, lc.run.rho) == (1.0, 0.985) and lc.control == dsn.name == "dsn-full"
    for row in ("initial", "dsn", "lc"):
        plain, wide = (entries[f"{row}-{key}"].run for key in ("unbalanced", "wide-unbalanced"))
        assert plain.train.balance == wide.train.balance == "none" != lite.train.balance and plain.model == lite.model
        assert wide.model == entries[f"{row}-wide"].run.model != plain.model
        paper, balanced = (entries[f"{row}-full{key}"].run for key in ("-unbalanced", ""))
        assert paper.train == plain.train and (paper.model, paper.phases) == (balanced.model, balanced.phases)


def test_tables_1_and_2_without_balanced_classes(house):
    """Every training of the two tables once more, changed in nothing else, in one chain: what starts from initial weights starts from such; found
    under the names of the balanced ones, and labelled. None where the profile does not balance."""
    entries = experiments.catalogue("camvid-lite")
    names = [name for name, entry in entries.items() if (entry.cells or name == "initial") and {place[0] for place in entry.cells} <= {"1", "2"}]
    assert len(names) == 12 and "mc" in names
    for name in names:
        plain = entries["lc-unbalanced" if name == "lc-0.985" else f"{name}-unbalanced"].run
        config = lambda run: json.loads(json.dumps(asdict(run)).replace('"balance": "median"', '"balance": "none"'))
        assert config(plain) == config(entries[name].run) and json.dumps(asdict(plain)).count('"balance": "none"') == (
            json.dumps(asdict(plain)).count('"balance": ')), name
    assert not any("unbalanced" in name for name in experiments.catalogue("voc12"))
    found = {name: fake_record("camvid-lite", name) for name in ("dsn", "dsn-unbalanced", "lc-0.970-unbalanced", "lc-unbalanced", "lc-unbalanced-seed-1", "lc-unbalanced-features")}
    ev = tables.Evidence(experiments.profile("camvid-lite"), found)
    assert {name: record.experiment for name, record in ev.unbalanced.records.items()} == {
        "dsn": "dsn-unbalanced", "lc-0.970": "lc-0.970-unbalanced", "lc-0.985": "lc-unbalanced", "lc-0.985-seed-1": "lc-unbalanced-seed-1", "lc-features": "lc-unbalanced-features"}
    assert ev.unbalanced.label == "test data 8x9 (stand-in, without class weights)" and ev.label == "test data 8x9 (stand-in)"
    assert list(tables.rho_runs(ev.unbalanced)) == ["1", "0.985", "0.970"]


def test_another_seed_is_that_of_all_a_run_begins_with():
    """Nothing else is changed: neither where it starts, nor whose shares of labels it drops."""
    entries, plain = experiments.catalogue("camvid-lite"), lambda run: json.dumps(asdict(run))
    found = {name: name.split("-seed-") for name in entries if "-seed-" in name}
    assert len(found) == 2 * 23 and "dsn-dropout-seed-1" in found
    timed = [name for name, (of, _) in found.items() if of in experiments.CASCADES]
    assert "lc-0.985-seed-1" in timed and all(entries[name].sweep for name in timed), "what is timed is evaluated at every rho"
    for name, (of, seed) in found.items():
        assert plain(entries[name].run) == plain(entries[of].run).replace('"seed": 0', f'"seed": {seed}'), name

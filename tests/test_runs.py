"""From the catalogue to records: what waits for what, and what an error leaves. Two at a time for real: tests/test_book.py."""
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import psutil
import pytest
import torch

from conftest import fake_record
from lc import predict, records, runs, studies
from lc.__main__ import main
from lc.config import override
from lc.errors import InputError
from lc.experiments import catalogue

CPU = torch.device("cpu")


@pytest.fixture
def made(monkeypatch):
    """Names in the order in which they are made; nothing is trained."""
    order = []
    monkeypatch.setattr(runs, "execute", lambda entry, *rest: order.append(entry.name))
    return order


@pytest.mark.parametrize("profile", ["smoke", "camvid-lite", "voc12"])
def test_a_run_waits_for_what_it_needs(house, made, profile):
    """Given backwards, every run still comes behind its start, its rates of dropout, or the weights that it studies; each once."""
    entries = catalogue(profile)
    runs.run_all([*entries.values()][::-1], None, CPU)
    assert sorted(made) == sorted(entries)
    assert all(runs.needs(entries[name]) <= set(made[:position]) for position, name in enumerate(made))
    assert runs.needs(entries["study-border"]) == {"lc-0.985", "dsn"} and runs.needs(entries["dsn-dropout"]) == {"initial", "lc-0.985"}
    assert runs.needs(entries["crf-rnn"]) == {"fcn8s"} and not runs.needs(entries["irnet"])


def test_a_start_without_weights_is_made_first(house, made):
    """Its weights are not committed and not here: once, however many start from it; nothing is added where they are."""
    entries = catalogue("smoke")
    wanted = [entries["vgg16-lc"], entries["vgg16-dsn"]]
    runs.run_all(wanted, None, CPU)
    assert made == ["vgg16-initial", "vgg16-lc", "vgg16-dsn"]
    weights = runs.paths.checkpoints("smoke") / f"{records.stem('vgg16-initial', entries['vgg16-initial'].run)}.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()
    made.clear()
    runs.run_all(wanted, None, CPU)
    assert made == ["vgg16-lc", "vgg16-dsn"]


def test_what_a_study_or_dropout_needs_is_made_first(house, made):
    """Weights for a study, a record for the shares of labels that survive dropout."""
    entries = catalogue("smoke")
    runs.run_all([entries["study-border"]], None, CPU)
    assert made == ["initial", "dsn", "lc-0.985", "study-border"]
    made.clear()
    fake_record("smoke", "lc-0.985")
    runs.run_all([entries["dsn-dropout"]], None, CPU)
    assert made == ["initial", "dsn-dropout"]


def test_a_start_that_no_run_gives(house):
    """Settings of the start that no entry of the catalogue has: named, with what to do."""
    entry = catalogue("smoke")["dsn"]
    changed = replace(entry, run=override(entry.run, ["start.model.halo=3"]))
    with pytest.raises(InputError, match="a run can begin only with one that profile smoke lists; leave out what changes its start"):
        runs.with_needed([changed])


def test_a_run_asked_for_by_name_is_made_where_its_weights_are_not_here(house, made, capsys):
    """A clone has records of runs whose weights are not committed: then `lc run NAME` makes them, as `lc predict` advises; without a name nothing is missing."""
    for entry in catalogue("smoke").values():
        fake_record("smoke", entry.name)
    weights = runs.paths.results("smoke") / "weights" / f"{records.stem('initial', catalogue('smoke')['initial'].run)}.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()
    (runs.paths.results("smoke") / "bench").mkdir()
    assert main(["run", "--profile", "smoke", "--device", "cpu", "dsn", "initial"]) == 0 and made == ["dsn"]
    made.clear()
    assert main(["run", "--profile", "smoke", "--device", "cpu", "initial"]) == 0 and not made
    assert "no run is missing" in capsys.readouterr().out


@pytest.mark.parametrize("runs_asked, seen", [(1, []), (2, [2])])
def test_one_run_has_all_cores(house, made, monkeypatch, runs_asked, seen):
    """Processes are made for as many runs as there are to make, not for more."""
    asked = []
    monkeypatch.setattr(runs, "ProcessPoolExecutor", lambda jobs, *rest: asked.append(jobs) or ThreadPoolExecutor(jobs))
    runs.run_all([*catalogue("smoke").values()][:runs_asked], None, CPU, jobs=4)
    assert asked == seen and len(made) == runs_asked


def test_an_error_stops_what_has_not_begun(house, monkeypatch):
    """The error comes through, and no run is begun after it."""
    begun = []

    def fails(entry, *rest):
        begun.append(entry.name)
        if entry.name == "dsn":
            raise InputError("no such file")

    monkeypatch.setattr(runs, "execute", fails)
    with pytest.raises(InputError, match="no such file"):
        runs.run_all([*catalogue("smoke").values()], None, CPU)
    assert begun == ["initial", "dsn"]


def test_one_run_at_a_time_hears_of_an_interrupt(house, monkeypatch):
    """It is made by the thread that called, the one that Ctrl-C reaches."""
    threads = []
    monkeypatch.setattr(runs, "execute", lambda *_: threads.append(threading.current_thread()))
    runs.run_all([catalogue("smoke")["initial"]], None, CPU)
    assert threads == [threading.main_thread()]


def test_two_processes_do_not_make_one_run(house):
    """The second says who is at work, and touches nothing; once the first has ended it may."""
    entry = catalogue("smoke")["initial"]
    folder = runs.paths.checkpoints("smoke") / records.stem("initial", entry.run)
    folder.mkdir(parents=True)
    holds = "import sys, time; from pathlib import Path; from lc.machine import alone_in\nwith alone_in(Path(sys.argv[1])): print(1, flush=True), time.sleep(300)"
    with subprocess.Popen([sys.executable, "-c", holds, folder], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        try:
            with pytest.raises(InputError, match=f"another process is at work in {folder}; wait for it"):
                runs.execute(entry, None, CPU)
        finally:
            other.kill()
    with pytest.raises(BlockingIOError, match="no more processes"), runs.alone_in(folder):
        assert not list(folder.iterdir())
        raise BlockingIOError("no more processes")


def test_splits_are_shared():
    """All runs of a process read a split once."""
    data = catalogue("smoke")["initial"].run.data
    assert runs._split(data, "val", None) is runs._split(data, "val", None) is not runs._split(data, "test", None)


def test_weights_that_are_committed_are_replaced(house):
    """A run whose weights lie in results, where `weights_path` looks first, writes them there, though its entry is not published; else into
    checkpoints. Images of another data set than the profile's are no examples of it."""
    entry = catalogue("smoke")["irnet"]
    entry = replace(entry, run=replace(entry.run, phases=entry.run.phases[:1], data=replace(entry.run.data, limit=6)))
    assert runs.execute(entry, None, CPU)["weights"] is None and not (house / "results/smoke/examples.npz").exists()
    trained = runs.weights_path(entry.name, entry.run)
    old = house / "results/smoke/weights" / trained.name
    old.parent.mkdir()
    old.write_bytes(b"older weights")
    assert runs.execute(entry, None, CPU)["weights"] == old.name and runs.weights_path(entry.name, entry.run) == old
    assert old.read_bytes() == trained.read_bytes()


def test_weights_and_record_are_replaced_together(house, monkeypatch):
    """A run that is made again and cut off while it is evaluated leaves the earlier weights beside the earlier record, and can be gone on with."""
    entry = catalogue("smoke")["irnet"]
    entry = replace(entry, run=replace(entry.run, phases=entry.run.phases[:1], data=replace(entry.run.data, limit=6)))
    path = house / "checkpoints/smoke" / f"{records.stem(entry.name, entry.run)}.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"earlier weights")
    with monkeypatch.context() as patch:
        patch.setattr(runs, "evaluate", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            runs.execute(entry, None, CPU)
    assert runs.weights_path(entry.name, entry.run).read_bytes() == b"earlier weights" and records.find(entry) is None
    runs.execute(entry, None, CPU)
    assert runs.weights_path(entry.name, entry.run).read_bytes() != b"earlier weights" and records.find(entry)


def test_a_timed_cascade_is_swept_on_both_splits(house):
    """Its rho is chosen on val and told on test; other runs are swept on val alone. At the run's own rho both are what the run is evaluated at."""
    found = {}
    for name in ("lc-0.985", "lc-0.900"):
        entry = catalogue("smoke")[name]
        small = replace(entry.run, start=None, phases=entry.run.phases[:1], data=replace(entry.run.data, limit=6))
        found[name] = runs.execute(replace(entry, run=small), None, CPU)
    timed, rhos = found["lc-0.985"], [sweep["rho"] for sweep in found["lc-0.985"]["sweep"]]
    for split, name in (("val", "sweep_confusions"), ("test", "sweep_confusions_test")):
        assert len(timed.arrays[name]) == len(rhos) == 8
        np.testing.assert_array_equal(timed.arrays[name][rhos.index(0.985)], timed.arrays[f"confusions_{split}"])
    assert "sweep_confusions" in found["lc-0.900"].arrays and "sweep_confusions_test" not in found["lc-0.900"].arrays


ENDLESS = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from lc import runs
pool = ProcessPoolExecutor(1, get_context("spawn"), runs._take_share, (1, os.getpid()))
print(pool.submit(os.getpid).result(), flush=True)
pool.submit(time.sleep, 300)
"""


@pytest.mark.parametrize("parent, ends", [("os.getppid()", "goes on"), ("os.getppid() + 1", "")])
def test_a_worker_whose_parent_has_ended_already_ends(parent, ends):
    """Linux tells only of parents that end later: a run killed while its worker starts must not leave it training."""
    code = f"import os; from lc.machine import end_with_parent; end_with_parent({parent}); print('goes on')"
    assert subprocess.run([sys.executable, "-c", code], cwd=runs.paths.ROOT, capture_output=True, text=True).stdout.strip() == ends


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to end a process with its parent")
def test_a_killed_run_leaves_no_worker():
    """Not even when it has no time to tell its workers (kill -9)."""
    with subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        os.kill(worker, 0)  # it is there
        parent.kill()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and _alive(worker):
        time.sleep(0.1)
    assert not _alive(worker)


def _alive(process: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    return False


def test_a_study_names_the_code_that_ran(house, monkeypatch):
    """What stands in its record of commit and source was read before it began, as in a training's."""
    order, entry = [], catalogue("smoke")["study-border"]
    monkeypatch.setattr(runs, "_split", lambda *_: None), monkeypatch.setattr(runs, "_describe", lambda *_: {})
    monkeypatch.setattr(runs, "trained", lambda *_: (None, None))
    monkeypatch.setattr(records, "provenance", lambda *_: order.append("provenance") or {"commit": "before"})
    monkeypatch.setattr(studies, "border", lambda *_: order.append("study") or ({}, {}))
    assert runs.study(entry, None, CPU)["commit"] == "before" and order == ["provenance", "study"]


def test_a_study_is_of_the_split_that_its_name_ends_in(house, monkeypatch):
    """Of test images where it says so, and only of data whose test labels are public; else of val; the function is the same."""
    monkeypatch.setattr(runs, "_split", lambda config, split, root: split), monkeypatch.setattr(runs, "_describe", lambda split: {"split": split})
    monkeypatch.setattr(runs, "trained", lambda *_: (None, None))
    monkeypatch.setattr(studies, "context", lambda model, dsn, data, rho: ({"seen": data}, {}))
    for name, split in (("study-context", "val"), ("study-context-test", "test")):
        record = runs.study(catalogue("camvid-lite")[name], None, CPU)
        assert record["data"]["split"] == record["study"]["seen"] == split
    assert "study-context-test" not in {*catalogue("voc12"), *catalogue("cityscapes")}


def test_examples_keep_their_own_sizes(house):
    """Images of different sizes come back as they were, with their names."""
    class Split:
        images = [(np.full((4 + i, 6, 3), i, np.uint8), np.full((4 + i, 6), i, np.uint8)) for i in range(9)]
        __len__ = lambda self: len(self.images)
        read, name = (lambda self, i: self.images[i]), (lambda self, i: f"image {i}")
    runs._keep_examples("smoke", Split())
    found = predict.examples("smoke")
    assert [*found["names"]] == ["image 2", "image 4", "image 8"]
    for i, image, label in zip((2, 4, 8), found["images"], found["labels"]):
        assert image.shape == (4 + i, 6, 3) and label.shape == (4 + i, 6) and (image == i).all() and (label == i).all()

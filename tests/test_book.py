"""The whole chain in the smoke profile, as make runs it: data, every run of the catalogue, the notebooks, the book."""
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from lc import paths, records, runs
from lc.errors import InputError
from lc.experiments import catalogue
from lc.report import pages as maker

RUNS = len(catalogue("smoke"))


def make(*arguments) -> subprocess.CompletedProcess:
    alone = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}  # not as a part of `make test`
    return subprocess.run(["make", *arguments], cwd=paths.ROOT, capture_output=True, text=True, env=alone)


@pytest.fixture(scope="module")
def chain() -> str:
    """`make reproduce PROFILE=smoke` from nothing; its output."""
    for folder in (paths.results("smoke"), paths.checkpoints("smoke"), paths.build("smoke")):
        shutil.rmtree(folder, ignore_errors=True)
    run = make("reproduce", "PROFILE=smoke")
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return run.stdout


def test_reproduce_makes_everything(chain):
    """It says first what it does, makes every record, and ends with the path of a book whose pages are all there."""
    lines = chain.splitlines()
    assert "Profile smoke (asked for)" in lines[0] and f"{RUNS} of {RUNS} runs are missing" in lines[1] and "minutes" in lines[2]
    assert not records.missing("smoke") and not records.bench_missing("smoke")
    assert not [entry.name for entry in catalogue("smoke").values() if records.find(entry).stale], "what was just made is not stale"
    book = lines[-1].removeprefix("The book: ")
    assert book.endswith("build/smoke/html/index.html")
    pages = {p.stem: p.read_text() for p in (paths.build("smoke") / "html").glob("*.html")}
    assert {p.stem for p in maker.SOURCES.glob("*.ipynb")} < set(pages)
    for name, text in pages.items():
        assert "Traceback" not in text and "cell_output stderr" not in text and "Error</span>" not in text, name
    shown = {p.name for p in (paths.build("smoke") / "html/records").iterdir()}
    assert shown == {records.record_path(entry).name for entry in catalogue("smoke").values()}


def test_smoke_numbers_stand_apart(chain):
    """No table of a smoke book has the paper's column and ours."""
    for page in ("index", "methods", "rho", "systems"):
        heads = re.findall(r"<thead>.*?</thead>", (paths.build("smoke") / "html" / f"{page}.html").read_text(), re.S)
        assert any("paper" in head for head in heads) and any("(smoke)" in head for head in heads)
        assert not any("paper" in head and "(smoke)" in head for head in heads), page


def test_second_time_does_nothing(chain):
    """Within 20 seconds of computing (whatever else the machine does), and without touching the book."""
    index, used = paths.build("smoke") / "html/index.html", lambda: sum(os.times()[2:4])  # of processes that this one started
    before, clock = index.stat().st_mtime_ns, used()
    run = make("reproduce", "PROFILE=smoke")
    assert run.returncode == 0 and used() - clock < 20
    assert f"All {RUNS} runs have their records" in run.stdout and index.stat().st_mtime_ns == before


def test_one_deleted_record_reruns_just_that_run(chain):
    """The others keep their bytes."""
    files = {p: p.read_bytes() for p in (paths.results("smoke") / "runs").glob("*.json")}
    gone = next(p for p in files if p.name.startswith("lc-0.950"))
    gone.unlink()
    run = make("runs", "PROFILE=smoke")
    assert run.returncode == 0 and run.stdout.count("smoke/lc-0.950:") == 1 and "[1/1]" in run.stdout
    assert gone.exists() and all(p.read_bytes() == content for p, content in files.items() if p != gone)
    again, first = json.loads(gone.read_text()), json.loads(files[gone])
    assert again["metrics"] == first["metrics"] and again["key"] == first["key"]


def test_lost_weights_write_a_record_anew(chain):
    """A run asked for by name, whose record is there and whose weights are not, runs again and says that its record is another one now."""
    entry = catalogue("smoke")["lc-0.950"]
    record = records.record_path(entry)
    before = record.read_bytes()
    run = subprocess.run([sys.executable, "-m", "lc", "run", "--profile", "smoke", "--device", "cpu", entry.name], cwd=paths.ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and "no run is missing" in run.stdout
    runs.weights_path(entry.name, entry.run).unlink()
    run = subprocess.run(run.args, cwd=paths.ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and f"record {record.relative_to(paths.ROOT)} was written anew" in run.stdout
    assert json.loads(record.read_bytes())["metrics"] == json.loads(before)["metrics"] and record.read_bytes() != before
    record.write_bytes(before)


def test_a_chapter_at_another_rho(chain):
    """`make notebook` answers on the terminal with the difference from the record, and leaves the records alone."""
    before = {p: p.read_bytes() for p in paths.results("smoke").rglob("*") if p.is_file()}
    run = make("notebook", "NB=rho", "RHO=0.2", "PROFILE=smoke")
    assert run.returncode == 0, run.stderr
    assert "at rho = 0.2" in run.stdout and "Difference from the committed record" in run.stdout
    page = next(line for line in run.stdout.splitlines() if line.endswith(".html"))
    assert "at rho = 0.2" in Path(page).read_text() and "custom.css" in Path(page).read_text() and (Path(page).parent / "_static/custom.css").exists()
    assert before == {p: p.read_bytes() for p in paths.results("smoke").rglob("*") if p.is_file()}


@pytest.mark.parametrize("cell, said", [("1 / 0", "ZeroDivisionError: division by zero"), ("import os; os._exit(9)", "DeadKernelError: Kernel died")])
def test_a_failing_notebook_fails_and_keeps_its_copy(chain, tmp_path, monkeypatch, cell, said):
    """An error in a cell, or a kernel that is killed, is one line; the target does not appear; the executed copy is kept under another name."""
    source = json.loads((maker.SOURCES / "methods.ipynb").read_text())
    source["cells"][-1]["source"] = [cell]
    (tmp_path / "methods.ipynb").write_text(json.dumps(source))
    monkeypatch.setattr(maker, "SOURCES", tmp_path)
    with pytest.raises(InputError, match=f"notebook methods failed: {said}; the executed copy is .*failed.ipynb"):
        maker.execute("methods", {"profile": "smoke"}, tmp_path / "out" / "methods.ipynb")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["methods.failed.ipynb"]
    with pytest.raises(InputError, match="not executed to its end") if cell == "1 / 0" else nullcontext():  # papermill calls a cell that killed it completed
        maker.check_executed(tmp_path / "out" / "methods.failed.ipynb")
    with pytest.raises(InputError, match="was not executed to its end"):
        maker.check_executed(tmp_path / "methods.ipynb")

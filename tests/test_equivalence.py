"""A record made by other sources holds if, and only if, both compute the same: bit for bit, or but for rounding."""
import shutil
import subprocess
from dataclasses import asdict

import numpy as np
import pytest
from conftest import fake_record

from lc import equivalence, paths, records
from lc.data import SPECS
from lc.errors import InputError
from lc.experiments import catalogue
from lc.networks import build
from lc.train import save_weights


@pytest.fixture
def forked(tmp_path, monkeypatch):
    """A repository with today's package in its one commit, and the same files, to be changed, as the tree that is asked."""
    house = tmp_path / "house"
    shutil.copytree(paths.ROOT / "lc", house / "lc", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(paths.ROOT / "results", house / "results", ignore=shutil.ignore_patterns("camvid-lite", "shapes", "smoke", "equivalent.json"))
    for command in ("init -q", "add -A", "-c user.name=t -c user.email=t@t commit -qm first"):
        subprocess.run(["git", *command.split()], cwd=house, check=True)
    monkeypatch.setattr(paths, "ROOT", house)
    records.source_hash.cache_clear(), records.equivalents.cache_clear()
    yield house
    records.source_hash.cache_clear(), records.equivalents.cache_clear()


def record(house, name="lc-0.985"):
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=house, capture_output=True, text=True).stdout.strip()
    return fake_record("smoke", name, commit=commit, source_hash=records.source_hash())


def edit(house, name, before, after):
    path = house / "lc" / name
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    records.source_hash.cache_clear()


def test_a_refactoring_is_equivalent(forked):
    """Other source, same numbers: stale before the check, not after, and the proof names the run."""
    made = record(forked)
    edit(forked, "train.py", "total = out.log_probs.new_zeros(())", "total = 0 * out.log_probs.new_zeros(())")
    assert made.stale.startswith(f"made by source {made['source_hash']}")
    assert "agree bit for bit on 1 runs: lc-0.985" in equivalence.check("smoke", None)[0]
    assert made.stale == "" and records.equivalents()[made["source_hash"]]["runs"] == [made.path.stem]
    assert equivalence.check("smoke", None) == []
    later = fake_record("smoke", "dsn", commit=made["commit"], source_hash=made["source_hash"])
    assert later.stale, "the proof holds for the runs that were compared, not for others of the same source"
    assert "on 1 runs: dsn" in equivalence.check("smoke", None)[0] and later.stale == made.stale == ""


def test_another_order_of_sums_is_equivalent(forked):
    """Weights that differ by rounding: in double precision they agree, and the proof says to how much."""
    made = record(forked)
    edit(forked, "backbone.py", "self.project(self.mixed(x)) * self.scale", "self.project(self.mixed(x)) * 3 * (self.scale / 3)")
    assert "agree but for rounding (in double precision to " in equivalence.check("smoke", None)[0]
    assert made.stale == "" and 0 < records.equivalents()[made["source_hash"]]["difference"] < equivalence.ROUNDING


def test_a_change_is_not(forked, monkeypatch):
    """Other numbers: an error that names the run, and the record stays stale."""
    monkeypatch.setattr(equivalence, "noise", lambda *_: 1e-8)  # in another test
    made = record(forked)
    edit(forked, "train.py", "total = total + stage_loss(", "total = total + (1 + 1e-6 * head) * stage_loss(")
    with pytest.raises(InputError, match="do not compute the same for lc-0.985; remake these runs with"):
        equivalence.check("smoke", None)
    assert made.stale and not (forked / records.EQUIVALENT).exists()


@pytest.mark.parametrize("apart, alone, holds", [(1e-8, 1e-7, True), (1e-8, 1e-9, False), (1e-5, 1.0, False), (np.inf, np.inf, False)])
def test_what_another_number_of_threads_does_is_rounding(forked, monkeypatch, apart, alone, holds):
    """Where the same code differs more from itself; never where a count differs."""
    made = record(forked)
    edit(forked, "train.py", "total = out.log_probs.new_zeros(())", "total = 0 * out.log_probs.new_zeros(())")
    monkeypatch.setattr(equivalence, "differences", lambda group, *rest: {r.path.stem: apart for r in group})
    monkeypatch.setattr(equivalence, "_arrays", lambda tree, group, root, double, cores: [{"w": np.array([1.0, alone * (cores > 1)])}])
    if holds:
        assert "in double precision to 1e-08" in equivalence.check("smoke", None)[0] and made.stale == ""
    else:
        with pytest.raises(InputError, match="do not compute the same for lc-0.985"):
            equivalence.check("smoke", None)
        assert made.stale


def test_a_study_is_made_again_on_a_few_images(forked):
    """From the weights in each tree: the same sentences and arrays, or an error that names the study."""
    for name in ("lc-0.985", "dsn"):
        entry = catalogue("smoke")[name]
        weights = paths.results("smoke") / "weights" / f"{records.stem(name, entry.run)}.safetensors"
        save_weights(build(len(SPECS[entry.run.data.name].names), **asdict(entry.run.model)), weights)
    commit_all(forked)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=forked, capture_output=True, text=True).stdout.strip()
    made = fake_record("smoke", "study-border", study={}, commit=commit, source_hash=records.source_hash(*records.modules("irnet", "study-border")))
    edit(forked, "studies.py", "import numpy as np", "import math\n\nimport numpy as np")
    assert made.stale and "agree bit for bit on 1 runs: study-border" in equivalence.check("smoke", None)[0] and made.stale == ""
    edit(forked, "cascade.py", "amax(dim=1).exp() < rho", "amax(dim=1).exp() < 0 * rho")
    with pytest.raises(InputError, match="do not compute the same for study-border"):
        equivalence.check("smoke", None)


def test_a_commit_that_is_not_here(forked):
    """A shallow clone cannot compare."""
    fake_record("smoke", "dsn", commit="d" * 40, source_hash="f" * 10)
    with pytest.raises(InputError, match="commit dddddddddd, which made or last proved dsn-.* is not in this clone"):
        equivalence.check("smoke", None)


def commit_all(house):
    for command in ("add -A", "-c user.name=t -c user.email=t@t commit -qm next"):
        subprocess.run(["git", *command.split()], cwd=house, check=True)


def test_a_second_proof_begins_at_the_first(forked, monkeypatch):
    """Proved at one commit, compared from there: differences add up. A tree that is not committed is nothing to begin from."""
    asked = []
    monkeypatch.setattr(equivalence, "differences", lambda group, commit, root: asked.append(commit) or {group[0].path.stem: 2e-12})
    made, head = record(forked), lambda: records.provenance("")["commit"]
    for number, total in enumerate((2e-12, 4e-12, 6e-12)):
        edit(forked, "train.py", "total = " + "0 + " * number + "out.log_probs", "total = " + "0 + " * (number + 1) + "out.log_probs")
        if number < 2:
            commit_all(forked)
        assert made.stale and len(equivalence.check("smoke", None)) == 1 and not made.stale
        proof = records.equivalents()[made["source_hash"]]
        assert proof["difference"] == pytest.approx(total) and proof["shown_for"] == (head() if number < 2 else "")
        asked.append(head())
    assert asked[0] == made["commit"] and asked[2] == asked[1] and asked[4] == asked[3], "each comparison begins at the commit of the last"
    edit(forked, "train.py", "total = 0 + 0 + 0 + out", "total = 0 + out")
    assert [*equivalence._by_proof([made])] == [(made["commit"], 0.0)]

"""An empty results folder and records with made-up counts, for tests of what reads records; one thread, for what is not safe on more."""
import os

os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton, whose own functions are else compiled ones

import numpy as np
import pytest
import torch

from lc import paths, records
from lc.experiments import PROFILES, catalogue


@pytest.fixture
def house(tmp_path, monkeypatch):
    """An empty results folder."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(records, "source_hash", lambda *more: "0123456789")
    return tmp_path


@pytest.fixture
def one_thread():
    """One thread of the CPU for a library that is not safe on more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fake_record(profile: str, name: str, shift: int = 0, **changes) -> records.Record:
    """A complete record with made-up counts."""
    entry = catalogue(profile)[name]
    counts = np.random.default_rng(0).integers(1, 9, (6, 3, 3))
    counts[:, range(3), range(3)] += 20 + shift
    summary = {"rho": entry.run.rho, "images": 6, "miou": 0.5 + shift / 100, "iou": [0.4, 0.5, None], "pixel_accuracy": 0.8,
               "handed": [1, 0.6, 0.4], "decided": [0.4, 0.2, 0.4], "decided_pixels": [[50, 30, 1], [20, 5, 2], [10, 20, 3]]}
    synthetic = PROFILES[profile].data.name == "shapes"
    values = {"commit": "c" * 40, "dirty": False, "source_hash": "0123456789", "device": "test", "seed": 0, "train_seconds": 1, "evaluate_seconds": 1,
              "data": {"name": "test data", "synthetic": synthetic, "classes": ["a", "b", "c"], "size": [8, 9],
                       "images": {"train": 6, "val": 6, "test": 6}, "sha256": {"val": "f"}},
              "metrics": {"val": summary, "test": summary}, "sweep": [summary] * 8, **changes}
    return records.write(entry, values, {"confusions_val": counts, "confusions_test": counts}, '{"epoch": 1, "loss": 1.0, "handed": [1, 0.6, 0.4]}\n')

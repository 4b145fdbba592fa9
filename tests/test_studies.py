"""Studies of finished cascades, and the audit of the paper's own numbers."""
import numpy as np
import pytest
import torch

from lc import metrics, studies
from lc.report import audit
from lc.networks import build
from lc.config import DataConfig
from lc.data import SegmentationSet, to_input


@pytest.fixture(scope="module")
def data():
    return SegmentationSet(DataConfig("shapes", 0.5, limit=6), "val")


@pytest.fixture(scope="module")
def networks(data):
    """Two small random cascades whose heads are so sharp that the middle confidence of every stage is over 0.8."""
    images = torch.stack([to_input(data.read(i)[0]) for i in range(len(data))])
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        cascade = build(8, width=0.125, blocks=(1, 1, 1), head_width=8).eval()
        for stage, head in enumerate(cascade.heads):
            with torch.no_grad():
                while cascade(images).fused[stage].exp().amax(1).median() < 0.8:
                    head.classify.weight *= 1.5
        made.append(cascade)
    return made


def test_boundary_distance_by_hand():
    """1 beside a boundary between two labels, farther by one a pixel; none beyond the image; in void it runs in the middle, and void at a class's own side is none."""
    label = np.array([[0, 0, 0, 1, 1, 255, 255, 2, 255]])
    assert studies.boundary_distance(label).tolist() == [[3, 2, 1, 1, 2, 1, 1, 2, 3]]
    assert np.isinf(studies.boundary_distance(np.full((3, 4), 255))).all()
    assert np.isinf(studies.boundary_distance(np.zeros((3, 4), int))).all()
    corner = np.zeros((3, 3), int)
    corner[0, 0] = 1
    assert studies.boundary_distance(corner)[0].tolist() == [1, 1, 2] and studies.boundary_distance(corner)[:, 0].tolist() == [1, 1, 2]


def test_boundary_distance_against_brute_force():
    """The nearest boundary, found by looking at all of them."""
    label = np.random.default_rng(0).integers(0, 2, (9, 11)).repeat(3, 0).repeat(2, 1)
    rows, cols = label.shape
    edges = [(i + 0.5, j) for i in range(rows - 1) for j in range(cols) if label[i, j] != label[i + 1, j]]
    edges += [(i, j + 0.5) for i in range(rows) for j in range(cols - 1) if label[i, j] != label[i, j + 1]]
    nearest = [[min(np.hypot(i - a, j - b) for a, b in edges) + 0.5 for j in range(cols)] for i in range(rows)]
    np.testing.assert_allclose(studies.boundary_distance(label), nearest)


def test_difficulty_sets_as_defined():
    """Right and confident: easy; wrong and confident: extremely hard; not confident: moderate, right or wrong (Sec. 1)."""
    label, guess = np.array([1, 1, 1, 1]), np.array([1, 2, 1, 2])
    assert studies.difficulty_sets(label, guess, np.array([0.95, 0.99, 0.94, 0.1]), 0.95).tolist() == [0, 2, 1, 1]


def test_difficulty_counts_every_labelled_pixel_once(networks, data):
    """The three sets add up to the labels, class by class, and the bands grow with their width."""
    _, arrays = studies.difficulty(*networks, data, 0.5)
    labels = np.concatenate([data.read(i)[1].ravel() for i in range(len(data))])
    expected = np.bincount(labels[labels != 255], minlength=8)
    assert (arrays["sets"].sum(1) == expected).all() and (np.diff(arrays["near"]) >= 0).all()
    np.testing.assert_array_equal(arrays["near"][:, :3].sum(1), arrays["near"][:, 3])
    decided = arrays["decided"].sum(0)  # by all stages: the pixels within each band, and all
    np.testing.assert_array_equal(decided, [*arrays["near"][0, 3], expected.sum()])
    assert (arrays["decided"][:, -1] > 0).sum() > 1
    assert (arrays["near"][0, 3] <= expected.sum()).all() and not (arrays["sets"][0] == arrays["sets"][1]).all()


def test_everything_computed_is_the_choice_of_exits_alone(networks, data):
    """Two ways to one number: regions with a halo that covers the image, and dense stages put together by the same thresholds."""
    values, arrays = studies.context(*networks, data, 0.8)
    chosen, _ = studies.selection(*networks, data, 0.8)
    everything, same = values["variants"].index("everything"), chosen["rules"].index([0.8, 0.8])
    for network in (0, 1):
        at = network * len(values["variants"]) + everything
        assert values["computed"][at] == [1, 1, 1]
        assert values["miou"][at] == pytest.approx(chosen["miou"][network][same], abs=1e-9)
        assert metrics.miou(arrays["confusions"][at].sum(0)) == values["miou"][at]
        halos = [values["computed"][network * len(values["variants"]) + h][1] for h in range(len(studies.HALOS))]
        assert halos == sorted(halos) and halos[0] < halos[1]
    assert len(set(values["miou"])) > 4 and [n.halo for n in networks] == [0, 0] and networks[0].reading == "zero"


def test_the_oracle_beats_every_threshold(networks, data):
    """It hands on fewer cells than nobody exiting, no void ones, and labels better."""
    values, _ = studies.selection(*networks, data, 0.8)
    cells = np.stack([data.read(i)[1][::8, ::8] for i in range(len(data))])
    assert max(handed[-1][1] for handed in values["handed"]) <= (cells != 255).mean()
    for miou, handed in zip(values["miou"], values["handed"]):
        assert max(miou[:-1]) < miou[-1] and 0 < handed[-1][2] < handed[-1][1] < 1


def test_calibration_counts_cells(networks, data):
    """Stage 1 is handed every labelled cell; no bin holds more right cells than cells."""
    _, arrays = studies.calibration(*networks, data, 0.8)
    cells = sum(int((data.read(i)[1][::8, ::8] != 255).sum()) for i in range(len(data)))
    counts = arrays["counts"]
    assert (counts[:, 0, 0].sum(-1) == cells).all() and (counts[:, :, 1] <= counts[:, :, 0]).all()
    assert (counts[:, 1:, 0].sum(-1) < cells).all() and counts[:, 0, 1].sum() > 0


def test_audit_finds_what_is_known():
    """The disagreements that the project's issue lists are found, with their numbers; rounding alone is none."""
    found = {f.subject: f for f in audit.findings()}
    known = {"mean of LC": "72.32", "speed of LC": "15.36", "speed gain of LC over IRNet": "+63 %", "decided in stage-1 at rho = 0.9": "44 %",
             "decided in stage-2 at rho = 0.9": "31 %", "speed-up of LC": "1.40x (A ends stage 1, B ends stage 2), 1.45x", "rank of LC on Cityscapes": "2 of 8"}
    for subject, text in known.items():
        assert not found[subject].agrees and text in found[subject].computed, subject
    for subject in ("mean of Adelaide", "LC over IRNet", "DSN over IRNet", "background IoU of LC†", "Cityscapes classes won", "parameters", "speed-up of LC (fast)"):
        assert found[subject].agrees, subject
    assert "2.28x (A ends stage 1, B ends stage 2), 2.58x" in found["speed-up of LC (fast)"].computed, "agrees by another reading only"
    assert found["background IoU of FCN"].computed == "implies 91.2" and all(f.so for f in found.values() if not f.agrees)


@pytest.mark.parametrize("stated, computed, unit, noise, agrees", [(1.7, 1.69, 0.1, 0, True), (1.7, 1.76, 0.1, 0, False), (0.48, 0.48, 0.01, 0, True),
                                                                  (7.1, 7.143, 0.1, 0, True), (14.7, 15.36, 0.1, 0.01, False), (1.0, 1.2, 0.1, 0.2, True)])
def test_rounding_is_no_disagreement(stated, computed, unit, noise, agrees):
    """Half a unit of the last digit, and the noise of what it is computed from."""
    assert audit._near(stated, computed, unit, noise) == agrees


def test_depth_in_a_region(networks, data):
    """Every labelled pixel in one band; what is right adds up to each network's right pixels; depth is the distance out."""
    model, dsn = networks
    values, arrays = studies.border(model, dsn, data, 0.8)
    counts, (out, labels) = arrays["counts"], next(studies.evaluate.outputs(model, data, 0.8))
    known = sum((data.read(i)[1] != 255).sum() for i in range(len(data)))
    assert counts.shape == (len(data), 1 + len(studies.DEPTHS), 4) and counts[..., 0].sum() == known
    right = lambda out: (studies.upsample(out.log_probs, labels.shape[1:]).argmax(1) == labels).sum((1, 2)).tolist()
    assert counts[..., 1].sum(1).tolist() == right(out) != counts[..., 2].sum(1).tolist() and model.halo == 0
    assert counts[..., 3].sum(1).tolist() == right(next(studies.evaluate.outputs(dsn, data, 1.0))[0])
    inside = torch.zeros(1, 9, 11, dtype=torch.bool)
    inside[0, 1:8, 1:10] = True
    depth = np.digitize(studies.distance_transform_edt(inside[0].numpy()), studies.DEPTHS)
    assert depth[0, 0] == 0 and depth[1, 1] == 1 and depth[2, 2] == 2 and depth[3, 3] == depth[4, 5] == 3
    assert studies.border(model, dsn, data, 1.0)[1]["counts"][:, :-1].sum() == 0

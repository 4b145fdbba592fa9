"""Files for the evaluation servers: their layout, what they hold, and the same mIoU as the official scripts count."""
import io
import tarfile
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lc import export, metrics, runs
from lc.__main__ import main
from lc.networks import build
from lc.data import IGNORE, SPECS

NAMES = {"voc": ("2007_000033", "2007_000042"), "cityscapes": ("frankfurt_000000_000294", "lindau_000001_000019")}


def guesses(kind: str, monkeypatch) -> tuple[list, list]:
    """Two labelled samples, and predictions that agree with half of each."""
    rng, classes, samples = np.random.default_rng(0), len(SPECS[export.FORMATS[kind].data].names), []
    for i, name in enumerate(NAMES[kind]):
        label = rng.integers(0, classes, (20 + i, 30)).astype(np.uint8)
        label[:2] = IGNORE
        samples.append((name, np.full((20 + i, 30, 3), i, np.uint8), label))
    made = [(np.where(rng.random(label.shape) < 0.5, label, rng.integers(0, classes - 1, label.shape)) % classes).astype(np.uint8) for *_, label in samples]
    monkeypatch.setattr(export, "predict", lambda model, image, rho: SimpleNamespace(labels=made[int(image[0, 0, 0])]))
    return samples, made


def members(archive) -> dict[str, bytes]:
    """The files of a zip or tar."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as bundle:
            return {name: bundle.read(name) for name in bundle.namelist() if not name.endswith("/")}
    with tarfile.open(archive) as bundle:
        return {m.name: bundle.extractfile(m).read() for m in bundle if m.isfile()}


@pytest.mark.parametrize("kind, place, mode", [
    ("voc", "results/VOC2012/Segmentation/comp6_val_cls/{}.png", "P"), ("cityscapes", "results/{}_labelIds.png", "L")])
def test_layout_and_content(kind, place, mode, tmp_path, monkeypatch):
    """The server's folders and names, one byte per pixel, VOC's palette or Cityscapes' label ids; nothing of an earlier call is packed."""
    samples, made = guesses(kind, monkeypatch)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/old.png").write_text("old")
    spec = SPECS[export.FORMATS[kind].data]
    archive, miou = export.export(kind, "val", samples, None, spec, 0.985, tmp_path)
    files = members(archive)
    assert sorted(files) == [place.format(name) for name in NAMES[kind]]
    for content, labels in zip((files[name] for name in sorted(files)), made):
        picture = Image.open(io.BytesIO(content))
        expected = labels if kind == "voc" else np.array([7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33])[labels]
        assert picture.mode == mode and np.array_equal(np.array(picture), expected)
        assert kind != "voc" or picture.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0] and picture.getpalette()[60:63] == [0, 64, 128]
    assert miou == metrics.miou(sum(metrics.confusion(s[2], m, len(spec.names)) for s, m in zip(samples, made)))


def test_voc_palette_is_the_official_colour_map():
    """As VOC's masks carry it: eleven colours, from background to tv monitor."""
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 4: (0, 0, 128), 7: (128, 128, 128), 8: (64, 0, 0), 9: (192, 0, 0), 12: (64, 0, 128),
             15: (192, 128, 128), 16: (0, 64, 0), 20: (0, 64, 128)}
    assert {k: SPECS["voc12"].palette[k] for k in known} == known and len(set(SPECS["voc12"].palette)) == 21


def test_miou_is_that_of_the_cityscapes_scripts(tmp_path, monkeypatch):
    """The official evaluation of the packed PNGs against label ids gives the mIoU, the IoU of every class, and finds every file by its name."""
    official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    labels = pytest.importorskip("cityscapesscripts.helpers.labels")
    spec, classes = SPECS["cityscapes"], [labels.trainId2label[k] for k in range(19)]
    assert {l.id: l.trainId for l in labels.labels if l.id >= 0} == dict(enumerate(spec.values()[:34]))
    assert [(l.name, l.color) for l in classes] == list(zip(spec.names, spec.palette))
    samples, made = guesses("cityscapes", monkeypatch)
    ids, truth = np.array(spec.ids), []
    for name, _, label in samples:
        truth.append(str(tmp_path / f"{name}_gtFine_labelIds.png"))
        Image.fromarray(np.where(label == IGNORE, 3, ids[label.clip(max=18)]).astype(np.uint8)).save(truth[-1])
    archive, miou = export.export("cityscapes", "val", samples, None, spec, 0.985, tmp_path / "out")
    args = official.args
    args.predictionPath, args.predictionWalk = str(tmp_path / "out/results"), None
    args.evalInstLevelScore, args.quiet, args.JSONOutput = False, True, False
    scores = official.evaluateImgLists([official.getPrediction(args, file) for file in truth], truth, args)
    assert miou == pytest.approx(scores["averageScoreClasses"], abs=1e-12) and 0.2 < miou < 0.6
    counts = sum(metrics.confusion(s[2], m, 19) for s, m in zip(samples, made))
    assert metrics.iou(counts) == pytest.approx([scores["classScores"][name] for name in spec.names], nan_ok=True)


def test_wrong_files_are_not_packed(tmp_path, monkeypatch):
    """A file that does not give back what was written stops the export."""
    samples, _ = guesses("voc", monkeypatch)
    monkeypatch.setattr(export, "encode", lambda labels, spec: Image.fromarray(labels * 0))
    with pytest.raises(RuntimeError, match="2007_000033.png does not hold what was written"):
        export.export("voc", "val", samples, None, SPECS["voc12"], 0.985, tmp_path)
    assert not list(tmp_path.glob("results.*"))


def test_command(tmp_path, monkeypatch, capsys):
    """A cascade labels a folder of test images of any size, each at its own size; wrong input is one line."""
    torch.manual_seed(0)
    model = build(19, width=0.125, blocks=(1, 1, 1), head_width=16).eval()
    monkeypatch.setattr(runs, "trained", lambda *a: (model, SPECS["cityscapes"]))
    for i, size in enumerate([(64, 48), (40, 40)]):
        path = tmp_path / f"images/berlin/berlin_00000{i}_000019_leftImg8bit.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (*size[::-1], 3)).astype(np.uint8)).save(path)
    call = ["export", "--format", "cityscapes", "--split", "test", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main([*call, "--images", str(tmp_path / "images")]) == 0
    assert f"{tmp_path}/out/results.zip: test, rho = 0.985" in capsys.readouterr().out
    sizes = {name: Image.open(io.BytesIO(content)).size for name, content in members(tmp_path / "out/results.zip").items()}
    assert sizes == {"results/berlin_000000_000019_labelIds.png": (64, 48), "results/berlin_000001_000019_labelIds.png": (40, 40)}
    for path in ("twice/a/1.png", "twice/b/1.png"):
        (tmp_path / path).parent.mkdir(parents=True), Image.new("RGB", (40, 40)).save(tmp_path / path)
    for extra, message in ((["--images", str(tmp_path / "none")], "holds no .png or .jpg"), (["--images", str(tmp_path / "twice")], "share the name 1, and"), (["--rho", "2"], "rho must be in [0, 1]"),
                           (["--profile", "camvid"], "format cityscapes is for cityscapes, profile camvid has camvid"),
                           (["--data", str(tmp_path)], "Cityscapes has no labels of a split 'test'")):
        assert main([*call, *extra]) == 2
        assert message in (error := capsys.readouterr().err) and error.count("\n") == 1

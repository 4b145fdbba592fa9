"""Data sets: deterministic, checked while reading, augmented the same way on every machine."""
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lc import paths, shapes
from lc.config import DataConfig, TrainConfig
from lc.data import IGNORE, SPECS, SegmentationSet, TrainingSamples, epoch_loader, eval_batches, median_frequency_weights, read_image
from lc.errors import InputError


def make_camvid(root: Path, counts=None, size=(24, 16)) -> Path:
    """A folder in the archive's own layout; every split's list has the archive's paths."""
    rng = np.random.default_rng(0)
    for split, count in (counts or {"train": 3, "val": 2, "test": 2}).items():
        lines = []
        for i in range(count):
            name = f"{split}_{i:04d}.png"
            for folder, content in ((split, rng.integers(0, 256, (*size[::-1], 3))), (f"{split}annot", rng.integers(0, 12, size[::-1]))):
                (root / "camvid" / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(content.astype(np.uint8)).save(root / "camvid" / folder / name)
            lines.append(f"/SegNet/CamVid/{split}/{name} /SegNet/CamVid/{split}annot/{name}\n")
        (root / "camvid" / f"{split}.txt").write_text("".join(lines))
    return root


def test_shapes_are_a_pure_function_of_split_and_index():
    """Same split and index, same bytes; another split or index, another image."""
    first, again = shapes.sample("train", 7), shapes.sample("train", 7)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, again))
    assert first[0].tobytes() != shapes.sample("val", 7)[0].tobytes() != shapes.sample("train", 8)[0].tobytes()


def test_shapes_behave_like_voc():
    """About 70 % background, an ignore band, thin and small classes that are rare, every class present."""
    labels = np.stack([shapes.sample("train", i)[1] for i in range(80)])
    known = labels != IGNORE
    share = np.bincount(labels[known], minlength=len(shapes.NAMES)) / known.sum()
    assert 0.65 < share[0] < 0.8 and 0.03 < 1 - known.mean() < 0.1
    assert (share > 0).all() and share[shapes.NAMES.index("speck")] < 0.01 and share[shapes.NAMES.index("pole")] < 0.03


def test_camvid_layout(tmp_path):
    """The archive's lists, folders and void value are understood; scale halves image and label alike."""
    data = SegmentationSet(DataConfig("camvid"), "train", make_camvid(tmp_path))
    image, label = data.read(1)
    raw = np.array(Image.open(tmp_path / "camvid/trainannot/train_0001.png"))
    assert len(data) == 3 and image.shape == (16, 24, 3) and data.name(1) == "train_0001"
    np.testing.assert_array_equal(label, np.where(raw == 11, IGNORE, raw))
    half = SegmentationSet(DataConfig("camvid", scale=0.5), "train", tmp_path).read(1)
    assert half[0].shape == (8, 12, 3) and set(np.unique(half[1])) <= set(np.unique(label))


@pytest.mark.skipif(not (paths.ROOT.parent / "shared/data/camvid").exists(), reason="no CamVid beside the repository")
def test_real_camvid_counts():
    """The real archive holds 367 / 101 / 233 images of 480 x 360 with labels 0-10 and void."""
    for split, count in SPECS["camvid"].counts.items():
        data = SegmentationSet(DataConfig("camvid"), split, paths.ROOT.parent / "shared/data")
        assert len(data) == count and data.read(0)[1].shape == (360, 480)


def spoil_label(root, value):
    Image.fromarray(np.full((16, 24), value, np.uint8)).save(root / "camvid/trainannot/train_0000.png")


def damage(path):
    """An image of several chunks, with one bit changed in the name of the second that holds pixels."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT", content.index(b"IDAT") + 4)] ^= 0x80
    path.write_bytes(content)


@pytest.mark.parametrize("spoil, message", [
    (lambda r: spoil_label(r, 37), r"train_0000.png holds the value 37; CamVid's are 0-11, void is 11"),
    (lambda r: Image.fromarray(np.zeros((8, 24), np.uint8)).save(r / "camvid/trainannot/train_0000.png"),
     r"train_0000.png is \(24, 8\), its image \(24, 16\)"),
    (lambda r: (r / "camvid/train/train_0000.png").write_text("no image"), r"train_0000.png is no image that can be read"),
    (lambda r: (r / "camvid/train/train_0002.png").unlink(), r"CamVid file of the train list not found: .*train_0002.png"),
    (lambda r: damage(r / "camvid/train/train_0000.png"), r"train_0000.png is no image that can be read"),
    (lambda r: (r / "camvid/train.txt").write_text("\n"), r"CamVid has no image of the train split: none fits .*camvid/train/\*.png"),
    (lambda r: (r / "camvid/train.txt").unlink(), r"CamVid \(train list\) not found: .*make data PROFILE=camvid`"),
])
def test_bad_data_is_named(tmp_path, spoil, message):
    """Wrong label value, wrong label size, no image, a damaged one, missing file, empty list, missing list: file, rule and next step."""
    spoil(make_camvid(tmp_path))
    with pytest.raises(InputError, match=message):
        SegmentationSet(DataConfig("camvid"), "train", tmp_path).read(0)


def test_unknown_data_set():
    """A data set that does not exist lists those that do."""
    with pytest.raises(InputError, match="unknown data set 'ade20k'; known: shapes, camvid"):
        SegmentationSet(DataConfig("ade20k"), "train")


def test_fingerprint_sees_one_changed_pixel(tmp_path):
    """The data hash in a record changes with the data."""
    before = SegmentationSet(DataConfig("camvid"), "train", make_camvid(tmp_path)).fingerprint()
    spoil_label(tmp_path, 3)
    assert SegmentationSet(DataConfig("camvid"), "train", tmp_path).fingerprint() != before


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_is_seeded(workers):
    """Same seed and epoch, same bytes, whatever the number of workers and the state of the global generator; labels stay labels."""
    data = SegmentationSet(DataConfig("shapes", limit=6), "train")
    train = TrainConfig(batch_size=3, crop=(64, 96), jitter=0.3)
    batches = [[x.sum().item() for pair in epoch_loader(TrainingSamples(data, train, 5), 2) for x in pair]]
    torch.manual_seed(99)
    samples = TrainingSamples(data, train, 5)
    batches.append([x.sum().item() for pair in epoch_loader(samples, 2, workers) for x in pair])
    assert batches[0] == batches[1]
    assert batches[0] != [x.sum().item() for pair in epoch_loader(samples, 3) for x in pair]
    assert batches[0] != [x.sum().item() for pair in epoch_loader(TrainingSamples(data, train, 6), 2) for x in pair]
    image, label = samples[0]
    assert image.shape == (3, 64, 96) and label.shape == (64, 96)
    assert set(label.unique().tolist()) <= {*range(8), IGNORE} and type(image) is torch.Tensor


def test_crop_larger_than_the_image_is_ignored_label():
    """Padding adds pixels that no loss counts."""
    data = SegmentationSet(DataConfig("shapes", limit=1), "train")
    image, label = TrainingSamples(data, TrainConfig(crop=(192, 192), scales=(1.0, 1.0), flip=False), 0)[0]
    assert (label == IGNORE).sum() >= 192 * 192 - 128 * 128 and (label != IGNORE).sum() == (data.read(0)[1] != IGNORE).sum()


def test_eval_batches_split_where_sizes_change(tmp_path):
    """Images of different sizes never meet in one batch; order and number are kept."""
    make_camvid(tmp_path, {"val": 3})
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "camvid/val/val_0001.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "camvid/valannot/val_0001.png")
    batches = list(eval_batches(SegmentationSet(DataConfig("camvid"), "val", tmp_path)))
    assert [tuple(labels.shape) for _, labels in batches] == [(1, 16, 24), (1, 8, 8), (1, 16, 24)]


def test_median_frequency_weights(tmp_path):
    """Two classes in equal images: the rarer one weighs more; an absent class weighs nothing."""
    make_camvid(tmp_path, {"train": 2})
    label = np.zeros((16, 24), np.uint8)
    label[:4] = 1
    for i in range(2):
        Image.fromarray(label).save(tmp_path / f"camvid/trainannot/train_{i:04d}.png")
    weights = median_frequency_weights(SegmentationSet(DataConfig("camvid"), "train", tmp_path))
    assert weights[0] == pytest.approx(0.5 / 0.75) and weights[1] == pytest.approx(0.5 / 0.25) and weights[2:].sum() == 0


@pytest.mark.parametrize("scale", [0.75, 0.9, 1.1, 1.2])
def test_labels_are_resized_on_the_grid_of_their_images(scale, monkeypatch):
    """A disc of one class, white in the image: with exact_labels both keep one centre; without, as in older records, the label's is off."""
    rows, cols = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    disc = ((rows - 60.5) ** 2 + (cols - 66.5) ** 2 < 40 ** 2).numpy()
    data = SegmentationSet(DataConfig("shapes", limit=1), "train")
    monkeypatch.setattr(data, "read", lambda i: (np.repeat(255 * disc[..., None], 3, 2).astype(np.uint8), disc.astype(np.uint8)))

    def apart(exact: bool) -> float:
        side = round(128 * scale)
        image, label = TrainingSamples(data, TrainConfig(crop=(side, side), scales=(scale, scale), flip=False, exact_labels=exact), 0)[0]
        weights = (image[0] - image[0].min(), label.double())
        return max(abs((w.sum(axis) * torch.arange(side)).sum() / w.sum() - (v.sum(axis) * torch.arange(side)).sum() / v.sum()).item()
                   for axis in (0, 1) for w, v in [weights])

    assert apart(True) < 0.15 < 0.35 < apart(False)


def test_sixteen_bits_a_pixel_become_eight(tmp_path):
    """Not white where they are above 255."""
    Image.fromarray(np.array([[0, 257, 65535, 32896]], np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 1, 255, 128]


def test_photos_can_be_turned_upright(tmp_path):
    """A camera's orientation is followed where it is asked for, and only there."""
    photo, exif = Image.fromarray(np.zeros((4, 6, 3), np.uint8)), Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    photo.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (4, 6, 3) and read_image(tmp_path / "a.jpg", upright=True).shape == (6, 4, 3)

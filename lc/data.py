"""Data sets -> image (3, H, W) float, normalised, and label (H, W) long with 255 = ignore; augmentation; loaders.

Every random choice for training sample g (g counts on over the epochs) comes from a generator seeded with (seed, g), so
neither the number of workers nor a resume changes a byte.
"""
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from lc import paths, shapes
from lc.config import DataConfig, TrainConfig
from lc.errors import InputError

IGNORE = 255
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as the pretrained backbones expect
CACHE = 4 * 2 ** 30  # bytes of decoded images that one split keeps in memory; the rest is decoded each time it is asked for


@dataclass(frozen=True)
class Spec:
    """What a data set is, apart from its pixels. counts: images by split; a split without public labels is absent. image, label: where they
    lie, by {split}, {name} and {city} (the name up to its first _); lists: the file of names of each split, none for whatever images are
    there; ids: value of each class in label files, if not 0 .. K-1; void: values of no class."""
    title: str
    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    counts: dict[str, int]
    synthetic: bool = False
    image: str = ""
    label: str = ""
    lists: dict[str, str] = field(default_factory=dict)
    ids: tuple[int, ...] = ()
    void: tuple[int, ...] = (IGNORE,)

    def values(self) -> np.ndarray:
        """(256,) int16: class of each value in a label file, IGNORE for void, -1 for values that must not occur."""
        table = np.full(256, -1, np.int16)
        table[list(self.void)] = IGNORE
        table[list(self.ids or range(len(self.names)))] = range(len(self.names))
        return table


SPECS = {
    "shapes": Spec("shapes (procedural)", shapes.NAMES, shapes.PALETTE, shapes.COUNTS, synthetic=True),
    "camvid": Spec(
        "CamVid", ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
        ((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128),
         (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
        {"train": 367, "val": 101, "test": 233}, image="{split}/{name}.png", label="{split}annot/{name}.png",
        lists={split: f"{split}.txt" for split in ("train", "val", "test")}, void=(11,)),
    "voc12": Spec(
        "VOC 2012", ("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table", "dog",
                     "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor"),
        tuple(tuple((k >> c & 1) << 7 | (k >> c + 3 & 1) << 6 for c in range(3)) for k in range(21)),  # the rule of VOC's development kit
        {"train": 10582, "val": 1449}, image="JPEGImages/{name}.jpg", label="SegmentationClassAug/{name}.png",
        lists={"train": "trainaug.txt", "val": "val.txt"}),
    "cityscapes": Spec(
        "Cityscapes", ("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain", "sky",
                       "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
        ((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30), (220, 220, 0),
         (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100),
         (0, 0, 230), (119, 11, 32)), {"train": 2975, "val": 500},
        image="leftImg8bit/{split}/{city}/{name}_leftImg8bit.png", label="gtFine/{split}/{city}/{name}_gtFine_labelIds.png",
        ids=(7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33), void=(*range(7), 9, 10, 14, 15, 16, 18, 29, 30, IGNORE)),
}


class SegmentationSet:
    """One split of a data set: `read(i)` gives uint8 arrays, image (H, W, 3) and label (H, W) with 255 = ignore."""

    def __init__(self, config: DataConfig, split: str, root: str | Path | None = None):
        if config.name not in SPECS:
            raise InputError(f"unknown data set {config.name!r}; known: {', '.join(SPECS)}")
        self.config, self.split, self.spec = config, split, SPECS[config.name]
        if split not in self.spec.counts:
            raise InputError(f"{self.spec.title} has no labels of a split {split!r}; its splits: {', '.join(self.spec.counts)}")
        self.folder = paths.data_root(root) / config.name
        self.items = list(range(self.spec.counts[split])) if self.spec.synthetic else _items(self.spec, self.folder, split)
        self.items = self.items[:config.limit or None]
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._cached = 0

    @property
    def num_classes(self) -> int:
        return len(self.spec.names)

    def __len__(self) -> int:
        return len(self.items)

    def name(self, i: int) -> str:
        return f"{self.split}-{i}" if self.spec.synthetic else Path(self.items[i][0]).stem.removesuffix("_leftImg8bit")

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample i as uint8 arrays; kept in memory while CACHE lasts."""
        if i in self._cache:
            return self._cache[i]
        pair = self.decode(i)
        self._cached += sum(part.nbytes for part in pair)
        if self._cached <= CACHE and get_worker_info() is None:  # a loader's process ends with its epoch
            self._cache[i] = pair
        return pair

    def decode(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample i from the disk; InputError names a file that does not fit."""
        image, label = shapes.sample(self.split, i) if self.spec.synthetic else _read(self.spec, *self.items[i])
        size = tuple(round(side * self.config.scale) for side in label.shape[::-1])
        return tuple(np.array(Image.fromarray(part).resize(size, how)) for part, how in ((image, Image.BILINEAR), (label, Image.NEAREST)))

    def fingerprint(self) -> str:
        """SHA-256 over the bytes that `read` starts from (synthetic sets: of the first eight samples)."""
        digest = hashlib.sha256()
        for i, item in enumerate(self.items):
            if self.spec.synthetic and i < 8:
                digest.update(b"".join(part.tobytes() for part in shapes.sample(self.split, i)))
            elif not self.spec.synthetic:
                digest.update(b"".join(path.read_bytes() for path in item))
        return digest.hexdigest()[:16]


def _items(spec: Spec, folder: Path, split: str) -> list[tuple[Path, Path]]:
    """(image, label) files of a split; InputError if one is missing."""
    step = f"point LC_DATA (or --data) at the folder that holds {folder.name}/"
    if (paths.ROOT / "data_scripts" / f"{folder.name}.py").exists():
        step = f"run `make data PROFILE={folder.name}`, or {step}"
    if spec.lists:
        listing = paths.need(folder / spec.lists[split], f"{spec.title} ({split} list)", step)
        names = [Path(line.split()[0]).stem for line in listing.read_text().splitlines() if line.strip()]
    else:
        start, end = spec.image.format(split=split, city="*", name="*").rsplit("*", 1)
        paths.need(folder / start.partition("*")[0], f"{spec.title} ({split} images)", step)
        names = sorted(path.name.removesuffix(end) for path in folder.glob(f"{start}*{end}"))
    items = [tuple(folder / place.format(split=split, name=name, city=name.partition("_")[0]) for place in (spec.image, spec.label))
             for name in names]
    if not items:
        raise InputError(f"{spec.title} has no image of the {split} split: none fits {folder / spec.image.format(split=split, name='*', city='*')}")
    for path in (path for item in items for path in item):
        paths.need(path, f"{spec.title} file of the {split} list", "the archive is incomplete: unpack it again")
    return items


def _read(spec: Spec, image_path: Path, label_path: Path) -> tuple[np.ndarray, np.ndarray]:
    image, label, values = read_image(image_path), read_image(label_path, None), spec.values()
    if label.shape != image.shape[:2] or label.dtype != np.uint8:
        raise InputError(f"label {label_path} is {label.shape[1::-1]}, its image {image.shape[1::-1]} (width, height): "
                         "they must be of one size, the label one byte per pixel; unpack the archive again")
    classes = values[label]
    if classes.min() < 0:
        raise InputError(f"label {label_path} holds the value {label[classes < 0].max()}; {spec.title}'s are 0-"
                         f"{np.flatnonzero(values[:IGNORE] >= 0).max()}, void is {', '.join(map(str, spec.void))}: another archive, or a damaged one")
    return image, classes.astype(np.uint8)


def read_image(path: str | Path, mode: str | None = "RGB", upright: bool = False) -> np.ndarray:
    """An image file as (H, W, 3) uint8, or (mode None) the numbers it holds; InputError when it is none. upright: turned as its camera says
    (EXIF), which data sets with label files do not mean."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file) if upright else file
            if mode and image.mode.startswith("I;16"):  # 16 bits a pixel, which Pillow would cut off at 255
                image = Image.fromarray((np.array(image) / 257).clip(0, 255).round().astype(np.uint8))
            return np.array(image.convert(mode) if mode else image)
    except FileNotFoundError:
        raise InputError(f"image not found: {path}") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise InputError(f"{path} is no image that can be read ({error}); give a PNG or JPEG file") from None


def to_input(image: np.ndarray | Tensor) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float, normalised."""
    x = torch.as_tensor(np.asarray(image)).permute(2, 0, 1)
    return TF.normalize(x.float() / 255, MEAN, STD)


class TrainingSamples(Dataset):
    """Augmented samples: index g = epoch * len(data) + i gives image (3, h, w) and label (h, w) of the crop size."""

    def __init__(self, data: SegmentationSet, train: TrainConfig, seed: int):
        self.data, self.train, self.seed = data, train, seed
        fill = {tv_tensors.Image: [int(255 * m) for m in MEAN], tv_tensors.Mask: IGNORE}
        self.crop = v2.RandomCrop(train.crop, pad_if_needed=True, fill=fill)
        self.flip = v2.RandomHorizontalFlip(0.5 if train.flip else 0.0)
        self.colour = v2.ColorJitter(train.jitter, train.jitter, train.jitter) if train.jitter else v2.Identity()

    def __getitem__(self, g: int) -> tuple[Tensor, Tensor]:
        image, label = self.data.read(g % len(self.data))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(1_000_003 * self.seed + g)  # the CPU's alone: a GPU's is not restored here
            pair = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)), tv_tensors.Mask(torch.from_numpy(label))
            scale = float(torch.empty(()).uniform_(*self.train.scales))
            size = [round(side * scale) for side in label.shape]
            image, label = (TF.resize(part, size, antialias=True) for part in pair)
            if self.train.exact_labels:
                label = tv_tensors.Mask(F.interpolate(pair[1][None, None], size, mode="nearest-exact")[0, 0])
            image, label = self.flip(*self.crop(image, label))
            image = self.colour(image)
        return TF.normalize(image.float() / 255, MEAN, STD).as_subclass(Tensor), label.long().as_subclass(Tensor)


def epoch_loader(samples: TrainingSamples, epoch: int, workers: int = 0) -> DataLoader:
    """Batches of one epoch, shuffled by (seed, epoch); the last incomplete batch is left out."""
    count = len(samples.data)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1_000_003 * samples.seed + epoch))
    batch = min(samples.train.batch_size, count)
    return DataLoader(samples, batch, sampler=(epoch * count + order).tolist(), drop_last=True, num_workers=workers,
                      prefetch_factor=4 if workers else None, pin_memory=torch.cuda.is_available())


def eval_batches(data: SegmentationSet) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, labels) in order, whole images, eight at a time; images of another size start a new batch."""
    batch: list[tuple[Tensor, Tensor]] = []
    for image, label in map(data.read, range(len(data))):
        if batch and (len(batch) == 8 or batch[0][1].shape != label.shape):
            yield tuple(map(torch.stack, zip(*batch)))
            batch = []
        batch.append((to_input(image), torch.from_numpy(label).long()))
    if batch:
        yield tuple(map(torch.stack, zip(*batch)))


def median_frequency_weights(data: SegmentationSet) -> Tensor:
    """(K,) class weights median(f) / f_k; f_k: share of class k among the pixels of the images that hold it (SegNet's rule)."""
    counts = np.stack([np.bincount(data.read(i)[1].ravel(), minlength=256)[:data.num_classes] for i in range(len(data))])
    present = ((counts > 0) * counts.sum(1, keepdims=True)).sum(0)
    frequency = counts.sum(0) / np.maximum(present, 1)
    weights = np.where(frequency > 0, np.median(frequency[frequency > 0]) / np.maximum(frequency, 1e-12), 0.0)
    return torch.tensor(weights, dtype=torch.float32)

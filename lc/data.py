"""Data sets -> image (3, H, W) float, normalised, and label (H, W) long with 255 = ignore; augmentation; loaders.

Every random choice for training sample g (g counts on over the epochs) comes from a generator seeded with (seed, g), so
neither the number of workers nor a resume changes a byte.
"""
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from lc import paths, shapes
from lc.config import DataConfig, TrainConfig
from lc.errors import InputError

IGNORE = 255
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as the pretrained backbones expect


@dataclass(frozen=True)
class Spec:
    """What a data set is, apart from its pixels."""
    title: str
    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    counts: dict[str, int]
    synthetic: bool = False


SPECS = {
    "shapes": Spec("shapes (procedural)", shapes.NAMES, shapes.PALETTE, shapes.COUNTS, synthetic=True),
    "camvid": Spec(
        "CamVid", ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
        ((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128),
         (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
        {"train": 367, "val": 101, "test": 233}),
}


class SegmentationSet:
    """One split of a data set: `read(i)` gives uint8 arrays, image (H, W, 3) and label (H, W) with 255 = ignore."""

    def __init__(self, config: DataConfig, split: str, root: str | Path | None = None):
        if config.name not in SPECS:
            raise InputError(f"unknown data set {config.name!r}; known: {', '.join(SPECS)}")
        self.config, self.split, self.spec = config, split, SPECS[config.name]
        self.folder = paths.data_root(root) / config.name
        self.items = list(range(self.spec.counts[split])) if self.spec.synthetic else _camvid_items(self.folder, split)
        self.items = self.items[:config.limit or None]
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def num_classes(self) -> int:
        return len(self.spec.names)

    def __len__(self) -> int:
        return len(self.items)

    def name(self, i: int) -> str:
        return f"{self.split}-{i}" if self.spec.synthetic else Path(self.items[i][0]).stem

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        if i not in self._cache:
            image, label = shapes.sample(self.split, i) if self.spec.synthetic else _camvid_read(*self.items[i])
            self._cache[i] = _rescale(image, label, self.config.scale)
        return self._cache[i]

    def fingerprint(self) -> str:
        """SHA-256 over the bytes that `read` starts from (synthetic sets: of the first eight samples)."""
        digest = hashlib.sha256()
        for i, item in enumerate(self.items):
            if self.spec.synthetic and i < 8:
                digest.update(b"".join(part.tobytes() for part in shapes.sample(self.split, i)))
            elif not self.spec.synthetic:
                digest.update(b"".join(path.read_bytes() for path in item))
        return digest.hexdigest()[:16]


def _camvid_items(folder: Path, split: str) -> list[tuple[Path, Path]]:
    listing = paths.need(folder / f"{split}.txt", f"CamVid ({split} list)",
                         "run `make data PROFILE=camvid-lite`, or point LC_DATA (or --data) at the folder that holds camvid/")
    names = [Path(line.split()[0]).name for line in listing.read_text().splitlines() if line.strip()]
    items = [(folder / split / name, folder / f"{split}annot" / name) for name in names]
    for path in (path for item in items for path in item):
        paths.need(path, f"CamVid file listed in {listing.name}", "the archive is incomplete: unpack it again")
    return items


def _camvid_read(image_path: Path, label_path: Path) -> tuple[np.ndarray, np.ndarray]:
    image, label = read_image(image_path), np.array(Image.open(label_path))
    if label.shape != image.shape[:2]:
        raise InputError(f"label {label_path} is {label.shape[::-1]}, its image {image.shape[1::-1]} (width, height): "
                         "they must be of one size; unpack the archive again")
    if label.max() > 11:
        raise InputError(f"label {label_path} holds the value {label.max()}; CamVid's are 0-10 and 11 = void: "
                         "this is not the 11-class archive")
    return image, np.where(label == 11, IGNORE, label).astype(np.uint8)


def read_image(path: str | Path) -> np.ndarray:
    """An image file as (H, W, 3) uint8; InputError when it is none."""
    try:
        return np.array(Image.open(path).convert("RGB"))
    except FileNotFoundError:
        raise InputError(f"image not found: {path}") from None
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path} is no image that can be read ({error}); give a PNG or JPEG file") from None


def _rescale(image: np.ndarray, label: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    if scale == 1:
        return image, label
    size = (round(label.shape[1] * scale), round(label.shape[0] * scale))
    return (np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)),
            np.array(Image.fromarray(label).resize(size, Image.Resampling.NEAREST)))


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
            torch.manual_seed(1_000_003 * self.seed + g)
            pair = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)), tv_tensors.Mask(torch.from_numpy(label))
            scale = float(torch.empty(()).uniform_(*self.train.scales))
            pair = [TF.resize(part, [round(side * scale) for side in label.shape], antialias=True) for part in pair]
            image, label = self.flip(*self.crop(*pair))
            image = self.colour(image)
        return TF.normalize(image.float() / 255, MEAN, STD).as_subclass(Tensor), label.long().as_subclass(Tensor)


def epoch_loader(samples: TrainingSamples, epoch: int, workers: int = 0) -> DataLoader:
    """Batches of one epoch, shuffled by (seed, epoch); the last incomplete batch is left out."""
    count = len(samples.data)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1_000_003 * samples.seed + epoch))
    batch = min(samples.train.batch_size, count)
    return DataLoader(samples, batch, sampler=(epoch * count + order).tolist(), drop_last=True, num_workers=workers,
                      pin_memory=torch.cuda.is_available())


def eval_batches(data: SegmentationSet, batch_size: int = 8) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """(indices, images, labels) in order, whole images; images of another size start a new batch."""
    batch: list[tuple[int, Tensor, Tensor]] = []
    for i in range(len(data)):
        image, label = data.read(i)
        if batch and (len(batch) == batch_size or batch[0][2].shape != label.shape):
            yield _stack(batch)
            batch = []
        batch.append((i, to_input(image), torch.from_numpy(label).long()))
    if batch:
        yield _stack(batch)


def _stack(batch: list) -> tuple[list[int], Tensor, Tensor]:
    indices, images, labels = zip(*batch)
    return list(indices), torch.stack(images), torch.stack(labels)


def median_frequency_weights(data: SegmentationSet) -> Tensor:
    """(K,) class weights median(f) / f_k; f_k: share of class k among the pixels of the images that hold it (SegNet's rule)."""
    counts = np.stack([np.bincount(data.read(i)[1].ravel(), minlength=256)[:data.num_classes] for i in range(len(data))])
    present = ((counts > 0) * counts.sum(1, keepdims=True)).sum(0)
    frequency = counts.sum(0) / np.maximum(present, 1)
    weights = np.where(frequency > 0, np.median(frequency[frequency > 0]) / np.maximum(frequency, 1e-12), 0.0)
    return torch.tensor(weights, dtype=torch.float32)

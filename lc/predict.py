"""A trained cascade on single images: label, stage and confidence maps at the size of the image, and their pictures."""
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import nn

from lc import paths, plots
from lc.cascade import CascadeOutput, cells_to_pixels, upsample
from lc.data import IGNORE, Spec, read_image, to_input
from lc.errors import InputError, check_rho


@dataclass(frozen=True)
class Prediction:
    """Maps (H, W) at image size: labels uint8, stages uint8 (1 .. S), confidence float32 in [0, 1]; handed: shares by stage."""
    labels: np.ndarray
    stages: np.ndarray
    confidence: np.ndarray
    handed: list[float]


def examples(profile_name: str) -> dict[str, np.ndarray]:
    """The validation images that figures show: images (E, H, W, 3), labels (E, H, W), names (E,)."""
    path = paths.need(paths.results(profile_name) / "examples.npz", "example images", f"run `make reproduce PROFILE={profile_name}`")
    with np.load(path) as file:
        return dict(file)


@torch.no_grad()
def forward(model: nn.Module, image: np.ndarray, rho: float, height: int | None = None) -> CascadeOutput:
    """The cascade on one image (H, W, 3) uint8, resized to `height` rows first if given."""
    if height is not None:
        width = max(1, round(image.shape[1] * height / image.shape[0]))
        image = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    device = next(model.parameters()).device
    return model(to_input(image)[None].to(device), check_rho(rho))


def predict(model: nn.Module, image: np.ndarray, rho: float, height: int | None = None) -> Prediction:
    """Label, stage and confidence maps of one image of any size; `height`: rows the network sees (None: the image's own)."""
    out, (rows, cols) = forward(model, image, rho, height), image.shape[:2]
    seen = (rows, cols) if height is None else (height, max(1, round(cols * height / rows)))
    confidence, labels = upsample(out.log_probs, seen).softmax(1)[0].max(0)
    stages = cells_to_pixels(out.decided, seen)[0]
    resize = lambda x, how: np.array(Image.fromarray(x.cpu().numpy()).resize((cols, rows), how))
    return Prediction(resize(labels.to(torch.uint8), Image.Resampling.NEAREST), resize(stages, Image.Resampling.NEAREST),
                      resize(confidence, Image.Resampling.BILINEAR), out.shares)


def overlays(image: np.ndarray, prediction: Prediction, spec: Spec) -> dict[str, np.ndarray]:
    """Pictures (H, W, 3) uint8: the image mixed with label colours, stage colours, and confidence."""
    heat = (colormaps["magma"](prediction.confidence)[..., :3] * 255).astype(np.uint8)
    layers = {"labels": plots.colour(prediction.labels, spec.palette), "stages": plots.stage_map(prediction.stages), "confidence": heat}
    return {name: ((image.astype(np.uint16) + 2 * layer.astype(np.uint16)) // 3).astype(np.uint8) for name, layer in layers.items()}


def read_images(files: list[str]) -> dict[Path, np.ndarray]:
    """All images, or InputError for the first that cannot be used; two of one name would overwrite each other's pictures."""
    images = {Path(file): read_image(file) for file in files}
    stems = [file.stem for file in images]
    if len(set(stems)) < len(stems):
        raise InputError(f"two images share a name: {', '.join(sorted(s for s in set(stems) if stems.count(s) > 1))}; rename one or call twice")
    return images


def write_overlays(images: dict[Path, np.ndarray], out: Path, model: nn.Module, spec: Spec, rho: float, height: int | None) -> list[Path]:
    """Write <name>.labels.png, .stages.png and .confidence.png for each image; prints what was found; returns the files."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for file, image in images.items():
        prediction = predict(model, image, rho, height)
        for name, picture in overlays(image, prediction, spec).items():
            written.append(out / f"{file.stem}.{name}.png")
            Image.fromarray(picture).save(written[-1])
        shares = np.bincount(prediction.labels.ravel(), minlength=len(spec.names)) / prediction.labels.size
        top = ", ".join(f"{spec.names[k]} {100 * shares[k]:.0f} %" for k in np.argsort(-shares)[:4] if shares[k] > 0)
        print(f"{file}: {top}; handed to each stage: {', '.join(f'{100 * v:.0f} %' for v in prediction.handed)}")
    return written


def stage_pictures(model: nn.Module, image: np.ndarray, label: np.ndarray, rho: float, spec: Spec) -> list[np.ndarray]:
    """A row of Fig. 4 / 6: input, the label map after each stage with the pixels it hands on marked, ground truth."""
    out, size = forward(model, image, rho), image.shape[:2]
    pictures = [image]
    for fused, handed_on in zip(out.fused, [*out.handed[1:], None]):
        picture = plots.colour(upsample(fused, size).argmax(1)[0].numpy(), spec.palette)
        if handed_on is not None:
            picture[cells_to_pixels(handed_on, size)[0].numpy()] = plots.UNKNOWN
        pictures.append(picture)
    return [*pictures, plots.colour(label, spec.palette)]


def difficulty_pictures(model: nn.Module, image: np.ndarray, label: np.ndarray, rho: float, threshold: float, spec: Spec) -> list[np.ndarray]:
    """A row of Fig. 1a: input, ground truth, and the pixels of ES, MS and HS in their colours."""
    from lc.studies import difficulty_sets
    found = predict(model, image, rho)
    kind = difficulty_sets(label, found.labels, found.confidence, threshold)
    kind[label == IGNORE] = IGNORE
    return [image, plots.colour(label, spec.palette), plots.colour(kind, [plots.rgb(c) for c in plots.DIFFICULTY.values()])]

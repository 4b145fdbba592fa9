"""A trained cascade on images and videos: label, stage and confidence maps at the size of the image, and their pictures."""
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from lc import machine, paths
from lc.report import plots
from lc.speed import cost, trained
from lc.cascade import cells_to_pixels, upsample
from lc.data import IGNORE, Spec, read_image, to_input
from lc.errors import InputError, check_rho
from lc.paper import columns

FRAMES, PROBE = (".png", ".jpg", ".jpeg"), 5  # endings of frames; how many of them the speed curve is measured on


@dataclass(frozen=True)
class Prediction:
    """Maps (H, W) at image size: labels uint8, stages uint8 (1 .. S), confidence float32 in [0, 1]; handed: shares by stage; seconds: of
    the network alone."""
    labels: np.ndarray
    stages: np.ndarray
    confidence: np.ndarray
    handed: list[float]
    seconds: float


def examples(profile_name: str) -> dict[str, Sequence]:
    """The validation images that figures show: images, each (H, W, 3), labels, each (H, W), and their names."""
    path = paths.need(paths.results(profile_name) / "examples.npz", "example images", f"run `make reproduce PROFILE={profile_name}`")
    with np.load(path) as file:
        names = file["names"]
        return {"names": names, **{f"{what}s": [file[f"{what}{n}"] for n in range(len(names))] for what in ("image", "label")}}


def _input(model: nn.Module, image: np.ndarray, height: int | None = None) -> Tensor:
    if height is not None:
        width = max(1, round(image.shape[1] * height / image.shape[0]))
        image = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    return to_input(image)[None].to(next(model.parameters()).device, memory_format=torch.channels_last)


@torch.no_grad()
def predict(model: nn.Module, image: np.ndarray, rho: float, height: int | None = None) -> Prediction:
    """Label, stage and confidence maps of one image of any size; `height`: rows the network sees (None: the image's own)."""
    x, (rows, cols) = _input(model, image, height), image.shape[:2]
    start = cost.now(x.device)
    out = model(x, check_rho(rho))
    seconds = cost.now(x.device) - start
    confidence, labels = upsample(out.log_probs, x.shape[2:]).softmax(1)[0].max(0)
    stages = cells_to_pixels(out.decided, x.shape[2:])[0]
    resize = lambda x, how: np.array(Image.fromarray(x.cpu().numpy()).resize((cols, rows), how))
    return Prediction(resize(labels.to(torch.uint8), Image.Resampling.NEAREST), resize(stages, Image.Resampling.NEAREST),
                      resize(confidence, Image.Resampling.BILINEAR), out.shares, seconds)


def overlays(image: np.ndarray, prediction: Prediction, spec: Spec) -> dict[str, np.ndarray]:
    """Pictures (H, W, 3) uint8: the image mixed with label colours, stage colours, and confidence."""
    heat = (colormaps["magma"](prediction.confidence)[..., :3] * 255).astype(np.uint8)
    layers = {"labels": plots.colour(prediction.labels, spec.palette), "stages": plots.colour(prediction.stages, plots.STAGE_RGB), "confidence": heat}
    return {name: ((image.astype(np.uint16) + 2 * layer.astype(np.uint16)) // 3).astype(np.uint8) for name, layer in layers.items()}


def read_images(files: list[str]) -> dict[Path, np.ndarray]:
    """All images, or InputError for the first that cannot be used; two of one name would overwrite each other's pictures."""
    for file in files:
        if Path(file).is_dir():
            raise InputError(f"{file} is a folder; give its images, as in {file}/*.png")
    images = {Path(file): read_image(file, upright=True) for file in files}
    stems = [file.stem for file in images]
    if len(set(stems)) < len(stems):
        raise InputError(f"two images share a name: {', '.join(sorted(s for s in set(stems) if stems.count(s) > 1))}; rename one or call twice")
    return images


def write_overlays(images: dict[Path, np.ndarray], out: Path, model: nn.Module, spec: Spec, rho: float, height: int | None) -> list[Path]:
    """Write <name>.labels.png, .stages.png and .confidence.png for each image; prints what was found; returns the files."""
    written, out = [], paths.folder(out)
    for file, image in images.items():
        prediction = predict(model, image, rho, height)
        for name, picture in overlays(image, prediction, spec).items():
            written.append(out / f"{file.stem}.{name}.png")
            Image.fromarray(picture).save(written[-1])
        shares = np.bincount(prediction.labels.ravel(), minlength=len(spec.names)) / prediction.labels.size
        top = ", ".join(f"{spec.names[k]} {100 * shares[k]:.0f} %" for k in np.argsort(-shares)[:4] if shares[k] > 0)
        print(f"{file}: {top}; handed to each stage: {', '.join(f'{100 * v:.0f} %' for v in prediction.handed)}")
    return written


def frames(source: Path) -> tuple[int, Iterator[tuple[str, np.ndarray]]]:
    """How many frames (0: unknown), and their names and images: of a folder, in the order of the names, or of a video file."""
    if source.is_dir():
        files = sorted(file for file in source.iterdir() if file.suffix.lower() in FRAMES)
        if not files:
            raise InputError(f"no frames in {source}: none of its files ends in {', '.join(FRAMES)}")
        if len({file.stem for file in files}) < len(files):
            raise InputError(f"two frames in {source} share a name but for its ending, and their pictures would too; rename one")
        return len(files), ((file.stem, read_image(file, upright=True)) for file in files)
    paths.need(source, "video", "give a folder of frames, or a video file")
    try:
        import av
        file = av.open(str(source))
    except ImportError:
        raise InputError(f"{source} is no folder of frames; a video file needs PyAV: `.venv/bin/pip install -e .[video]`, or unpack it") from None
    except (OSError, ValueError) as error:  # PyAV's errors are of both kinds
        raise InputError(f"{source} is no video that can be read ({error}); give a folder of frames, or another file") from None
    if not file.streams.video:
        raise InputError(f"{source} holds no pictures, only sound or text; give a folder of frames, or another file")
    return file.streams.video[0].frames, _decoded(file)


def _decoded(file) -> Iterator[tuple[str, np.ndarray]]:
    """As many frames of an open video file as can be read; says so where it breaks off, or holds fewer than it says."""
    number, why = 0, ""
    try:
        for number, frame in enumerate(file.decode(video=0), start=1):
            yield f"{number - 1:06d}", frame.to_ndarray(format="rgb24")
    except (OSError, ValueError) as error:  # PyAV's are of both kinds
        why = f" ({error})"
    if why or number < file.streams.video[0].frames:
        print(f"{file.name} is damaged: only its first {number} frames can be read{why}")


@torch.no_grad()
def frame_rates(model: nn.Module, images: list[np.ndarray], rhos: list[float], height: int | None) -> tuple[float, dict[float, float], nn.Module]:
    """Frames per second of the network alone, measured in turns on these images: of the fastest dense form, and of the cascade by rho; and the
    cascade's fastest form."""
    inputs = trained.alike([_input(model, image, height) for image in images])
    sides, dense, _ = trained.forms(model, inputs[0], compiled=False)
    rates = {key: 1e3 / float(np.median(ms)) for key, ms in trained.taking_turns(sides, dense, inputs, rhos, 3).items()}
    best = max(sides, key=lambda form: sum(rates[form, rho] for rho in rhos))
    return max(rates[form] for form in dense), {rho: rates[best, rho] for rho in rhos}, sides[best]


def pick_rho(rates: dict[float, float], target: float) -> float:
    """The greatest rho, so the best labels, that reaches the target; the fastest one where none does."""
    return max((rho for rho, rate in rates.items() if rate >= target), default=max(rates, key=rates.get))


def video(source: Path, out: Path, model: nn.Module, spec: Spec, rho: float, target: float | None = None, height: int | None = None) -> None:
    """Write <frame>.png, labels beside stages, for every frame at rho, or at the rho that `pick_rho` finds on the first frames for a
    target in frames per second; prints the frames per second of the dense network and of the cascade."""
    (count, stream), out = frames(source), paths.folder(out)
    if out.samefile(source):
        raise InputError(f"--out {out} is the folder of the frames, which would be overwritten; give another one")
    first = list(itertools.islice(stream, PROBE))
    if not first:
        raise InputError(f"{source} holds no frame")
    dense, rates, quick = frame_rates(model, [image for _, image in first],
                                      sorted({float(r) for r in columns("1", "mIoU")}) if target else [rho], height)
    if target:
        rho = pick_rho(rates, target)
        print("FPS by rho:", ", ".join(f"{r:g}: {rate:.1f}" for r, rate in rates.items()),
              f"- rho = {rho:g}" + ("" if rates[rho] >= target else ", the fastest"))
    seconds = []
    for name, image in tqdm(itertools.chain(first, stream), total=count or None, unit="frame"):
        found = predict(quick, image, rho, height)
        pictures = overlays(image, found, spec)
        Image.fromarray(np.concatenate([pictures["labels"], pictures["stages"]], axis=1)).save(out / f"{name}.png")
        seconds.append(found.seconds)
    print(f"dense {dense:.1f} FPS | LC at rho = {rho:g} {rates[rho]:.1f} FPS on the first {len(first)} frames, "
          f"{len(seconds) / sum(seconds):.1f} over all {len(seconds)}; network alone, {machine.device_name(next(model.parameters()).device)}")


@torch.no_grad()
def stage_pictures(model: nn.Module, image: np.ndarray, label: np.ndarray, rho: float, spec: Spec) -> list[np.ndarray]:
    """A row of Fig. 4 / 6: input, the label map after each stage with the pixels it hands on marked, ground truth."""
    out, size = model(_input(model, image), check_rho(rho)), image.shape[:2]
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
    return [image, plots.colour(label, spec.palette), plots.colour(kind, plots.DIFFICULTY_RGB)]

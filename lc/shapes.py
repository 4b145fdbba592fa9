"""A procedural data set that behaves like VOC: much background, textured objects that hide each other, thin and small
things, an ignore band along boundaries, and some classes that are clearly harder. Same seed, same bytes, no download.

Coordinates: y, x in pixels of an S x S image; a shape is a signed distance map (S, S), negative inside.
"""
import numpy as np

SIZE = 128
IGNORE = 255
NAMES = ("background", "disc", "box", "triangle", "pole", "speck", "twin", "camouflage")
PALETTE = ((60, 60, 60), (230, 90, 60), (70, 130, 220), (120, 200, 80), (240, 210, 60), (220, 80, 200), (80, 210, 200), (170, 130, 90))
COUNTS = {"train": 600, "val": 120, "test": 120}
_SPLIT_SEED = {"train": 0, "val": 1, "test": 2}
_COLOUR = {1: (200, 80, 60), 2: (70, 110, 200), 3: (100, 180, 80), 4: (190, 170, 60), 5: (190, 80, 180), 6: (200, 80, 60)}
_FREQUENCY = (0.05, 0.14, 0.17, 0.16, 0.16, 0.09, 0.11, 0.12)  # how often an object is of that class; class 0: nothing


def sample(split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (S, S, 3) uint8 and label (S, S) uint8 with 255 = ignore; a pure function of split and index."""
    rng = np.random.default_rng([20170721, _SPLIT_SEED[split], index])
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    image, label = _background(rng, y, x), np.zeros((SIZE, SIZE), np.uint8)
    band = np.zeros((SIZE, SIZE), bool)
    for _ in range(rng.integers(5, 10)):
        kind = int(rng.choice(len(NAMES), p=_FREQUENCY))
        if kind == 0:
            continue
        distance = _distance(kind, rng, y, x)
        inside = distance < 0
        image[inside] = _texture(kind, rng, y, x, image)[inside]
        label[inside] = kind
        band = (band & (distance > 0)) | (np.abs(distance) < 1.0)
    image += rng.normal(0, 9, image.shape)
    label[band] = IGNORE
    return image.clip(0, 255).astype(np.uint8), label


def _background(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(S, S, 3) float: a colour gradient and three waves, different in every image."""
    base = rng.uniform(70, 170, 3)
    slope = rng.uniform(-0.3, 0.3, (2, 3))
    image = base + (y[..., None] - SIZE / 2) * slope[0] + (x[..., None] - SIZE / 2) * slope[1]
    for _ in range(3):
        fy, fx, phase = rng.uniform(-0.25, 0.25), rng.uniform(-0.25, 0.25), rng.uniform(0, 6.3)
        image = image + np.sin(fy * y + fx * x + phase)[..., None] * rng.uniform(2, 12, 3)
    return image


def _distance(kind: int, rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Signed distance (S, S) to the border of a randomly placed object of that class."""
    cy, cx, angle = rng.uniform(8, SIZE - 8), rng.uniform(8, SIZE - 8), rng.uniform(0, np.pi)
    v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
    u = (y - cy) * np.sin(angle) + (x - cx) * np.cos(angle)
    if kind == 1:
        return np.hypot(u, v) - rng.uniform(12, 28)
    if kind == 2:
        return np.maximum(np.abs(u) - rng.uniform(9, 24), np.abs(v) - rng.uniform(9, 24))
    if kind == 3:
        return np.maximum(np.abs(u) * 0.866 + v * 0.5, -v) - rng.uniform(9, 17)
    if kind == 4:
        return np.maximum(np.abs(u) - rng.uniform(25, 60), np.abs(v) - rng.uniform(1.5, 3.2))
    if kind == 5:
        return np.hypot(u, v) - rng.uniform(3.5, 6.5)
    if kind == 6:  # a disc's texture on an ellipse: only the outline tells it from a disc
        size = rng.uniform(9, 16)
        return np.hypot(u / 2.0, v) - size
    wave = 1 + 0.25 * np.sin(5 * np.arctan2(v, u))
    return np.hypot(u, v) - rng.uniform(12, 24) * wave


def _texture(kind: int, rng: np.random.Generator, y: np.ndarray, x: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """(S, S, 3) float: stripes, checks, plain paint, or (camouflage) what is behind, slightly shifted in colour."""
    if kind == 7:
        return np.roll(behind, (11, 17), (0, 1)) + rng.choice([-18.0, 18.0], 3)
    colour = np.array(_COLOUR[kind]) + rng.uniform(-25, 25, 3)
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.7, 1.1)
    stripe = np.sin(period * (y * np.sin(angle) + x * np.cos(angle)))
    check = np.sign(np.sin(0.6 * y) * np.sin(0.6 * x))
    pattern = {1: stripe, 6: stripe, 2: check}.get(kind, np.zeros_like(y))
    return colour + 35 * pattern[..., None]

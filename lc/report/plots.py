"""Frames and arrays -> axes. Nothing here trains, evaluates or reads a file."""
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL.ImageColor import getrgb

STAGE_COLOURS = ("#f2c14e", "#5aa469", "#3d6fb6")  # yellow, green, blue, as in Fig. 2
DIFFICULTY = {"ES": "#9bc1bc", "MS": "#f4a259", "HS": "#9d0208"}  # easy, moderate, extremely hard (Fig. 1)
STAGE_RGB = [(255, 255, 255), *map(getrgb, STAGE_COLOURS)]  # by stage number
DIFFICULTY_RGB = [getrgb(c) for c in DIFFICULTY.values()]
UNKNOWN = (255, 0, 255)
PAPER_COLOUR, OUR_COLOUR = "0.35", "#c8553d"


def style() -> None:
    """One look for all pages."""
    sns.set_theme(style="whitegrid", rc={"figure.dpi": 110, "savefig.bbox": "tight", "axes.spines.top": False, "axes.spines.right": False})


def colour(labels: np.ndarray, palette: Sequence) -> np.ndarray:
    """(H, W) class ids -> (H, W, 3) uint8; ignored pixels (255) white. palette: RGB triples."""
    table = np.full((256, 3), 255, np.uint8)
    table[:len(palette)] = palette
    return table[labels]


def panels(rows: list[list[np.ndarray]], titles: list[str], names: list[str] | None = None) -> Figure:
    """A grid of pictures: RGB (H, W, 3) or maps (H, W)."""
    height, width = rows[0][0].shape[:2]
    figure, grid = plt.subplots(len(rows), len(titles), squeeze=False, figsize=(2.3 * len(titles), 2.3 * len(rows) * height / width + 0.3))
    for axes, pictures in zip(grid, rows):
        for ax, picture in zip(axes, pictures):
            ax.imshow(picture, cmap="viridis", interpolation="nearest", vmin=0)
            ax.set_xticks([]), ax.set_yticks([]), ax.grid(False)
    for ax, title in zip(grid[0], titles):
        ax.set_title(title, fontsize=9)
    for axes, name in zip(grid, names or []):
        axes[0].set_ylabel(name, fontsize=8)
    figure.tight_layout(pad=0.3)
    return figure


def class_legend(figure: Figure, names: list[str], palette: tuple, unknown: bool = True) -> Figure:
    """Names and colours of the classes under a grid of pictures."""
    patches = [Patch(color=np.array(c) / 255, label=n) for n, c in zip(names, palette)]
    patches += [Patch(color=np.array(UNKNOWN) / 255, label="unknown: handed on")] if unknown else []
    figure.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncol=6, fontsize=8, frameon=False)
    return figure


def _finish(ax: Axes, xlabel: str, ylabel: str, title: str = "", **settings) -> Axes:
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title, **settings)
    ax.legend(fontsize=8)
    return ax


def rho_curves(curves: dict[str, pd.DataFrame]) -> Figure:
    """Table 1 along rho (spaced evenly, as the paper's thresholds are not), a line a name: what stages 1 and 2 decide, and mIoU less that at 1."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2))
    for ax, (value, title, unit) in zip(axes, (("stage-1", "decided in stage 1", "percent"), ("stage-2", "decided in stage 2", "percent"),
                                               ("mIoU", "mIoU (val) less that at rho = 1", "points"))):
        for (name, frame), colour_ in zip(curves.items(), (PAPER_COLOUR, OUR_COLOUR, STAGE_COLOURS[2])):
            ax.plot(range(len(frame)), frame[value] - frame[value]["1"] * (value == "mIoU"), "o-", color=colour_, label=name)
            ax.set_xticks(range(len(frame)), frame.index, rotation=60, fontsize=8)
        ax.set(xlabel="rho", ylabel=unit, title=title)
    figure.tight_layout()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncol=len(curves), fontsize=9, frameon=False)
    return figure


def trade_off(curves: dict[str, pd.DataFrame], x: str, ax: Axes, title: str, floor: float | None = None, y: str = "mIoU (percent)") -> Axes:
    """mIoU (or what `y` says) against a cost `x`: one line per name, points labelled by index where there is room; a single row is a point.
    floor: mIoU of the dense network, as a horizontal line."""
    for (name, points), colour_ in zip(curves.items(), (OUR_COLOUR, *STAGE_COLOURS[1:], PAPER_COLOUR, *sns.color_palette("dark"))):
        ax.plot(points[x], points["mIoU"], "o-", color=colour_, label=name)
    ax.margins(x=0.15)
    ax.autoscale_view()
    labelled = []
    for label, point in ((label, (row[x], row["mIoU"])) for points in curves.values() for label, row in points.iterrows()):
        at = ax.transData.transform(point)
        if all((np.abs(at - other) > (40, 15)).any() for other in labelled):  # else it would lie on another label
            labelled.append(at)
            ax.annotate(f"{label}", point, textcoords="offset points", xytext=(4, -9), fontsize=8)
    if floor is not None:
        ax.axhline(floor, color=PAPER_COLOUR, linestyle=":", label="DSN, nobody exits")
    return _finish(ax, x, y, title)


def band_curves(near: pd.DataFrame, ax: Axes) -> Axes:
    """Fig. 1b right: share of each set's pixels within a band round object boundaries, along the width of the band."""
    near.plot(ax=ax, style=[".-", ".-", ".-", ".--"], color=[*DIFFICULTY.values(), PAPER_COLOUR])
    return _finish(ax, "pixels to the nearest object boundary, at most", "percent of the set", ylim=(0, 100), xticks=near.index[near.index % 5 == 0])


def break_even(bench: dict, ax: Axes) -> Axes:
    """Of one of `speed_files`: speed-up over the fastest dense form against the active share, a line for each layer, and the ideal 1 / share."""
    frame = pd.DataFrame(bench["rows"]).pivot(index="active", columns="layer", values="speedup")
    frame.plot(style="o-", color=list(STAGE_COLOURS[1:]), ax=ax)
    share = np.linspace(frame.index.min(), 1, 50)
    ax.plot(share, 1 / share, "--", color=PAPER_COLOUR, label="ideal: 1 / share")
    ax.axhline(1, color=PAPER_COLOUR, linewidth=1)
    return _finish(ax, "share of active pixels", "speed-up over dense", bench["where"])


def stacked(frame: pd.DataFrame, ax: Axes, label: str, title: str, horizontal: bool = False, colours: tuple = STAGE_COLOURS) -> Axes:
    """One bar per row, one part per column, by default in the stages' colours (Fig. 1b, 5b, 7b)."""
    frame.plot(kind="barh" if horizontal else "bar", stacked=True, ax=ax, color=list(colours)[:frame.shape[1]], width=0.8, edgecolor="white")
    ax.set(title=title, **{"xlabel" if horizontal else "ylabel": label})
    ax.legend(fontsize=8, ncol=3, loc="lower center", bbox_to_anchor=(0.5, 1.07), frameon=False)
    ax.tick_params(axis="x", rotation=0 if horizontal else 45)
    return ax


def ratio_bars(ratios: pd.DataFrame) -> Figure:
    """Fig. 5a: one row of bars per pair of stages; above 1 the deeper stage sees more of that class."""
    figure, axes = plt.subplots(ratios.shape[1], 1, sharex=True, squeeze=False, figsize=(8, 2.1 * ratios.shape[1] + 0.6))
    for ax, (column, values) in zip(axes[:, 0], ratios.items()):
        ax.bar(ratios.index, values, color=np.where(values > 1, STAGE_COLOURS[1], "0.7"))
        ax.axhline(1, color=PAPER_COLOUR, linewidth=1)
        ax.set_ylabel(column, fontsize=9)
    axes[-1, 0].tick_params(axis="x", rotation=45)
    figure.tight_layout()
    return figure


def bars(values: pd.Series, ax: Axes, xlabel: str, stages: pd.Series | None = None, spread: np.ndarray | None = None) -> Axes:
    """One horizontal bar per entry, first on top, coloured by stage if given; spread: (2, entries) distances down and up."""
    colours = [STAGE_COLOURS[s - 1] for s in stages] if stages is not None else STAGE_COLOURS[2]
    ax.barh(values.index, values, color=colours, xerr=spread, error_kw={"ecolor": PAPER_COLOUR, "capsize": 2})
    ax.invert_yaxis()
    ax.set(xlabel=xlabel)
    if stages is not None:
        ax.legend(handles=[Patch(color=c, label=f"stage {i + 1}") for i, c in enumerate(STAGE_COLOURS)], fontsize=8)
    return ax

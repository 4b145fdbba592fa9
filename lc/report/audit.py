"""The paper against itself: numbers of one place recomputed from those of another. Everything comes from results/published.csv.

A printed number stands for an interval: half a unit of its last digit to both sides. Two places disagree only if no numbers
inside those intervals agree.
"""
from collections import namedtuple
from functools import cache
from itertools import pairwise

import numpy as np
import pandas as pd

from lc.networks import build
from lc.speed.cost import components
from lc.experiments import BEST_RHO
from lc.paper import published
from lc.report.tables import printed

FAST_RHO = "0.800"
CUTS = {"A ends stage 1, B ends stage 2": (3, 5), "A starts stage 2, B ends stage 2": (2, 5),  # how the two reductions fall to the stages:
        "A ends stage 1, B starts stage 3": (3, 4), "A starts stage 2, B starts stage 3": (2, 4)}  # Sec. 3.1 says each of both somewhere


# One comparison. stated: what a place says; computed: what other places give; so: what follows for the paper's claims where it disagrees;
# partly: it disagrees, but holds under a reading that is printed too
Finding = namedtuple("Finding", "subject places stated computed agrees so partly", defaults=("", False))


@cache
def findings() -> list[Finding]:
    """Every comparison, group by group."""
    return [finding for group in (gains, pixel_shares, speeds, ideal_speedups, means, wins, systems) for finding in group()]


def _near(stated: float, computed: float, unit: float, noise: float = 0.0) -> bool:
    """Whether a number printed in steps of `unit` can be the rounded value of `computed`, itself known to +- noise."""
    return abs(stated - computed) <= unit / 2 + noise + 1e-9


def _text(row: str, column: str = "value") -> float:
    return published("text", row, column).value


def gains() -> list[Finding]:
    """Gains and single thresholds of the text against the tables they come from."""
    by_rho, method, system = printed("1").loc["mIoU"], printed("2")["mIoU"], printed("3")["mIoU"]
    irnet, fast, bound = method["IRNet"], by_rho[FAST_RHO] - by_rho[BEST_RHO], _text("segnet-loss-above")
    behind = system["DeepLab-v2"] - system["SegNet"]
    pairs = [("LC over IRNet", "accuracy-gain-over-irnet", method["LC"] - irnet, 0.1, "Table 2"),
             ("DSN over IRNet", "dsn-gain-over-irnet", method["DSN"] - irnet, 0.01, "Table 2"),
             ("LC at rho = 0.95 over IRNet", "near-real-time-gain-over-irnet", by_rho["0.950"] - irnet, 0.1, "Tables 1, 2"),
             ("IRNet over ResNet-101", "irnet-gain-over-resnet-101", irnet - system["DeepLab-v2"], 0.1, "Tables 2, 3")]
    return [*(Finding(subject, f"{published('text', name).place} / {tables}", f"+{_text(name):g}", f"{value:+.2f}", _near(_text(name), value, unit),
                      "no table holds the ResNet-101 that was meant; the claim cannot be followed up")  # the last one alone disagrees
              for subject, name, value, unit, tables in pairs),
            Finding("SegNet under DeepLab-v2", "Sec. 4.3 / Table 3", f"over {bound:g}", f"{behind:.2f}", behind > bound),
            Finding("loss of LC (fast)", "Sec. 4.3 / Table 1", "a lower rho affects accuracy slightly",
                    f"{fast:+.2f} points from rho = {BEST_RHO} to {FAST_RHO}", fast > -2, "slight only above rho = 0.95 or so"),
            Finding("network at rho = 1", "Sec. 3.1 / Table 1", f"the original IRNet ({irnet})", f"{by_rho['1']} = DSN", by_rho["1"] == irnet,
                    "rho = 1 is the DSN (Sec. 4.1 says so too): its heads were trained with a loss each"),
            Finding("robust for rho in [0.9, 1]", "Sec. 3.1 / Tables 1, 2", "robust", f"{by_rho['0.900'] - irnet:+.2f} against IRNet at 0.9",
                    by_rho["0.900"] >= irnet, "LC beats IRNet from rho = 0.93 upwards, not from 0.9")]


def pixel_shares() -> list[Finding]:
    """Shares of pixels decided early, text against Table 1, and whether Table 1 is monotone as its rule demands."""
    share = printed("1").loc[["stage-1", "stage-2"]]
    both, easy, early = share.sum(), _text("stage-1-easy-share"), _text("early-stage-share")
    stated = {stage: _text(f"discard-rho-0.9-{stage}") for stage in share.index}
    drops = [f"{a} -> {b}: {both[a]:g} -> {both[b]:g} %" for a, b in pairwise(both.index) if both[b] < both[a]]
    background, most = _text("background-share-voc-val"), 100 / (100 - share.loc["stage-1", BEST_RHO])
    highest, rejected = _text("stage-2-label-ratio", "high"), _text("early-pixel-reduction-above")
    counts = share.loc["stage-2", BEST_RHO] / share.loc["stage-1", BEST_RHO]
    return [*(Finding(f"decided in {stage} at rho = 0.9", "Sec. 3.1 / Table 1", f"{value:g} %", f"{share.loc[stage, '0.900']:g} %",
                      value == share.loc[stage, "0.900"], "the two come from different models or images; speed at 0.9 is open")
              for stage, value in stated.items()),
            Finding("decided in stage 1 at rho = 0.95", "Sec. 3.1, poster / Table 1", f"nearly {easy:g} %", f"{share.loc['stage-1', '0.950']:g} %",
                    easy - share.loc["stage-1", "0.950"] <= 2, "generous rounding, or another model"),
            Finding(f"decided early at rho = {BEST_RHO}", "Sec. 4.1 / Table 1", f"around {early:g} %", f"{both[BEST_RHO]:g} %",
                    both[BEST_RHO] == early),
            Finding("decided early, by falling rho", "Table 1", "a lower rho decides more", ", ".join(drops) or "monotone", not drops,
                    "stage 1 alone is monotone; the sum need not be where each column is a model of its own, or where stage 2 sees another region"),
            Finding("rejected early at rho = 0.95", "Sec. 1 / Table 1", f"more than {rejected:g} %",
                    f"{share.loc['stage-1', '0.950']:g} % in stage 1, {both['0.950']:g} % in both", both["0.950"] > rejected),
            Finding("background decided in stage 1", "Sec. 3.1 / Sec. 1, Table 1", "most of the background",
                    f"at most {100 * share.loc['stage-1', BEST_RHO] / background:.0f} % of it: {share.loc['stage-1', BEST_RHO]:g} % of all pixels, "
                    f"of which {background:g} % are background",
                    2 * share.loc["stage-1", BEST_RHO] >= background, f"true of the picture, not of the average at rho = {BEST_RHO}"),
            Finding("greatest ratio of label shares", "Sec. 4.2, Fig. 5a / Table 1", f"up to {highest:g}",
                    f"at most {most:.2f}: all pixels over those that stage 2 gets; of pixels decided {counts:.2f} over all classes",
                    highest <= most + 0.01, "of pixels handed on: the end of an axis, or another rho, and of 20 foreground classes not all could "
                    "exceed 1; of pixels decided, by count, it can be", partly=counts > 1)]


def speeds() -> list[Finding]:
    """Milliseconds against images per second, and the stated speed gain against every pair of printed speeds."""
    table, base, gain = printed("3"), _text("inception-resnet-speed"), _text("speed-gain-percent")
    ms, after = table.loc["LC", "ms"], {"14.7": table.loc["LC", "FPS"], "15": _text("rho-0.985-speed"), "18": _text("near-real-time-speed")}
    found = {name: 100 * (fps / base - 1) for name, fps in {**after, "1000/65.1": 1000 / ms}.items()}
    saved = [100 * (1 - ms * (base + off) / 1000) for off in (-0.05, 0.05)]
    return [*(Finding(f"speed of {row.Index}", "Table 3", f"{row.FPS:g} FPS", f"{row.ms:g} ms = {1000 / row.ms:.2f} FPS",
                      _near(row.FPS, 1000 / row.ms, 0.1, 50 / row.ms ** 2),
                      "the columns hold different measurements; speed-ups are known to about 5 %") for row in table.itertuples()),
            Finding("speed gain of LC over IRNet", "Sec. 1 / Table 3, Sec. 3.1", f"+{gain} %",
                    ", ".join(f"{name} FPS: +{v:.0f} %" for name, v in found.items())
                    + f"; as time saved, {ms:g} ms for {base:g} FPS: {saved[1]:.1f} to {saved[0]:.1f} %",
                    any(_near(gain, v, 0.1, 2) for v in found.values()) or saved[1] <= gain <= saved[0],
                    "lower than every pair of speeds gives; nearest as time saved; the tables' 1.63x is used here"),
            Finding("time falls by depth and parameters", "Sec. 1 / Table 6, poster", "deeper networks with more parameters are slower",
                    f"ResNet-101 {printed('6').loc['DeepLab-v2', 'params']:g} M, VGG16 {printed('6').loc['CRF-RNN', 'params']:g} M; "
                    + ", ".join(f"{row} {fps:g} FPS" for row, fps in printed("poster")["FPS"].head(3).items()),
                    False, "the deeper networks have fewer parameters and are the faster ones in the paper's own tables")]


def ideal_speedups() -> list[Finding]:
    """Printed speed-ups against what the multiply-adds left at the printed pixel shares allow, for every reading of the cut."""
    fps, rows = printed("3")["FPS"], []
    for row, speed, rho, place in (("LC", fps["LC"], BEST_RHO, "Table 3, Sec. 1"), ("LC (fast)", fps["LC (fast)"], FAST_RHO, "Table 3, Sec. 1"),
                                   ("LC at rho = 0.95", _text("near-real-time-speed"), "0.950", "Sec. 3.1")):
        value = speed / _text("inception-resnet-speed")
        found = {name: bound(cut, rho) for name, cut in CUTS.items()}
        most = max(bound(cut, rho, rounding=0.5) for cut in CUTS.values())
        rows.append(Finding(f"speed-up of {row}", f"{place} / Table 1, Fig. 2", f"{value:.2f}x",
                            "at most " + ", ".join(f"{ideal:.2f}x ({name})" for name, ideal in found.items())
                            + f"; with shares as far up as rounding allows {most:.2f}x",
                            value <= most,
                            "the dense baseline was slower than its arithmetic needs, or the shares are not those of the timed images"))
    return rows


def bound(cut: tuple[int, int], rho: str, rounding: float = 0.0) -> float:
    """Greatest speed-up that the multiply-adds left at the shares of Table 1 allow at rho, heads left out on both sides; rounding: percent by which
    each printed share may be higher."""
    left = 1 - np.cumsum([0.0, *(printed("1").loc[["stage-1", "stage-2"], rho] + rounding) / 100])
    body = parts(cut)[lambda rows: ~rows["head"]]
    return body["macs"].sum() / (body["macs"] * left[body["stage"] - 1]).sum()


@cache
def parts(cut: tuple[int, int] = (3, 5)) -> pd.DataFrame:
    """Parts of the full network: stage, component, parameters, macs, and whether it is a head."""
    rows = pd.DataFrame(components(build(21, cut=cut), (512, 512)))
    return rows.assign(head=rows["component"].str.startswith("head"))


def _classes(table: str) -> pd.DataFrame:
    return printed(table).drop(columns=["mIoU", "sub"], errors="ignore")


def means() -> list[Finding]:
    """Table 4: the background IoU each printed mean implies, known to about +-2; the others of the table set the usual range.
    Table 5: the mean of the printed classes against the printed mean."""
    classes, stated = _classes("4"), printed("4")["mIoU"]
    implied = (classes.shape[1] + 1) * stated - classes.sum(axis=1)
    return [*(Finding(f"background IoU of {row}", "Table 4", f"mean {stated[row]:g}", f"implies {value:.1f}",
                      abs(value - implied.median()) <= 5 and value <= 100) for row, value in implied.items()),
            *(Finding(f"mean of {row}", "Table 5", f"{whole:g}", f"{mean:.2f}", _near(whole, mean, 0.1, 0.05),
                      "the row and its mean do not fit: two submissions, or a misprint; with the mean of the classes LC would lead the table")
              for (row, whole), mean in zip(printed("5")["mIoU"].items(), _classes("5").mean(axis=1)))]


def wins() -> list[Finding]:
    """Classes of Tables 4 and 5 that LC leads, and the place of its mean, against what the text says of them."""
    four, five, voc, city = _classes("4"), _classes("5"), printed("4")["mIoU"], printed("5")["mIoU"]
    others, stated = four.drop(["LC", "LC†"]), [_text(f"{data}-classes-won") for data in ("voc", "cityscapes")]
    leads = (four.loc[["LC", "LC†"]].max() - others.max()).sort_values(ascending=False)  # of the better of two LC models
    alone = (four.loc["LC"] > others[~others.index.str.endswith("†")].max()).sum()
    together, dagger, streets = (leads > 0).sum(), (four.loc["LC†"] > others.max()).sum(), five.loc["LC"] > five.drop("LC").max()
    named, hard = {"bicycle", "chair", "pottedplant", "sofa"}, ["fence", "pole", "traffic sign", "truck", "bus", "bicycle"]
    return [Finding("VOC classes won", "Sec. 4.4 / Table 4", f"{stated[0]:g} of 20",
                    f"{together} with both LC rows, {dagger} with COCO alone, {alone} without COCO among those without", dagger == stated[0],
                    "holds for the better of two LC models in each class, not for one model", partly=together == stated[0]),
            Finding("Cityscapes classes won", "Sec. 4.4 / Table 5", f"{stated[1]:g} of 19", f"{streets.sum()}", streets.sum() == stated[1]),
            Finding("hard Cityscapes classes", "Sec. 4.4 / Table 5", f"LC leads {', '.join(hard)}", f"it leads {streets[hard].sum()} of {len(hard)}",
                    streets[hard].all()),
            Finding("largest gains on VOC", "Sec. 4.4 / Table 4", ", ".join(sorted(named)),
                    ", ".join(f"{k} {v:+.1f}" for k, v in leads.head(6).items()), named <= set(leads.head(6).index)),
            Finding("rank of LC on VOC", "Sec. 4.4 / Table 4", "the best", f"{voc['LC†']:g}, the next {voc.drop(['LC', 'LC†']).max():g}",
                    voc["LC†"] == voc.max()),
            Finding("rank of LC on Cityscapes", "abstract, Sec. 4.4, Sec. 5 / Table 5", "state of the art",
                    f"{(city >= city['LC']).sum()} of {len(city)}: {city.max():g} leads LC's {city['LC']:g}", city["LC"] == city.max(),
                    "second by the printed means")]


def systems() -> list[Finding]:
    """Speeds of one system in two places, and parameters against the network of Fig. 2."""
    fps = lambda table, row: published(table, row, "FPS")
    backbone = "the slides head the column as speed of the backbone, and put it beside the accuracy of backbone, scales and CRF"
    same = [("LC in two tables", fps("6", "IRNet-LC"), fps("3", "LC"), "two measurements, 3 % apart"),
            ("LC at 80.3 mIoU", fps("slides", "LC (w/o COCO)"), fps("6", "IRNet-LC multi-scale CRF"), backbone),
            ("DeepLab-v2 at 79.7 mIoU", fps("slides", "DeepLab-v2"), fps("6", "DeepLab-v2"), backbone)]
    rows = [Finding(f"speed of {subject}", f"{a.place} / {b.place}".replace(" (in reading-notes.md only)", ""), f"{a.value:g} FPS",
                    f"{b.value:g} FPS", a.value == b.value, so) for subject, a, b, so in same]
    alone, whole = (fps(table, ours).value / fps(table, "DeepLab-v2").value for table, ours in (("3", "LC"), ("6", "IRNet-LC multi-scale CRF")))
    millions, stated = parts()[lambda rows: ~rows["head"]]["parameters"].sum() / 1e6, published("6", "IRNet-LC", "params").value
    return [*rows,
            Finding("speed-up over DeepLab-v2", "Table 3 / Table 6", f"{alone:.2f}x as a backbone", f"{whole:.2f}x with scales and CRF on both sides",
                    False, "most of a whole system's time is its CRF, which LC does not touch"),
            Finding("parameters", "Table 6 / Fig. 2", f"{stated} M", f"{millions:.2f} M without heads", stated > millions)]

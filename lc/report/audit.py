"""The paper against itself: numbers of one place recomputed from those of another. Everything comes from results/published.csv.

A printed number stands for an interval: half a unit of its last digit to both sides. Two places disagree only if no numbers
inside those intervals agree.
"""
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from lc.cascade import build_irnet_lc
from lc.speed.cost import components
from lc.experiments import BEST_RHO
from lc.paper import published
from lc.report.tables import printed

FAST_RHO = "0.800"


@dataclass(frozen=True)
class Finding:
    """One comparison. stated: what a place says; computed: what other places give; so: what follows for the paper's claims."""
    subject: str
    places: str
    stated: str
    computed: str
    agrees: bool
    so: str


def findings() -> list[Finding]:
    """Every comparison, group by group."""
    return [finding for group in (gains, thresholds, pixel_shares, speeds, ideal_speedups, means, wins, systems) for finding in group()]


def _near(stated: float, computed: float, unit: float, noise: float = 0.0) -> bool:
    """Whether a number printed in steps of `unit` can be the rounded value of `computed`, itself known to +- noise."""
    return abs(stated - computed) <= unit / 2 + noise + 1e-9


def _text(row: str) -> float:
    return published("text", row).value


def gains() -> list[Finding]:
    """Gains stated in the text against the tables they come from."""
    by_rho, method, system = printed("1").loc["mIoU"], printed("2")["mIoU"], printed("3")["mIoU"]
    pairs = [("LC over IRNet", "accuracy-gain-over-irnet", method["LC"] - method["IRNet"], 0.1, "Table 2"),
             ("DSN over IRNet", "dsn-gain-over-irnet", method["DSN"] - method["IRNet"], 0.01, "Table 2"),
             ("LC at rho = 0.95 over IRNet", "near-real-time-gain-over-irnet", by_rho["0.950"] - method["IRNet"], 0.1, "Tables 1, 2"),
             ("IRNet over ResNet-101", "irnet-gain-over-resnet-101", method["IRNet"] - system["DeepLab-v2"], 0.1, "Tables 2, 3")]
    so = {True: "the gain stands as printed", False: "no table holds the ResNet-101 that was meant; the claim cannot be followed up"}
    rows = [Finding(subject, f"{published('text', name).place} / {tables}", f"+{_text(name):g}", f"{value:+.2f}",
                    agrees := _near(_text(name), value, unit), so[agrees]) for subject, name, value, unit, tables in pairs]
    loss, bound = system["DeepLab-v2"] - system["SegNet"], _text("segnet-loss-above")
    return [*rows, Finding("SegNet under DeepLab-v2", "Sec. 4.3 / Table 3", f"over {bound:g}", f"{loss:.2f}", loss > bound, "stands as printed")]


def thresholds() -> list[Finding]:
    """What the text says of single thresholds against Tables 1 and 2."""
    by_rho, irnet = printed("1").loc["mIoU"], printed("2").loc["IRNet", "mIoU"]
    return [Finding("network at rho = 1", "Sec. 3.1 / Table 1", f"the original IRNet ({irnet})", f"{by_rho['1']} = DSN", by_rho["1"] == irnet,
                    "rho = 1 is the DSN (Sec. 4.1 says so too): its heads were trained with a loss each"),
            Finding("robust for rho in [0.9, 1]", "Sec. 3.1 / Tables 1, 2", "robust", f"{by_rho['0.900'] - irnet:+.2f} against IRNet at 0.9",
                    by_rho["0.900"] >= irnet, "LC beats IRNet from rho = 0.93 upwards, not from 0.9")]


def pixel_shares() -> list[Finding]:
    """Shares of pixels decided early, text against Table 1, and whether Table 1 is monotone as its rule demands."""
    share = printed("1").loc[["stage-1", "stage-2"]]
    both, easy, early = share.sum(), _text("stage-1-easy-share"), _text("early-stage-share")
    stated = {stage: _text(f"discard-rho-0.9-{stage}") for stage in share.index}
    drops = [f"{a} -> {b}: {both[a]:g} -> {both[b]:g} %" for a, b in pairwise(both.index) if both[b] < both[a]]
    return [*(Finding(f"decided in {stage} at rho = 0.9", "Sec. 3.1 / Table 1", f"{value:g} %", f"{share.loc[stage, '0.900']:g} %",
                      value == share.loc[stage, "0.900"], "the two come from different models or images; speed at 0.9 is open")
              for stage, value in stated.items()),
            Finding("decided in stage 1 at rho = 0.95", "Sec. 3.1, poster / Table 1", f"nearly {easy:g} %", f"{share.loc['stage-1', '0.950']:g} %",
                    easy - share.loc["stage-1", "0.950"] <= 2, "generous rounding, or another model"),
            Finding(f"decided early at rho = {BEST_RHO}", "Sec. 4.1 / Table 1", f"around {early:g} %", f"{both[BEST_RHO]:g} %",
                    both[BEST_RHO] == early, "stage-2 in Table 1 counts pixels of the whole image"),
            Finding("decided early, by falling rho", "Table 1", "a lower rho decides more", ", ".join(drops) or "monotone", not drops,
                    "one model swept at test time could not do this for stage 1: so each column is a model of its own, or a misprint")]


def speeds() -> list[Finding]:
    """Milliseconds against images per second, and the stated speed gain against every pair of printed speeds."""
    table, base, gain = printed("3"), _text("inception-resnet-speed"), _text("speed-gain-percent")
    after = {"14.7": table.loc["LC", "FPS"], "15": _text("rho-0.985-speed"), "18": _text("near-real-time-speed"),
             "1000/65.1": 1000 / table.loc["LC", "ms"]}
    found = {name: 100 * (fps / base - 1) for name, fps in after.items()}
    return [*(Finding(f"speed of {row.Index}", "Table 3", f"{row.FPS:g} FPS", f"{row.ms:g} ms = {1000 / row.ms:.2f} FPS",
                      _near(row.FPS, 1000 / row.ms, 0.1, 50 / row.ms ** 2),
                      "the columns hold different measurements; speed-ups are known to about 5 %") for row in table.itertuples()),
            Finding("speed gain of LC over IRNet", "Sec. 1 / Table 3, Sec. 3.1", f"+{gain} %",
                    ", ".join(f"{name} FPS: +{v:.0f} %" for name, v in found.items()), any(_near(gain, v, 0.1, 2) for v in found.values()),
                    "the abstract number is lower than every pair of speeds gives; the tables' 1.63x is used here")]


def ideal_speedups() -> list[Finding]:
    """Printed speed-ups against what the multiply-adds left at the printed pixel shares allow, for both readings of the cut."""
    rows = []
    for row, rho in (("LC", BEST_RHO), ("LC (fast)", FAST_RHO)):
        left = 1 - np.cumsum([0.0, *printed("1").loc[["stage-1", "stage-2"], rho] / 100])
        ideal = [_ideal(cut, left) for cut in ((3, 5), (2, 5))]
        stated = printed("3").loc[row, "FPS"] / _text("inception-resnet-speed")
        rows.append(Finding(f"speed-up of {row}", "Table 3, Sec. 1 / Table 1, Fig. 2", f"{stated:.2f}x",
                            f"at most {ideal[0]:.2f}x, or {ideal[1]:.2f}x with Reduction-A in stage 2", stated <= max(ideal) + 0.01,
                            "the dense baseline was slower than its arithmetic needs, or the shares are not those of the timed images"))
    return rows


def _body(cut: tuple[int, int] = (3, 5)) -> pd.DataFrame:
    """Parts of the full network without heads: stage, parameters, macs."""
    parts = pd.DataFrame(components(build_irnet_lc(21, cut=cut), (512, 512)))
    return parts[~parts["component"].str.startswith("head")]


def _ideal(cut: tuple[int, int], left: np.ndarray) -> float:
    parts = _body(cut)
    return parts["macs"].sum() / (parts["macs"] * left[parts["stage"] - 1]).sum()


def _classes(table: str) -> pd.DataFrame:
    return printed(table).drop(columns=["mIoU", "sub"], errors="ignore")


def implied_background(row: str) -> float:
    """Background IoU that makes the printed mean of a row of Table 4 (21 classes, 20 printed) come out, in percent."""
    values = _classes("4").loc[row]
    return (len(values) + 1) * printed("4").loc[row, "mIoU"] - values.sum()


def means() -> list[Finding]:
    """Table 4: the background IoU each printed mean implies, known to about +-2; the others of the table set the usual range.
    Table 5: the mean of the printed classes against the printed mean."""
    implied = {row: implied_background(row) for row in printed("4").index}
    usual = float(np.median(list(implied.values())))
    return [*(Finding(f"background IoU of {row}", "Table 4", f"mean {printed('4').loc[row, 'mIoU']:g}", f"implies {value:.1f}",
                      abs(value - usual) <= 5 and value <= 100, "the printed classes and the printed mean are not of one submission")
              for row, value in implied.items()),
            *(Finding(f"mean of {row}", "Table 5", f"{stated:g}", f"{mean:.2f}", _near(stated, mean, 0.1, 0.05),
                      "the row and its mean are not of one submission; with the mean of the classes LC would lead the table")
              for (row, stated), mean in zip(printed("5")["mIoU"].items(), _classes("5").mean(axis=1)))]


def wins() -> list[Finding]:
    """Columns of Tables 4 and 5 that LC leads."""
    four, five = _classes("4"), _classes("5")
    others = four.drop(["LC", "LC†"])
    leads = lambda ours, rest: int((ours > rest.max()).sum())
    together, dagger = leads(four.loc[["LC", "LC†"]].max(), others), leads(four.loc["LC†"], others)
    alone, cityscapes = leads(four.loc["LC"], others[~others.index.str.endswith("†")]), leads(five.loc["LC"], five.drop("LC"))
    voc, city = _text("voc-classes-won"), _text("cityscapes-classes-won")
    return [Finding("VOC classes won", "Sec. 4.4 / Table 4", f"{voc:g} of 20",
                    f"{together} with both LC rows, {dagger} with COCO alone, {alone} without COCO among those without", dagger == voc,
                    "holds for the better of two LC models in each class, not for one model"),
            Finding("Cityscapes classes won", "Sec. 4.4 / Table 5", f"{city:g} of 19", f"{cityscapes}", cityscapes == city, "stands as printed")]


def systems() -> list[Finding]:
    """Speeds of one system in two places, and parameters against the network of Fig. 2."""
    twice, backbone = "two measurements, 3 % apart", "the slides put a backbone's speed beside the accuracy of backbone, scales and CRF"
    same = [("LC in two tables", "6", "IRNet-LC", "3", "LC", twice),
            ("LC at 80.3 mIoU", "slides", "LC (w/o COCO)", "6", "IRNet-LC multi-scale CRF", backbone),
            ("DeepLab-v2 at 79.7 mIoU", "slides", "DeepLab-v2", "6", "DeepLab-v2", backbone)]
    rows = []
    for subject, table, row, other, name, so in same:
        a, b = published(table, row, "FPS"), published(other, name, "FPS")
        places = f"{a.place} / {b.place}".replace(" (in reading-notes.md only)", "")
        rows.append(Finding(f"speed of {subject}", places, f"{a.value:g} FPS", f"{b.value:g} FPS", a.value == b.value, so))
    millions, stated = _body()["parameters"].sum() / 1e6, published("6", "IRNet-LC", "params").value
    return [*rows, Finding("parameters", "Table 6 / Fig. 2", f"{stated} M", f"{millions:.2f} M without heads", stated > millions,
                           f"leaves {stated - millions:.1f} M for three heads of two convolutions, whose width the paper does not give")]

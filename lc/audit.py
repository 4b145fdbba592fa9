"""The paper against itself: numbers of one place recomputed from those of another. Everything comes from results/published.csv.

A printed number stands for an interval: half a unit of its last digit to both sides. Two places disagree only if no numbers
inside those intervals agree.
"""
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lc.cascade import build_irnet_lc
from lc.cost import components
from lc.experiments import BEST_RHO
from lc.paper import all_published, columns, published

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
    return [finding for group in (gains, thresholds, pixel_shares, speeds, ideal_speedups, backgrounds, class_means, wins, systems)
            for finding in group()]


def _near(stated: float, computed: float, unit: float, noise: float = 0.0) -> bool:
    """Whether a number printed in steps of `unit` can be the rounded value of `computed`, itself known to +- noise."""
    return abs(stated - computed) <= unit / 2 + noise + 1e-9


def _text(row: str, column: str = "value") -> float:
    return published("text", row, column).value


def _miou(row: str) -> float:
    return published("2", row, "mIoU").value


def gains() -> list[Finding]:
    """Gains stated in the text against the tables they come from."""
    pairs = [("LC over IRNet", "accuracy-gain-over-irnet", _miou("LC") - _miou("IRNet"), 0.1, "Table 2"),
             ("DSN over IRNet", "dsn-gain-over-irnet", _miou("DSN") - _miou("IRNet"), 0.01, "Table 2"),
             ("LC at rho = 0.95 over IRNet", "near-real-time-gain-over-irnet", published("1", "mIoU", "0.950").value - _miou("IRNet"), 0.1, "Tables 1, 2"),
             ("IRNet over ResNet-101", "irnet-gain-over-resnet-101", _miou("IRNet") - published("3", "DeepLab-v2", "mIoU").value, 0.1, "Tables 2, 3")]
    so = {True: "the gain stands as printed", False: "no table holds the ResNet-101 that was meant; the claim cannot be followed up"}
    rows = []
    for subject, name, value, unit, tables in pairs:
        agrees = _near(_text(name), value, unit)
        rows.append(Finding(subject, f"{published('text', name).place} / {tables}", f"+{_text(name):g}", f"{value:+.2f}", agrees, so[agrees]))
    loss = published("3", "DeepLab-v2", "mIoU").value - published("3", "SegNet", "mIoU").value
    bound = _text("segnet-loss-above")
    return [*rows, Finding("SegNet under DeepLab-v2", "Sec. 4.3 / Table 3", f"over {bound:g}", f"{loss:.2f}", loss > bound, "stands as printed")]


def thresholds() -> list[Finding]:
    """What the text says of single thresholds against Tables 1 and 2."""
    at_one, at_low = published("1", "mIoU", "1").value, published("1", "mIoU", "0.900").value
    return [Finding("network at rho = 1", "Sec. 3.1 / Table 1", f"the original IRNet ({_miou('IRNet')})", f"{at_one} = DSN", at_one == _miou("IRNet"),
                    "rho = 1 is the DSN (Sec. 4.1 says so too): its heads were trained with a loss each"),
            Finding("robust for rho in [0.9, 1]", "Sec. 3.1 / Tables 1, 2", "robust", f"{at_low - _miou('IRNet'):+.2f} against IRNet at 0.9",
                    at_low >= _miou("IRNet"), "LC beats IRNet from rho = 0.93 upwards, not from 0.9")]


def pixel_shares() -> list[Finding]:
    """Shares of pixels decided early, text against Table 1, and whether Table 1 is monotone as its rule demands."""
    share = {row: {rho: published("1", row, rho).value for rho in columns("1", row)} for row in ("stage-1", "stage-2")}
    both = {rho: share["stage-1"][rho] + share["stage-2"][rho] for rho in share["stage-1"]}
    rows = [Finding(f"decided in {stage} at rho = 0.9", "Sec. 3.1 / Table 1", f"{_text(f'discard-rho-0.9-{stage}'):g} %", f"{share[stage]['0.900']:g} %",
                    _text(f"discard-rho-0.9-{stage}") == share[stage]["0.900"], "the two come from different models or images; speed at 0.9 is open")
            for stage in share]
    easy = _text("stage-1-easy-share")
    rows.append(Finding("decided in stage 1 at rho = 0.95", "Sec. 3.1, poster / Table 1", f"nearly {easy:g} %", f"{share['stage-1']['0.950']:g} %",
                        easy - share["stage-1"]["0.950"] <= 2, "generous rounding, or another model"))
    early = both[BEST_RHO]
    rows.append(Finding(f"decided early at rho = {BEST_RHO}", "Sec. 4.1 / Table 1", f"around {_text('early-stage-share'):g} %", f"{early:g} %",
                        early == _text("early-stage-share"), "stage-2 in Table 1 counts pixels of the whole image"))
    drops = [f"{a} -> {b}: {both[a]:g} -> {both[b]:g} %" for a, b in pairwise(both) if both[b] < both[a]]
    return [*rows, Finding("decided early, by falling rho", "Table 1", "a lower rho decides more", ", ".join(drops) or "monotone", not drops,
                           "one model swept at test time could not do this for stage 1: so each column is a model of its own, or a misprint")]


def speeds() -> list[Finding]:
    """Milliseconds against images per second, and the stated speed gain against every pair of printed speeds."""
    rows = []
    for name in ("DeepLab-v2", "SegNet", "LC", "LC (fast)"):
        ms, fps = (published("3", name, c).value for c in ("ms", "FPS"))
        rows.append(Finding(f"speed of {name}", "Table 3", f"{fps:g} FPS", f"{ms:g} ms = {1000 / ms:.2f} FPS", _near(fps, 1000 / ms, 0.1, 50 / ms ** 2),
                            "the columns hold different measurements; speed-ups are known to about 5 %"))
    base, gain = _text("inception-resnet-speed"), _text("speed-gain-percent")
    after = {"14.7": published("3", "LC", "FPS").value, "15": _text("rho-0.985-speed"), "18": _text("near-real-time-speed"), "1000/65.1": 1000 / published("3", "LC", "ms").value}
    found = {name: 100 * (fps / base - 1) for name, fps in after.items()}
    rows.append(Finding("speed gain of LC over IRNet", "Sec. 1 / Table 3, Sec. 3.1", f"+{gain} %", ", ".join(f"{name} FPS: +{v:.0f} %" for name, v in found.items()),
                        any(_near(gain, v, 0.1, 2) for v in found.values()), "the abstract number is lower than every pair of speeds gives; the tables' 1.63x is used here"))
    return rows


def ideal_speedups() -> list[Finding]:
    """Printed speed-ups against what the multiply-adds left at the printed pixel shares allow, for both readings of the cut."""
    rows, base = [], _text("inception-resnet-speed")
    for label, row, rho in (("LC", "LC", BEST_RHO), ("LC (fast)", "LC (fast)", FAST_RHO)):
        left = 1 - np.cumsum([0.0, *(published("1", s, rho).value / 100 for s in ("stage-1", "stage-2"))])
        ideal = [_ideal(cut, left) for cut in ((3, 5), (2, 5))]
        stated = published("3", row, "FPS").value / base
        rows.append(Finding(f"speed-up of {label}", "Table 3, Sec. 1 / Table 1, Fig. 2", f"{stated:.2f}x", f"at most {ideal[0]:.2f}x, or {ideal[1]:.2f}x with Reduction-A in stage 2",
                            stated <= max(ideal) + 0.01, "the dense baseline was slower than its arithmetic needs, or the shares are not those of the timed images"))
    return rows


def _ideal(cut: tuple[int, int], left) -> float:
    macs = [(row["stage"], row["macs"]) for row in components(build_irnet_lc(21, cut=cut), (512, 512)) if not row["component"].startswith("head")]
    return sum(m for _, m in macs) / sum(m * left[stage - 1] for stage, m in macs)


def _classes(table: str, row: str) -> list[float]:
    return [published(table, row, c).value for c in columns(table, row) if c not in ("mIoU", "sub")]


def table_rows(table: str) -> list[str]:
    """Row headings of a published table, in order."""
    return list(dict.fromkeys(r for t, r, _ in all_published() if t == table))


def implied_background(row: str) -> float:
    """Background IoU that makes the printed mean of a row of Table 4 (21 classes, 20 printed) come out, in percent."""
    values = _classes("4", row)
    return (len(values) + 1) * published("4", row, "mIoU").value - sum(values)


def backgrounds() -> list[Finding]:
    """Table 4: the background IoU each printed mean implies, known to about +-2; the others of the table set the usual range."""
    implied = {row: implied_background(row) for row in table_rows("4")}
    usual = float(np.median(list(implied.values())))
    return [Finding(f"background IoU of {row}", "Table 4", f"mean {published('4', row, 'mIoU').value:g}", f"implies {value:.1f}", abs(value - usual) <= 5 and value <= 100,
                    "the printed classes and the printed mean are not of one submission") for row, value in implied.items()]


def class_means() -> list[Finding]:
    """Table 5: the mean of the printed classes against the printed mean."""
    rows = []
    for row in table_rows("5"):
        stated, mean = published("5", row, "mIoU").value, float(np.mean(_classes("5", row)))
        rows.append(Finding(f"mean of {row}", "Table 5", f"{stated:g}", f"{mean:.2f}", _near(stated, mean, 0.1, 0.05),
                            "the row and its mean are not of one submission; with the mean of the classes LC would lead the table"))
    return rows


def wins() -> list[Finding]:
    """Columns of Tables 4 and 5 that LC leads."""
    def leads(table: str, ours: list[str], others: list[str]) -> int:
        best = lambda rows: np.max([_classes(table, row) for row in rows], axis=0)
        return int((best(ours) > best(others)).sum())

    four, five = table_rows("4"), table_rows("5")
    ours = [row for row in four if row.startswith("LC")]
    others = [row for row in four if row not in ours]
    plain = [row for row in others if not row.endswith("†")]
    together, dagger = leads("4", ours, others), leads("4", [ours[-1]], others)
    alone = leads("4", [ours[0]], plain)
    cityscapes = leads("5", ["LC"], [row for row in five if row != "LC"])
    return [Finding("VOC classes won", "Sec. 4.4 / Table 4", f"{_text('voc-classes-won'):g} of 20", f"{together} with both LC rows, {dagger} with COCO alone, {alone} without COCO among those without",
                    dagger == _text("voc-classes-won"), "holds for the better of two LC models in each class, not for one model"),
            Finding("Cityscapes classes won", "Sec. 4.4 / Table 5", f"{_text('cityscapes-classes-won'):g} of 19", f"{cityscapes}", cityscapes == _text("cityscapes-classes-won"), "stands as printed")]


def systems() -> list[Finding]:
    """Speeds of one system in two places, and parameters against the network of Fig. 2."""
    same = [("LC in two tables", "6", "IRNet-LC", "3", "LC"), ("LC at 80.3 mIoU", "slides", "LC (w/o COCO)", "6", "IRNet-LC multi-scale CRF"),
            ("DeepLab-v2 at 79.7 mIoU", "slides", "DeepLab-v2", "6", "DeepLab-v2")]
    rows = []
    for subject, table, row, other, name in same:
        a, b = published(table, row, "FPS").value, published(other, name, "FPS").value
        rows.append(Finding(f"speed of {subject}", f"{published(table, row, 'FPS').place} / {published(other, name, 'FPS').place}".replace(" (in reading-notes.md only)", ""),
                            f"{a:g} FPS", f"{b:g} FPS", a == b, "the slides put a backbone's speed beside the accuracy of backbone, scales and CRF" if table == "slides" else "two measurements, 3 % apart"))
    millions = sum(row["parameters"] for row in components(build_irnet_lc(21), (512, 512)) if not row["component"].startswith("head")) / 1e6
    stated = published("6", "IRNet-LC", "params").value
    return [*rows, Finding("parameters", "Table 6 / Fig. 2", f"{stated} M", f"{millions:.2f} M without heads", stated > millions,
                           f"leaves {stated - millions:.1f} M for three heads of two convolutions, whose width the paper does not give")]

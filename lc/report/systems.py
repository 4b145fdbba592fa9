"""Tables 3 to 6, the poster's and the slides': other systems beside LC, under one budget; and what of the paper is covered where.

results/coverage.csv has a line for each table row and figure panel, with what it is made from, in one word each: a run or study of the
catalogue; time:NAME, a row of the systems' timing file; poster:NAME, of the poster's; bench:NAME, of a cascade; model, the network itself;
published, a row that is only quoted. Records that are missing leave their cells empty.
"""
import pandas as pd

from lc.report.claims import link
from lc.experiments import BEST_RHO, SYSTEMS as OTHERS
from lc.report.speedups import cascade_files, system_times
from lc.report.tables import MISSING, Evidence, class_iou, gain, listed, paper_and_ours, percent, printed, variant, words

LC = f"lc-{BEST_RHO}"
QUOTED = "published row only"
SYSTEMS = {**OTHERS, "irnet": "IRNet", "dsn": "DSN", LC: "LC", "lc-0.800": "LC (fast)", "aspp-lc": "LC with an ASPP head"}
FULL = ["run", "mIoU val", "mIoU test", "M parameters", "ms", "images/s"]
HEADS = {"3": FULL, "4": FULL[:3], "5": FULL[:3], "6": FULL, "poster": ["M parameters", "ms", "images/s"], "slides": FULL}
BACKBONES = {"VGG16": ("vgg16-dsn", "vgg16-lc"), "ResNet-101": ("resnet101-dsn", "resnet101-lc"), "IRNet": ("dsn", LC)}


def missing(ev: Evidence, word: str) -> bool:
    """Whether what a word of results/coverage.csv names is not there."""
    kind, _, name = word.partition(":")
    if kind in ("time", "poster"):
        return name not in system_times(ev.profile.name if kind == "time" else "").index
    if kind == "bench":
        return not cascade_files(ev, name)
    return kind not in ("model", "published") and kind not in ev.records


def coverage(ev: Evidence) -> pd.DataFrame:
    """Each table row and figure panel: page, what it is made from (runs with links to their records), state."""
    rows = []
    for line in listed("coverage"):
        made = line["on"].split()
        lacking = [word for word in made if missing(ev, word)]
        linked = [f'<a href="records/{ev[word].path.name}">{word}</a>' if word in ev.records else word for word in made]
        state = QUOTED if made == ["published"] else f"missing: {', '.join(lacking)}" if lacking else "substitute" if line["note"] else "done"
        rows.append({"place": line["where"], "row or panel": line["row"], "page": link(line["page"]), "made from": ", ".join(linked),
                     "state": state + (f" ({line['note']})" if line["note"] else "")})
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame) -> str:
    """How much of the paper has its live counterpart, in one sentence."""
    kinds = table["state"].str.extract(f"^({QUOTED}|missing|substitute|done)")[0].value_counts()
    return f"Of {len(table)} table rows and figure panels: " + ", ".join(f"{number} {kind}" for kind, number in kinds.items()) + "."


def numbers(ev: Evidence, made: list[str]) -> dict:
    """Our cells of a row: the run, mIoU (percent), millions of parameters, milliseconds and images per second of one image. A study
    stands for the last of its variants of LC without flips."""
    if made == ["published"]:
        return {"run": QUOTED}
    name, cells = made[0], {}
    if name in ev.records and "study" in ev[name].values:
        study = ev[name]["study"]
        last = max(i for i, variant in enumerate(study["variants"]) if variant.startswith("LC") and "flip" not in variant)
        cells |= {"run": f"{name}: {study['variants'][last]}", "mIoU val": 100 * study["miou"][last]}
    elif name in ev.records:
        cells |= {"run": name, **{f"mIoU {split}": percent(ev[name], split) for split in ev.splits}, "M parameters": ev[name]["parameters"] / 1e6}
    elif ":" not in name:
        cells["run"] = f"{name}: {MISSING}"
    for kind, _, system in (word.partition(":") for word in made if ":" in word and not missing(ev, word)):
        row = system_times(ev.profile.name if kind == "time" else "").loc[system]
        cells = {"M parameters": row["parameters"] / 1e6, **cells, "ms": row["ms"]}
    return cells | ({"images/s": 1000 / cells["ms"]} if "ms" in cells else {})


def _under(ev: Evidence, rows: dict[str, dict], heads: list[str]) -> pd.DataFrame:
    """Rows under these heads, without mIoU on a split that is not evaluated."""
    return pd.DataFrame(rows).T.reindex(columns=[head for head in heads if not head.startswith("mIoU ") or head[5:] in ev.splits])


def table(ev: Evidence, name: str) -> list[pd.DataFrame]:
    """A table of other systems, the paper's beside ours; of Tables 4 and 5 the means only, as our classes are others."""
    paper, where = printed(name), name.capitalize() if name in ("poster", "slides") else f"Table {name}"
    ours = {line["row"]: numbers(ev, line["on"].split()) for line in listed("coverage") if line["where"] == where}
    if name in "45":
        paper = paper[["mIoU"]].rename(columns={"mIoU": "Table 4, VOC12 test" if name == "4" else "Table 5, Cityscapes test"})
    for option in paper.columns.intersection(["COCO", "multi-scale", "CRF"]):
        paper[option] = paper[option].map({1: "yes", 0: "no"}).fillna("not disclosed")
    return paper_and_ours(paper, _under(ev, ours, HEADS[name]), ev, "full width, random weights" if name == "poster" else "")


def systems(ev: Evidence) -> pd.DataFrame:
    """All systems under one budget, and LC less each of them with its interval, in points (test, where there is one)."""
    rows = {title: {**numbers(ev, [name, f"time:{name}"]), "LC - it, points": "" if name == LC else words(gain(ev, LC, name, ev.splits[-1]))}
            for name, title in SYSTEMS.items()}
    return _under(ev, rows, [*FULL[:3], "LC - it, points", *FULL[3:]])


def by_class(ev: Evidence) -> pd.DataFrame:
    """IoU of each system by class on the test images (val, where there are none), percent (our counterpart of Tables 4 and 5)."""
    return pd.DataFrame({title: class_iou(ev[name], ev.splits[-1]) for name, title in SYSTEMS.items() if name in ev.records}).T


def backbones(ev: Evidence) -> pd.DataFrame:
    """LC on other networks: mIoU (percent) of DSN and LC on each, LC less DSN with its interval, pixels that stages 1 and 2 decide (percent)."""
    rows = {}
    for title, (dsn, lc) in BACKBONES.items():
        for split in ev.splits:
            cells = {row: percent(ev[name], split) for row, name in (("DSN", dsn), ("LC", lc)) if name in ev.records}
            decided = ev[lc]["metrics"][split]["decided"] if lc in ev.records else [float("nan")] * 2
            rows[title, split] = {**cells, "LC - DSN": words(gain(ev, lc, dsn, split)), "stage 1": 100 * decided[0], "stage 2": 100 * decided[1]}
    return pd.DataFrame(rows).T.reindex(columns=["DSN", "LC", "LC - DSN", "stage 1", "stage 2"])


def variants(ev: Evidence, name: str) -> pd.DataFrame:
    """A study of test-time options: mIoU (percent, val), gain over its first variant with interval, seconds per image."""
    study, scores = ev[name]["study"], [variant(ev[name], variant_) for variant_ in ev[name]["study"]["variants"]]
    images = f"on {len(ev[name].arrays['confusions'][0])} val images"
    return pd.DataFrame({"mIoU": 100 * pd.Series(study["miou"]), "over the first": [words(s - scores[0]) for s in scores],
                         "seconds per image": study["seconds"]}).set_axis(study["variants"]).rename_axis(images)

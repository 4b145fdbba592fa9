"""The README's numbers: what `python -m lc table readme` writes."""
import pandas as pd

from lc.report import speedups
from lc.report.summary import summary
from lc.report.tables import Evidence, methods, rho_table
from lc.report.verdicts import answers, gains
from lc.report.why import account


def block(ev: Evidence) -> str:
    """The README's numbers, as Markdown: summary, answers, why, gains, speed, Tables 2 and 1 (each on val and test), and where they come from."""
    written = lambda title, frames: [_markdown(title, frame, ev.label) for frame in frames]
    devices = " and ".join(dict.fromkeys(r["device"] for r in ev.trained))
    hours = sum(r.values.get("train_seconds", 0) + r["evaluate_seconds"] for r in ev.records.values()) / 3600
    origin = (f"Ours: {ev.label}, seed {ev.profile.seeds[0]}, {devices}; {len(ev.records)} records of {hours:.0f} hours of training and "
              f"evaluation by the clock in results/{ev.profile.name}/runs, each with its commit. Brackets: 95 % intervals from a paired bootstrap "
              "over images, of videos in blocks of ten frames, of means over seeds too; of speed-ups, quartiles.")
    return "\n\n".join([*written(ev.label, summary(ev)), *answers(ev), f"**Why?** {account(ev)}",
                        *written("Accuracy, points of mIoU", gains(ev)), *written("Speed", speedups.table(ev)),
                        *written("Table 2, mIoU", methods(ev)), *written("Table 1, by rho, percent", rho_table(ev)), origin])


def _markdown(title: str, frame: pd.DataFrame, label: str) -> str:
    """A frame as a table of Markdown; columns under the evidence's label are called ours."""
    columns = [" ".join([column] if isinstance(column, str) else map(str, column)) for column in frame.columns]
    heads = [title + f"; ours: {label}" * any(label in column for column in columns), *map(str, frame.index.names[1:]),
             *(column.replace(label, "ours") for column in columns)]
    rows = [[*map(str, index), *("-" if pd.isna(v) else f"{v:.2f}" if isinstance(v, float) else str(v) for v in row)]
            for index, row in zip(frame.index.to_frame().to_numpy(), frame.to_numpy(dtype=object))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *rows])

"""`lc bench`: measure, and write the timing file that pages read. Time depends on the device, so its name is in the file's."""
import json
import re
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import torch

from lc import cost, paths, records, runs
from lc.data import SegmentationSet, to_input
from lc.experiments import experiment
from lc.paper import columns


def run(profile_name: str, name: str, root, device: torch.device, images: int = 10, repeats: int = 5, target: Path | None = None) -> Path:
    """Time a trained cascade at the rho of Table 1 on validation images, one at a time; returns the file written."""
    entry = experiment(profile_name, name)
    model, _ = runs.trained(profile_name, name, device)
    data = SegmentationSet(entry.run.data, "val", root)
    picks = [round((i + 0.5) * len(data) / images) for i in range(min(images, len(data)))]
    inputs = [to_input(data.read(min(i, len(data) - 1))[0])[None].to(device, memory_format=torch.channels_last) for i in picks]
    rows = cost.bench_cascade(model, inputs, [float(rho) for rho in columns("1", "mIoU")], repeats)
    height, width = inputs[0].shape[2:]
    values = {"schema": records.SCHEMA, "kind": "cascade", "experiment": name, "key": entry.run.key(), "profile": profile_name,
              **records.provenance(runs.device_name(device)), "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
              "dtype": "float32", "batch": 1, "size": [height, width], "threads": torch.get_num_threads(), "images": len(inputs),
              "repeats": repeats, "warm_up": "one round over all images", "left_out": "reading, resizing, upsampling to labels",
              "model": asdict(entry.run.model), "rows": rows}
    slug = re.sub(r"[^a-z0-9]+", "-", values["device"].lower()).strip("-")
    target = target or paths.results(profile_name) / "bench" / f"cascade-{slug}.json"
    records.write_whole(target, (json.dumps(values, indent=1) + "\n").encode())
    return target

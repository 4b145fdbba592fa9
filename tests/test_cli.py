"""`python -m lc` and make as a user meets them: help, plans, and one clear line for bad input."""
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lc import data, paths, records, runs
from lc.__main__ import _device, main
from lc.errors import InputError
from lc.speed import trained

COMMANDS = ("list", "train", "run", "bench", "predict", "export", "table")


def lc(*arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "lc", *map(str, arguments)], cwd=paths.ROOT, capture_output=True, text=True, **options)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    """--help says what the command does, and exits with 0."""
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0 and "usage:" in capsys.readouterr().out


def test_plan_and_list_need_no_packages():
    """Before set-up a bare Python can say what will be done: nothing outside the standard library is imported."""
    run = lc("plan", "--profile", "shapes", env={"PYTHONPATH": "/nowhere"})
    bare = subprocess.run([sys.executable, "-S", "-m", "lc", "plan", "--profile", "shapes"], cwd=paths.ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and bare.returncode == 0, bare.stderr
    assert "Profile shapes (asked for)" in bare.stdout.splitlines()[0] and "minutes" in bare.stdout


def test_default_profile_says_why(monkeypatch):
    """Without a GPU, or with one that is too small or cannot be reached: shapes; with a large one: voc12; the reason is named."""
    from lc import experiments
    monkeypatch.setattr(experiments.shutil, "which", lambda name: None)
    assert experiments.chosen_profile("smoke") == ("smoke", "asked for")
    assert experiments.chosen_profile() == ("shapes", "no GPU is here (nvidia-smi lists none)")
    monkeypatch.setattr(experiments.shutil, "which", lambda name: "nvidia-smi")
    for code, said, chosen in ((0, "NVIDIA H200, 143771\nNVIDIA H200, 143771\n", ("voc12", "a GPU is here (NVIDIA H200)")), (0, "NVIDIA GB10, [N/A]\n", ("voc12", "a GPU is here (NVIDIA GB10)")),
                               (0, "RTX 3060, 12288\n", ("shapes", "the GPU here (RTX 3060) has 12288 MiB, voc12 is made for one GPU of 24 GB or more; PROFILE=voc12 tries it")),
                               (9, "NVIDIA-SMI has failed\n", ("shapes", "no GPU is here (nvidia-smi lists none)")), (0, "\n", ("shapes", "no GPU is here (nvidia-smi lists none)"))):
        monkeypatch.setattr(experiments.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, code, said))
        assert experiments.chosen_profile() == chosen


def test_readme_numbers_are_of_the_committed_profile(monkeypatch):
    """`lc table readme` shows it on every machine; only --profile names another."""
    from lc import records
    from lc.report import summary, tables
    asked, written = [], []
    monkeypatch.setattr(tables, "evidence", asked.append)
    monkeypatch.setattr(summary, "block", lambda ev: "numbers")
    monkeypatch.setattr(records, "write_whole", lambda path, content: written.append(path.name))
    assert main(["table", "readme"]) == main(["table", "readme", "--profile", "shapes"]) == 0
    assert asked == ["camvid-lite", "shapes"] and written == ["README.md"] * 2


def image_at(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)).save(path)
    return path


@pytest.mark.parametrize("arguments, message", [
    (("predict", "--rho", "1.5", "x.png"), "rho must be in [0, 1], got 1.5"),
    (("predict", "missing.png"), "image not found: missing.png"),
    (("predict", "README.md"), "README.md is no image that can be read"),
    (("predict", "--profile", "nope", "IMAGE"), "unknown profile 'nope'; profiles: smoke, shapes"),
    (("predict", "--experiment", "lc", "IMAGE"), "unknown experiment 'lc' of profile camvid-lite; experiments: initial"),
    (("list", "--profile", "nope"), "unknown profile 'nope'"),
    (("run", "--profile", "camvid", "initial", "--data", "/nowhere"), "CamVid (train list) not found: /nowhere/camvid/train.txt"),
    (("run", "--profile", "smoke", "dsnn"), "unknown experiment 'dsnn'"),
    (("run", "--profile", "smoke", "--jobs", "0"), "--jobs must be from 1 to 256, got 0"),
    (("predict", "--height", "-5", "IMAGE"), "--height must be from 32 to 8192, got -5"),
    (("predict", "--out", "README.md", "IMAGE"), "no folder can be made at README.md (File exists); give another place with --out"),
    (("predict", "--experiment", "study-crf", "IMAGE"), "study-crf evaluates finished weights and has none of its own; give --experiment lc-0.985"),
    (("predict", "--weights", "none.safetensors", "IMAGE"), "weights not found: none.safetensors does not exist; `lc train` says where it left some"),
    (("predict", "--weights", "tests", "IMAGE"), "tests does not fit the network of camvid-lite/lc-0.985 ("),
    (("predict", "--weights", "README.md", "IMAGE"), "README.md does not fit the network of camvid-lite/lc-0.985 ("),
    (("predict", "--weights", "results/camvid-lite/weights/dsn-fc455956f1.safetensors", "--experiment", "vgg16-lc", "IMAGE"),
     "does not fit the network of camvid-lite/vgg16-lc (Error(s) in loading state_dict"),
    (("predict", "tests"), "tests is a folder; give its images, as in tests/*.png"),
    (("video", "--rho", "0.9", "--fps", "10", "tests"), "--rho 0.9 and --fps 10 exclude each other"),
    (("bench", "--images", "0"), "--images must be from 1 to 1000000, got 0"),
    (("bench", "region", "--halo", "4"), "--halo 4 is for `bench network`, got `bench region`; a trained cascade has its own"),
    (("bench", "network", "--chain", "4"), "--chain 4 is for `bench region`, got `bench network`"),
    (("bench", "region", "--images", "2"), "--images 2 is for `bench cascade`, got `bench region`"),
    (("bench", "systems", "--processes", "2"), "--processes 2 is for `bench region`, `bench network`, `bench networks`, `bench training`, got `bench systems`"),
    (("bench", "--reading", "features"), "--reading features is for `bench network`, got `bench cascade`; a trained cascade has its own"),
    (("run", "--profile", "camvid", "--data", "/nowhere"), "CamVid (train list) not found: /nowhere/camvid/train.txt"),
    (("notebook", "rho", "--set", "profile=foo", "--out", "/tmp/x.ipynb"), "unknown profile 'foo'"),
    (("run", "--profile", "camvid", "initial", "--device", "tpu"), "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
    (("train", "initial", "--profile", "smoke", "--set", "train.lr=1"), "unknown setting 'train.lr'"),
    (("train", "initial", "--profile", "smoke", "--set", "train.batch_size=0"), "train.batch_size must be 1 or more, got 0"),
    (("train", "initial", "--profile", "smoke", "--set", "phases.0.epochs=-1"), "epochs must be 1 or more, got -1"),
    (("bench", "network", "--experiment", "lc-wide"), "--experiment lc-wide is for `bench cascade`, got `bench network`"),
    (("bench", "poster", "--profile", "typo"), "--profile typo is for `bench cascade`, `bench loader`, `bench systems`, got `bench poster`"),
    (("bench", "network", "--json", "IMAGE"), "image.png is there and is no timing file; give another name"), (("bench", "network", "--json", "tests"), "tests is there and is no"),
    (("bench", "network", "--json", "results/equivalent.json"), "equivalent.json is there and is no timing file"),
    (("train", "initial", "--profile", "smoke", "--out", "IMAGE"), "no folder can be made at"),
    (("train", "initial", "--profile", "smoke", "--set", "model.cut=[0,5]"), "cut must rise strictly between 0 and 6, got (0, 5)"),
    (("train", "vgg16-initial", "--profile", "smoke", "--set", "model.weights=IMAGE", "--set", "model.width=1.0"), "image.png weights of timm's vgg16_bn cannot be had ("),
    (("stage", "--profile", "nosuch"), "unknown profile 'nosuch'"), (("stage", "--profile", "voc12"), "records of voc12 not found"),
    (("video", "FOLDER", "--out", "FOLDER"), "is the folder of the frames, which would be overwritten; give another one"),
    (("table", "9"), "table '9' is not printed here; tables: 1, 2, readme; the book has the others"),
    (("notebook", "rhoo", "--out", "/tmp/x.ipynb"), "unknown notebook 'rhoo'; notebooks: architecture"),
    (("notebook", "rho", "--set", "rhoo=1", "--out", "/tmp/x.ipynb"), "notebook rho has no parameter 'rhoo'; its parameters: profile, rho"),
    (("notebook", "rho", "--set", "rho=high", "--out", "/tmp/x.ipynb"), "rho must be a number in [0, 1], got 'high'"),
    (("notebook", "rho", "--set", "rho=1.5", "--out", "/tmp/x.ipynb"), "rho must be in [0, 1], got 1.5"),
])
def test_bad_input_is_one_line(arguments, message, capsys, tmp_path):
    """Value, rule, next step; exit code 2; no traceback."""
    image = str(image_at(tmp_path / "image.png"))
    assert main([a.replace("IMAGE", image).replace("FOLDER", str(tmp_path)) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("lc: ")


def test_bench_takes_several_processes(capsys, monkeypatch):
    """Five on a CPU, of fewer rounds; one where one is asked for, and of a kind that has no pool; a part does not judge its own rounds."""
    from lc.speed import bench, timing
    monkeypatch.setattr(timing, "pooled", lambda arguments, processes, *_: [*arguments, processes]), monkeypatch.setattr(timing, "NOISY", 0.06)
    for kind in ("region", "network", "systems"):
        monkeypatch.setattr(bench, kind, lambda *_, **chosen: chosen)
    def said(*arguments):
        assert main(["bench", *arguments, "--device", "cpu", *(["--profile", "smoke"] if "systems" in arguments else [])]) == 0
        return capsys.readouterr().out.strip()
    assert said("region", "--chain", "3") == "['region', '--device=cpu', '--repeats=7', '--chain=3', 5]"
    assert said("network", "--repeats", "2", "--halo", "4", "--processes", "3") == "['network', '--device=cpu', '--repeats=2', '--halo=4', 3]"
    assert said("network", "--processes", "1") == "{}" and said("systems", "--repeats", "2") == "{'repeats': 2}" and timing.NOISY == 0.06
    assert said("region", "--part", "--repeats", "2") == "{'repeats': 2}" and timing.NOISY == float("inf")


def test_plan_counts_a_gpu_profile_as_a_gpu_makes_it(capsys, monkeypatch):
    """One run at a time, whatever cores the machine has that is asked."""
    monkeypatch.setattr("lc.machine.jobs", lambda: 4)
    assert main(["plan", "--profile", "camvid"]) == 0 and "minutes on one GPU, 1 at a time" in capsys.readouterr().out
    assert main(["plan", "--profile", "shapes"]) == 0 and "4 at a time" in capsys.readouterr().out


def test_predict_writes_nothing_when_one_image_is_bad(tmp_path):
    """All images are read before anything is written."""
    out = tmp_path / "out"
    run = lc("predict", image_at(tmp_path / "a.png"), tmp_path / "b.png", "--out", out)
    assert run.returncode == 2 and "image not found" in run.stderr and not out.exists()


def test_rho_and_height_are_those_of_the_run(tmp_path, monkeypatch):
    """The DSN is no cascade, and a run on large images sees large images, unless another rho or height is asked for."""
    monkeypatch.setattr(runs, "trained", lambda *_: (torch.nn.Identity(), None)), monkeypatch.setattr("lc.speed.fast.prepare", lambda model: model)
    asked = []
    monkeypatch.setattr("lc.predict.write_overlays", lambda images, out, model, spec, rho, height: asked.append((rho, height)) or [])
    for options in ((), ("--experiment", "dsn"), ("--experiment", "lc-large"), ("--experiment", "dsn", "--rho", "0.9", "--height", "64")):
        assert main(["predict", *options, "--device", "cpu", str(image_at(tmp_path / "a.png"))]) == 0
    assert asked == [(0.985, 180), (1.0, 180), (0.985, 360), (0.9, 64)]


def test_predict(tmp_path):
    """The committed cascade on an image of any size: three overlays of the image's own size."""
    image_at(tmp_path / "a.png")
    Image.fromarray(np.zeros((123, 31, 3), np.uint8)).save(tmp_path / "b.jpg")
    run = lc("predict", tmp_path / "a.png", tmp_path / "b.jpg", "--rho", "0.9", "--out", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"{s}.{k}.png" for s in "ab" for k in ("confidence", "labels", "stages")]
    assert Image.open(tmp_path / "out/b.labels.png").size == (31, 123) and "handed to each stage: 100 %" in run.stdout


def test_train_with_changed_settings_leaves_records_alone(tmp_path):
    """`train` puts weights and history where it is told, and says the mIoU; `predict` takes these weights."""
    run = lc("train", "initial", "--profile", "smoke", "--set", "phases.0.epochs=1", "--set", "data.limit=6", "--out", tmp_path / "t")
    assert run.returncode == 0, run.stderr
    assert "val mIoU" in run.stdout and {"weights.safetensors", "history.jsonl", "state.pt"} <= {p.name for p in (tmp_path / "t").iterdir()}
    made = ("--profile", "smoke", "--experiment", "initial", "--weights", tmp_path / "t/weights.safetensors", "--out", tmp_path / "out")
    run = lc("predict", *made, image_at(tmp_path / "a.png"))
    assert run.returncode == 0 and "a.labels.png" in run.stdout and "handed to each stage: 100 %" in run.stdout, run.stderr


def test_make_notebook_needs_a_name():
    """`make notebook` without NB lists the chapters; with RHO those that have one, before any data is fetched."""
    run = subprocess.run(["make", "-s", "notebook"], cwd=paths.ROOT, capture_output=True, text=True)
    assert run.returncode == 2 and "make notebook needs NB=<name>, one of: architecture" in run.stdout
    run = subprocess.run(["make", "-s", "notebook", "NB=speed", "RHO=0.9"], cwd=paths.ROOT, capture_output=True, text=True)
    assert run.returncode == 2 and run.stdout == "speed has no RHO; chapters that have: difficulty region_convolution rho stages\n"


def test_a_cascade_without_weights_is_not_timed(monkeypatch, capsys):
    """A record that came without its weights is no error: the command that makes them is named, and the next timing is taken. Only then may cuDNN
    try its convolutions: images of many sizes, as runs evaluate them, would each begin with that."""
    made = []
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(runs, "run_all", lambda *_: made.append(torch.backends.cudnn.benchmark))
    monkeypatch.setattr(records, "find", lambda entry: SimpleNamespace(stale=None))
    monkeypatch.setattr(records, "bench_missing", lambda name: ["lc-wide", "lc-0.985"])
    monkeypatch.setattr(data, "SegmentationSet", lambda *_: None)
    monkeypatch.setattr(runs, "weights_path", lambda name, run: None if name == "lc-wide" else name)
    monkeypatch.setattr(trained, "run", lambda *given, **_: f"timed {given[1]} {torch.backends.cudnn.benchmark}")
    assert main(["run", "--profile", "camvid-lite", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "lc-wide is not timed: its record came without its weights; train it with `python -m lc run --profile camvid-lite lc-wide`", "timed lc-0.985 True"]
    assert made == [False]


def test_one_gpu_of_several(monkeypatch):
    """Kernels go to the current device, so cuda:N is made that."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True), monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(_device(name)) for name in ("cuda:1", "cuda", "auto", "cpu")] == ["cuda:1", "cuda", "cuda", "cpu"] and chosen == ["cuda:1"]
    with pytest.raises(InputError, match="'cuda:7' asked for, but PyTorch sees 2 GPU here; use a lower number"):
        _device("cuda:7")

"""Notebooks and the book: papermill with the checks it lacks, staging, and the gate in front of jupyter-book.

Sources in book/ are never written to: a notebook is executed into build/<profile>/book, and the book is built there.
"""
import ast
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from lc import paths
from lc.errors import InputError, check_rho
from lc.experiments import profile

SOURCES = paths.ROOT / "book"


def parameters(name: str, given: dict[str, str]) -> tuple[Path, dict]:
    """Source of a chapter by name and all its parameters, typed: its defaults and the given texts. An unknown chapter, name or
    a value that does not fit raises InputError."""
    import papermill
    path = SOURCES / f"{Path(name).stem}.ipynb"
    if not path.exists():
        raise InputError(f"unknown notebook {name!r}; notebooks: {', '.join(sorted(p.stem for p in SOURCES.glob('*.ipynb')))}")
    values = {key: ast.literal_eval(entry["default"]) for key, entry in papermill.inspect_notebook(str(path)).items()}
    for key, text in given.items():
        if key not in values:
            raise InputError(f"notebook {name} has no parameter {key!r}; its parameters: {', '.join(values)}")
        values[key] = {"rho": check_rho, "profile": lambda name: profile(name).name}.get(key, str)(text)
    return path, values


def execute(name: str, given: dict[str, str], target: Path) -> Path:
    """Run a notebook into `target`, which appears only if every cell succeeded; a failure keeps <target>.failed.ipynb."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from traitlets.config import Config
    source, values = parameters(name, given)
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part.ipynb")
    try:
        with tempfile.TemporaryDirectory() as sockets:  # no open port, and no two kernels on one socket
            wires = Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"})
            papermill.execute_notebook(str(source), str(part), values, kernel_name="python3", cwd=str(paths.ROOT),
                                       progress_bar={"desc": name}, execution_timeout=1800, config=wires)
        check_executed(part)
    except (papermill.PapermillExecutionError, CellTimeoutError, DeadKernelError) as error:
        failed, kind = part.rename(target.with_suffix(".failed.ipynb")), getattr(error, "ename", type(error).__name__)
        raise InputError(f"notebook {name} failed: {kind}: {getattr(error, 'evalue', error)}; the executed copy is {failed}") from None
    notebook = json.loads(part.read_text())
    for tag, shown in (("parameters", "remove-input"), ("injected-parameters", "hide-input")):  # what papermill injected says what this run had
        for cell in _tagged(notebook, tag):
            cell["metadata"]["tags"].append(shown)
    part.write_text(json.dumps(notebook, indent=1))
    part.replace(target)
    return target


def _tagged(notebook: dict, tag: str) -> list[dict]:
    return [cell for cell in notebook["cells"] if tag in cell["metadata"].get("tags", [])]


def check_executed(path: Path) -> None:
    """Raise InputError unless every code cell of this notebook was started and completed; one with an error is not."""
    for number, cell in enumerate(json.loads(path.read_text())["cells"]):
        run = cell["metadata"].get("papermill", {})
        if cell["cell_type"] == "code" and (run.get("status") != "completed" or not run.get("start_time")):
            raise InputError(f"{path} was not executed to its end (cell {number}); run it again with `make book`")


def answers(path: Path) -> list[str]:
    """Texts of the cells tagged "answer": what a rerun prints on the terminal."""
    outputs = [output for cell in _tagged(json.loads(path.read_text()), "answer") for output in cell["outputs"]]
    return ["".join(output["data"]["text/markdown"]) for output in outputs if "text/markdown" in output.get("data", {})]


def to_html(path: Path) -> Path:
    """A page of one executed notebook, outside the book: <folder>/_build/_page/<name>/html/<name>.html."""
    path, tool = path.resolve(), Path(sys.executable).with_name("jupyter-book")
    shutil.copytree(SOURCES / "_static", path.parent / "_static", dirs_exist_ok=True)
    build = subprocess.run([tool, "build", path, "--path-output", path.parent, "--config", SOURCES / "_config.yml", "--quiet"],
                           capture_output=True, text=True)
    page = path.parent / "_build" / "_page" / path.stem / "html" / f"{path.stem}.html"
    if build.returncode or not page.exists():
        raise InputError(f"jupyter-book could not render {path}: {(build.stderr.strip() or 'no word of why').splitlines()[-1]}; run make setup")
    return page


def stage(profile_name: str) -> Path:
    """Copy what the book needs beside the executed notebooks: configuration, style, references, records; then check them all."""
    folder, runs = paths.build(profile(profile_name).name) / "book", paths.results(profile_name) / "runs"
    shown = folder / "extra" / "records"
    paths.need(runs, f"records of {profile_name}", f"run `make reproduce PROFILE={profile_name}`")
    shutil.rmtree(shown, ignore_errors=True)
    shutil.copytree(SOURCES, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.ipynb", ".ipynb_checkpoints"))
    shutil.copytree(runs, shown, ignore=shutil.ignore_patterns("*.npz", "*.jsonl"))
    for notebook in sorted(SOURCES.glob("*.ipynb")):
        check_executed(paths.need(folder / notebook.name, "executed notebook", "run `make book`"))
    return folder

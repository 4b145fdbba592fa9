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

SOURCES = paths.ROOT / "book"
_TYPES = {"float": float, "int": int, "str": str, "bool": lambda text: {"true": True, "false": False}[text.lower()]}


def notebook_path(name: str) -> Path:
    """Source of a chapter by name, e.g. "rho"; InputError lists the chapters."""
    path = SOURCES / f"{Path(name).stem}.ipynb"
    if not path.exists():
        raise InputError(f"unknown notebook {name!r}; notebooks: {', '.join(sorted(p.stem for p in SOURCES.glob('*.ipynb')))}")
    return path


def parameters(name: str, given: dict[str, str]) -> dict:
    """All parameters of a notebook, typed: its defaults and the given texts; a name or value that does not fit raises InputError."""
    import papermill
    known = papermill.inspect_notebook(str(notebook_path(name)))
    values = {key: ast.literal_eval(entry["default"]) for key, entry in known.items()}
    for key, text in given.items():
        if key not in known:
            raise InputError(f"notebook {name} has no parameter {key!r}; its parameters: {', '.join(known) or 'none'}")
        kind = known[key]["inferred_type_name"].strip()
        try:
            values[key] = _TYPES[kind](text)
        except (ValueError, KeyError):
            raise InputError(f"parameter {key} of notebook {name} must be {kind}, got {text!r}") from None
        if key == "rho":
            check_rho(values[key])
    return values


def execute(name: str, given: dict[str, str], target: Path) -> Path:
    """Run a notebook into `target`, which appears only if every cell succeeded; a failure keeps <target>.failed.ipynb."""
    import papermill
    from traitlets.config import Config
    values, target = parameters(name, given), target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part.ipynb")
    try:
        with tempfile.TemporaryDirectory() as sockets:  # no open port, and no two kernels on one socket
            wires = Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"})
            papermill.execute_notebook(str(notebook_path(name)), str(part), values, kernel_name="python3", cwd=str(paths.ROOT),
                                       progress_bar={"desc": name}, execution_timeout=1800, config=wires)
        check_executed(part)
        _hide_defaults(part)
    except papermill.PapermillExecutionError as error:
        failed = part.rename(target.with_suffix(".failed.ipynb"))
        raise InputError(f"notebook {name} failed: {error.ename}: {error.evalue}; the executed copy is {failed}") from None
    part.replace(target)
    return target


def _hide_defaults(path: Path) -> None:
    """Hide the cell of defaults: the one that papermill injected below it says what this run had."""
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            cell["metadata"]["tags"].append("remove-input")
    path.write_text(json.dumps(notebook, indent=1))


def check_executed(path: Path) -> None:
    """Raise InputError unless every code cell of this notebook was started and completed, and none holds an error."""
    for number, cell in enumerate(json.loads(path.read_text())["cells"]):
        if cell["cell_type"] == "code":
            run = cell["metadata"].get("papermill", {})
            if run.get("status") != "completed" or not run.get("start_time"):
                raise InputError(f"{path} was not executed to its end (cell {number}); run it again with `make book`")
            if any(output["output_type"] == "error" for output in cell["outputs"]):
                raise InputError(f"{path}: cell {number} holds an error; run it again with `make book`")


def answers(path: Path) -> list[str]:
    """Texts of the cells tagged "answer": what a rerun prints on the terminal."""
    texts = []
    for cell in json.loads(path.read_text())["cells"]:
        if "answer" in cell["metadata"].get("tags", []):
            for output in cell["outputs"]:
                data = output.get("data", {})
                texts.append("".join(data.get("text/markdown") or data.get("text/plain") or output.get("text", "")))
    return texts


def to_html(path: Path) -> Path:
    """A page of one executed notebook, outside the book: <folder>/_build/_page/<name>/html/<name>.html."""
    path, tool = path.resolve(), Path(sys.executable).with_name("jupyter-book")
    build = subprocess.run([tool, "build", path, "--path-output", path.parent, "--config", SOURCES / "_config.yml", "--quiet"],
                           capture_output=True, text=True)
    page = path.parent / "_build" / "_page" / path.stem / "html" / f"{path.stem}.html"
    if build.returncode or not page.exists():
        raise InputError(f"jupyter-book could not render {path}: {build.stderr.strip().splitlines()[-1:]}; run make setup")
    return page


def stage(profile_name: str) -> Path:
    """Copy what the book needs beside the executed notebooks: configuration, style, references, records; then check them all."""
    folder = paths.build(profile_name) / "book"
    for source in SOURCES.iterdir():
        if source.suffix in {".yml", ".md", ".bib"}:
            shutil.copy2(source, folder / source.name)
    shutil.copytree(SOURCES / "_static", folder / "_static", dirs_exist_ok=True)
    shown = folder / "extra" / "records"
    shutil.rmtree(shown, ignore_errors=True)
    shown.mkdir(parents=True)
    for record in sorted((paths.results(profile_name) / "runs").glob("*.json")):
        shutil.copy2(record, shown)
    for notebook in sorted(SOURCES.glob("*.ipynb")):
        check_executed(paths.need(folder / notebook.name, "executed notebook", "run `make book`"))
    return folder

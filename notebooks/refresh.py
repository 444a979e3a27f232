"""Run notebooks and keep their outputs: `python notebooks/refresh.py [NAME ...]`."""

import re
import sys
import time
from pathlib import Path

import nbformat
from contents import write
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
PROGRESS = re.compile(r"\d+%\||it/s|\d/s|\?it|\?/s")


def without_progress_bars(cell: dict) -> dict:
    """The cell without bars; any other line on stderr is a warning and stops the refresh."""
    kept = []
    for output in cell.get("outputs", []):
        if output.get("name") != "stderr":
            if kept and output.get("name") == "stdout" == kept[-1].get("name"):
                kept[-1]["text"] += output["text"]  # one text came in several pieces
            else:
                kept.append(output)
            continue
        lines = re.split(r"[\r\n]+", output["text"])
        loud = [line for line in lines if line.strip() and not PROGRESS.search(line)]
        if loud:
            raise SystemExit(f"a cell warns on stderr, mend it first: {loud[0][:300]}")
    cell["outputs"] = kept
    return cell


def refresh(path: Path) -> None:
    """Run one notebook from top to bottom and write it back."""
    notebook = nbformat.read(path, as_version=4)
    started = time.perf_counter()
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(FOLDER)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            without_progress_bars(cell)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    print(f"{path.name}: {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    chosen = [FOLDER / name for name in sys.argv[1:]] or sorted(FOLDER.glob("[0-9]*.ipynb"))
    for path in chosen:
        refresh(path)
    write()

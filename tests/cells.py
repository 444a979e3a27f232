"""Cells of the notebooks that teach something, found by their tag."""

from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def taught_source(notebook: str, what: str) -> str:
    """The source of the one cell of a notebook that is tagged `taught:<what>`."""
    cells = nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", as_version=4).cells
    tag = f"taught:{what}"
    (found,) = (cell.source for cell in cells if tag in cell.metadata.get("tags", []))
    return found

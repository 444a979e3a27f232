"""The tables of notebooks and models in the READMEs: `python notebooks/contents.py`.

The notebooks' is made from their title blocks, the models' from `rerank_utils.zoo`.
"""

import re
from pathlib import Path

import nbformat

from rerank_utils.report import write_between_markers
from rerank_utils.zoo import markdown_table

FOLDER = Path(__file__).parent
MARKERS = ("<!-- notebooks: written by make notebooks -->", "<!-- end of notebooks -->")
MODEL_MARKERS = ("<!-- models: written by make notebooks -->", "<!-- end of models -->")
PAGES = {FOLDER / "README.md": "", FOLDER.parent / "README.md": "notebooks/"}


def row(path: Path, prefix: str) -> str:
    """One line of the table: link, what it is about, level, minutes to read and to run."""
    title, facts = nbformat.read(path, as_version=4).cells[0].source.split("\n\n")[:2]
    name, about = re.match(r"# (\d\d · [^:]+): (.+)", title).groups()
    level = re.search(r"\*\*Level:\*\* (.+?) ·", facts).group(1)
    read, run = re.search(r"(\d+)\s+minutes\s+to\s+read,\s+about\s+(\d+)\s+to", facts).groups()
    return f"| [{name}]({prefix}{path.name}) | {about} | {level} | {read} | {run} |"


def table(prefix: str = "") -> str:
    """All notebooks, in order, as a Markdown table whose links start with the prefix."""
    lines = [
        "| notebook | what you learn | level | minutes to read | to run |",
        "|---|---|---|---:|---:|",
    ]
    return "\n".join(lines + [row(path, prefix) for path in sorted(FOLDER.glob("[0-9]*.ipynb"))])


def models() -> str:
    """The tables of embedders and rerankers, one below the other."""
    return "\n\n".join(markdown_table(kind) for kind in ("embedder", "reranker"))


def write() -> None:
    """Write the tables into notebooks/README.md and the project's README."""
    for page, prefix in PAGES.items():
        write_between_markers(page, table(prefix), MARKERS)
    write_between_markers(FOLDER.parent / "README.md", models(), MODEL_MARKERS)


if __name__ == "__main__":
    write()

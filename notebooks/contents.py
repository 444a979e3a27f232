"""The table of the notebooks, made from their title blocks: `python notebooks/contents.py`."""

import re
from pathlib import Path

import nbformat

FOLDER = Path(__file__).parent
MARKERS = ("<!-- notebooks: written by make notebooks -->", "<!-- end of notebooks -->")
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


def filled(page: Path, prefix: str) -> str:
    """The page with today's table between its two markers."""
    head, rest = page.read_text(encoding="utf-8").split(MARKERS[0])
    tail = rest.split(MARKERS[1])[1]
    return f"{head}{MARKERS[0]}\n{table(prefix)}\n{MARKERS[1]}{tail}"


def write() -> None:
    """Write the table into notebooks/README.md and the project's README."""
    for page, prefix in PAGES.items():
        page.write_text(filled(page, prefix), encoding="utf-8")


if __name__ == "__main__":
    write()

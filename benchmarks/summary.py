"""The speed tables of the README, from what was measured: `python benchmarks/summary.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench import RESULTS, markdown

from rerank_utils.report import write_between_markers

MARKERS = ("<!-- speed: written by make bench -->", "<!-- end of speed -->")
README = Path("README.md")
PAGE = Path("benchmarks") / "README.md"
"""Every table; the README shows the first."""
TITLES = {
    "rerank_cpu": "Reranking",
    "precision": "What a precision costs in quality",
    "half_depth": "A distilled student with half the layers",
    "recipe": "What the choices of the training recipe give",
    "embed_cpu": "Embedding the corpus",
    "gpu": "On a GPU, random weights of the real shapes",
    "search": "Search",
    "growth": "How the time grows with the work",
}


def read() -> dict[str, dict[str, Any]]:
    """Name of a benchmark -> its JSON, for those that have run."""
    paths = {name: RESULTS / f"{name}.json" for name in TITLES}
    return {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name, path in paths.items()
        if path.exists()
    }


def section(name: str, found: dict[str, Any]) -> str:
    """Title, table, and the facts that a reader needs to understand the figures."""
    facts, machine = found["facts"], found["machine"]
    numbers = ", ".join(f"{key} {_number(value)}" for key, value in facts.items())
    versions = ", ".join(f"{key} {value}" for key, value in machine["versions"].items())
    where = f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores"
    return "\n".join(
        [
            f"### {TITLES[name]}",
            "",
            markdown(found["rows"]),
            "",
            f"{where}; {machine['torch threads']} threads; {numbers}.",
            f"Python {machine['python']}, {versions}.",
        ]
    )


def short(found: dict[str, Any]) -> str:
    """The rerank table as the README shows it: of each way its best, and ratios to the others."""
    best: dict[str, dict[str, Any]] = {}
    for row in found["rows"]:
        kind = row["what"].split(", batch")[0]
        if kind not in best or row["pairs/s"] > best[kind]["pairs/s"]:
            best[kind] = row
    columns = ("what", "pairs/s", "x query by query", "x flat at its best")
    columns += ("x CrossEncoder at its best",)
    rows = [{column: row[column] for column in columns} for row in best.values()]
    facts, machine = found["facts"], found["machine"]
    where = (
        f"{facts['pairs']:,} pairs of {facts['tokens a pair']:.0f} tokens on average, medians of "
        f"{facts['rounds']} rounds in one process; {machine['processor']}, "
        f"{machine['cores']} cores."
    )
    return f"{markdown(rows)}\n\n{where}"


def _number(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def main() -> int:
    """Write both pages; to be called at the project's top."""
    results = read()
    if "rerank_cpu" not in results:
        print(f"{RESULTS} holds no rerank_cpu.json: run benchmarks/rerank_cpu.py first.")
        return 1
    sections = [section(name, found) for name, found in results.items()]
    write_between_markers(PAGE, "\n\n".join(sections), MARKERS)
    write_between_markers(README, short(results["rerank_cpu"]), MARKERS)
    print(f"written: {PAGE}, {README}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

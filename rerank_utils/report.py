"""Report: the full test split of the offline profile, as the table the README shows.

`python -m rerank_utils.report`. The one choice, the weight of the reranker in the mix, is made
on dev; on test everything is run once and written down.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from .evaluation import MEASURES, Comparison, Evaluation, compare, evaluate
from .fusion import interpolate
from .hub import quiet_libraries
from .pipeline import ARTIFACTS, Result, run_pipeline
from .plotting import plot_before_after
from .profiles import OFFLINE

WEIGHTS = np.round(np.arange(0.1, 1.0, 0.1), 1)
FIGURE = Path("notebooks/before_after.png")
MARKERS = ("<!-- results: written by make evaluate -->", "<!-- end of results -->")


def choose_weight(result: Result) -> tuple[float, dict[float, float]]:
    """The weight with the highest nDCG@10, and nDCG@10 by weight.

    Args:
        result: a pipeline's result on dev queries.
    """
    scores = {}
    for weight in WEIGHTS.tolist():
        mixed = interpolate(result.first_stage, result.reranked, weight, result.profile.depth)
        scores[weight] = evaluate(mixed, result.collection.qrels).mean("nDCG@10")
    return max(scores, key=scores.__getitem__), scores


def full_table() -> tuple[str, dict, Result]:
    """Run dev and test in full; return the table as Markdown, all numbers, the test result."""
    dev, test = (
        run_pipeline(replace(OFFLINE, split=split, queries=None)) for split in ("dev", "test")
    )
    weight, by_weight = choose_weight(dev)
    mixed = interpolate(test.first_stage, test.reranked, weight, OFFLINE.depth)
    rows = {
        "dense (MiniLM, FAISS flat)": test.before,
        "dense, top 50 reranked": test.after,
        f"dense and reranker mixed ({weight:g} reranker, chosen on dev)": evaluate(
            mixed, test.collection.qrels
        ),
    }
    numbers = {
        "dev": {
            "queries": len(dev.collection.queries),
            "dense": dev.before.means(),
            "reranked": dev.after.means(),
            "nDCG@10 by weight": by_weight,
        },
        "test": {
            "queries": len(test.collection.queries),
            "rows": {name: row.means() for name, row in rows.items()},
            "seconds": test.seconds,
        },
        "weight": weight,
    }
    return _markdown(rows, len(test.collection.queries)), numbers, test


def _markdown(rows: dict[str, Evaluation], queries: int) -> str:
    names, evaluations = list(rows), list(rows.values())
    lines = [
        "| " + " | ".join(["run", *MEASURES, "nDCG@10 against dense"]) + " |",
        "|---" * (len(MEASURES) + 2) + "|",
    ]
    for name, row in zip(names, evaluations, strict=True):
        cells = [name, *(f"{row.mean(measure):.3f}" for measure in MEASURES)]
        cells.append("–" if row is evaluations[0] else _change(evaluations[0], row))
        lines.append("| " + " | ".join(cells) + " |")
    note = (
        f"{queries} test queries, whose weaknesses no training query had as an answer; "
        "difference with 95 % bootstrap interval, two-sided paired permutation test with "
        "9,999 resamples."
    )
    return "\n".join([*lines, "", note])


def _change(dense: Evaluation, row: Evaluation) -> str:
    found: Comparison = compare(dense, row, "nDCG@10")
    ratio = row.mean("nDCG@10") / dense.mean("nDCG@10")
    p = "p < 0.001" if found.p < 0.001 else f"p = {found.p:.3f}"
    return f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}], × {ratio:.2f}, {p}"


def write_between_markers(path: Path, text: str) -> None:
    """Replace what stands between the two result markers of a file.

    Raises:
        ValueError: the file has not exactly one pair of markers.
    """
    page = path.read_text(encoding="utf-8")
    if any(page.count(marker) != 1 for marker in MARKERS):
        raise ValueError(f"{path} must hold the lines {MARKERS[0]!r} and {MARKERS[1]!r} once.")
    head, rest = page.split(MARKERS[0])
    tail = rest.split(MARKERS[1])[1]
    path.write_text(f"{head}{MARKERS[0]}\n{text}\n{MARKERS[1]}{tail}", encoding="utf-8")


def main() -> int:
    """Run, print, and write table and figure of the README; to be called at the project's top."""
    quiet_libraries()
    table, numbers, test = full_table()
    print(f"\n{table}\n")
    folder = ARTIFACTS / "offline"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    test.save(folder / "test")
    write_between_markers(Path("README.md"), table)
    title = f"{len(test.collection.queries)} vulnerability reports of the test split"
    plot_before_after(test.before, test.after, title).savefig(FIGURE, dpi=120)
    print(f"written: {folder / 'evaluation.json'}, README.md, {FIGURE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

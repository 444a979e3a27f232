"""Run notebooks several times, each in an empty folder, and report how far their metrics spread.

`python notebooks/repeat.py 5 [NAME ...]` prints, for each metric, the lowest and the highest value,
and the range that `rerank_utils/expected.toml` states. A range is set from at least five such runs.
"""

import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from rerank_utils.checks import expected_ranges

FOLDER = Path(__file__).parent
MARK = "METRICS "


def metrics_of(path: Path) -> dict[str, float]:
    """Run one notebook in an empty folder; the numbers that it hands to check_metrics."""
    notebook = nbformat.read(path, as_version=4)
    last = next(i for i, cell in enumerate(notebook.cells) if "check_metrics(" in cell.source)
    kept = notebook.cells[last].source.split("print(check_metrics(")[0]
    source = f'{kept}\nimport json\nprint("{MARK}" + json.dumps(metrics, default=float))'
    notebook.cells[last:] = [nbformat.v4.new_code_cell(source)]
    with tempfile.TemporaryDirectory() as empty:
        NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": empty}}).execute()
    printed = "".join(o.get("text", "") for o in notebook.cells[-1].outputs)
    return json.loads(printed.split(MARK)[1])


def main() -> None:
    times, names = int(sys.argv[1]), sys.argv[2:]
    for path in [FOLDER / name for name in names] or sorted(FOLDER.glob("[0-9]*.ipynb")):
        values, minutes = defaultdict(list), []
        for _ in range(times):
            started = time.perf_counter()
            for metric, value in metrics_of(path).items():
                values[metric].append(value)
            minutes.append((time.perf_counter() - started) / 60)
        print(
            f"\n[offline.{path.stem}]  {times} runs, {min(minutes):.1f} to {max(minutes):.1f} min"
        )
        ranges = expected_ranges("offline", path.stem)
        for metric, seen in values.items():
            stated = ranges.get(metric, "no range")
            print(f"{metric:<28}{min(seen):9.4f} … {max(seen):9.4f}   stated {stated}", flush=True)


if __name__ == "__main__":
    main()

"""How good each snapshot of a training is: `python -m rerank_utils.training_curve FOLDER`.

Reranks the dense candidates of all dev queries with each snapshot and writes the record that the
course draws its curves from. Other trainings of the same recipe with a smaller `report_share` add
the second curve: how much the amount of labelled reports matters.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from .bundled import adapter_path, merge
from .collection import Collection
from .engines import has_bfloat16
from .evaluation import evaluate
from .hub import quiet_libraries
from .pipeline import retrieve
from .profiles import OFFLINE
from .reranking import load_reranker, rerank
from .run import Run

RECORD = "training_log.json"
DEPTH = 50


def quality(adapter: Path, candidates: Run, collection: Collection) -> float:
    """nDCG@10 of an adapter on these candidates, in bfloat16 where the processor has it."""
    quick = {"backend": "openvino", "dtype": "bfloat16"} if has_bfloat16() else {}
    with tempfile.TemporaryDirectory() as folder:
        merge(adapter, Path(folder))
        reranker = load_reranker(folder, OFFLINE.reranker_length, "cpu")
        run = rerank(candidates, collection.queries, collection.documents, reranker, DEPTH, **quick)
    return round(evaluate(run, collection.qrels).mean("nDCG@10"), 4)


def record(folder: Path, others: list[Path], queries: int | None = None) -> dict[str, Any]:
    """The losses of a training, the quality of its snapshots and of the ends of others.

    Args:
        folder: what `rerank_utils.training --output` filled.
        others: folders of trainings with fewer reports.
        queries: the first so many of dev, by default all.
    """
    collection = OFFLINE.load().split("dev", queries)
    candidates = retrieve(replace(OFFLINE, queries=queries, depth=DEPTH), collection)
    snapshots = sorted((folder / "snapshots").iterdir(), key=lambda path: int(path.name))
    steps = []
    for snapshot in snapshots:
        found = quality(snapshot, candidates, collection)
        steps.append({"step": int(snapshot.name), "nDCG@10": found})
        print(steps[-1], flush=True)
    reports = []
    for other in others:
        recipe = json.loads((other / "recipe.json").read_text(encoding="utf-8"))
        found = quality(other / "adapter", candidates, collection)
        reports.append({"reports": recipe["reports"], "steps": recipe["steps"], "nDCG@10": found})
        print(reports[-1], flush=True)
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "dev": {
            "queries": len(collection.queries),
            "depth": DEPTH,
            "window": OFFLINE.reranker_length,
            "dense": round(evaluate(candidates, collection.qrels).mean("nDCG@10"), 4),
        },
        "losses": [json.loads(line) for line in lines],
        "steps": steps,
        "reports": sorted(reports, key=lambda row: row["reports"]),
    }


def main(arguments: list[str] | None = None) -> None:
    """Write the record beside the bundled reranker."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="of a whole training")
    parser.add_argument("others", type=Path, nargs="*", help="of trainings with fewer reports")
    parser.add_argument("--queries", type=int, help="the first so many of dev, by default all")
    parser.add_argument("--output", type=Path, default=adapter_path() / RECORD)
    given = parser.parse_args(arguments)
    quiet_libraries()
    found = record(given.folder, given.others, given.queries)
    given.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"written: {given.output.name}")


if __name__ == "__main__":
    main()

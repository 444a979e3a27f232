"""How a training went: `python -m rerank_utils.training_curve FOLDER`.

Writes the record that the course draws its curves from: the losses; how well each snapshot of the
cross-encoder, and their average, rerank the dense candidates of dev; and how well the encoder of
the first stage retrieves when it is tuned with a part of the reports. These smaller tunings are run
here, up to half an hour each on two cores, and kept in the folder.
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
from .errors import told
from .evaluation import evaluate
from .files import write_whole
from .hub import quiet_libraries
from .indexing import build_index
from .pipeline import retrieve
from .profiles import OFFLINE
from .reranking import load_reranker, rerank
from .run import Run
from .training import Trainer
from .training_folder import read_log
from .training_recipe import Recipe

RECORD = "training_log.json"
DEPTH = 20
QUICK = {"backend": "openvino", "dtype": "bfloat16" if has_bfloat16() else "float32"}
"""How models are scored that are only to be compared."""
SHARES = (0.125, 0.25, 0.5, 1.0)


def quality(adapter: Path, candidates: Run, collection: Collection) -> float:
    """nDCG@10 of an adapter on these candidates."""
    with tempfile.TemporaryDirectory() as folder:
        merge(adapter, Path(folder))
        reranker = load_reranker(folder, OFFLINE.reranker_length, "cpu")
        run = rerank(candidates, collection.queries, collection.documents, reranker, DEPTH, **QUICK)
    return round(evaluate(run, collection.qrels).mean("nDCG@10"), 4)


def tuned_quality(folder: Path, share: float, collection: Collection) -> dict[str, float]:
    """nDCG@10 of the encoder alone, tuned with a share of the reports, over all documents."""
    recipe = Recipe.of(folder)
    if share < recipe.report_share:
        recipe, folder = (
            replace(recipe, report_share=share, teachers=1),
            folder / "shares" / f"{share:g}",
        )
    trainer = Trainer(recipe, folder)
    encoder = trainer.encoders.bi_encoder(trainer.encoders.tuned())
    index = build_index(
        encoder.embed(list(collection.documents.values())), list(collection.documents)
    )
    queries = encoder.embed(list(collection.queries.values()))
    run = index.search(list(collection.queries), queries, DEPTH)
    found = round(evaluate(run, collection.qrels).mean("nDCG@10"), 4)
    return {"reports": len(trainer.data.reports), "nDCG@10": found}


def record(folder: Path, shares: list[float], queries: int | None = None) -> dict[str, Any]:
    """The losses of a training, the quality of its snapshots, and of encoders with fewer reports.

    Args:
        folder: what `rerank_utils.training --output` filled.
        shares: of the reports, each more than 0 and at most the recipe's own.
        queries: the first so many of dev, by default all.

    Raises:
        FileNotFoundError: the folder holds no training, or none that is finished.
        ValueError: a share out of its range.
    """
    recipe = Recipe.of(folder)
    if not ((folder / "snapshots").is_dir() and (folder / "adapter").is_dir()):
        raise FileNotFoundError(
            f"The training in {folder} is not finished, or saved no snapshot: run it to its end, "
            "with a snapshot_every below its steps."
        )
    if odd := [share for share in shares if not 0 < share <= recipe.report_share]:
        raise ValueError(
            f"shares holds {odd[0]:g}: give shares above 0, up to the {recipe.report_share:g} of "
            "the training."
        )
    collection = OFFLINE.load().split("dev", queries)
    candidates = retrieve(replace(OFFLINE, queries=queries, depth=DEPTH), collection)
    snapshots = sorted((folder / "snapshots").iterdir(), key=lambda path: int(path.name))
    steps, reports = [], []
    for snapshot in snapshots:
        steps.append(
            {"step": int(snapshot.name), "nDCG@10": quality(snapshot, candidates, collection)}
        )
        print(steps[-1], flush=True)
    result = {
        "averaged": recipe.averaged(),
        "nDCG@10": quality(folder / "adapter", candidates, collection),
    }
    print(result, flush=True)
    for share in sorted(shares):
        reports.append(tuned_quality(folder, share, collection))
        print(reports[-1], flush=True)
    return {
        "dev": {
            "queries": len(collection.queries),
            "depth": DEPTH,
            "window": OFFLINE.reranker_length,
            "dense": round(evaluate(candidates, collection.qrels).mean("nDCG@10"), 4),
        },
        "losses": read_log(folder),
        "steps": steps,
        "result": result,
        "reports": reports,
    }


def main(arguments: list[str] | None = None) -> None:
    """Write the record beside the bundled reranker."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="of a whole training")
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES, help="of the reports")
    parser.add_argument("--queries", type=int, help="the first so many of dev, by default all")
    parser.add_argument("--output", type=Path, default=adapter_path() / RECORD)
    given = parser.parse_args(arguments)
    quiet_libraries()
    with told():
        given.output.parent.mkdir(parents=True, exist_ok=True)  # before the hours, not after them
        found = record(given.folder, given.shares, given.queries)
        write_whole(json.dumps(found, indent=1) + "\n", given.output)
    print(f"written: {given.output.name}")


if __name__ == "__main__":
    main()

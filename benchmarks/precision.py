"""What a precision costs in quality: `python benchmarks/precision.py`.

All dev queries, dense candidates, the packaged reranker in each precision that this processor has.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from bench import write
from rerank_cpu import choices

from rerank_utils.evaluation import evaluate
from rerank_utils.hub import quiet_libraries
from rerank_utils.pipeline import retrieve
from rerank_utils.profiles import OFFLINE, locate
from rerank_utils.reranking import load_reranker, rerank
from rerank_utils.run import Run

EXACT = ("torch", "float32")


def main(arguments: Sequence[str] | None = None) -> None:
    """Rerank once in each precision, compare with float32."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reranker", default=OFFLINE.reranker)
    parser.add_argument("--max-length", type=int, default=OFFLINE.reranker_length)
    parser.add_argument("--queries", type=int, default=None, help="by default all of dev")
    parser.add_argument("--depth", type=int, default=20)
    given = parser.parse_args(arguments)
    quiet_libraries()
    profile = replace(OFFLINE, queries=given.queries, depth=given.depth)
    collection = profile.load().split("dev", given.queries)
    candidates = retrieve(profile, collection)
    reranker = load_reranker(str(locate(given.reranker)), given.max_length, "cpu")
    runs = {
        (backend, dtype): rerank(
            candidates,
            collection.queries,
            collection.documents,
            reranker,
            given.depth,
            backend=backend,
            dtype=dtype,
        )
        for backend, dtype in choices()
        if (backend, dtype) == EXACT or dtype != "float32"  # that all engines agree on it is tested
    }
    exact = runs[EXACT]
    quality = {how: evaluate(run, collection.qrels).mean("nDCG@10") for how, run in runs.items()}
    rows = []
    for (backend, dtype), run in runs.items():
        change = _changes(run, exact, given.depth)
        rows.append(
            {
                "precision": f"{backend} {dtype}",
                "nDCG@10": round(quality[backend, dtype], 4),
                "less than float32": round(quality[EXACT] - quality[backend, dtype], 4),
                "mean change of a logit": float(change.mean()),
                "largest change": float(change.max()),
            }
        )
    facts = {
        "queries": len(collection.queries),
        "depth": given.depth,
        "max length": given.max_length,
    }
    write("precision", facts, rows)


def _changes(run: Run, exact: Run, depth: int) -> np.ndarray:
    """How far each score lies from that of the same pair in float32."""
    rows = [
        abs(score - before[document])
        for (_, ids, scores), (_, known, exactly) in zip(run, exact, strict=True)
        for before in [dict(zip(known[:depth], exactly[:depth], strict=True))]
        for document, score in zip(ids[:depth], scores[:depth], strict=True)
    ]
    return np.array(rows)


if __name__ == "__main__":
    main()

"""How long evaluation takes, beside pytrec_eval on the same data in the same process.

    python benchmarks/evaluation.py --help

Both sides start from what a search returns: a list of documents and a list of scores for each
query. Conversion is part of the time: ours sorts them into a Run, theirs needs dictionaries. The
two take turns, so that a busy machine slows both. Before any time is taken, both must give the same
means.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import pytrec_eval

from rerank_utils.evaluation import evaluate
from rerank_utils.run import Run

MEASURES = {
    "nDCG@10": "ndcg_cut_10",
    "RR@10": "recip_rank",  # over lists cut at 10: pytrec_eval knows no cutoff for it
    "R@100": "recall_100",
    "AP": "map",
}


def make_data(queries: int, documents: int, seed: int = 0) -> tuple[list, list, list, dict]:
    """Query ids, documents and scores for each query, judgments with one to five relevant ones."""
    rng = np.random.default_rng(seed)
    corpus = np.array([f"doc{number:07}" for number in range(20 * documents)], dtype=object)
    query_ids = [f"q{number}" for number in range(queries)]
    chosen = [rng.choice(len(corpus), documents, replace=False) for _ in query_ids]
    ids = [corpus[row].tolist() for row in chosen]
    scores = [rng.random(documents, dtype=np.float32).tolist() for _ in query_ids]
    qrels = {
        query: {document: int(rng.integers(0, 4)) for document in rng.choice(row, 4)}
        | {corpus[rng.integers(len(corpus))]: 1}
        for query, row in zip(query_ids, ids, strict=True)
    }
    return query_ids, ids, scores, qrels


def ours(query_ids: list, ids: list, scores: list, qrels: dict) -> dict[str, float]:
    """Lists to a Run to measures."""
    return evaluate(Run.from_lists(query_ids, ids, scores), qrels, list(MEASURES)).means()


def theirs(query_ids: list, ids: list, scores: list, qrels: dict) -> dict[str, float]:
    """Lists to dictionaries to measures."""
    rows = zip(query_ids, ids, scores, strict=True)
    run = {query: dict(zip(row, given, strict=True)) for query, row, given in rows}
    found = pytrec_eval.RelevanceEvaluator(qrels, set(MEASURES.values())).evaluate(run)
    means = {
        name: float(np.mean([values[theirs] for values in found.values()]))
        for name, theirs in MEASURES.items()
    }
    reciprocal = np.array([values["recip_rank"] for values in found.values()])
    means["RR@10"] = float(np.where(reciprocal > 1 / 10.5, reciprocal, 0).mean())
    return means


def seconds(function: Callable, data: tuple) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    function(*data)
    return time.perf_counter() - started


def main() -> None:
    """Check that both agree, time them in turn, print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--documents", type=int, default=1_000, help="for each query")
    parser.add_argument("--rounds", type=int, default=5, help="calls of each side")
    options = parser.parse_args()
    data = make_data(options.queries, options.documents)
    first, second = ours(*data), theirs(*data)
    for name in MEASURES:
        assert abs(first[name] - second[name]) < 1e-9, (name, first[name], second[name])
    spent = [(seconds(ours, data), seconds(theirs, data)) for _ in range(options.rounds)]
    for name, column in zip(("rerank_utils", "pytrec_eval"), zip(*spent, strict=True), strict=True):
        print(f"{name:<13} {np.median(column):7.2f} s   {', '.join(f'{s:.2f}' for s in column)}")
    ratio = np.median([theirs / ours for ours, theirs in spent])
    print(
        f"pytrec_eval / rerank_utils: {ratio:.2f} (median of {options.rounds} rounds; "
        f"{options.queries:,} queries, {options.documents:,} documents each)"
    )


if __name__ == "__main__":
    main()

"""Evaluation: a Run and its judgments to measures, for each query and on average.

Measures carry the names of ir-measures and follow trec_eval: the mean goes over all judged
queries, and a judged query without results counts 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .collection import Qrels
from .run import Run

MEASURES = ("nDCG@10", "RR@10", "R@10", "R@50", "Success@1")


@dataclass(frozen=True)
class Evaluation:
    """Measures of one run.

    Attributes:
        name: name of the run.
        query_ids: (Q,) the judged queries, in the order of the qrels.
        values: measure name -> (Q,) float64, one value a query.
    """

    name: str
    query_ids: list[str]
    values: dict[str, np.ndarray]

    def mean(self, measure: str) -> float:
        """The mean over all judged queries."""
        return float(self.values[measure].mean())

    def means(self) -> dict[str, float]:
        """Measure name -> mean."""
        return {measure: self.mean(measure) for measure in self.values}


@dataclass(frozen=True)
class Comparison:
    """The difference between two runs in one measure, on the same queries.

    Attributes:
        measure: its name.
        difference: mean of after - before.
        low, high: 95 % bootstrap interval of the difference.
        p: two-sided paired permutation test: how often a difference at least as large comes
            about when the two runs of each query are swapped by chance.
        wins, ties, losses: queries on which `after` is better, equal, worse.
    """

    measure: str
    difference: float
    low: float
    high: float
    p: float
    wins: int
    ties: int
    losses: int


def evaluate(run: Run, qrels: Qrels, measures: Sequence[str] = MEASURES) -> Evaluation:
    """Score a run against judgments.

    Args:
        run: ranked lists; queries that are not judged are left out.
        qrels: query id -> document id -> grade. A grade above 0 is relevant; documents that
            are not judged count as not relevant.
        measures: names among `nDCG@k`, `RR@k`, `R@k`, `Success@k`, `P@k`, each with or without
            "@k", and `AP`.

    Returns:
        With grade g, rank i from 1, n relevant documents in the qrels, sums over i <= k:
        R@k = found / n; Success@k = 1 if any is found; RR@k = 1 / rank of the first;
        P@k = found / k; AP = sum of P@i over relevant i / n; nDCG@k = DCG / DCG of the best
        order of all judged documents, DCG = sum of max(g, 0) / log2(i + 1) (Järvelin and
        Kekäläinen 2002, gains as trec_eval has them).

    Raises:
        ValueError: unknown measure, no judgments, or no query in common.
    """
    functions = {measure: _parse(measure) for measure in measures}
    if not qrels:
        raise ValueError("The qrels are empty: there is nothing to evaluate against.")
    gains = _gains(run, qrels)
    ideals = [np.sort(np.maximum(list(grades.values()), 0))[::-1] for grades in qrels.values()]
    depth = max(len(ideal) for ideal in ideals)
    ideal = np.array([np.pad(row, (0, depth - len(row))) for row in ideals], dtype=np.float64)
    values = {measure: function(gains, ideal) for measure, function in functions.items()}
    return Evaluation(run.name, list(qrels), values)


def _gains(run: Run, qrels: Qrels) -> np.ndarray:
    """(judged queries, k) float64 grades in the order of the run; zeros where it has nothing."""
    rows = {query: row for row, query in enumerate(run.query_ids)}
    common = [query for query in qrels if query in rows]
    if not common:
        raise ValueError(
            f"The run {run.name!r} and the qrels have no query in common: were they made from "
            "the same collection?"
        )
    gains = np.zeros((len(qrels), run.doc_ids.shape[1]))
    for target, (query, grades) in enumerate(qrels.items()):
        if query in rows:
            documents = run.doc_ids[rows[query]]
            gains[target] = [max(grades.get(document, 0), 0) for document in documents]
    return gains


def _parse(measure: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """From a name to a function of (gains, ideal gains)."""
    name, _, cutoff = measure.partition("@")
    if name not in _FUNCTIONS or (cutoff and not (cutoff.isdigit() and int(cutoff))):
        known = ", ".join(f"{known}@k" for known in _FUNCTIONS)
        raise ValueError(f"Unknown measure {measure!r}: choose among {known}; k is 1 or more.")
    if name == "P" and not cutoff:
        raise ValueError("P needs a cutoff, such as P@10.")
    k = int(cutoff) if cutoff else None
    return lambda gains, ideal: _FUNCTIONS[name](gains[:, :k], ideal, k)


def _recall(gains: np.ndarray, ideal: np.ndarray, k: int | None) -> np.ndarray:
    return _ratio((gains > 0).sum(1), (ideal > 0).sum(1))


def _success(gains: np.ndarray, ideal: np.ndarray, k: int | None) -> np.ndarray:
    return (gains > 0).any(1).astype(np.float64)


def _reciprocal_rank(gains: np.ndarray, ideal: np.ndarray, k: int | None) -> np.ndarray:
    ranks = np.arange(1, gains.shape[1] + 1)
    return ((gains > 0) / ranks).max(1, initial=0.0)


def _precision(gains: np.ndarray, ideal: np.ndarray, k: int) -> np.ndarray:
    return (gains > 0).sum(1) / k


def _average_precision(gains: np.ndarray, ideal: np.ndarray, k: int | None) -> np.ndarray:
    relevant = gains > 0
    precision = relevant.cumsum(1) / np.arange(1, gains.shape[1] + 1)
    return _ratio((precision * relevant).sum(1), (ideal > 0).sum(1))


def _ndcg(gains: np.ndarray, ideal: np.ndarray, k: int | None) -> np.ndarray:
    return _ratio(_dcg(gains), _dcg(ideal[:, :k]))


def _dcg(gains: np.ndarray) -> np.ndarray:
    return (gains / np.log2(np.arange(2, gains.shape[1] + 2))).sum(1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, and 0 where there is nothing to find."""
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


_FUNCTIONS: dict[str, Callable] = {
    "nDCG": _ndcg,
    "RR": _reciprocal_rank,
    "R": _recall,
    "Success": _success,
    "P": _precision,
    "AP": _average_precision,
}


def compare(before: Evaluation, after: Evaluation, measure: str, seed: int = 0) -> Comparison:
    """Whether `after` differs from `before`, query by query.

    Args:
        before, after: evaluations of two runs on the same qrels.
        measure: a measure that both hold.
        seed: of the bootstrap and the permutation test (9,999 resamples each).

    Raises:
        ValueError: different queries, or fewer than two, for which there is no test.
    """
    from scipy.stats import bootstrap, permutation_test

    if before.query_ids != after.query_ids:
        raise ValueError("The two evaluations judge different queries: use the same qrels.")
    if len(before.query_ids) < 2:
        raise ValueError("A paired test needs at least two queries.")
    gain = after.values[measure] - before.values[measure]
    outcome = {"wins": gain > 0, "ties": gain == 0, "losses": gain < 0}
    counts = {name: int(hits.sum()) for name, hits in outcome.items()}
    if not gain.any():
        return Comparison(measure, 0.0, 0.0, 0.0, 1.0, **counts)
    rng = np.random.default_rng(seed)
    options = {"n_resamples": 9_999, "vectorized": True, "rng": rng, "batch": 1_000}
    interval = bootstrap((gain,), np.mean, method="percentile", **options).confidence_interval
    test = permutation_test(
        (gain,), np.mean, permutation_type="samples", alternative="two-sided", **options
    )
    return Comparison(
        measure, float(gain.mean()), *map(float, interval), float(test.pvalue), **counts
    )

"""Evaluation: a Run and its judgments to measures, for each query and on average.

Measures carry the names of ir-measures and follow trec_eval; `evaluate` lists the conventions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress

import numpy as np

from .collection import Qrels, check_grades
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
        qrels: query id -> document id -> grade.
        measures: names among `nDCG@k`, `RR@k`, `R@k`, `Success@k`, `P@k`, each with or without
            "@k" (`P` always with it), and `AP`.

    Returns:
        With grade g, rank i from 1, n relevant documents in the qrels, sums over i <= k:
        R@k = found / n; Success@k = 1 if any is found; RR@k = 1 / rank of the first;
        P@k = found / k; AP = sum of P@i over relevant i / n; nDCG@k = DCG / DCG of the best
        order of all judged documents, DCG = sum of max(g, 0) / log2(i + 1) (Järvelin and
        Kekäläinen 2002, gains as trec_eval has them).

        Conventions, those of trec_eval with the option -c, and of ir-measures:

        - A grade of 1 or more is relevant. A grade of 0, a negative one and no grade at all
          count alike: not relevant, gain 0.
        - A judged query without a ranking, with an empty one, or without any relevant document
          counts 0 and stays in the mean. A query that nobody judged is left out.
        - A list shorter than k is not filled up: R@k and nDCG@k see what is there, P@k still
          divides by k.
        - Equal scores are ordered by document id, the larger first; scores are float32, as in
          trec_eval, so what differs only beyond seven digits is equal.

    Raises:
        ValueError: unknown measure, or one given twice; no judgments, a grade that is no whole
            number, an empty run, no query in common, or a relevant document that stands twice in
            a ranking.
    """
    if isinstance(measures, str) or not measures or len(set(measures)) < len(measures):
        raise ValueError(
            f"measures is {measures!r}: give a list of different names, such as ['nDCG@10']."
        )
    functions = {measure: _parse(measure) for measure in measures}
    if not qrels:
        raise ValueError("The qrels are empty: there is nothing to evaluate against.")
    if not len(run):
        raise ValueError(f"The run {run.name!r} is empty: it holds no query.")
    check_grades(qrels)
    found, ideal = _found(run, qrels), _ideal(qrels)
    values = {measure: function(found, ideal) for measure, function in functions.items()}
    return Evaluation(run.name, list(qrels), values)


@dataclass(frozen=True)
class _Hits:
    """Relevant documents in ranked lists, one entry each, by query and then by rank.

    Attributes:
        rows: (H,) the query, as a row number.
        ranks: (H,) from 1.
        gains: (H,) float64 grades, all above 0.
        queries: number of rows, also of those without an entry.
    """

    rows: np.ndarray
    ranks: np.ndarray
    gains: np.ndarray
    queries: int

    @classmethod
    def gather(cls, lists: Iterable[tuple[Sequence[int], Sequence[float]]]) -> _Hits:
        """From (ranks, gains) of each query."""
        ranks, gains = zip(*lists, strict=True)
        rows = np.repeat(np.arange(len(ranks)), [len(row) for row in ranks])
        flat = (np.fromiter(chain.from_iterable(x), dtype=np.float64) for x in (ranks, gains))
        return cls(rows, *flat, len(ranks))

    def cut(self, k: int | None) -> _Hits:
        """Those at ranks up to k."""
        keep = self.ranks <= (k or np.inf)
        return _Hits(self.rows[keep], self.ranks[keep], self.gains[keep], self.queries)

    def sum(self, values: np.ndarray | None = None) -> np.ndarray:
        """(queries,) float64: the sum of one value an entry, or the number of entries."""
        return np.bincount(self.rows, values, self.queries).astype(np.float64)


def _found(run: Run, qrels: Qrels) -> _Hits:
    """Where the run has its relevant documents."""
    row_of = {query: row for row, query in enumerate(run.query_ids)}
    if not any(query in row_of for query in qrels):
        raise ValueError(
            f"The run {run.name!r} and the qrels have no query in common: were they made from "
            "the same collection?"
        )
    places = range(run.doc_ids.shape[1])
    lists = []
    for query, grades in qrels.items():
        relevant = {document for document, grade in grades.items() if grade > 0 and document != ""}
        ranking = run.doc_ids[row_of[query]].tolist() if query in row_of and relevant else ()
        # `map` and `compress` keep this loop over all documents out of the interpreter.
        hits = list(compress(places, map(relevant.__contains__, ranking)))
        if len({ranking[place] for place in hits}) < len(hits):
            raise ValueError(
                f"A document stands twice in the ranking of query {query!r} in the run "
                f"{run.name!r}: keep its better place."
            )
        lists.append(([place + 1 for place in hits], [grades[ranking[place]] for place in hits]))
    return _Hits.gather(lists)


def _ideal(qrels: Qrels) -> _Hits:
    """The best ranking there could be: all relevant documents, highest grade first."""
    gains = [
        sorted((g for g in grades.values() if g > 0), reverse=True) for grades in qrels.values()
    ]
    return _Hits.gather((range(1, len(row) + 1), row) for row in gains)


def _parse(measure: str) -> Callable[[_Hits, _Hits], np.ndarray]:
    """From a name to a function of what was found and of the ideal."""
    name, at, cutoff = measure.partition("@")
    valid = cutoff.isdecimal() and cutoff.isascii() and int(cutoff) > 0
    if name not in _FUNCTIONS or (at and not valid):
        known = ", ".join(f"{known}@k" for known in _FUNCTIONS)
        raise ValueError(f"Unknown measure {measure!r}: choose among {known}; k is 1 or more.")
    if name == "P" and not cutoff:
        raise ValueError("P needs a cutoff, such as P@10.")
    k = int(cutoff) if cutoff else None
    return lambda found, ideal: _FUNCTIONS[name](found.cut(k), ideal, k)


def _recall(found: _Hits, ideal: _Hits, k: int | None) -> np.ndarray:
    return _ratio(found.sum(), ideal.sum())


def _success(found: _Hits, ideal: _Hits, k: int | None) -> np.ndarray:
    return (found.sum() > 0).astype(np.float64)


def _reciprocal_rank(found: _Hits, ideal: _Hits, k: int | None) -> np.ndarray:
    best = np.zeros(found.queries)
    np.maximum.at(best, found.rows, 1 / found.ranks)
    return best


def _precision(found: _Hits, ideal: _Hits, k: int) -> np.ndarray:
    return found.sum() / k


def _average_precision(found: _Hits, ideal: _Hits, k: int | None) -> np.ndarray:
    before = np.concatenate([[0], found.sum().cumsum()])  # entries of earlier queries
    so_far = np.arange(1, len(found.rows) + 1) - before[found.rows]
    return _ratio(found.sum(so_far / found.ranks), ideal.sum())


def _ndcg(found: _Hits, ideal: _Hits, k: int | None) -> np.ndarray:
    return _ratio(_dcg(found), _dcg(ideal.cut(k)))


def _dcg(hits: _Hits) -> np.ndarray:
    return hits.sum(hits.gains / np.log2(hits.ranks + 1))


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


def answer_groups(qrels: Qrels) -> dict[str, int]:
    """Query id -> number of its group: queries that share a relevant document, also by way of
    others, are in one. What helps one of a group tends to help the others (see `compare`).

    Args:
        qrels: query id -> document id -> grade; a grade of 1 or more is relevant.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    asked = list(qrels)
    pairs = [(row, d) for row, q in enumerate(asked) for d, grade in qrels[q].items() if grade > 0]
    column = {
        document: len(asked) + i for i, document in enumerate(dict.fromkeys(d for _, d in pairs))
    }
    size = len(asked) + len(column)
    rows, columns = [row for row, _ in pairs], [column[d] for _, d in pairs]
    shared = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(size, size))
    _, labels = connected_components(shared, directed=False)
    return dict(zip(asked, labels.tolist(), strict=False))


def compare(
    before: Evaluation,
    after: Evaluation,
    measure: str,
    seed: int = 0,
    resamples: int = 9_999,
    groups: Mapping[str, int] | None = None,
) -> Comparison:
    """Whether `after` differs from `before`, query by query.

    Args:
        before, after: evaluations of two runs on the same qrels.
        measure: a measure that both hold.
        groups: query id -> group, such as `answer_groups(qrels)`. Without them every query is taken
            for a draw of its own; with them whole groups are drawn for the interval, and swapped
            for p. Wins, ties and losses are queries in any case.
        seed: of the bootstrap (9,999 resamples) and the permutation test.
        resamples: of the permutation test; the smallest p it can give is 2 / (resamples + 1).
            If there are no more ways to swap than that, all are counted and p is exact.

    Raises:
        ValueError: different queries, or fewer than two (or two groups), for which there is no
            test.
        KeyError: one of them lacks the measure, or a query has no group.
    """
    from scipy.stats import bootstrap, permutation_test

    if before.query_ids != after.query_ids:
        raise ValueError("The two evaluations judge different queries: use the same qrels.")
    if len(before.query_ids) < 2:
        raise ValueError("A paired test needs at least two queries.")
    gain = after.values[measure] - before.values[measure]
    outcome = {"wins": gain > 0, "ties": gain == 0, "losses": gain < 0}
    counts = {name: int(hits.sum()) for name, hits in outcome.items()}
    drawn = (gain,) if groups is None else _by_group(gain, before.query_ids, groups)
    gains = drawn[0]
    moved = gains[gains != 0]  # swapping equal values changes nothing: the test can do without
    if not len(moved):
        return Comparison(measure, 0.0, 0.0, 0.0, 1.0, **counts)
    rng = np.random.default_rng(seed)
    options = {"vectorized": True, "rng": rng, "batch": 1_000}
    kind = {} if groups is None else {"paired": True}
    statistic = np.mean if groups is None else _mean_of_groups
    interval = bootstrap(
        drawn, statistic, method="percentile", n_resamples=9_999, **kind, **options
    ).confidence_interval
    p = 1.0  # one query that moved can be swapped or not, which says nothing
    if len(moved) > 1:
        kind = {"permutation_type": "samples", "alternative": "two-sided"}
        p = permutation_test((moved,), np.sum, n_resamples=resamples, **kind, **options).pvalue
    return Comparison(measure, float(gain.mean()), *map(float, interval), float(p), **counts)


def _by_group(
    gain: np.ndarray, queries: Sequence[str], groups: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The sum of the gains of each group, and its number of queries."""
    if missing := [query for query in queries if query not in groups]:
        raise KeyError(f"The query {missing[0]!r} has no group: make them of the same qrels.")
    _, labels = np.unique([groups[query] for query in queries], return_inverse=True)
    totals, sizes = np.bincount(labels, gain), np.bincount(labels)
    if len(sizes) < 2:
        raise ValueError("All queries are in one group: a test needs at least two.")
    return totals, sizes


def _mean_of_groups(totals: np.ndarray, sizes: np.ndarray, axis: int) -> np.ndarray:
    """The mean over the queries of the groups drawn."""
    return totals.sum(axis) / sizes.sum(axis)

"""Fusion: several orders of the documents into one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .run import Run, rescore


def interpolate(
    first_stage: Run, reranked: Run, weight: float, depth: int, name: str | None = None
) -> Run:
    """Mix first-stage and reranker scores of the first `depth` candidates.

    Both scores are standardised for each query (mean 0, standard deviation 1 over its
    candidates), because a cosine and a logit share neither zero nor unit.

    Args:
        first_stage: the run that was reranked.
        reranked: what `rerank` made of it at this depth.
        weight: share of the reranker, from 0 (first stage only) to 1 (reranker only). Choose
            it on dev queries.
        depth: candidates a query, as for `rerank`.
        name: name of the result.

    Raises:
        ValueError: weight outside [0, 1], a depth below 1 or beyond that to which either run was
            reranked, or the runs hold different queries or candidates.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is {weight}: choose it from 0 to 1.")
    if depth < 1:
        raise ValueError(f"depth is {depth}: choose 1 or more, as for rerank.")
    for run in (first_stage, reranked):
        if run.depth is not None and depth > run.depth:
            raise ValueError(
                f"depth is {depth}, but {run.name!r} was reranked to a depth of {run.depth}, and "
                "its scores below mean nothing: use that depth."
            )
    if list(first_stage.query_ids) != list(reranked.query_ids):
        raise ValueError("The two runs hold different queries: rerank this first stage.")
    mixed = {}
    pairs = zip(first_stage, reranked, strict=True)
    for (query, ids, scores), (_, new_ids, new_scores) in pairs:
        new = dict(zip(new_ids[:depth], new_scores[:depth], strict=True))
        if set(new) != set(ids[:depth]):
            raise ValueError(
                f"The first {depth} candidates of query {query!r} differ between the runs: use "
                "the depth of the reranking."
            )
        old = _standardised(scores[:depth])
        ours = _standardised(np.array([new[document] for document in ids[:depth]]))
        blend = (1 - weight) * old + weight * ours
        mixed[query] = dict(zip(ids[:depth], blend.tolist(), strict=True))
    return rescore(first_stage, mixed, name or f"{first_stage.name} + rerank, mixed")


def reciprocal_rank_fusion(runs: Sequence[Run], k: int = 60, name: str = "RRF") -> Run:
    """Fuse runs by rank alone: a document's score is the sum of 1 / (k + its rank) over the runs.

    A run that lacks the document adds nothing, as if it stood infinitely far down. Scores of the
    runs play no part, so nothing needs to be brought to one scale (Cormack et al. 2009).

    Args:
        runs: two or more over the same queries.
        k: how little the first places stand out; 60 is the paper's value.
        name: name of the result.

    Returns:
        For each query, every document that any run holds.

    Raises:
        ValueError: fewer than two runs, different queries, or k below 0.
    """
    if k < 0:
        raise ValueError(f"k is {k}: choose 0 or more; 60 is usual.")

    def by_rank(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return 1 / (k + np.arange(1, len(ids) + 1))

    return _sum(runs, [1.0] * len(runs), by_rank, 0.0, name)


def convex_combination(
    runs: Sequence[Run],
    weights: Sequence[float],
    normalisation: str = "min-max",
    name: str = "convex combination",
) -> Run:
    """Fuse runs by score: the weighted sum of their scores, each brought to one scale first.

    Scores are normalised for each query and run. "min-max", the default, puts the list on 0 to 1,
    so that a document a run lacks can simply count as 0, like the last of its list: we only know
    that it is no better. "standard" (mean 0, standard deviation 1) has no such floor, so a
    document that is lacking counts as the last of the list here too. Which of the two is used
    matters little once the weights are tuned (Bruch et al. 2023, arXiv 2210.11934). A list of
    equal scores becomes 1 by min-max and 0 by standard.

    Args:
        runs: two or more over the same queries.
        weights: one a run, 0 or more, with the sum 1. Choose them on dev queries.
        normalisation: "min-max" or "standard".
        name: name of the result.

    Returns:
        For each query, every document that any run holds.

    Raises:
        ValueError: fewer than two runs, different queries, weights that do not fit, an unknown
            normalisation, or a run that was reranked in part: its scores below that depth only
            keep the order, and would set the scale of the rest.
    """
    for run in runs:
        if run.depth is not None:
            raise ValueError(
                f"Only the first {run.depth} documents of {run.name!r} have a reranker's score: "
                "rerank all that the run holds, or fuse by rank (reciprocal_rank_fusion)."
            )
    if len(weights) != len(runs):
        raise ValueError(f"{len(weights)} weights for {len(runs)} runs: give one for each.")
    if not (min(weights, default=0) >= 0 and abs(sum(weights) - 1) < 1e-6):
        raise ValueError(f"weights are {list(weights)}: they are 0 or more and their sum is 1.")
    if normalisation not in _NORMALISATIONS:
        raise ValueError(f"Unknown normalisation {normalisation!r}: min-max or standard.")
    scale, floor = _NORMALISATIONS[normalisation]
    return _sum(runs, weights, lambda ids, scores: scale(scores), floor, name)


def _sum(
    runs: Sequence[Run],
    weights: Sequence[float],
    points: Callable[[np.ndarray, np.ndarray], np.ndarray],
    floor: float | None,
    name: str,
) -> Run:
    """The weighted sum of what `points` makes of each list. A document that a list lacks gets
    `floor`, or the points of the last in that list if there is no such number."""
    if len(runs) < 2:
        raise ValueError(f"{len(runs)} runs: fusion needs two or more.")
    queries = list(runs[0].query_ids)
    given = [{query: points(ids, scores) for query, ids, scores in run} for run in runs]
    lists = [{query: ids for query, ids, _ in run} for run in runs]
    for run, held in zip(runs, lists, strict=True):
        if odd := set(queries) ^ set(held):
            raise ValueError(
                f"The runs {runs[0].name!r} and {run.name!r} hold different queries, such as "
                f"{min(odd)!r}: make both from the same queries."
            )
    fused = []
    for query in queries:
        total = dict.fromkeys((d for held in lists for d in held[query].tolist()), 0.0)
        for held, gained, weight in zip(lists, given, weights, strict=True):
            points_of = dict(zip(held[query].tolist(), gained[query].tolist(), strict=True))
            missing = min(points_of.values(), default=0.0) if floor is None else floor
            for document in total:
                total[document] += weight * points_of.get(document, missing)
        fused.append(total)
    rows = [list(total) for total in fused]
    return Run.from_lists(queries, rows, [list(total.values()) for total in fused], name)


def _min_max(scores: np.ndarray) -> np.ndarray:
    """From 0 to 1; ones where all scores are equal."""
    scores = np.asarray(scores, dtype=np.float64)
    low, high = scores.min(initial=np.inf), scores.max(initial=-np.inf)
    return (scores - low) / (high - low) if high > low else np.ones(len(scores))


def _standardised(scores: np.ndarray) -> np.ndarray:
    """Mean 0 and standard deviation 1; zeros where all scores are equal."""
    scores = np.asarray(scores, dtype=np.float64)
    centred = scores - scores.mean() if len(scores) else scores
    spread = centred.std() if len(scores) else 0.0
    return centred / spread if spread > 0 else centred


_NORMALISATIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float | None]] = {
    "min-max": (_min_max, 0.0),
    "standard": (_standardised, None),
}

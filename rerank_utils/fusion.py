"""Fusion: two orders of the same candidates into one."""

from __future__ import annotations

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
        ValueError: weight outside [0, 1], or the runs hold different queries or candidates.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is {weight}: choose it from 0 to 1.")
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


def _standardised(scores: np.ndarray) -> np.ndarray:
    """Mean 0 and standard deviation 1; zeros where all scores are equal."""
    centred = np.asarray(scores, dtype=np.float64) - np.mean(scores, dtype=np.float64)
    spread = centred.std()
    return centred / spread if spread > 0 else centred

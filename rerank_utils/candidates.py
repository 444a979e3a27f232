"""What each training query is compared with: mined once with the teacher, then drawn from."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from .teacher import Teacher
from .training_data import TrainingSet

CATALOGUE = ("CWE", "excerpt", "passage", "mixture")
"""Kinds of documents that a report or a sentence is compared with; a docstring with docstrings."""
SPARE = 12
"""Random documents that are kept for each query."""
CHUNK = 64
"""Queries that are scored at once: a matrix of (64, documents) float32."""


@dataclass(frozen=True)
class Scored:
    """Documents, as columns of the training set, and the teacher's scores of them."""

    columns: np.ndarray
    scores: np.ndarray

    def draw(self, count: int, rng: random.Random) -> list[int]:
        """Places of so many of them."""
        return rng.sample(range(len(self.columns)), count)


@dataclass(frozen=True)
class Candidates:
    """Documents of one query.

    Attributes:
        right: those it belongs to.
        mined: kind of document -> the best of that kind by the teacher, none of them right.
        others: some at random of the rest of these kinds, none of them right.
    """

    right: Scored
    mined: dict[str, Scored]
    others: Scored

    def group(
        self, shares: Mapping[str, int], others: int, rng: random.Random
    ) -> tuple[list[int], list[float]]:
        """Columns and scores of one right document, then mined ones, then random ones."""
        columns: list[int] = []
        scores: list[float] = []
        wanted = [(self.right, 1)]
        wanted += [(self.mined[kind], count) for kind, count in shares.items()]
        for scored, count in [*wanted, (self.others, others)]:
            places = scored.draw(count, rng)
            columns += scored.columns[places].tolist()
            scores += scored.scores[places].tolist()
        return columns, scores


def mine(data: TrainingSet, teacher: Teacher, ranks: int, seed: int) -> list[Candidates]:
    """The candidates of every training query, in the order of `data.queries`.

    Args:
        data: queries and documents.
        teacher: what scores them.
        ranks: how many to keep of each kind.
        seed: of the random ones.
    """
    rng = np.random.default_rng(seed)
    of_kind = {kind: np.flatnonzero(data.kind == kind) for kind in sorted(set(data.kind))}
    owned = data.columns_by_owner()
    found = []
    with tqdm(total=len(data.queries), desc="mine") as bar:
        for start in range(0, len(data.queries), CHUNK):
            asked = range(start, min(start + CHUNK, len(data.queries)))
            for place, scores in zip(asked, teacher.scores(list(asked)), strict=True):
                found.append(_candidates(data, place, scores, of_kind, owned, ranks, rng))
            bar.update(len(asked))
    return found


def _candidates(
    data: TrainingSet,
    place: int,
    scores: np.ndarray,
    of_kind: dict[str, np.ndarray],
    owned: dict[str, list[int]],
    ranks: int,
    rng: np.random.Generator,
) -> Candidates:
    asked = data.queries[place]
    right = np.array([data.column[document] for document in sorted(asked.positives)])
    barred = [column for w in asked.positives | asked.related for column in owned.get(w, ())]
    open_scores = scores.copy()
    open_scores[barred] = -np.inf
    kinds = ("docstring",) if asked.field == "docstring" else CATALOGUE
    mined, free = {}, []
    for kind in kinds:
        columns = of_kind.get(kind, np.zeros(0, dtype=int))
        fine = columns[open_scores[columns] > -np.inf]
        first = _first(open_scores[fine], ranks)
        best = fine[first]
        mined[kind] = Scored(best, scores[best])
        free.append(np.delete(fine, first))
    pool = np.concatenate(free)
    others = rng.choice(pool, min(SPARE, len(pool)), replace=False)
    return Candidates(Scored(right, scores[right]), mined, Scored(others, scores[others]))


def _first(scores: np.ndarray, count: int) -> np.ndarray:
    """Places of the highest scores, in no order."""
    if len(scores) <= count:
        return np.arange(len(scores))
    return np.argpartition(-scores, count)[:count]

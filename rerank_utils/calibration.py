"""Calibration: from a reranker's scores to probabilities, and to "nothing relevant here".

A logit orders the candidates of one query. Whether 2.0 means "probably relevant" has to be learnt
from judged pairs, on other queries than those it is then used on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import ArrayLike

EDGES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Bins of `reliability`. They are narrow near 0, where most candidates of a ranking belong."""


@dataclass(frozen=True)
class Platt:
    """A fitted curve 1 / (1 + exp(-(slope · score + intercept))). Call it with scores."""

    slope: float
    intercept: float

    def __call__(self, scores: ArrayLike) -> np.ndarray:
        """Probabilities, float64 in the shape of the scores."""
        from scipy.special import expit

        return expit(self.slope * np.asarray(scores, dtype=np.float64) + self.intercept)


@dataclass(frozen=True)
class Isotonic:
    """A fitted curve that never falls: straight between the knots, flat outside. Call it with
    scores.

    Attributes:
        scores: (n,) float64, rising.
        probabilities: (n,) float64, never falling.
    """

    scores: np.ndarray
    probabilities: np.ndarray

    def __call__(self, scores: ArrayLike) -> np.ndarray:
        """Probabilities, float64 in the shape of the scores."""
        return np.interp(np.asarray(scores, np.float64), self.scores, self.probabilities)


def fit_platt(scores: ArrayLike, relevant: ArrayLike) -> Platt:
    """The sigmoid curve under which the judgments are most likely (Platt 1999).

    Instead of 1 and 0 it aims at (n + 1) / (n + 2) for the n relevant pairs and at 1 / (m + 2)
    for the m others, as Platt does: otherwise the curve of data without overlap is a step.

    Args:
        scores: (n,) of pairs of any number of queries.
        relevant: (n,) truth values.

    Raises:
        ValueError: the shapes differ, a score is not a finite number, or all pairs are of one
            kind.
    """
    from sklearn.linear_model import LogisticRegression

    scores, relevant = _checked(scores, relevant)
    positive, negative = relevant.sum(), (~relevant).sum()
    goal = np.where(relevant, (positive + 1) / (positive + 2), 1 / (negative + 2))
    # A pair with the goal 0.9 is a relevant one of weight 0.9 and another one of weight 0.1.
    centre, spread = scores.mean(), scores.std() or 1.0
    column = np.tile((scores - centre) / spread, 2)[:, None]
    kinds = np.repeat([1, 0], len(scores))
    model = LogisticRegression(C=inf, tol=1e-8, max_iter=1_000)
    model.fit(column, kinds, sample_weight=np.concatenate([goal, 1 - goal]))
    slope = float(model.coef_[0, 0]) / spread
    return Platt(slope, float(model.intercept_[0]) - slope * centre)


def fit_isotonic(scores: ArrayLike, relevant: ArrayLike) -> Isotonic:
    """The curve that never falls and lies closest to the judgments, by least squares (Zadrozny
    and Elkan 2002). It assumes no shape, so it needs more pairs than `fit_platt`.

    Args:
        scores: (n,) of pairs of any number of queries.
        relevant: (n,) truth values.

    Raises:
        ValueError: see `fit_platt`.
    """
    from sklearn.isotonic import IsotonicRegression

    scores, relevant = _checked(scores, relevant)
    model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
    model.fit(scores, relevant.astype(np.float64))
    return Isotonic(model.X_thresholds_, model.y_thresholds_)


@dataclass(frozen=True)
class Bin:
    """Pairs with like probabilities.

    Attributes:
        low, high: limits of the bin.
        pairs: how many are in it.
        predicted: mean of their probabilities.
        observed: share of relevant ones among them.
        observed_low, observed_high: Wilson's 95 % interval of that share, as if the pairs were
            independent; those of one query are not quite.
    """

    low: float
    high: float
    pairs: int
    predicted: float
    observed: float
    observed_low: float
    observed_high: float


def reliability(
    probabilities: ArrayLike, relevant: ArrayLike, edges: Sequence[float] = EDGES
) -> list[Bin]:
    """What was predicted beside what came true, bin by bin; empty bins are left out.

    Args:
        probabilities: (n,) from 0 to 1, for pairs that the calibration was not fitted on.
        relevant: (n,) truth values.
        edges: limits of the bins, rising from 0 to 1. A value on a limit belongs to the bin
            above it.

    Raises:
        ValueError: the shapes differ, a probability is outside [0, 1], or the edges do not rise
            from 0 to 1.
    """
    from scipy.stats import binomtest

    probabilities, relevant = _checked(probabilities, relevant, "probabilities", both=False)
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise ValueError("probabilities go beyond 0 to 1: these look like logits; calibrate first.")
    limits = np.asarray(edges, dtype=np.float64)
    if len(limits) < 2 or limits[0] != 0 or limits[-1] != 1 or (np.diff(limits) <= 0).any():
        raise ValueError(f"edges are {list(edges)}: give rising numbers from 0 to 1.")
    places = np.searchsorted(limits[1:-1], probabilities, side="right")
    rows = []
    for place in np.unique(places):
        inside = places == place
        hits, pairs = int(relevant[inside].sum()), int(inside.sum())
        interval = binomtest(hits, pairs).proportion_ci(method="wilson")
        predicted, observed = float(probabilities[inside].mean()), hits / pairs
        low, high = limits[place : place + 2].tolist()
        ends = (min(float(interval.low), observed), max(float(interval.high), observed))
        rows.append(Bin(low, high, pairs, predicted, observed, *ends))
    return rows


def calibration_error(table: Sequence[Bin]) -> float:
    """How far predicted and observed lie apart on average over pairs: the "expected calibration
    error". 0 is best. It depends on the bins, so compare it only between equal ones.

    Args:
        table: from `reliability`.

    Raises:
        ValueError: the table holds no pair.
    """
    pairs = sum(row.pairs for row in table)
    if not pairs:
        raise ValueError("table holds no pair: make it with reliability.")
    return sum(row.pairs * abs(row.predicted - row.observed) for row in table) / pairs


@dataclass(frozen=True)
class Refusal:
    """What comes of saying "nothing relevant here" whenever the best score is at most `threshold`.

    Attributes:
        threshold: the rule.
        refused: how many queries that hits.
        precision: share of the refused that really have no answer; NaN where none is refused.
        recall: share of the queries without an answer that are refused.
        lost: share of the queries with an answer that are refused all the same.
    """

    threshold: float
    refused: int
    precision: float
    recall: float
    lost: float


def judge_refusal(best: ArrayLike, answerable: ArrayLike, threshold: float) -> Refusal:
    """How well a threshold tells queries without an answer from the others.

    Args:
        best: (Q,) score of each query's best candidate.
        answerable: (Q,) whether the corpus holds a relevant document.
        threshold: queries whose best score is this or lower are refused.

    Raises:
        ValueError: the shapes differ, a score is not a finite number, the threshold is NaN, or
            all queries are of one kind.
    """
    best, answerable = _checked(best, answerable, "best", "answerable")
    if np.isnan(threshold):
        raise ValueError("threshold is NaN, below which nothing is: give a number.")
    refused = best <= threshold
    right = refused & ~answerable
    return Refusal(
        float(threshold),
        int(refused.sum()),
        float(right.sum() / refused.sum()) if refused.any() else float("nan"),
        float(right.sum() / (~answerable).sum()),
        float((refused & answerable).sum() / answerable.sum()),
    )


def choose_threshold(best: ArrayLike, answerable: ArrayLike, lost: float = 0.1) -> Refusal:
    """The threshold that refuses most, while it refuses at most a share `lost` of the queries
    with an answer.

    Args:
        best: (Q,) score of each query's best candidate.
        answerable: (Q,) whether the corpus holds a relevant document.
        lost: from 0 to below 1.

    Returns:
        The threshold, and what it does to these queries. It has seen them: judge it on others
        with `judge_refusal`. It is -inf if not even the lowest score can be refused.

    Raises:
        ValueError: see `judge_refusal`; and `lost` is out of range.
    """
    if not 0 <= lost < 1:
        raise ValueError(f"lost is {lost}: choose it from 0 to below 1.")
    values, kinds = _checked(best, answerable, "best", "answerable")
    served = np.sort(values[kinds])
    first_kept = served[int(lost * len(served) + 1e-9)]
    threshold = values[values < first_kept].max(initial=-np.inf)
    return judge_refusal(values, kinds, threshold)


def refusal_curve(best: ArrayLike, answerable: ArrayLike) -> list[Refusal]:
    """Every threshold that makes a difference, lowest first: the precision and recall curve.

    Args:
        best: (Q,) score of each query's best candidate.
        answerable: (Q,) whether the corpus holds a relevant document.

    Raises:
        ValueError: see `judge_refusal`.
    """
    values, kinds = _checked(best, answerable, "best", "answerable")
    return [judge_refusal(values, kinds, threshold) for threshold in np.unique(values)]


def _checked(
    scores: ArrayLike,
    truth: ArrayLike,
    name: str = "scores",
    truth_name: str = "relevant",
    both: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays, if they can be used."""
    numbers, kinds = np.asarray(scores, dtype=np.float64), np.asarray(truth)
    if numbers.ndim != 1 or numbers.shape != kinds.shape or not len(numbers):
        raise ValueError(
            f"{name} has the shape {numbers.shape}, {truth_name} {kinds.shape}: give one truth "
            "value for each number, in one row."
        )
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name} holds a value that is not a finite number: look for NaN.")
    if not np.isin(kinds, [0, 1]).all():
        raise ValueError(f"{truth_name} holds more than true and false: say `grade > 0`.")
    kinds = kinds.astype(bool)
    if both and kinds.all() == kinds.any():
        raise ValueError(
            f"{truth_name} is {'true' if kinds.all() else 'false'} everywhere: nothing can be "
            "told apart; use more queries."
        )
    return numbers, kinds

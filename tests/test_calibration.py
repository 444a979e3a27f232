"""Calibration: against scikit-learn's own calibration and curves, and values worked by hand."""

import numpy as np
import pytest
from scipy.optimize import isotonic_regression
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import precision_recall_curve

from rerank_utils.calibration import (
    Platt,
    calibration_error,
    choose_threshold,
    fit_isotonic,
    fit_platt,
    judge_refusal,
    refusal_curve,
    reliability,
)


def judged(count=4_000, slope=0.7, intercept=-2.0, seed=0):
    """Logits whose probability of being relevant is known."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(1, 3, count)
    truth = Platt(slope, intercept)(logits)
    return logits.astype(np.float32), rng.random(count) < truth, truth


class Scorer(ClassifierMixin, BaseEstimator):
    """For scikit-learn: a classifier whose decision value is its input."""

    def fit(self, X, y):
        self.classes_ = np.array([0, 1])
        return self

    def decision_function(self, X):
        return X[:, 0]

    def predict(self, X):
        return (X[:, 0] > 0).astype(int)


def by_sklearn(method, logits, relevant, at):
    scorer = FrozenEstimator(Scorer().fit(None, None))
    calibrated = CalibratedClassifierCV(scorer, method=method)
    calibrated.fit(logits.astype(np.float64)[:, None], relevant.astype(int))
    return calibrated.predict_proba(np.asarray(at, dtype=np.float64)[:, None])[:, 1]


@pytest.mark.parametrize("count", [30, 4_000])
@pytest.mark.parametrize(("method", "fit"), [("sigmoid", fit_platt), ("isotonic", fit_isotonic)])
def test_the_fits_are_those_of_scikit_learns_calibration(method, fit, count):
    logits, relevant, _ = judged(count)
    at = np.linspace(-12, 12, 97)
    assert fit(logits, relevant)(at) == pytest.approx(
        by_sklearn(method, logits, relevant, at), abs=2e-4
    )


def test_a_known_curve_is_found_again():
    logits, relevant, truth = judged(40_000)
    fitted = fit_platt(logits, relevant)
    assert (fitted.slope, fitted.intercept) == pytest.approx((0.7, -2.0), abs=0.05)
    assert np.abs(fit_isotonic(logits, relevant)(logits) - truth).mean() < 0.02


def test_isotonic_is_that_of_scipy():
    logits, relevant, _ = judged(500)
    order = np.argsort(logits)
    expected = isotonic_regression(relevant[order].astype(float)).x
    assert fit_isotonic(logits, relevant)(logits[order]) == pytest.approx(expected, abs=1e-9)


def test_data_without_overlap_gives_a_curve_and_no_step():
    fitted = fit_platt([-2.0, -1.0, 1.0, 2.0], [False, False, True, True])
    assert 0 < fitted.slope < 20
    assert fitted([-2, 2]).sum() == pytest.approx(1)


def test_a_shift_of_all_logits_changes_no_probability():
    logits, relevant, _ = judged(500)
    plain, far = fit_platt(logits, relevant)(logits), logits.astype(np.float64) + 1000
    assert fit_platt(far, relevant)(far) == pytest.approx(plain, abs=1e-5)


def test_reliability_by_hand():
    rows = reliability([0.0, 0.1, 0.2, 0.5, 0.9, 1.0], [0, 0, 1, 1, 1, 1], [0, 0.2, 0.5, 1])
    bins = [(row.low, row.high, row.pairs) for row in rows]
    assert bins == [(0, 0.2, 2), (0.2, 0.5, 1), (0.5, 1, 3)]
    assert [row.predicted for row in rows] == pytest.approx([0.05, 0.2, 0.8])
    assert [row.observed for row in rows] == [0, 1, 1]
    assert calibration_error(rows) == pytest.approx((2 * 0.05 + 0.8 + 3 * 0.2) / 6)
    one = reliability([0.3] * 10, [1] * 2 + [0] * 8)
    # Wilson's interval for 2 of 10, as Brown, Cai and DasGupta (2001) write it
    assert (one[0].observed_low, one[0].observed_high) == pytest.approx((0.0567, 0.5098), abs=1e-4)


def test_reliability_is_scikit_learns_calibration_curve():
    logits, relevant, truth = judged(2_000)
    rows = reliability(truth, relevant, np.linspace(0, 1, 11))
    observed, predicted = calibration_curve(relevant, truth, n_bins=10)
    assert [row.observed for row in rows] == pytest.approx(observed)
    assert [row.predicted for row in rows] == pytest.approx(predicted)
    assert calibration_error(rows) < 0.03  # the true probabilities are calibrated
    assert calibration_error(reliability(Platt(1, 0)(logits), relevant)) > 0.2


BEST = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
ANSWERABLE = np.array([False, False, True, False, True, True])


def test_a_threshold_by_hand():
    found = judge_refusal(BEST, ANSWERABLE, 3.0)
    assert (found.refused, found.precision, found.recall, found.lost) == pytest.approx(
        (3, 2 / 3, 2 / 3, 1 / 3)
    )
    nothing = judge_refusal(BEST, ANSWERABLE, 0.5)
    assert np.isnan(nothing.precision) and nothing.recall == 0


@pytest.mark.parametrize(("lost", "threshold"), [(0, 2), (0.3, 2), (1 / 3, 4), (0.7, 5), (0.99, 5)])
def test_the_threshold_refuses_most_within_what_may_be_lost(lost, threshold):
    found = choose_threshold(BEST, ANSWERABLE, lost)
    assert found.threshold == threshold
    assert found.lost <= lost
    higher = [row for row in refusal_curve(BEST, ANSWERABLE) if row.threshold > threshold]
    assert all(row.lost > lost for row in higher)


def test_where_nothing_can_be_refused_the_threshold_is_below_all():
    found = choose_threshold([1.0, 2.0], [True, False], 0)
    assert found.threshold == -np.inf and found.refused == 0


def test_equal_scores_are_refused_together():
    found = choose_threshold([1, 1, 1, 2, 3], [False, True, True, True, True], 0.25)
    assert found.threshold == -np.inf


def test_the_curve_is_scikit_learns_precision_recall_curve():
    rng = np.random.default_rng(0)
    best, answerable = rng.normal(size=80).round(1), rng.random(80) < 0.5
    rows = refusal_curve(best, answerable)
    precision, recall, thresholds = precision_recall_curve(~answerable, -best)
    assert [row.threshold for row in rows] == pytest.approx(-thresholds[::-1])
    assert [row.precision for row in rows] == pytest.approx(precision[-2::-1])
    assert [row.recall for row in rows] == pytest.approx(recall[-2::-1])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: fit_platt([1.0, 2.0], [True]), "one truth value for each"),
        (lambda: fit_platt([], []), "shape"),
        (lambda: fit_isotonic([[1.0]], [[True]]), "in one row"),
        (lambda: fit_platt([1.0, np.nan], [True, False]), "scores holds a value that is not"),
        (lambda: fit_platt([1.0, 2.0], [True, True]), "relevant is true everywhere"),
        (lambda: fit_isotonic([1.0, 2.0], [0, 0]), "relevant is false everywhere"),
        (lambda: fit_platt([1.0, 2.0], [0, 2]), "grade > 0"),
        (lambda: reliability([0.5, 3.0], [True, False]), "calibrate first"),
        (lambda: reliability([0.5], [True], [0, 0.5]), "rising numbers from 0 to 1"),
        (lambda: reliability([0.5], [True], [0, 0.5, 0.5, 1]), "rising numbers"),
        (lambda: judge_refusal([1.0, 2.0], [True, True], 1.5), "answerable is true everywhere"),
        (lambda: choose_threshold([1.0, 2.0], [True, False], 1.0), "lost is 1.0"),
        (lambda: refusal_curve([np.inf, 2.0], [True, False]), "best holds a value"),
        (lambda: judge_refusal([1.0, 2.0], [True, False], np.nan), "threshold is NaN"),
        (lambda: calibration_error([]), "table holds no pair"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()

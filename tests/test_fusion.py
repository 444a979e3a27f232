"""Fusion of first stages: values worked by hand; ranx 0.3.21 gives those of RRF and min-max too."""

import numpy as np
import pytest

from rerank_utils.fusion import convex_combination, interpolate, reciprocal_rank_fusion
from rerank_utils.run import Run, rescore

DENSE = Run.from_lists(["q1", "q2"], [["a", "b", "c"], ["a"]], [[0.9, 0.7, 0.5], [0.4]], "dense")
BM25 = Run.from_lists(["q1", "q2"], [["c", "d"], []], [[8.0, 3.0], []], "bm25")


def scores(run: Run, query: str = "q1") -> dict[str, float]:
    return dict(run.top(query, 100))


def test_reciprocal_ranks_are_added():
    fused = reciprocal_rank_fusion([DENSE, BM25])
    assert fused.doc_ids[0].tolist() == ["c", "a", "d", "b"]
    expected = {"a": 1 / 61, "b": 1 / 62, "c": 1 / 63 + 1 / 61, "d": 1 / 62}
    assert scores(fused) == pytest.approx(expected, rel=1e-6)
    assert scores(fused, "q2") == pytest.approx({"a": 1 / 61})
    steep = reciprocal_rank_fusion([DENSE, BM25], k=0)
    assert scores(steep)["c"] == pytest.approx(1 / 3 + 1)


def test_only_the_order_matters_to_reciprocal_ranks():
    warped = Run(DENSE.query_ids, DENSE.doc_ids, np.exp(5 * DENSE.scores), "warped")
    first, second = (reciprocal_rank_fusion([run, BM25]) for run in (DENSE, warped))
    assert (first.doc_ids == second.doc_ids).all() and (first.scores == second.scores).all()


def test_min_max_combination():
    """Dense on 0 to 1: a 1, b 0.5, c 0; BM25: c 1, d 0; what a run lacks is 0."""
    fused = convex_combination([DENSE, BM25], [0.75, 0.25])
    assert scores(fused) == pytest.approx({"a": 0.75, "b": 0.375, "c": 0.25, "d": 0.0}, abs=1e-6)
    assert scores(fused, "q2") == pytest.approx({"a": 0.75})  # a list of one: 1


def test_standard_combination():
    """Dense has mean 0.7 and deviation 0.1633: a 1.2247, b 0, c -1.2247; BM25: c 1, d -1. The
    lacking d counts as c in dense, the lacking a and b as d in BM25."""
    fused = convex_combination([DENSE, BM25], [0.5, 0.5], "standard")
    z = 1.5**0.5
    expected = {"a": (z - 1) / 2, "b": -0.5, "c": (1 - z) / 2, "d": (-z - 1) / 2}
    assert scores(fused) == pytest.approx(expected, abs=1e-6)
    assert scores(fused, "q2") == {"a": 0.0}


def test_all_the_weight_on_one_run_keeps_its_order():
    for normalisation in ("min-max", "standard"):
        alone = convex_combination([DENSE, BM25], [1, 0], normalisation)
        assert alone.doc_ids[0].tolist()[:2] == ["a", "b"]


def test_three_runs_and_any_order_of_queries():
    turned = Run.from_lists(["q2", "q1"], [["x"], ["a"]], [[1], [1]], "third")
    fused = reciprocal_rank_fusion([DENSE, BM25, turned])
    assert list(fused.query_ids) == ["q1", "q2"]
    assert scores(fused)["a"] == pytest.approx(2 / 61)
    assert scores(fused, "q2") == pytest.approx({"a": 1 / 61, "x": 1 / 61})


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: reciprocal_rank_fusion([DENSE]), "1 runs: fusion needs two"),
        (lambda: reciprocal_rank_fusion([DENSE, BM25], k=-1), "k is -1"),
        (lambda: convex_combination([DENSE, BM25], [1.0]), "1 weights for 2 runs"),
        (lambda: convex_combination([DENSE, BM25], [0.6, 0.6]), "their sum is 1"),
        (lambda: convex_combination([DENSE, BM25], [1.5, -0.5]), "0 or more"),
        (lambda: convex_combination([DENSE, BM25], [0.5, np.nan]), "their sum is 1"),
        (lambda: convex_combination([DENSE, BM25], [0.5, 0.5], "z"), "min-max or standard"),
        (
            lambda: reciprocal_rank_fusion([DENSE, Run.from_lists(["q1"], [["a"]], [[1]], "x")]),
            "'dense' and 'x' hold different queries, such as 'q2'",
        ),
    ],
)
def test_what_cannot_be_fused_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_scores_below_the_depth_of_a_reranking_are_not_mixed():
    first = Run.from_lists(["q"], [["a", "b", "c"]], [[3.0, 2.0, 1.0]])
    second = rescore(first, {"q": {"a": 0.0, "b": 5.0}}, "reranked")
    assert interpolate(first, second, 1.0, 2).doc_ids[0].tolist() == ["b", "a", "c"]
    with pytest.raises(ValueError, match="depth is 3, but 'reranked' was reranked to a depth of 2"):
        interpolate(first, second, 0.5, 3)
    with pytest.raises(ValueError, match="depth is 3, but 'reranked' was reranked to a depth of 2"):
        interpolate(second, rescore(second, {"q": dict.fromkeys("abc", 1.0)}, "again"), 0.5, 3)
    for depth in (0, -1):
        with pytest.raises(ValueError, match=f"depth is {depth}: choose 1 or more"):
            interpolate(first, second, 0.5, depth)
    with pytest.raises(ValueError, match="Only the first 2 documents of 'reranked' have a rerank"):
        convex_combination([first, second], [0.5, 0.5])
    assert reciprocal_rank_fusion([first, second]).doc_ids[0].tolist() == ["b", "a", "c"]

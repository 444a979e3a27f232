"""The search that notebook 02 teaches by hand is the search of FAISS and of the helper."""

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_utils.indexing import build_index

NOTEBOOK = "02_indexing"


@pytest.fixture(scope="session")
def hand(taught):
    """exact_search and top_k, out of the cells that teach them."""
    scope = {}
    exec(taught(NOTEBOOK, "exact-search"), scope)
    exec(taught(NOTEBOOK, "top-k"), scope)
    return scope


def real_numbers(seed, n=60, d=8):
    """Documents and queries whose scores are all different, far beyond rounding."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)).astype(np.float32), rng.normal(size=(5, d)).astype(np.float32)


def small_integers(seed, n=60, d=4):
    """Documents and queries whose scores are exact, with ties nearly everywhere."""
    rng = np.random.default_rng(seed)
    documents, queries = rng.integers(-1, 2, size=(n, d)), rng.integers(-1, 2, size=(5, d))
    return documents.astype(np.float32), queries.astype(np.float32)


def flat_search(documents, queries, k):
    index = faiss.index_factory(documents.shape[1], "Flat", faiss.METRIC_INNER_PRODUCT)
    index.add(documents)
    return index.search(queries, k)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60))
def test_by_hand_is_what_faiss_finds(hand, seed, k):
    documents, queries = real_numbers(seed)
    scores, rows = hand["exact_search"](queries, documents, k)
    faiss_scores, faiss_rows = flat_search(documents, queries, k)
    np.testing.assert_allclose(scores, faiss_scores, rtol=1e-4, atol=1e-5)
    swapped = rows != faiss_rows  # only where two scores differ by no more than rounding
    exact = queries.astype(np.float64) @ documents.astype(np.float64).T
    gaps = np.take_along_axis(exact, rows, 1) - np.take_along_axis(exact, faiss_rows, 1)
    assert np.abs(gaps[swapped]).max(initial=0) < 1e-5
    assert swapped.mean() < 0.1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60))
def test_by_hand_is_what_the_helper_finds(hand, seed, k):
    documents, queries = real_numbers(seed)
    ids = [f"d{i}" for i in range(len(documents))]
    scores, rows = hand["exact_search"](queries, documents, k)
    run = build_index(documents, ids).search(list("abcde"), queries, k)
    assert np.mean(np.array(ids)[rows] == run.doc_ids) > 0.9  # near-equal scores may swap
    np.testing.assert_allclose(scores, run.scores, rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60))
def test_ties_are_kept_in_the_order_of_the_corpus(hand, seed, k):
    documents, queries = small_integers(seed)
    scores, rows = hand["exact_search"](queries, documents, k)
    for query, row, score in zip(queries, rows, scores, strict=True):
        every = documents @ query
        expected = sorted(range(len(documents)), key=lambda i: (-every[i], i))[:k]
        assert row.tolist() == expected
        assert score.tolist() == every[expected].tolist()
        assert hand["top_k"](every, k).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60))
def test_with_ties_faiss_and_the_helper_agree_on_all_that_is_not_tied_for_the_last_place(
    hand, seed, k
):
    documents, queries = small_integers(seed)
    names = [str(i) for i in range(len(documents))]
    scores, rows = hand["exact_search"](queries, documents, k)
    faiss_scores, faiss_rows = flat_search(documents, queries, k)
    run = build_index(documents, names).search(list("abcde"), queries, k)
    assert scores.tolist() == faiss_scores.tolist() == run.scores.tolist()
    for ours, theirs, named, score in zip(rows, faiss_rows, run.doc_ids, scores, strict=True):
        sure = score > score[-1]
        assert set(ours[sure]) == set(theirs[sure]) == {int(name) for name in named[sure]}


def test_more_results_than_documents(hand):
    """By hand: all there are. FAISS fills up with -1. The helper says what is wrong."""
    documents, queries = small_integers(0, n=4)
    scores, rows = hand["exact_search"](queries, documents, 7)
    assert rows.shape == scores.shape == (5, 4)
    assert all(sorted(row) == [0, 1, 2, 3] for row in rows.tolist())
    assert hand["top_k"](documents @ queries[0], 7).tolist() == rows[0].tolist()
    _, faiss_rows = flat_search(documents, queries, 7)
    assert (faiss_rows[:, 4:] == -1).all() and (faiss_rows[:, :4] >= 0).all()
    with pytest.raises(ValueError, match="k is 7, but the index holds 4 documents"):
        build_index(documents, list("abcd")).search(list("vwxyz"), queries, 7)


@pytest.mark.parametrize("description", ["IVF4,Flat", "HNSW8"])
def test_every_cell_or_every_candidate_is_the_exact_search(hand, description):
    """What the notebook calls exhaustive: nprobe at or above nlist, efSearch at the corpus."""
    rng = np.random.default_rng(3)
    documents, queries = rng.normal(size=(200, 8)), rng.normal(size=(5, 8))
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    documents, queries = documents.astype(np.float32), queries.astype(np.float32)
    index = build_index(documents, [str(i) for i in range(200)], description).faiss_index
    knob = "nprobe" if "IVF" in description else "efSearch"
    faiss.ParameterSpace().set_index_parameter(index, knob, 1000)
    assert (index.search(queries, 10)[1] == hand["exact_search"](queries, documents, 10)[1]).all()

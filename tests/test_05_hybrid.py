"""What 05_hybrid_retrieval teaches in its cells is what the helpers compute."""

from math import log

import numpy as np
import pytest

from rerank_utils.calibration import fit_platt
from rerank_utils.evaluation import evaluate
from rerank_utils.fusion import convex_combination, reciprocal_rank_fusion
from rerank_utils.indexing import build_index
from rerank_utils.lexical import search_bm25, tokenize
from rerank_utils.run import Run, rescore

NOTEBOOK = "05_hybrid_retrieval"


@pytest.fixture(scope="module")
def runs():
    """Two runs over the same queries, which share some of their documents."""
    rng = np.random.default_rng(0)
    names = np.array([f"d{i}" for i in range(50)], dtype=object)
    queries = [f"q{i}" for i in range(30)]
    made = []
    for scale in (1.0, 20.0):
        ids = [rng.permutation(names)[:20].tolist() for _ in queries]
        made.append(Run.from_lists(queries, ids, rng.random((30, 20)) * scale))
    return made


def test_the_bm25_taught_is_that_of_the_helper(taught):
    scope = {"log": log}
    exec(taught(NOTEBOOK, "bm25"), scope)
    rng = np.random.default_rng(0)
    vocabulary = [f"word{i}" for i in range(40)]
    documents = {f"d{i}": " ".join(rng.choice(vocabulary, rng.integers(1, 60))) for i in range(70)}
    queries = {f"q{i}": " ".join(rng.choice(vocabulary, rng.integers(1, 9))) for i in range(25)}
    words = dict(zip(documents, tokenize(list(documents.values())), strict=True))
    run = search_bm25(documents, queries, k=70)
    for query, text in queries.items():
        by_hand = scope["bm25"](tokenize([text])[0], words)
        expected = {document: score for document, score in by_hand.items() if score > 0}
        assert dict(run.top(query, 70)) == pytest.approx(expected, rel=1e-5)


def test_the_fusion_of_ranks_taught_is_that_of_the_helper(taught, runs):
    scope = {}
    exec(taught(NOTEBOOK, "rrf"), scope)
    for k in (0, 60):
        fused = reciprocal_rank_fusion(runs, k=k)
        for query in fused.query_ids:
            rankings = [[document for document, _ in run.top(query, 99)] for run in runs]
            by_hand = scope["fuse_ranks"](rankings, k)
            assert dict(fused.top(query, 99)) == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_convex_combination_taught_is_that_of_the_helper(taught, runs, weight):
    scope = {}
    exec(taught(NOTEBOOK, "convex"), scope)
    fused = convex_combination(runs, [weight, 1 - weight])
    for query in fused.query_ids:
        by_hand = scope["combine"](*(dict(run.top(query, 99)) for run in runs), weight)
        assert dict(fused.top(query, 99)) == pytest.approx(by_hand, abs=1e-6)


def test_the_oracle_taught_puts_relevant_candidates_first(taught, runs):
    run = runs[0]
    rng = np.random.default_rng(1)
    qrels = {
        q: {d: 1 for d in rng.permutation([f"d{i}" for i in range(50)])[:4].tolist()}
        for q in run.query_ids
    }
    scope = {"rescore": rescore, "collection": type("Known", (), {"qrels": qrels})}
    exec(taught(NOTEBOOK, "oracle"), scope)
    best = scope["oracle"](run, 10)
    assert evaluate(best, qrels, ["R@20"]).mean("R@20") == evaluate(run, qrels, ["R@20"]).mean(
        "R@20"
    )
    for query, ids, _ in best:
        hits = [document in qrels[query] for document in ids[:10]]
        assert hits == sorted(hits, reverse=True)
        assert sum(hits) == sum(document in qrels[query] for document, _ in run.top(query, 10))


@pytest.mark.parametrize(("count", "seed"), [(60, 0), (1_000, 1), (1_000, 2)])
def test_the_platt_scaling_taught_is_that_of_the_helper(taught, count, seed):
    scope = {"np": np}
    exec(taught(NOTEBOOK, "platt"), scope)
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 3, count)
    relevant = rng.random(count) < 1 / (1 + np.exp(2.5 - 0.6 * logits))
    assert 3 < relevant.sum() < count / 2
    helper = fit_platt(logits, relevant)
    by_hand = scope["platt"](logits, relevant)
    assert by_hand == pytest.approx([helper.slope, helper.intercept], abs=2e-3)
    assert 0.2 < helper.slope < 1.5


def test_a_run_without_documents_is_a_search_in_the_corpus_without_them(taught):
    scope = {"Run": Run}
    cell = taught(NOTEBOOK, "without")
    exec(cell, scope)
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(60, 8)).astype(np.float32)
    names, query_vectors = [f"d{i}" for i in range(60)], rng.normal(size=(2, 8)).astype(np.float32)
    full = build_index(vectors, names).search(["q1", "q2"], query_vectors, 60)
    gone = {"q1": {"d3": 1, "d17": 1, full.doc_ids[0, 0]: 1}}
    smaller = scope["without"](full, gone)
    rows = [i for i, name in enumerate(names) if name not in gone["q1"]]
    alone = build_index(vectors[rows], [names[i] for i in rows])
    expected = alone.search(["q1"], query_vectors[:1], len(rows))
    assert [d for d, _ in smaller.top("q1", 99)] == [d for d, _ in expected.top("q1", 99)]
    assert smaller.top("q2", 99) == full.top("q2", 99)

"""What 03_reranking teaches in its cells gives what FlagReranker and the helpers give."""

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rerank_utils.evaluation import evaluate
from rerank_utils.reranking import load_reranker, score_pairs
from rerank_utils.run import Run, rescore
from rerank_utils.zoo import MODELS, markdown_table, models

MAX_LENGTH = 48


@pytest.fixture(params=["tiny_reranker_folder", "tiny_xlmr_folder"])
def folder(request):
    return request.getfixturevalue(request.param)


def random_pairs(count):
    rng = np.random.default_rng(0)
    words = ("buffer", "overflow", "in", "the", "login", "form", "reads", "another", "file")
    texts = [" ".join(rng.choice(words, rng.integers(1, 60))) for _ in range(2 * count)]
    return [(" ".join(q.split()[:12]), d) for q, d in zip(texts[::2], texts[1::2], strict=True)]


def test_the_batched_scores_taught_are_those_of_flagreranker_and_the_helper(taught, folder):
    scope = {
        "tokenizer": AutoTokenizer.from_pretrained(folder),
        "model": AutoModelForSequenceClassification.from_pretrained(folder).eval(),
        "limit": {"truncation": "only_second", "max_length": MAX_LENGTH},
        "torch": __import__("torch"),
    }
    exec(taught("03_reranking", "score"), scope)
    reranker = load_reranker(folder, MAX_LENGTH, "cpu")
    pairs = random_pairs(37)
    by_hand = scope["score"](pairs)
    assert by_hand.std() > 0.1
    assert np.abs(by_hand - reranker.compute_score(pairs)).max() < 1e-4
    assert np.abs(by_hand - score_pairs(reranker, pairs)).max() < 1e-4
    assert scope["score"](pairs[:1]) == pytest.approx(by_hand[:1], abs=1e-4)


def test_the_oracle_taught_reaches_the_best_ndcg_that_its_candidates_allow(taught):
    """Against the ideal worked out by hand: all relevant candidates first."""
    rng = np.random.default_rng(0)
    names = [f"d{i}" for i in range(40)]
    ids = [list(rng.permutation(names)[:30]) for _ in range(20)]
    run = Run.from_lists([f"q{i}" for i in range(20)], ids, [range(30, 0, -1)] * 20)
    grades = {f"q{i}": {str(d): 1 for d in rng.permutation(names)[:4]} for i in range(20)}
    scope = {"rescore": rescore, "collection": type("Known", (), {"qrels": grades})}
    exec(taught("03_reranking", "oracle"), scope)
    best = evaluate(scope["oracle"](run, 10), grades, ["nDCG@10"]).values["nDCG@10"]
    discount = 1 / np.log2(np.arange(2, 12))
    for row, query in enumerate(grades):
        found = sum(document in grades[query] for document in ids[row][:10])
        assert best[row] == pytest.approx(discount[:found].sum() / discount[:4].sum())


def test_the_table_of_bge_models_holds_those_of_the_course():
    rerankers = {model.name.split("/")[1] for model in models("reranker")}
    assert {"bge-reranker-base", "bge-reranker-large", "bge-reranker-v2-m3"} < rerankers
    assert "bge-reranker-v2-gemma" in rerankers
    assert len({model.name for model in MODELS}) == len(MODELS)
    table = markdown_table("reranker")
    assert table.count("\n") == len(rerankers) + 3
    assert "| 0.56 GB |" in table  # 278 million parameters of two bytes
    with pytest.raises(ValueError, match="'embedder' or 'reranker'"):
        models("retriever")


def test_flagembedding_has_every_class_the_table_names():
    import FlagEmbedding

    assert all(hasattr(FlagEmbedding, model.flag_class) for model in MODELS)

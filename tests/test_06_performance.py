"""What 06_performance teaches in its cells gives what the helpers and outside tools give."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rerank_utils.batching import token_batches
from rerank_utils.encoder import FirstTokenScorer
from rerank_utils.pairs import PairEncoder
from rerank_utils.reranking import load_reranker

NAME = "06_performance"
LAYOUTS = ["tiny_reranker_folder", "tiny_xlmr_folder"]


@pytest.fixture(params=LAYOUTS)
def folder(request):
    return request.getfixturevalue(request.param)


def scope_of(taught, what):
    scope = {"torch": torch, "np": np}
    exec(taught(NAME, what), scope)
    return scope


@torch.inference_mode()
def test_the_first_token_taught_scores_as_the_whole_model_and_the_helper(taught, folder):
    logit = scope_of(taught, "first_token")["logit"]
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = torch.from_numpy(np.random.default_rng(0).integers(5, 900, (6, 23)))
    expected = model(input_ids=ids).logits.flatten()
    assert expected.std() > 0.1
    for found in (
        logit(model, ids),
        logit(model, ids, first_only=False),
        FirstTokenScorer(model)(ids),
    ):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_the_first_token_taught_computes_a_layer_less(taught, tiny_reranker_folder):
    """By the count of torch: the last layer's queries, output and feed-forward part are gone."""
    from torch.utils.flop_counter import FlopCounterMode

    logit = scope_of(taught, "first_token")["logit"]
    model = AutoModelForSequenceClassification.from_pretrained(tiny_reranker_folder).eval()
    ids = torch.ones(2, 50, dtype=torch.int64)
    counted = {}
    for first_only in (True, False):
        with FlopCounterMode(display=False) as counter:
            logit(model, ids, first_only=first_only)
        counted[first_only] = counter.get_total_flops()
    width, inner = model.config.hidden_size, model.config.intermediate_size
    spared = 2 * 49 * (2 * (2 * width**2 + 2 * width * inner) + 4 * 50 * width)
    assert counted[False] - counted[True] == spared


def test_the_operations_taught_are_those_that_torch_and_the_benchmark_count(
    taught, tiny_reranker_folder, monkeypatch
):
    from torch.utils.flop_counter import FlopCounterMode

    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    sys.modules.pop("gpu", None)
    from gpu import flops

    per_token = scope_of(taught, "flops")["flops_per_token"]
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_reranker_folder, attn_implementation="eager"
    ).eval()
    config, length = model.config, 40
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.ones(1, length, dtype=torch.int64))
    head = 2 * config.hidden_size**2 + 2 * config.hidden_size  # pooler and classifier
    ours = length * per_token(
        config.num_hidden_layers, config.hidden_size, config.intermediate_size, length
    )
    assert ours == counter.get_total_flops() - head
    assert ours == flops(config, np.array([length]))


def test_the_operations_taught_give_the_known_sizes_of_the_bge_rerankers(taught):
    per_token = scope_of(taught, "flops")["flops_per_token"]
    assert 512 * per_token(12, 768, 3_072, 512) == pytest.approx(96.6e9, rel=1e-3)
    assert 512 * per_token(24, 1_024, 4_096, 512) == pytest.approx(335e9, rel=1e-3)


def test_the_padding_taught_is_that_of_real_batches(taught, folder):
    padding = scope_of(taught, "padding")["padding"]
    rng = np.random.default_rng(0)
    pairs = [("a query", " ".join(["word"] * n)) for n in rng.integers(1, 60, 90)]
    reranker = load_reranker(folder, 48, "cpu")
    encoded = PairEncoder(reranker)(np.arange(len(pairs)), pairs)
    given = np.split(np.arange(len(pairs)), range(16, len(pairs), 16))
    for batches in (given, token_batches(encoded.lengths, 400)):
        masks = [encoded.collate(rows)["attention_mask"] for rows in batches]
        real, computed = sum(m.sum() for m in masks), sum(m.size for m in masks)
        assert padding(batches, encoded.lengths) == pytest.approx(1 - real / computed)
    assert padding(token_batches(encoded.lengths, 400), encoded.lengths) < padding(
        given, encoded.lengths
    )


def test_the_frontier_taught_holds_what_no_other_point_beats(taught):
    frontier = scope_of(taught, "frontier")["frontier"]
    rng = np.random.default_rng(0)
    for _ in range(50):
        points = [tuple(p) for p in rng.integers(0, 8, (20, 2)).tolist()]

        def beaten(p, points=points):
            return any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)

        assert frontier(points) == sorted({p for p in points if not beaten(p)})

"""What 08_model_zoo teaches in its cells is what FlagEmbedding, PyTorch and tokenizers compute."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GemmaConfig,
    XLMRobertaConfig,
)

from rerank_utils.bundled import minilm_path
from rerank_utils.cwe import load_cwe
from rerank_utils.reranking import load_reranker, score_pairs

NOTEBOOK = "08_model_zoo"
WIDE = {"hidden_size": 256, "num_hidden_layers": 3, "intermediate_size": 1024}
SHAPES = {
    "encoder": XLMRobertaConfig(vocab_size=900, num_attention_heads=4, num_labels=1, **WIDE),
    "gemma": GemmaConfig(
        vocab_size=16_000, num_attention_heads=4, num_key_value_heads=1, head_dim=64, **WIDE
    ),
}


@pytest.fixture(scope="module")
def llm(tiny):
    return load_reranker(tiny("gemma-reranker"), device="cpu")


def network(config):
    kind = AutoModelForSequenceClassification
    if config.model_type == "gemma":
        kind = AutoModelForCausalLM
    return kind.from_config(config).eval()


def last_only(config):
    return {"logits_to_keep": 1} if config.model_type == "gemma" else {}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [32, 400])
def test_the_operations_taught_are_those_that_pytorch_counts(taught, shape, tokens):
    from torch.utils.flop_counter import FlopCounterMode

    scope, config = {}, SHAPES[shape]
    exec(taught(NOTEBOOK, "flops"), scope)
    with torch.device("meta"):
        model = network(config)
    ids = torch.zeros((1, tokens), dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(input_ids=ids, **last_only(config))
    head = 2 * 256 * (16_000 if shape == "gemma" else 257)  # for one token only
    assert scope["flops"](config, tokens) + head == pytest.approx(
        counter.get_total_flops(),
        rel=1e-4,  # versions of transformers differ in how they rotate positions
    )


@pytest.mark.parametrize(
    ("shape", "whole"), [("encoder", False), ("gemma", False), ("gemma", True)]
)
def test_the_memory_taught_is_near_what_the_allocator_sees(taught, shape, whole):
    scope, config = {}, SHAPES[shape]
    exec(taught(NOTEBOOK, "memory"), scope)
    rows, tokens = 4, 256
    options = {"output_hidden_states": True} if whole else last_only(config)
    if shape == "gemma":
        options["use_cache"] = False  # as score_pairs calls it
    seen = peak(network(config), rows, tokens, options)
    computed = scope["memory"](config, 0, rows * tokens, size=4, whole=whole)
    assert computed == pytest.approx(seen, rel=0.15)


def peak(model, rows, tokens, options):
    """Most bytes alive at once in one pass, weights not counted."""
    from torch.profiler import ProfilerActivity, profile

    ids = torch.full((rows, tokens), 5)
    with (
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen,
        torch.inference_mode(),
    ):
        model(input_ids=ids, **options)
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    return int(np.cumsum([event.nbytes() for event in events]).max())


def test_the_yes_logit_taught_is_the_score_of_the_class(taught, llm):
    scope = {"llm": llm, "torch": torch}
    exec(taught(NOTEBOOK, "yes"), scope)
    rng = np.random.default_rng(0)
    words = " ".join(list(load_cwe().documents.values())[:50]).split()
    pairs = [
        (" ".join(rng.choice(words, rng.integers(1, 12))), " ".join(rng.choice(words, n)))
        for n in rng.integers(1, 60, 24)
    ]
    by_hand = [scope["yes_logit"](*pair) for pair in pairs]
    assert np.std(by_hand) > 0.01
    assert by_hand == pytest.approx(llm.compute_score(pairs, batch_size=8), abs=1e-4)
    assert by_hand == pytest.approx(score_pairs(llm, pairs).tolist(), abs=1e-4)


@pytest.mark.parametrize(("size", "overlap"), [(64, 16), (100, 0), (24, 16), (5_000, 20)])
def test_the_pieces_taught_are_those_of_the_tokenizer(taught, size, overlap):
    tokenizer = AutoTokenizer.from_pretrained(minilm_path())
    scope = {"tokenizer": tokenizer}
    exec(taught(NOTEBOOK, "chunks"), scope)
    texts = sorted(load_cwe().documents.values(), key=len)
    for text in [*texts[:5], *texts[400:405], *texts[-5:], "one"]:
        windows = tokenizer(
            text,
            add_special_tokens=False,
            truncation=True,
            max_length=size,
            stride=overlap,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )["offset_mapping"]
        expected = [text[window[0][0] : window[-1][1]] for window in windows]
        assert scope["chunks"](text, size, overlap) == expected


def test_the_first_piece_taught_is_what_truncation_reads(taught):
    tokenizer = AutoTokenizer.from_pretrained(minilm_path())
    scope = {"tokenizer": tokenizer}
    exec(taught(NOTEBOOK, "chunks"), scope)
    query = "the server does not check a length"
    taken = len(tokenizer(query, add_special_tokens=False)["input_ids"])
    for text in list(load_cwe().documents.values())[::20]:
        first = scope["chunks"](text, 128 - 3 - taken, 16)[0]
        cut = tokenizer(query, text, truncation="only_second", max_length=128)["input_ids"]
        assert tokenizer(query, first)["input_ids"] == cut

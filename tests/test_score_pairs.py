"""score_pairs against FlagReranker's own compute_score, and what it does when things go wrong."""

import gc
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_utils import batching, reranking
from rerank_utils.batching import Encoded, ahead, run_batches
from rerank_utils.encoder import FirstTokenScorer
from rerank_utils.engines import open_engine
from rerank_utils.pairs import PairEncoder, TruncationWarning
from rerank_utils.reranking import ScoreCache, load_reranker, score_pairs

LAYOUTS = ["tiny_reranker_folder", "tiny_xlmr_folder"]
WORDS = ["overflow", "naïve", "don't", "[UNK]", "</s>", "☃", "漢字", "  ", "##ing", "x" * 120]
PAIRS = [(f"query {i % 7} about a buffer", f"document {i}" + " word" * (i % 12)) for i in range(60)]


@pytest.fixture(scope="module", params=LAYOUTS)
def reranker(request):
    return load_reranker(request.getfixturevalue(request.param), max_length=64, device="cpu")


def flags_own_ids(reranker, query: str, document: str) -> dict[str, list[int]]:
    """What BaseReranker.compute_score_single_gpu gives its model for one pair."""
    from FlagEmbedding.utils.tokenizer_compat import prepare_for_model_compat

    def ids(text, limit):
        return reranker.tokenizer(
            text, add_special_tokens=False, truncation=True, max_length=limit
        )["input_ids"]

    limit = reranker.max_length
    return prepare_for_model_compat(
        reranker.tokenizer,
        ids(query, limit * 3 // 4),
        ids(document, limit),
        truncation="only_second",
        max_length=limit,
    )


texts = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join),
    st.lists(st.sampled_from(WORDS), max_size=20).map("".join),
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_token_ids_are_those_of_flagreranker(reranker, data):
    query, document = data.draw(texts), data.draw(texts)
    found = PairEncoder(reranker)(np.arange(1), [(query, document)]).collate(np.arange(1))
    expected = flags_own_ids(reranker, query, document)
    for name, ids in expected.items():
        assert found[name][0].tolist() == ids, name


def test_each_distinct_text_is_tokenized_once(reranker, monkeypatch):
    seen, ids = [], PairEncoder._ids
    monkeypatch.setattr(
        PairEncoder, "_ids", lambda self, texts: seen.extend(texts) or ids(self, texts)
    )
    score_pairs(reranker, PAIRS + PAIRS)
    assert len(seen) == len(set(seen)) == 7 + 60


def test_a_tokenizer_that_cuts_on_the_left(reranker, monkeypatch):
    monkeypatch.setattr(reranker.tokenizer, "truncation_side", "left")
    pairs = [*PAIRS[:20], ("what", "overflow " * 99 + "buffer")]
    expected = reranker.compute_score([list(pair) for pair in pairs], batch_size=4)
    with pytest.warns(TruncationWarning, match="0 of 8 queries and 1 of 21 documents"):
        np.testing.assert_allclose(score_pairs(reranker, pairs), expected, atol=1e-4)


def test_a_family_that_is_not_known_takes_the_whole_model(reranker, monkeypatch):
    quick = score_pairs(reranker, PAIRS)
    monkeypatch.setattr("rerank_utils.encoder.FAMILIES", set())
    assert not FirstTokenScorer.supports(reranker.model)
    np.testing.assert_allclose(score_pairs(reranker, PAIRS), quick, atol=1e-5)


def test_instructions_are_put_before_the_texts(tiny_reranker_folder):
    from FlagEmbedding import FlagReranker

    reranker = FlagReranker(
        str(tiny_reranker_folder), devices="cpu", query_instruction_for_rerank="Find: "
    )
    expected = reranker.compute_score([list(pair) for pair in PAIRS[:9]])
    np.testing.assert_allclose(score_pairs(reranker, PAIRS[:9]), expected, atol=1e-4)


class Other:
    """A reranker of another kind, as FlagLLMReranker is one."""

    def compute_score(self, pairs):
        return [float(len(document)) for _, document in pairs]


def test_other_rerankers_are_asked_themselves(tmp_path):
    pairs = [("q", "d" * i) for i in range(700)]
    assert score_pairs(Other(), pairs).tolist() == list(range(700))
    assert score_pairs(Other(), pairs[:1]).tolist() == [0.0]
    score_pairs(Other(), pairs, ScoreCache(tmp_path / "scores.txt"))
    assert len(ScoreCache(tmp_path / "scores.txt")) == 700


# Texts that are too long ------------------------------------------------------------------


def test_cut_texts_are_counted_in_one_warning(reranker):
    long = "overflow " * 100
    pairs = [("short", long), ("other", long), (long, "tiny"), ("short", "tiny")]
    with pytest.warns(TruncationWarning) as caught:
        score_pairs(reranker, pairs)
    assert len(caught) == 1
    assert "1 of 3 queries and 1 of 2 documents are longer than the window of 64" in str(
        caught[0].message
    )
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score_pairs(reranker, [("short", "tiny")])


def test_a_query_that_fills_the_window_is_named(reranker):
    reranker.query_max_length = 64
    try:
        with pytest.raises(ValueError, match=r"'overflow .* leaves no room for its document"):
            score_pairs(reranker, [("overflow " * 100, "a document")])
    finally:
        reranker.query_max_length = None


# Memory -----------------------------------------------------------------------------------


@pytest.fixture
def small_memory(monkeypatch):
    """A device on which a batch of more than 300 tokens does not fit; gives the sizes tried."""
    tried, forward = [], FirstTokenScorer.forward

    def failing(self, input_ids, **others):
        tried.append(input_ids.numel())
        if tried[-1] > 300:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, input_ids, **others)

    monkeypatch.setattr(FirstTokenScorer, "forward", failing)
    monkeypatch.setattr(batching, "_budgets", type(batching._budgets)())
    return tried


def test_a_full_disk_is_said_and_loses_no_later_score(tmp_path, monkeypatch):
    cache = ScoreCache(tmp_path / "scores.txt")
    pairs = [("query", str(number)) for number in range(4)]
    cache.add(pairs[:1], np.ones(1))
    whole = Path.open

    class Short:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.stream.close()

        def write(self, content):
            return self.stream.write(content[: len(content) * 3 // 4])

    def opened(path, *arguments, **settings):
        return Short(whole(path, *arguments, **settings))

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(OSError, match="make room on the disk"):
        cache.add(pairs[1:3], np.ones(2))
    monkeypatch.undo()
    cache.add(pairs[3:], np.ones(1))
    kept = ScoreCache(tmp_path / "scores.txt")
    assert [pair in kept for pair in pairs] == [True, True, False, True]


def test_out_of_memory_halves_the_batch_and_is_said_once(reranker, small_memory, tmp_path):
    expected = reranker.compute_score([list(pair) for pair in PAIRS])
    cache = ScoreCache(tmp_path / "scores.txt")
    with pytest.warns(UserWarning, match="Out of memory") as caught:
        scores = score_pairs(reranker, PAIRS, cache)
    assert len(caught) == 1
    assert len(cache) == len(PAIRS)
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    failed = [size for size in small_memory if size > 300]
    lanes = torch.get_num_threads()  # each may be at work on a batch that is too large
    assert 1 <= len(failed) <= 3 * lanes
    small_memory.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score_pairs(reranker, PAIRS)
    assert max(small_memory) <= 300  # the smaller budget was remembered


@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads_gives_the_same_scores(reranker, monkeypatch, threads):
    expected = reranker.compute_score([list(pair) for pair in PAIRS])
    monkeypatch.setattr(batching, "CPU_TOKENS", 100)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        np.testing.assert_allclose(score_pairs(reranker, PAIRS), expected, atol=1e-4)
        with ThreadPoolExecutor(1) as pool:  # also what a new thread will find
            assert {torch.get_num_threads(), pool.submit(torch.get_num_threads).result()} == {
                threads
            }
    finally:
        torch.set_num_threads(before)


def test_what_did_not_fit_on_a_gpu_is_freed_before_the_next_try(monkeypatch):
    """An exception holds the frames it went through, and they what was computed in them."""
    held = []

    def forward(batch):
        made = np.zeros(batch["input_ids"].shape)
        held.append(weakref.ref(made))
        if made.size > 30:
            assert all(old() is None for old in held[:-1])
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return torch.zeros(len(made))

    monkeypatch.setattr(batching, "GPU_TOKENS", 160)
    part = batching.Encoded(
        np.arange(16), np.full(16, 10), lambda rows: {"input_ids": np.zeros((len(rows), 10))}
    )
    gc.disable()
    try:
        with pytest.warns(UserWarning, match="Out of memory"):
            found = batching.run_batches([part], 16, forward, "cuda:0", None)
    finally:
        gc.enable()
    assert found.shape == (16,) and len(held) > 7


def test_one_pair_that_does_not_fit_says_what_to_do(reranker, monkeypatch):
    def failing(self, **inputs):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(FirstTokenScorer, "forward", failing)
    with pytest.raises(MemoryError, match=r"A single text of .* choose a smaller max_length"):
        score_pairs(reranker, PAIRS[:1])


def test_other_errors_of_the_model_are_not_hidden(reranker, monkeypatch):
    def failing(self, **inputs):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(FirstTokenScorer, "forward", failing)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        score_pairs(reranker, PAIRS)


# What a GPU gets --------------------------------------------------------------------------


def test_parts_for_a_gpu_hold_every_pair_once_and_score_the_same(reranker, monkeypatch):
    """The way of a GPU, in parts and with a batch under way, walked on a CPU."""
    monkeypatch.setattr(reranking, "_GPU_PART", 16)
    monkeypatch.setattr(batching, "GPU_TOKENS", 200)
    parts = list(reranking._parts(PairEncoder(reranker), PAIRS, "cuda:0"))
    assert sorted(np.concatenate([part.positions for part in parts])) == list(range(60))
    assert len(parts) == 4
    forward = open_engine(reranker.model, "cpu")
    scores = run_batches(parts, 60, forward, "cuda:0", "pairs")
    np.testing.assert_allclose(scores, score_pairs(reranker, PAIRS), atol=1e-5)


def test_an_interrupt_keeps_what_is_finished():
    kept = []

    def forward(batch):
        if batch["rows"][0] == 3:
            raise KeyboardInterrupt
        return torch.as_tensor(batch["rows"], dtype=torch.float32)

    part = Encoded(np.arange(8), np.full(8, 1_000), lambda rows: {"rows": rows})
    with pytest.raises(KeyboardInterrupt):
        run_batches([part], 8, forward, "cpu", "rows", lambda rows, values: kept.extend(rows))
    assert kept[:3] == [0, 1, 2] and 3 not in kept
    assert len(kept) <= 3 + torch.get_num_threads() - 1  # what the other lanes had begun


def test_ahead_keeps_the_order_and_passes_errors_on():
    assert list(ahead(range(5), lambda i: i * i)) == [0, 1, 4, 9, 16]
    assert list(ahead([], str)) == []
    with pytest.raises(ZeroDivisionError):
        list(ahead([1, 0], lambda i: 1 / i))

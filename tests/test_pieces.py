"""Documents in pieces: nothing is lost, everything fits, and the best piece counts."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rerank_utils.bundled import MAX_LENGTH, minilm_path
from rerank_utils.cwe import load_cwe
from rerank_utils.pieces import LEAST, cut_into_pieces, piece_length
from rerank_utils.pipeline import run_pipeline
from rerank_utils.profiles import get_profile
from rerank_utils.reranking import load_reranker, rerank
from rerank_utils.run import Run

TITLE = "Use after free."
SENTENCES = [f"Sentence {number} says what happens to the buffer then." for number in range(9)]
LONG = " ".join([TITLE, *SENTENCES])
WORDS = st.sampled_from(["a", "buffer", "overflow.", "Why?", "then:", "naïve", "漢字", "x" * 40])
TOKENIZER = AutoTokenizer.from_pretrained(minilm_path())


def tokens(text):
    return len(TOKENIZER(text, add_special_tokens=False, verbose=False)["input_ids"])


def test_every_piece_is_headed_by_the_first_sentence_and_fits():
    short = "A short text. It fits."
    found = cut_into_pieces([LONG, short, LONG], 30, TOKENIZER)
    assert found.keys() == {LONG, short} and found[short] == [short]
    pieces = found[LONG]
    assert len(pieces) > 2 and max(map(tokens, pieces)) <= 30
    assert all(piece.startswith(f"{TITLE} Sentence") for piece in pieces)
    rest = [piece.removeprefix(f"{TITLE} ") for piece in pieces]
    assert " ".join([TITLE, *rest]) == LONG  # nothing is lost, nothing comes twice


def test_a_first_sentence_that_takes_half_the_room_is_no_title():
    title = "word " * 16 + "end."
    first, *others = cut_into_pieces([f"{title} {LONG}"], 30, TOKENIZER)[f"{title} {LONG}"]
    assert first.startswith("word") and not any(piece.startswith("word") for piece in others)


@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS, max_size=80).map(" ".join), st.integers(LEAST, 60))
def test_no_word_is_lost_whatever_the_text(text, length):
    pieces = cut_into_pieces([text], length, TOKENIZER)[text]
    if tokens(text) <= length:
        assert pieces == [text]
        return
    found = iter(word for piece in pieces for word in piece.split())
    assert all(word in found for word in text.split())  # in their order
    most = max(map(tokens, text.split()))
    assert all(tokens(piece) <= max(length, length // 2 + most) for piece in pieces)


def test_the_best_piece_counts(tiny_reranker_folder):
    reranker = load_reranker(tiny_reranker_folder, 46, "cpu")
    documents = {"long": LONG, "short": "Nothing about it.", "other": LONG[::-1]}
    run = Run.from_lists(["q"], [list(documents)], [[3.0, 2.0, 1.0]])
    found = rerank(run, {"q": "a buffer"}, documents, reranker, 2, in_pieces=True)
    (_, ids, scores), *_ = found
    score = dict(zip(ids, scores, strict=True))
    pieces = cut_into_pieces([LONG], 30, reranker.tokenizer)[LONG]
    theirs = reranker.compute_score([["a buffer", piece] for piece in pieces])
    assert len(pieces) > 2 and score["long"] == pytest.approx(max(theirs), abs=1e-5)
    alone = reranker.compute_score([["a buffer", documents["short"]]])[0]
    assert score["short"] == pytest.approx(alone, abs=1e-5)
    assert ids[2] == "other"  # below the depth, and not scored


def test_a_window_too_short_for_pieces_is_refused(tiny_reranker_folder):
    reranker = load_reranker(tiny_reranker_folder, 20, "cpu")
    run = Run.from_lists(["q"], [["long"]], [[1.0]])
    with pytest.raises(ValueError, match=r"piece of 13 tokens is too short .* give 16 or more"):
        rerank(run, {"q": "a buffer"}, {"long": LONG}, reranker, 1, in_pieces=True)


def test_a_reranker_without_a_tokenizer_is_refused():
    run = Run.from_lists(["q"], [["long"]], [[1.0]])
    with pytest.raises(TypeError, match="with a tokenizer, not object"):
        rerank(run, {"q": "a buffer"}, {"long": LONG}, object(), 1, in_pieces=True)


def test_most_queries_fit_beside_a_piece_for_the_bundled_reranker():
    lengths = sorted(map(tokens, load_cwe().queries.values()))
    assert lengths[int(0.9 * len(lengths))] <= MAX_LENGTH - piece_length(MAX_LENGTH) - 3


def test_the_pipeline_passes_it_on(tiny_reranker_folder, tmp_path):
    profile = replace(
        get_profile("offline"),
        reranker=str(tiny_reranker_folder),
        reranker_length=64,
        queries=3,
        depth=4,
        in_pieces=True,
    )
    result = run_pipeline(profile, tmp_path)
    collection = result.collection
    reranker = load_reranker(tiny_reranker_folder, 64, "cpu")
    texts = collection.queries, collection.documents
    expected, cut = (
        rerank(result.first_stage, *texts, reranker, 4, in_pieces=given) for given in (True, False)
    )
    np.testing.assert_allclose(result.reranked.scores, expected.scores, atol=1e-5)
    assert np.abs(expected.scores - cut.scores).max() > 1e-3  # or this would show nothing

"""BM25 against its formula, written out here, and against a search by hand."""

import math
import random
import re

import numpy as np
import pytest

from rerank_utils.lexical import search_bm25, tokenize

DOCUMENTS = {
    "d1": "The cat sat on the mat.",
    "d2": "A dog; the dog and another Dog!",
    "d3": "Cats and dogs",
    "d4": "The cat saw a dog near the mat and the cat ran away from it",
    "d5": "?!",
}


def bm25(documents, query, k1, b):
    """The formula of the docstring, with a tokenizer of its own."""
    words = {d: re.findall(r"[^\W]{2,}", text.lower()) for d, text in documents.items()}
    stop = {"the", "and", "on", "it", "a", "no", "not", "of", "is"}
    words = {d: [word for word in row if word not in stop] for d, row in words.items()}
    average = sum(map(len, words.values())) / len(words)
    scores = {}
    for word in re.findall(r"[^\W]{2,}", query.lower()):
        holders = sum(word in row for row in words.values())
        idf = math.log(1 + (len(words) - holders + 0.5) / (holders + 0.5))
        for document, row in words.items():
            if tf := row.count(word):
                weight = k1 * (1 - b + b * len(row) / average)
                scores[document] = scores.get(document, 0) + idf * tf / (tf + weight)
    return scores


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.9, 0.4), (2.0, 0.0), (0.5, 1.0)])
@pytest.mark.parametrize("query", ["cat", "dog cat dog", "mat ran unknown", "CATS"])
def test_scores_are_those_of_the_formula(query, k1, b):
    run = search_bm25(DOCUMENTS, {"q": query}, 5, k1=k1, b=b)
    assert dict(run.top("q")) == pytest.approx(bm25(DOCUMENTS, query, k1, b), rel=1e-5)


def test_scores_are_those_of_the_formula_on_random_texts():
    rng = random.Random(0)
    vocabulary = [f"word{i}" for i in range(60)]

    def text() -> str:
        return " ".join(rng.choices(vocabulary, k=rng.randint(3, 40)))

    documents = {f"d{i}": text() for i in range(80)}
    queries = {f"q{i}": text() for i in range(30)}
    run = search_bm25(documents, queries, 20)
    for query, words in queries.items():
        expected = bm25(documents, words, 1.2, 0.75)
        best = sorted(expected.values(), reverse=True)[:20]
        found = run.top(query, 20)
        np.testing.assert_allclose([score for _, score in found], best, rtol=1e-5)
        for document, score in found:
            assert score == pytest.approx(expected[document], rel=1e-5)


def test_words_are_lower_case_two_letters_or_more_and_no_stop_words():
    assert tokenize(["The CAT is a_b, not Ünïted: 3.14 x"]) == [["cat", "a_b", "ünïted", "14"]]
    assert tokenize(["The cat"], stop_words=[]) == [["the", "cat"]]
    assert tokenize(["The cat"], stop_words=["cat"]) == [["the"]]


def test_stop_words_of_ones_own_count_in_any_case_and_one_text_is_no_list():
    assert tokenize(["The Cat sat"], stop_words=["Cat"]) == [["the", "sat"]]
    with pytest.raises(TypeError, match="texts is one string"):
        tokenize("the cat sat")


def test_lucenes_stop_words_are_all_there_are():
    lucene = "a an and are as at be but by for if in into is it no not of on or such that the their"
    lucene += " then there these they this to was will with"
    assert len(lucene.split()) == 33
    kept = tokenize([lucene + " from has he were"])
    assert kept == [["from", "has", "he", "were"]]


def test_a_query_without_a_word_that_counts_gets_an_empty_ranking():
    queries = {"stop": "is it not", "marks": "?!", "unknown": "zebra", "found": "cat"}
    run = search_bm25(DOCUMENTS, queries, 3)
    assert list(run.query_ids) == list(queries)
    assert [len(ids) for _, ids, _ in run] == [0, 0, 0, 2]


def test_documents_that_share_no_word_are_not_found():
    assert {document for document, _ in search_bm25(DOCUMENTS, {"q": "dog"}, 5).top("q")} == {
        "d2",
        "d4",
    }


def test_equal_scores_are_cut_by_id_whatever_the_order_of_the_corpus():
    documents = {f"d{i}": "same words" for i in range(9)} | {"other": "else entirely"}
    turned = dict(reversed(documents.items()))
    for corpus in (documents, turned):
        run = search_bm25(corpus, {"q": "words"}, 3)
        assert run.doc_ids[0].tolist() == ["d8", "d7", "d6"]


def test_it_is_silent_unless_asked(capfd):
    search_bm25(DOCUMENTS, {"q": "cat"}, 2)
    assert capfd.readouterr() == ("", "")
    search_bm25(DOCUMENTS, {"q": "cat"}, 2, show_progress=True)
    assert "Split strings" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"k": 0}, "k is 0, but there are 5 documents"),
        ({"k": 6}, "k is 6"),
        ({"k1": -1}, "k1 is -1"),
        ({"b": 1.5}, "b is 1.5"),
        ({"documents": {"d": "of the"}, "k": 1}, "No document holds a word"),
    ],
)
def test_what_cannot_be_searched_is_refused(change, sentence):
    arguments = {"documents": DOCUMENTS, "queries": {"q": "cat"}, "k": 2} | change
    with pytest.raises(ValueError, match=sentence):
        search_bm25(**arguments)

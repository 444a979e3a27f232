"""Lexical retrieval: BM25 over the words of the documents, to a first-stage Run."""

from __future__ import annotations

from collections.abc import Collection as Words
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .batching import check_texts
from .run import Run

if TYPE_CHECKING:
    import bm25s

K1, B = 1.2, 0.75
"""Lucene's defaults."""


def tokenize(
    texts: Sequence[str], stop_words: str | Words[str] = "english", show_progress: bool = False
) -> list[list[str]]:
    """Texts to words, as `search_bm25` sees them.

    A word is two or more letters, digits or underscores in a row, in lower case; stop words are
    left out. There is no stemming: "buffer" does not find "buffers".

    Args:
        texts: documents or queries.
        stop_words: "english" for the 33 of Lucene's English list, or words of your own; an
            empty list keeps all.
        show_progress: whether to draw a bar.

    Raises:
        TypeError: one text was given in place of a list, or an entry is no text.
    """
    import bm25s

    texts = check_texts(texts, "texts")
    words = stop_words if isinstance(stop_words, str) else [word.lower() for word in stop_words]
    tokens = bm25s.tokenize(texts, stopwords=words, return_ids=False, show_progress=show_progress)
    # bm25s stands an empty word in for a text without any; it must not match another such text.
    return [[token for token in row if token] for row in tokens]


def search_bm25(
    documents: Mapping[str, str],
    queries: Mapping[str, str],
    k: int,
    *,
    k1: float = K1,
    b: float = B,
    stop_words: str | Words[str] = "english",
    name: str = "bm25",
    show_progress: bool = False,
) -> Run:
    """The k documents with the highest BM25 score for each query.

    Each word of the query (twice, if it stands there twice) adds idf · tf / (tf + K) to a
    document's score: tf is how often the document holds the word, K = k1 · (1 - b + b · its
    words / words of a document on average), and idf = ln(1 + (N - n + 0.5) / (n + 0.5)), where
    n of the N documents hold the word. This is BM25 as Lucene computes it (Kamphuis et al. 2020,
    "Which BM25 do you mean?"), by the package bm25s.

    Args:
        documents: document id -> text.
        queries: query id -> text.
        k: how many documents to return at most.
        k1: how much a repeated word still adds; with 0 it counts once.
        b: how much long documents are held back, from 0 (not at all) to 1.
        stop_words: see `tokenize`.
        name: name of the run.
        show_progress: whether to draw bars.

    Returns:
        Documents that share a word with the query, so a list may be shorter than k, and empty
        for a query of stop words or unknown words only. Equal scores are ordered by id, also
        where the list is cut. Same input, same run.

    Raises:
        ValueError: k is below 1 or above the number of documents, k1 or b is out of range, or
            no document holds a word.
    """
    if not 1 <= k <= len(documents):
        raise ValueError(
            f"k is {k}, but there are {len(documents)} documents: choose k (the depth) from 1 to "
            "that number."
        )
    if not (k1 >= 0 and 0 <= b <= 1):
        raise ValueError(f"k1 is {k1} and b is {b}: k1 is 0 or more, b from 0 to 1.")
    words = tokenize(list(documents.values()), stop_words, show_progress)
    if not any(words):
        raise ValueError("No document holds a word that counts: look at documents and stop_words.")
    index = index_words(words, k1, b, show_progress)
    ids = np.array(list(documents), dtype=object)
    found = [_best(index, row, ids, k) for row in tokenize(list(queries.values()), stop_words)]
    rankings, scores = zip(*found, strict=True) if found else ((), ())
    return Run.from_lists(list(queries), rankings, scores, name)


def index_words(
    words: list[list[str]], k1: float = K1, b: float = B, show_progress: bool = False
) -> bm25s.BM25:
    """The index behind `search_bm25`, of documents as `tokenize` gives them."""
    import bm25s

    index = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy")
    index.index(words, show_progress=show_progress)
    return index


def score_documents(index: bm25s.BM25, words: list[str]) -> np.ndarray:
    """(documents,) float32: BM25 of every document for one query, 0 where no word is shared."""
    known = index.get_tokens_ids(words)
    if not known:
        return np.zeros(index.scores["num_docs"], dtype=np.float32)
    return index.get_scores_from_ids(known)


def _best(index: bm25s.BM25, words: list[str], ids: np.ndarray, k: int) -> tuple[list, list]:
    """Ids and scores of the k best documents that share a word with the query."""
    scores = score_documents(index, words)
    kth = np.partition(scores, -k)[-k]
    places = np.flatnonzero((scores >= kth) & (scores > 0))  # with all that equal the last
    order = sorted(places, key=lambda place: (scores[place], ids[place]), reverse=True)[:k]
    return ids[order].tolist(), scores[order].tolist()

"""Loaders: data sets to a Collection. Behind this door CWE, BEIR and TREC have their own rooms."""

from __future__ import annotations

from itertools import islice

from .beir import BEIR_SETS, load_beir, read_rows, stream_corpus
from .collection import Collection
from .cwe import load_cwe
from .trec import load_trec

__all__ = ["BEIR_SETS", "load_beir", "load_cwe", "load_msmarco", "load_trec", "stream_corpus"]

MSMARCO, MSMARCO_CORPUS = "namespace-Pt/msmarco", "namespace-Pt/msmarco-corpus"
MSMARCO_QUERIES, MSMARCO_POSITIVES = 100, 5_000


def load_msmarco(distractors: int = 0) -> Collection:
    """MS MARCO as the BGE reranker guide cuts it: a small corpus of passages that are answers.

    Queries are the first 100 of the `dev` split of `namespace-Pt/msmarco`; the corpus holds the
    positive passages of its first 5,000 queries. Equal texts are one document here; the published
    notebook counts 5,331 passages. Every passage answers some query, so the task is easier than
    search: a retriever meets few passages that are merely about the right thing.

    Distractors are passages of the whole collection (`namespace-Pt/msmarco-corpus`, 8.8 million)
    that answer none of the chosen queries, as far as anybody judged. With them the task is harder,
    and more like search as it is: most of what lies in a corpus answers nothing, and some of it
    looks as if it did. Two cautions. Few passages were judged for each query, so a distractor can
    be a good answer that counts as a miss; and measures fall with the size of the corpus, so
    compare only runs over the same number of distractors.

    Args:
        distractors: how many to add: the first ones of the collection's first file that are not
            in the corpus yet, the same on every machine.

    Raises:
        ConnectionError: the data is not on this machine and the hub cannot be reached.
        ValueError: distractors is negative, or more than that file holds; the data set has not
            the columns `query` and `positive`, or the passages no column `content`.
    """
    if distractors < 0:
        raise ValueError(f"distractors is {distractors}: give 0 or more.")
    rows = list(islice(read_rows(MSMARCO, "data/dev-*", ("query", "positive")), MSMARCO_POSITIVES))
    passages = dict.fromkeys(text for row in rows for text in row["positive"])
    number = {text: f"P{i}" for i, text in enumerate(passages)}
    documents = {key: text for text, key in number.items()}
    asked = rows[:MSMARCO_QUERIES]
    queries = {f"Q{i}": row["query"] for i, row in enumerate(asked)}
    qrels = {f"Q{i}": {number[t]: 1 for t in row["positive"]} for i, row in enumerate(asked)}
    if distractors:
        documents |= _distractors(distractors, passages)
    return Collection(
        name=f"msmarco+{distractors}" if distractors else "msmarco",
        documents=documents,
        queries=queries,
        qrels=qrels,
        splits={"dev": list(queries)},
    )


def _distractors(count: int, answers: dict[str, None]) -> dict[str, str]:
    """The first passages of the collection that are no answers, each text once."""
    rows = read_rows(MSMARCO_CORPUS, "data/train-00000-of-*", ("content",))
    fresh = (row["content"] for row in rows if row["content"].strip())
    found: dict[str, None] = {}
    for text in fresh:
        if len(found) == count:
            break
        if text not in answers:
            found[text] = None
    if len(found) < count:
        raise ValueError(
            f"distractors is {count:,}, but the first file of {MSMARCO_CORPUS} gives "
            f"{len(found):,}: ask for that many at most."
        )
    return {f"D{i}": text for i, text in enumerate(found)}

"""Collection: the documents, the queries by split, and the judgments of one retrieval task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path

import numpy as np

from .files import read_lines, write_whole

Qrels = dict[str, dict[str, int]]
"""Judgments: query id -> document id -> grade. A grade of 1 or more means relevant."""


@dataclass(frozen=True)
class Collection:
    """Documents, queries and judgments that belong together.

    Attributes:
        name: what the collection is called in tables and file names.
        documents: document id -> text, in corpus order.
        queries: query id -> text.
        qrels: query id -> document id -> grade (int; 1 or more is relevant).
        splits: split name -> query ids. Every query stands in at most one split.
        titles: document id -> title, where the documents have one.

    Raises:
        ValueError: the corpus is empty, an id or a document is empty or an id holds white
            space, a query has no relevant document, the qrels or splits name something
            unknown, a grade is no whole number, a split is empty, or two splits share a query.
    """

    name: str
    documents: dict[str, str]
    queries: dict[str, str]
    qrels: Qrels
    splits: dict[str, list[str]]
    titles: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.documents:
            raise ValueError(f"The corpus of {self.name!r} is empty: give at least one document.")
        if not self.queries:
            raise ValueError(f"{self.name!r} has no queries: give at least one query.")
        _check_texts(self.documents, "document")
        _check_texts(self.queries, "query")
        self._check_qrels()
        self._check_splits()

    def _check_qrels(self) -> None:
        unknown = [query for query in self.qrels if query not in self.queries]
        if unknown:
            raise ValueError(
                f"The qrels judge query {unknown[0]!r}, which is not among the queries "
                f"({len(unknown)} such): remove those lines or add the queries."
            )
        check_grades(self.qrels)
        for query in self.queries:
            grades = self.qrels.get(query, {})
            for document in grades:
                if document not in self.documents:
                    raise ValueError(
                        f"The qrels of query {query!r} name document {document!r}, which is not "
                        "in the corpus: remove that line or add the document."
                    )
            if not any(grade > 0 for grade in grades.values()):
                raise ValueError(
                    f"Query {query!r} has no relevant document in the qrels: judge one or "
                    "leave the query out."
                )

    def _check_splits(self) -> None:
        owner: dict[str, str] = {}
        for split, query_ids in self.splits.items():
            if not query_ids:
                raise ValueError(f"Split {split!r} of {self.name!r} holds no queries: drop it.")
            for query in query_ids:
                if query not in self.queries:
                    raise ValueError(f"Split {split!r} names unknown query {query!r}.")
                if query in owner:
                    raise ValueError(
                        f"Query {query!r} stands twice in the splits ({owner[query]!r} and "
                        f"{split!r}): keep it in one."
                    )
                owner[query] = split

    def split(self, name: str, limit: int | None = None) -> Collection:
        """The same corpus with the queries of one split, or the first `limit` of them.

        Args:
            name: a key of `splits`.
            limit: how many queries to keep, counted from the start of the split.

        Raises:
            ValueError: unknown split, or `limit` below 1.
        """
        if name not in self.splits:
            raise ValueError(
                f"{self.name!r} has no split {name!r}: choose one of {', '.join(self.splits)}."
            )
        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}: ask for at least one query.")
        kept = self.splits[name][:limit]
        return replace(
            self,
            queries={query: self.queries[query] for query in kept},
            qrels={query: self.qrels[query] for query in kept},
            splits={name: list(kept)},
        )

    def card(self) -> str:
        """What is in the collection, as a few lines of text: counts and lengths in words."""
        words = [len(text.split()) for text in self.documents.values()]
        lines = [
            f"Collection {self.name}",
            f"  documents  {len(self.documents):>6,}   words {_spread(words)}",
        ]
        for split, query_ids in self.splits.items():
            query_words = [len(self.queries[query].split()) for query in query_ids]
            relevant = [sum(g > 0 for g in self.qrels[query].values()) for query in query_ids]
            answers = {d for query in query_ids for d, g in self.qrels[query].items() if g > 0}
            lines.append(
                f"  {split:<9}  {len(query_ids):>6,} queries   words {_spread(query_words)}   "
                f"relevant per query {np.mean(relevant):.2f} (max {max(relevant)})   "
                f"distinct answers {len(answers):,}"
            )
        return "\n".join(lines)


def _check_texts(texts: Mapping[str, str], kind: str) -> None:
    for key, text in texts.items():
        check_id(key, f"A {kind}")
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"The text of {kind} {key!r} is empty: give it a text or drop it.")


def _spread(counts: Iterable[int]) -> str:
    low, middle, high = np.percentile(list(counts), [5, 50, 95])
    return f"{low:.0f} / {middle:.0f} / {high:.0f} (5th, 50th, 95th percentile)"


def check_id(key: str, who: str) -> None:
    """ValueError unless this is an id that a TREC file can hold; `who` begins the sentence."""
    if not isinstance(key, str):
        raise ValueError(
            f"{who} has the id {key!r} ({type(key).__name__}): ids are strings; use str(id)."
        )
    if not key or key != "".join(key.split()):
        raise ValueError(
            f"{who} has the id {key!r}: ids are not empty and hold no white space, because TREC "
            "files are separated by it."
        )


def check_grades(qrels: Qrels) -> None:
    """ValueError unless all grades are whole numbers: "1 or more" would mean nothing else."""
    for query, grades in qrels.items():
        for document, grade in grades.items():
            if not isinstance(grade, Integral):
                raise ValueError(
                    f"The grade of query {query!r} and document {document!r} is {grade!r}: grades "
                    "are whole numbers; use int()."
                )


def write_qrels(qrels: Qrels, path: str | Path) -> None:
    """Write judgments as a TREC qrels file: query id, 0, document id, grade.

    Raises:
        OSError: the file cannot be written; what stood there before stays.
    """
    lines = (
        f"{query} 0 {document} {int(grade)}\n"  # a bool is a number too
        for query, grades in qrels.items()
        for document, grade in grades.items()
    )
    write_whole("".join(lines), path)


def read_qrels(path: str | Path) -> Qrels:
    """Read a TREC qrels file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line without four fields or a grade that is no integer, with its number;
            a (query, document) pair judged twice; and what `files.read_lines` raises.
    """
    qrels: Qrels = {}
    for number, line in read_lines(path):
        try:
            query, _, document, grade = line.split()
            value = int(grade)
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: expected 'query 0 document grade', found {line!r}."
            ) from None
        grades = qrels.setdefault(query, {})
        if document in grades:
            raise ValueError(
                f"{path}, line {number}: query {query!r} and document {document!r} "
                "are judged a second time."
            )
        grades[document] = value
    return qrels

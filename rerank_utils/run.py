"""Run: one ranked list of documents for each query, as every stage after indexing passes it on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .files import read_lines, write_whole


@dataclass(frozen=True)
class Run:
    """Ranked documents for a set of queries.

    Rows are sorted by score, highest first. Equal scores are ordered by document id, the larger
    id first, which is how trec_eval breaks ties, so that a run evaluated elsewhere sees the same
    order. A list that is shorter than k ends in empty ids with the score -inf.

    Attributes:
        query_ids: (Q,) str.
        doc_ids: (Q, k) str; "" where there is no document.
        scores: (Q, k) float32.
        name: what the run is called in tables and TREC files.
        depth: of a reranked run, so many of each list were rescored; the scores of the rest only
            keep their order. None where every score means something, and in a file's run, which
            cannot say.

    Raises:
        ValueError: shapes that do not match, a query that stands twice, scores out of order or
            NaN.
    """

    query_ids: np.ndarray
    doc_ids: np.ndarray
    scores: np.ndarray
    name: str = "run"
    depth: int | None = None

    def __post_init__(self) -> None:
        shapes = [np.shape(array) for array in (self.query_ids, self.doc_ids, self.scores)]
        if shapes[1] != shapes[2] or len(shapes[1]) != 2 or shapes[0] != shapes[1][:1]:
            raise ValueError(
                "query_ids, doc_ids and scores have the shapes {}, {} and {}: expected (Q,), "
                "(Q, k) and (Q, k).".format(*shapes)
            )
        if len(set(self.query_ids)) < len(self.query_ids):
            raise ValueError("A query id stands twice in the run: give every query once.")
        sorted_rows = (self.scores[:, :-1] >= self.scores[:, 1:]).all(axis=1)
        good = sorted_rows & ~np.isnan(self.scores).any(axis=1)
        if not good.all():
            raise ValueError(
                f"The scores of query {self.query_ids[np.argmin(good)]!r} are NaN or not in "
                "falling order: Run.from_lists sorts a ranking and names what is no number."
            )

    @classmethod
    def from_lists(
        cls,
        query_ids: Sequence[str],
        doc_ids: Iterable[Sequence[str]],
        scores: Iterable[Sequence[float]],
        name: str = "run",
    ) -> Run:
        """Sort each query's documents into a Run.

        Args:
            query_ids: one id a query, all different.
            doc_ids: for each query its documents; lengths may differ, an empty list is allowed.
            scores: for each query as many finite numbers.
            name: see the class.

        Raises:
            ValueError: a query or a document stands twice, an id is empty or no string, lengths
                do not match, or a score is not a finite number.
        """
        documents, values = [list(row) for row in doc_ids], [list(row) for row in scores]
        if not len(query_ids) == len(documents) == len(values):
            raise ValueError(
                f"{len(query_ids)} query ids, {len(documents)} lists of documents and "
                f"{len(values)} lists of scores: give one of each for every query."
            )
        depth = max((len(row) for row in documents), default=0)
        table = np.full((len(documents), depth), "", dtype=object)
        numbers = np.full((len(documents), depth), -np.inf, dtype=np.float32)
        for row, (query, ids, given) in enumerate(zip(query_ids, documents, values, strict=True)):
            if len(ids) != len(given):
                raise ValueError(f"Query {query!r} has {len(ids)} documents, {len(given)} scores.")
            for key in (query, *ids):
                if not isinstance(key, str):
                    raise ValueError(
                        f"The ranking of query {query!r} holds the id {key!r} "
                        f"({type(key).__name__}): ids are strings, as in the qrels; use str(id)."
                    )
            distinct = set(ids)
            if len(distinct) < len(ids):
                raise ValueError(f"A document stands twice in the ranking of query {query!r}.")
            if "" in distinct:
                raise ValueError(f"A document in the ranking of query {query!r} has an empty id.")
            score = np.asarray(given, dtype=np.float32)
            if not np.isfinite(score).all():
                document = ids[int(np.argmin(np.isfinite(score)))]
                raise ValueError(
                    f"The score of query {query!r} and document {document!r} is not a finite "
                    "number: look for NaN in what the model returned."
                )
            names = np.asarray(ids, dtype=object)
            order = _ranking(names, score)
            table[row, : len(ids)] = names[order]
            numbers[row, : len(ids)] = score[order]
        return cls(np.asarray(query_ids, dtype=object), table, numbers, name)

    def __len__(self) -> int:
        return len(self.query_ids)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Query id, its documents and their scores, for each query, without the empty places."""
        for query, documents, scores in zip(self.query_ids, self.doc_ids, self.scores, strict=True):
            filled = documents != ""
            yield query, documents[filled], scores[filled]

    def top(self, query_id: str, k: int = 10) -> list[tuple[str, float]]:
        """The first k (document id, score) of one query, best first.

        Raises:
            KeyError: the run has no such query.
        """
        rows = np.flatnonzero(self.query_ids == query_id)
        if not len(rows):
            raise KeyError(f"The run {self.name!r} has no query {query_id!r}.")
        pairs = zip(self.doc_ids[rows[0]], self.scores[rows[0]], strict=True)
        return [(document, float(score)) for document, score in pairs if document != ""][:k]

    def select(self, query_ids: Iterable[str]) -> Run:
        """The rankings of these queries alone, in this order.

        A query that the run lacks gets an empty ranking: so a run from a file, where an empty
        ranking leaves no line, can stand beside one that has it.
        """
        rows = {query: (ids, scores) for query, ids, scores in self}
        chosen = list(query_ids)
        found = [rows.get(query, ([], [])) for query in chosen]
        run = Run.from_lists(chosen, [ids for ids, _ in found], [s for _, s in found], self.name)
        return replace(run, depth=self.depth)

    def to_trec(self, path: str | Path) -> None:
        """Write a TREC run file: query id, Q0, document id, rank, score, name.

        Raises:
            ValueError: an id holds white space, by which the fields of the file are separated.
            OSError: the file cannot be written; what stood there before stays.
        """
        tag = "-".join(self.name.split()) or "run"
        lines = []
        for query, documents, scores in self:
            for rank, (document, score) in enumerate(zip(documents, scores, strict=True), 1):
                line = f"{query} Q0 {document} {rank} {np.float32(score)!s} {tag}"
                if len(line.split()) != 6:
                    raise ValueError(
                        f"Query {query!r} or document {document!r} holds white space, by which the "
                        "fields of a TREC file are separated: choose other ids."
                    )
                lines.append(f"{line}\n")
        write_whole("".join(lines), path)

    @classmethod
    def from_trec(cls, path: str | Path) -> Run:
        """Read a TREC run file. As in trec_eval the score decides, not the printed rank.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a line without six fields or a score that is no number, with its number;
                and what `from_lists` and `files.read_lines` raise.
        """
        rows: dict[str, list[tuple[str, float]]] = {}
        tag = "run"
        for number, line in read_lines(path):
            try:
                query, _, document, _, score, tag = line.split()
                rows.setdefault(query, []).append((document, float(score)))
            except ValueError:
                raise ValueError(
                    f"{path}, line {number}: expected 'query Q0 document rank score name', "
                    f"found {line!r}."
                ) from None
        return cls.from_lists(
            list(rows),
            [[document for document, _ in row] for row in rows.values()],
            [[score for _, score in row] for row in rows.values()],
            tag,
        )


def rescore(run: Run, scores: Mapping[str, Mapping[str, float]], name: str) -> Run:
    """A run with new scores for some documents; the others follow below, in their old order.

    Args:
        run: the run to reorder.
        scores: query id -> document id -> new score.
        name: name of the result.

    Returns:
        For each query the documents with a new score, sorted by it, then the rest as they
        stood. The rest gets scores 1, 2, 3 ... below the lowest new one, so that a file of the
        run keeps the order; these numbers mean nothing else, and the run's `depth` says where
        they begin.
    """
    documents, values, depths = [], [], []
    for query, ids, old in run:
        new = scores.get(query, {})
        scored = [document for document in ids if document in new]
        rest = [document for document in ids if document not in new]
        floor = min((new[document] for document in scored), default=float(old.max(initial=0.0)))
        documents.append(scored + rest)
        if rest:
            depths.append(len(scored))
        values.append(
            [new[document] for document in scored]
            + [floor - 1 - place for place in range(len(rest))]
        )
    rescored = Run.from_lists(list(run.query_ids), documents, values, name)
    return replace(rescored, depth=min(depths, default=None))


def _ranking(doc_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Positions by score, highest first; equal scores by document id, larger first."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    if not (ranked[1:] == ranked[:-1]).any():  # no ties: sorting the ids would be in vain
        return order
    by_id = np.argsort(doc_ids.astype(str), kind="stable")[::-1]
    return by_id[np.argsort(-scores[by_id], kind="stable")]


def text_of(texts: Mapping[str, str], key: str, kind: str) -> str:
    """The text of a query or document that a run names.

    Args:
        texts: id -> text.
        key: the id.
        kind: "query" or "document", for the sentence.

    Raises:
        KeyError: there is none.
        TypeError: it is something else, such as the NaN of an empty cell.
    """
    if key not in texts:
        raise KeyError(
            f"The run names {kind} {key!r}, which has no text: pass its collection, or take only "
            "the collection's queries (Run.select)."
        )
    if not isinstance(texts[key], str):
        raise TypeError(f"The {kind} {key!r} is {texts[key]!r:.60}, expected a string.")
    return texts[key]

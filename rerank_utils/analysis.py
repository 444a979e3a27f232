"""Analysis: which queries a change hurt or helped, and what they have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .collection import Qrels
from .evaluation import Evaluation
from .run import Run

Slices = dict[str, list[str]]
"""Label -> query ids. Every query stands in one slice; slices without a query are left out."""


@dataclass(frozen=True)
class QueryChange:
    """What one query gained or lost in a measure."""

    query: str
    before: float
    after: float

    @property
    def difference(self) -> float:
        """After minus before."""
        return self.after - self.before


@dataclass(frozen=True)
class Movement:
    """Where a relevant document of a query stood, and stands. Ranks count from 1; None where the
    run does not hold the document."""

    query: str
    document: str
    before: int | None
    after: int | None


def hurt_and_helped(
    before: Evaluation, after: Evaluation, measure: str
) -> tuple[list[QueryChange], list[QueryChange]]:
    """The queries that lost, most first, and those that gained, most first.

    Args:
        before, after: evaluations of two runs on the same qrels.
        measure: a measure that both hold.

    Raises:
        ValueError: different queries.
        KeyError: one of them lacks the measure.
    """
    if before.query_ids != after.query_ids:
        raise ValueError("The two evaluations judge different queries: use the same qrels.")
    values = (before.values[measure].tolist(), after.values[measure].tolist())
    changes = [QueryChange(*row) for row in zip(before.query_ids, *values, strict=True)]
    by_size = sorted(changes, key=lambda change: change.difference)
    hurt = [change for change in by_size if change.difference < 0]
    return hurt, [change for change in reversed(by_size) if change.difference > 0]


def list_changes(
    changes: Sequence[QueryChange], queries: Mapping[str, str], limit: int = 10, width: int = 70
) -> str:
    """Changes as lines of text: before, after, difference, query.

    Args:
        changes: from `hurt_and_helped`.
        queries: query id -> text.
        limit: how many to show.
        width: characters of a query's text.
    """
    lines = [f"{'before':>7} {'after':>7} {'change':>7}  query"]
    for change in changes[:limit]:
        text = _cut(f"{change.query}  {queries[change.query]}", width)
        lines.append(
            f"{change.before:>7.3f} {change.after:>7.3f} {change.difference:>+7.3f}  {text}"
        )
    if len(changes) > limit:
        lines.append(f"... and {len(changes) - limit} more")
    return "\n".join(lines)


def side_by_side(
    before: Run,
    after: Run,
    query_id: str,
    qrels: Qrels,
    titles: Mapping[str, str] | None = None,
    k: int = 10,
    width: int = 38,
) -> str:
    """Both rankings of one query, with how far each document moved.

    Args:
        before, after: runs that hold the query.
        query_id: which one.
        qrels: relevant documents are marked with "*".
        titles: document id -> title, printed behind the id.
        k: how many ranks.
        width: characters of a column.

    Raises:
        KeyError: a run has no such query.
    """
    lists = [[document for document, _ in run.top(query_id, 10**9)] for run in (before, after)]
    grades, titles = qrels.get(query_id, {}), titles or {}
    old_rank = {document: rank for rank, document in enumerate(lists[0], 1)}

    def cell(ranking: list[str], place: int) -> str:
        if place >= len(ranking):
            return ""
        document = ranking[place]
        mark = "*" if grades.get(document, 0) > 0 else " "
        return f"{mark} {_cut(f'{document} {titles.get(document, str())}'.strip(), width - 2)}"

    lines = [f"rank  {before.name:<{width}}  {after.name:<{width}}  moved"]
    for place in range(min(k, max(map(len, lists)))):
        moved = ""
        if place < len(lists[1]):
            moved = _moved(old_rank.get(lists[1][place]), place + 1)
        left, right = (cell(ranking, place) for ranking in lists)
        lines.append(f"{place + 1:>4}  {left:<{width}}  {right:<{width}}  {moved}".rstrip())
    return "\n".join(lines)


def movements(before: Run, after: Run, qrels: Qrels) -> list[Movement]:
    """Where every relevant document stood in both runs, in the order of the qrels."""
    tables = (_ranks(before), _ranks(after))
    return [
        Movement(query, document, *(table.get(query, {}).get(document) for table in tables))
        for query, grades in qrels.items()
        for document, grade in grades.items()
        if grade > 0
    ]


# Slices: what queries have in common ---------------------------------------------------------


def by_length(queries: Mapping[str, str], edges: Sequence[int] = (10, 20, 30)) -> Slices:
    """Queries by their number of words; `edges` are the largest numbers of all bins but one."""
    return _bins({query: len(text.split()) for query, text in queries.items()}, edges, "words")


def by_relevant(qrels: Qrels, edges: Sequence[int] = (1, 2)) -> Slices:
    """Queries by how many relevant documents they have."""
    counts = {query: len(_relevant(grades)) for query, grades in qrels.items()}
    return _bins(counts, edges, "relevant")


def by_first_rank(run: Run, qrels: Qrels, edges: Sequence[int] = (1, 10, 50)) -> Slices:
    """Queries by the rank that a run, mostly the first stage, gives the best of their relevant
    documents."""
    best = _best_relevant(run, qrels)
    found = {query: rank for query, (_, rank) in best.items() if rank is not None}
    slices = _bins(found, edges, "", "rank ")
    missing = [query for query, (_, rank) in best.items() if rank is None]
    return slices | ({"not found": missing} if missing else {})


def by_truncation(
    run: Run,
    qrels: Qrels,
    tokens: Mapping[str, int] | Callable[[str, str], int],
    limit: int,
) -> Slices:
    """Queries by whether a model that reads `limit` tokens sees all of their best relevant
    document: the one the run ranks highest, or the first judged one if it holds none.

    Args:
        run: mostly the first stage.
        qrels: query id -> document id -> grade.
        tokens: document id -> number of tokens; or a function of query id and document id, for
            a reranker that reads both in one sequence.
        limit: the model's maximum length.

    Raises:
        KeyError: `tokens` lacks a document.
    """
    count = tokens if callable(tokens) else lambda _, document: tokens[document]
    labels = {
        query: "truncated" if count(query, document) > limit else "read in full"
        for query, (document, _) in _best_relevant(run, qrels).items()
        if document is not None
    }
    return _group(labels, ["read in full", "truncated"])


def by_title(queries: Mapping[str, str], qrels: Qrels, titles: Mapping[str, str]) -> Slices:
    """Queries by lexical ease: whether they contain the title of a relevant document, as whole
    words, in upper or lower case."""

    def easy(query: str) -> bool:
        text = queries[query].casefold()
        names = (titles.get(document, "").casefold() for document in _relevant(qrels[query]))
        return any(name and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for name in names)

    labels = {query: "names the title" if easy(query) else "does not" for query in qrels}
    return _group(labels, ["names the title", "does not"])


@dataclass(frozen=True)
class Slice:
    """One row of a breakdown: means over the queries of a slice, and on how many the second run
    is better, equal, worse."""

    label: str
    queries: int
    before: float
    after: float
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class Breakdown:
    """Two runs in one measure, slice by slice. Printing it shows the table.

    The slices are there to look for causes. They are small and many, so that one of them stands
    out by chance more easily than the whole: test what you see here on other queries.
    """

    measure: str
    rows: list[Slice]

    def __str__(self) -> str:
        width = max([len(self.measure), *(len(row.label) for row in self.rows)])
        lines = [
            f"{self.measure:<{width}}  queries  before   after   change  better / same / worse"
        ]
        lines += [
            f"{row.label:<{width}}  {row.queries:>7,}  {row.before:>6.3f}  {row.after:>6.3f}  "
            f"{row.after - row.before:>+7.3f}  {row.wins} / {row.ties} / {row.losses}"
            for row in self.rows
        ]
        return "\n".join(lines)


def breakdown(before: Evaluation, after: Evaluation, measure: str, slices: Slices) -> Breakdown:
    """A measure before and after in each slice.

    Args:
        before, after: evaluations of two runs on the same qrels.
        measure: a measure that both hold.
        slices: from one of the functions `by_...`, or your own.

    Raises:
        ValueError: different queries, a slice without queries, or one with a query that was not
            judged.
    """
    if before.query_ids != after.query_ids:
        raise ValueError("The two evaluations judge different queries: use the same qrels.")
    row_of = {query: row for row, query in enumerate(before.query_ids)}
    rows = []
    for label, queries in slices.items():
        if not queries:
            raise ValueError(f"The slice {label!r} holds no query: leave it out.")
        if unknown := [query for query in queries if query not in row_of]:
            raise ValueError(f"The slice {label!r} holds {unknown[0]!r}, which was not judged.")
        places = [row_of[query] for query in queries]
        old, new = (evaluation.values[measure][places] for evaluation in (before, after))
        counts = (int((new > old).sum()), int((new == old).sum()), int((new < old).sum()))
        rows.append(Slice(label, len(queries), float(old.mean()), float(new.mean()), *counts))
    return Breakdown(measure, rows)


def _ranks(run: Run) -> dict[str, dict[str, int]]:
    return {query: {d: rank for rank, d in enumerate(ids.tolist(), 1)} for query, ids, _ in run}


def _relevant(grades: Mapping[str, int]) -> list[str]:
    return [document for document, grade in grades.items() if grade > 0]


def _best_relevant(run: Run, qrels: Qrels) -> dict[str, tuple[str | None, int | None]]:
    """Query -> its relevant document that the run ranks highest, and the rank. Without a rank:
    the first one judged; without a relevant document: neither."""
    ranks = _ranks(run)
    best = {}
    for query, grades in qrels.items():
        relevant, held = _relevant(grades), ranks.get(query, {})
        found = [document for document in relevant if document in held]
        document = min(found, key=held.__getitem__) if found else next(iter(relevant), None)
        best[query] = (document, held.get(document))
    return best


def _bins(numbers: Mapping[str, int], edges: Sequence[int], unit: str, lead: str = "") -> Slices:
    """Group by whole numbers: up to the first edge, up to the second ..., above the last."""
    if list(edges) != sorted(set(edges)) or not edges:
        raise ValueError(f"edges are {list(edges)}: give one or more rising numbers.")
    lows = [min(0, *edges), *(edge + 1 for edge in edges)]
    names = [
        _span(low, edge, min(numbers.values(), default=low))
        for low, edge in zip(lows, edges, strict=False)
    ]
    names = [f"{lead}{name} {unit}".strip() for name in [*names, f"{lows[-1]} or more"]]
    where = np.searchsorted(edges, list(numbers.values()), side="left")
    return _group({q: names[i] for q, i in zip(numbers, where, strict=True)}, names)


def _span(low: int, high: int, smallest: int) -> str:
    low = max(low, min(smallest, high))
    return str(high) if low == high else f"{low} to {high}"


def _group(labels: Mapping[str, str], order: Iterable[str]) -> Slices:
    slices = {name: [query for query, label in labels.items() if label == name] for name in order}
    return {name: queries for name, queries in slices.items() if queries}


def _moved(old: int | None, new: int) -> str:
    if old is None:
        return "new"
    if old == new:
        return "="
    return f"up {old - new} (was {old})" if old > new else f"down {new - old} (was {old})"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"

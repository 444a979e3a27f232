"""Mining: hard negatives for the training of a reranker, read off a first stage's Run.

A negative teaches something when the first stage finds it and it is wrong all the same. The
danger is a document that is right but that nobody has judged: it would teach the opposite of
what is meant. So candidates are left out for several reasons, and each reason is counted.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections import Counter
from collections.abc import Collection as Ids
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .collection import Qrels
from .files import is_unicode, write_whole
from .run import Run, text_of

EMPTY = "no text"
POSITIVE = "known positive"
SAME_TEXT = "same text as a positive"
RELATED = "related"
HELD_OUT = "held out"
FALSE_NEGATIVE = "likely false negative"
REASONS = (EMPTY, POSITIVE, SAME_TEXT, RELATED, HELD_OUT, FALSE_NEGATIVE)
"""Why a candidate is not taken, in the order in which the reasons are looked at."""


@dataclass(frozen=True)
class Group:
    """One line of a training file: a query, texts that answer it, and texts that do not.

    Attributes:
        query: the text that is searched with.
        pos: texts that answer it, at least one.
        neg: texts that do not, at least one.
        pos_scores, neg_scores: a teacher's score of each text, for distillation; both or none.
    """

    query: str
    pos: list[str]
    neg: list[str]
    pos_scores: list[float] | None = None
    neg_scores: list[float] | None = None


@dataclass(frozen=True)
class Negative:
    """A mined negative: its document id, and its rank (from 1) and score in the run."""

    document: str
    rank: int
    score: float


@dataclass(frozen=True)
class Mined:
    """What was mined, and what was left out.

    Attributes:
        groups: what a reranker is trained on.
        negatives: query id -> its negatives by rank, in the order of `groups`.
        count: how many negatives a query should have.
        skipped: reason -> how many candidates were left out for it.
        not_drawn: candidates that would have done, but chance took others.
        without_negative: ids of queries left out because no candidate would do.
        without_positive: ids of queries left out because each of their positives is held out or
            empty or, where a margin is set, has no score to compare with.
    """

    groups: list[Group]
    negatives: dict[str, list[Negative]]
    count: int
    skipped: dict[str, int]
    not_drawn: int
    without_negative: list[str]
    without_positive: list[str]

    @property
    def taken(self) -> int:
        """How many negatives the groups hold."""
        return sum(len(found) for found in self.negatives.values())

    @property
    def candidates(self) -> int:
        """Documents that stood in the ranks that were looked at."""
        return self.taken + self.not_drawn + sum(self.skipped.values())

    @property
    def short(self) -> int:
        """Queries with fewer than `count` negatives. Nothing is put in for the missing."""
        return sum(len(found) < self.count for found in self.negatives.values())

    @property
    def mean_rank(self) -> float:
        """Mean rank of the negatives in the run; 1 is the first place."""
        return self._mean("rank")

    @property
    def mean_score(self) -> float:
        """Mean score of the negatives in the run."""
        return self._mean("score")

    def _mean(self, field: str) -> float:
        return sum(getattr(n, field) for row in self.negatives.values() for n in row) / self.taken

    def table(self) -> str:
        """What became of the candidates, as a few lines of text."""
        rows = [("candidates", self.candidates)]
        rows += [(f"  skipped: {reason}", number) for reason, number in self.skipped.items()]
        rows += [("  would have done, not drawn", self.not_drawn), ("  taken", self.taken)]
        rows += [
            ("queries with negatives", len(self.groups)),
            (f"  of these with fewer than {self.count}", self.short),
            ("queries without a negative", len(self.without_negative)),
            ("queries without a positive", len(self.without_positive)),
        ]
        lines = [f"{name:<36}{number:>8,}" for name, number in rows]
        lines.append(f"{'mean rank of what was taken':<36}{self.mean_rank:>8.1f}")
        lines.append(f"{'mean score of what was taken':<36}{self.mean_score:>8.3f}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()


def mine_negatives(
    run: Run,
    queries: Mapping[str, str],
    documents: Mapping[str, str],
    qrels: Qrels,
    *,
    count: int = 7,
    ranks: tuple[int, int] = (2, 50),
    relative_margin: float | None = None,
    absolute_margin: float | None = None,
    scores: Run | None = None,
    related: Mapping[str, Ids[str]] | None = None,
    exclude: Ids[str] = frozenset(),
    seed: int = 0,
) -> Mined:
    """Draw hard negatives from the ranks of a first stage.

    A margin filters likely false negatives, as in NV-Retriever (arXiv 2407.15831): a candidate
    that scores nearly as well as the best known positive, or better, may well be right. A query
    with no positive among the scores has nothing to compare with and is left out; a run that
    ranks the whole corpus avoids that.

    Args:
        run: the first stage, over training queries only.
        queries: query id -> text, for every query of the run.
        documents: document id -> text.
        qrels: query id -> document id -> grade; 1 or more is a positive.
        count: negatives a query, drawn at random from what is left in the ranks. Where less is
            left, a query has fewer; nothing is filled up.
        ranks: first and last rank to draw from, counted from 1, both included.
        relative_margin: 0.05 skips candidates above 95 % of the positive's score. Only for
            scores above 0, such as cosines.
        absolute_margin: 0.1 skips candidates above the positive's score less 0.1.
        scores: where the margins take scores from, by default `run`. A reranker's run over the
            same candidates judges better than the first stage; rerank down to `ranks[1]`.
        related: query id -> ids that are never its negatives, whatever they score;
            `cwe.related_weaknesses` gives one.
        exclude: held-out documents, never a positive or a negative.
        seed: of the draw. Each query has its own, so that one more query changes no other.

    Raises:
        TypeError: one string where several ids are expected.
        ValueError: an argument out of its range; scores without a margin; a query without
            judgment; a relative margin with a score that is not above 0; a candidate without
            score; no negative at all.
        KeyError: the run or the qrels name a query or document without text.
    """
    _check_arguments(count, ranks, relative_margin, absolute_margin)
    _check_ids(exclude, related or {})
    wants_margin = relative_margin is not None or absolute_margin is not None
    if scores is not None and not wants_margin:
        raise ValueError("scores are for a margin: give relative_margin or absolute_margin too.")
    rule = _Filter(run, documents, qrels, related or {}, frozenset(exclude))
    if wants_margin:
        rule.set_margins(run if scores is None else scores, relative_margin, absolute_margin)
    skipped: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
    groups, negatives = [], {}
    without_negative, without_positive = [], []
    not_drawn = 0
    for query, ids, values in run:
        positives = rule.open(query)
        if not positives:
            without_positive.append(query)
            continue
        good = []
        for rank in range(ranks[0], min(ranks[1], len(ids)) + 1):
            candidate = Negative(ids[rank - 1], rank, float(values[rank - 1]))
            if reason := rule.reason(query, candidate):
                skipped[reason] += 1
            else:
                good.append(candidate)
        if not good:
            without_negative.append(query)
            continue
        drawn = random.Random(f"{seed} {query}").sample(good, min(count, len(good)))
        not_drawn += len(good) - len(drawn)
        negatives[query] = sorted(drawn, key=lambda negative: negative.rank)
        groups.append(
            Group(
                text_of(queries, query, "query"),
                [documents[document] for document in positives],
                [documents[negative.document] for negative in negatives[query]],
            )
        )
    if not groups:
        raise ValueError(
            f"No query of the run {run.name!r} has a negative left (skipped: {dict(skipped)}; "
            f"{len(without_positive)} queries without a positive): widen the ranks or loosen "
            "the margin."
        )
    return Mined(
        groups=groups,
        negatives=negatives,
        count=count,
        skipped=dict(skipped),
        not_drawn=not_drawn,
        without_negative=without_negative,
        without_positive=without_positive,
    )


class _Filter:
    """Says of a candidate why it cannot be a negative of a query."""

    def __init__(
        self,
        run: Run,
        documents: Mapping[str, str],
        qrels: Qrels,
        related: Mapping[str, Ids[str]],
        exclude: frozenset[str],
    ):
        self.documents, self.related, self.exclude = documents, related, exclude
        self.positives = {query: _positives(qrels, query, run.name) for query in run.query_ids}
        self.limits: dict[str, float] | None = None
        self.scores: dict[str, dict[str, float]] = {}

    def set_margins(self, run: Run, relative: float | None, absolute: float | None) -> None:
        """Allow only candidates that score clearly below the best positive of their query."""
        self.limits = {}
        for query, ids, values in run:
            own = slice(run.depth)  # below it numbers only keep the order
            row = dict(zip(ids[own], values[own].tolist(), strict=True))
            found = [row[d] for d in self.positives.get(query, ()) if d in row]
            self.scores[query] = row
            if found:
                self.limits[query] = _limit(query, max(found), relative, absolute)

    def open(self, query: str) -> list[str]:
        """The positives that may be trained on; none where there is nothing to compare with."""
        if self.limits is not None and query not in self.limits:
            return []
        self.texts = {self._judged(query, document) for document in self.positives[query]}
        return [
            document
            for document in self.positives[query]
            if document not in self.exclude and self.documents[document].strip()
        ]

    def _judged(self, query: str, document: str) -> str:
        if document not in self.documents:
            raise KeyError(
                f"The qrels name document {document!r} for query {query!r}, which has no text: "
                "pass its collection."
            )
        return text_of(self.documents, document, "document")

    def reason(self, query: str, candidate: Negative) -> str | None:
        document = candidate.document
        text = text_of(self.documents, document, "document")
        if not text.strip():
            return EMPTY
        if document in self.positives[query]:
            return POSITIVE
        if text in self.texts:
            return SAME_TEXT
        if document in self.related.get(query, ()):
            return RELATED
        if document in self.exclude:
            return HELD_OUT
        if self.limits is not None and self._score(query, document) > self.limits[query]:
            return FALSE_NEGATIVE
        return None

    def _score(self, query: str, document: str) -> float:
        if document not in self.scores[query]:
            raise ValueError(
                f"scores has none for query {query!r} and document {document!r}: score all "
                "candidates down to the last of the ranks."
            )
        return self.scores[query][document]


def _limit(query: str, score: float, relative: float | None, absolute: float | None) -> float:
    """The highest score that a negative may have beside a positive of this score."""
    limits = []
    if relative is not None:
        if score <= 0:
            raise ValueError(
                f"The positive of query {query!r} scores {score:.3f}: a share of a score that is "
                "not above 0 means nothing; use absolute_margin."
            )
        limits.append(score * (1 - relative))
    if absolute is not None:
        limits.append(score - absolute)
    return min(limits)


def _positives(qrels: Qrels, query: str, name: str) -> list[str]:
    positives = [document for document, grade in qrels.get(query, {}).items() if grade > 0]
    if not positives:
        raise ValueError(
            f"Query {query!r} of the run {name!r} has no relevant document in the qrels: mine "
            "over the queries of the training split."
        )
    return positives


def _check_arguments(
    count: int, ranks: tuple[int, int], relative: float | None, absolute: float | None
) -> None:
    if count < 1:
        raise ValueError(f"count is {count}: ask for at least one negative a query.")
    if not 1 <= ranks[0] <= ranks[1]:
        raise ValueError(f"ranks is {ranks}: give the first and the last, counted from 1.")
    if relative is not None and not 0 <= relative < 1:
        raise ValueError(f"relative_margin is {relative}: give a share from 0 to below 1.")
    if absolute is not None and not 0 <= absolute < math.inf:
        raise ValueError(f"absolute_margin is {absolute}: give a number of at least 0.")


def _check_ids(exclude: Ids[str], related: Mapping[str, Ids[str]]) -> None:
    named = {"exclude": exclude} | {f"related[{query!r}]": ids for query, ids in related.items()}
    for name, ids in named.items():
        if isinstance(ids, str):  # its letters would be taken for ids
            raise TypeError(f"{name} is one string, expected ids: give {{{ids!r}}}.")


def write_jsonl(groups: Sequence[Group], path: str | Path) -> Path:
    """Write a training file as FlagEmbedding reads it: a JSON object a line.

    Raises:
        ValueError: no groups, or one that `read_jsonl` would refuse.
        OSError: the file cannot be written; what stood there before stays.
    """
    path = Path(path)
    if not groups:
        raise ValueError(f"There are no groups to write to {path}: mine some first.")
    lines = []
    for number, group in enumerate(groups, 1):
        record = {key: value for key, value in vars(group).items() if value is not None}
        _check(record, f"{path}, line {number}")
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_whole("".join(lines), path)
    return path


def read_jsonl(path: str | Path) -> list[Group]:
    """Read and check a training file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is empty; or, with its line number, a line that is no JSON object,
            has no query, no positive or no negative, half a character in a text, a negative
            that is also a positive, or scores that do not fit the texts.
    """
    groups = []
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8 ({error}): save it in that encoding.") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except ValueError:
            raise ValueError(f"{where}: expected a JSON object, found {line[:60]!r}.") from None
        _check(record, where)
        fields = ("query", "pos", "neg", "pos_scores", "neg_scores")
        groups.append(Group(*(record.get(field) for field in fields)))
    if not groups:
        raise ValueError(f"{path} is empty: write training groups to it first.")
    return groups


def _check(record: Any, where: str) -> None:
    """Raise ValueError unless a trainer can use the record."""
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object, found {type(record).__name__}.")
    query = record.get("query")
    if not isinstance(query, str) or not query.strip():
        raise ValueError(f"{where}: the query is missing or empty.")
    for side, meaning in (("pos", "answers"), ("neg", "does not answer")):
        texts = record.get(side)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{where}: {side!r} is not a list of texts.")
        if not texts or not all(text.strip() for text in texts):
            raise ValueError(
                f"{where}: {side!r} holds no text, or an empty one: give at least one text that "
                f"{meaning} the query, or drop the line."
            )
    if not all(map(is_unicode, (query, *record["pos"], *record["neg"]))):
        raise ValueError(
            f"{where}: a text holds half a character (a lone surrogate): read it anew with the "
            "right encoding."
        )
    both = set(record["pos"]) & set(record["neg"])
    if both:
        raise ValueError(
            f"{where}: the negatives contain a positive ({min(both)[:60]!r}): take it out of 'neg'."
        )
    _check_scores(record, where)


def _check_scores(record: dict, where: str) -> None:
    given = [record.get(f"{side}_scores") for side in ("pos", "neg")]
    if given == [None, None]:
        return
    for side, scores in zip(("pos", "neg"), given, strict=True):
        if not isinstance(scores, list) or len(scores) != len(record[side]):
            found = len(scores) if isinstance(scores, list) else "no"
            raise ValueError(
                f"{where}: {found} '{side}_scores' for {len(record[side])} texts in {side!r}: "
                "give one score a text, for pos and neg."
            )
        if not all(_is_number(score) for score in scores):
            raise ValueError(f"{where}: '{side}_scores' holds what is not a finite number.")


def _is_number(score: Any) -> bool:
    usual = isinstance(score, int | float) and not isinstance(score, bool)
    return usual and abs(score) <= sys.float_info.max  # NaN is not

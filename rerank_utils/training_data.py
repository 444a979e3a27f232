"""What the bundled reranker is trained on: texts of the training side, and docstrings.

A few hundred documents teach a cross-encoder those documents, not how to compare texts. So the
candidates also hold other passages of the catalogue, parts of the documents, and texts put together
from sentences of several; the teacher has a score for any of them. And a part of the queries and
candidates are docstrings of installed packages: the summary is the query, the rest the answer.
"""

from __future__ import annotations

import ast
import hashlib
import random
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .cwe import (
    Report,
    Weakness,
    clean_report,
    collect_reports,
    held_out,
    linked_reports,
    near_duplicates,
    read_catalogue,
    read_splits,
    related_weaknesses,
)
from .pieces import cut_into_pieces, split_sentences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_SHARED = 4
"""A sentence that stands under more weaknesses than this says little about any of them."""
DOCUMENTED = ("numpy", "scipy", "sklearn", "pandas", "torch", "matplotlib", "http", "urllib")
"""Packages whose docstrings are read; requirements, what these bring along, or part of Python."""
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
"""Not at a colon, where `pieces.split_sentences` cuts too: "For example:" is no query."""


@dataclass(frozen=True)
class TrainingQuery:
    """A text to search with, and the ids of the documents that answer it.

    Attributes:
        text: the query.
        positives: ids of the documents it belongs to, none of them held out.
        field: "report", the field of the catalogue that the text was taken from, or
            "docstring".
        related: ids that are never used as negatives: the answers of linked reports.
    """

    text: str
    positives: frozenset[str]
    field: str
    related: frozenset[str] = frozenset()


class TrainingSet:
    """Queries and documents of a training, and what each belongs to.

    Attributes:
        queries: reports, sentences of the catalogue, summaries of docstrings.
        documents: document id -> text: weaknesses, passages, excerpts, mixtures, docstrings.
        owners: document id -> the weaknesses it belongs to; a docstring belongs to itself.
        ids: the document ids; a document's column in a table of scores is its place here.
        kind: (documents,) of "CWE", "passage", "excerpt", "mixture" or "docstring".
        reports, sentences, summaries: places of these kinds in `queries`.

    Args:
        docstrings: how many to take.
        excerpts: of each document of a weakness: texts of some of its sentences.
        mixtures: texts of two to five sentences from anywhere on the training side.
        share: which part of the reports to take, from 0 to 1, drawn with the seed.
        seed: of the draws.
    """

    def __init__(
        self,
        docstrings: int,
        excerpts: int = 0,
        mixtures: int = 0,
        share: float = 1,
        seed: int = 0,
    ):
        documents, owners = training_documents()
        self.documents, self.owners = dict(documents), dict(owners)
        rng = random.Random(seed)
        made = _excerpts(documents, owners, excerpts, rng)
        made += _mixtures(documents, owners, mixtures, rng)
        for key, text, where in made:
            self.documents[key], self.owners[key] = text, where
        self.queries = training_queries()
        for number, (summary, rest) in enumerate(read_docstrings(docstrings, seed)):
            key = f"docstring-{number}"
            self.documents[key], self.owners[key] = rest, frozenset({key})
            self.queries.append(TrainingQuery(summary, frozenset({key}), "docstring"))
        places: dict[str, list[int]] = defaultdict(list)
        for i, query in enumerate(self.queries):
            field = query.field if query.field in ("report", "docstring") else "sentence"
            places[field].append(i)
        reports = places["report"]
        self.reports = random.Random(seed).sample(reports, round(share * len(reports)))
        self.sentences, self.summaries = places["sentence"], places["docstring"]
        self._number()

    def _number(self) -> None:
        self.ids = list(self.documents)
        self.column = {document: i for i, document in enumerate(self.ids)}
        self.kind = np.array([document.split("-")[0] for document in self.ids])

    def columns_by_owner(self) -> dict[str, list[int]]:
        """Weakness, or docstring -> the columns of its documents."""
        columns: dict[str, list[int]] = defaultdict(list)
        for column, document in enumerate(self.ids):
            for owner in self.owners[document]:
                columns[owner].append(column)
        return dict(columns)

    def cut(self, length: int, tokenizer: PreTrainedTokenizerBase) -> None:
        """Put pieces in place of the documents that are longer than so many tokens.

        Those of "CWE-79" are "CWE-79", "CWE-79#1" and so on; each answers what the whole did.
        """
        cut = cut_into_pieces(self.documents.values(), length, tokenizer)
        pieces = {
            document: {f"{document}#{i}" if i else document: p for i, p in enumerate(cut[text])}
            for document, text in self.documents.items()
        }
        self.owners = {p: self.owners[document] for document in pieces for p in pieces[document]}
        self.documents = {p: text for found in pieces.values() for p, text in found.items()}
        self.queries = [
            replace(query, positives=frozenset(p for d in query.positives for p in pieces[d]))
            for query in self.queries
        ]
        self._number()

    def fingerprint(self) -> str:
        """A sha256 of all texts, by which a training knows that it resumes on the same data."""
        texts = "\0".join([*(query.text for query in self.queries), *self.documents.values()])
        return hashlib.sha256(texts.encode()).hexdigest()


def training_queries() -> list[TrainingQuery]:
    """Reports, then sentences from other fields of the catalogue, with what they are filed under.

    Nothing held out takes part: no report of dev or test, none that is linked to one of them
    (see `cwe.linked_reports`), no sentence that also stands, letter for letter, in such a field of
    a held-out weakness or is a near duplicate of a dev or test report. A report that is filed on
    both sides, which no split can hold, is asked with its weaknesses of the training side alone.
    """
    weaknesses = read_catalogue()
    reports = collect_reports(weaknesses)
    splits = read_splits()
    asked = {query for side in ("dev", "test") for query in splits[side]}
    related = related_weaknesses(taxonomy=False)
    queries = [
        TrainingQuery(report.text, positives, "report", related[report.id])
        for report in _unasked(reports, asked)
        if (positives := frozenset(filter(_in_training, report.weaknesses)))
    ]
    usable = [
        TrainingQuery(text, frozenset(owners), field)
        for text, (owners, field) in _sentences(weaknesses).items()
        if len(owners) <= MAX_SHARED and all(map(_in_training, owners))
    ]
    leaks = near_duplicates(
        [query.text for query in usable], [r.text for r in reports if r.id in asked]
    )
    return queries + [query for i, query in enumerate(usable) if i not in leaks]


def _in_training(weakness_id: str) -> bool:
    return held_out(weakness_id) == "train"


def _unasked(reports: list[Report], asked: set[str]) -> list[Report]:
    """The reports that are neither asked in dev or test nor linked to one that is."""
    known = asked.copy()
    for pair in linked_reports(reports):
        if not asked.isdisjoint(pair):
            known.update(pair)
    return [report for report in reports if report.id not in known]


def _sentences(weaknesses: list[Weakness]) -> dict[str, tuple[set[str], str]]:
    """Sentence -> the weaknesses under which it stands, and the field where it was met first."""
    owners: dict[str, set[str]] = defaultdict(set)
    fields: dict[str, str] = {}
    for weakness in weaknesses:
        for field, passages in weakness.passages.items():
            least = 2 if field in ("taxonomy names", "alternate terms") else 5
            for passage in passages:
                for sentence in SENTENCE_END.split(clean_report(passage)):
                    if least <= len(sentence.split()) <= 45:
                        owners[sentence].add(weakness.id)
                        fields.setdefault(sentence, field)
    return {sentence: (owners[sentence], fields[sentence]) for sentence in owners}


def training_documents() -> tuple[dict[str, str], dict[str, frozenset[str]]]:
    """Texts of the training side, and the weaknesses each belongs to.

    The documents of the collection under their own ids, then the passages of their other fields
    under ids of the form "passage-7". No passage also stands in such a field of a held-out
    weakness.
    """
    documents: dict[str, str] = {}
    owners: dict[str, set[str]] = defaultdict(set)
    passages: dict[str, set[str]] = defaultdict(set)
    for weakness in read_catalogue():
        if _in_training(weakness.id):
            documents[weakness.id] = weakness.document
            owners[weakness.id].add(weakness.id)
        for texts in weakness.passages.values():
            for passage in texts:
                if len(passage.split()) >= 12:
                    passages[clean_report(passage)].add(weakness.id)
    for number, (text, where) in enumerate(passages.items()):
        if all(map(_in_training, where)):
            documents[f"passage-{number}"] = text
            owners[f"passage-{number}"] = where
    return documents, {key: frozenset(where) for key, where in owners.items()}


Made = tuple[str, str, frozenset[str]]
"""Id, text and owners of a document that is put together from others."""


def _excerpts(
    documents: dict[str, str], owners: dict[str, frozenset[str]], count: int, rng: random.Random
) -> list[Made]:
    """Texts of some sentences of a weakness, in their order; mostly with its name before them."""
    made: list[Made] = []
    for key, text in documents.items():
        name, *rest = split_sentences(text)
        if not key.startswith("CWE-") or len(rest) < 2:
            continue
        for _ in range(count):
            kept = sorted(rng.sample(range(len(rest)), rng.randint(1, len(rest) - 1)))
            parts = [name] * (rng.random() < 0.7) + [rest[i] for i in kept]
            made.append((f"excerpt-{len(made)}", " ".join(parts), owners[key]))
    return made


def _mixtures(
    documents: dict[str, str], owners: dict[str, frozenset[str]], count: int, rng: random.Random
) -> list[Made]:
    """Texts of sentences that never stood together."""
    sentences = [
        (sentence, owners[key])
        for key, text in documents.items()
        for sentence in SENTENCE_END.split(text)
        if len(sentence.split()) >= 4
    ]
    made: list[Made] = []
    for number in range(count):
        drawn = rng.sample(sentences, rng.randint(2, 5))
        where = frozenset().union(*(where for _, where in drawn))
        made.append((f"mixture-{number}", " ".join(text for text, _ in drawn), where))
    return made


@cache
def read_docstrings(limit: int, seed: int) -> list[tuple[str, str]]:
    """(summary, the rest) of docstrings in installed packages, read without importing them.

    Args:
        limit: how many to draw, with the seed, from all with a summary of 5 words or more and
            20 further words. Of those with the same text one is kept, so a few less remain.
    """
    found: dict[str, str] = {}
    for package in DOCUMENTED:
        spec = find_spec(package)
        for folder in spec.submodule_search_locations or []:
            for path in sorted(Path(folder).rglob("*.py")):
                if "test" not in str(path.relative_to(folder)):
                    found |= _documented(path)
    pairs = sorted(found.items())
    drawn = random.Random(seed).sample(pairs, min(limit, len(pairs)))
    answers = {rest: summary for summary, rest in reversed(drawn)}  # one query for each text
    return [(summary, rest) for summary, rest in drawn if answers[rest] == summary]


def _documented(path: Path) -> dict[str, str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return {}
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
            head, _, rest = text.partition("\n\n")
            summary, words = " ".join(head.split()), rest.split()
            if 5 <= len(summary.split()) <= 45 and len(words) >= 20:
                found[summary] = " ".join(words[:120])
    return found

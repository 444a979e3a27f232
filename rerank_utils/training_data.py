"""What the bundled reranker is trained on: texts of the training side, and docstrings.

A few hundred documents teach a cross-encoder those documents, not how to compare texts. So the
candidates also hold other passages of the catalogue, and a part of the queries and candidates are
docstrings of installed packages: the summary is the query, the rest of the docstring the answer.
For the same reason descriptions of the National Vulnerability Database can join, as queries that
look for weaknesses and as texts that a report looks for.
"""

from __future__ import annotations

import ast
import hashlib
import random
from collections import defaultdict
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from .cwe import clean_report, read_catalogue
from .training_queries import TrainingQuery, in_training, nvd_queries, training_queries

KINDS = {"report": "report", "docstring": "docstring", "NVD": "description", "twin": "description"}
"""Of queries, by the field they come from; all others are sentences of the catalogue."""
DOCUMENTED = ("numpy", "scipy", "sklearn", "pandas", "torch", "matplotlib", "http", "urllib")
"""Packages whose docstrings are read; all are requirements, or part of Python."""


class TrainingSet:
    """Queries and documents of a training, and what each belongs to.

    Attributes:
        queries: reports, sentences of the catalogue, descriptions of the NVD, summaries of
            docstrings.
        documents: document id -> text: weaknesses, passages, descriptions of the NVD, docstrings.
        owners: document id -> the weaknesses it belongs to; a docstring belongs to itself.
        ids: the document ids; a document's column in a table of scores is its place here.
        kind: (documents,) of "CWE", "passage", "NVD" or "docstring".
        reports, sentences, descriptions, summaries: places of these kinds in `queries`.
        crossed: places of the reports that a description of the NVD answers.
        described: weakness -> columns of the descriptions filed under it.

    Args:
        docstrings: how many to take.
        nvd: how many descriptions of the NVD to take under each weakness; 0: none at all.
        share: which part of the reports to take, from 0 to 1, drawn with the seed.
        seed: of the draws.
    """

    def __init__(self, docstrings: int, nvd: int = 0, share: float = 1, seed: int = 0):
        self.documents, self.owners = training_documents()
        self.queries = training_queries()
        for number, query in enumerate(nvd_queries(nvd, seed) if nvd else []):
            key = f"NVD-{number}"
            self.documents[key], self.owners[key] = query.text, query.positives
            self.queries.append(query)
        for number, (summary, rest) in enumerate(read_docstrings(docstrings, seed)):
            key = f"docstring-{number}"
            self.documents[key], self.owners[key] = rest, frozenset({key})
            self.queries.append(TrainingQuery(summary, frozenset({key}), "docstring"))
        places: dict[str, list[int]] = defaultdict(list)
        for i, query in enumerate(self.queries):
            places[KINDS.get(query.field, "sentence")].append(i)
        reports = places["report"]
        self.reports = random.Random(seed).sample(reports, round(share * len(reports)))
        self.sentences, self.summaries = places["sentence"], places["docstring"]
        self.descriptions = places["description"]
        self.ids = list(self.documents)
        self.column = {document: i for i, document in enumerate(self.ids)}
        self.kind = np.array([document.split("-")[0] for document in self.ids])
        self.described: dict[str, list[int]] = defaultdict(list)
        for column in np.flatnonzero(self.kind == "NVD").tolist():
            for weakness in self.owners[self.ids[column]]:
                self.described[weakness].append(column)
        self.crossed = [
            i for i in self.reports if not self.queries[i].positives.isdisjoint(self.described)
        ]

    def owned(self, column: int, weaknesses: frozenset[str]) -> bool:
        """Whether the document of a column belongs to one of these weaknesses."""
        return not weaknesses.isdisjoint(self.owners[self.ids[column]])

    def fingerprint(self) -> str:
        """A sha256 of all texts, by which a training knows that it resumes on the same data."""
        texts = "\0".join([*(query.text for query in self.queries), *self.documents.values()])
        return hashlib.sha256(texts.encode()).hexdigest()


def training_documents() -> tuple[dict[str, str], dict[str, frozenset[str]]]:
    """Texts of the training side, and the weaknesses each belongs to.

    The documents of the collection under their own ids, then the passages of their other fields
    under ids of the form "passage-7". No passage also stands under a held-out weakness.
    """
    documents: dict[str, str] = {}
    owners: dict[str, set[str]] = defaultdict(set)
    passages: dict[str, set[str]] = defaultdict(set)
    for weakness in read_catalogue():
        if in_training(weakness.id):
            documents[weakness.id] = weakness.document
            owners[weakness.id].add(weakness.id)
        for texts in weakness.passages.values():
            for passage in texts:
                if len(passage.split()) >= 12:
                    passages[clean_report(passage)].add(weakness.id)
    for number, (text, where) in enumerate(passages.items()):
        if all(map(in_training, where)):
            documents[f"passage-{number}"] = text
            owners[f"passage-{number}"] = where
    return documents, {key: frozenset(where) for key, where in owners.items()}


@cache
def read_docstrings(limit: int, seed: int) -> list[tuple[str, str]]:
    """(summary, the rest) of docstrings in installed packages, read without importing them.

    Args:
        limit: how many to keep, drawn with the seed from all with a summary of 5 words or more
            and 20 further words.
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

"""What a training asks: texts of the training side, and what answers each.

Reports, sentences from other fields of the catalogue, and descriptions of the National
Vulnerability Database. Nothing held out takes part.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from dataclasses import dataclass

from .cwe import (
    Report,
    Weakness,
    clean_report,
    collect_reports,
    held_out,
    linked_reports,
    near_duplicates,
    parents_and_children,
    read_catalogue,
    read_splits,
    related_weaknesses,
)
from .nvd import Entry, read_entries

MAX_SHARED = 4
"""A sentence that stands under more weaknesses than this says little about any of them."""


@dataclass(frozen=True)
class TrainingQuery:
    """A text to search with, and the ids of the documents that answer it.

    Attributes:
        text: the query.
        positives: ids of the documents it belongs to, none of them held out.
        field: "report", the field of the catalogue that the text was taken from, "docstring",
            or "NVD" and "twin", see `nvd_queries`.
        related: ids that are never used as negatives: the answers of linked reports.
    """

    text: str
    positives: frozenset[str]
    field: str
    related: frozenset[str] = frozenset()


def training_queries() -> list[TrainingQuery]:
    """Reports, then sentences from other fields of the catalogue, with what they are filed under.

    Nothing held out takes part: no report of dev or test, none that is linked to one of them
    (see `cwe.linked_reports`), no sentence that also stands under a held-out weakness or is a near
    duplicate of a dev or test report. A report that is filed on both sides, which no split can
    hold, is asked with its weaknesses of the training side alone.
    """
    weaknesses = read_catalogue()
    reports = collect_reports(weaknesses)
    asked = _asked()
    queries = list(_training_reports(reports, asked).values())
    usable = [
        TrainingQuery(text, frozenset(owners), field)
        for text, (owners, field) in _sentences(weaknesses).items()
        if len(owners) <= MAX_SHARED and all(map(in_training, owners))
    ]
    leaks = near_duplicates(
        [query.text for query in usable], [r.text for r in reports if r.id in asked]
    )
    return queries + [query for i, query in enumerate(usable) if i not in leaks]


def nvd_queries(per_weakness: int, seed: int) -> list[TrainingQuery]:
    """Descriptions of the National Vulnerability Database on the training side.

    First those of the field "twin": the database's own words on a vulnerability that a training
    report is about, filed where the report is. Then those of the field "NVD": on others, filed
    where the database files them.

    Nothing held out takes part: no vulnerability that a report of dev or test cites, nor, for
    "NVD", any that the catalogue cites; none with a weakness that is held out or not in the
    catalogue; no text that is a near duplicate of a dev or test report, or of the database's
    words on one.

    Args:
        per_weakness: the most of "NVD" under one weakness; a few would crowd out the others.
        seed: of the draw.
    """
    weaknesses = read_catalogue()
    reports = collect_reports(weaknesses)
    asked = _asked()
    entries = read_entries()
    found = _twins(entries, reports, asked)
    found += _filed(entries, weaknesses, reports, per_weakness, seed)
    close = [report for report in reports if report.id in asked]
    cited = set().union(*(report.cves for report in close))
    barred = [report.text for report in close]
    barred += [clean_report(entry.text) for entry in entries if entry.cve in cited]
    leaks = near_duplicates([query.text for query in found], barred)
    return [query for i, query in enumerate(found) if i not in leaks]


def _twins(entries: list[Entry], reports: list[Report], asked: set[str]) -> list[TrainingQuery]:
    positives: dict[str, set[str]] = defaultdict(set)
    related: dict[str, set[str]] = defaultdict(set)
    queries = _training_reports(reports, asked)
    for report in reports:
        for cve in report.cves if report.id in queries else ():
            positives[cve] |= queries[report.id].positives
            related[cve] |= queries[report.id].related
    return [
        TrainingQuery(text, frozenset(owners), "twin", frozenset(related[entry.cve] - owners))
        for entry in entries
        if (owners := positives.get(entry.cve)) and _fits(text := clean_report(entry.text))
    ]


def _filed(
    entries: list[Entry],
    weaknesses: list[Weakness],
    reports: list[Report],
    per_weakness: int,
    seed: int,
) -> list[TrainingQuery]:
    known, near = {weakness.id for weakness in weaknesses}, parents_and_children(weaknesses)
    cited = set().union(*(report.cves for report in reports))
    usable: dict[str, TrainingQuery] = {}
    for entry in entries:
        filed = entry.weaknesses
        if entry.cve in cited or not filed or not filed <= known:
            continue
        if all(map(in_training, filed)) and _fits(text := clean_report(entry.text)):
            related = frozenset().union(*(near[weakness] for weakness in filed)) - filed
            usable[text.casefold()] = TrainingQuery(text, filed, "NVD", related)
    under: dict[str, list[TrainingQuery]] = defaultdict(list)
    for query in usable.values():
        under[min(query.positives)].append(query)
    rng = random.Random(seed)
    return [
        query
        for weakness in sorted(under)
        for query in rng.sample(under[weakness], min(per_weakness, len(under[weakness])))
    ]


def _fits(text: str) -> bool:
    """Whether a description says enough, and leaves room for a document beside it."""
    return 6 <= len(text.split()) <= 80


def _asked() -> set[str]:
    """The ids of all dev and test queries."""
    splits = read_splits()
    return {query for side in ("dev", "test") for query in splits[side]}


def _training_reports(reports: list[Report], asked: set[str]) -> dict[str, TrainingQuery]:
    """Report id -> what it asks, with its weaknesses of the training side."""
    related = related_weaknesses(taxonomy=False)
    return {
        report.id: TrainingQuery(report.text, positives, "report", related[report.id])
        for report in _unasked(reports, asked)
        if (positives := frozenset(filter(in_training, report.weaknesses)))
    }


def in_training(weakness_id: str) -> bool:
    """Whether a weakness stands on the training side of the split."""
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
                for sentence in re.split(r"(?<=[.!?])\s+", clean_report(passage)):
                    if least <= len(sentence.split()) <= 45:
                        owners[sentence].add(weakness.id)
                        fields.setdefault(sentence, field)
    return {sentence: (owners[sentence], fields[sentence]) for sentence in owners}

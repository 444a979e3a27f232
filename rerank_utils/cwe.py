"""The embedded collection: vulnerability reports (queries) to CWE weaknesses (documents).

MITRE's Common Weakness Enumeration lists, under each weakness, observed examples: one-sentence
reports of real vulnerabilities that a person filed there. The catalogue comes with the package
`cwe2` as XML, so nothing is downloaded. The rules that turn it into a collection are below,
one function each.
"""

from __future__ import annotations

import hashlib
import json
import re
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np

from .collection import Collection, Qrels

if TYPE_CHECKING:
    from scipy.sparse import csr_array

CATALOGUE = "database_v49/cwec_v4.14.xml"
SPLITS_FILE = "cwe_splits.json"
MIN_WORDS = 4
TEST_PERCENT, DEV_PERCENT = 25, 20
SPLIT_SALT = 5
"""With 10 % for dev, the first whole number that left at least 400 test and 150 dev queries; chosen
on these counts alone. Dev was raised to 20 % later, out of the training side, because its few
weaknesses decided every choice; the test side is as it was."""
NEAR_DUPLICATE = 0.6
"""Two reports whose word sets have at least this Jaccard similarity count as the same event."""

_SPACE = "{http://cwe.mitre.org/cwe-7}"
_CWE = r"CWE-\d+"
_LEAKS = [
    # "(CWE-20)", "[CWE-835]", "(CWE-178, CWE-1289)"
    (rf"\s*[(\[]\s*{_CWE}(?:\s*(?:,|and|or|/|;|->)\s*{_CWE})*\s*[)\]]", ""),
    # "CWE-705 (Incorrect Control Flow Scoping) -> CWE-561 (Dead Code)."
    (rf"\s*{_CWE} \([^)]*\)(?:\s*->\s*{_CWE} \([^)]*\))*\.?", ""),
    # "(length parameter inconsistency, CWE-130)"
    (rf",\s*{_CWE}(?=\s*\))", ""),
    # a whole sentence about the number: "This may be a composite with CWE-642."
    (rf"(?<=\.)\s*[^.]*{_CWE}[^.]*\.", ""),
    (rf"\s*{_CWE}", ""),
    (r"\s*\[REF-\d+\]", ""),
    # "Chain: ", "composite: ", "chain/composite: "
    (r"^\s*(?:(?:chain|composite)/?)+:\s*", ""),
]
_LEAKS = [(re.compile(pattern, re.IGNORECASE), new) for pattern, new in _LEAKS]


@dataclass(frozen=True)
class Weakness:
    """One live entry of the catalogue, as far as the course uses it.

    Attributes:
        id: such as "CWE-79".
        name: its title.
        text: description and extended description.
        parents: ids of the weaknesses it is a child of (research view).
        reports: (CVE number or other reference, text as printed) for each observed example.
        passages: field name -> further texts of the entry, used only to make training queries.
    """

    id: str
    name: str
    text: str
    parents: tuple[str, ...]
    reports: tuple[tuple[str, str], ...]
    passages: dict[str, tuple[str, ...]]

    @property
    def document(self) -> str:
        """The text that is searched: name, description, extended description."""
        return f"{self.name}. {self.text}"


@dataclass(frozen=True)
class Report:
    """One distinct report text: its stable id, the weaknesses and CVE numbers it is filed under."""

    id: str
    text: str
    weaknesses: frozenset[str]
    cves: frozenset[str]


def load_cwe() -> Collection:
    """The CWE collection with its committed splits: `train`, `dev` and `test`.

    Documents are the 938 live weaknesses (name, description, extended description), queries the
    distinct reports, relevance is binary: 1 where a report is filed under a weakness.

    Raises:
        FileNotFoundError: the package `cwe2` is missing its catalogue.
        ValueError: the catalogue is not the one the committed splits were made from.
    """
    weaknesses = read_catalogue()
    reports = {report.id: report for report in collect_reports(weaknesses)}
    splits = read_splits()
    missing = [query for ids in splits.values() for query in ids if query not in reports]
    if missing:
        raise ValueError(
            f"{len(missing)} committed query ids are not in the catalogue of cwe2 "
            f"{version('cwe2')}: install the version that constraints.txt names."
        )
    kept = [query for ids in splits.values() for query in ids]
    qrels: Qrels = {query: {d: 1 for d in sorted(reports[query].weaknesses)} for query in kept}
    return Collection(
        name="cwe",
        documents={w.id: w.document for w in weaknesses},
        queries={query: reports[query].text for query in kept},
        qrels=qrels,
        splits=splits,
        titles={w.id: w.name for w in weaknesses},
    )


def read_catalogue() -> list[Weakness]:
    """The live (not deprecated) weaknesses of the packaged catalogue, in its own order."""
    catalogue = files("cwe2") / CATALOGUE
    if not catalogue.is_file():
        raise FileNotFoundError(
            f"The package cwe2 has no file {CATALOGUE}: install the version that "
            "constraints.txt names."
        )
    with catalogue.open("rb") as stream:
        root = ElementTree.parse(stream).getroot()
    entries = root.iter(f"{_SPACE}Weakness")
    return [_weakness(entry) for entry in entries if entry.get("Status") != "Deprecated"]


def _weakness(entry: ElementTree.Element) -> Weakness:
    def texts(path: str) -> tuple[str, ...]:
        steps = "/".join(_SPACE + step for step in path.split("/"))
        return tuple(text for node in entry.findall(steps) if (text := _plain(node)))

    relations = entry.iterfind(f"{_SPACE}Related_Weaknesses/{_SPACE}Related_Weakness")
    examples = entry.iterfind(f"{_SPACE}Observed_Examples/{_SPACE}Observed_Example")
    return Weakness(
        id=f"CWE-{entry.get('ID')}",
        name=entry.get("Name", ""),
        text=" ".join(texts("Description") + texts("Extended_Description")),
        parents=tuple(
            f"CWE-{node.get('CWE_ID')}"
            for node in relations
            if node.get("Nature") == "ChildOf" and node.get("View_ID") == "1000"
        ),
        reports=tuple(
            (_plain(node.find(f"{_SPACE}Reference")), _plain(node.find(f"{_SPACE}Description")))
            for node in examples
        ),
        passages={
            "alternate terms": texts("Alternate_Terms/Alternate_Term/Term")
            + texts("Alternate_Terms/Alternate_Term/Description"),
            "consequences": texts("Common_Consequences/Consequence/Note"),
            "mitigations": texts("Potential_Mitigations/Mitigation/Description"),
            "demonstrations": texts("Demonstrative_Examples/Demonstrative_Example/Intro_Text")
            + texts("Demonstrative_Examples/Demonstrative_Example/Body_Text"),
            "taxonomy names": texts("Taxonomy_Mappings/Taxonomy_Mapping/Entry_Name"),
            "introduction": texts("Modes_Of_Introduction/Introduction/Note"),
            "background": texts("Background_Details/Background_Detail"),
        },
    )


def _plain(node: ElementTree.Element | None) -> str:
    """The text of a node without mark-up, white space folded."""
    return "" if node is None else " ".join(" ".join(node.itertext()).split())


def clean_report(text: str) -> str:
    """A report without what would give its answer away: weakness numbers and their printed
    names, references, and the prefixes "Chain:" and "Composite:"."""
    for pattern, new in _LEAKS:
        text = pattern.sub(new, text)
    text = re.sub(r"\s+([.,;:)])", r"\1", " ".join(text.split()))
    return text.strip()


def collect_reports(weaknesses: Iterable[Weakness]) -> list[Report]:
    """The distinct reports of at least four words, sorted by id.

    The same text filed twice (case and white space aside) is one report with the union of its
    labels. The id is made from the text, so that it does not depend on order, and a CVE number
    is not used for it: one CVE may have several texts, and one text several CVEs.
    """
    texts: dict[str, str] = {}
    labels: dict[str, set[str]] = {}
    cves: dict[str, set[str]] = {}
    for weakness in weaknesses:
        for reference, printed in weakness.reports:
            text = clean_report(printed)
            if len(text.split()) < MIN_WORDS:
                continue
            key = text.casefold()
            texts.setdefault(key, text)
            labels.setdefault(key, set()).add(weakness.id)
            references = cves.setdefault(key, set())
            if reference.startswith("CVE-"):
                references.add(reference)
    reports = [
        Report(_report_id(key), texts[key], frozenset(labels[key]), frozenset(cves[key]))
        for key in texts
    ]
    return sorted(reports, key=lambda report: report.id)


def _report_id(text: str) -> str:
    return "R" + hashlib.sha256(text.encode()).hexdigest()[:10]


def held_out(weakness_id: str) -> str:
    """The side of the split on which a weakness stands: "test", "dev" or "train"."""
    digest = hashlib.sha256(f"{SPLIT_SALT}:{weakness_id}".encode()).hexdigest()
    bucket = int(digest, 16) % 100
    if bucket < TEST_PERCENT:
        return "test"
    return "dev" if bucket < TEST_PERCENT + DEV_PERCENT else "train"


def split_by_weakness(reports: list[Report]) -> dict[str, list[str]]:
    """Split the reports so that no weakness of one side is an answer on another.

    A report belongs to a side if all its weaknesses do; a report with weaknesses on several
    sides is dropped. Of two reports that describe one event (`linked_reports`) and stand on
    different sides, one is dropped as well: the one in training, or of dev and test that in dev.

    Returns:
        "train", "dev", "test" -> query ids in the order of `reports`.
    """
    side = {}
    for report in reports:
        sides = {held_out(weakness) for weakness in report.weaknesses}
        if len(sides) == 1:
            side[report.id] = sides.pop()
    rank = {"train": 0, "dev": 1, "test": 2}
    dropped = set()
    for first, second in linked_reports(reports):
        if first in side and second in side and side[first] != side[second]:
            dropped.add(min(first, second, key=lambda query: rank[side[query]]))
    return {
        name: [r.id for r in reports if side.get(r.id) == name and r.id not in dropped]
        for name in rank
    }


def linked_reports(reports: list[Report]) -> list[tuple[str, str]]:
    """Pairs of reports that share a CVE number or at least 60 % of their words (Jaccard)."""
    texts = [report.text for report in reports]
    pairs = _close_pairs(texts, texts)
    same_cve = _overlaps([report.cves for report in reports], [report.cves for report in reports])
    pairs |= set(zip(*(index.tolist() for index in same_cve.nonzero()), strict=True))
    return sorted((reports[i].id, reports[j].id) for i, j in pairs if i < j)


def related_weaknesses(taxonomy: bool = True) -> dict[str, frozenset[str]]:
    """Query id -> weaknesses that are no safe negatives of it, though nobody filed it there.

    These are the answers of linked reports (see `linked_reports`), which describe the same event.

    Args:
        taxonomy: also the parents and children of the query's own answers: what is filed under
            one of them is often true of the other as well.
    """
    weaknesses = read_catalogue()
    reports = collect_reports(weaknesses)
    by_id = {report.id: report for report in reports}
    related = {report.id: set() for report in reports}
    for first, second in linked_reports(reports):
        related[first] |= by_id[second].weaknesses
        related[second] |= by_id[first].weaknesses
    if taxonomy:
        near = _parents_and_children(weaknesses)
        for report in reports:
            related[report.id] |= set().union(*(near[answer] for answer in report.weaknesses))
    return {query: frozenset(found - by_id[query].weaknesses) for query, found in related.items()}


def _parents_and_children(weaknesses: Iterable[Weakness]) -> dict[str, set[str]]:
    near: dict[str, set[str]] = defaultdict(set)
    for weakness in weaknesses:
        for parent in weakness.parents:
            near[weakness.id].add(parent)
            near[parent].add(weakness.id)
    return near


def near_duplicates(texts: list[str], others: list[str]) -> set[int]:
    """Positions of the texts that share at least 60 % of their words with one of the others."""
    return {i for i, _ in _close_pairs(texts, others)}


def _close_pairs(texts: list[str], others: list[str]) -> set[tuple[int, int]]:
    """(i, j) where texts[i] and others[j] have a Jaccard similarity of at least 0.6."""
    words = [set(re.findall(r"\w+", text.casefold())) for text in texts]
    other_words = [set(re.findall(r"\w+", text.casefold())) for text in others]
    shared = _overlaps(words, other_words)
    rows, columns = shared.nonzero()
    common = np.asarray(shared[rows, columns]).ravel()
    sizes = (
        np.array([len(w) for w in words])[rows] + np.array([len(w) for w in other_words])[columns]
    )
    close = common >= NEAR_DUPLICATE * (sizes - common)
    return set(zip(rows[close].tolist(), columns[close].tolist(), strict=True))


def _overlaps(left: Sequence[Iterable[str]], right: Sequence[Iterable[str]]) -> csr_array:
    """(len(left), len(right)) sparse counts of the items that each two sets share."""
    from scipy.sparse import csr_array

    vocabulary: dict[str, int] = {}

    def table(sets: Sequence[Iterable[str]]) -> tuple[np.ndarray, list[int], np.ndarray]:
        rows = [[vocabulary.setdefault(x, len(vocabulary)) for x in items] for items in sets]
        indices = [i for row in rows for i in row]
        starts = np.cumsum([0, *(len(row) for row in rows)])
        return np.ones(len(indices), dtype=np.int32), indices, starts

    tables = [table(left), table(right)]
    width = max(len(vocabulary), 1)
    first, second = (csr_array(t, shape=(len(t[2]) - 1, width)) for t in tables)
    return first @ second.T


def read_splits() -> dict[str, list[str]]:
    """The committed split: "train", "dev", "test" -> query ids."""
    text = (files(__package__) / SPLITS_FILE).read_text(encoding="utf-8")
    return json.loads(text)

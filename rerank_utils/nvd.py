"""The National Vulnerability Database, as the package `cvedb` carries it (May 2021).

Each entry describes one vulnerability, by its CVE number, in a few sentences. The database's own
analysts file it under weaknesses of a short list, so its labels are many but coarser than those
of the catalogue's reports. Only training reads it; the collection that is searched does not.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

REJECTED = "** "
"""How the description of an entry begins that was withdrawn or is disputed."""


@dataclass(frozen=True)
class Entry:
    """One vulnerability.

    Attributes:
        cve: its number, such as "CVE-2014-3537".
        text: the description, white space folded.
        weaknesses: ids such as "CWE-59" under which the database files it; may be empty.
    """

    cve: str
    text: str
    weaknesses: frozenset[str]


def read_entries() -> list[Entry]:
    """All entries that were not rejected, year by year. Reading them takes half a minute.

    Raises:
        ModuleNotFoundError: the package `cvedb` is not installed.
        FileNotFoundError: it holds no data.
    """
    spec = find_spec("cvedb")  # found, not imported: only its data is wanted
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "Training reads the package cvedb: pip install 'rerank-utils[train]'."
        )
    feeds = sorted((Path(spec.origin).parent / "data").glob("nvdcve-1.1-*.json.gz"))
    if not feeds:
        raise FileNotFoundError(
            "The package cvedb holds no data: install the version that constraints.txt names."
        )
    return [entry for feed in feeds for entry in _read(feed)]


def _read(feed: Path) -> list[Entry]:
    with gzip.open(feed, "rt", encoding="utf-8") as stream:
        entries = [_entry(item["cve"]) for item in json.load(stream)["CVE_Items"]]
    return [entry for entry in entries if not entry.text.startswith(REJECTED)]


def _entry(item: dict[str, Any]) -> Entry:
    texts = [part["value"] for part in item["description"]["description_data"]]
    filed = [
        name["value"]
        for problem in item["problemtype"]["problemtype_data"]
        for name in problem["description"]
    ]
    return Entry(
        cve=item["CVE_data_meta"]["ID"],
        text=" ".join(" ".join(texts).split()),
        weaknesses=frozenset(name for name in filed if name.startswith("CWE-")),
    )

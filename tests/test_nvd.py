"""The descriptions of the National Vulnerability Database that a training may ask."""

import gzip
import json
import sys

import pytest

from rerank_utils import training_queries
from rerank_utils.cwe import (
    clean_report,
    collect_reports,
    held_out,
    near_duplicates,
    read_catalogue,
)
from rerank_utils.nvd import Entry, read_entries
from rerank_utils.training_queries import nvd_queries


def item(cve: str, text: str, *filed: str) -> dict:
    return {
        "cve": {
            "CVE_data_meta": {"ID": cve},
            "description": {"description_data": [{"lang": "en", "value": text}]},
            "problemtype": {
                "problemtype_data": [{"description": [{"value": name} for name in filed]}]
            },
        }
    }


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """A package `cvedb` that is found before any other, with a feed of these items."""

    def write(*items: dict) -> None:
        data = tmp_path / "cvedb" / "data"
        data.mkdir(parents=True)
        (tmp_path / "cvedb" / "__init__.py").write_text("raise RuntimeError('imported')")
        if items:
            with gzip.open(data / "nvdcve-1.1-2020.json.gz", "wt", encoding="utf-8") as stream:
                json.dump({"CVE_Items": items}, stream)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "cvedb", raising=False)

    return write


def test_entries_are_read_without_importing_the_package(packaged):
    packaged(
        item("CVE-2020-1", "A  long\nURL overflows a buffer.", "CWE-120", "NVD-CWE-noinfo"),
        item("CVE-2020-2", "** REJECT ** Do not use this number.", "CWE-79"),
        item("CVE-2020-3", "Nothing more is known."),
    )
    assert read_entries() == [
        Entry("CVE-2020-1", "A long URL overflows a buffer.", frozenset({"CWE-120"})),
        Entry("CVE-2020-3", "Nothing more is known.", frozenset()),
    ]


def test_a_package_without_data_is_named(packaged):
    packaged()
    with pytest.raises(FileNotFoundError, match=r"cvedb holds no data: .* constraints.txt"):
        read_entries()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("rerank_utils.nvd.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"cvedb: pip install 'rerank-utils\[train\]'"):
        read_entries()


@pytest.fixture(scope="module")
def reports() -> dict:
    """One report of each side that cites one CVE number: "train", "dev"."""
    asked = training_queries._asked()
    known = training_queries._training_reports(collect_reports(read_catalogue()), asked)
    found = {}
    for report in collect_reports(read_catalogue()):
        sides = {held_out(weakness) for weakness in report.weaknesses}
        if len(report.cves) == len(report.weaknesses) == len(sides) == 1:
            if sides == {"dev"} and report.id in asked:
                found.setdefault("dev", report)
            if sides == {"train"} and report.id in known:
                found.setdefault("train", report)
    return found


def test_descriptions_are_sorted_into_twins_and_others(monkeypatch, reports):
    (known,) = reports["train"].cves
    (barred,) = reports["dev"].cves
    mine, other = (next(iter(reports[side].weaknesses)) for side in ("train", "dev"))
    long = "a crafted packet lets remote attackers crash the daemon in release"
    entries = [
        Entry(known, "The database's own words (CWE-79) about it.", frozenset({"CWE-20"})),
        Entry(barred, "The words of the database about a dev report.", frozenset({mine})),
        Entry("CVE-X-1", "the words of the database about a DEV report", frozenset({mine})),
        Entry("CVE-X-2", reports["dev"].text, frozenset({mine})),
        Entry("CVE-X-3", "This is filed under a weakness of dev.", frozenset({other})),
        Entry("CVE-X-4", "This is filed on both of the two sides.", frozenset({mine, other})),
        Entry("CVE-X-5", "This is filed where nothing is to be found.", frozenset({"CWE-0"})),
        Entry("CVE-X-6", "This is not filed at all, anywhere.", frozenset()),
        Entry("CVE-X-7", "Far too short.", frozenset({mine})),
        *(
            Entry(f"CVE-Y-{i}", f"{long} {i} of {'xyzuvw'[i] * 9}", frozenset({mine}))
            for i in range(6)
        ),
    ]
    monkeypatch.setattr(training_queries, "read_entries", lambda: entries)
    twin, *others = nvd_queries(3, seed=0)
    assert twin.field == "twin" and twin.positives == {mine}
    assert twin.text == "The database's own words about it."
    assert len(others) == 3 and others != nvd_queries(3, seed=1)[1:]
    for query in others:
        assert query.field == "NVD" and query.positives == {mine} and query.text.startswith(long)
        assert query.related and mine not in query.related


def test_of_the_real_descriptions_nothing_is_held_out(monkeypatch):
    entries = read_entries()
    monkeypatch.setattr(training_queries, "read_entries", lambda: entries)
    found = nvd_queries(40, seed=0)
    fields = [query.field for query in found]
    assert fields.count("twin") > 900 and fields.count("NVD") > 2_000
    assert {held_out(w) for query in found for w in query.positives} == {"train"}
    assert not any("CWE-" in query.text for query in found)
    asked = training_queries._asked()
    close = [report for report in collect_reports(read_catalogue()) if report.id in asked]
    assert not near_duplicates([q.text for q in found], [report.text for report in close])
    cited = {cve for report in close for cve in report.cves}
    barred = {clean_report(entry.text) for entry in entries if entry.cve in cited}
    assert barred and not barred & {query.text for query in found}

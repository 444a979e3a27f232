import pytest

from rerank_utils import cwe
from rerank_utils.cwe import (
    clean_report,
    collect_reports,
    held_out,
    linked_reports,
    load_cwe,
    read_catalogue,
    read_splits,
    split_by_weakness,
)


@pytest.fixture(scope="module")
def weaknesses():
    return read_catalogue()


@pytest.fixture(scope="module")
def reports(weaknesses):
    return collect_reports(weaknesses)


@pytest.fixture(scope="module")
def collection():
    return load_cwe()


def test_the_catalogue_has_its_live_entries(weaknesses):
    assert len(weaknesses) == 938
    assert all(w.name and w.text for w in weaknesses)
    assert sum(len(w.reports) for w in weaknesses) == 2967


@pytest.mark.parametrize(
    ("printed", "cleaned"),
    [
        (
            "Chain: array index error (CWE-129) leads to deadlock (CWE-833)",
            "array index error leads to deadlock",
        ),
        ("is case-sensitive (CWE-178, CWE-1289), allowing", "is case-sensitive, allowing"),
        ('math [CWE-1339] to exit the loop [CWE-835]"', 'math to exit the loop"'),
        (
            '("goto fail" bug). CWE-705 (Incorrect Flow) -> CWE-561 (Dead Code).',
            '("goto fail" bug).',
        ),
        ("(length inconsistency, CWE-130)", "(length inconsistency)"),
        ("Uses weak schemes. This may be a composite with CWE-642.", "Uses weak schemes."),
        ("chain/composite: wrong type", "wrong type"),
        ("cannot be patched. [REF-1097]", "cannot be patched."),
        ("follows a chain: of trust", "follows a chain: of trust"),
    ],
)
def test_reports_do_not_give_their_answer_away(printed, cleaned):
    assert clean_report(printed) == cleaned


def test_no_query_names_a_weakness(collection):
    for text in collection.queries.values():
        assert "CWE" not in text and "REF-" not in text
        assert not text.lower().startswith(("chain:", "composite:"))
        assert len(text.split()) >= cwe.MIN_WORDS


def test_the_same_text_is_one_query_with_all_its_labels(weaknesses, reports):
    texts = [" ".join(report.text.casefold().split()) for report in reports]
    assert len(set(texts)) == len(texts) == len({report.id for report in reports})
    filed = {(clean_report(text).casefold(), w.id) for w in weaknesses for _, text in w.reports}
    kept = {(r.text.casefold(), weakness) for r in reports for weakness in r.weaknesses}
    assert kept == {pair for pair in filed if len(pair[0].split()) >= cwe.MIN_WORDS}


def test_the_committed_split_is_what_the_rule_gives(reports):
    assert read_splits() == split_by_weakness(reports)


def test_the_splits_are_large_enough():
    sizes = {split: len(ids) for split, ids in read_splits().items()}
    assert sizes == {"train": 807, "dev": 290, "test": 448}


def test_no_weakness_answers_on_two_sides(collection):
    for split, query_ids in collection.splits.items():
        answers = {document for query in query_ids for document in collection.qrels[query]}
        assert {held_out(document) for document in answers} == {split}


def test_no_two_sides_share_an_event(reports):
    side = {query: split for split, ids in read_splits().items() for query in ids}
    links = linked_reports(reports)
    assert len(links) > 100
    assert all(side[a] == side[b] for a, b in links if a in side and b in side)


def test_links_are_what_a_plain_loop_finds(reports):
    import re

    sample = reports[:150] + [r for r in reports if r.cves & {"CVE-2000-1218", "CVE-2014-1266"}]
    sample = sorted(set(sample), key=lambda report: report.id)
    words = {r.id: set(re.findall(r"\w+", r.text.casefold())) for r in sample}
    expected = [
        (a.id, b.id)
        for i, a in enumerate(sample)
        for b in sample[i + 1 :]
        if a.cves & b.cves or len(words[a.id] & words[b.id]) / len(words[a.id] | words[b.id]) >= 0.6
    ]
    assert expected and linked_reports(sample) == expected


def test_relevance_is_binary_and_the_card_reads(collection):
    assert {g for grades in collection.qrels.values() for g in grades.values()} == {1}
    card = collection.card()
    assert "938" in card and "test" in card and "448 queries" in card


def test_another_catalogue_than_the_splits_were_made_from_is_refused(monkeypatch):
    monkeypatch.setattr(cwe, "read_splits", lambda: {"test": ["R0000000000"]})
    with pytest.raises(ValueError, match=r"1 committed query ids .* constraints.txt"):
        load_cwe()

"""Mining: what must never be a negative never is, and every candidate is accounted for."""

import json
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rerank_utils import cwe
from rerank_utils.cwe import collect_reports, read_catalogue
from rerank_utils.mining import Group, mine_negatives, read_jsonl, write_jsonl
from rerank_utils.run import Run, rescore

DOCUMENTS = {f"d{i}": f"text {i}" for i in range(12)} | {"twin": "text 0"}


@st.composite
def tasks(draw):
    """Arguments of a mining: a run over three queries, judgments, and what is forbidden."""
    ids = st.sampled_from(sorted(DOCUMENTS))
    queries = ["q1", "q2", "q3"]
    rankings = [draw(st.lists(ids, unique=True, max_size=12)) for _ in queries]
    scores = [
        draw(st.lists(st.floats(0.0625, 1, width=32), min_size=len(r), max_size=len(r)))
        for r in rankings
    ]
    first = draw(st.integers(1, 4))
    return {
        "run": Run.from_lists(queries, rankings, scores),
        "queries": {query: f"asks {query}" for query in queries},
        "documents": DOCUMENTS,
        "qrels": {q: dict.fromkeys(draw(st.sets(ids, min_size=1, max_size=3)), 1) for q in queries},
        "count": draw(st.integers(1, 5)),
        "ranks": (first, first + draw(st.integers(0, 9))),
        "relative_margin": draw(st.none() | st.floats(0, 0.9)),
        "absolute_margin": draw(st.none() | st.floats(0, 0.9)),
        "related": {query: draw(st.sets(ids, max_size=3)) for query in queries},
        "exclude": draw(st.sets(ids, max_size=3)),
        "seed": draw(st.integers(0, 3)),
    }


def mined_or_none(task):
    try:
        return mine_negatives(**task)
    except ValueError as error:
        assert "has a negative left" in str(error)
        return None


@given(tasks())
@settings(max_examples=300, deadline=None)
def test_no_forbidden_document_is_ever_a_negative(task):
    mined = mined_or_none(task)
    assume(mined)
    for query, negatives in mined.negatives.items():
        known = {DOCUMENTS[document] for document in task["qrels"][query]}
        ranking = {d: (rank, s) for rank, (d, s) in enumerate(task["run"].top(query, 99), 1)}
        best = max((ranking[d][1] for d in task["qrels"][query] if d in ranking), default=None)
        assert 1 <= len(negatives) <= task["count"]
        assert len({negative.document for negative in negatives}) == len(negatives)
        for negative in negatives:
            document = negative.document
            assert document not in task["qrels"][query] and DOCUMENTS[document] not in known
            assert document not in task["related"][query] | task["exclude"]
            assert task["ranks"][0] <= negative.rank <= task["ranks"][1]
            assert (negative.rank, negative.score) == ranking[document]
            if task["relative_margin"] is not None:
                assert negative.score <= best * (1 - task["relative_margin"])
            if task["absolute_margin"] is not None:
                assert negative.score <= best - task["absolute_margin"]


@given(tasks())
@settings(max_examples=200, deadline=None)
def test_every_candidate_and_every_query_is_accounted_for(task):
    mined = mined_or_none(task)
    assume(mined)
    queries = [*mined.negatives, *mined.without_negative, *mined.without_positive]
    assert sorted(queries) == sorted(task["queries"])
    first, last = task["ranks"]
    seen = {**mined.negatives, **dict.fromkeys(mined.without_negative)}
    lengths = [len(task["run"].top(query, last)[first - 1 :]) for query in seen]
    assert mined.candidates == sum(lengths)
    assert mined.candidates == mined.taken + mined.not_drawn + sum(mined.skipped.values())
    assert mined.short == sum(len(group.neg) < task["count"] for group in mined.groups)
    for group, (query, negatives) in zip(mined.groups, mined.negatives.items(), strict=True):
        assert group.query == task["queries"][query]
        assert group.neg == [DOCUMENTS[negative.document] for negative in negatives]
        judged = [d for d in task["qrels"][query] if d not in task["exclude"]]
        assert group.pos == [DOCUMENTS[d] for d in judged] and group.pos


@given(tasks())
@settings(max_examples=100, deadline=None)
def test_the_same_seed_draws_the_same_whatever_else_is_in_the_run(task):
    mined = mined_or_none(task)
    assert mined == mined_or_none(task)
    assume(mined)
    query = next(iter(mined.negatives))
    row = list(task["run"].query_ids).index(query)
    run = task["run"]
    alone = Run(run.query_ids[[row]], run.doc_ids[[row]], run.scores[[row]])
    assert mine_negatives(**task | {"run": alone}).negatives[query] == mined.negatives[query]


def run_of(ranking, scores, name="dense"):
    return Run.from_lists(["q"], [ranking], [scores], name)


ASKED = {
    "queries": {"q": "which"},
    "documents": DOCUMENTS,
    "qrels": {"q": {"d0": 1, "d9": 0}},
    "ranks": (1, 6),
}


@pytest.mark.parametrize("given", [{"exclude": "d1"}, {"related": {"q": "d1"}}])
def test_one_string_is_no_set_of_ids(given):
    with pytest.raises(TypeError, match=r"is one string, expected ids: give \{'d1'\}"):
        mine_negatives(run_of(["d0", "d1"], [0.9, 0.8]), **ASKED, **given)


def test_each_reason_is_counted():
    ranking = ["d1", "d0", "twin", "d2", "d3", "d9", "blank"]
    run = run_of(ranking, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    asked = ASKED | {"documents": DOCUMENTS | {"blank": " "}, "ranks": (1, 7)}
    mined = mine_negatives(run, **asked, related={"q": {"d2"}}, exclude={"d3"}, absolute_margin=0.1)
    assert set(mined.skipped.values()) == {1} and mined.candidates == 7
    assert [n.document for n in mined.negatives["q"]] == ["d9"]  # judged, and not relevant
    assert mined.mean_rank == 6 and mined.mean_score == pytest.approx(0.4)
    rows = dict(line.strip().rsplit(maxsplit=1) for line in mined.table().splitlines())
    assert rows["candidates"] == "7" and rows["skipped: likely false negative"] == "1"
    assert rows["of these with fewer than 7"] == "1" and str(mined) == mined.table()


def test_a_second_run_judges_better_than_the_first():
    run = run_of(["d1", "d0", "d2"], [0.9, 0.8, 0.7])
    second = run_of(["d2", "d0", "d1"], [3.0, 1.0, -4.0], "reranked")
    mined = mine_negatives(run, **ASKED, absolute_margin=0.0, scores=second)
    assert [(n.document, n.score) for n in mined.negatives["q"]] == [("d1", pytest.approx(0.9))]
    with pytest.raises(ValueError, match=r"none for query 'q' and document 'd2'"):
        mine_negatives(run, **ASKED, absolute_margin=0.0, scores=run_of(["d0", "d1"], [1.0, 0.5]))
    deeper = rescore(run, {"q": {"d1": 5.0, "d0": 6.0}}, "reranked")  # d2 was not scored
    with pytest.raises(ValueError, match=r"none for query 'q' and document 'd2'"):
        mine_negatives(run, **ASKED, absolute_margin=0.0, scores=deeper)
    nothing = run_of([], [])
    with pytest.raises(ValueError, match="1 queries without a positive"):
        mine_negatives(run, **ASKED, absolute_margin=0.0, scores=nothing)
    with pytest.raises(ValueError, match="scores are for a margin"):
        mine_negatives(run, **ASKED, scores=second)


def test_a_positive_without_text_is_none():
    run = run_of(["d1", "d2"], [0.9, 0.8])
    asked = ASKED | {"documents": DOCUMENTS | {"d0": ""}, "qrels": {"q": {"d0": 1, "d2": 1}}}
    assert mine_negatives(run, **asked).groups[0].pos == [DOCUMENTS["d2"]]
    with pytest.raises(KeyError, match="qrels name document 'd77' for query 'q'"):
        mine_negatives(run, **ASKED | {"qrels": {"q": {"d77": 1}}})


def test_a_margin_with_nothing_to_compare_leaves_the_query_out():
    runs = Run.from_lists(["q", "r"], [["d1", "d0"], ["d1", "d2"]], [[0.5, 0.9], [0.5, 0.4]])
    asked = ASKED | {"queries": {"q": "a", "r": "b"}, "qrels": {"q": {"d0": 1}, "r": {"d0": 1}}}
    assert mine_negatives(runs, **asked, absolute_margin=0.1).without_positive == ["r"]
    assert mine_negatives(runs, **asked).without_positive == []


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"count": 0}, "count is 0"),
        ({"ranks": (0, 5)}, r"ranks is \(0, 5\)"),
        ({"ranks": (5, 2)}, r"ranks is \(5, 2\)"),
        ({"relative_margin": 1.0}, "relative_margin is 1.0"),
        ({"absolute_margin": -1.0}, "absolute_margin is -1.0"),
        ({"qrels": {}}, "'q' of the run 'dense' has no relevant document"),
        ({"ranks": (1, 1)}, "No query of the run 'dense' has a negative left"),
    ],
)
def test_bad_arguments_get_a_sentence(changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        mine_negatives(run_of(["d0", "d1"], [0.9, 0.8]), **ASKED | changed)
    with pytest.raises(ValueError, match="use absolute_margin"):
        mine_negatives(run_of(["d0", "d1"], [-1.0, -2.0]), **ASKED, relative_margin=0.1)
    with pytest.raises(KeyError, match="document 'd99', which has no text"):
        mine_negatives(run_of(["d99"], [1.0]), **ASKED)
    for document in ("d0", "d1"):  # a positive, a candidate
        spoilt = ASKED | {"documents": ASKED["documents"] | {document: None}}
        with pytest.raises(TypeError, match=f"The document '{document}' is None, expected a str"):
            mine_negatives(run_of(["d0", "d1"], [0.9, 0.8]), **spoilt)


texts = st.text(min_size=1).filter(str.strip)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def training_groups(draw):
    positives = draw(st.lists(texts, min_size=1, max_size=3, unique=True))
    negatives = draw(
        st.lists(texts.filter(lambda t: t not in positives), min_size=1, max_size=3, unique=True)
    )
    scores = [
        draw(st.lists(numbers, min_size=len(t), max_size=len(t))) for t in (positives, negatives)
    ]
    return Group(draw(texts), positives, negatives, *(scores if draw(st.booleans()) else ()))


@given(groups=st.lists(training_groups(), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_what_is_written_is_read_back(groups, tmp_path_factory):
    path = write_jsonl(groups, tmp_path_factory.mktemp("lines") / "train.jsonl")
    assert read_jsonl(path) == groups
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as some editors begin a file
    assert read_jsonl(path) == groups
    path.write_bytes(path.read_bytes()[3:])
    keys = [set(json.loads(line)) for line in path.read_text(encoding="utf-8").strip().split("\n")]
    assert all({"query", "pos", "neg"} <= found for found in keys)


GOOD = {"query": "a", "pos": ["b"], "neg": ["c", "d"]}


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"pos": []}, "'pos' holds no text"),
        ({"pos": ["  "]}, "'pos' holds no text, or an empty one"),
        ({"neg": []}, "'neg' holds no text"),
        ({"neg": "c"}, "'neg' is not a list of texts"),
        ({"neg": ["c", "b"]}, r"the negatives contain a positive \('b'\)"),
        ({"query": " "}, "the query is missing or empty"),
        ({"query": None}, "the query is missing or empty"),
        ({"neg": ["c", "cut \ud83d"]}, "a text holds half a character"),
        ({"pos_scores": [1.0]}, "no 'neg_scores' for 2 texts"),
        ({"pos_scores": [1.0], "neg_scores": [1.0]}, "1 'neg_scores' for 2 texts"),
        ({"pos_scores": [math.nan], "neg_scores": [1, 2]}, "not a finite number"),
        ({"pos_scores": ["1"], "neg_scores": [1, 2]}, "not a finite number"),
        ({"pos_scores": [10**400], "neg_scores": [1, 2]}, "not a finite number"),
    ],
)
def test_a_bad_line_is_named(record, sentence, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD | record) + "\n")
    with pytest.raises(ValueError, match=rf"train\.jsonl, line 3: .*{sentence}"):
        read_jsonl(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", r"train\.jsonl is empty"),
        ("\n \n", r"train\.jsonl is empty"),
        ("{", "line 1: expected a JSON object, found '{'"),
        ("[1]", "line 1: expected a JSON object, found list"),
    ],
)
def test_a_file_that_is_none_is_named(content, sentence, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=sentence):
        read_jsonl(path)
    with pytest.raises(ValueError, match="no groups to write"):
        write_jsonl([], path)
    with pytest.raises(ValueError, match="line 1: the negatives contain a positive"):
        write_jsonl([Group("a", ["b"], ["b"])], path)
    with pytest.raises(ValueError, match="line 1: a text holds half a character"):
        write_jsonl([Group("a", ["b"], ["\ud800"])], path)
    assert path.read_text() == content


def test_a_file_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(json.dumps(GOOD | {"query": "é"}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(ValueError, match=r"train\.jsonl is not in UTF-8"):
        read_jsonl(path)


def test_related_weaknesses_are_linked_answers_parents_and_children(monkeypatch):
    weaknesses = read_catalogue()
    every = collect_reports(weaknesses)
    by_cve = {}
    for report in every:
        for cve in report.cves:
            by_cve.setdefault(cve, []).append(report)
    same_event = [
        (a, b)
        for shared in by_cve.values()
        for a in shared
        for b in shared
        if a.weaknesses != b.weaknesses
    ]
    assert same_event
    few = sorted({*every[:300], *(a for a, _ in same_event)}, key=lambda report: report.id)
    monkeypatch.setattr(cwe, "collect_reports", lambda _: few)  # all of them take long
    wide, narrow = cwe.related_weaknesses(), cwe.related_weaknesses(taxonomy=False)
    assert wide.keys() == narrow.keys() == {report.id for report in few}
    for first, second in same_event:
        assert narrow[first.id] >= second.weaknesses - first.weaknesses
    assert sum(map(bool, narrow.values())) < len(few) / 2
    parents = {weakness.id: set(weakness.parents) for weakness in weaknesses}
    for report in few:
        answers = report.weaknesses
        near = {child for child, found in parents.items() if found & answers}
        near = near.union(*(parents[answer] for answer in answers)) - answers
        assert wide[report.id] == narrow[report.id] | near

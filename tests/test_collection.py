import pytest

from rerank_utils.collection import Collection, read_qrels, write_qrels


def make(**changes) -> Collection:
    parts = {
        "name": "toy",
        "documents": {"d1": "one", "d2": "two"},
        "queries": {"q1": "first", "q2": "second"},
        "qrels": {"q1": {"d1": 1}, "q2": {"d2": 1, "d1": 0}},
        "splits": {"dev": ["q1"], "test": ["q2"]},
    }
    return Collection(**(parts | changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"documents": {}}, "corpus of 'toy' is empty"),
        ({"queries": {}, "qrels": {}, "splits": {}}, "no queries"),
        ({"documents": {"": "one"}}, "has the id ''"),
        ({"documents": {"d 1": "one"}}, "white space"),
        ({"documents": {0: "one"}}, r"has the id 0 \(int\): ids are strings"),
        ({"qrels": {"q1": {"d1": "1"}, "q2": {"d2": 1}}}, "'1': grades are whole numbers"),
        ({"splits": {"dev": ["q1", "q2"], "test": []}}, "Split 'test' of 'toy' holds no queries"),
        ({"documents": {"d1": " ", "d2": "two"}}, "document 'd1' is empty"),
        ({"queries": {"q1": "", "q2": "x"}}, "query 'q1' is empty"),
        ({"qrels": {"q1": {"d1": 1}}}, "'q2' has no relevant document"),
        ({"qrels": {"q1": {"d1": 0}, "q2": {"d2": 1}}}, "'q1' has no relevant document"),
        ({"qrels": {"q1": {"d9": 1}, "q2": {"d2": 1}}}, "'d9', which is not in the corpus"),
        ({"qrels": {"q1": {"d1": 1}, "q9": {"d2": 1}}}, "'q9', which is not among the queries"),
        ({"splits": {"dev": ["q9"]}}, "unknown query 'q9'"),
        ({"splits": {"dev": ["q1"], "test": ["q1"]}}, "twice"),
    ],
)
def test_what_does_not_belong_together_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(**changes)


def test_a_split_keeps_the_corpus_and_its_queries():
    dev = make().split("dev")
    assert dev.queries == {"q1": "first"} and dev.qrels == {"q1": {"d1": 1}}
    assert len(dev.documents) == 2


@pytest.mark.parametrize(
    ("name", "limit", "said"), [("train", None, "no split 'train'"), ("dev", 0, "limit is 0")]
)
def test_an_unknown_split_or_no_queries_is_refused(name, limit, said):
    with pytest.raises(ValueError, match=said):
        make().split(name, limit)


def test_qrels_survive_a_file(tmp_path):
    qrels = {"q1": {"d1": 2, "d2": 0}, "q2": {"d2": -1}}
    write_qrels(qrels, tmp_path / "qrels.trec")
    assert read_qrels(tmp_path / "qrels.trec") == qrels
    write_qrels({"q1": {"d1": True}}, tmp_path / "qrels.trec")
    assert read_qrels(tmp_path / "qrels.trec") == {"q1": {"d1": 1}}


@pytest.mark.parametrize("line", ["q1 0 d1", "q1 0 d1 high", "q1 0 d1 1 more"])
def test_a_malformed_qrels_line_is_named(tmp_path, line):
    path = tmp_path / "qrels.trec"
    path.write_text(f"q0 0 d0 1\n{line}\n")
    with pytest.raises(ValueError, match="line 2: expected 'query"):
        read_qrels(path)


def test_a_pair_judged_twice_is_refused(tmp_path):
    path = tmp_path / "qrels.trec"
    path.write_text("q1 0 d1 1\nq1 0 d1 0\n")
    with pytest.raises(ValueError, match=r"line 2.*second time"):
        read_qrels(path)


def test_the_card_counts_what_is_there():
    card = make().card()
    assert "documents       2" in card and "dev             1 queries" in card

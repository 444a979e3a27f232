import numpy as np
import pytest

from rerank_utils.run import Run, rescore


def test_rows_are_sorted_and_ties_go_to_the_larger_id():
    run = Run.from_lists(["q"], [["a", "c", "b", "d"]], [[1.0, 2.0, 2.0, 3.0]])
    assert run.doc_ids[0].tolist() == ["d", "c", "b", "a"]
    assert run.scores.dtype == np.float32


def test_ties_are_broken_as_trec_eval_breaks_them():
    import pytrec_eval

    ids = ["a", "b", "B", "ab", "1", "10", "2", "é"]
    run = Run.from_lists(["q"], [ids], [[1.0] * len(ids)])
    for document in ids:
        measured = pytrec_eval.RelevanceEvaluator({"q": {document: 1}}, {"recip_rank"}).evaluate(
            {"q": {key: 1.0 for key in ids}}
        )
        rank = run.doc_ids[0].tolist().index(document) + 1
        assert measured["q"]["recip_rank"] == pytest.approx(1 / rank), document


def test_shorter_lists_end_in_nothing():
    run = Run.from_lists(["q1", "q2", "q3"], [["a", "b"], ["a"], []], [[1, 2], [3], []])
    assert run.doc_ids.tolist() == [["b", "a"], ["a", ""], ["", ""]]
    assert [len(documents) for _, documents, _ in run] == [2, 1, 0]


def test_a_table_that_is_no_ranking_is_refused():
    names = np.array([["a", "b"]], dtype=object)
    for scores in ([[1.0, 2.0]], [[np.nan, 1.0]], [[1.0, np.nan]]):
        with pytest.raises(ValueError, match=r"query 'q' .* Run\.from_lists"):
            Run(np.array(["q"], dtype=object), names, np.array(scores))
    with pytest.raises(ValueError, match=r"shapes \(1,\), \(1, 2\) and \(1, 1\)"):
        Run(np.array(["q"], dtype=object), names, np.ones((1, 1)))


@pytest.mark.parametrize(
    ("queries", "documents", "scores", "sentence"),
    [
        (["q", "q"], [["a"], ["b"]], [[1], [2]], "query id stands twice"),
        (["q"], [["a", "a"]], [[1, 2]], "document stands twice"),
        (["q"], [["a", ""]], [[1, 2]], "empty id"),
        (["q"], [["a"]], [[float("nan")]], "'q' and document 'a' is not a finite"),
        (["q"], [["a", "b"]], [[1]], "2 documents, 1 scores"),
        (["q"], [], [], "1 query ids, 0 lists"),
    ],
)
def test_what_is_no_ranking_is_refused(queries, documents, scores, sentence):
    with pytest.raises(ValueError, match=sentence):
        Run.from_lists(queries, documents, scores)


def test_a_run_survives_a_trec_file(tmp_path):
    scores = [[0.1, 1 / 3, 1e-9], [2.5]]
    run = Run.from_lists(["q1", "q2"], [["a", "b", "c"], ["b"]], scores, "my run")
    run.to_trec(tmp_path / "run.trec")
    read = Run.from_trec(tmp_path / "run.trec")
    assert read.name == "my-run"
    assert (read.doc_ids == run.doc_ids).all() and (read.scores == run.scores).all()


def test_scores_not_printed_ranks_decide(tmp_path):
    path = tmp_path / "run.trec"
    path.write_text("q Q0 a 1 0.5 x\nq Q0 b 2 0.9 x\n")
    assert Run.from_trec(path).doc_ids[0].tolist() == ["b", "a"]


def test_a_malformed_trec_line_is_named(tmp_path):
    path = tmp_path / "run.trec"
    path.write_text("q Q0 a 1 0.5 x\nq Q0 b two\n")
    with pytest.raises(ValueError, match="line 2: expected 'query"):
        Run.from_trec(path)


def test_rescoring_keeps_the_rest_below_in_its_order():
    ids = [f"d{i:02}" for i in range(20)]
    first = Run.from_lists(["q"], [ids], [np.linspace(1, 0.999, 20)])
    new = rescore(first, {"q": {"d00": -5.0, "d01": 9.0, "d02": -7.0}}, "reranked")
    assert new.doc_ids[0].tolist() == ["d01", "d00", "d02", *ids[3:]]
    assert (np.diff(new.scores[0]) < 0).all()


def test_top_names_an_unknown_query():
    run = Run.from_lists(["q"], [["a", "b"]], [[1, 2]])
    assert run.top("q", 1) == [("b", 2.0)]
    with pytest.raises(KeyError, match="no query 'x'"):
        run.top("x")


def test_ids_that_are_no_strings_are_refused(tmp_path):
    """Rows of an index in place of ids would match no judgment, and row 0 count as nothing."""
    with pytest.raises(ValueError, match=r"'q' holds the id 0 \(int\): ids are strings"):
        Run.from_lists(["q"], [[0, 1]], [[2.0, 1.0]])
    with pytest.raises(ValueError, match=r"the id 7 \(int\)"):
        Run.from_lists([7], [["d"]], [[2.0]])
    spaced = Run.from_lists(["q"], [["my document.txt"]], [[1.0]])
    with pytest.raises(ValueError, match="holds white space"):
        spaced.to_trec(tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_selection_has_the_queries_that_are_asked_for():
    run = Run.from_lists(["q1", "q2"], [["a", "b"], ["a"]], [[1, 2], [3]], "mine")
    chosen = run.select(["q3", "q1"])
    assert chosen.query_ids.tolist() == ["q3", "q1"] and chosen.name == "mine"
    assert chosen.top("q1") == run.top("q1") and chosen.top("q3") == []


def test_a_rescored_run_knows_how_deep_it_was_rescored():
    run = Run.from_lists(["q1", "q2"], [["a", "b", "c"], ["a"]], [[3, 2, 1], [3]])
    new = {"q1": {"a": 5.0, "b": 6.0}, "q2": {"a": 1.0}}
    assert rescore(run, new, "new").depth == 2 == rescore(run, new, "new").select(["q1"]).depth
    assert rescore(run, new | {"q1": {"a": 5, "b": 6, "c": 7}}, "new").depth is None

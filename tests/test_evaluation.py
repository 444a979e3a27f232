import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_utils.evaluation import Evaluation, compare, evaluate
from rerank_utils.run import Run

MEASURES = ("nDCG", "nDCG@3", "nDCG@10", "RR", "RR@5", "AP", "AP@4", "R@2", "R@10", "P@3")
MEASURES += ("Success@1", "Success@5")

DOCUMENTS = [f"d{i}" for i in range(12)]
scores = st.sampled_from([0.0, 0.5, 1.0, -2.0, 1 / 3])  # few values, so that ties happen
rankings = st.dictionaries(st.sampled_from(DOCUMENTS), scores, max_size=12)
# No negative grades here: pytrec_eval does not return from some judgments that hold only such.
grades = st.dictionaries(
    st.sampled_from(DOCUMENTS), st.integers(0, 3), min_size=1, max_size=12
).filter(lambda judged: any(judged.values()))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.dictionaries(st.sampled_from(["q1", "q2", "q3", "q9"]), rankings, min_size=1),
    st.dictionaries(st.sampled_from(["q1", "q2", "q3"]), grades, min_size=1),
)
def test_measures_equal_ir_measures(ranked, qrels):
    if not set(ranked) & set(qrels):
        return
    ours = evaluate(as_run(ranked), qrels, MEASURES)
    # RR@k of ir-measures comes from another tool with another rule for ties: pytrec_eval's RR
    # over the cut list is the same measure.
    for measure in MEASURES:
        cut = ranked
        name = measure
        if measure.startswith("RR@"):
            run = as_run(ranked)
            cut = {q: dict(zip(d[:5], s[:5].tolist(), strict=True)) for q, d, s in run}
            name = "RR"
        theirs = per_query(name, qrels, cut)
        values = dict(zip(ours.query_ids, ours.values[measure], strict=True))
        assert values.keys() == qrels.keys()
        for query, value in values.items():
            assert value == pytest.approx(theirs.get(query, 0.0), abs=1e-9), (measure, query)


def test_a_negative_grade_counts_as_not_relevant():
    ranked = {"q": {"d1": 3.0, "d2": 2.0, "d3": 1.0}}
    qrels = {"q": {"d1": -1, "d2": 2, "d3": 1}}
    ours = evaluate(as_run(ranked), qrels, ["nDCG@10", "AP", "RR", "R@1"]).means()
    for measure, value in ours.items():
        assert value == pytest.approx(per_query(measure, qrels, ranked)["q"], abs=1e-9)


def per_query(name, qrels, ranked) -> dict[str, float]:
    measure = ir_measures.parse_measure(name)
    run = {query: scores for query, scores in ranked.items() if scores}
    return {m.query_id: m.value for m in ir_measures.iter_calc([measure], qrels, run)}


def as_run(ranked) -> Run:
    return Run.from_lists(
        list(ranked),
        [list(r) for r in ranked.values()],
        [list(r.values()) for r in ranked.values()],
    )


def test_the_mean_is_that_of_ir_measures_and_unanswered_queries_count():
    qrels = {"q1": {"d1": 1}, "q2": {"d2": 1}, "q3": {"d3": 1}}
    ranked = {"q1": {"d1": 2.0, "d2": 1.0}, "q2": {"d1": 2.0, "d2": 1.0}}
    ours = evaluate(as_run(ranked), qrels, ["nDCG@10", "R@1"])
    theirs = ir_measures.calc_aggregate([ir_measures.nDCG @ 10, ir_measures.R @ 1], qrels, ranked)
    assert ours.mean("nDCG@10") == pytest.approx(theirs[ir_measures.nDCG @ 10])
    assert ours.mean("R@1") == pytest.approx(1 / 3) == theirs[ir_measures.R @ 1]


@pytest.mark.parametrize("measure", ["MRR@10", "nDCG@0", "nDCG@x", "P", ""])
def test_an_unknown_measure_is_refused(measure):
    run = Run.from_lists(["q"], [["a"]], [[1]])
    with pytest.raises(ValueError, match=r"measure|P needs"):
        evaluate(run, {"q": {"a": 1}}, [measure])


def test_runs_and_qrels_that_do_not_meet_are_refused():
    run = Run.from_lists(["q"], [["a"]], [[1]])
    with pytest.raises(ValueError, match="no query in common"):
        evaluate(run, {"other": {"a": 1}})
    with pytest.raises(ValueError, match="qrels are empty"):
        evaluate(run, {})


def evaluation(values) -> Evaluation:
    return Evaluation("x", [f"q{i}" for i in range(len(values))], {"AP": np.array(values)})


def test_a_clear_difference_is_found_and_none_is_not():
    rng = np.random.default_rng(0)
    before = rng.uniform(0, 0.5, 60)
    better = compare(evaluation(before), evaluation(before + rng.uniform(0, 0.2, 60)), "AP")
    assert better.p < 0.001 and 0 < better.low < better.difference < better.high
    assert (better.wins, better.losses) == (60, 0)
    noise = compare(evaluation(before), evaluation(before + rng.normal(0, 0.1, 60)), "AP")
    assert noise.p > 0.05 and noise.low < 0 < noise.high


def test_no_difference_at_all_has_p_one():
    same = compare(evaluation([0.1, 0.2]), evaluation([0.1, 0.2]), "AP")
    assert (same.difference, same.p, same.ties) == (0.0, 1.0, 2)


def test_p_is_the_share_of_sign_flips():
    gain = np.array([0.3, 0.1, -0.05, 0.2, 0.15, 0.25, 0.4, -0.1])
    flips = np.array(np.meshgrid(*[[1, -1]] * 8)).reshape(8, -1).T
    exact = (abs((flips * gain).mean(1)) >= abs(gain.mean()) - 1e-12).mean()
    found = compare(evaluation(np.zeros(8)), evaluation(gain), "AP")
    assert found.p == pytest.approx(exact, abs=1e-9)


def test_a_test_needs_the_same_queries_and_more_than_one():
    with pytest.raises(ValueError, match="at least two queries"):
        compare(evaluation([0.1]), evaluation([0.2]), "AP")
    with pytest.raises(ValueError, match="different queries"):
        compare(evaluation([0.1, 0.2]), evaluation([0.1]), "AP")

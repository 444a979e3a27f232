"""Evaluation against two outside oracles and hand-worked values."""

import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

import ir_measures
import numpy as np
import pytest

from rerank_utils.collection import read_qrels
from rerank_utils.evaluation import Evaluation, answer_groups, compare, evaluate
from rerank_utils.run import Run

NO_CUTOFF = ["nDCG", "RR", "AP"]
CUTOFFS = [1, 2, 3, 5, 10, 50]  # the rankings below hold 14 documents at most
NAMES = ["nDCG", "RR", "AP", "R", "P", "Success"]
DOCUMENTS = [*(f"d{i}" for i in range(12)), "D1", "é"]
CASES, SEED = 5_200, 0


def make_case(rng: random.Random) -> dict:
    """Queries judged and not ranked, ranked and not judged, and ranked empty; ties; grades from
    -2 to 3; cutoffs beyond the list."""
    queries = [f"q{i}" for i in range(rng.randint(1, 5))]
    few = rng.random() < 0.5  # few different scores, so that many are equal
    qrels, run = {}, {}
    for query in queries:
        if query == "q0" or rng.random() < 0.8:
            lowest = rng.choice([-2, -1, 0, 1])
            judged = rng.sample(DOCUMENTS, rng.randint(1, len(DOCUMENTS)))
            qrels[query] = {document: rng.randint(lowest, 3) for document in judged}
        if query == "q0" or rng.random() < 0.8:
            length = 0 if rng.random() < 0.1 else rng.randint(1, len(DOCUMENTS))
            ranked = rng.sample(DOCUMENTS, length)
            run[query] = {d: rng.randint(-2, 2) / 2 if few else rng.gauss(0, 1) for d in ranked}
    measures = NO_CUTOFF + [f"{name}@{k}" for name in NAMES for k in rng.sample(CUTOFFS, 1)]
    return {"qrels": qrels, "run": run, "measures": measures}


def ask_the_oracles(cases: list[dict], timeout: float = 300) -> list[dict]:
    """What pytrec_eval and ir-measures answer, from a process that is stopped if it hangs."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("oracles.py")],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=True,
    )
    return json.loads(done.stdout)


def for_the_oracles(case: dict) -> dict:
    """The case without what the oracles cannot take: empty rankings, which both count as none,
    and queries with only negative judgments (see `oracles.py`), which the next test asks about
    one at a time."""
    qrels = {q: grades for q, grades in case["qrels"].items() if max(grades.values()) >= 0}
    return {
        **case,
        "qrels": qrels,
        "run": {q: scores for q, scores in case["run"].items() if scores},
    }


def as_run(ranked: dict) -> Run:
    lists = [list(scores) for scores in ranked.values()]
    return Run.from_lists(list(ranked), lists, [list(s.values()) for s in ranked.values()])


def test_measures_equal_two_oracles_on_generated_cases():
    rng = random.Random(SEED)
    cases = [make_case(rng) for _ in range(CASES)]
    answers = ask_the_oracles([for_the_oracles(case) for case in cases])
    compared = {"pytrec_eval": 0, "ir_measures": 0}
    for case, answer in zip(cases, answers, strict=True):
        ours = evaluate(as_run(case["run"]), case["qrels"], case["measures"])
        assert ours.query_ids == list(case["qrels"])
        for oracle, measure in itertools.product(compared, case["measures"]):
            theirs = answer[oracle][measure]
            # Not answered: not ranked, ranked empty, or judged with negative grades only.
            expected = [theirs.get(query, 0.0) for query in ours.query_ids]
            difference = np.abs(ours.values[measure] - expected).max()
            assert difference < 1e-9, (oracle, measure, case)
            compared[oracle] += len(theirs.keys() & case["run"].keys())
    assert min(compared.values()) > 70_000  # answers of each oracle, not our zeros for none


@pytest.mark.parametrize("grades", [{"d1": -1}, {"d1": -2, "d2": -1}, {"d1": -3, "d9": -2}])
def test_only_negative_judgments_count_zero(grades):
    """As the first query of a fresh process the oracle answers, because no memory is stale."""
    case = {
        "qrels": {"q": grades},
        "run": {"q": {"d1": 2.0, "d2": 1.0}},
        "measures": ["nDCG", "R@5"],
    }
    answer = ask_the_oracles([case])[0]["pytrec_eval"]
    ours = evaluate(as_run(case["run"]), case["qrels"], case["measures"])
    assert ours.means() == {"nDCG": 0.0, "R@5": 0.0}
    assert answer == {"nDCG": {"q": 0.0}, "R@5": {"q": 0.0}}


def test_scores_that_float32_cannot_tell_apart_are_equal():
    """trec_eval reads scores as float32 too, so the larger id comes first."""
    case = {"qrels": {"q": {"a": 1}}, "run": {"q": {"a": 1 + 1e-10, "b": 1.0}}, "measures": ["RR"]}
    assert evaluate(as_run(case["run"]), case["qrels"], ["RR"]).mean("RR") == 0.5
    assert ask_the_oracles([case])[0]["pytrec_eval"]["RR"] == {"q": 0.5}


def test_the_mean_is_that_of_ir_measures_and_unanswered_queries_count():
    qrels = {"q1": {"d1": 1}, "q2": {"d2": 1}, "q3": {"d3": 1}}
    ranked = {"q1": {"d1": 2.0, "d2": 1.0}, "q2": {"d1": 2.0, "d2": 1.0}}
    ours = evaluate(as_run(ranked), qrels, ["nDCG@10", "R@1"])
    theirs = ir_measures.calc_aggregate([ir_measures.nDCG @ 10, ir_measures.R @ 1], qrels, ranked)
    assert ours.mean("nDCG@10") == pytest.approx(theirs[ir_measures.nDCG @ 10])
    assert ours.mean("R@1") == pytest.approx(1 / 3) == theirs[ir_measures.R @ 1]


RUN_MADE_ELSEWHERE = """\
q1 Q0 d3 1 0.25 other-tool
q1 Q0 d1 2 12.5 other-tool
q1\tQ0\td2\t3\t12.5\tother-tool

q2 Q0 d7 0 -3e-2 other-tool
q2 Q0 d2 1 -1e2 other-tool
q2 Q0 d1 1 -0.5 other-tool
q9 Q0 d1 1 1 other-tool
"""
QRELS_MADE_ELSEWHERE = "q1 0 d1 2\nq1 0 d2 0\nq1 0 d3 1\nq2 0 d1 1\nq2 0 d2 -1\nq3 0 d1 1\n"


def test_a_run_made_elsewhere_scores_as_on_the_command_line_of_ir_measures(tmp_path):
    """Ranks that contradict the scores, tabs, an empty line, exponents, a query judged by nobody
    and one without a ranking."""
    (tmp_path / "run").write_text(RUN_MADE_ELSEWHERE.replace("\n\n", "\n"))
    (tmp_path / "our.run").write_text(RUN_MADE_ELSEWHERE)
    (tmp_path / "qrels").write_text(QRELS_MADE_ELSEWHERE)
    measures = ["nDCG@10", "nDCG", "AP", "RR", "R@2", "P@5", "Success@1"]
    command = [sys.executable, "-m", "ir_measures", "--places", "12", "qrels", "run", *measures]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    theirs = dict(line.split("\t") for line in done.stdout.splitlines())
    run = Run.from_trec(tmp_path / "our.run")
    assert run.doc_ids[:2].tolist() == [["d2", "d1", "d3"], ["d7", "d1", "d2"]]
    ours = evaluate(run, read_qrels(tmp_path / "qrels"), measures).means()
    assert ours == pytest.approx({name: float(value) for name, value in theirs.items()}, abs=1e-9)


@pytest.mark.parametrize("measure", ["MRR@10", "nDCG@0", "nDCG@x", "nDCG@", "P", ""])
def test_an_unknown_measure_is_refused(measure):
    run = Run.from_lists(["q"], [["a"]], [[1]])
    with pytest.raises(ValueError, match="P needs" if measure == "P" else "Unknown measure"):
        evaluate(run, {"q": {"a": 1}}, [measure])


def test_runs_and_qrels_that_do_not_meet_are_refused():
    run = Run.from_lists(["q"], [["a"]], [[1]])
    with pytest.raises(ValueError, match="no query in common"):
        evaluate(run, {"other": {"a": 1}})
    with pytest.raises(ValueError, match="qrels are empty"):
        evaluate(run, {})
    with pytest.raises(ValueError, match="'run' is empty"):
        evaluate(Run.from_lists([], [], []), {"q": {"a": 1}})


def test_a_duplicate_that_went_round_the_checks_of_a_run_is_refused():
    twice = Run(np.array(["q"], object), np.array([["a", "a"]], object), np.ones((1, 2)))
    with pytest.raises(ValueError, match="stands twice in the ranking of query 'q'"):
        evaluate(twice, {"q": {"a": 1, "b": 1}})


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


def test_ties_change_no_p_and_one_query_that_moved_says_nothing():
    gain = np.array([0.3, 0.1, -0.05, 0.2, 0.15])
    alone = compare(evaluation(np.zeros(5)), evaluation(gain), "AP")
    with_ties = np.concatenate([gain, np.zeros(40)])
    among = compare(evaluation(np.zeros(45)), evaluation(with_ties), "AP")
    assert among.p == alone.p == 0.125  # 4 of 32 ways to swap are as far from 0
    assert (among.ties, among.difference) == (40, pytest.approx(0.7 / 45))
    single = compare(evaluation(np.zeros(3)), evaluation([0.0, 0.5, 0.0]), "AP")
    assert (single.p, single.wins) == (1.0, 1) and single.low == 0.0


def test_queries_that_share_an_answer_are_one_group():
    qrels = {
        "a": {"1": 1, "2": 1},
        "b": {"2": 2, "3": 1},
        "c": {"3": 1},  # with "a" by way of "b"
        "d": {"4": 1, "1": 0},  # what is not relevant is not shared
        "e": {},
    }
    groups = answer_groups(qrels)
    assert list(groups) == list(qrels)
    assert groups["a"] == groups["b"] == groups["c"]
    assert len({groups[query] for query in "ade"}) == 3


def test_whole_groups_are_swapped():
    gain, groups = np.array([0.3, 0.1, -0.05, 0.2, 0.15, -0.4]), [0, 0, 1, 1, 2, 3]
    totals = np.array([0.4, 0.15, 0.15, -0.4])
    flips = np.array(np.meshgrid(*[[1, -1]] * 4)).reshape(4, -1).T
    exact = (abs(flips @ totals) >= abs(totals.sum()) - 1e-12).mean()
    labels = {f"q{i}": group for i, group in enumerate(groups)}
    found = compare(evaluation(np.zeros(6)), evaluation(gain), "AP", groups=labels)
    assert found.p == pytest.approx(exact, abs=1e-9)
    assert (found.difference, found.wins) == (pytest.approx(gain.mean()), 4)


def test_groups_of_one_query_each_change_nothing():
    gain = np.random.default_rng(1).normal(0.05, 0.2, 50)
    labels = {f"q{i}": i for i in range(50)}
    plain, grouped = (
        compare(evaluation(np.zeros(50)), evaluation(gain), "AP", groups=groups)
        for groups in (None, labels)
    )
    assert grouped.p == pytest.approx(plain.p, abs=0.01)
    assert (grouped.low, grouped.high) == pytest.approx((plain.low, plain.high), abs=0.005)


def test_only_groups_keep_their_promise_where_queries_stand_together():
    """Ten queries a group gain alike, by chance: of tests at 0.05, one in twenty may be wrong."""
    rng, wrong = np.random.default_rng(0), {True: 0, False: 0}
    labels = {f"q{i}": i // 10 for i in range(200)}
    for _ in range(60):
        gain = np.repeat(rng.normal(0, 1, 20), 10) + rng.normal(0, 0.1, 200)
        for known in wrong:
            groups = labels if known else None
            pair = evaluation(np.zeros(200)), evaluation(gain)
            wrong[known] += compare(*pair, "AP", resamples=999, groups=groups).p < 0.05
    assert wrong[True] <= 8 and wrong[False] > 20


def test_groups_that_allow_no_test_are_refused():
    pair = evaluation([0.1, 0.2]), evaluation([0.2, 0.4])
    with pytest.raises(ValueError, match="All queries are in one group"):
        compare(*pair, "AP", groups={"q0": 1, "q1": 1})
    with pytest.raises(KeyError, match="'q1' has no group"):
        compare(*pair, "AP", groups={"q0": 1})


def test_a_test_needs_the_same_queries_and_more_than_one():
    with pytest.raises(ValueError, match="at least two queries"):
        compare(evaluation([0.1]), evaluation([0.2]), "AP")
    with pytest.raises(ValueError, match="different queries"):
        compare(evaluation([0.1, 0.2]), evaluation([0.1]), "AP")


@pytest.mark.parametrize("measures", ["RR", [], ["RR", "RR"]])
def test_measures_are_a_list_of_different_names(measures):
    run = Run.from_lists(["q"], [["d"]], [[1.0]])
    with pytest.raises(ValueError, match=r"measures is .*: give a list of different names"):
        evaluate(run, {"q": {"d": 1}}, measures)


@pytest.mark.parametrize("grade", [0.5, "1", float("nan"), None])
def test_a_grade_that_is_no_whole_number_is_refused(grade):
    run = Run.from_lists(["q"], [["d"]], [[1.0]])
    with pytest.raises(ValueError, match=r"query 'q' and document 'd' is .*whole numbers"):
        evaluate(run, {"q": {"d": grade}})
    assert evaluate(run, {"q": {"d": np.int64(1)}}, ["RR"]).mean("RR") == 1

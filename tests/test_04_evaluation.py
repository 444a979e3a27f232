"""What notebook 04 computes by hand is what the helper and two outside libraries compute."""

from dataclasses import dataclass, field
from itertools import product

import ir_measures
import numpy as np
import pytest
import pytrec_eval
from cells import taught_source

from rerank_utils.cwe import read_catalogue
from rerank_utils.evaluation import Evaluation, compare, evaluate
from rerank_utils.experiment import holm
from rerank_utils.indexing import build_index
from rerank_utils.run import Run

K = 5


def taught(tag: str, scope: dict) -> dict:
    """Execute the one cell with this tag in the scope, and return the scope."""
    exec(taught_source("04_evaluation", tag), scope)
    return scope


@pytest.fixture(scope="module")
def hand():
    """The five measures, from the six-document example that the cells print."""
    scope = {"hits": [0, 1, 0, 0, 1], "relevant": {"a", "c", "e"}}
    for tag in ("recall", "success", "reciprocal-rank", "average-precision", "ndcg"):
        taught(tag, scope)
    return scope


@dataclass
class Case:
    """Random rankings of up to 12 of 15 documents, some judged with grades 0 to 3."""

    qrels: dict = field(default_factory=dict)
    ranked: dict = field(default_factory=dict)

    @property
    def run(self) -> Run:
        lists = self.ranked.values()
        return Run.from_lists(
            list(self.ranked), [list(r) for r in lists], [list(r.values()) for r in lists]
        )

    @property
    def cut(self) -> dict:
        """The first K alone: the reciprocal rank of trec_eval has no cutoff."""
        return {query: dict(list(row.items())[:K]) for query, row in self.ranked.items()}


@pytest.fixture(scope="module")
def case():
    rng, made = np.random.default_rng(4), Case()
    names = [f"d{i}" for i in range(15)]
    for number in range(200):
        judged = rng.choice(names, rng.integers(1, 12), replace=False)
        grades = {str(document): int(rng.integers(0, 4)) for document in judged}
        grades[str(judged[0])] = int(rng.integers(1, 4))  # at least one is relevant
        ranking = rng.permutation(names)[: rng.integers(1, 13)]
        made.qrels[f"q{number}"] = grades
        made.ranked[f"q{number}"] = {str(d): 20.0 - i for i, d in enumerate(ranking)}
    return made


def by_hand(name: str, hand: dict, case: Case) -> dict[str, float]:
    values = {}
    for query, ranking in case.ranked.items():
        grades = case.qrels[query]
        gains = [grades.get(document, 0) for document in ranking]
        hits = [int(gain > 0) for gain in gains]
        n_relevant = sum(grade > 0 for grade in grades.values())
        values[query] = {
            "R@5": hand["recall"](hits, n_relevant, K),
            "Success@5": hand["success"](hits, K),
            "RR@5": hand["reciprocal_rank"](hits, K),
            "AP": hand["average_precision"](hits, n_relevant),
            "nDCG@5": hand["ndcg"](gains, grades.values(), K),
        }[name]
    return values


TREC_NAMES = {
    "R@5": "recall_5",
    "Success@5": "success_5",
    "RR@5": "recip_rank",
    "AP": "map",
    "nDCG@5": "ndcg_cut_5",
}


@pytest.mark.parametrize("name", TREC_NAMES)
class TestAMeasureByHand:
    def test_is_that_of_the_helper(self, name, hand, case):
        ours = evaluate(case.run, case.qrels, [name])
        expected = dict(zip(ours.query_ids, ours.values[name], strict=True))
        assert by_hand(name, hand, case) == pytest.approx(expected)

    def test_is_that_of_ir_measures(self, name, hand, case):
        ranked, measure = (case.cut, "RR") if name == "RR@5" else (case.ranked, name)
        parsed = ir_measures.parse_measure(measure)
        theirs = ir_measures.iter_calc([parsed], case.qrels, ranked)
        assert by_hand(name, hand, case) == pytest.approx({m.query_id: m.value for m in theirs})

    def test_is_that_of_trec_eval(self, name, hand, case):
        trec_name = TREC_NAMES[name]
        ranked = case.cut if name == "RR@5" else case.ranked
        theirs = pytrec_eval.RelevanceEvaluator(case.qrels, {trec_name}).evaluate(ranked)
        expected = {query: values[trec_name] for query, values in theirs.items()}
        assert by_hand(name, hand, case) == pytest.approx(expected)


def test_the_miscalled_recall_is_success(hand, case):
    scope = taught("called-recall", dict(hand))
    for query, ranking in case.ranked.items():
        hits = [int(case.qrels[query].get(document, 0) > 0) for document in ranking]
        n_relevant = sum(grade > 0 for grade in case.qrels[query].values())
        assert scope["called_recall"](hits, n_relevant, K) == hand["success"](hits, K)


def evaluation(values) -> Evaluation:
    return Evaluation("x", [f"q{i}" for i in range(len(values))], {"AP": np.asarray(values)})


@pytest.fixture(scope="module")
def gain():
    """Differences as in a comparison of rankings: many ties, a few large ones."""
    rng = np.random.default_rng(1)
    return np.where(rng.random(100) < 0.6, 0.0, rng.normal(0.08, 0.3, 100))


def test_the_bootstrap_interval_is_that_of_the_helper(gain):
    scope = taught("bootstrap", {"np": np, "gain": gain})
    helper = compare(evaluation(0 * gain), evaluation(gain), "AP", seed=7)
    ours = scope["bootstrap_interval"](gain, np.random.default_rng(3))
    # two draws of 10,000: their ends differ by a few hundredths of the interval's width
    assert ours == pytest.approx([helper.low, helper.high], abs=0.05 * (helper.high - helper.low))


def test_the_bootstrap_interval_covers_the_true_mean_about_95_times_in_100():
    scope = taught("bootstrap", {"np": np, "gain": np.ones(3)})
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(300):
        low, high = scope["bootstrap_interval"](rng.normal(0.3, 1, 80), rng, 500)
        held += low <= 0.3 <= high
    assert 0.90 <= held / 300 <= 0.98


def test_the_permutation_p_is_that_of_the_helper(gain):
    scope = taught("permutation", {"np": np, "gain": gain})
    helper = compare(evaluation(0 * gain), evaluation(gain), "AP", seed=7)
    ours = scope["permutation_p"](gain, np.random.default_rng(3))
    assert ours == pytest.approx(helper.p, abs=0.008)
    assert 0.001 < helper.p < 0.5  # a case in which p could be wrong in either direction


def test_the_permutation_p_is_the_share_of_all_sign_flips():
    few = np.array([0.3, 0.1, -0.05, 0.2, 0.15, -0.25, 0.4, -0.1])
    flips = np.array(list(product([1, -1], repeat=8)))
    exact = (abs((flips * few).mean(1)) >= abs(few.mean()) - 1e-12).mean()
    scope = taught("permutation", {"np": np, "gain": few})
    found = scope["permutation_p"](few, np.random.default_rng(0), rounds=40_000)
    assert found == pytest.approx(exact, abs=0.01)


def test_two_queries_of_a_hundred_have_p_one_half():
    two = np.array([1.0] * 2 + [0.0] * 98)
    scope = taught("permutation", {"np": np, "gain": two})
    assert scope["permutation_p"](two, np.random.default_rng(1)) == pytest.approx(0.5, abs=0.02)
    assert compare(evaluation(0 * two), evaluation(two), "AP").p == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("m", [1, 2, 10, 40])
def test_holms_correction_is_that_of_the_helper(m):
    by_hand = taught("holm", {"np": np})["holm"]
    rng = np.random.default_rng(m)
    for spread in (1, 3, 6):  # the higher, the more small p values
        p_values = rng.random(m) ** spread
        p_values[rng.integers(m)] = p_values[0]  # two equal ones, if m allows
        assert by_hand(p_values) == pytest.approx(holm(p_values), abs=1e-12)


def test_holms_correction_of_four_p_values_worked_out_on_paper():
    by_hand = taught("holm", {"np": np})["holm"]
    # 0.01 x 4 = 0.04, 0.02 x 3 = 0.06, 0.03 x 2 = 0.06, 0.6 x 1
    assert by_hand(np.array([0.03, 0.01, 0.6, 0.02])) == pytest.approx([0.06, 0.04, 0.6, 0.06])
    # the last may not come out below the one before, and none above 1
    assert by_hand(np.array([0.4, 0.7])) == pytest.approx([0.8, 0.8])
    assert by_hand(np.array([0.9, 0.8])) == pytest.approx([1.0, 1.0])


def test_grades_are_two_for_filed_and_one_for_parents():
    scope = {"parents": {"child": ("parent", "other"), "parent": ("top",)}}
    scope |= {"qrels": {"q": {"child": 1}}, "query": "q"}
    graded = taught("grades", scope)["graded"]
    assert graded({"child": 1}) == {"child": 2, "parent": 1, "other": 1}
    assert graded({"child": 1, "parent": 1}) == {"child": 2, "parent": 2, "other": 1, "top": 1}
    assert graded({"parent": 0, "child": 1}) == {"child": 2, "parent": 1, "other": 1}
    assert graded({"elsewhere": 3}) == {"elsewhere": 2}


def test_every_parent_is_a_document_of_the_collection():
    weaknesses = read_catalogue()
    assert {p for w in weaknesses for p in w.parents} <= {w.id for w in weaknesses}


def test_taking_documents_out_of_a_full_ranking_is_searching_the_smaller_corpus():
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(60, 8)).astype(np.float32)
    names, queries = [f"d{i}" for i in range(60)], [f"q{i}" for i in range(9)]
    query_vectors = rng.normal(size=(9, 8)).astype(np.float32)
    rows = np.sort(rng.permutation(60)[:25])
    kept = [names[i] for i in rows]
    full = build_index(vectors, names).search(queries, query_vectors, 60)
    small = build_index(vectors[rows], kept).search(queries, query_vectors, 25)
    only = taught("only", {"np": np, "Run": Run})["only"]
    assert only(full, set(kept)).doc_ids.tolist() == small.doc_ids.tolist()

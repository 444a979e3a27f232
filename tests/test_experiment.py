"""Experiments: the table of several runs against a baseline, and what it refuses."""

import csv
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from rerank_utils.evaluation import compare, evaluate
from rerank_utils.experiment import HEADER, experiment, format_p, holm
from rerank_utils.run import Run

QUERIES = [f"q{i}" for i in range(40)]
QRELS = {query: {"d3": 1} for query in QUERIES}
DOCUMENTS = [f"d{i}" for i in range(10)]
TWO = ["nDCG@10", "Success@1"]


def shuffled(name: str, seed: int, lift: float = 0.0, queries=QUERIES) -> Run:
    """Random scores; `lift` is added to those of the relevant document."""
    rng = np.random.default_rng(seed)
    scores = rng.random((len(queries), len(DOCUMENTS)))
    scores[:, 3] += lift
    return Run.from_lists(queries, [DOCUMENTS] * len(queries), scores, name)


@pytest.fixture(scope="module")
def runs():
    return [shuffled("dense", 0), shuffled("noise_1", 1), shuffled("better & <best>", 2, 0.8)]


@pytest.fixture(scope="module")
def table(runs):
    return experiment(runs, QRELS, measures=TWO)


def test_a_row_is_the_comparison_with_the_baseline(runs, table):
    assert [(row.measure, row.run) for row in table.rows] == [
        (measure, run.name) for measure in TWO for run in runs
    ]
    row = table.row("better & <best>", "nDCG@10")
    before, after = (evaluate(run, QRELS, TWO) for run in (runs[0], runs[2]))
    alone = compare(before, after, "nDCG@10", resamples=9_999)
    assert row.mean == after.mean("nDCG@10")
    assert (row.difference, row.low, row.high, row.p) == (
        alone.difference,
        alone.low,
        alone.high,
        alone.p,
    )
    assert (row.wins, row.ties, row.losses) == (alone.wins, alone.ties, alone.losses)
    assert row.corrected_p == pytest.approx(row.p * 4)  # the smallest of four
    assert table.row("noise_1", "nDCG@10").corrected_p > 0.05
    base = table.row("dense", "nDCG@10")
    assert base.mean == before.mean("nDCG@10") and base.difference is None


def test_groups_are_drawn_where_queries_share_answers(runs):
    groups = {query: place // 4 for place, query in enumerate(QRELS)}
    found = experiment(runs, QRELS, measures=TWO, groups=groups)
    before, after = (evaluate(run, QRELS, TWO) for run in (runs[0], runs[2]))
    alone = compare(before, after, "nDCG@10", groups=groups)
    row = found.row("better & <best>", "nDCG@10")
    assert (row.difference, row.low, row.high, row.p) == (
        alone.difference,
        alone.low,
        alone.high,
        alone.p,
    )
    assert f"over {len(set(groups.values()))} groups of queries" in str(found)


def test_any_run_can_be_the_baseline(runs, table):
    turned = experiment(runs, QRELS, baseline="better & <best>", measures=["nDCG@10"])
    row, other = turned.row("dense", "nDCG@10"), table.row("better & <best>", "nDCG@10")
    assert row.difference == pytest.approx(-other.difference)
    assert (row.wins, row.losses) == (other.losses, other.wins)


def test_the_seed_decides_and_nothing_else(runs, table):
    assert experiment(runs, QRELS, measures=TWO).rows == table.rows
    again = experiment(runs, QRELS, measures=TWO, seed=1)
    assert again.rows != table.rows
    assert [row.mean for row in again.rows] == [row.mean for row in table.rows]


def test_many_comparisons_leave_room_below_a_thousandth():
    good = {f"run{i}": shuffled("x", i, 3.0) for i in range(1, 6)}
    found = experiment({"dense": shuffled("x", 0), **good}, QRELS, measures=TWO)
    assert max(row.corrected_p for row in found.rows if row.p is not None) < 0.001


def test_text_holds_every_cell(table):
    lines = str(table).splitlines()
    assert re.split(r"  +", lines[0].strip()) == list(HEADER)
    for row in table.rows:
        assert any(all(cell in line for cell in row.cells()) for line in lines)
    assert "40 queries; differences are against dense." in lines
    assert "Holm-corrected over 4 comparisons" in str(table)


def test_html_is_well_formed_and_escaped(table):
    tree = ElementTree.fromstring(f"<div>{table._repr_html_()}</div>")
    cells = [[cell.text for cell in row] for row in tree.find("table")]
    assert cells == [list(HEADER), *(row.cells() for row in table.rows)]


def test_csv_gives_back_the_numbers(table, tmp_path):
    text = table.to_csv(tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == text
    read = list(csv.DictReader(io.StringIO(text)))
    assert [float(row["mean"]) for row in read] == [row.mean for row in table.rows]
    assert [row["corrected_p"] for row in read][:1] == [""]
    assert float(read[2]["corrected_p"]) == table.rows[2].corrected_p


def test_latex_has_a_cell_for_each_column_and_escapes(table):
    rows = [line for line in table.to_latex().splitlines() if line.endswith(r" \\")]
    assert len(rows) == 1 + len(table.rows)
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(HEADER) - 1}
    assert r"noise\_1" in rows[2] and r"better \& $<$best>" in rows[3] and r"95 \%" in rows[0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [  # statsmodels 0.15, multipletests(..., method="holm")
        ([0.258], [0.258]),
        ([0.04, 0.01, 0.03, 0.02], [0.06, 0.04, 0.06, 0.06]),
        ([1.0, 0.818, 0.161, 0.818, 0.543], [1.0, 1.0, 0.805, 1.0, 1.0]),
        (
            [0.0, 0.63, 0.0, 0.388, 0.005, 0.643, 0.159, 0.027],
            [0.0, 1.0, 0.0, 1.0, 0.03, 1.0, 0.636, 0.135],
        ),
        ([], []),
    ],
)
def test_holm_is_that_of_statsmodels(given, expected):
    assert holm(given) == pytest.approx(expected, abs=1e-12)


def test_holm_refuses_what_is_no_p():
    for wrong in ([0.1, 1.2], [-0.1], [float("nan")]):
        with pytest.raises(ValueError, match="a p value is 0 to 1"):
            holm(wrong)


def test_p_is_never_printed_as_zero():
    assert (format_p(0.0002), format_p(0.0456), format_p(1.0)) == ("< 0.001", "0.046", "1.000")


# What is refused, or said ---------------------------------------------------------------------


def refused(sentence, runs, qrels=QRELS, **options):
    with pytest.raises(ValueError, match=sentence):
        experiment(runs, qrels, measures=["RR@10"], **options)


def test_runs_over_different_queries():
    short = shuffled("short", 1, queries=QUERIES[:-2])
    refused(r"'q38' is in 'dense' and not in 'short' \(2 such\)", [shuffled("dense", 0), short])


def test_queries_that_nobody_judged_do_not_matter():
    more = shuffled("more", 1, queries=[*QUERIES, "q99"])
    assert "40 queries" in str(experiment([shuffled("dense", 0), more], QRELS, measures=["RR"]))


def test_judged_queries_without_any_ranking_are_counted_and_said():
    runs = [shuffled("dense", 0, queries=QUERIES[:10]), shuffled("new", 1, queries=QUERIES[:10])]
    found = experiment(runs, QRELS, measures=["RR"])
    assert "30 of the queries have no ranking in these runs and count 0." in str(found)
    assert found.row("new", "RR").mean == pytest.approx(
        evaluate(runs[1], {q: QRELS[q] for q in QUERIES[:10]}, ["RR"]).mean("RR") / 4
    )


def test_qrels_without_overlap():
    runs = [shuffled("dense", 0), shuffled("new", 1)]
    refused("no query in common", runs, {"other": {"d1": 1}})
    refused("qrels are empty", runs, {})


def test_an_empty_run():
    nothing = Run.from_lists(QUERIES, [[]] * 40, [[]] * 40, "nothing")
    for empty in (nothing, Run.from_lists([], [], [], "nothing")):
        refused("'nothing' is empty", [shuffled("dense", 0), empty])


def test_one_single_query_has_no_test_and_says_so():
    runs = [shuffled(name, seed, queries=["q0"]) for seed, name in enumerate(["dense", "new"])]
    found = experiment(runs, {"q0": {"d3": 1}}, measures=["RR@10"])
    assert "One query alone gives no interval and no test" in str(found)
    assert [row.p for row in found.rows] == [None, None]
    assert found.row("new", "RR@10").mean > 0
    assert "–" in found._repr_html_() and "--" in found.to_latex()


@pytest.mark.parametrize(
    ("documents", "scores", "sentence"),
    [
        (["d1", "d2"], [1.0, float("nan")], "query 'q0' and document 'd2' is not a finite number"),
        (["d1", "d1"], [1.0, 2.0], "document stands twice in the ranking of query 'q0'"),
    ],
)
def test_nan_scores_and_duplicates_never_get_into_a_run(documents, scores, sentence):
    with pytest.raises(ValueError, match=sentence):
        Run.from_lists(["q0"], [documents], [scores])


def test_a_duplicate_that_went_round_the_checks_is_found():
    twice = np.array([["d3", "d3"]] * 40, dtype=object)
    run = Run(np.array(QUERIES, dtype=object), twice, np.ones((40, 2)), "twice")
    refused("stands twice in the ranking of query 'q0' in the run 'twice'", [shuffled("d", 0), run])


def test_names_and_numbers_of_runs():
    refused("two runs or more", [shuffled("dense", 0)])
    refused("same name", [shuffled("dense", 0), shuffled("dense", 1)])
    refused("No run is called 'bm25'", [shuffled("a", 0), shuffled("b", 1)], baseline="bm25")

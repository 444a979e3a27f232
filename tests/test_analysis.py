"""Single queries: hurt and helped, rankings side by side, slices, and the figure of movements."""

import matplotlib
import numpy as np
import pytest

from rerank_utils.analysis import (
    Movement,
    breakdown,
    by_first_rank,
    by_length,
    by_relevant,
    by_title,
    by_truncation,
    hurt_and_helped,
    list_changes,
    movements,
    side_by_side,
)
from rerank_utils.evaluation import evaluate
from rerank_utils.plotting import DOWN, SAME, UP, plot_before_after, plot_rank_movement
from rerank_utils.run import Run

matplotlib.use("Agg")
QUERIES = {
    "up": "a short one",
    "down": "Use of Hard-coded KEY in " + "some " * 10 + "product",
    "same": "word " * 25,
    "lost": "word " * 40,
}
QRELS = {"up": {"c": 1}, "down": {"a": 1, "b": 0}, "same": {"b": 2, "d": 1}, "lost": {"x": 1}}
BEFORE = Run.from_lists(list(QUERIES), [["a", "b", "c", "d"]] * 4, [[4, 3, 2, 1]] * 4, "first")
AFTER = Run.from_lists(
    list(QUERIES),
    [["c", "a", "b", "d"], ["b", "c", "a", "d"], ["a", "b", "c", "d"], ["a", "b", "c", "d"]],
    [[4, 3, 2, 1]] * 4,
    "second",
)
TITLES = {"a": "Use of hard-coded key", "b": "Buffer overflow", "c": "Race"}


@pytest.fixture(scope="module")
def evaluations():
    return [evaluate(run, QRELS, ["RR@10"]) for run in (BEFORE, AFTER)]


def test_hurt_and_helped_queries_with_their_differences(evaluations):
    hurt, helped = hurt_and_helped(*evaluations, "RR@10")
    assert [(c.query, c.before, c.after) for c in hurt] == [("down", 1.0, 1 / 3)]
    assert [(c.query, c.difference) for c in helped] == [("up", pytest.approx(2 / 3))]
    turned, _ = hurt_and_helped(*evaluations[::-1], "RR@10")
    assert [change.query for change in turned] == ["up"]
    lines = list_changes(hurt + helped, QUERIES, limit=1).splitlines()
    assert lines[1].split()[:4] == ["1.000", "0.333", "-0.667", "down"]
    assert lines[2] == "... and 1 more"


def test_the_most_hurt_comes_first():
    qrels = {"q1": {"b": 1}, "q2": {"c": 1}, "q3": {"d": 1}}
    first = Run.from_lists(list(qrels), [["b"], ["c"], ["x", "d"]], [[1], [1], [2, 1]])
    second = Run.from_lists(list(qrels), [["x", "b"], ["x"], ["d"]], [[2, 1], [1], [1]])
    hurt, helped = hurt_and_helped(*(evaluate(r, qrels, ["RR"]) for r in (first, second)), "RR")
    assert [change.query for change in hurt] == ["q2", "q1"]
    assert [change.query for change in helped] == ["q3"]


def test_rankings_side_by_side_with_movements():
    lines = side_by_side(BEFORE, AFTER, "down", QRELS, TITLES, k=3, width=26).splitlines()
    assert lines[0].split() == ["rank", "first", "second", "moved"]
    assert lines[1].endswith("  up 1 (was 2)") and "b Buffer overflow" in lines[1]
    assert lines[3].endswith("down 2 (was 1)") and "* a Use of hard-coded key" in lines[3]
    assert len(lines) == 4
    assert side_by_side(BEFORE, AFTER, "same", QRELS).splitlines()[2].endswith("  =")
    other = Run.from_lists(["up"], [["z"]], [[1.0]], "other")
    shown = side_by_side(BEFORE, other, "up", QRELS).splitlines()
    assert shown[1].endswith("new") and len(shown) == 5
    with pytest.raises(KeyError, match="no query 'nowhere'"):
        side_by_side(BEFORE, AFTER, "nowhere", QRELS)


def test_slices():
    assert by_length(QUERIES) == {
        "3 to 10 words": ["up"],
        "11 to 20 words": ["down"],
        "21 to 30 words": ["same"],
        "31 or more words": ["lost"],
    }
    assert by_relevant(QRELS) == {"1 relevant": ["up", "down", "lost"], "2 relevant": ["same"]}
    assert by_first_rank(BEFORE, QRELS, edges=(1, 2)) == {
        "rank 1": ["down"],
        "rank 2": ["same"],
        "rank 3 or more": ["up"],
        "not found": ["lost"],
    }
    assert by_first_rank(AFTER, QRELS, edges=(1, 3)) == {
        "rank 1": ["up"],
        "rank 2 to 3": ["down", "same"],
        "not found": ["lost"],
    }
    assert by_title(QUERIES, QRELS, TITLES) == {
        "names the title": ["down"],
        "does not": ["up", "same", "lost"],
    }


def test_a_title_is_found_as_whole_words():
    queries = {"1": "Start here", "2": "the ART of war", "3": "C++, the language", "4": "C++11"}
    qrels = {query: {"a": 1, "c": 1} for query in queries}
    assert by_title(queries, qrels, {"a": "Art", "c": "C++"}) == {
        "names the title": ["2", "3"],
        "does not": ["1", "4"],
    }


def test_truncation_by_a_table_or_a_function():
    tokens = {"a": 100, "b": 200, "c": 128, "d": 500, "x": 300}
    expected = {"read in full": ["up", "down"], "truncated": ["same", "lost"]}
    assert by_truncation(BEFORE, QRELS, tokens, 128) == expected

    def pair(query: str, document: str) -> int:
        return tokens[document] + len(QUERIES[query].split())

    expected = {"read in full": ["down"], "truncated": ["up", "same", "lost"]}
    assert by_truncation(BEFORE, QRELS, pair, 128) == expected


def test_a_breakdown_adds_up_to_the_whole(evaluations):
    table = breakdown(*evaluations, "RR@10", by_relevant(QRELS))
    single, several = table.rows
    assert (single.label, single.queries, several.queries) == ("1 relevant", 3, 1)
    assert single.before == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert single.after == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert (single.wins, single.ties, single.losses) == (1, 1, 1)
    whole = sum(row.queries * row.after for row in table.rows) / 4
    assert whole == pytest.approx(evaluations[1].mean("RR@10"))
    assert "1 relevant 3 0.444 0.444 +0.000 1 / 1 / 1" in " ".join(str(table).split())


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda e: breakdown(*e, "RR@10", {"odd": ["q99"]}), "'odd' holds 'q99'"),
        (lambda e: breakdown(*e, "RR@10", {"none": []}), "'none' holds no query"),
        (lambda e: by_length(QUERIES, [20, 10]), "rising numbers"),
        (lambda e: by_length(QUERIES, []), "rising numbers"),
        (
            lambda e: hurt_and_helped(e[0], evaluate(AFTER, {"up": {"c": 1}}, ["RR@10"]), "RR@10"),
            "different queries",
        ),
        (lambda e: plot_rank_movement([]), "moves is empty"),
    ],
)
def test_what_cannot_be_analysed_is_refused(call, sentence, evaluations):
    with pytest.raises(ValueError, match=sentence):
        call(evaluations)


def test_movements_of_relevant_documents():
    assert movements(BEFORE, AFTER, QRELS) == [
        Movement("up", "c", 3, 1),
        Movement("down", "a", 1, 3),
        Movement("same", "b", 2, 2),
        Movement("same", "d", 4, 4),
        Movement("lost", "x", None, None),
    ]


def test_the_figure_draws_a_line_from_rank_to_rank():
    moves = [*movements(BEFORE, AFTER, QRELS)[:4], Movement("gone", "y", 2, None)]
    moves.append(Movement("never", "z", None, None))
    figure = plot_rank_movement(moves, title="five documents")
    (axes,) = figure.axes
    lines = [line for line in axes.lines if len(line.get_ydata()) == 2 and line.get_marker() == "o"]
    drawn = {(line.get_color(), *map(float, line.get_ydata())) for line in lines}
    assert {(UP, 3, 1), (SAME, 2, 2), (SAME, 4, 4), (DOWN, 1, 3)} < drawn and len(drawn) == 6
    bottom, top = axes.get_ylim()
    assert bottom > top  # rank 1 on top
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "2", "not found"]
    assert np.isclose(max(y for _, _, y in drawn), axes.get_yticks()[-1])
    texts = {text.get_text() for text in figure.legends[0].get_texts()}
    assert texts == {"up: 1", "same place: 2", "down: 2", "in neither run: 1"}


def test_the_figure_of_measures_shows_both_means_and_their_difference():
    first, second = (evaluate(run, {"up": QRELS["up"]}) for run in (BEFORE, AFTER))
    (axes,) = plot_before_after(first, second).axes
    means = [[evaluation.mean(name) for name in first.values] for evaluation in (first, second)]
    assert means[0] != means[1]
    dots = [part.get_offsets()[:, 0] for part in axes.collections if hasattr(part, "get_sizes")]
    np.testing.assert_allclose(dots, means)
    said = [f"{new:.3f} ({new - old:+.3f})" for old, new in zip(*means, strict=True)]
    assert [text.get_text() for text in axes.texts] == said
    assert [label.get_text() for label in axes.get_yticklabels()] == list(first.values)

"""The table of the README: the choice on dev, the words, the place it is written to."""

from types import SimpleNamespace

import numpy as np
import pytest

from rerank_utils.evaluation import MEASURES, Evaluation
from rerank_utils.report import MARKERS, _markdown, choose_weight, write_between_markers
from rerank_utils.run import Run


def test_the_weight_with_the_highest_ndcg_is_chosen():
    """Only a mix ranks the answer b first: the first stage prefers a, the reranker c."""
    first = Run.from_lists(["q"], [["a", "b", "c"]], [[1.0, 0.9, 0.0]])
    second = Run.from_lists(["q"], [["c", "b", "a"]], [[1.0, 0.9, 0.0]])
    collection = SimpleNamespace(qrels={"q": {"b": 1}})
    profile = SimpleNamespace(depth=3)
    result = SimpleNamespace(
        first_stage=first, reranked=second, collection=collection, profile=profile
    )
    weight, by_weight = choose_weight(result)
    assert by_weight[weight] == max(by_weight.values()) == 1.0
    assert by_weight[0.1] < 1.0 and by_weight[0.9] < 1.0


def test_the_table_states_ratio_and_p():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 0.4, 50)
    names = [f"q{i}" for i in range(50)]
    dense = Evaluation("dense", names, {measure: base for measure in MEASURES})
    better = Evaluation("better", names, {m: base * 1.5 for m in MEASURES})
    lines = _markdown({"dense": dense, "better": better}, 50).splitlines()
    assert lines[2].startswith("| dense | ") and lines[2].endswith("| – |")
    assert "× 1.50, p < 0.001" in lines[3]
    assert len({line.count("|") for line in lines[:4]}) == 1


def test_the_table_goes_between_its_markers(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(f"before\n{MARKERS[0]}\nold\n{MARKERS[1]}\nafter\n")
    write_between_markers(page, "new")
    assert page.read_text() == f"before\n{MARKERS[0]}\nnew\n{MARKERS[1]}\nafter\n"
    page.write_text("no markers")
    with pytest.raises(ValueError, match="must hold the lines"):
        write_between_markers(page, "new")
    assert page.read_text() == "no markers"

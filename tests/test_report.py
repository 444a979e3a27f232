"""The table of the README: the choices on dev, the rows, the words, the place it is written to."""

import json
from dataclasses import replace

import numpy as np
import pytest

from rerank_utils import report as report_room
from rerank_utils import reranking
from rerank_utils.bundled import minilm_path
from rerank_utils.collection import Collection
from rerank_utils.cwe import load_cwe
from rerank_utils.evaluation import MEASURES, answer_groups, compare, evaluate
from rerank_utils.experiment import experiment
from rerank_utils.profiles import OFFLINE
from rerank_utils.report import (
    DENSE,
    FUSIONS,
    MARKERS,
    SHARES,
    WAYS,
    among,
    as_markdown,
    choose_fusion,
    choose_shares,
    choose_weight,
    main,
    make_report,
    pairs_to_mix,
    tuned_title,
    write_between_markers,
)
from rerank_utils.run import Run
from rerank_utils.tiny import build_tiny


def test_the_weight_with_the_highest_ndcg_is_chosen():
    """Only a mix ranks the answer b first: the first stage prefers a, the reranker c."""
    first = Run.from_lists(["q"], [["a", "b", "c"]], [[1.0, 0.9, 0.0]])
    second = Run.from_lists(["q"], [["c", "b", "a"]], [[1.0, 0.9, 0.0]])
    weight, by_weight = choose_weight(first, second, {"q": {"b": 1}}, 3)
    assert by_weight[weight] == max(by_weight.values()) == 1.0
    assert by_weight[0.1] < 1.0 and by_weight[0.9] < 1.0


def test_the_fusion_with_the_highest_recall_is_chosen_then_ndcg():
    """Dense ranks the answer a first, BM25 last: more dense is better, and R@50 is always 1."""
    bm25 = Run.from_lists(["q"], [["c", "b", "a"]], [[3.0, 2.0, 1.0]])
    dense = Run.from_lists(["q"], [["a", "b", "c"]], [[3.0, 2.0, 1.0]])
    name, scores = choose_fusion([bm25, dense], {"q": {"a": 1}})
    assert list(scores) == list(FUSIONS) and len(FUSIONS) == 10
    assert name == "0.6 dense" and scores[name] == {"R@50": 1.0, "nDCG@10": 1.0}
    assert scores["RRF"]["nDCG@10"] < 1 and scores["0.4 dense"]["nDCG@10"] == 0.5
    # Two queries: only BM25 has the answer of the first, which 0.9 dense pushes beyond rank 50;
    # on the second, 0.9 dense alone has the answer first.
    others = [f"d{i:02}" for i in range(60)]
    bm25 = Run.from_lists(["q", "r"], [["a"], ["b", "a"]], [[1.0], [1.0, 0.0]])
    down = np.linspace(1, 0, 60)
    dense = Run.from_lists(["q", "r"], [others, ["a", "b", "c"]], [down, [1.0, 0.85, 0.0]])
    name, scores = choose_fusion([bm25, dense], {"q": {"a": 1}, "r": {"a": 1}})
    assert scores["0.9 dense"]["R@50"] == 0.5
    assert scores[name]["R@50"] == 1.0


def test_the_shares_with_the_highest_ndcg_are_chosen():
    """The answer b is second in all three; each of the others is last in one of them."""
    lists = [["a", "b", "c"], ["c", "b", "d"], ["d", "b", "a"]]
    runs = [Run.from_lists(["q"], [ids], [[1.0, 0.6, 0.0]]) for ids in lists]
    shares, by_shares = choose_shares(runs, {"q": {"b": 1}})
    assert by_shares[shares] == max(by_shares.values()) == 1.0
    assert len(SHARES) == 36 and all(sum(row) == pytest.approx(1) for row in SHARES)
    assert by_shares[0.8, 0.1, 0.1] < 1.0


def test_scores_among_candidates_are_those_of_the_run():
    candidates = Run.from_lists(["q", "r"], [["a", "b", "c"], ["d"]], [[3, 2, 1], [1]])
    run = Run.from_lists(["r", "q"], [["x"], ["c", "b", "y"]], [[5], [9, 8, 7]], "other")
    found = among(candidates, run, 2)
    assert found.name == "other" and list(found.query_ids) == ["q", "r"]
    assert found.top("q") == [("b", 8.0)] and found.top("r") == []


@pytest.fixture(scope="module")
def small_profile(tiny_reranker_folder):
    """Sixty weaknesses with six dev and six test queries, a random reranker and real MiniLM."""
    whole = load_cwe()
    splits = {name: whole.splits[name][:6] for name in ("dev", "test")}
    queries = [query for ids in splits.values() for query in ids]
    qrels = {query: whole.qrels[query] for query in queries}
    answers = {document for grades in qrels.values() for document in grades}
    kept = [*answers, *(d for d in whole.documents if d not in answers)][:60]
    small = Collection(
        name="small",
        documents={document: whole.documents[document] for document in sorted(kept)},
        queries={query: whole.queries[query] for query in queries},
        qrels=qrels,
        splits=splits,
    )
    tiny = {"reranker": str(tiny_reranker_folder), "reranker_length": 64, "depth": 8}
    return replace(OFFLINE, load=lambda: small, queries=None, **tiny)


def test_the_report_has_every_pipeline_and_scores_each_pair_once(
    small_profile, tmp_path, monkeypatch
):
    scored = []
    score = reranking._score
    monkeypatch.setattr(
        reranking,
        "_score",
        lambda model, pairs, *rest: scored.extend(pairs) or score(model, pairs, *rest),
    )
    given = []
    for choose in (choose_fusion, choose_shares, choose_weight):

        def watched(*parts, choose=choose):
            given.append(parts)
            return choose(*parts)

        monkeypatch.setattr(report_room, choose.__name__, watched)
    report = make_report(small_profile, tmp_path, minilm_path())
    dev = set(small_profile.load().splits["dev"])
    for *runs, qrels in [*given[:3], *(parts[:3] for parts in given[3:])]:
        runs = runs[0] if isinstance(runs[0], list) else runs
        assert all(set(asked) == dev for asked in (qrels, *(run.query_ids for run in runs)))
    assert len(given) == 10
    (dense, *_), (tuned_of_dense, *_) = given[3], given[9]
    for (_, found, _), (_, documents, scores) in zip(dense, tuned_of_dense, strict=True):
        assert set(documents) == set(found[:8]) and list(scores) == sorted(scores, reverse=True)
    names = list(report.table.evaluations)
    assert len(names) == 20 and len(report.table.rows) == 20 * len(MEASURES)
    assert names[:2] == ["BM25", DENSE] and report.table.baseline == DENSE
    assert sum("top 8 reranked" in name for name in names) == 7
    assert sum("in pieces" in name for name in names) == 7
    assert report.fusion in names[2]
    tuned = tuned_title(minilm_path())  # the same model here
    assert tuned == "tuned: the same MiniLM, trained on the training side"
    assert report.table.evaluations[tuned].mean("R@50") == report.test.before.mean("R@50")
    apart = compare(
        *(report.table.evaluations[n] for n in ("dense, top 8 reranked", tuned)),
        "nDCG@10",
        groups=answer_groups(report.test.collection.qrels),
    )
    said = f"tuned over dense, top 8 reranked {apart.difference:+.3f} [{apart.low:+.3f}"
    assert said in report.table.notes[-1] and said in as_markdown(report.table)
    assert "groups of queries that share answers" in as_markdown(report.table)
    for name, (first_stage, shares) in zip(names[-2:], report.shares.items(), strict=True):
        assert shares in SHARES and name.startswith(f"BM25, {first_stage} and reranker")
        assert " : ".join(map(str, shares)) in name
    for name, (mixed, weight) in zip(names[11:-2], report.weights.items(), strict=True):
        assert name == f"{mixed} mixed ({weight:g} reranker, chosen on dev)"
    assert len(scored) == len(set(scored)) > 2 * 6 * 8

    numbers = json.loads(json.dumps(report.numbers()))
    assert numbers["test"]["rows"][DENSE] == report.test.before.means()
    assert numbers["test"]["rows"]["dense, top 8 reranked"] == report.test.after.means()
    assert numbers["dev"]["queries"] == numbers["test"]["queries"] == 6
    recall = numbers["dev"]["by fusion"]
    assert recall[report.fusion]["R@50"] == max(row["R@50"] for row in recall.values())

    again = len(scored)
    repeated = make_report(small_profile, tmp_path, minilm_path())
    assert len(scored) == again and repeated.table.rows == report.table.rows
    plain = make_report(small_profile, tmp_path)
    assert len(scored) == again and list(plain.table.evaluations) == [
        name for name in names if "tuned" not in name
    ]


def test_an_index_that_stays_is_mixed_from_the_tuned_scores_of_what_dense_found():
    dense = Run.from_lists(["q"], [["a", "b", "c"]], [[3, 2, 1]])
    tuned = Run.from_lists(["q"], [["c", "b", "d", "a"]], [[0.9, 0.8, 0.7, 0.1]])
    first_stages = {"dense": (dense, dense), "tuned": (tuned, tuned)}
    reranked = {name + way: (object(), object()) for name in first_stages for way in WAYS}
    pairs = pairs_to_mix(first_stages, reranked, 2)
    assert pairs["dense and reranker"] == (first_stages["dense"], reranked["dense"])
    scored, mixed_with = pairs["dense, top 2 by tuned and reranker in pieces"]
    assert mixed_with is reranked["dense in pieces"] and len(pairs) == 5
    for run in scored:
        ((_, documents, scores),) = run
        assert list(documents) == ["b", "a"] and list(scores) == pytest.approx([0.8, 0.1])
    assert len(pairs_to_mix({"dense": (dense, dense)}, reranked, 2)) == 2


def test_the_markdown_states_difference_interval_and_corrected_p():
    queries = [f"q{i}" for i in range(30)]
    qrels = {query: {"b": 1} for query in queries}
    worse = Run.from_lists(queries, [["a", "b"]] * 30, [[2, 1]] * 30)
    better = Run.from_lists(queries, [["a", "b"]] * 30, [[1, 2]] * 30)
    table = experiment({"dense": worse, "other": better}, qrels)
    lines = as_markdown(table).splitlines()
    assert lines[0] == "| run | nDCG@10 | difference, p | RR@10 | R@10 | R@50 | Success@1 |"
    assert lines[2].startswith("| dense | 0.631 | – | 0.500 | 1.000 |")
    assert lines[3].startswith("| other | 1.000 | +0.369 [+0.369, +0.369], p < 0.001 | 1.000 |")
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert evaluate(better, qrels).mean("RR@10") == 1.0


def test_the_table_goes_between_its_markers(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(f"before\n{MARKERS[0]}\nold\n{MARKERS[1]}\nafter\n")
    write_between_markers(page, "new")
    assert page.read_text() == f"before\n{MARKERS[0]}\nnew\n{MARKERS[1]}\nafter\n"
    page.write_text("no markers")
    with pytest.raises(ValueError, match="must hold the lines"):
        write_between_markers(page, "new")
    assert page.read_text() == "no markers"
    page.write_text(f"{MARKERS[1]} {MARKERS[0]}")
    with pytest.raises(ValueError, match="in this order"):
        write_between_markers(page, "new")


def test_help_says_what_is_written_and_a_wrong_number_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0 and "README.md" in shown and "--queries N" in shown
    with pytest.raises(SystemExit) as stopped:
        main(["--queries", "0"])
    assert stopped.value.code == 2 and "at least one" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["--tuned", "nowhere"])
    assert stopped.value.code == 2 and "nowhere, which holds no model" in capsys.readouterr().err


def test_the_page_is_looked_for_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rerank_utils.report.make_report", None)
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2 and "run this at its top" in capsys.readouterr().err


def test_a_tuned_model_of_another_kind_is_not_called_the_same(tmp_path):
    build_tiny("xlm-roberta-embedder", tmp_path)
    assert tuned_title(tmp_path).startswith("tuned: a model of type xlm-roberta, trained")

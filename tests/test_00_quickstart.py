"""The lines a reader copies: the same in README and notebook, and right."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pytest

from rerank_utils.bundled import minilm_path
from rerank_utils.cwe import load_cwe
from rerank_utils.embedding import embed_documents, embed_queries, load_embedder
from rerank_utils.evaluation import evaluate
from rerank_utils.indexing import build_index
from rerank_utils.reranking import load_reranker, rerank
from rerank_utils.run import Run

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "00_quickstart.ipynb"


def code_to_copy() -> str:
    return re.search(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    ).group(1)


@pytest.fixture(scope="module")
def cells():
    return nbformat.read(NOTEBOOK, as_version=4).cells


def test_readme_and_notebook_show_the_same_lines(cells):
    assert any(code_to_copy() in cell.source for cell in cells)


def test_the_lines_run_and_give_what_the_helpers_give(tiny_reranker_folder, capsys):
    """The literal code with local folders for the names; CLS pooling is FlagModel's default."""
    collection = load_cwe().split("dev", 6)
    names = list(dict.fromkeys(d for grades in collection.qrels.values() for d in grades))
    names += [d for d in collection.documents if d not in names][:54]
    corpus = [collection.documents[d] for d in names]
    row = {name: i for i, name in enumerate(names)}
    code = code_to_copy().replace('device = "cuda:0"', 'device = "cpu"')
    for name, folder in (
        ("BAAI/bge-base-en-v1.5", minilm_path()),
        ("BAAI/bge-reranker-large", tiny_reranker_folder),
    ):
        assert code.count(f'"{name}"') == 1
        code = code.replace(f'"{name}"', repr(str(folder)))
    scope = {
        "corpus": corpus,
        "queries": list(collection.queries.values()),
        "relevant": [{row[d] for d in grades} for grades in collection.qrels.values()],
    }
    exec(code, scope)

    with pytest.warns(UserWarning, match="not made for 'cls'"):
        embedder = load_embedder(minilm_path(), "cls", scope["instruction"], 512, "cpu")
    index = build_index(embed_documents(embedder, corpus), names)
    query_vectors = embed_queries(embedder, scope["queries"])
    first = index.search(list(collection.queries), query_vectors, 50)
    reranker = load_reranker(tiny_reranker_folder, 512, "cpu")
    after = rerank(first, collection.queries, collection.documents, reranker, 50)
    assert first.doc_ids.tolist() == [[names[i] for i in ids] for ids in scope["ids"]]
    assert after.doc_ids.tolist() == [[names[i] for i in ids] for ids in scope["reranked"]]
    for run, ids in ((first, "ids"), (after, "reranked")):
        ours = evaluate(run, collection.qrels, ["R@10", "RR@10"]).means()
        theirs = scope["recall_and_mrr"](scope[ids])
        assert theirs == pytest.approx(tuple(ours.values()))
    assert "after:" in capsys.readouterr().out


def test_recall_and_mrr_of_the_notebook_are_those_of_the_helper(taught):
    """The tagged cell, on random rankings, against `evaluate`."""
    rng = np.random.default_rng(0)
    ids = np.array([rng.permutation(200)[:50] for _ in range(30)])
    relevant = [set(rng.permutation(200)[: rng.integers(1, 6)].tolist()) for _ in range(30)]
    scope = {"np": np, "relevant": relevant}
    exec(taught("00_quickstart", "recall"), scope)
    hits = np.array([np.isin(row, list(wanted)) for row, wanted in zip(ids, relevant, strict=True)])
    names = [[f"d{i}" for i in row] for row in ids]
    run = Run.from_lists([f"q{i}" for i in range(30)], names, [range(50, 0, -1)] * 30)
    qrels = {f"q{i}": {f"d{d}": 1 for d in wanted} for i, wanted in enumerate(relevant)}
    ours = evaluate(run, qrels, ["R@10", "RR@10"])
    assert scope["recall_at"](hits, 10) == pytest.approx(ours.mean("R@10"))
    assert scope["mrr_at"](hits, 10) == pytest.approx(ours.mean("RR@10"))

"""What 07_finetuning teaches in its cells gives what the helpers and outside tools give."""

import re
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from cells import NOTEBOOKS

from rerank_utils.mining import mine_negatives
from rerank_utils.run import Run

NAME = "07_finetuning"
DOCUMENTS = {f"d{i}": f"text {i}" for i in range(60)}


@pytest.fixture(params=range(5))
def task(request):
    """A run over 30 queries, with judgments, related and held-out documents, all by chance."""
    rng = np.random.default_rng(request.param)
    queries = [f"q{i}" for i in range(30)]
    rankings = [list(rng.permutation(list(DOCUMENTS))[:50]) for _ in queries]
    run = Run.from_lists(queries, rankings, np.sort(rng.random((30, 50)))[:, ::-1])
    closed = set(rng.choice(list(DOCUMENTS), 25, replace=False).tolist())
    may = sorted(set(DOCUMENTS) - closed)
    return SimpleNamespace(
        run=run,
        closed=closed,
        qrels={q: dict.fromkeys(rng.choice(may, 3, replace=False).tolist(), 1) for q in queries},
        related={q: set(rng.choice(list(DOCUMENTS), 4).tolist()) for q in queries},
    )


@pytest.mark.parametrize("arguments", [{}, {"count": 3, "ranks": (5, 20), "seed": 7}])
def test_the_mining_taught_takes_what_the_helper_takes(taught, task, arguments):
    scope = {"qrels": task.qrels, "related": task.related, "closed": task.closed}
    exec(taught(NAME, "mining"), scope)
    mined = mine_negatives(
        task.run,
        {query: query for query in task.qrels},
        DOCUMENTS,
        task.qrels,
        related=task.related,
        exclude=task.closed,
        **arguments,
    )
    expected = {q: [n.document for n in row] for q, row in mined.negatives.items()}
    assert scope["mine"](task.run, **arguments) == expected
    assert len(expected) == 30 and mined.not_drawn > 0
    verdicts = [scope["verdict"](q, d) for q, ids, _ in task.run for d in ids]
    assert set(verdicts) == {"", "known positive", "related", "held out"}
    assert not any(scope["verdict"](q, d) for q, ids in expected.items() for d in ids)


def test_the_labels_copied_are_those_of_a_nearest_neighbour_search(taught):
    """By scikit-learn: the cosine of the nearest known report that has the label."""
    from sklearn.neighbors import NearestNeighbors

    rng = np.random.default_rng(0)
    table = rng.normal(size=(70, 8)).astype(np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    names = [f"r{i}" for i in range(len(table))]
    vectors = dict(zip(names, table, strict=True))
    labels = {name: dict.fromkeys(rng.choice(list("abcdef"), 2).tolist(), 1) for name in names}
    scope = {"np": np, "vectors": vectors, "labels": labels}
    exec(taught(NAME, "copy"), scope)
    asked, known = names[:10], names[10:]
    run = scope["copy_labels"](asked, known, k=7)

    search = NearestNeighbors(n_neighbors=7, metric="cosine").fit(table[10:])
    distances, places = search.kneighbors(table[:10])
    for query, row, near in zip(asked, distances, places, strict=True):
        best = {}
        for distance, place in zip(row, near, strict=True):
            for label in labels[known[place]]:
                best[label] = max(best.get(label, -1), 1 - distance)
        found = dict(run.top(query, 10))
        assert found == pytest.approx(best, abs=1e-5)


def test_the_command_line_shown_is_what_the_call_does(tmp_path):
    """FlagEmbedding's own parser reads it, and gives what the wrapper gives its trainer."""
    from FlagEmbedding.abc.finetune.reranker import (
        AbsRerankerDataArguments,
        AbsRerankerModelArguments,
        AbsRerankerTrainingArguments,
    )
    from transformers import HfArgumentParser

    cells = nbformat.read(NOTEBOOKS / f"{NAME}.ipynb", as_version=4).cells
    (command,) = (
        found.group(1)
        for cell in cells
        if (found := re.search(r"```bash\n(python -m FlagEmbedding.+?)```", cell.source, re.DOTALL))
    )
    words = command.replace("\\\n", " ").split()[3:]
    (tmp_path / "train.jsonl").write_text("{}\n")
    for word in ("train.jsonl", "trained"):
        words[words.index(word)] = str(tmp_path / word)
    kinds = (AbsRerankerModelArguments, AbsRerankerDataArguments, AbsRerankerTrainingArguments)
    _, data, training = HfArgumentParser(kinds).parse_args_into_dataclasses(words)
    shown = {
        "batch": training.per_device_train_batch_size,
        "group": data.train_group_size,
        "query_length": data.query_max_len,
        "passage_length": data.passage_max_len,
        "log_every": training.logging_steps,
        "steps": training.max_steps,
        "rate": training.learning_rate,
    }
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    options = re.search(r"^options = (\{.+?^\})", code, re.DOTALL | re.MULTILINE).group(1)
    call = re.search(r"^trained = finetune\(.+?steps=(\d+), rate=([\d.e-]+)", code, re.MULTILINE)
    given = eval(options, {"quick": True})
    assert given.pop("dropout") == 0.0  # no flag of the trainer
    assert given.pop("half") == training.bf16
    assert shown == given | {"steps": int(call.group(1)), "rate": float(call.group(2))}
    assert training.warmup_steps == round(0.1 * training.max_steps)
    assert training.dataloader_drop_last and training.use_cpu

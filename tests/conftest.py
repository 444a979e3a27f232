"""What the tests share: tiny models made on disk, so that nothing is downloaded."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cells import taught_source
from hub_server import SETTINGS

from rerank_utils import training_data
from rerank_utils.mining import Group
from rerank_utils.tiny import build_tiny
from rerank_utils.training_data import training_documents, training_queries

# A reader's own settings and cache of the hub change no test; one that wants a hub says so itself.
for name in [name for name in os.environ if name.startswith(SETTINGS)]:
    del os.environ[name]
HUB_HOME = TemporaryDirectory(prefix="hub-home-")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": HUB_HOME.name}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Callable[[str], Path]:
    """tiny("bge-m3"): the folder of a tiny random model of that kind, to be read only."""
    root, made = tmp_path_factory.mktemp("tiny"), {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = build_tiny(kind, root / kind)
        return made[kind]

    return get


@pytest.fixture(scope="session")
def tiny_reranker_folder(tiny) -> Path:
    """A random one-logit BERT with MiniLM's tokenizer: quick, and of the right shape."""
    return tiny("bert-reranker")


@pytest.fixture(scope="session")
def tiny_xlmr_folder(tiny) -> Path:
    """The layout of the BGE rerankers: XLM-RoBERTa with SentencePiece, random weights."""
    return tiny("xlm-roberta-reranker")


@pytest.fixture(scope="session")
def groups() -> list[Group]:
    """Nine groups about a word each: two texts that hold it, five that do not."""
    words = [
        "apple",
        "bread",
        "carrot",
        "stone",
        "river",
        "cloud",
        "paper",
        "glass",
        "metal",
        "green",
        "seven",
        "north",
    ]
    rng = random.Random(0)
    made = []
    for word in words[:9]:
        others = [other for other in words if other != word]
        filler = [" ".join(rng.choices(others, k=4)) for _ in range(5)]
        made.append(Group(f"what is {word}", [f"{word} is here", f"some {word}"], filler))
    return made


@pytest.fixture(scope="session")
def asked_in_training() -> list:
    """All queries that the bundled reranker and its like are trained on."""
    return training_queries()


@pytest.fixture
def small_training(monkeypatch, asked_in_training):
    """The training of the bundled reranker sees a few queries and documents."""
    chosen = [q for q in asked_in_training if q.field == "report"][:30]
    chosen += [q for q in asked_in_training if q.field != "report"][:30]
    documents, owners = training_documents()
    kept = {key for q in chosen for key in q.positives} | set(list(documents)[:30])
    kept |= {key for key in documents if key.startswith("passage")} - set(list(documents)[600:])
    few = {key: text for key, text in documents.items() if key in kept}
    monkeypatch.setattr(training_data, "training_queries", lambda: list(chosen))
    monkeypatch.setattr(training_data, "training_documents", lambda: (few, dict(owners)))


@pytest.fixture
def beir_folder(tmp_path) -> Path:
    """A BEIR folder of four documents and two queries."""
    folder = tmp_path / "fruit"
    (folder / "qrels").mkdir(parents=True)
    documents = [
        {"_id": "d1", "title": "Apple", "text": "A fruit that grows on trees."},
        {"_id": "d2", "title": "Carrot", "text": "A root vegetable, often orange."},
        {"_id": "d3", "title": "", "text": "Bread is baked from flour and water."},
        {"_id": "d4", "text": "Tea is made from leaves."},
    ]
    queries = [
        {"_id": "q1", "text": "orange vegetable"},
        {"_id": "q2", "text": "what grows on trees"},
        {"_id": "q3", "text": "judged by nobody"},
    ]
    write_lines(folder / "corpus.jsonl", documents)
    write_lines(folder / "queries.jsonl", queries)
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\td2\t1\nq2\td1\t1\nq2\td2\t0\n"
    )
    return folder


def write_lines(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="session")
def taught():
    """taught("03_reranking", "score"): the source of the one cell that is tagged so."""
    return taught_source

import json

import pytest

from rerank_utils import hub, loaders
from rerank_utils.loaders import load_beir, load_msmarco


def test_a_beir_folder_becomes_a_collection(beir_folder):
    collection = load_beir(beir_folder)
    assert collection.name == "fruit"
    assert collection.documents["d1"] == "Apple A fruit that grows on trees."
    assert collection.documents["d4"] == "Tea is made from leaves."
    assert collection.titles == {"d1": "Apple", "d2": "Carrot"}
    assert list(collection.queries) == ["q1", "q2"]  # q3 is judged by nobody
    assert collection.qrels["q2"] == {"d1": 1, "d2": 0}
    assert collection.splits == {"test": ["q1", "q2"]}


@pytest.mark.parametrize("missing", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_missing_file_is_named(beir_folder, missing):
    (beir_folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing.replace("/", ".*")):
        load_beir(beir_folder)


@pytest.mark.parametrize(
    ("file", "line", "sentence"),
    [
        ("corpus.jsonl", "{not json", "corpus.jsonl, line 5: expected"),
        ("corpus.jsonl", '{"_id": "d9"}', "corpus.jsonl, line 5: expected"),
        ("corpus.jsonl", '{"_id": "d9", "text": 3}', "corpus.jsonl, line 5: expected"),
        ("corpus.jsonl", '{"_id": "", "text": "x"}', "line 5: the id is empty"),
        ("corpus.jsonl", '{"_id": "d1", "text": "x"}', "line 5: the document id 'd1' stands"),
        ("queries.jsonl", '{"_id": "q1", "text": "x"}', "line 4: the query id 'q1' stands"),
        ("corpus.jsonl", '{"_id": "d9", "text": " "}', "document 'd9' is empty"),
        ("qrels/test.tsv", "q1\td1", "test.tsv, line 5: expected query id"),
        ("qrels/test.tsv", "q1\td1\tyes", "test.tsv, line 5: expected query id"),
        ("qrels/test.tsv", "q1\td2\t0", "line 5: query 'q1' and document 'd2' are judged a second"),
        ("corpus.jsonl", '{"_id": null, "text": "x"}', "corpus.jsonl, line 5: expected"),
        ("qrels/test.tsv", "q1\td7\t1", "'d7', which is not in the corpus"),
        ("qrels/test.tsv", "q7\td1\t1", "'q7', which queries.jsonl does not hold"),
        ("qrels/test.tsv", "q3\td1\t0", "'q3' has no relevant document"),
    ],
)
def test_a_bad_line_is_named(beir_folder, file, line, sentence):
    path = beir_folder / file
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=sentence):
        load_beir(beir_folder)


def test_quotation_marks_are_text(beir_folder):
    path = beir_folder / "corpus.jsonl"
    path.write_text(path.read_text() + '{"_id": "d\\"5", "text": "a \\"quoted\\" word"}\n')
    qrels = beir_folder / "qrels" / "test.tsv"
    qrels.write_text(qrels.read_text() + 'q1\td"5\t1\nq3\td1\t1\n')
    collection = load_beir(beir_folder)
    assert collection.qrels["q1"]['d"5'] == 1 and collection.qrels["q3"] == {"d1": 1}


def test_a_first_line_that_is_no_header_is_read(beir_folder):
    qrels = beir_folder / "qrels" / "test.tsv"
    qrels.write_text("q1\td2\t1\n")
    assert load_beir(beir_folder).qrels == {"q1": {"d2": 1}}
    qrels.write_text("q1\td2\tyes\n")
    with pytest.raises(ValueError, match=r"test.tsv, line 1: expected query id"):
        load_beir(beir_folder)


def test_text_that_is_not_utf8_is_named(beir_folder):
    (beir_folder / "corpus.jsonl").write_bytes(b'{"_id": "d1", "text": "na\xefve"}\n')
    with pytest.raises(ValueError, match=r"corpus.jsonl, line 1: not UTF-8"):
        load_beir(beir_folder)


def test_a_query_in_two_splits_is_refused(beir_folder):
    (beir_folder / "qrels" / "dev.tsv").write_text("q1\td1\t1\n")
    with pytest.raises(ValueError, match="judges query 'q1', which another file"):
        load_beir(beir_folder)


def test_an_empty_corpus_is_refused(beir_folder):
    (beir_folder / "corpus.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"corpus .* is empty"):
        load_beir(beir_folder)


@pytest.fixture
def fake_msmarco(monkeypatch):
    """`load_dataset` as it would answer: 6,000 queries, some with two positives or shared ones."""
    import datasets

    rows = {
        "query": [f"question {i}" for i in range(6_000)],
        "positive": [[f"answer {i}"] + (["shared"] if i % 7 == 0 else []) for i in range(6_000)],
        "negative": [["x"]] * 6_000,
    }
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return datasets.Dataset.from_dict(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(loaders, "require_hub", lambda wanted: None)
    return rows, asked


def test_msmarco_is_cut_as_the_guide_cuts_it(fake_msmarco):
    _, asked = fake_msmarco
    collection = load_msmarco()
    assert asked == [("namespace-Pt/msmarco", "dev")]
    assert len(collection.queries) == 100
    assert len(collection.documents) == 5_000 + 1  # each text once
    documents = collection.documents
    assert {documents[d] for d in collection.qrels["Q0"]} == {"answer 0", "shared"}
    assert {documents[d] for d in collection.qrels["Q1"]} == {"answer 1"}


def test_msmarco_with_other_columns_is_refused(fake_msmarco):
    rows, _ = fake_msmarco
    rows["text"] = rows.pop("positive")
    with pytest.raises(ValueError, match="no column positive"):
        load_msmarco()


def test_without_a_hub_msmarco_names_the_offline_profile(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match="offline profile"):
        load_msmarco()


def test_an_unreachable_hub_is_noticed_in_seconds(monkeypatch):
    import time

    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    started = time.perf_counter()
    with pytest.raises(ConnectionError, match=r"BAAI/bge-reranker-base.*offline profile"):
        hub.find_model("BAAI/bge-reranker-base")
    assert time.perf_counter() - started < 2 * hub.TIMEOUT


def test_a_hub_that_refuses_is_a_hub(monkeypatch):
    import http.server
    import threading

    from huggingface_hub import constants

    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    assert hub.find_model("BAAI/bge-reranker-base") == "BAAI/bge-reranker-base"
    server.shutdown()


def test_a_half_filled_cache_goes_on_to_the_hub(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(tmp_path))
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        with pytest.raises(ConnectionError, match="offline profile"):
            hub.find_model("some/model")
        (tmp_path / name).write_text("{}")
    assert hub.find_model("some/model") == str(tmp_path)
    shards = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(shards))
    (tmp_path / "part-1.safetensors").write_text("")
    with pytest.raises(ConnectionError, match="offline profile"):
        hub.find_model("some/model")
    (tmp_path / "part-2.safetensors").write_text("")
    assert hub.find_model("some/model") == str(tmp_path)


def test_a_folder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model folder"):
        hub.find_model(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no model folder"):
        hub.find_model("just-a-word")
    with pytest.raises(FileNotFoundError, match=r"no config.json"):
        hub.find_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        hub.find_model(tmp_path)

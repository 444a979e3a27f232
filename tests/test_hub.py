"""The hub side, against a small hub on loopback: the real client libraries, tiny random models."""

import json
import os
import shutil
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest
from hub_server import SETTINGS, Hub, HubServer, SilentServer

from rerank_utils import download
from rerank_utils.hub import find_model
from rerank_utils.tiny import build_tiny

ROOT = Path(__file__).parent.parent
EMBEDDER, RERANKER = "BAAI/bge-base-en-v1.5", "BAAI/bge-reranker-large"
PIPELINE = ["-m", "rerank_utils", "--profile", "msmarco", "--queries", "6", "--depth", "8"]


@pytest.fixture(scope="session")
def tiny_bge_folder(tmp_path_factory) -> Path:
    """The layout of the BGE embedders: a random BERT, with files nobody needs beside it."""
    folder = build_tiny("bert-embedder", tmp_path_factory.mktemp("tiny-bge"))
    (folder / "pytorch_model.bin").write_bytes(b"a pickle" * 1_000)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"a graph" * 1_000)
    (folder / "README.md").write_text("A model card.")
    return folder


@pytest.fixture(scope="session")
def msmarco_folder(tmp_path_factory) -> Path:
    """`namespace-Pt/msmarco` in the schema and the layout of its card."""
    import datasets

    from rerank_utils.cwe import load_cwe

    texts = [text[:200] for text in load_cwe().documents.values()]
    rows = {
        "query": [f"what is {text[:40]}" for text in texts[:120]],
        "positive": [texts[i : i + 1 + i % 2] for i in range(120)],
    }
    folder = tmp_path_factory.mktemp("msmarco")
    (folder / "data").mkdir()
    file = folder / "data" / "dev-00000-of-00001-0123456789abcdef.parquet"
    datasets.Dataset.from_dict(rows).to_parquet(file)
    card = (
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: dev\n"
        "    path: data/dev-*\ndataset_info:\n  features:\n  - name: query\n    dtype: string\n"
        "  - name: positive\n    sequence: string\n  splits:\n  - name: dev\n"
        f"    num_bytes: {file.stat().st_size}\n    num_examples: 120\n---\n# A data set card\n"
    )
    (folder / "README.md").write_text(card)
    return folder


@pytest.fixture
def hub(tiny_bge_folder, tiny_xlmr_folder, msmarco_folder) -> Hub:
    found = Hub()
    found.add_folder("models", EMBEDDER, tiny_bge_folder)
    found.add_folder("models", RERANKER, tiny_xlmr_folder)
    found.add_folder("datasets", "namespace-Pt/msmarco", msmarco_folder)
    return found


@pytest.fixture
def served(hub):
    with HubServer(hub) as server:
        yield server


@pytest.fixture
def python(tmp_path):
    """Run Python as a reader would, with a cache of its own: the libraries read both settings
    when they are imported, hence another process."""
    (tmp_path / "work").mkdir()

    def run(url: str, *arguments: str, **more: str) -> subprocess.CompletedProcess:
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(SETTINGS) and not key.lower().endswith("_proxy")
        }
        environment |= {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home")}
        environment |= {"PYTHONPATH": str(ROOT), **more}
        command = [sys.executable, *arguments]
        folder = tmp_path / "work"
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, timeout=300
        )
        said = [stream.decode() for stream in (done.stdout, done.stderr)]  # keeps a bar's returns
        return subprocess.CompletedProcess(command, done.returncode, *said)

    return run


FIND = """
import sys, time
from rerank_utils.hub import find_model
started = time.perf_counter()
try:
    print(find_model(sys.argv[1]))
except Exception as error:
    print(f"{time.perf_counter() - started:.1f}|{type(error).__name__}|{error}")
"""


def find(python, url: str, name: str, **more: str) -> tuple[float, str, str]:
    """(seconds, class of the error, sentence), and nothing else said."""
    done = python(url, "-c", FIND, name, **more)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    seconds, kind, sentence = done.stdout.strip().split("|", 2)
    assert "\n" not in sentence and sentence.endswith((".", "?")), sentence
    return float(seconds), kind, sentence


def test_the_msmarco_profile_runs_against_a_hub_and_then_without(hub, tmp_path, python):
    with HubServer(hub) as server:
        first = python(server.url, *PIPELINE)
        assert first.returncode == 0, first.stderr
        assert "nDCG@10" in first.stdout and "6 dev queries, 121 documents" in first.stdout
        url, sent = server.url, hub.sent()
    for name in (EMBEDDER, RERANKER, "namespace-Pt/msmarco"):
        lines = [line for line in first.stderr.split("\n") if f"download {name}" in line]
        assert len(lines) == 1, first.stderr  # one line, rewritten in place
        assert "100%" in lines[0].split("\r")[-1]
    assert "Fetching" not in first.stderr and "Reconstruct" not in first.stderr
    assert not [path for path in sent if path.endswith((".onnx", ".bin", ".py"))]

    models = tmp_path / "home" / "hub" / f"models--{EMBEDDER.replace('/', '--')}" / "snapshots"
    (snapshot,) = models.iterdir()
    names = {path.name for path in snapshot.iterdir()}
    assert names >= {"config.json", "tokenizer.json", "model.safetensors"}
    assert not names & {"pytorch_model.bin", "onnx", "README.md"}

    again = python(url, *PIPELINE)  # the server is gone
    assert again.returncode == 0, again.stderr
    assert "download" not in again.stderr

    def measures(text):
        return [line for line in text.splitlines() if "@" in line]

    assert measures(again.stdout) == measures(first.stdout)


def test_the_data_set_library_reads_from_the_hub_too(served, python):
    code = (
        "import datasets; d = datasets.load_dataset('namespace-Pt/msmarco', split='dev');"
        "print(len(d), d.column_names, d[1]['positive'][0][:4])"
    )
    done = python(served.url, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("120 ['query', 'positive']")


def test_a_download_that_breaks_off_can_be_repeated(hub, served, python):
    weights = hub.repositories["models", EMBEDDER]["model.safetensors"]
    hub.breaks.add(sha256(weights).hexdigest())

    _, kind, sentence = find(python, served.url, EMBEDDER)
    assert kind == "ConnectionError"
    assert f"download of the model '{EMBEDDER}' broke off" in sentence
    assert "run the same command again" in sentence
    hub.breaks.clear()
    asked = len(hub.requests)
    done = python(served.url, "-c", FIND, EMBEDDER)
    folder = Path(done.stdout.strip())
    assert (folder / "model.safetensors").read_bytes() == weights
    later = [path for method, path, _ in hub.requests[asked:] if method == "GET"]
    assert not [path for path in later if "tokenizer" in path]  # whole files were kept


def test_a_misspelt_name_is_told_apart_and_helped(served, python):
    _, kind, sentence = find(python, served.url, "BAAI/bge-reranker-larg")
    assert kind == "FileNotFoundError"
    assert "does not exist on the hub, or is private" in sentence
    assert f"Did you mean {RERANKER}" in sentence


def test_a_gated_model_says_how_to_get_in(hub, served, python):
    hub.gated.add(EMBEDDER)
    _, kind, sentence = find(python, served.url, EMBEDDER)
    assert kind == "PermissionError" and "is gated" in sentence
    assert f"{served.url}/{EMBEDDER}" in sentence and "HF_TOKEN" in sentence
    _, kind, _ = find(python, served.url, EMBEDDER, HF_TOKEN="hf_stranger")
    assert kind == "PermissionError"
    hub.tokens.add("hf_member")
    done = python(served.url, "-c", FIND, EMBEDDER, HF_TOKEN="hf_member")
    assert (Path(done.stdout.strip()) / "model.safetensors").exists()


def test_a_model_with_pickles_only_is_refused_before_the_download(hub, served, python):
    files = dict(hub.repositories["models", EMBEDDER])
    del files["model.safetensors"]
    hub.repositories["models", "somebody/embedder"] = files
    _, kind, sentence = find(python, served.url, "somebody/embedder")
    assert kind == "ValueError" and "pickle format only" in sentence
    assert not [path for path in hub.sent() if "/resolve/" in path or "/blobs/" in path]
    done = python(served.url, "-c", FIND, "somebody/embedder", RERANK_ALLOW_PICKLE="1")
    assert (Path(done.stdout.strip()) / "pytorch_model.bin").exists()


def test_of_a_model_of_the_table_pickles_will_do_where_there_is_nothing_else(hub, served, python):
    hub.repositories["models", EMBEDDER].pop("model.safetensors")
    done = python(served.url, "-c", FIND, EMBEDDER)
    assert (Path(done.stdout.strip()) / "pytorch_model.bin").exists()


def test_a_hub_out_of_order_is_told_apart(hub, served, python, monkeypatch):
    from hub_server import Handler

    monkeypatch.setattr(Handler, "answer", lambda self: self.reply(503))
    _, kind, sentence = find(python, served.url, EMBEDDER)
    assert kind == "ConnectionError" and "error 503" in sentence


def test_an_unreachable_hub_is_noticed_within_ten_seconds(python):
    closed = "http://127.0.0.1:9"  # nobody listens there
    with SilentServer() as silent:
        for url in (closed, silent.url):
            seconds, kind, sentence = find(python, url, RERANKER)
            assert kind == "ConnectionError" and seconds < 10
            assert RERANKER in sentence and "RERANK_PROFILE=offline" in sentence


def test_the_command_names_the_offline_profile_where_there_is_no_hub(python):
    with SilentServer() as silent:
        started = time.perf_counter()
        done = python(silent.url, *PIPELINE)
        assert time.perf_counter() - started < 30  # imports included
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: The data set 'namespace-Pt/msmarco'")
    assert "offline profile" in done.stderr and "Traceback" not in done.stderr


def test_one_address_after_the_other_does_not_add_up():
    started = time.perf_counter()
    with pytest.raises(TimeoutError):
        download._within(0.2, lambda: time.sleep(5))
    assert time.perf_counter() - started < 2
    with pytest.raises(ZeroDivisionError):
        download._within(1, lambda: 1 / 0)
    assert download._within(1, lambda: "answer") == "answer"


BEIR = """
import sys
from rerank_utils.loaders import load_beir, stream_corpus
try:
    found = load_beir(sys.argv[1])
    print(found.card())
    print(sum(len(ids) for ids, _ in stream_corpus(sys.argv[1], 2)))
except Exception as error:
    print(f"{type(error).__name__}|{error}")
"""


@pytest.fixture
def scifact(hub, tmp_path):
    """A set of BEIR in the layout of the hub; one document is empty, one query has no answer."""
    import datasets

    corpus = {
        "_id": ["1", "2", "3"],
        "title": ["Apple", "", ""],
        "text": ["It grows on trees.", "Carrots are roots.", " "],
    }
    queries = {"_id": ["7", "8", "9"], "title": [""] * 3, "text": ["trees", "roots", "bread"]}
    folder = tmp_path / "scifact"
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / name).mkdir(parents=True)
        table = datasets.Dataset.from_dict(rows)
        table.to_parquet(folder / name / f"{name}-00000-of-00001.parquet")
    hub.add_folder("datasets", "BeIR/scifact", folder)
    header = "query-id\tcorpus-id\tscore\n"
    hub.repositories["datasets", "BeIR/scifact-qrels"] = {
        "train.tsv": f"{header}7\t1\t1\n".encode(),
        "test.tsv": f"{header}8\t2\t1\n9\t3\t1\n".encode(),
        "README.md": b"A card.",
    }
    return folder


def test_a_beir_set_by_name(scifact, served, python):
    done = python(served.url, "-c", BEIR, "scifact")
    assert done.returncode == 0, done.stderr
    assert "Collection scifact" in done.stdout and "documents       2" in done.stdout
    assert done.stdout.strip().endswith("2")  # the stream gives every document that has a text
    assert "Left out of scifact: 1 documents without text, 1 judgments of" in done.stderr
    assert "and 1 queries that have no other" in done.stderr


def test_a_gated_data_set_says_where_its_terms_are(scifact, hub, served, python):
    hub.gated.add("BeIR/scifact-qrels")
    done = python(served.url, "-c", BEIR, "scifact")
    assert "PermissionError|The data set 'BeIR/scifact-qrels' is gated" in done.stdout
    assert f"{served.url}/datasets/BeIR/scifact-qrels, then log in" in done.stdout


def test_a_beir_set_of_another_kind_is_named(scifact, hub, served, python):
    import datasets

    file = "corpus/corpus-00000-of-00001.parquet"
    datasets.Dataset.from_dict({"docno": ["1"], "body": ["x"]}).to_parquet(scifact / file)
    hub.add_folder("datasets", "BeIR/scifact", scifact)
    done = python(served.url, "-c", BEIR, "scifact")
    kind, sentence = done.stdout.strip().split("|")
    assert kind == "ValueError"
    assert "'BeIR/scifact' has no column _id, text but docno, body" in sentence
    del hub.repositories["datasets", "BeIR/scifact-qrels"]["test.tsv"]
    del hub.repositories["datasets", "BeIR/scifact-qrels"]["train.tsv"]
    done = python(served.url, "-c", BEIR, "scifact", HF_HOME=str(scifact / "other-home"))
    assert "has no file '*.tsv': its layout has changed" in done.stdout


def test_the_server_answers_as_the_hub_does(hub, served):
    import urllib.request

    def get(path, **headers):
        request = urllib.request.Request(served.url + path, headers=headers)
        with urllib.request.urlopen(request) as answer:
            return answer.read()

    listed = json.loads(get(f"/api/models/{EMBEDDER}/tree/main?recursive=True"))
    kinds = {entry["path"]: entry["type"] for entry in listed}
    assert kinds["onnx"] == "directory" and kinds["onnx/model.onnx"] == "file"
    weights = hub.repositories["models", EMBEDDER]["model.safetensors"]
    part = get(f"/{EMBEDDER}/resolve/main/model.safetensors", Range="bytes=10-19")
    assert part == weights[10:20]


def test_a_name_that_is_none_and_a_clone_without_weights_are_told(tiny_reranker_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no name that the hub could know"):
        find_model("models/reranker (v2)")
    folder = tmp_path / "clone"
    shutil.copytree(tiny_reranker_folder, folder)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid")
    with pytest.raises(FileNotFoundError, match="git lfs pull"):
        find_model(folder)

"""Corpora larger than memory: read, embedded and indexed batch by batch."""

import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import write_lines

from rerank_utils.batching import TruncationWarning
from rerank_utils.embedding import embed_documents, load_embedder
from rerank_utils.indexing import build_index, build_index_from
from rerank_utils.loaders import load_beir, stream_corpus
from rerank_utils.pipeline import embed_stream, index_corpus
from rerank_utils.profiles import get_profile

ROOT = Path(__file__).parent.parent


def test_the_stream_gives_what_the_loader_holds(beir_folder, tmp_path):
    documents = load_beir(beir_folder).documents
    batches = list(stream_corpus(beir_folder, batch_size=3))
    assert [len(ids) for ids, _ in batches] == [3, 1]
    pairs = [pair for ids, texts in batches for pair in zip(ids, texts, strict=True)]
    assert pairs == list(documents.items())

    packed = tmp_path / "corpus.jsonl.gz"
    packed.write_bytes(gzip.compress((beir_folder / "corpus.jsonl").read_bytes()))
    records = [json.loads(line) for line in (beir_folder / "corpus.jsonl").open()]
    for source in (beir_folder / "corpus.jsonl", packed, iter(records)):
        assert list(stream_corpus(source, batch_size=3)) == batches


def test_the_stream_names_what_is_wrong(beir_folder, tmp_path):
    with pytest.raises(ValueError, match="batch_size is 0"):
        stream_corpus(beir_folder, batch_size=0)
    with pytest.raises(FileNotFoundError, match=r"none.jsonl is missing"):
        next(stream_corpus(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match=r'record 2: expected {"_id"'):
        list(stream_corpus([{"_id": "d1", "text": "x"}, {"id": "d2", "text": "x"}]))
    write_lines(tmp_path / "c.jsonl", [{"_id": "d1", "text": "x"}, {"_id": "", "text": "x"}])
    with pytest.raises(ValueError, match=r"c.jsonl, line 2 has the id ''"):
        list(stream_corpus(tmp_path / "c.jsonl"))
    with pytest.raises(ValueError, match=r"record 1 has the id 'd 1'.*no white space"):
        list(stream_corpus([{"_id": "d 1", "text": "x"}]))


def test_documents_without_text_get_no_vector():
    records = [{"_id": f"d{i}", "text": "x" * (i % 2)} for i in range(4)]
    with pytest.warns(UserWarning, match="2 documents without text were left out"):
        assert list(stream_corpus(records, batch_size=1)) == [(["d1"], ["x"]), (["d3"], ["x"])]


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat"])
def test_an_index_from_parts_is_the_index_of_the_whole(factory):
    random = np.random.default_rng(0)
    vectors = random.standard_normal((500, 16)).astype(np.float32)
    ids = [f"d{i}" for i in range(500)]
    parts = [(ids[i : i + 64], vectors[i : i + 64]) for i in range(0, 500, 64)]
    whole = build_index(vectors, ids, factory)
    pieces = build_index_from(parts, factory, train_size=500)
    queries = random.standard_normal((5, 16)).astype(np.float32)
    one, other = (index.search(list("abcde"), queries, 10) for index in (whole, pieces))
    assert (one.doc_ids == other.doc_ids).all()
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-6)
    early = build_index_from(parts, factory, train_size=200)  # trained on the first parts only
    assert early.faiss_index.ntotal == 500 and early.doc_ids == ids


def test_parts_that_make_no_index_are_refused():
    part = (["d1"], np.ones((1, 4), np.float32))
    with pytest.raises(ValueError, match="parts is empty"):
        build_index_from([])
    with pytest.raises(ValueError, match="parts hold a document id twice"):
        build_index_from([part, part])
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        build_index_from([(["d1"], np.full((1, 4), np.nan))])


def test_an_interrupted_stream_goes_on(tmp_path):
    asked = []

    def embed(texts):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(texts)
        return np.ones((len(texts), 4), np.float32)

    batches = [([f"d{i}"], [f"text {i}"]) for i in range(3)]
    with pytest.raises(KeyboardInterrupt):
        list(embed_stream(batches, embed, tmp_path))
    again = [["text 2"]]
    found = list(embed_stream(batches, lambda t: again.remove(t) or np.ones((1, 4)), tmp_path))
    assert [ids for ids, _ in found] == [["d0"], ["d1"], ["d2"]] and not again


def test_a_profiles_embedder_indexes_a_stream(beir_folder, tmp_path):
    profile = get_profile(f"beir:{beir_folder}")
    index = index_corpus(profile, stream_corpus(beir_folder, 3), tmp_path)
    documents = load_beir(beir_folder).documents
    from rerank_utils.profiles import locate

    embedder = load_embedder(locate(profile.embedder), profile.pooling, None, 256)
    vectors = embed_documents(embedder, list(documents.values()))
    assert index.doc_ids == list(documents)
    stored = index.faiss_index.reconstruct_n(0, len(documents))
    np.testing.assert_allclose(stored, vectors, atol=1e-5)
    batches = [([str(i)], ["word " * length]) for i, length in enumerate((3, 20, 30))]
    with pytest.warns(
        TruncationWarning, match="In 2 batches some documents are longer than the 16"
    ):
        index_corpus(replace(profile, embedder_length=16), batches, tmp_path)


MEASURE = """
import json, resource, sys
from pathlib import Path
import faiss, numpy as np
from rerank_utils.indexing import build_index_from
from rerank_utils.loaders import stream_corpus
from rerank_utils.pipeline import embed_stream

WIDTH, WORDS = 64, "some words of a passage that is long enough to be seen in memory " * 150

def corpus(count):
    for i in range(count):
        yield json.dumps({"_id": f"d{i}", "text": f"{i} {WORDS}"}) + "\\n"

def embed(texts):
    seeds = [int(text.split(" ", 1)[0]) for text in texts]
    return np.stack([np.random.default_rng(s).standard_normal(WIDTH) for s in seeds]).astype("f4")

count, folder = int(sys.argv[1]), Path(sys.argv[2])
with (folder / "corpus.jsonl").open("w") as stream:
    stream.writelines(corpus(count))
size = (folder / "corpus.jsonl").stat().st_size
parts = embed_stream(stream_corpus(folder / "corpus.jsonl", 500), embed, folder / "store")
index = build_index_from(parts)
assert index.faiss_index.ntotal == count
unit = 1 if sys.platform == "darwin" else 1024
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
print(json.dumps({"peak": peak, "corpus": size, "vectors": count * WIDTH * 4}))
"""


def peak_memory(count: int, folder: Path) -> dict:
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE, str(count), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    (folder / "corpus.jsonl").unlink()
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read from the system's counter")
def test_memory_grows_with_the_vectors_and_not_with_the_texts(tmp_path):
    small, large = peak_memory(1_000, tmp_path / "small"), peak_memory(30_000, tmp_path / "large")
    grown = large["peak"] - small["peak"]
    assert large["corpus"] - small["corpus"] > 250e6  # bytes of text more
    # twice the vectors, when FAISS copies a growing index, and an id and its place for each
    allowed = 3 * (large["vectors"] - small["vectors"]) + 200 * 29_000 + 20e6
    assert grown < allowed < 55e6, f"{grown / 1e6:.0f} MB more for {large['corpus'] / 1e6:.0f} MB"

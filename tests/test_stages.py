"""Embedding, indexing, reranking and fusion against what they stand for."""

import json
import os
import shutil
import warnings
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
import tqdm
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from rerank_utils import embedding
from rerank_utils.batching import TruncationWarning, token_batches
from rerank_utils.bundled import minilm_path, reranker_path
from rerank_utils.cwe import load_cwe
from rerank_utils.embedding import embed_documents, embed_queries, load_embedder
from rerank_utils.encoder import FirstTokenScorer
from rerank_utils.engines import DTYPES
from rerank_utils.fusion import interpolate
from rerank_utils.hub import fingerprint
from rerank_utils.indexing import DenseIndex, build_index
from rerank_utils.pipeline import score_cache
from rerank_utils.profiles import Profile
from rerank_utils.reranking import ScoreCache, load_reranker, rerank, score_pairs
from rerank_utils.run import Run
from rerank_utils.tiny import build_tiny


@pytest.fixture(scope="module")
def collection():
    return load_cwe().split("dev", 12)


@pytest.fixture(scope="module")
def texts(collection):
    return list(collection.documents.values())[:40]


@pytest.fixture(scope="module")
def embedder():
    return load_embedder(minilm_path(), pooling="mean", max_length=256, device="cpu")


@pytest.fixture(scope="module")
def reranker(tiny_reranker_folder):
    return load_reranker(tiny_reranker_folder, max_length=128, device="cpu")


# Embedding --------------------------------------------------------------------------------


def test_vectors_agree_with_sentence_transformers(embedder, texts):
    from sentence_transformers import SentenceTransformer

    oracle = SentenceTransformer(str(minilm_path()), device="cpu")
    oracle.max_seq_length = 256
    theirs = oracle.encode(texts, normalize_embeddings=True)
    ours = embed_documents(embedder, texts)
    assert ours.dtype == np.float32 and ours.shape == (40, 384)
    assert (ours * theirs).sum(1).min() >= 0.9999


def test_vectors_are_those_of_flagmodel(embedder, texts):
    np.testing.assert_allclose(embed_documents(embedder, texts), embedder.encode(texts), atol=1e-5)


def test_a_pooling_the_model_was_not_made_for_is_said():
    with pytest.warns(UserWarning, match="not made for 'cls' pooling"):
        load_embedder(minilm_path(), "cls", device="cpu")


def test_the_pooling_that_sentence_transformers_writes_today_is_read(tiny, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny("bert-embedder"), folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    with pytest.warns(UserWarning, match="not made for 'cls' pooling"):
        load_embedder(folder, "cls", device="cpu", max_length=32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_embedder(folder, "mean", device="cpu", max_length=32)


def test_a_decoder_is_no_embedder_here(tiny, tmp_path):
    """It would be pooled at a padding token, and which one depends on the batch."""
    folder = tmp_path / "decoder"
    gemma = AutoModel.from_pretrained(tiny("gemma-reranker"))
    gemma.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny("gemma-reranker"), padding_side="left").save_pretrained(
        folder
    )
    with pytest.raises(ValueError, match=r"\(GemmaModel\) is a decoder"):
        load_embedder(folder, "cls", device="cpu", max_length=32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_checkpoint_in_half_precision_computes_in_single_on_a_cpu(tiny, tmp_path, dtype):
    for kind, load in (("bert-reranker", load_reranker), ("bert-embedder", load_embedder)):
        folder = tmp_path / kind
        shutil.copytree(tiny(kind), folder)
        weights = load_file(folder / "model.safetensors")
        halves = {name: value.to(getattr(torch, dtype)) for name, value in weights.items()}
        save_file(halves, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"dtype": dtype}))
        assert load(folder, max_length=32, device="cpu").model.dtype == torch.float32


def test_texts_of_any_kind_of_list_keep_their_order(embedder, texts, tmp_path):
    class Labelled(list):
        """As a pandas Series: read by position, but taken by label."""

        def __getitem__(self, label):
            return list(self)[-1 - label]

    whole = embed_documents(embedder, texts[:4])
    kept = embed_documents(embedder, Labelled(texts[:4]), tmp_path / "v.npy")
    np.testing.assert_allclose(kept, whole, atol=1e-5)
    np.testing.assert_allclose(embed_documents(embedder, iter(texts[:4])), whole, atol=1e-5)


def test_a_corpus_is_tokenized_part_by_part(embedder, texts, monkeypatch):
    whole = embed_documents(embedder, texts)
    monkeypatch.setattr(embedding, "_PART", 7)
    np.testing.assert_allclose(embed_documents(embedder, texts), whole, atol=1e-5)


def test_a_vector_that_is_no_number_names_its_text_and_the_rest_is_kept(
    embedder, texts, tmp_path, monkeypatch
):
    store, pool = tmp_path / "v.npy", embedder.pooling
    embed_documents(embedder, texts[:5], store)
    table = np.lib.format.open_memmap(store, mode="r+")
    table[[1, 4]] = [[np.nan], [np.inf]]  # as if these two were not computed yet
    table.flush()
    bad = embed_documents(embedder, texts[4:5])[0]

    def broken(*arguments):
        found = pool(*arguments)
        close = torch.nn.functional.normalize(found, dim=-1) @ torch.tensor(bad) > 0.999
        return torch.where(close[:, None], torch.nan, found)

    with monkeypatch.context() as patch:
        patch.setattr(embedder, "pooling", broken)
        with pytest.raises(ValueError, match=r"texts\[4\] holds NaN or infinity"):
            embed_documents(embedder, texts[:5], store)
    whole = embed_documents(embedder, texts[:5])
    np.testing.assert_allclose(embed_documents(embedder, texts[:5], store), whole, atol=1e-5)


def test_texts_longer_than_the_window_are_counted(tmp_path):
    # room for 14 words and the two marks of the tokenizer
    embedder = load_embedder(minilm_path(), "mean", "Find: ", 16, "cpu")
    texts = ["one " * length for length in (11, 12, 14, 15, 200)]
    said = "are longer than the 16 tokens that are embedded"
    with pytest.warns(TruncationWarning, match=f"2 of 5 documents {said}"):
        embed_documents(embedder, texts, tmp_path / "v.npy")
    with pytest.warns(
        TruncationWarning, match=f"3 of 5 queries {said}"
    ):  # the instruction has two tokens
        embed_queries(embedder, texts)
    with warnings.catch_warnings(action="error"):
        embed_documents(embedder, texts[:3])
        embed_documents(embedder, texts, tmp_path / "v.npy")  # three are made again, and compared


def test_the_instruction_goes_before_queries_only(texts):
    embedder = load_embedder(minilm_path(), "mean", "Find this: ", 256, "cpu")
    asked = embed_queries(embedder, texts[:5])
    np.testing.assert_allclose(asked, embedder.encode_queries(texts[:5]), atol=1e-5)
    np.testing.assert_allclose(
        asked, embed_documents(embedder, [f"Find this: {text}" for text in texts[:5]]), atol=1e-5
    )


def test_an_interrupted_embedding_goes_on(embedder, texts, tmp_path, monkeypatch):
    store = tmp_path / "vectors.npy"
    whole = embed_documents(embedder, texts)
    calls = []
    pool = embedder.pooling

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return pool(*arguments)

    monkeypatch.setattr(embedder, "pooling", failing)
    with pytest.raises(KeyboardInterrupt):
        embed_documents(embedder, texts, store)
    done = (~np.isnan(np.load(store)).any(1)).sum()
    assert 0 < done < len(texts)
    np.testing.assert_allclose(embed_documents(embedder, texts, store), whole, atol=1e-5)
    before = len(calls)
    embed_documents(embedder, texts, store)
    assert len(calls) == before + 1  # three of the vectors are compared, no other is made again


def test_a_store_of_another_shape_is_refused(embedder, texts, tmp_path):
    embed_documents(embedder, texts[:2], tmp_path / "v.npy")
    with pytest.raises(ValueError, match="delete it"):
        embed_documents(embedder, texts[:3], tmp_path / "v.npy")


def test_a_store_of_another_model_or_of_other_texts_is_refused(embedder, texts, tmp_path):
    texts = ["a", texts[0], "b", texts[1], "c", *texts[2:]]  # the longest tell of another window
    store = tmp_path / "v.npy"
    embed_documents(embedder, texts[:5], store)
    other = load_embedder(minilm_path(), "cls", None, 256, "cpu")
    short = load_embedder(minilm_path(), "mean", None, 64, "cpu")
    for model, asked in (
        (embedder, texts[5:10]),
        (embedder, texts[4::-1]),
        (other, texts[:5]),
        (short, texts[:5]),
    ):
        before = store.read_bytes()
        with pytest.raises(ValueError, match="another model or window, or of other texts: delete"):
            embed_documents(model, asked, store)
        assert store.read_bytes() == before


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cuda:x", "meta"])
def test_a_device_that_is_not_here_is_refused(device):
    for load in (
        lambda: load_embedder(minilm_path(), "mean", device=device),
        lambda: load_reranker(reranker_path(), 128, device),
    ):
        with pytest.raises(ValueError, match=f"device is '{device}': this machine has cpu"):
            load()


def test_who_switches_bars_off_gets_none(embedder, monkeypatch):
    """tqdm reads TQDM_DISABLE itself, unless it is told anything."""
    told, bar = [], tqdm.tqdm
    monkeypatch.setattr(tqdm, "tqdm", lambda **given: told.append(given) or bar(**given))
    embed_documents(embedder, ["a text"])
    embed_documents(embedder, ["a text"], show_progress=False)
    assert "disable" not in told[0] and told[1]["disable"] is True


def test_bad_input_to_the_embedder_is_named(embedder):
    assert embed_documents(embedder, []).shape == (0, 384)
    with pytest.raises(TypeError, match=r"texts\[1\] is NoneType"):
        embed_documents(embedder, ["a", None])
    for embed in (embed_documents, embed_queries):
        with pytest.raises(TypeError, match=r"texts is one string, .* give \[texts\]"):
            embed(embedder, "buffer overflow")
        with pytest.raises(ValueError, match=r"texts\[1\] holds half a character"):
            embed(embedder, ["a", "\ud83d"])
        for texts in ({"CWE-121": "buffer overflow"}, {"buffer overflow"}):
            with pytest.raises(TypeError, match=r"texts is a (dict|set), expected a list"):
                embed(embedder, texts)
        assert len(embed(embedder, {"buffer overflow": 1}.keys())) == 1  # in order, and meant
    with pytest.raises(ValueError, match="Unknown pooling 'max'"):
        load_embedder(minilm_path(), pooling="max")


@given(st.lists(st.integers(0, 300), max_size=80), st.integers(1, 600))
def test_batches_hold_every_text_once_and_keep_the_budget(lengths, budget):
    batches = token_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


# Indexing ---------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30))
def test_flat_search_is_brute_force(seed, k):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(30, 8)).astype(np.float32)
    queries = rng.normal(size=(4, 8)).astype(np.float32)
    ids = [f"d{i}" for i in range(30)]
    run = build_index(vectors, ids).search(["a", "b", "c", "d"], queries, k)
    exact = queries @ vectors.T
    for row, (_, documents, scores) in enumerate(run):
        assert documents.tolist() == [ids[i] for i in np.argsort(-exact[row])[:k]]
        np.testing.assert_allclose(scores, np.sort(exact[row])[::-1][:k], rtol=1e-5, atol=1e-5)


def test_an_index_survives_the_disk(tmp_path):
    vectors = np.eye(4, dtype=np.float32)
    index = build_index(vectors, list("abcd"))
    index.save(tmp_path / "index")
    loaded = DenseIndex.load(tmp_path / "index")
    assert loaded.search(["q"], vectors[2:3], 1).top("q") == [("c", 1.0)]
    (tmp_path / "index" / "doc_ids.json").write_text('["a"]')
    with pytest.raises(ValueError, match="4 vectors, but 1 document ids"):
        DenseIndex.load(tmp_path / "index")
    with pytest.raises(FileNotFoundError, match=r"holds no index.faiss"):
        DenseIndex.load(tmp_path)


def test_an_index_that_is_saved_halfway_leaves_the_one_before(tmp_path, monkeypatch):
    vectors = np.eye(3, dtype=np.float32)
    build_index(vectors, ["a", "b", "c"]).save(tmp_path)

    def full(self, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=r"could not be saved in .* the one before is kept"):
            build_index(vectors, ["c", "b", "a"]).save(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(faiss, "write_index", lambda *given: full(*given))
        with pytest.raises(OSError, match=r"could not be saved in .* the one before is kept"):
            build_index(vectors, ["c", "b", "a"]).save(tmp_path)
    found = DenseIndex.load(tmp_path).search(["q"], vectors[:1], 1)
    assert found.top("q", 1) == [("a", 1.0)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["doc_ids.json", "index.faiss"]
    with monkeypatch.context() as patch:  # between the two files: old ids are not taken for new
        patch.setattr(Path, "replace", lambda self, target: full(self, b""))
        with pytest.raises(OSError, match=r"could not be saved in .* there is none now"):
            build_index(vectors, ["c", "b", "a"]).save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no doc_ids.json"):
        DenseIndex.load(tmp_path)
    build_index(vectors, ["c", "b", "a"]).save(tmp_path)
    index = tmp_path / "index.faiss"
    index.write_bytes(index.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"index.faiss is damaged"):
        DenseIndex.load(tmp_path)


def test_an_index_that_cannot_be_searched_is_refused():
    vectors = np.eye(8, dtype=np.float32)
    with pytest.raises(TypeError, match=r"doc_ids\[0\] is int"):
        build_index(vectors, range(8))
    distances = faiss.IndexFlatL2(8)
    distances.add(vectors)
    with pytest.raises(ValueError, match="measures a distance"):
        DenseIndex(distances, list("abcdefgh"))
    with pytest.raises(ValueError, match="holds 0 vectors, but there are 1 document ids"):
        DenseIndex(faiss.IndexFlatIP(8), ["a"])
    for factory in ("flat", "IVF64,Flat", "LSH,"):
        with pytest.raises(ValueError, match=rf"factory '{factory}' does not work for"):
            build_index(vectors, list("abcdefgh"), factory)


def test_faiss_minus_one_never_becomes_a_document():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(64, 8)).astype(np.float32)
    ids = [f"d{i}" for i in range(64)]
    index = build_index(vectors, ids, "IVF16,Flat")  # looks into one of 16 cells: finds few
    raw = index.faiss_index.search(vectors[:1], 40)[1][0]
    assert (raw == -1).any()
    found = index.search(["q"], vectors[:1], 40).top("q", 40)
    assert len(found) == (raw >= 0).sum()
    assert {document for document, _ in found} == {ids[i] for i in raw if i >= 0}


@pytest.mark.parametrize(
    ("vectors", "ids", "sentence"),
    [
        (np.zeros((0, 3)), [], "vectors is empty"),
        (np.eye(2), ["a", "a"], "an id twice"),
        (np.eye(2), ["a"], r"shape \(2, 2\), expected \(1, d\)"),
        (np.array([[1.0, np.nan]]), ["a"], r"vectors\[0\] holds NaN"),
    ],
)
def test_what_cannot_be_indexed_is_refused(vectors, ids, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_index(vectors, ids)


def test_a_search_that_cannot_be_is_refused():
    index = build_index(np.eye(3), ["a", "b", "c"])
    with pytest.raises(ValueError, match="k is 4, but the index holds 3 documents"):
        index.search(["q"], np.ones((1, 3)), 4)
    with pytest.raises(ValueError, match="2 dimensions, the index 3"):
        index.search(["q"], np.ones((1, 2)), 1)
    with pytest.raises(ValueError, match=r"query_vectors\[0\] holds NaN"):
        index.search(["q"], np.full((1, 3), np.nan), 1)


# Reranking --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs(collection, texts):
    queries = list(collection.queries.values())
    long = " ".join(["overflow"] * 300)
    pairs = [(query, text) for query in queries[:4] for text in texts]
    return [*pairs, (long, texts[0]), (queries[0], long), ("?!", 'naïve "quoted" don\'t ')]


@pytest.mark.parametrize("layout", ["tiny_reranker_folder", "tiny_xlmr_folder"])
def test_scores_are_those_of_compute_score(layout, pairs, request):
    """BERT, as the packaged reranker, and XLM-RoBERTa, as the BGE rerankers."""
    reranker = load_reranker(request.getfixturevalue(layout), max_length=128, device="cpu")
    theirs = reranker.compute_score([list(pair) for pair in pairs], batch_size=8)
    assert np.std(theirs) > 0.01
    np.testing.assert_allclose(score_pairs(reranker, pairs), theirs, atol=1e-4)


def test_scores_do_not_depend_on_the_company(reranker, pairs):
    whole = score_pairs(reranker, pairs)
    alone = [score_pairs(reranker, [pair])[0] for pair in pairs[:5]]
    np.testing.assert_allclose(whole[:5], alone, atol=1e-5)


def test_bad_pairs_are_named(reranker):
    assert score_pairs(reranker, []).shape == (0,)
    with pytest.raises(TypeError, match=r"documents\[1\] is float"):
        score_pairs(reranker, [("a", "b"), ("a", 3.0)])


def test_a_score_that_is_no_number_names_its_pair(tiny_reranker_folder, tmp_path):
    broken = load_reranker(tiny_reranker_folder, device="cpu")
    broken.model.classifier.bias.data.fill_(float("nan"))
    for cache in (None, ScoreCache(tmp_path / "scores.txt")):
        with pytest.raises(ValueError, match="'what' and document 'this' is not a finite"):
            score_pairs(broken, [("what", "this")], cache)
    assert not (tmp_path / "scores.txt").exists()


def test_pairs_are_pairs(reranker, tmp_path):
    """FlagReranker's own form, lists, will do, with a cache too."""
    expected = score_pairs(reranker, [("a b", "c d")])
    cache = ScoreCache(tmp_path / "scores.txt")
    np.testing.assert_array_equal(score_pairs(reranker, [["a b", "c d"]], cache), expected)
    for wrong in (("ab", "cd"), ["query", "document"], [("a", "b", "c")]):
        with pytest.raises(TypeError, match=r"pairs\[0\] is .*, expected a query and a document"):
            score_pairs(reranker, wrong)


def test_kept_scores_survive_other_processes_and_half_a_line(tmp_path):
    path = tmp_path / "scores.txt"
    pairs = [("a", "b"), ("c", "d"), ("a\0b", "c"), ("a", "b\0c")]
    ScoreCache(path).add(pairs[:1], np.array([0.25]))
    with path.open("ab") as stream:
        stream.write(b"0123456789abcdef0123456789abcdef 1.2")  # killed here
    second, third = ScoreCache(path), ScoreCache(path)
    second.add(pairs[1:2], np.array([-1e-7]))
    third.add(pairs[2:], np.array([3.0, 4.0]))
    found = ScoreCache(path)
    assert [found[pair] for pair in pairs] == [0.25, -1e-7, 3.0, 4.0]
    assert len(found) == 4
    path.write_text("Dear all,\n")
    with pytest.raises(ValueError, match=r"scores.txt holds no scores"):
        ScoreCache(path)


def test_a_model_is_known_by_its_configuration_and_tokenizer_too(tiny_reranker_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_reranker_folder, folder)
    seen = {fingerprint(folder)}
    for name in ("config.json", "tokenizer_config.json", "model.safetensors"):
        os.utime(folder / name, (1, 1))
        seen.add(fingerprint(folder))
    assert len(seen) == 4


def test_only_the_first_candidates_move(collection, reranker):
    ids = list(collection.documents)[:30]
    queries = list(collection.queries)
    first = Run.from_lists(queries, [ids] * len(queries), [np.linspace(1, 0, 30)] * len(queries))
    again = [
        rerank(first, collection.queries, collection.documents, reranker, depth=10)
        for _ in range(2)
    ]
    assert (again[0].doc_ids == again[1].doc_ids).all()
    for (query, before, _), (_, after, scores) in zip(first, again[0], strict=True):
        assert set(after[:10]) == set(before[:10])
        assert after[10:].tolist() == before[10:].tolist()
        pairs = [[collection.queries[query], collection.documents[d]] for d in after[:10]]
        expected = reranker.compute_score(pairs)
        np.testing.assert_allclose(scores[:10], expected, atol=1e-4)


def test_equal_pairs_are_scored_once_and_an_interrupted_run_goes_on(
    reranker, tmp_path, monkeypatch
):
    pairs = [(f"query {i % 3}", f"document {i % 40} " + "word " * (i % 40)) for i in range(200)]
    seen, forward = [], FirstTokenScorer.forward

    def counting(self, **inputs):
        if len(seen) == 2:
            seen.append(0)
            raise KeyboardInterrupt
        seen.append(len(inputs["input_ids"]))
        return forward(self, **inputs)

    monkeypatch.setattr(FirstTokenScorer, "forward", counting)
    path = tmp_path / "scores.txt"
    with pytest.raises(KeyboardInterrupt):
        score_pairs(reranker, pairs, ScoreCache(path))
    with path.open("a") as stream:
        stream.write("0123456789abcdef0123456789abcdef 1.")  # a line cut short by the interrupt
    scores = score_pairs(reranker, pairs, ScoreCache(path))
    assert sum(seen) == len(set(pairs)) == 120
    assert len(ScoreCache(path)) == 120
    np.testing.assert_array_equal(score_pairs(reranker, pairs, ScoreCache(path)), scores)
    assert sum(seen) == 120
    monkeypatch.undo()
    np.testing.assert_allclose(scores, score_pairs(reranker, pairs), atol=1e-5)


def test_each_backend_and_dtype_has_its_own_scores(tmp_path, tiny_reranker_folder):
    profile = Profile("tiny", load_cwe, "unused", str(tiny_reranker_folder))
    choices = [(backend, dtype) for backend, dtypes in DTYPES.items() for dtype in dtypes]
    paths = [score_cache(profile, tmp_path, *choice).path for choice in choices]
    assert len(set(paths)) == len(choices)
    assert score_cache(profile, tmp_path).path == paths[choices.index(("torch", "auto"))]


@pytest.mark.parametrize("depth", [0, 4])
def test_a_depth_the_run_has_not_is_refused(reranker, depth):
    run = Run.from_lists(["q"], [["a", "b", "c"]], [[3, 2, 1]])
    with pytest.raises(ValueError, match=f"depth is {depth}, but the run holds 3"):
        rerank(run, {"q": "x"}, {"a": "x", "b": "y", "c": "z"}, reranker, depth)


def test_a_candidate_without_text_is_named(reranker):
    run = Run.from_lists(["q"], [["a", "b"]], [[2, 1]])
    with pytest.raises(KeyError, match="document 'b', which has no text"):
        rerank(run, {"q": "x"}, {"a": "x"}, reranker, 2)
    with pytest.raises(TypeError, match="The document 'b' is nan, expected a string"):
        rerank(run, {"q": "x"}, {"a": "x", "b": float("nan")}, reranker, 2)


@pytest.mark.parametrize("length", [-1, 0, 3, 1024])
def test_a_length_the_model_cannot_read_is_refused(tiny_reranker_folder, length):
    sentence = f"max_length is {length}: this model reads from 8 to 512 tokens"
    with pytest.raises(ValueError, match=sentence):
        load_reranker(tiny_reranker_folder, length, "cpu")
    with pytest.raises(ValueError, match=sentence):
        load_embedder(minilm_path(), "mean", max_length=length, device="cpu")


def test_weights_that_were_copied_halfway_are_damaged(tiny_reranker_folder, tmp_path):
    folder = shutil.copytree(tiny_reranker_folder, tmp_path / "halfway")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged .*: copy or fetch it"):
        load_reranker(folder)


def test_positions_of_xlmr_start_after_padding(tiny_xlmr_folder):
    assert load_reranker(tiny_xlmr_folder, 512, "cpu").max_length == 512
    with pytest.raises(ValueError, match="from 8 to 512 tokens"):
        load_reranker(tiny_xlmr_folder, 513, "cpu")


def test_an_embedder_is_no_reranker():
    with pytest.raises(ValueError, match=r"no trained scoring head \(BertModel\)"):
        load_reranker(minilm_path())


def test_a_head_that_is_named_but_not_in_the_weights_is_refused(tiny_reranker_folder, tmp_path):
    import shutil

    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(tiny_reranker_folder, tmp_path / "headless")
    weights = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in weights.items() if not k.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="no trained scoring head"):
        load_reranker(folder)


def test_a_classifier_of_several_classes_is_no_reranker(tmp_path):
    with pytest.raises(ValueError, match="gives 3 numbers"):
        load_reranker(build_tiny("bert-reranker", tmp_path, num_labels=3))


# Fusion -----------------------------------------------------------------------------------


def two_runs():
    first = Run.from_lists(["q"], [["a", "b", "c", "d"]], [[4.0, 3.0, 2.0, 1.0]])
    second = Run.from_lists(["q"], [["c", "b", "a", "d"]], [[9.0, 1.0, 0.0, -5.0]])
    return first, second


def test_the_ends_of_the_mix_are_the_two_orders():
    first, second = two_runs()
    assert interpolate(first, second, 0.0, 3).doc_ids[0].tolist() == ["a", "b", "c", "d"]
    assert interpolate(first, second, 1.0, 3).doc_ids[0].tolist() == ["c", "b", "a", "d"]


def test_the_mix_is_of_standardised_scores():
    first, second = two_runs()
    mixed = dict(interpolate(first, second, 0.25, 3).top("q", 3))
    old = (np.array([4, 3, 2]) - 3) / np.std([4, 3, 2])
    new = (np.array([0, 1, 9]) - 10 / 3) / np.std([0, 1, 9])
    for document, value in zip("abc", 0.75 * old + 0.25 * new, strict=True):
        assert mixed[document] == pytest.approx(value, rel=1e-6)


def test_runs_that_do_not_fit_are_refused():
    first, second = two_runs()
    with pytest.raises(ValueError, match=r"weight is 1.5"):
        interpolate(first, second, 1.5, 3)
    with pytest.raises(ValueError, match="first 2 candidates of query 'q' differ"):
        interpolate(first, second, 0.5, 2)
    other = Run.from_lists(["x"], [["a"]], [[1]])
    with pytest.raises(ValueError, match="different queries"):
        interpolate(first, other, 0.5, 1)

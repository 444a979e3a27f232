"""What notebook 01 teaches by hand is what the helpers and the outside libraries do."""

import faiss
import numpy as np
import pytest
import torch

from rerank_utils.bundled import minilm_path
from rerank_utils.checks import expected_ranges
from rerank_utils.embedding import embed_documents, load_embedder
from rerank_utils.evaluation import evaluate
from rerank_utils.indexing import build_index
from rerank_utils.run import Run

NAME = "01_embedding"
TEXTS = [
    "SQL injection",
    "An out-of-bounds write lets an attacker corrupt the heap of the kernel.",
    "Passwords are stored in a file that every user can read. " * 12,
    "log in without a password",
    "The lock is released twice. " * 70,  # longer than the window of 256 tokens
]


@pytest.fixture(scope="module")
def cells(taught):
    """cells("pooling", "encode", name=value): what these tagged cells define, run in order."""

    def run(*whats, **scope):
        scope |= {"np": np, "torch": torch}
        for what in whats:
            exec(taught(NAME, what), scope)
        return scope

    return run


@pytest.fixture(scope="module")
def embedder():
    return load_embedder(minilm_path(), "mean", None, 256, "cpu")


@pytest.fixture(scope="module")
def encoder(cells, embedder):
    """The notebook's encoder and what it stands on, with the weights of the helper."""
    settings = {"tokenizer": embedder.tokenizer, "model": embedder.model, "device": "cpu"}
    scope = cells("pooling", "normalise", "lengths", window=256, **settings)
    return cells("encode", **{**scope, "pool": scope["mean_pool"]})


def random_hidden():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 9, 16, generator=generator)
    lengths = torch.tensor([9, 1, 4, 7, 2, 9])
    return hidden, (torch.arange(9) < lengths[:, None]).long()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_pooling_is_that_of_flagmodel_and_of_sentence_transformers(cells, pooling):
    from FlagEmbedding import FlagModel
    from sentence_transformers.models import Pooling

    hidden, mask = random_hidden()
    ours = cells("pooling")[f"{pooling}_pool"](hidden, mask)
    model = FlagModel(str(minilm_path()), pooling_method=pooling, use_fp16=False, devices="cpu")
    torch.testing.assert_close(ours, model.pooling(hidden, mask))
    outside = Pooling(16, pooling_mode=pooling)
    theirs = outside({"token_embeddings": hidden, "attention_mask": mask})["sentence_embedding"]
    torch.testing.assert_close(ours, theirs)


def test_pooling_never_sees_what_stands_behind_the_mask(cells):
    hidden, mask = random_hidden()
    other = torch.where(mask.bool().unsqueeze(-1), hidden, torch.tensor(1e6))
    mean_pool = cells("pooling")["mean_pool"]
    torch.testing.assert_close(mean_pool(hidden, mask), mean_pool(other, mask))


@pytest.mark.parametrize("shape", [(7,), (5, 7), (3, 5, 7)])
def test_normalise_is_torchs(cells, shape):
    vectors = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    theirs = torch.nn.functional.normalize(torch.from_numpy(vectors), dim=-1).numpy()
    np.testing.assert_allclose(cells("normalise")["normalise"](vectors), theirs, rtol=1e-5)


def test_the_encoder_is_the_helper_and_sentence_transformers(encoder, embedder):
    """Texts of one word to several windows, so that padding and truncation take part."""
    from sentence_transformers import SentenceTransformer

    ours = encoder["normalise"](encoder["encode"](TEXTS, size=2))
    np.testing.assert_allclose(ours, embed_documents(embedder, TEXTS), atol=1e-5)
    outside = SentenceTransformer(str(minilm_path()), device="cpu")
    assert outside.max_seq_length == 256
    theirs = outside.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_encoder_keeps_the_order_for_every_batch_size(encoder):
    expected = np.concatenate([encoder["encode"]([text]) for text in TEXTS])
    for size in (1, 2, 16):
        np.testing.assert_allclose(encoder["encode"](TEXTS, size=size), expected, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 4, 16])
def test_padding_share_is_what_the_tokenizer_pads(cells, embedder, size):
    tokenizer, filler, total = embedder.tokenizer, 0, 0
    for start in range(0, len(TEXTS), size):
        batch = tokenizer(TEXTS[start : start + size], padding=True, return_tensors="np")
        filler += int((batch["attention_mask"] == 0).sum())
        total += batch["attention_mask"].size
    lengths = np.array([len(ids) for ids in tokenizer(TEXTS).input_ids])
    assert cells("padding")["padding_share"](lengths, size) == pytest.approx(filler / total)


def test_ranking_and_recall_are_those_of_faiss_and_of_the_helper(cells):
    rng = np.random.default_rng(0)
    documents, queries = (rng.normal(size=(n, 8)).astype(np.float32) for n in (200, 30))
    relevant = [set(rng.permutation(200)[: rng.integers(1, 6)].tolist()) for _ in queries]
    scope = cells("recall", relevant=relevant)
    rows = scope["top_rows"](queries, documents, 10)

    index = faiss.IndexFlatIP(8)
    index.add(documents)
    np.testing.assert_array_equal(rows, index.search(queries, 10)[1])
    run = Run.from_lists(
        [f"q{i}" for i in range(30)],
        [[f"d{d}" for d in row] for row in rows],
        [range(10, 0, -1)] * 30,
    )
    qrels = {f"q{i}": {f"d{d}": 1 for d in wanted} for i, wanted in enumerate(relevant)}
    assert scope["recall"](rows) == pytest.approx(evaluate(run, qrels, ["R@10"]).mean("R@10"))


def test_the_plane_is_that_of_sklearn(cells):
    from sklearn.decomposition import PCA

    points = np.random.default_rng(0).normal(size=(40, 6)) * [5, 3, 1, 1, 0.5, 0.1] + 7
    centre, directions, share = cells("plane")["plane"](points)
    theirs = PCA(2).fit(points)
    np.testing.assert_allclose(centre, theirs.mean_)
    np.testing.assert_allclose(np.abs(directions @ theirs.components_.T), np.eye(2), atol=1e-9)
    assert share == pytest.approx(theirs.explained_variance_ratio_.sum())


def test_search_finds_what_the_index_finds(encoder, cells, embedder):
    document_vectors = embed_documents(embedder, TEXTS)
    scope = cells(
        "search",
        **{**encoder, "instruction": "", "document_vectors": document_vectors, "names": TEXTS},
    )
    question = "credentials readable by everybody"
    vector = encoder["normalise"](encoder["encode"]([question]))
    run = build_index(document_vectors, [f"d{i}" for i in range(len(TEXTS))]).search(
        ["q"], vector, 3
    )
    found = scope["search"](question, k=3)
    assert [TEXTS.index(name) for _, name in found] == [int(d[1:]) for d, _ in run.top("q")]
    assert [score for score, _ in found] == pytest.approx(
        [score for _, score in run.top("q")], abs=1e-5
    )


def ranges():
    return expected_ranges("offline", NAME)


def test_the_ranges_hold_what_the_notebook_says():
    """Each mistake costs recall, whatever values within the ranges a machine finds."""
    for mistake in ("wrong pooling", "BGE's instruction", "not normalised"):
        assert ranges()["R@10"][0] > ranges()[f"R@10, {mistake}"][1]
    assert ranges()["filler, sorted"][1] < ranges()["filler, as it comes"][0] / 5
    assert ranges()["fp16 error x 1000"][1] < ranges()["bf16 error x 1000"][0]

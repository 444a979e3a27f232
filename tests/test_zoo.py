"""Every model of the table, by name, on a tiny model of its architecture; and what is refused."""

import json
import shutil

import numpy as np
import pytest

from rerank_utils import embedding, reranking, zoo
from rerank_utils.embedding import embed_documents, embed_queries, load_embedder
from rerank_utils.indexing import build_index
from rerank_utils.pairs import TruncationWarning
from rerank_utils.reranking import ScoreCache, load_reranker, rerank, score_pairs
from rerank_utils.tiny import KINDS, build_tiny
from rerank_utils.zoo import MODELS

KIND = {
    "BertModel": "bert-embedder",
    "XLMRobertaModel": "bge-m3",
    "XLMRobertaForSequenceClassification": "xlm-roberta-reranker",
    "GemmaForCausalLM": "gemma-reranker",
}
CLASSES = {
    "bert-embedder": "FlagModel",
    "xlm-roberta-embedder": "FlagModel",
    "bge-m3": "BGEM3FlagModel",
    "bert-reranker": "FlagReranker",
    "xlm-roberta-reranker": "FlagReranker",
    "gemma-reranker": "FlagLLMReranker",
}
RUNNING = [model for model in MODELS if model.runs]
EMBEDDERS = [model.name for model in RUNNING if model.kind == "embedder"]
RERANKERS = [model.name for model in RUNNING if model.kind == "reranker"]
BROKEN = [model for model in MODELS if not model.runs]
DOCUMENTS = {f"d{i}": f"the login form reads field {i} " + "of a buffer " * i for i in range(12)}
QUERIES = {"a": "buffer overflow", "b": "what does the login form read", "c": "naïve ☃"}


@pytest.fixture
def hub_of_tiny(tiny, monkeypatch):
    """Every name of the table is found, as a tiny model of its architecture."""

    def find(name):
        return str(tiny(KIND[zoo.find(name).architecture]) if zoo.row(name) else name)

    monkeypatch.setattr(embedding, "find_model", find)
    monkeypatch.setattr(reranking, "find_model", find)


# Names of the table -----------------------------------------------------------------------


@pytest.mark.parametrize("name", EMBEDDERS)
def test_an_embedder_loads_by_name_and_ranks(name, hub_of_tiny):
    model = zoo.find(name)
    embedder = load_embedder(name, device="cpu")
    assert type(embedder) is flag_class(model)
    assert embedder.passage_max_length == embedder.query_max_length == model.usual_length
    assert embedder.pooling_method == model.pooling
    assert embedder.query_instruction_for_retrieval == model.instruction
    assert not embedder.use_fp16 and embedder.target_devices == ["cpu"]
    texts = list(DOCUMENTS.values())
    index = build_index(embed_documents(embedder, texts), list(DOCUMENTS))
    run = index.search(list(QUERIES), embed_queries(embedder, list(QUERIES.values())), 5)
    vectors = dense(embedder.encode(texts)) @ dense(embedder.encode_queries([QUERIES["a"]])).T
    assert run.doc_ids[0].tolist() == [f"d{i}" for i in np.argsort(-vectors[:, 0])[:5]]


@pytest.mark.parametrize("name", RERANKERS)
def test_a_reranker_loads_by_name_and_ranks(name, hub_of_tiny, first_stage):
    model = zoo.find(name)
    reranker = load_reranker(name, device="cpu")
    assert type(reranker) is flag_class(model)
    assert reranker.max_length == model.usual_length
    assert not reranker.use_fp16 and reranker.target_devices == ["cpu"]
    run = rerank(first_stage, QUERIES, DOCUMENTS, reranker, depth=8)
    for query, ids, scores in run:
        theirs = reranker.compute_score([[QUERIES[query], DOCUMENTS[d]] for d in ids[:8]])
        assert np.std(theirs) > 0.01
        np.testing.assert_allclose(scores[:8], theirs, atol=1e-4)
        assert (np.diff(scores[:8]) <= 0).all()


@pytest.mark.parametrize("model", BROKEN, ids=lambda model: model.flag_class)
def test_what_todays_transformers_cannot_load_says_what_to_do(model, tiny, tmp_path):
    sentence = rf"{model.flag_class} was written for early 4.x.*transformers==4.44.2.*v2-gemma"
    with pytest.raises(ValueError, match=sentence):
        load_reranker(model.name)
    folder = copy_with(tiny("gemma-reranker"), tmp_path, architectures=[model.architecture])
    with pytest.raises(ValueError, match=sentence):
        load_reranker(folder)


def test_a_model_of_one_kind_is_not_opened_as_the_other(tiny):
    with pytest.raises(ValueError, match=r"BAAI/bge-m3 is an embedder: open it with load_embedder"):
        load_reranker("BAAI/bge-m3")
    with pytest.raises(ValueError, match="no trained scoring head"):
        load_reranker(tiny("bge-m3"))
    for given in ("BAAI/bge-reranker-base", tiny("bert-reranker"), tiny("gemma-reranker")):
        with pytest.raises(ValueError, match="is a reranker: it scores pairs"):
            load_embedder(given)


@pytest.mark.parametrize("load", [load_reranker, load_embedder])
@pytest.mark.parametrize("name", ["BAAI/bge-reranker-lage", "bge-reranker-large"])
def test_the_nearest_names_are_offered(name, load):
    with pytest.raises(OSError, match=r"Did you mean BAAI/bge-reranker-large"):
        load(name)
    with pytest.raises(ValueError, match=r"did you mean BAAI/bge-reranker-large"):
        zoo.find(name)


def test_a_name_of_somebody_else_gets_no_hint():
    assert zoo.nearest("cross-encoder/ms-marco-MiniLM-L6-v2") == []
    assert zoo.nearest("baai/BGE-M3") == ["BAAI/bge-m3"]
    with pytest.raises(ConnectionError) as caught:
        load_reranker("cross-encoder/ms-marco-MiniLM-L6-v2")
    assert "mean" not in str(caught.value)


def test_the_table_agrees_with_flagembeddings_own_list():
    from FlagEmbedding.inference.embedder.model_mapping import AUTO_EMBEDDER_MAPPING
    from FlagEmbedding.inference.reranker.model_mapping import AUTO_RERANKER_MAPPING

    for model in MODELS:
        last = model.name.split("/")[1]
        if model.kind == "embedder":
            config = AUTO_EMBEDDER_MAPPING[last]
            assert config.pooling_method.value == model.pooling
        else:
            config = AUTO_RERANKER_MAPPING[last]
        assert config.model_class is flag_class(model)
        assert 0 < model.usual_length <= model.max_length
    wanted = "Represent this sentence for searching relevant passages: "  # ends in a blank
    assert {m.instruction for m in MODELS if m.flag_class == "FlagModel"} == {wanted}


# Folders ----------------------------------------------------------------------------------


def test_what_is_given_goes_before_the_table(hub_of_tiny):
    given = load_embedder("BAAI/bge-base-en-v1.5", "mean", None, 64, "cpu")
    assert given.pooling_method == "mean" and given.query_instruction_for_retrieval is None
    assert given.passage_max_length == 64
    assert load_reranker("BAAI/bge-reranker-base", 64, "cpu").max_length == 64


def test_a_folder_gets_the_class_of_its_architecture(tiny):
    import FlagEmbedding

    for kind, name in CLASSES.items():
        load = load_reranker if "reranker" in kind else load_embedder
        assert type(load(tiny(kind), device="cpu")) is getattr(FlagEmbedding, name), kind


def test_dense_vectors_of_m3_are_its_own(tiny):
    embedder = load_embedder(tiny("bge-m3"), instruction="Find: ", device="cpu")
    texts = [*DOCUMENTS.values(), "word " * 700]
    np.testing.assert_allclose(
        embed_documents(embedder, texts), embedder.encode(texts)["dense_vecs"], atol=1e-5
    )
    np.testing.assert_allclose(
        embed_queries(embedder, texts[:3]),
        embedder.encode_queries(texts[:3])["dense_vecs"],
        atol=1e-5,
    )
    long = load_embedder(tiny("bge-m3"), max_length=8192, device="cpu")
    assert np.abs(embed_documents(long, texts[-1:]) - embed_documents(embedder, texts[-1:])).max()


@pytest.mark.parametrize("load", [load_reranker, load_embedder])
def test_a_folder_that_is_no_model_is_refused(load, tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no config.json: it is not a model folder"):
        load(tmp_path / "empty")
    broken = copy_with(tiny("bert-embedder"), tmp_path / "broken")
    (broken / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not a model's configuration"):
        load(broken)
    bare = copy_with(tiny("bert-embedder"), tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no weights"):
        load(bare)


@pytest.mark.parametrize("load", [load_reranker, load_embedder])
def test_code_that_comes_with_a_model_is_never_run(load, tiny, tmp_path):
    folder = copy_with(
        tiny("bert-embedder"),
        tmp_path / "own",
        model_type="own",
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"},
    )
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load(folder)
    assert not ran.exists()


def test_an_llm_without_the_word_yes_is_refused(tiny, tmp_path):
    folder = copy_with(tiny("gemma-reranker"), tmp_path / "mute")
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    merges = tokenizer["model"]["merges"]
    tokenizer["model"]["merges"] = [merge for merge in merges if "".join(merge) != "Yes"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="no token 'Yes'"):
        load_reranker(folder, device="cpu")


# The LLM reranker -------------------------------------------------------------------------


@pytest.fixture
def gemma(tiny):
    return load_reranker(tiny("gemma-reranker"), max_length=64, device="cpu")


@pytest.fixture
def llm_pairs():
    pairs = [(q, d) for q in QUERIES.values() for d in DOCUMENTS.values()]
    long = "overflow of a buffer " * 40
    return [*pairs, ("what", long), (long, "this"), (long, long), ("", ""), ("a", " b \n")]


def test_scores_of_gemma_are_those_of_compute_score(gemma, llm_pairs):
    theirs = gemma.compute_score([list(pair) for pair in llm_pairs], batch_size=4)
    with pytest.warns(TruncationWarning, match="window of 64 tokens"):
        np.testing.assert_allclose(score_pairs(gemma, llm_pairs), theirs, atol=1e-4)


def test_instructions_and_prompt_are_those_of_the_class(tiny, llm_pairs):
    from FlagEmbedding import FlagLLMReranker

    settings = {"query_instruction_for_rerank": "Report: ", "prompt": "Is it so? Yes or No:"}
    own = FlagLLMReranker(str(tiny("gemma-reranker")), devices="cpu", **settings)
    theirs = own.compute_score([list(pair) for pair in llm_pairs], batch_size=4)
    scores = score_pairs(own, llm_pairs)
    np.testing.assert_allclose(scores, theirs, atol=1e-4)
    plain = load_reranker(tiny("gemma-reranker"), device="cpu")
    assert np.abs(score_pairs(plain, llm_pairs) - scores).max() > 0.01


def test_only_the_last_tokens_logits_are_computed(gemma, llm_pairs, monkeypatch):
    shapes, forward = [], gemma.model.lm_head.forward
    monkeypatch.setattr(
        gemma.model.lm_head, "forward", lambda x: shapes.append(x.shape) or forward(x)
    )
    score_pairs(gemma, llm_pairs[:36])
    assert shapes and {shape[1] for shape in shapes} == {1}
    assert sum(shape[0] for shape in shapes) == 36  # and no batch is thrown away
    shapes.clear()
    gemma.compute_score([list(pair) for pair in llm_pairs[:2]])  # the class's own way is as it was
    assert shapes[0][1] > 40


def test_scores_of_an_llm_do_not_depend_on_the_company_and_are_kept(gemma, llm_pairs, tmp_path):
    pairs = llm_pairs[:12]
    whole = score_pairs(gemma, pairs, ScoreCache(tmp_path / "scores.txt"))
    assert len(ScoreCache(tmp_path / "scores.txt")) == 12
    alone = [score_pairs(gemma, [pair])[0] for pair in pairs]
    np.testing.assert_allclose(whole, alone, atol=1e-4)
    with pytest.raises(ValueError, match="backend and dtype are for a FlagReranker"):
        score_pairs(gemma, pairs, backend="onnx")


# Tiny models ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_model_is_the_same_for_the_same_seed(kind, tiny, tmp_path):
    again = build_tiny(kind, tmp_path / "again")
    for name in ("model.safetensors", "tokenizer.json"):
        assert (again / name).read_bytes() == (tiny(kind) / name).read_bytes(), name
    build_tiny("bge-m3", tmp_path / "other")
    other = build_tiny(kind, tmp_path / "other", seed=1)
    assert {path.name for path in other.iterdir()} == {path.name for path in again.iterdir()}
    weights = [(folder / "model.safetensors").read_bytes() for folder in (again, other)]
    assert weights[0] != weights[1]


def test_an_unknown_kind_is_named(tmp_path):
    with pytest.raises(ValueError, match="Unknown kind 'bert': choose one of bert-embedder"):
        build_tiny("bert", tmp_path)


@pytest.fixture
def first_stage(tiny):
    embedder = load_embedder(tiny("bert-embedder"), device="cpu")
    index = build_index(embed_documents(embedder, list(DOCUMENTS.values())), list(DOCUMENTS))
    return index.search(list(QUERIES), embed_queries(embedder, list(QUERIES.values())), 10)


def flag_class(model):
    import FlagEmbedding

    return getattr(FlagEmbedding, model.flag_class)


def dense(vectors):
    return vectors["dense_vecs"] if isinstance(vectors, dict) else vectors


def copy_with(folder, target, **fields):
    """A copy of a model folder with other fields in its config.json."""
    copy = shutil.copytree(folder, target, dirs_exist_ok=True)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | fields))
    return copy

"""Backends and precisions give the scores of the plain model."""

import importlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from rerank_utils import engines
from rerank_utils.engines import DTYPES, fastest_on_cpu, has_bfloat16, open_engine
from rerank_utils.reranking import load_reranker, rerank, score_pairs
from rerank_utils.run import Run

LAYOUTS = ["tiny_reranker_folder", "tiny_xlmr_folder"]
PAIRS = [(f"query {i % 7} of a buffer", f"document {i}" + " word" * (i % 12)) for i in range(60)]
ENGINES = [(b, d) for b, dtypes in DTYPES.items() for d in dtypes if b != "torch"]


@pytest.fixture(scope="module", params=LAYOUTS)
def reranker(request):
    return load_reranker(request.getfixturevalue(request.param), max_length=64, device="cpu")


@pytest.fixture(scope="module")
def expected(reranker):
    return np.array(reranker.compute_score([list(pair) for pair in PAIRS], batch_size=8))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RERANK_CACHE", str(tmp_path))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_torch_scores_in_each_precision(reranker, expected, dtype):
    near = 1e-4 if dtype == "float32" else 5e-2
    found = score_pairs(reranker, PAIRS, dtype=dtype)
    np.testing.assert_allclose(found, expected, atol=near)
    assert (np.abs(found - expected).max() > 1e-4) == (dtype != "float32")
    assert reranker.model.dtype == torch.float32  # the reranker itself is left as it was


@pytest.mark.parametrize(("backend", "dtype"), ENGINES)
def test_engines_score_like_torch(reranker, expected, backend, dtype):
    if dtype == "bfloat16" and not has_bfloat16():
        with pytest.raises(ValueError, match="does not multiply bfloat16"):
            score_pairs(reranker, PAIRS, backend=backend, dtype=dtype)
        return
    scores = score_pairs(reranker, PAIRS, backend=backend, dtype=dtype)
    if dtype == "int8":
        assert np.corrcoef(scores, expected)[0, 1] > 0.95
    else:
        near = 5e-2 if dtype == "bfloat16" else 1e-4
        np.testing.assert_allclose(scores, expected, atol=near)


@pytest.mark.parametrize(("adds", "largest"), [(True, 127), (False, 64)])
def test_seven_bits_where_sums_of_int8_overflow(
    tiny_reranker_folder, tmp_path, monkeypatch, adds, largest
):
    import onnx

    monkeypatch.setattr(engines, "_adds_int8", lambda: adds)
    reranker = load_reranker(tiny_reranker_folder, max_length=64, device="cpu")
    score_pairs(reranker, PAIRS[:2], backend="onnx", dtype="int8")
    (path,) = tmp_path.glob("onnx-*int8*/model.onnx")
    weights = [onnx.numpy_helper.to_array(part) for part in onnx.load(path).graph.initializer]
    found = max(np.abs(w.astype(int)).max() for w in weights if w.dtype == np.int8 and w.ndim == 2)
    assert largest - 2 <= found <= largest


def test_a_model_whose_weights_lie_beside_its_export_is_quantized(
    tiny_reranker_folder, tmp_path, monkeypatch
):
    """As those of a model of more than 2 GB do."""
    import onnx

    def export(model, path, plain=engines._export):
        plain(model, path)
        beside = {"save_as_external_data": True, "location": "weights", "size_threshold": 0}
        onnx.save_model(onnx.load(path), path, **beside)

    reranker = load_reranker(tiny_reranker_folder, max_length=64, device="cpu")
    expected = score_pairs(reranker, PAIRS)
    monkeypatch.setattr(engines, "_export", export)
    for backend, dtype in (("onnx", "float32"), ("onnx", "int8"), ("openvino", "int8")):
        engines._ready.clear()
        found = score_pairs(reranker, PAIRS, backend=backend, dtype=dtype)
        assert np.corrcoef(found, expected)[0, 1] > 0.95
    assert list(tmp_path.glob("onnx-*/weights"))


def test_the_export_is_written_once_and_again_for_other_weights(
    tiny_reranker_folder, tmp_path, monkeypatch
):
    reranker = load_reranker(tiny_reranker_folder, max_length=64, device="cpu")
    exports, export = [], engines._export
    monkeypatch.setattr(engines, "_export", lambda *given: exports.append(1) or export(*given))
    before = score_pairs(reranker, PAIRS, backend="onnx")
    score_pairs(reranker, PAIRS, backend="onnx")
    engines._ready.clear()  # as in a new process
    score_pairs(reranker, PAIRS, backend="openvino")
    assert len(exports) == 1 and len(list(tmp_path.glob("onnx-*"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(engines, "_digest", None)  # a look is enough where nothing has changed
        score_pairs(reranker, PAIRS[:1], backend="onnx")
    embeddings = reranker.model.base_model.embeddings.word_embeddings.weight
    with torch.no_grad():
        embeddings[-1] += 1  # a change of a single row is seen as well
    score_pairs(reranker, PAIRS[:1], backend="onnx")
    assert len(exports) == 2
    with torch.no_grad():
        embeddings[-1] -= 1
    reranker.model.classifier.bias.data += 1
    np.testing.assert_allclose(score_pairs(reranker, PAIRS, backend="onnx"), before + 1, atol=1e-4)
    assert len(exports) == 3


def test_two_threads_can_ask_one_engine(reranker):
    """As a server does that reranks for several users at once."""
    asked = [[(f"query {i}", f"document {'word ' * (i + j)}") for j in range(9)] for i in range(3)]
    expected = [score_pairs(reranker, pairs, backend="openvino") for pairs in asked]

    def ask(number):
        return number % 3, score_pairs(reranker, asked[number % 3], backend="openvino")

    with ThreadPoolExecutor(3) as pool:
        for number, found in pool.map(ask, range(30)):
            np.testing.assert_allclose(found, expected[number], atol=1e-5)


def test_an_adapter_in_the_last_layer_counts(tiny_reranker_folder):
    from peft import LoraConfig

    adapted = load_reranker(tiny_reranker_folder, 32, "cpu")
    adapted.model.add_adapter(
        LoraConfig(target_modules=["query", "key", "value"], init_lora_weights=False)
    )
    pairs = [("what is apple", "some apple"), ("what is apple", "stone river")]
    np.testing.assert_allclose(score_pairs(adapted, pairs), adapted.compute_score(pairs), atol=1e-5)


def test_rerank_passes_the_choice_on(reranker, expected):
    query = {"q": PAIRS[0][0]}
    documents = {f"d{i}": document for i, (_, document) in enumerate(PAIRS[:10])}
    run = Run.from_lists(["q"], [list(documents)], [list(range(10, 0, -1))])
    plain = rerank(run, query, documents, reranker, 10)
    quick = rerank(run, query, documents, reranker, 10, dtype="bfloat16")
    np.testing.assert_allclose(sorted(quick.scores[0]), sorted(plain.scores[0]), atol=5e-2)
    assert (quick.scores != plain.scores).any()


def test_the_fastest_is_one_that_there_is():
    choice = fastest_on_cpu()
    assert choice["dtype"] in DTYPES[choice["backend"]]


def test_openvino_in_int8_scores_a_pair_the_same_in_any_company(reranker):
    loud = [("zzz " * 20, "!! ?? " * 20)]
    settings = {"backend": "openvino", "dtype": "int8"}
    alone = score_pairs(reranker, PAIRS, **settings)
    beside = score_pairs(reranker, PAIRS + loud, **settings)[: len(PAIRS)]
    np.testing.assert_allclose(alone, beside, atol=5e-2 if has_bfloat16() else 1e-4)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"backend": "jax"}, "Unknown backend 'jax': choose one of torch, openvino, onnx"),
        ({"dtype": "int8"}, "backend='torch' has no dtype 'int8'"),
        ({"backend": "onnx", "dtype": "bfloat16"}, "has no dtype 'bfloat16': choose one of auto"),
    ],
)
def test_what_there_is_not_is_refused(reranker, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        score_pairs(reranker, PAIRS, **settings)


def test_rounded_weights_are_not_taken_for_single_precision(tiny_reranker_folder):
    reranker = load_reranker(tiny_reranker_folder, 64, "cpu")
    reranker.model.half()  # as on a GPU, where the first call halves the weights
    with pytest.raises(ValueError, match=r"rounded to torch\.float16 before: load the"):
        score_pairs(reranker, [("a query", "a document")], dtype="float32")
    assert np.isfinite(score_pairs(reranker, [("a query", "a document")], dtype="bfloat16")).all()


def test_engines_want_a_cpu_and_a_known_family(reranker, monkeypatch):
    with pytest.raises(ValueError, match="load the reranker with device='cpu'"):
        open_engine(reranker.model, "cuda:0", "onnx")
    monkeypatch.setattr("rerank_utils.encoder.FAMILIES", set())
    with pytest.raises(ValueError, match="knows BERT and"):
        open_engine(reranker.model, "cpu", "openvino")


@pytest.mark.parametrize(
    ("backend", "package"), [("openvino", "openvino"), ("onnx", "onnxruntime")]
)
def test_without_the_extra_the_error_names_it(reranker, monkeypatch, backend, package):
    real = importlib.import_module

    def refusing(name, *others):
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *others)

    monkeypatch.setattr("importlib.import_module", refusing)
    engines._ready.clear()
    with pytest.raises(ModuleNotFoundError, match=rf"needs {package}, of the extra \"fast\""):
        score_pairs(reranker, PAIRS, backend=backend)


def test_a_reranker_of_another_kind_has_no_choice():
    class Other:
        def compute_score(self, pairs):
            return [0.0] * len(pairs)

    with pytest.raises(ValueError, match="Other runs as it was loaded"):
        score_pairs(Other(), PAIRS, dtype="bfloat16")

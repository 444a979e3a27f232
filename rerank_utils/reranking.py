"""Reranking: the first candidates of a Run, scored pair by pair with a cross-encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import zoo
from .batching import (
    Encoded,
    Forward,
    Keep,
    ahead,
    check_max_length,
    check_texts,
    find_device,
    run_batches,
)
from .engines import open_engine
from .hub import find_model
from .llm import PromptEncoder, open_llm, require_yes
from .opening import read_architecture, require_head, require_one_number
from .pairs import PairEncoder
from .pieces import cut_into_pieces, piece_length
from .run import Run, rescore, text_of
from .score_cache import ScoreCache

if TYPE_CHECKING:
    from FlagEmbedding import FlagLLMReranker, FlagReranker

_LLM = "GemmaForCausalLM"
_GPU_PART, _OTHER_PART = 2_048, 256
"""Pairs that are tokenized, or given to another kind of reranker, at once."""


def load_reranker(
    name_or_path: str | Path, max_length: int | None = None, device: str | None = None
) -> FlagReranker | FlagLLMReranker:
    """A reranker of the right class, with arguments that are safe on this machine.

    Half precision is used on a GPU only. No code that comes with a model is ever run.

    Args:
        name_or_path: a model folder or a hub name. The class follows its config.json: a
            FlagReranker for a model with a classification head, a FlagLLMReranker for Gemma.
        max_length: tokens after which a pair is cut; the document gives way, not the query. By
            default what the table `zoo.MODELS` says for this name, else 512.
        device: "cpu", "cuda:0" ...; by default a GPU (in half precision) if there is one.

    Raises:
        ValueError: the model has no trained scoring head (an embedder, for example), does not
            load with today's transformers, or cannot read so many tokens, or the device is not
            here.
        FileNotFoundError, ConnectionError: see `hub.find_model`; with the nearest names of the
            table.
    """
    known = zoo.row(name_or_path)
    if known and known.kind != "reranker":
        raise ValueError(
            f"{known.name} is an embedder: open it with load_embedder, or choose a reranker such "
            "as BAAI/bge-reranker-base."
        )
    if known and not known.runs:
        raise ValueError(zoo.cannot_load(known, known.name))
    if max_length is None:
        max_length = known.usual_length if known else 512
    found = find_model(name_or_path)
    kind = read_architecture(found, name_or_path)
    if kind == _LLM:
        return _open_llm(name_or_path, found, max_length, device)
    require_head(Path(found), kind)
    return _open_encoder(name_or_path, found, max_length, device)


def _open_encoder(
    name: str | Path, found: str, max_length: int, device: str | None
) -> FlagReranker:
    from FlagEmbedding import FlagReranker

    reranker = FlagReranker(found, **_settings(max_length, device))
    check_max_length(max_length, reranker.model.config)
    require_one_number(reranker.model.config, name)
    if not reranker.use_fp16:
        reranker.model.float()  # a checkpoint in half precision is loaded as it is
    return reranker


def _open_llm(name: str | Path, found: str, max_length: int, device: str | None) -> FlagLLMReranker:
    from FlagEmbedding import FlagLLMReranker

    reranker = FlagLLMReranker(found, **_settings(max_length, device))
    check_max_length(max_length, reranker.model.config)
    require_yes(reranker, str(name))
    return reranker


def _settings(max_length: int, device: str | None) -> dict[str, Any]:
    """What every class gets: one named device, so that no worker processes start."""
    device = find_device(device)
    return {
        "use_fp16": device.startswith("cuda"),
        "devices": device,
        "max_length": max_length,
        "trust_remote_code": False,
    }


def score_pairs(
    reranker: FlagReranker,
    pairs: Sequence[tuple[str, str]],
    cache: ScoreCache | None = None,
    backend: str = "torch",
    dtype: str = "auto",
) -> np.ndarray:
    """The reranker's logit for each (query, document) pair, in one sorted pass.

    The same numbers as `reranker.compute_score(pairs)`, but each distinct text is tokenized
    once, no trial batch is thrown away, batches hold pairs of like length and a fixed number of
    tokens, and the last layer is computed for the first token only (see `encoder`); of a
    FlagLLMReranker, the logits of the last token only (see `llm`).

    Args:
        reranker: a FlagReranker or a FlagLLMReranker; other kinds are asked by their own
            `compute_score`.
        pairs: (n,) tuples of query and document.
        cache: scores that need not be computed again, and where new ones are kept.
        backend, dtype: what computes, and in which precision; see `engines.open_engine`. For the
            quickest on this processor pass `**fastest_on_cpu()`.

    Returns:
        (n,) float32; any real number, higher is more relevant. Not a probability.

    Warns:
        TruncationWarning: how many texts are longer than the model's window.

    Raises:
        TypeError: a pair is none, or a text is not a string, with its position.
        ValueError: a score is not a finite number, with its pair; a query fills the window; a
            backend or dtype that this model or machine does not have.
        MemoryError: not even a single pair fits into memory.
    """
    if not len(pairs):
        return np.empty(0, dtype=np.float32)
    pairs = [_pair(pair, place) for place, pair in enumerate(pairs)]
    check_texts([query for query, _ in pairs], "queries")
    check_texts([document for _, document in pairs], "documents")
    if cache is None:
        return _score(reranker, pairs, lambda batch, scores: None, backend, dtype)
    todo = [pair for pair in dict.fromkeys(pairs) if pair not in cache]
    if todo:
        _score(reranker, todo, cache.add, backend, dtype)
    return np.array([cache[pair] for pair in pairs], dtype=np.float32)


def _pair(pair: Sequence[str], place: int) -> tuple[str, str]:
    if isinstance(pair, str) or len(pair) != 2:
        raise TypeError(
            f"pairs[{place}] is {pair!r:.60}, expected a query and a document: give "
            "[(query, document)]."
        )
    return tuple(pair)


def _score(
    reranker: FlagReranker,
    pairs: Sequence[tuple[str, str]],
    add: Callable[[Sequence[tuple[str, str]], np.ndarray], None],
    backend: str,
    dtype: str,
) -> np.ndarray:
    from FlagEmbedding import FlagLLMReranker, FlagReranker

    def keep(positions: np.ndarray, scores: np.ndarray) -> None:
        batch = [pairs[i] for i in positions]
        _require_finite(batch, scores)
        add(batch, scores)

    if isinstance(reranker, FlagReranker):
        device = _ready(reranker, half=(backend, dtype) == ("torch", "auto"))
        forward = open_engine(reranker.model, device, backend, dtype)
        # the other engines spread one batch over the threads themselves
        lanes = None if backend == "torch" else 1
        return _score_batches(reranker, PairEncoder(reranker), forward, lanes, pairs, keep)
    if (backend, dtype) != ("torch", "auto"):
        raise ValueError(
            f"backend and dtype are for a FlagReranker; {type(reranker).__name__} runs as it was "
            "loaded: leave them out."
        )
    if isinstance(reranker, FlagLLMReranker):
        forward = open_llm(reranker, _ready(reranker, half=True))
        return _score_batches(reranker, PromptEncoder(reranker), forward, 1, pairs, keep)
    return _score_other(reranker, pairs, keep)


def _ready(reranker: FlagReranker | FlagLLMReranker, half: bool) -> str:
    """The device of a reranker; its weights are halved, if it was loaded so and for half."""
    device = reranker.target_devices[0]
    if half and reranker.use_fp16 and device.startswith("cuda"):
        reranker.model.half()
    return device


def _score_batches(
    reranker: FlagReranker | FlagLLMReranker,
    encode: PairEncoder,
    forward: Forward,
    lanes: int | None,
    pairs: Sequence[tuple[str, str]],
    keep: Keep,
) -> np.ndarray:
    device = reranker.target_devices[0]
    texts = reranker.get_detailed_inputs(pairs)  # with the instructions, if it has any
    parts = _parts(encode, texts, device)
    scores = run_batches(
        parts, len(pairs), forward, device, "rerank pairs", keep, reranker.model, lanes
    )
    encode.warn_of_cuts()
    return scores


def _parts(encode: PairEncoder, texts: Sequence[Sequence[str]], device: str) -> Iterator[Encoded]:
    """All pairs at once for a CPU. For a GPU, which would wait, part by part in a thread: sorted
    by characters first, so that each part holds pairs of like length."""
    order, size = np.arange(len(texts)), len(texts)
    if not device.startswith("cpu"):
        order = np.argsort([-len(query) - len(document) for query, document in texts])
        size = _GPU_PART
    chunks = (order[start : start + size] for start in range(0, len(texts), size))
    return ahead(chunks, lambda rows: encode(rows, [tuple(texts[i]) for i in rows]))


def _score_other(reranker: Any, pairs: Sequence[tuple[str, str]], keep: Keep) -> np.ndarray:
    """Scores by the reranker's own method, a part at a time so that they can be kept."""
    scores = np.empty(len(pairs), dtype=np.float32)
    for start in range(0, len(pairs), _OTHER_PART):
        rows = np.arange(start, min(start + _OTHER_PART, len(pairs)))
        found = reranker.compute_score([list(pairs[i]) for i in rows])
        scores[rows] = np.reshape(np.asarray(found, dtype=np.float32), len(rows))
        keep(rows, scores[rows])
    return scores


def _require_finite(pairs: Sequence[tuple[str, str]], scores: np.ndarray) -> None:
    if not np.isfinite(scores).all():
        query, document = pairs[int(np.argmin(np.isfinite(scores)))]
        raise ValueError(
            f"The score of query {query[:60]!r} and document {document[:60]!r} is not a finite "
            "number: the weights are damaged or overflow in half precision."
        )


def rerank(
    run: Run,
    queries: Mapping[str, str],
    documents: Mapping[str, str],
    reranker: FlagReranker,
    depth: int,
    name: str | None = None,
    cache: ScoreCache | None = None,
    backend: str = "torch",
    dtype: str = "auto",
    in_pieces: bool = False,
) -> Run:
    """Reorder the first `depth` documents of each query; the rest stays below as it was.

    All pairs of all queries go through the reranker in one pass, equal pairs once. What does not
    fit into its window is cut off, unless long documents are scored `in_pieces`: the best of them
    counts (Dai and Callan, 2019, "Deeper Text Understanding for IR with Contextual
    Neural Language Modeling", who call it MaxP).

    Args:
        run: the first stage.
        queries: query id -> text, for every query of the run.
        documents: document id -> text, for every candidate.
        reranker: see `score_pairs`.
        depth: candidates a query.
        name: name of the result, by default "<run> + rerank".
        cache, backend, dtype: see `score_pairs`.
        in_pieces: score documents of more than two thirds of the reranker's window in pieces of
            that length, see `pieces.cut_into_pieces`; the rest is for the query. Beside a query
            that needs more, the end of a piece is cut off, and `score_pairs` counts it.

    Raises:
        ValueError: depth is below 1 or above what the run holds, or the window is too short for
            pieces.
        KeyError: the run names a query or document without text.
        TypeError: a text is not a string, with its id; or pieces are asked of a reranker that has
            no tokenizer.
    """
    longest = run.doc_ids.shape[1]
    if not 1 <= depth <= longest:
        raise ValueError(
            f"depth is {depth}, but the run holds {longest} documents a query: choose from 1 to "
            "that number, or retrieve more."
        )
    candidates = {query: list(ids[:depth]) for query, ids, _ in run}
    texts = {
        (query, document): (
            text_of(queries, query, "query"),
            text_of(documents, document, "document"),
        )
        for query, ids in candidates.items()
        for document in ids
    }
    pairs = _pieces(reranker, texts) if in_pieces else {ids: [pair] for ids, pair in texts.items()}
    distinct = list(dict.fromkeys(pair for some in pairs.values() for pair in some))
    scores = score_pairs(reranker, distinct, cache, backend, dtype)
    score = dict(zip(distinct, scores.tolist(), strict=True))
    new = {
        query: {document: max(score[pair] for pair in pairs[query, document]) for document in ids}
        for query, ids in candidates.items()
    }
    return rescore(run, new, name or f"{run.name} + rerank")


def _pieces(
    reranker: FlagReranker, texts: Mapping[tuple[str, str], tuple[str, str]]
) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """Query id, document id -> the pairs of texts whose best score is that of the document."""
    if not hasattr(reranker, "tokenizer"):
        raise TypeError(
            f"in_pieces wants a reranker with a tokenizer, not {type(reranker).__name__}: open one "
            "with load_reranker, or cut the documents yourself (pieces.cut_into_pieces)."
        )
    length = piece_length(reranker.max_length)
    pieces = cut_into_pieces((text for _, text in texts.values()), length, reranker.tokenizer)
    return {ids: [(query, piece) for piece in pieces[text]] for ids, (query, text) in texts.items()}

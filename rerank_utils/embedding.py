"""Embedding: texts to vectors, with a FlagEmbedding bi-encoder."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .batching import (
    Arrays,
    Encoded,
    Keep,
    best_device,
    check_max_length,
    check_texts,
    run_batches,
)
from .hub import find_model

if TYPE_CHECKING:
    from FlagEmbedding import FlagModel

POOLINGS = ("cls", "mean")


def load_embedder(
    name_or_path: str | Path,
    pooling: str = "cls",
    instruction: str | None = None,
    max_length: int = 512,
    device: str | None = None,
) -> FlagModel:
    """A FlagModel with arguments that are safe on this machine.

    Half precision is used on a GPU only: on a CPU it would round the weights and be no faster.

    Args:
        name_or_path: a model folder or a hub name.
        pooling: "cls" (the BGE models) or "mean" (MiniLM and most sentence-transformers). The
            wrong one fails in no visible way; it just ranks badly.
        instruction: put before each query, exactly as given: BGE's ends in a blank.
        max_length: tokens after which a text is cut, for queries and documents.
        device: "cpu", "cuda:0" ...; by default a GPU if there is one.

    Warns:
        UserWarning: a 1_Pooling/config.json beside the model names another pooling.

    Raises:
        ValueError: unknown pooling, or a length the model cannot read.
        FileNotFoundError, ConnectionError: see `hub.find_model`.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"Unknown pooling {pooling!r}: choose one of {', '.join(POOLINGS)}.")
    found = find_model(name_or_path)
    _warn_of_other_pooling(Path(found), pooling)
    from FlagEmbedding import FlagModel

    device = device or best_device()
    embedder = FlagModel(
        found,
        pooling_method=pooling,
        query_instruction_for_retrieval=instruction,
        use_fp16=device.startswith("cuda"),
        devices=device,
        query_max_length=max_length,
        passage_max_length=max_length,
    )
    check_max_length(max_length, embedder.model.config)
    return embedder


def _warn_of_other_pooling(folder: Path, pooling: str) -> None:
    """Compare with what sentence-transformers stores beside many models."""
    stored = folder / "1_Pooling" / "config.json"
    if not stored.exists():
        return
    settings = json.loads(stored.read_text(encoding="utf-8"))
    own = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}
    if not settings.get(own[pooling], True):
        warnings.warn(
            f"{folder.name} was not made for {pooling!r} pooling, by its 1_Pooling/config.json.",
            stacklevel=3,
        )


def embed_documents(
    embedder: FlagModel, texts: Sequence[str], store: str | Path | None = None
) -> np.ndarray:
    """Vectors of documents: (len(texts), d) float32, of length 1.

    The same as `embedder.encode(texts)`, with one progress bar and small sorted batches.

    Args:
        embedder: see `load_embedder`.
        texts: the documents.
        store: a .npy file that keeps the vectors as they are made; what an earlier, perhaps
            interrupted call left there is not computed again. Use one file for each model and
            list of texts.

    Raises:
        TypeError: a text is not a string.
        ValueError: the model returned a number that is not finite, or `store` holds an array
            of another shape.
    """
    limit, desc = embedder.passage_max_length, "embed documents"
    if store is None:
        return _embed(embedder, texts, limit, desc)
    table = _open_store(Path(store), len(texts), embedder.model.config.hidden_size)
    todo = np.flatnonzero(np.isnan(table).any(axis=1))

    def keep(positions: np.ndarray, vectors: np.ndarray) -> None:
        table[todo[positions]] = vectors

    _embed(embedder, [texts[i] for i in todo], limit, desc, keep)
    table.flush()
    return np.array(table)


def _open_store(path: Path, rows: int, width: int) -> np.memmap:
    """A (rows, width) float32 file; rows that are not computed yet hold NaN."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".tmp")
        with fresh.open("wb") as stream:
            np.save(stream, np.full((rows, width), np.nan, dtype=np.float32))
        fresh.replace(path)
    table = np.lib.format.open_memmap(path, mode="r+")
    if table.shape != (rows, width):
        raise ValueError(
            f"{path} holds vectors of shape {table.shape}, expected {(rows, width)}: delete it."
        )
    return table


def embed_queries(embedder: FlagModel, texts: Sequence[str]) -> np.ndarray:
    """Vectors of queries: (len(texts), d) float32, of length 1.

    The same as `embedder.encode_queries(texts)`: the instruction is put before each text.

    Raises:
        TypeError, ValueError: as `embed_documents`.
    """
    check_texts(texts, "texts")
    instruction = embedder.query_instruction_for_retrieval
    if instruction is not None:
        shape = embedder.query_instruction_format
        texts = [embedder.get_detailed_instruct(shape, instruction, text) for text in texts]
    return _embed(embedder, texts, embedder.query_max_length, "embed queries")


def _embed(
    embedder: FlagModel, texts: Sequence[str], max_length: int, desc: str, keep: Keep | None = None
) -> np.ndarray:
    import torch
    from torch.nn.functional import normalize

    check_texts(texts, "texts")
    if not len(texts):
        return np.empty((0, embedder.model.config.hidden_size), dtype=np.float32)
    device = embedder.target_devices[0]
    model = embedder.model.to(device).eval()

    def forward(batch: Arrays) -> torch.Tensor:
        inputs = {name: torch.from_numpy(ids).to(device) for name, ids in batch.items()}
        hidden = model(**inputs, return_dict=True).last_hidden_state
        vectors = embedder.pooling(hidden, inputs["attention_mask"])
        return normalize(vectors, dim=-1) if embedder.normalize_embeddings else vectors

    parts = [_tokenize(embedder.tokenizer, texts, max_length)]
    vectors = run_batches(parts, len(texts), forward, device, desc, keep, owner=model)
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        raise ValueError(
            f"The vector of texts[{broken[0]}] holds NaN or infinity ({len(broken)} such): the "
            "weights are damaged or overflow in half precision."
        )
    return vectors


def _tokenize(tokenizer: Any, texts: Sequence[str], max_length: int) -> Encoded:
    tokens = tokenizer(list(texts), truncation=True, max_length=max_length)

    def collate(rows: np.ndarray) -> Arrays:
        chosen = {name: [tokens[name][i] for i in rows] for name in tokens}
        return dict(tokenizer.pad(chosen, return_tensors="np"))

    lengths = np.array([len(ids) for ids in tokens["input_ids"]])
    return Encoded(np.arange(len(texts)), lengths, collate)

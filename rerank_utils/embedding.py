"""Embedding: texts to vectors, with a FlagEmbedding bi-encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .batching import best_device, check_texts, run_batches
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

    Raises:
        ValueError: unknown pooling.
        FileNotFoundError, ConnectionError: see `hub.find_model`.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"Unknown pooling {pooling!r}: choose one of {', '.join(POOLINGS)}.")
    found = find_model(name_or_path)
    from FlagEmbedding import FlagModel

    device = device or best_device()
    return FlagModel(
        found,
        pooling_method=pooling,
        query_instruction_for_retrieval=instruction,
        use_fp16=device.startswith("cuda"),
        devices=device,
        query_max_length=max_length,
        passage_max_length=max_length,
    )


def embed_documents(embedder: FlagModel, texts: Sequence[str]) -> np.ndarray:
    """Vectors of documents: (len(texts), d) float32, of length 1.

    The same as `embedder.encode(texts)`, with one progress bar and small sorted batches.

    Raises:
        TypeError: a text is not a string.
        ValueError: the model returned a number that is not finite.
    """
    return _embed(embedder, texts, embedder.passage_max_length, "embed documents")


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


def _embed(embedder: FlagModel, texts: Sequence[str], max_length: int, desc: str) -> np.ndarray:
    from torch.nn.functional import normalize

    check_texts(texts, "texts")
    if not len(texts):
        return np.empty((0, embedder.model.config.hidden_size), dtype=np.float32)
    device = embedder.target_devices[0]
    model = embedder.model.to(device).eval()
    tokens = embedder.tokenizer(list(texts), truncation=True, max_length=max_length)
    encoded = [{name: tokens[name][i] for name in tokens} for i in range(len(texts))]

    def forward(inputs):
        hidden = model(**inputs, return_dict=True).last_hidden_state
        vectors = embedder.pooling(hidden, inputs["attention_mask"])
        return normalize(vectors, dim=-1) if embedder.normalize_embeddings else vectors

    vectors = run_batches(encoded, embedder.tokenizer, device, forward, desc)
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        raise ValueError(
            f"The vector of texts[{broken[0]}] holds NaN or infinity ({len(broken)} such): the "
            "weights are damaged or overflow in half precision."
        )
    return vectors

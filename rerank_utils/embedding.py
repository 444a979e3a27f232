"""Embedding: texts to vectors, with a FlagEmbedding bi-encoder."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import numpy as np

from . import zoo
from .batching import (
    Arrays,
    Encoded,
    Keep,
    TruncationWarning,
    ahead,
    check_max_length,
    check_texts,
    find_device,
    run_batches,
)
from .files import replacing
from .hub import find_model
from .opening import read_architecture

if TYPE_CHECKING:
    import torch
    from FlagEmbedding import BGEM3FlagModel, FlagModel

POOLINGS = ("cls", "mean")
_PART = 8_192
"""Texts that are tokenized at once: token ids take far more memory than texts or vectors."""


def load_embedder(
    name_or_path: str | Path,
    pooling: str | None = None,
    instruction: str | EllipsisType | None = ...,
    max_length: int | None = None,
    device: str | None = None,
) -> FlagModel | BGEM3FlagModel:
    """An embedder of the right class, with arguments that are safe on this machine.

    What is left out comes from the table `zoo.MODELS` if the name stands there. Half precision
    is used on a GPU only: on a CPU it would round the weights and be no faster. No code that
    comes with a model is ever run.

    Args:
        name_or_path: a model folder or a hub name. BAAI/bge-m3, or a folder that holds its two
            heads, gives a BGEM3FlagModel, anything else a FlagModel.
        pooling: "cls" (the BGE models, and the default) or "mean" (MiniLM and most
            sentence-transformers). The wrong one fails in no visible way; it just ranks badly.
        instruction: put before each query, exactly as given: BGE's ends in a blank. None for
            none; left out, that of the table, and none for a model that is not in it.
        max_length: tokens after which a text is cut, for queries and documents; 512 by default.
        device: "cpu", "cuda:0" ...; by default a GPU if there is one.

    Warns:
        UserWarning: a 1_Pooling/config.json beside the model names another pooling.

    Raises:
        ValueError: unknown pooling, a length the model cannot read, a device that is not here, a
            reranker, or a decoder.
        FileNotFoundError, ConnectionError: see `hub.find_model`; with the nearest names of the
            table.
    """
    known = zoo.row(name_or_path)
    if known and known.kind != "embedder":
        raise ValueError(_no_embedder(known.name))
    pooling = pooling or (known and known.pooling) or "cls"
    if pooling not in POOLINGS:
        raise ValueError(f"Unknown pooling {pooling!r}: choose one of {', '.join(POOLINGS)}.")
    if instruction is ...:
        instruction = known.instruction if known else None
    max_length = known.usual_length if known and max_length is None else max_length
    max_length = 512 if max_length is None else max_length
    device = find_device(device)
    found = find_model(name_or_path)
    kind = read_architecture(found, name_or_path)
    if kind.endswith(("ForSequenceClassification", "ForCausalLM")):
        raise ValueError(_no_embedder(f"{name_or_path} ({kind})"))
    _warn_of_other_pooling(Path(found), pooling)
    half = device.startswith("cuda")
    embedder = _class_of(known, Path(found))(
        found,
        pooling_method=pooling,
        query_instruction_for_retrieval=instruction,
        use_fp16=half,
        devices=device,
        query_max_length=max_length,
        passage_max_length=max_length,
        trust_remote_code=False,
    )
    check_max_length(max_length, embedder.model.config)
    if embedder.tokenizer.padding_side == "left":
        raise ValueError(
            f"{name_or_path} ({kind}) is a decoder, which has to be pooled in another way: choose "
            "an encoder such as BAAI/bge-m3."
        )
    if not half:
        embedder.model.float()  # a checkpoint in half precision is loaded as it is
    return embedder


def _no_embedder(name: str) -> str:
    return (
        f"{name} is a reranker: it scores pairs and has no vectors. Open it with load_reranker, or "
        "choose an embedder such as BAAI/bge-base-en-v1.5."
    )


def _class_of(known: zoo.Model | None, folder: Path) -> type[FlagModel | BGEM3FlagModel]:
    import FlagEmbedding

    heads = all((folder / f"{name}_linear.pt").exists() for name in ("colbert", "sparse"))
    name = known.flag_class if known else ("BGEM3FlagModel" if heads else "FlagModel")
    return getattr(FlagEmbedding, name)


def _warn_of_other_pooling(folder: Path, pooling: str) -> None:
    """Compare with what sentence-transformers stores beside many models."""
    stored = folder / "1_Pooling" / "config.json"
    if not stored.exists():
        return
    settings = json.loads(stored.read_text(encoding="utf-8"))
    own = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}
    mode = settings.get("pooling_mode", pooling)  # how sentence-transformers writes it since 6
    if mode != pooling or not settings.get(own[pooling], True):
        warnings.warn(
            f"{folder.name} was not made for {pooling!r} pooling, by its 1_Pooling/config.json.",
            stacklevel=3,
        )


def embed_documents(
    embedder: FlagModel | BGEM3FlagModel,
    texts: Sequence[str],
    store: str | Path | None = None,
    show_progress: bool = True,
) -> np.ndarray:
    """Vectors of documents: (len(texts), d) float32, of length 1.

    The same as `embedder.encode(texts)`, of bge-m3 the dense vectors, with one progress bar and
    small sorted batches.

    Args:
        embedder: see `load_embedder`.
        texts: the documents.
        store: a .npy file that keeps the vectors as they are made; what an earlier, perhaps
            interrupted call left there is not computed again. Use one file for each model, window
            and list of texts.
        show_progress: whether to draw the bar.

    Warns:
        TruncationWarning: how many of the texts that were computed are longer than the window.

    Raises:
        TypeError: a text is not a string.
        ValueError: the model returned a number that is not finite (what was made before is
            kept), or `store` holds an array of another shape, or vectors of another model, window
            or list of texts: three of them, the longest text's among them, are made again and
            compared.
        OSError: `store` cannot be written.
    """
    texts = check_texts(texts, "texts")
    limit = embedder.passage_max_length
    if store is None:
        return _embed(embedder, texts, limit, "documents", show_progress)
    table = _open_store(Path(store), len(texts), embedder.model.config.hidden_size)
    there = np.isfinite(table).all(axis=1)
    todo, kept = np.flatnonzero(~there), np.flatnonzero(there)
    if len(kept):
        longest = max(kept, key=lambda i: len(texts[i]))  # another window would show there
        few = np.array([kept[0], longest, kept[-1]])
        with warnings.catch_warnings(action="ignore", category=TruncationWarning):
            again = [texts[i] for i in few]
            made = _embed(embedder, again, limit, "documents", False, places=few)
        _compare(table[few], made, store)

    def keep(positions: np.ndarray, vectors: np.ndarray) -> None:
        table[positions] = vectors

    _embed(embedder, [texts[i] for i in todo], limit, "documents", show_progress, keep, todo)
    table.flush()
    return np.array(table)


def _open_store(path: Path, rows: int, width: int) -> np.memmap:
    """A (rows, width) float32 file; rows that are not computed yet hold NaN."""
    if not path.exists():
        with replacing(path) as fresh, fresh.open("wb") as stream:
            np.save(stream, np.full((rows, width), np.nan, dtype=np.float32))
    table = np.lib.format.open_memmap(path, mode="r+")
    if table.shape != (rows, width):
        raise ValueError(
            f"{path} holds vectors of shape {table.shape}, expected {(rows, width)}: delete it."
        )
    return table


def _compare(kept: np.ndarray, made: np.ndarray, path: str | Path) -> None:
    """Refuse a store whose rows are not these vectors; half precision is near enough."""
    apart = np.linalg.norm(kept - made, axis=1) / np.linalg.norm(made, axis=1)
    if apart.max() > 0.05:
        raise ValueError(
            f"{path} holds vectors of another model or window, or of other texts: delete it, or "
            "keep these in another file."
        )


def embed_queries(embedder: FlagModel | BGEM3FlagModel, texts: Sequence[str]) -> np.ndarray:
    """Vectors of queries: (len(texts), d) float32, of length 1.

    The same as `embedder.encode_queries(texts)`: the instruction is put before each text.

    Warns, raises:
        TruncationWarning, TypeError, ValueError: as `embed_documents`.
    """
    texts = check_texts(texts, "texts")
    instruction = embedder.query_instruction_for_retrieval
    if instruction is not None:
        shape = embedder.query_instruction_format
        texts = [embedder.get_detailed_instruct(shape, instruction, text) for text in texts]
    return _embed(embedder, texts, embedder.query_max_length, "queries")


def _embed(
    embedder: FlagModel | BGEM3FlagModel,
    texts: Sequence[str],
    max_length: int,
    kind: str,
    show_progress: bool = True,
    keep: Keep | None = None,
    places: np.ndarray | None = None,
) -> np.ndarray:
    """Vectors of texts of a kind, which stand at these places in what the caller gave."""
    places = np.arange(len(texts)) if places is None else places
    if not len(texts):
        return np.empty((0, embedder.model.config.hidden_size), dtype=np.float32)
    device = embedder.target_devices[0]
    model = embedder.model.to(device).eval()
    forward = _forward(embedder, model, device)

    def checked(positions: np.ndarray, vectors: np.ndarray) -> None:
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"The vector of texts[{places[positions[np.argmin(finite)]]}] holds NaN or "
                "infinity: the weights are damaged or overflow in half precision."
            )
        if keep is not None:
            keep(places[positions], vectors)

    cut: list[int] = []

    def tokenized(rows: np.ndarray) -> Encoded:
        chosen = [texts[i] for i in rows]
        tokens = embedder.tokenizer(chosen, truncation=True, max_length=max_length)
        cut.append(sum(bool(text.overflowing) for text in tokens.encodings or ()))
        return _encoded(embedder.tokenizer, tokens, rows)

    desc = f"embed {kind}" if show_progress else None
    chunks = (np.arange(i, min(i + _PART, len(texts))) for i in range(0, len(texts), _PART))
    parts = ahead(chunks, tokenized)
    vectors = run_batches(parts, len(texts), forward, device, desc, checked, owner=model)
    if sum(cut):
        warnings.warn(
            f"{sum(cut):,} of {len(texts):,} {kind} are longer than the {max_length} tokens that "
            "are embedded: their ends were not read.",
            TruncationWarning,
            stacklevel=3,
        )
    return vectors


def _forward(
    embedder: FlagModel | BGEM3FlagModel, model: Any, device: str
) -> Callable[[Arrays], torch.Tensor]:
    """From a padded batch to (rows, d) vectors; of bge-m3 the dense ones."""
    import torch
    from FlagEmbedding import BGEM3FlagModel
    from torch.nn.functional import normalize

    def forward(batch: Arrays) -> torch.Tensor:
        inputs = {name: torch.from_numpy(ids).to(device) for name, ids in batch.items()}
        if isinstance(embedder, BGEM3FlagModel):
            return model(inputs, return_dense=True)["dense_vecs"]
        hidden = model(**inputs, return_dict=True).last_hidden_state
        vectors = embedder.pooling(hidden, inputs["attention_mask"])
        return normalize(vectors, dim=-1) if embedder.normalize_embeddings else vectors

    return forward


def _encoded(tokenizer: Any, tokens: Mapping[str, list], positions: np.ndarray) -> Encoded:
    def collate(rows: np.ndarray) -> Arrays:
        chosen = {name: [tokens[name][i] for i in rows] for name in tokens}
        return dict(tokenizer.pad(chosen, return_tensors="np"))

    lengths = np.array([len(ids) for ids in tokens["input_ids"]])
    return Encoded(positions, lengths, collate)

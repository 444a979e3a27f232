"""Indexing: vectors into a FAISS index, and the first-stage Run out of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .run import Run

if TYPE_CHECKING:
    import faiss

_INDEX_FILE, _IDS_FILE = "index.faiss", "doc_ids.json"


@dataclass(frozen=True)
class DenseIndex:
    """A FAISS index and the document id of each of its rows.

    Attributes:
        faiss_index: any FAISS index with the inner product as its metric.
        doc_ids: row number -> document id.
    """

    faiss_index: faiss.Index
    doc_ids: list[str]

    def search(
        self, query_ids: Sequence[str], query_vectors: np.ndarray, k: int, name: str = "dense"
    ) -> Run:
        """The k documents with the largest inner product for each query.

        Args:
            query_ids: (Q,) ids.
            query_vectors: (Q, d) float32.
            k: how many documents to return.
            name: name of the run.

        Raises:
            ValueError: k is below 1 or above the number of documents, or shapes do not match.
        """
        if not 1 <= k <= len(self.doc_ids):
            raise ValueError(
                f"k is {k}, but the index holds {len(self.doc_ids)} documents: choose k (the "
                "depth) from 1 to that number."
            )
        vectors = _checked(query_vectors, len(query_ids), "query_vectors")
        if vectors.shape[1] != self.faiss_index.d:
            raise ValueError(
                f"query_vectors have {vectors.shape[1]} dimensions, the index "
                f"{self.faiss_index.d}: embed both with the same model."
            )
        scores, rows = self.faiss_index.search(vectors, k)
        # FAISS marks "nothing found" by row -1, which would read the last document: leave it out.
        found = [row >= 0 for row in rows]
        documents = [
            [self.doc_ids[i] for i in row[mask]] for row, mask in zip(rows, found, strict=True)
        ]
        values = [row[mask] for row, mask in zip(scores, found, strict=True)]
        return Run.from_lists(list(query_ids), documents, values, name)

    def save(self, folder: str | Path) -> None:
        """Write the index and its ids into a folder."""
        import faiss

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        faiss.write_index(self.faiss_index, str(folder / _INDEX_FILE))
        (folder / _IDS_FILE).write_text(json.dumps(self.doc_ids), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> DenseIndex:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: the folder holds no index.
            ValueError: index and ids do not belong together.
        """
        import faiss

        folder = Path(folder)
        if not (folder / _INDEX_FILE).exists():
            raise FileNotFoundError(f"{folder} holds no {_INDEX_FILE}: save an index there first.")
        index = faiss.read_index(str(folder / _INDEX_FILE))
        doc_ids = json.loads((folder / _IDS_FILE).read_text(encoding="utf-8"))
        if index.ntotal != len(doc_ids):
            raise ValueError(f"{folder}: {index.ntotal} vectors, but {len(doc_ids)} document ids.")
        return cls(index, doc_ids)


def build_index(vectors: np.ndarray, doc_ids: Sequence[str], factory: str = "Flat") -> DenseIndex:
    """Train a FAISS index on the vectors and add them.

    Args:
        vectors: (N, d) float32; of length 1 if the inner product is to be the cosine.
        doc_ids: (N,) ids, all different.
        factory: FAISS's description of the index, such as "Flat", "IVF64,Flat" or "HNSW32".

    Raises:
        ValueError: no vectors, a number that is not finite, duplicate ids, shapes that differ.
    """
    import faiss

    if not len(doc_ids):
        raise ValueError("vectors is empty: index at least one document.")
    if len(set(doc_ids)) < len(doc_ids):
        raise ValueError("doc_ids holds an id twice: give every document an id of its own.")
    vectors = _checked(vectors, len(doc_ids), "vectors")
    index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    return DenseIndex(index, list(doc_ids))


def build_index_from(
    parts: Iterable[tuple[Sequence[str], np.ndarray]],
    factory: str = "Flat",
    train_size: int = 50_000,
) -> DenseIndex:
    """The same as `build_index`, from parts that come one after the other.

    Only the index, the ids and one part are held in memory; FAISS needs up to twice the memory
    of the index for a moment, when it grows.

    Args:
        parts: (ids, vectors) of some documents each; vectors (n, d) float32.
        factory: see `build_index`.
        train_size: vectors, from the start, on which an index that wants training is trained.
            If the corpus is sorted by topic, shuffle it first.

    Raises:
        ValueError: see `build_index`.
    """
    import faiss

    index = None
    doc_ids: list[str] = []
    waiting: list[np.ndarray] = []
    for ids, vectors in parts:
        vectors = _checked(vectors, len(ids), "vectors")
        doc_ids += ids
        if index is None:
            index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        waiting.append(vectors)
        if index.is_trained or sum(map(len, waiting)) >= train_size:
            _add(index, waiting)
    if index is None:
        raise ValueError("parts is empty: index at least one document.")
    if len(set(doc_ids)) < len(doc_ids):
        raise ValueError("parts hold a document id twice: give every document an id of its own.")
    _add(index, waiting)
    return DenseIndex(index, doc_ids)


def _add(index: faiss.Index, waiting: list[np.ndarray]) -> None:
    """Move the waiting vectors into the index, which is trained on them if it needs it."""
    if waiting:
        vectors = np.concatenate(waiting)
        waiting.clear()
        if not index.is_trained:
            index.train(vectors)
        index.add(vectors)


def _checked(vectors: np.ndarray, rows: int, argument: str) -> np.ndarray:
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != rows:
        raise ValueError(f"{argument} has shape {vectors.shape}, expected ({rows}, d).")
    if not np.isfinite(vectors).all():
        row = int(np.argmin(np.isfinite(vectors).all(axis=1)))
        raise ValueError(f"{argument}[{row}] holds NaN or infinity: embed that text again.")
    return vectors

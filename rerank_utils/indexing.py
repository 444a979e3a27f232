"""Indexing: vectors into a FAISS index, and the first-stage Run out of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .batching import check_texts
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

    Raises:
        ValueError: the index has another metric, or another number of vectors than there are ids.
        TypeError: an id is no string.
    """

    faiss_index: faiss.Index
    doc_ids: list[str]

    def __post_init__(self) -> None:
        import faiss

        check_texts(self.doc_ids, "doc_ids")
        if self.faiss_index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError(
                "faiss_index measures a distance, of which the smallest is best: make it with "
                "faiss.METRIC_INNER_PRODUCT."
            )
        if self.faiss_index.ntotal != len(self.doc_ids):
            raise ValueError(
                f"faiss_index holds {self.faiss_index.ntotal} vectors, but there are "
                f"{len(self.doc_ids)} document ids."
            )

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
        """Write the index and its ids into a folder; one that stood there stays until both are.

        Raises:
            OSError: they cannot be written.
        """
        import faiss

        folder = Path(folder)
        index, ids = folder / _INDEX_FILE, folder / _IDS_FILE
        fresh_index, fresh_ids = (path.with_name(f"{path.name}.tmp") for path in (index, ids))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            fresh_ids.write_bytes(json.dumps(self.doc_ids).encode())
            faiss.write_index(self.faiss_index, str(fresh_index))
            # until the new ids are there, `load` is to find none rather than another index's
            ids.unlink(missing_ok=True)
            fresh_index.replace(index)
            fresh_ids.replace(ids)
        except (OSError, RuntimeError) as error:  # the latter is what FAISS makes of a full disk
            there = "the one before is kept" if ids.exists() else "there is none now"
            raise OSError(
                f"The index could not be saved in {folder} ({error}); {there}. Make room on the "
                "disk, or choose another place, and save it again."
            ) from error
        finally:
            for fresh in (fresh_index, fresh_ids):
                with suppress(OSError):  # it has moved, or there was never a place for it
                    fresh.unlink()

    @classmethod
    def load(cls, folder: str | Path) -> DenseIndex:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: the folder holds no index, or one whose saving broke off.
            ValueError: the index is damaged, or it and the ids do not belong together.
        """
        import faiss

        folder = Path(folder)
        for name in (_INDEX_FILE, _IDS_FILE):
            if not (folder / name).exists():
                raise FileNotFoundError(f"{folder} holds no {name}: save an index there first.")
        try:
            index = faiss.read_index(str(folder / _INDEX_FILE))
        except RuntimeError as error:
            raise ValueError(f"{folder / _INDEX_FILE} is damaged: save the index anew.") from error
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
        ValueError: no vectors, a number that is not finite, duplicate ids, shapes that differ, or
            a factory that FAISS does not know or that these vectors are too few for.
        TypeError: an id is no string.
    """
    if not len(doc_ids):
        raise ValueError("vectors is empty: index at least one document.")
    if len(set(doc_ids)) < len(doc_ids):
        raise ValueError("doc_ids holds an id twice: give every document an id of its own.")
    check_texts(doc_ids, "doc_ids")
    vectors = _checked(vectors, len(doc_ids), "vectors")
    index = _empty_index(factory, vectors.shape[1])
    _add(index, [vectors], factory)
    return DenseIndex(index, list(doc_ids))


def _empty_index(factory: str, width: int) -> faiss.Index:
    import faiss

    with _told(factory, f"vectors of {width} numbers"):
        return faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)


@contextmanager
def _told(factory: str, what: str) -> Iterator[None]:
    """FAISS names a line of its own program; this names what the caller gave."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).rpartition(": ")[2] or error
        raise ValueError(
            f"factory {factory!r} does not work for {what} ({reason}): try 'Flat'."
        ) from error


def build_index_from(
    parts: Iterable[tuple[Sequence[str], np.ndarray]],
    factory: str = "Flat",
    train_size: int = 50_000,
) -> DenseIndex:
    """The same as `build_index`, from parts that come one after the other.

    Only the index, the ids and one part are held in memory, and the first `train_size` vectors of
    an index that wants training; FAISS needs up to twice the memory
    of the index for a moment, when it grows.

    Args:
        parts: (ids, vectors) of some documents each; vectors (n, d) float32.
        factory: see `build_index`.
        train_size: vectors, from the start, on which an index that wants training is trained.
            If the corpus is sorted by topic, shuffle it first.

    Raises:
        ValueError: see `build_index`.
    """
    index = None
    seen: set[str] = set()
    doc_ids: list[str] = []
    waiting: list[np.ndarray] = []
    for ids, vectors in parts:
        vectors = _checked(vectors, len(ids), "vectors")
        doc_ids += ids
        seen.update(ids)
        if len(seen) < len(doc_ids):  # said at once, not when the whole corpus is embedded
            raise ValueError(
                "parts hold a document id twice: give every document an id of its own."
            )
        if index is None:
            index = _empty_index(factory, vectors.shape[1])
        waiting.append(vectors)
        if index.is_trained or sum(map(len, waiting)) >= train_size:
            _add(index, waiting, factory)
    if index is None:
        raise ValueError("parts is empty: index at least one document.")
    _add(index, waiting, factory)
    return DenseIndex(index, doc_ids)


def _add(index: faiss.Index, waiting: list[np.ndarray], factory: str) -> None:
    """Move the waiting vectors into the index, which is trained on them if it needs it."""
    if waiting:
        vectors = waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
        waiting.clear()
        with _told(factory, f"{len(vectors)} vectors"):
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

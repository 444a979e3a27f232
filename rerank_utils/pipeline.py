"""Pipeline: the stages strung together for one profile, with what they leave on disk."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from .batching import TruncationWarning, best_device
from .collection import Collection, write_qrels
from .embedding import embed_documents, embed_queries, load_embedder
from .engines import check_choice
from .evaluation import Comparison, Evaluation, answer_groups, compare, evaluate
from .files import replacing, write_whole
from .hub import fingerprint
from .indexing import DenseIndex, build_index, build_index_from
from .plotting import plot_before_after
from .profiles import Profile, locate
from .reranking import ScoreCache, load_reranker, rerank
from .run import Run

ARTIFACTS = Path("artifacts")
RUN_DEPTH = 100
"""Documents of the first stage that are kept in a run, where the corpus holds as many."""


@dataclass
class Result:
    """What a pipeline made.

    Attributes:
        profile: the set-up.
        collection: the corpus with the queries that were run.
        first_stage, reranked: the two runs.
        before, after: their evaluations.
        seconds: stage -> wall-clock seconds, loading of models included.
        cached: stages that found results of an earlier run on disk, and took less for it.
        notes: what the stages had to say, such as how many texts were cut.
        backend, dtype: what reranked, and in which precision.
    """

    profile: Profile
    collection: Collection
    first_stage: Run
    reranked: Run
    before: Evaluation
    after: Evaluation
    seconds: dict[str, float] = field(default_factory=dict)
    cached: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    backend: str = "torch"
    dtype: str = "auto"

    @cached_property
    def groups(self) -> dict[str, int]:
        """Query id -> its group: queries that share answers are no independent draws."""
        return answer_groups(self.collection.qrels)

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Before against after, for each measure; empty for one group, which allows no test."""
        if len(set(self.groups.values())) < 2:
            return []
        return [
            compare(self.before, self.after, measure, groups=self.groups)
            for measure in self.before.values
        ]

    def table(self) -> str:
        """The two runs side by side, as text."""
        profile, collection = self.profile, self.collection
        split = next(iter(collection.splits))
        lines = [
            f"{profile.name}: {len(collection.queries):,} {split} queries, "
            f"{len(collection.documents):,} documents, the first {profile.depth} reranked",
            "",
            f"{'':<11}{'before':>8}{'after':>8}{'change':>9}   95 % interval        p   "
            "better / same / worse",
        ]
        tested = {row.measure: row for row in self.comparisons}
        for measure in self.before.values:
            old, new = self.before.mean(measure), self.after.mean(measure)
            line = f"{measure:<11}{old:>8.3f}{new:>8.3f}{new - old:>+9.3f}"
            if row := tested.get(measure):
                line += f"   {row.low:+.3f} … {row.high:+.3f} {row.p:>8.4f}   "
                line += f"{row.wins} / {row.ties} / {row.losses}"
            lines.append(line)
        lines += ["", self._drawn()]
        spent = [
            f"{stage} {seconds:.1f} s" + (" (from cache)" if stage in self.cached else "")
            for stage, seconds in self.seconds.items()
        ]
        return "\n".join([*lines, "", f"time: {', '.join(spent)}", *self.notes])

    def _drawn(self) -> str:
        groups = len(set(self.groups.values()))
        if groups < 2:
            return "One query, or one answer for all, gives no interval and no test."
        if groups == len(self.groups):
            return "Interval and p: no two queries share an answer, each is a draw of its own."
        return f"Interval and p: {groups:,} groups of queries that share answers are drawn."

    def save(self, folder: Path) -> list[Path]:
        """Write both runs, the judgments, the numbers and the figure; return the files."""
        folder.mkdir(parents=True, exist_ok=True)
        names = ("first_stage.trec", "reranked.trec", "qrels.trec", "results.json")
        first, second, judged, numbers = (folder / name for name in names)
        self.first_stage.to_trec(first)
        self.reranked.to_trec(second)
        write_qrels(self.collection.qrels, judged)
        write_whole(json.dumps(self._numbers(), indent=1), numbers)
        figure = plot_before_after(
            self.before, self.after, f"{self.profile.name}, before and after"
        )
        figure.savefig(folder / "before_after.png", dpi=150)
        return [first, second, judged, numbers, folder / "before_after.png"]

    def _numbers(self) -> dict:
        return {
            "profile": self.profile.name,
            "collection": self.collection.name,
            "split": next(iter(self.collection.splits)),
            "queries": len(self.collection.queries),
            "groups": len(set(self.groups.values())),
            "documents": len(self.collection.documents),
            "depth": self.profile.depth,
            "in pieces": self.profile.in_pieces,
            "embedder": self.profile.embedder,
            "reranker": self.profile.reranker,
            "backend": self.backend,
            "dtype": self.dtype,
            "before": self.before.means(),
            "after": self.after.means(),
            "comparisons": [vars(row) for row in self.comparisons],
            "seconds": self.seconds,
            "from cache": self.cached,
        }


def run_pipeline(
    profile: Profile, artifacts: Path = ARTIFACTS, backend: str = "torch", dtype: str = "auto"
) -> Result:
    """Load, embed, index, retrieve, rerank and evaluate.

    Vectors and pair scores are kept in `artifacts/cache`, so that an interrupted run resumes and
    a second one is quick.

    Args:
        profile: what to run.
        artifacts: where results are kept.
        backend, dtype: what reranks, and in which precision; see `engines.open_engine`.

    Raises:
        ValueError: the depth is above the corpus size, and what the stages raise.
    """
    check_choice(backend, dtype)
    seconds: dict[str, float] = {}
    cached: list[str] = []
    notes: list[str] = []
    if profile.depth < 1:
        raise ValueError(f"The depth is {profile.depth}: rerank at least one candidate.")
    with _timed(seconds, "load"):
        collection = profile.load().split(profile.split, profile.queries)
    with noted(notes):
        first_stage = retrieve(profile, collection, artifacts, seconds, cached)
    with _timed(seconds, "rerank"), noted(notes):
        device = None if backend == "torch" else "cpu"  # the engines run there only
        reranker = load_reranker(locate(profile.reranker), profile.reranker_length, device)
        cache = score_cache(profile, artifacts, backend, dtype)
        known = len(cache)
        reranked = rerank(
            first_stage,
            collection.queries,
            collection.documents,
            reranker,
            profile.depth,
            name="reranked",
            cache=cache,
            backend=backend,
            dtype=dtype,
            in_pieces=profile.in_pieces,
        )
    if known:
        cached.append("rerank")
    with _timed(seconds, "evaluate"):
        before = evaluate(first_stage, collection.qrels)
        after = evaluate(reranked, collection.qrels)
    return Result(
        profile,
        collection,
        first_stage,
        reranked,
        before,
        after,
        seconds,
        cached,
        notes,
        backend,
        dtype,
    )


def retrieve(
    profile: Profile,
    collection: Collection,
    artifacts: Path = ARTIFACTS,
    seconds: dict[str, float] | None = None,
    cached: list[str] | None = None,
) -> Run:
    """The first stage: embed the corpus and the queries, search a flat FAISS index.

    Args:
        profile: embedder and depth.
        collection: see `Collection.split`.
        artifacts: where the vectors of the corpus are kept.
        seconds: filled with the time of each stage.
        cached: filled with the stage "embed" if its vectors were on disk.

    Raises:
        ValueError: the depth is above the corpus size.
    """
    if profile.depth > len(collection.documents):
        raise ValueError(
            f"The depth is {profile.depth}, but {collection.name!r} holds "
            f"{len(collection.documents)} documents: choose a depth (--depth) up to that number."
        )
    seconds = {} if seconds is None else seconds
    texts = list(collection.documents.values())
    with _timed(seconds, "embed"):
        model = locate(profile.embedder)
        embedder = load_embedder(
            model, profile.pooling, profile.instruction, profile.embedder_length
        )
        key = _key([*_vectors_of(profile, model), *texts])
        store = artifacts / "cache" / f"vectors-{key}.npy"
        if cached is not None and store.exists():
            cached.append("embed")
        vectors = embed_documents(embedder, texts, store)
        query_vectors = embed_queries(embedder, list(collection.queries.values()))
    with _timed(seconds, "search"):
        index = build_index(vectors, list(collection.documents))
        k = min(max(RUN_DEPTH, profile.depth), len(texts))
        return index.search(list(collection.queries), query_vectors, k, name="first stage")


def index_corpus(
    profile: Profile,
    batches: Iterable[tuple[list[str], list[str]]],
    artifacts: Path = ARTIFACTS,
    factory: str = "Flat",
) -> DenseIndex:
    """An index of a corpus that need not fit into memory, embedded batch by batch.

    Args:
        profile: its embedder.
        batches: (ids, texts), as `loaders.stream_corpus` gives them.
        artifacts: the vectors of each batch are kept there, so that an interrupted run resumes.
        factory: see `indexing.build_index`.

    Warns:
        TruncationWarning: in how many of the batches that were computed texts are too long.
    """
    model = locate(profile.embedder)
    embedder = load_embedder(model, profile.pooling, profile.instruction, profile.embedder_length)
    key = _key(_vectors_of(profile, model))
    parts = embed_stream(
        batches,
        lambda texts: embed_documents(embedder, texts, show_progress=False),
        artifacts / "cache" / f"parts-{key}",
    )
    notes: list[str] = []
    with noted(notes):
        index = build_index_from(parts, factory)
    if notes:
        warnings.warn(
            f"In {len(notes):,} batches some documents are longer than the "
            f"{profile.embedder_length} tokens that are embedded: their ends were not read.",
            TruncationWarning,
            stacklevel=2,
        )
    return index


def embed_stream(
    batches: Iterable[tuple[list[str], list[str]]],
    embed: Callable[[list[str]], np.ndarray],
    store: Path,
) -> Iterator[tuple[list[str], np.ndarray]]:
    """(ids, vectors) batch by batch; what an earlier run left in the store is not computed again.

    One bar counts the documents; how many there will be is not known.

    Args:
        batches: (ids, texts).
        embed: texts -> (n, d) float32.
        store: a folder for one `.npy` file a batch, named by its texts. Use one folder for each
            model.
    """
    from tqdm import tqdm

    with tqdm(desc="embed corpus", unit=" documents") as bar:
        for ids, texts in batches:
            path = store / f"{_key(texts)}.npy"
            if not path.exists():
                vectors = embed(texts)
                with replacing(path) as fresh, fresh.open("wb") as stream:
                    np.save(stream, vectors)
            bar.update(len(ids))
            yield ids, np.load(path)


def score_cache(
    profile: Profile, artifacts: Path = ARTIFACTS, backend: str = "torch", dtype: str = "auto"
) -> ScoreCache:
    """Where the pair scores of a profile's reranker are kept: apart for each backend and dtype.

    The device is in the name too, because "auto" is another precision on a GPU.
    """
    model = [fingerprint(locate(profile.reranker)), str(profile.reranker_length)]
    key = _key([*model, backend, dtype, best_device()])
    return ScoreCache(artifacts / "cache" / f"scores-{key}.txt")


def _vectors_of(profile: Profile, model: str) -> list[str]:
    """What decides the vectors of a text; a GPU makes them in half precision."""
    length = str(profile.embedder_length)
    return [fingerprint(model), str(profile.pooling), length, best_device()]


def _key(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)} {part}".encode())
    return digest.hexdigest()[:12]


@contextmanager
def noted(notes: list[str]) -> Iterator[None]:
    """Add warnings about cut texts to a list, for the place where results are read."""
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", TruncationWarning)
            yield
    finally:  # an error must not swallow what was warned of before it
        for warning in caught:
            if issubclass(warning.category, TruncationWarning):
                notes.append(str(warning.message))
            else:
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - started, 2)

"""Whether time grows in step with the work: `python benchmarks/growth.py`.

Each stage at 1, 2, 4 and 8 times the documents or pairs. The slope of log time over log size is
1 where time grows in proportion, 2 where it grows with the square.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from bench import rounds_done, take_turns, write

from rerank_utils.collection import Collection
from rerank_utils.embedding import embed_documents, load_embedder
from rerank_utils.hub import quiet_libraries
from rerank_utils.indexing import build_index
from rerank_utils.pairs import TruncationWarning
from rerank_utils.profiles import OFFLINE, locate
from rerank_utils.reranking import load_reranker, score_pairs

FACTORS = (1, 2, 4, 8)


def stages(
    collection: Collection, documents: int, pairs: int, reranker_name: str
) -> dict[str, Callable[[int], object]]:
    """Stage -> from a size, up to 8 times the first, to its work."""
    queries = list(collection.queries.values())
    rng = np.random.default_rng(0)
    texts = [list(collection.documents.values())[i] for i in rng.permutation(documents * 8)]
    asked = [
        (queries[rng.integers(len(queries))], texts[rng.integers(len(texts))])
        for _ in range(pairs * 8)
    ]
    embedder = load_embedder(
        locate(OFFLINE.embedder), OFFLINE.pooling, max_length=OFFLINE.embedder_length, device="cpu"
    )
    reranker = load_reranker(locate(reranker_name), OFFLINE.reranker_length, "cpu")
    vectors = rng.standard_normal((documents * 8 * 100, 384), dtype=np.float32)

    def search(factor: int) -> object:
        part = vectors[: documents * 100 * factor]
        index = build_index(part, [str(i) for i in range(len(part))])
        return index.search([str(i) for i in range(100)], vectors[:100], 10)

    return {
        "embed documents": lambda factor: embed_documents(embedder, texts[: documents * factor]),
        "index and search": search,
        "rerank pairs": lambda factor: score_pairs(reranker, asked[: pairs * factor]),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print times and slopes, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--documents", type=int, default=117, help="at the first size")
    parser.add_argument("--pairs", type=int, default=100, help="at the first size")
    parser.add_argument("--reranker", default=OFFLINE.reranker)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    collection = OFFLINE.load()
    if given.documents * max(FACTORS) > (there := len(collection.documents)):
        parser.error(f"--documents is {given.documents}: {there // max(FACTORS)} at most.")
    warnings.simplefilter("ignore", TruncationWarning)
    quiet_libraries()
    found = stages(collection, given.documents, given.pairs, given.reranker)
    work = {
        (stage, factor): partial(run, factor) for stage, run in found.items() for factor in FACTORS
    }
    warm_up = {stage: partial(run, 1) for stage, run in found.items()}
    timings = take_turns(work, given.rounds, warm_up)
    rows = []
    for stage in found:
        seconds = [timings[stage, factor].median for factor in FACTORS]
        slope = np.polyfit(np.log(FACTORS), np.log(seconds), 1)[0]
        named = {f"{factor}x, s": s for factor, s in zip(FACTORS, seconds, strict=True)}
        rows.append({"stage": stage, **named, "slope": float(slope)})
    facts = {"documents": given.documents, "pairs": given.pairs, "rounds": rounds_done(timings)}
    write("growth", facts, rows)


if __name__ == "__main__":
    main()

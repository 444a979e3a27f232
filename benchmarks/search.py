"""What an index gains in speed and loses in recall: `python benchmarks/search.py`.

Made-up vectors, 384 wide as MiniLM's. Recall@10 is the share of the ten exact nearest
neighbours that were found.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import faiss
import numpy as np
from bench import gather, rounds_done, take_turns, write

WIDTH, DIRECTIONS = 384, 32
SETTINGS = {
    "Flat": ("", [0]),
    "IVF": ("nprobe", [1, 4, 16, 64]),
    "HNSW": ("efSearch", [16, 64, 256]),
}


def made_up(rows: int, seed: int) -> np.ndarray:
    """(rows, WIDTH) float32 of length 1 that vary in `DIRECTIONS` directions, and a little in all.

    Vectors in clear clusters would flatter IVF, and vectors without any structure would be unfair
    to every index: embeddings of texts fill few of their dimensions, without gaps.
    """
    directions = np.random.default_rng(0).normal(size=(DIRECTIONS, WIDTH)).astype(np.float32)
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((rows, DIRECTIONS), dtype=np.float32) @ directions
    vectors += rng.standard_normal((rows, WIDTH), dtype=np.float32)
    faiss.normalize_L2(vectors)
    return vectors


def build(kind: str, vectors: np.ndarray) -> tuple[faiss.Index, float]:
    """An index and the seconds that building took."""
    cells = max(1, int(4 * np.sqrt(len(vectors))) // 4)
    factory = {"Flat": "Flat", "IVF": f"IVF{cells},Flat", "HNSW": "HNSW32,Flat"}[kind]
    started = time.perf_counter()
    index = faiss.index_factory(WIDTH, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    return index, time.perf_counter() - started


def searched(index: faiss.Index, setting: str, value: int, queries: np.ndarray) -> np.ndarray:
    """(Q, 10) positions of the neighbours found."""
    if setting:
        faiss.ParameterSpace().set_index_parameter(index, setting, value)
    return index.search(queries, 10)[1]


def measure(size: int, queries: np.ndarray, rounds: int) -> list[dict[str, Any]]:
    """Build each index over so many vectors, search with each setting."""
    vectors, work, seconds = made_up(size, seed=1), {}, {}
    for kind, (setting, values) in SETTINGS.items():
        index, seconds[kind] = build(kind, vectors)
        for value in values:
            name = f"{kind} {setting} {value}" if setting else kind
            work[name] = partial(searched, index, setting, value, queries)
    timings, rows = take_turns(work, rounds), []
    exact = timings["Flat"].output
    for name, timing in timings.items():
        hits = [len({*a} & {*b}) for a, b in zip(timing.output, exact, strict=True)]
        rates = timing.rates(len(queries))
        rows.append(
            {
                "vectors": size,
                "index": name,
                "rounds": rounds_done(timings),
                "recall@10": float(np.mean(hits)) / 10,
                "queries/s": rates["median"],
                "slowest": rates["slowest"],
                "fastest": rates["fastest"],
                "seconds to build": seconds[name.split()[0]],
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """All sizes; print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=[100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    queries = made_up(given.queries, seed=2)
    rows = gather(measure(size, queries, given.rounds) for size in given.sizes)
    facts = {"width": WIDTH, "queries": given.queries, "dtype": "float32"}
    write("search", facts, rows)


if __name__ == "__main__":
    main()

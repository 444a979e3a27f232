"""How many pairs a second a CPU reranks: `python benchmarks/rerank_cpu.py`.

The candidates of dev queries, scored by FlagReranker in the ways people call it, by
sentence-transformers, by our score_pairs in each precision, and by our quickest engine used
naively (query by query, padded to the longest). The window is by default FlagReranker's own, so
that texts keep their lengths. What a precision costs in quality is in `precision.py`.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from bench import Timing, rounds_done, take_turns, write

from rerank_utils.engines import DTYPES, fastest_on_cpu, has_bfloat16, open_engine
from rerank_utils.hub import quiet_libraries
from rerank_utils.pairs import PairEncoder, TruncationWarning
from rerank_utils.pipeline import retrieve
from rerank_utils.profiles import OFFLINE, locate
from rerank_utils.reranking import load_reranker, score_pairs

Pairs = list[tuple[str, str]]
Scorer = Callable[[Pairs], np.ndarray]
LOOP, FLAT, CROSS = "FlagReranker, query by query", "FlagReranker, flat", "CrossEncoder.predict"


def contestants(model: str, max_length: int, depth: int) -> dict[str, Scorer]:
    """Name -> from pairs to scores."""
    from sentence_transformers import CrossEncoder
    from torch.nn import Identity

    reranker = load_reranker(model, max_length, "cpu")
    cross = CrossEncoder(model, device="cpu", max_length=max_length)

    def flag(pairs: Pairs, batch: int) -> np.ndarray:
        return np.array(reranker.compute_score([list(p) for p in pairs], batch_size=batch))

    def by_query(pairs: Pairs, score: Scorer) -> np.ndarray:
        starts = range(0, len(pairs), depth)
        return np.concatenate([score(pairs[start : start + depth]) for start in starts])

    def naive(pairs: Pairs) -> np.ndarray:
        forward = open_engine(reranker.model, "cpu", **fastest_on_cpu())
        tokens = reranker.tokenizer(
            *map(list, zip(*pairs, strict=True)),
            truncation="only_second",
            max_length=max_length,
            padding=True,
            return_tensors="np",
        )
        names = reranker.tokenizer.model_input_names
        return np.asarray(forward({name: tokens[name].astype(np.int64) for name in names}))

    found: dict[str, Scorer] = {LOOP: lambda pairs: by_query(pairs, partial(flag, batch=128))}
    for batch in (128, 32, 8):
        found[f"{FLAT}, batch {batch}"] = partial(flag, batch=batch)
    for batch in (32, 8):
        found[f"{CROSS}, batch {batch}"] = partial(
            cross.predict, batch_size=batch, activation_fn=Identity(), show_progress_bar=False
        )
    for backend, dtype in choices():
        found[f"ours, {backend} {dtype}"] = partial(
            score_pairs, reranker, backend=backend, dtype=dtype
        )
    quick = " ".join(fastest_on_cpu().values())
    found[f"{quick}, query by query"] = lambda pairs: by_query(pairs, naive)
    return found


def choices() -> list[tuple[str, str]]:
    """The backends and precisions that make sense on this processor."""
    pairs = [(backend, dtype) for backend in DTYPES for dtype in DTYPES[backend]]
    wanted = [(b, d) for b, d in pairs if d not in ("auto", "float16")]
    return [(b, d) for b, d in wanted if d != "bfloat16" or has_bfloat16()]


def table(timings: dict[str, Timing], pairs: int) -> list[dict]:
    """A row for each contestant, with its ratios to the ways people use today."""
    flat = min(t.median for name, t in timings.items() if name.startswith(FLAT))
    cross = min(t.median for name, t in timings.items() if name.startswith(CROSS))
    exact = np.asarray(timings[f"{FLAT}, batch 8"].output, dtype=np.float64)
    rows = []
    for name, timing in timings.items():
        scores = np.asarray(timing.output, dtype=np.float64)
        rates = timing.rates(pairs)
        rows.append(
            {
                "what": name,
                "pairs/s": rates["median"],
                "slowest": rates["slowest"],
                "fastest": rates["fastest"],
                "x query by query": timings[LOOP].median / timing.median,
                "x flat at its best": flat / timing.median,
                "x CrossEncoder at its best": cross / timing.median,
                "largest difference": float(np.abs(scores - exact).max()),
                "correlation": float(np.corrcoef(scores, exact)[0, 1]),
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reranker", default=OFFLINE.reranker)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore", TruncationWarning)  # said in the facts instead
    quiet_libraries()
    model = str(locate(given.reranker))
    profile = replace(OFFLINE, queries=given.queries, depth=given.depth)
    collection = profile.load().split("dev", given.queries)
    run = retrieve(profile, collection)
    pairs = [
        (collection.queries[query], collection.documents[document])
        for query, ids, _ in run
        for document in ids[: given.depth]
    ]
    scorers = contestants(model, given.max_length, given.depth)
    first = pairs[: 2 * given.depth]
    timings = take_turns(
        {name: partial(score, pairs) for name, score in scorers.items()},
        given.rounds,
        {name: partial(score, first) for name, score in scorers.items()},
    )
    lengths = PairEncoder(load_reranker(model, given.max_length, "cpu"))(
        np.arange(len(pairs)), pairs
    ).lengths
    facts = {
        "pairs": len(pairs),
        "queries": given.queries,
        "depth": given.depth,
        "max length": given.max_length,
        "tokens": int(lengths.sum()),
        "tokens a pair": float(lengths.mean()),
        "rounds": rounds_done(timings),
        "dtype of others": "float32",
    }
    write("rerank_cpu", facts, table(timings, len(pairs)))


if __name__ == "__main__":
    main()

"""How many documents a second a CPU embeds: `python benchmarks/embed_cpu.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import numpy as np
from bench import rounds_done, take_turns, write

from rerank_utils.embedding import embed_documents, load_embedder
from rerank_utils.hub import quiet_libraries
from rerank_utils.profiles import OFFLINE, locate


def main(arguments: Sequence[str] | None = None) -> None:
    """FlagModel.encode, SentenceTransformer.encode and ours over the corpus."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=None, help="the first so many")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    quiet_libraries()
    from sentence_transformers import SentenceTransformer

    model, length = str(locate(OFFLINE.embedder)), OFFLINE.embedder_length
    texts = list(OFFLINE.load().documents.values())[: given.documents]
    ours = load_embedder(model, OFFLINE.pooling, max_length=length, device="cpu")
    theirs = SentenceTransformer(model, device="cpu")
    theirs.max_seq_length = length
    work = {
        f"FlagModel.encode, batch {batch}": partial(ours.encode, texts, batch_size=batch)
        for batch in (256, 32, 8)
    }
    for batch in (32, 8):
        name = f"SentenceTransformer.encode, batch {batch}"
        work[name] = partial(
            theirs.encode,
            texts,
            batch_size=batch,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
    work["ours"] = partial(embed_documents, ours, texts)
    timings = take_turns(work, given.rounds)
    best = min(timing.median for name, timing in timings.items() if name != "ours")
    exact = timings["ours"].output
    rows = [
        {
            "what": name,
            "documents/s": timing.rates(len(texts))["median"],
            "slowest": timing.rates(len(texts))["slowest"],
            "fastest": timing.rates(len(texts))["fastest"],
            "x the best of the others": best / timing.median,
            "least cosine with ours": float((np.asarray(timing.output) * exact).sum(1).min()),
        }
        for name, timing in timings.items()
    ]
    tokens = ours.tokenizer(texts, truncation=True, max_length=length)["input_ids"]
    facts = {
        "documents": len(texts),
        "max length": length,
        "tokens": sum(map(len, tokens)),
        "rounds": rounds_done(timings),
        "dtype": "float32",
    }
    write("embed_cpu", facts, rows)


if __name__ == "__main__":
    main()

"""Peak memory of an LLM reranker, with and without: `python benchmarks/gemma_memory.py`.

FlagLLMReranker computes a number for each token of a batch and each word of the vocabulary;
score_pairs computes those of the last tokens only. A tiny random Gemma with the vocabulary of the
real one (256,000 words) scores the same pairs both ways, in batches of the same size, each way in
a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import warnings

import numpy as np

from rerank_utils.batching import CPU_TOKENS
from rerank_utils.hub import quiet_libraries
from rerank_utils.llm import PromptEncoder
from rerank_utils.reranking import load_reranker, score_pairs
from rerank_utils.tiny import build_tiny

VOCABULARY = 256_000
PAIRS = [(f"query {i}", f"document {i} " + "buffer overflow " * 12) for i in range(10, 50)]
WAYS = ("compute_score", "score_pairs")


def peak_megabytes() -> float:
    """The most memory that this process has held so far."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (1024 if sys.platform != "darwin" else 1024**2)


def measure(way: str, folder: str) -> dict[str, object]:
    """Score the pairs one way; peaks before and after, in MB."""
    quiet_libraries()
    reranker = load_reranker(folder, device="cpu")
    texts = reranker.get_detailed_inputs(PAIRS)
    tokens = int(PromptEncoder(reranker)(np.arange(len(PAIRS)), texts).lengths.max())
    rows = CPU_TOKENS // tokens
    loaded = peak_megabytes()
    if way == "score_pairs":
        scores = score_pairs(reranker, PAIRS).tolist()
    else:
        scores = reranker.compute_score([list(pair) for pair in PAIRS], batch_size=rows)
    shape = {"rows": rows, "tokens": tokens}
    return {"loaded": loaded, "peak": peak_megabytes(), "scores": scores, **shape}


def main() -> None:
    """Print both peaks, and how far the scores are apart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=WAYS, help="one way only, as JSON")
    parser.add_argument("--model", help="folder of a Gemma reranker; by default a tiny one is made")
    given = parser.parse_args()
    if given.way:
        warnings.simplefilter("ignore")
        print(json.dumps(measure(given.way, given.model)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.model or build_tiny("gemma-reranker", scratch, vocab_size=VOCABULARY)
        found = {}
        for way in WAYS:
            command = [sys.executable, __file__, "--way", way, "--model", str(folder)]
            answer = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
            found[way] = json.loads(answer.splitlines()[-1])
    shape = found["score_pairs"]
    print(f"{len(PAIRS)} pairs, batches of {shape['rows']} x {shape['tokens']} tokens")
    print("| way | loaded | peak | for scoring |\n|---|---:|---:|---:|")
    for way, one in found.items():
        more = one["peak"] - one["loaded"]
        print(f"| {way} | {one['loaded']:,.0f} MB | {one['peak']:,.0f} MB | {more:,.0f} MB |")
    apart = np.abs(np.subtract(*(one["scores"] for one in found.values()))).max()
    print(f"The scores differ by at most {apart:.1e}.")


if __name__ == "__main__":
    main()

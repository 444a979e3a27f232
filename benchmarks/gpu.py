"""How many pairs a second a GPU reranks, and how near its limit: `python benchmarks/gpu.py`.

Models of the shapes of BAAI/bge-reranker-base (278M) and -large and -v2-m3 (568M), with random
weights: speed does not depend on their values. Their vocabulary is kept, their tokenizer is
MiniLM's, which needs no download.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from bench import gather, rounds_done, take_turns, write

from rerank_utils.batching import run_batches
from rerank_utils.bundled import minilm_path
from rerank_utils.cwe import load_cwe
from rerank_utils.engines import open_engine
from rerank_utils.hub import quiet_libraries
from rerank_utils.pairs import PairEncoder, TruncationWarning
from rerank_utils.reranking import load_reranker, score_pairs

SHAPES = {
    "278M": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "568M": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
}
PEAKS = {"H200": 989.5e12, "H100": 989.5e12, "A100": 312e12, "L4": 121e12}
"""Dense half-precision FLOP/s by the makers' data sheets."""


def make_model(shape: str, folder: Path) -> None:
    """Write an XLM-RoBERTa cross-encoder with random weights."""
    import torch
    from transformers import (
        AutoTokenizer,
        PreTrainedTokenizerFast,
        XLMRobertaConfig,
        XLMRobertaForSequenceClassification,
    )

    tokenizer = AutoTokenizer.from_pretrained(minilm_path())
    torch.manual_seed(0)
    sizes = SHAPES[shape]
    config = XLMRobertaConfig(
        vocab_size=250_002 if shape != "tiny" else len(tokenizer),
        intermediate_size=4 * sizes["hidden_size"],
        max_position_embeddings=514,
        type_vocab_size=1,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    special = {name: token for name, token in tokenizer.special_tokens_map.items()}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        **special,
    ).save_pretrained(folder)


def cwe_pairs(number: int, max_length: int) -> list[tuple[str, str]]:
    """Pairs of reports and documents; for 512 tokens documents are joined until they are long."""
    collection = load_cwe()
    queries, documents = list(collection.queries.values()), list(collection.documents.values())
    rng = np.random.default_rng(0)
    joined = 1 if max_length is None else 12
    return [
        (
            queries[rng.integers(len(queries))],
            " ".join(documents[i] for i in rng.integers(len(documents), size=joined)),
        )
        for _ in range(number)
    ]


def flops(config: object, lengths: np.ndarray, layers: int | None = None) -> float:
    """Floating-point operations for texts of these lengths, padding not counted.

    A token costs 2 L (4 d^2 + 2 d f) + 4 L s d: L layers, width d, feed-forward width f, length s.
    """
    number = config.num_hidden_layers if layers is None else layers
    width, inner = config.hidden_size, config.intermediate_size
    tokens = lengths.astype(np.float64)
    token = 2 * number * (4 * width**2 + 2 * width * inner)
    return float((tokens * token + 4 * number * width * tokens**2).sum())


def measure(shape: str, device: str, max_length: int | None, number: int, rounds: int) -> list:
    """FlagReranker, CrossEncoder and ours on one shape and one length mix."""
    from sentence_transformers import CrossEncoder

    pairs = cwe_pairs(number, max_length)
    mix = "CWE's lengths" if max_length is None else f"{max_length} tokens"
    with tempfile.TemporaryDirectory() as scratch:
        make_model(shape, Path(scratch))
        reranker = load_reranker(scratch, 512, device)
        kind = {"model_kwargs": {"dtype": "float16"}} if device.startswith("cuda") else {}
        cross = CrossEncoder(scratch, device=device, max_length=512, **kind)
    listed = [list(pair) for pair in pairs]
    encoded = PairEncoder(reranker)(np.arange(number), pairs)
    forward = open_engine(reranker.model, device)

    def model_only() -> np.ndarray:
        return run_batches([encoded], number, forward, device, "", owner=reranker.model)

    work = {
        "FlagReranker, batch 128": partial(reranker.compute_score, listed),
        "FlagReranker, batch 512": partial(reranker.compute_score, listed, batch_size=512),
        "CrossEncoder, batch 128": partial(
            cross.predict, pairs, batch_size=128, show_progress_bar=False
        ),
        "ours": partial(score_pairs, reranker, pairs),
        "ours, tokenizer out": model_only,
    }
    timings = take_turns(work, rounds)
    config, tokens = reranker.model.config, int(encoded.lengths.sum())
    peak = _peak(device)
    rows = []
    for name, timing in timings.items():
        layers = config.num_hidden_layers - name.startswith("ours")
        rate = timing.rates(number)
        done = flops(config, encoded.lengths, layers) / timing.median
        full = flops(config, encoded.lengths) / timing.median
        rows.append(
            {
                "shape": shape,
                "lengths": mix,
                "what": name,
                "rounds": rounds_done(timings),
                "dtype": str(next(reranker.model.parameters()).dtype).removeprefix("torch."),
                "pairs/s": rate["median"],
                "slowest": rate["slowest"],
                "fastest": rate["fastest"],
                "real tokens/s": tokens / timing.median,
                "x FlagReranker, batch 128": timings["FlagReranker, batch 128"].median
                / timing.median,
                "MFU": full / peak if peak else None,
                "MFU, layers computed": done / peak if peak else None,
            }
        )
    return rows


def _peak(device: str) -> float | None:
    import torch

    if not device.startswith("cuda"):
        return None
    words = set(re.split(r"[ -]", torch.cuda.get_device_name(0)))
    if words & {"PCIe", "NVL"}:  # slower than the sheets of PEAKS
        return None
    return next((peak for key, peak in PEAKS.items() if key in words), None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print the table, write the JSON; without a GPU say so."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["278M", "568M"])
    parser.add_argument("--pairs", type=int, default=8_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    import torch

    if given.device.startswith("cuda") and not torch.cuda.is_available():
        print("no GPU: nothing was measured")
        return
    warnings.simplefilter("ignore", TruncationWarning)
    quiet_libraries()
    mixes = ((None, given.pairs), (512, max(1, given.pairs // 4)))
    rows = gather(
        measure(shape, given.device, length, number, given.rounds)
        for shape in given.shapes
        for length, number in mixes
    )
    write("gpu", {"pairs": given.pairs, "weights": "random"}, rows)


if __name__ == "__main__":
    main()

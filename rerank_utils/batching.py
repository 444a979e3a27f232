"""Batches for transformer models: texts of like length together, a fixed number of tokens each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

Keep = Callable[[np.ndarray, np.ndarray], None]
"""What is done with a finished batch: (positions, outputs)."""
CPU_TOKENS, GPU_TOKENS = 1_024, 65_536
"""Tokens a batch, padding included. Two cores are busy with 1,024; a GPU wants many more."""


def token_batches(lengths: Sequence[int], budget: int) -> list[np.ndarray]:
    """Positions grouped into batches of similar length, longest first.

    Sorting keeps padding small, and the longest batch comes first, so that a lack of memory
    shows at once and not after an hour.

    Args:
        lengths: tokens of each text.
        budget: rows x longest row of a batch stay at or below this; a single text may exceed it.

    Returns:
        Arrays of positions; together they hold every position once.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    batches, start = [], 0
    while start < len(order):
        rows = max(1, budget // max(1, lengths[order[start]]))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def run_batches(
    encoded: Sequence[dict[str, list[int]]],
    tokenizer: Any,
    device: str,
    forward: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    desc: str,
    keep: Keep | None = None,
) -> np.ndarray:
    """Pad, run and put back in order.

    Args:
        encoded: one tokenized text each, without padding.
        tokenizer: pads them.
        device: "cpu", "cuda:0" ...
        forward: from a padded batch (tensors of shape (rows, tokens)) to (rows, ...) outputs.
        desc: label of the progress bar, which counts rows of `encoded`.
        keep: called after each batch with its positions and outputs, so that an interrupted
            run loses one batch and no more.

    Returns:
        (len(encoded), ...) float32 in the order of `encoded`.
    """
    import torch
    from tqdm import tqdm

    lengths = [len(row["input_ids"]) for row in encoded]
    budget = CPU_TOKENS if str(device).startswith("cpu") else GPU_TOKENS
    outputs: list[tuple[np.ndarray, np.ndarray]] = []
    with torch.inference_mode(), tqdm(total=len(encoded), desc=desc, unit="") as bar:
        for positions in token_batches(lengths, budget):
            rows = {name: [encoded[i][name] for i in positions] for name in encoded[0]}
            padded = tokenizer.pad(rows, return_tensors="pt").to(device)
            values = forward(padded).float().cpu().numpy()
            outputs.append((positions, values))
            if keep is not None:
                keep(positions, values)
            bar.update(len(positions))
    result = np.empty((len(encoded), *outputs[0][1].shape[1:]), dtype=np.float32)
    for positions, values in outputs:
        result[positions] = values
    return result


def best_device() -> str:
    """ "cuda:0" where there is an NVIDIA GPU, "mps" on Apple silicon, else "cpu"."""
    import torch

    if torch.cuda.is_available():
        return "cuda:0"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_max_length(max_length: int, config: Any) -> None:
    """Raise ValueError if a model of this configuration cannot read `max_length` tokens."""
    positions = getattr(config, "max_position_embeddings", max_length)
    if config.model_type in ("roberta", "xlm-roberta"):  # their positions start after padding
        positions -= config.pad_token_id + 1
    if not 8 <= max_length <= positions:
        raise ValueError(
            f"max_length is {max_length}: this model reads from 8 to {positions} tokens."
        )


def check_texts(texts: Sequence[str], argument: str) -> None:
    """Raise TypeError at the first text that is not a string, naming its position."""
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{argument}[{position}] is {type(text).__name__}, expected a string.")

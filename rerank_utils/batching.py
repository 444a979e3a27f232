"""Batches for transformer models: texts of like length together, a fixed number of tokens each."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

if TYPE_CHECKING:
    import torch

Item, Result = TypeVar("Item"), TypeVar("Result")
Arrays = dict[str, np.ndarray]
"""A padded batch: input name -> (rows, tokens) int64."""
Keep = Callable[[np.ndarray, np.ndarray], None]
"""What is done with a finished batch: (positions, outputs)."""
CPU_TOKENS, GPU_TOKENS = 1_024, 65_536
"""Tokens a batch, padding included. Two cores are busy with 1,024; a GPU wants many more."""
_budgets: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
"""Model -> the budget that was left after it had run out of memory."""


@dataclass
class Encoded:
    """Tokenized texts that wait for a model.

    Attributes:
        positions: (n,) where each text stands in what the caller gave.
        lengths: (n,) tokens of each text, special tokens included.
        collate: from (rows,) indices into `lengths` to a padded batch.
    """

    positions: np.ndarray
    lengths: np.ndarray
    collate: Callable[[np.ndarray], Arrays]


def token_batches(lengths: Sequence[int] | np.ndarray, budget: int) -> list[np.ndarray]:
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
        rows = max(1, budget // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def run_batches(
    parts: Iterable[Encoded],
    total: int,
    forward: Callable[[Arrays], torch.Tensor | np.ndarray],
    device: str,
    desc: str,
    keep: Keep | None = None,
    owner: Any = None,
) -> np.ndarray:
    """Sort, pad, run and put back in order.

    A batch that does not fit into memory is cut: the budget of tokens is halved until it fits,
    and stays so for this `owner`.

    Args:
        parts: the tokenized texts, all at once or part by part (see `ahead`).
        total: texts in all parts together, at least one.
        forward: from a padded batch to (rows, ...) outputs.
        device: "cpu", "cuda:0" ...
        desc: label of the progress bar, which counts texts.
        keep: called after each batch with its positions and outputs, so that an interrupted
            run loses what is under way and no more.
        owner: the model, for which a halved budget is remembered.

    Returns:
        (total, ...) float32 in the caller's order.

    Raises:
        MemoryError: not even a single text fits.
    """
    import torch
    from tqdm import tqdm

    on_cpu = str(device).startswith("cpu")
    finished: list[tuple[np.ndarray, np.ndarray]] = []
    under_way: deque[tuple[np.ndarray, Any]] = deque()

    def finish(limit: int) -> None:
        """Fetch outputs until at most `limit` batches are under way."""
        while len(under_way) > limit:
            positions, outputs = under_way.popleft()
            if isinstance(outputs, torch.Tensor):
                outputs = outputs.float().cpu().numpy()
            finished.append((positions, outputs))
            if keep is not None:
                keep(positions, outputs)
            bar.update(len(positions))

    with torch.inference_mode(), tqdm(total=total, desc=desc, unit="") as bar:
        for part in parts:
            budget = CPU_TOKENS if on_cpu else GPU_TOKENS
            if owner is not None:
                budget = _budgets.get(owner, budget)
            batches = deque(token_batches(part.lengths, budget))
            while batches:
                rows = batches[0]
                try:
                    outputs = forward(part.collate(rows))
                except (RuntimeError, MemoryError) as error:
                    if not _out_of_memory(error):
                        raise
                    finish(0)
                    budget = _halve(len(rows), int(part.lengths[rows].max()), owner)
                    left = np.concatenate(batches)
                    batches = deque(left[i] for i in token_batches(part.lengths[left], budget))
                    continue
                batches.popleft()
                under_way.append((part.positions[rows], outputs))
                finish(0 if on_cpu else 1)  # a GPU computes while the next batch is made ready
        finish(0)
    result = np.empty((total, *finished[0][1].shape[1:]), dtype=np.float32)
    for positions, outputs in finished:
        result[positions] = outputs
    return result


def _out_of_memory(error: Exception) -> bool:
    import torch

    words = ("out of memory", "can't allocate memory", "bad_alloc")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        word in str(error) for word in words
    )


def _halve(rows: int, width: int, owner: Any) -> int:
    """The budget after a batch of rows x width did not fit; said once for each owner."""
    import torch

    if rows == 1:
        raise MemoryError(
            f"A single text of {width:,} tokens does not fit into memory: choose a smaller "
            "max_length, a smaller model or another device."
        )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    budget = max(width, rows * width // 2)
    if owner is None or owner not in _budgets:
        warnings.warn(
            f"Out of memory with {rows * width:,} tokens a batch: going on with smaller batches.",
            stacklevel=2,
        )
    if owner is not None:
        _budgets[owner] = budget
    return budget


def ahead(items: Iterable[Item], function: Callable[[Item], Result]) -> Iterator[Result]:
    """`function` of each item in turn, computed one item ahead in a thread.

    Tokenizers release Python's lock, so the next part is tokenized while the model runs.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for item in items:
            following = pool.submit(function, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


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

"""Batches for transformer models: texts of like length together, a fixed number of tokens each."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from .files import is_unicode

if TYPE_CHECKING:
    import torch

Item, Result = TypeVar("Item"), TypeVar("Result")
Arrays = dict[str, np.ndarray]
"""A padded batch: input name -> (rows, tokens) int64."""
Forward = Callable[[Arrays], "torch.Tensor | np.ndarray"]
"""From a padded batch to (rows, ...) outputs."""
Submit = Callable[[Callable[[np.ndarray], Arrays], np.ndarray], Callable[[], np.ndarray]]
"""Starts a batch, given what makes it and its rows; gives what waits for its outputs."""
Keep = Callable[[np.ndarray, np.ndarray], None]
"""What is done with a finished batch: (positions, outputs)."""
CPU_TOKENS, GPU_TOKENS = 1_024, 65_536
"""Tokens a batch, padding included. Two cores are busy with 1,024; a GPU wants many more."""
_budgets: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
"""Model -> the budget that was left after it had run out of memory."""


class TruncationWarning(UserWarning):
    """Texts were longer than the model's window, and their ends were not read."""


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
    forward: Forward,
    device: str,
    desc: str | None,
    keep: Keep | None = None,
    owner: Any = None,
    lanes: int | None = None,
) -> np.ndarray:
    """Sort, pad, run and put back in order.

    Several batches are under way at once. On a CPU each has a share of the threads: a core with
    a batch of its own waits for nobody. A GPU computes one while the next is made ready.
    A batch that does not fit into memory is cut: the budget of tokens is halved until it fits,
    and stays so for this `owner`.

    Args:
        parts: the tokenized texts, all at once or part by part (see `ahead`).
        total: texts in all parts together, at least one.
        forward: from a padded batch to (rows, ...) outputs; on a CPU called from several threads.
        device: "cpu", "cuda:0" ...
        desc: label of the progress bar, which counts texts; None for no bar.
        keep: called after each batch with its positions and outputs, so that an interrupted
            run loses at most the batch in which it was interrupted.
        owner: the model, for which a halved budget is remembered.
        lanes: batches at once on a CPU, by default one a thread; 1 for a `forward` that uses all
            threads by itself.

    Returns:
        (total, ...) float32 in the caller's order.

    Raises:
        MemoryError: not even a single text fits.
    """
    from tqdm import tqdm

    on_cpu = str(device).startswith("cpu")
    budget = CPU_TOKENS if on_cpu else GPU_TOKENS
    if owner is not None:
        budget = _budgets.get(owner, budget)
    parts = iter(parts)
    first = next(parts)
    cuts = token_batches(first.lengths, budget)
    waiting = deque((first, rows) for rows in cuts)
    under_way: deque[tuple[Encoded, np.ndarray, Callable[[], np.ndarray]]] = deque()
    finished: list[tuple[np.ndarray, np.ndarray]] = []

    def pull() -> tuple[Encoded, np.ndarray] | None:
        """The next batch, cut to what the budget is now."""
        if not waiting:
            part = next(parts, None)
            if part is None:
                return None
            waiting.extend((part, rows) for rows in token_batches(part.lengths, budget))
        part, rows = waiting.popleft()
        now, *later = token_batches(part.lengths[rows], budget)
        waiting.extendleft((part, rows[cut]) for cut in reversed(later))
        return part, rows[now]

    def done(positions: np.ndarray, outputs: np.ndarray) -> None:
        finished.append((positions, outputs))
        if keep is not None:
            keep(positions, outputs)

    opened = _cpu_lanes(forward, len(cuts), lanes) if on_cpu else _gpu_lanes(forward)
    hidden = {"disable": True} if desc is None else {}  # given, it would outdo TQDM_DISABLE
    with (
        opened as (lane_count, submit),
        tqdm(total=total, desc=desc, unit="", **hidden) as bar,
    ):
        try:
            while True:
                while len(under_way) < lane_count and (batch := pull()):
                    part, rows = batch
                    under_way.append((part, rows, submit(part.collate, rows)))
                if not under_way:
                    break
                part, rows, fetch = under_way.popleft()
                try:
                    outputs = fetch()
                except (RuntimeError, MemoryError) as error:
                    if not _out_of_memory(error):
                        raise
                    budget = _halve(len(rows), int(part.lengths[rows].max()), owner)
                    waiting.appendleft((part, rows))
                    continue
                done(part.positions[rows], outputs)
                bar.update(len(rows))
        except BaseException:  # an interrupt, above all: what the other lanes finish is kept
            for part, rows, fetch in under_way:
                with suppress(Exception):
                    done(part.positions[rows], fetch())
            raise
    result = np.empty((total, *finished[0][1].shape[1:]), dtype=np.float32)
    for positions, outputs in finished:
        result[positions] = outputs
    return result


@contextmanager
def _cpu_lanes(forward: Forward, batches: int, lanes: int | None) -> Iterator[tuple[int, Submit]]:
    """As many batches at once as there are threads; fewer batches share the threads."""
    import torch

    threads = torch.get_num_threads()
    lanes = max(1, min(lanes or threads, batches))

    def run(collate: Callable[[np.ndarray], Arrays], rows: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return _to_numpy(forward(collate(rows)))

    with ThreadPoolExecutor(
        lanes, initializer=torch.set_num_threads, initargs=(threads // lanes,)
    ) as pool:
        try:
            yield lanes, lambda collate, rows: pool.submit(run, collate, rows).result
        finally:
            pool.shutdown(cancel_futures=True)  # after an interrupt: what has not begun
            torch.set_num_threads(threads)  # torch gives new threads what was set last


@contextmanager
def _gpu_lanes(forward: Forward) -> Iterator[tuple[int, Submit]]:
    """Two batches at once: the GPU is given the next before the outputs of one are fetched."""
    import torch

    def submit(collate: Callable[[np.ndarray], Arrays], rows: np.ndarray) -> Callable:
        try:
            outputs = forward(collate(rows))
        except (RuntimeError, MemoryError) as error:
            # the traceback would keep what the batch has put into memory
            spent = _out_of_memory(error)
            return partial(_raise, error.with_traceback(None) if spent else error)
        return lambda: _to_numpy(outputs)

    with torch.inference_mode():
        yield 2, submit


def _raise(error: Exception) -> NoReturn:
    raise error


def _to_numpy(outputs: torch.Tensor | np.ndarray) -> np.ndarray:
    return outputs if isinstance(outputs, np.ndarray) else outputs.float().cpu().numpy()


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


def find_device(device: str | None = None) -> str:
    """The device of this name, by default the best; ValueError if there is none such here."""
    import torch

    if device is None:
        return best_device()
    here = ["cpu"]
    if torch.accelerator.is_available():  # a GPU of any maker
        kind = torch.accelerator.current_accelerator().type
        here += [kind, *(f"{kind}:{number}" for number in range(torch.accelerator.device_count()))]
    if device not in here:
        raise ValueError(f"device is {device!r}: this machine has {', '.join(here)}.")
    return device


def check_max_length(max_length: int, config: Any) -> None:
    """Raise ValueError if a model of this configuration cannot read `max_length` tokens."""
    positions = getattr(config, "max_position_embeddings", max_length)
    if config.model_type in ("roberta", "xlm-roberta"):  # their positions start after padding
        positions -= config.pad_token_id + 1
    if not 8 <= max_length <= positions:
        raise ValueError(
            f"max_length is {max_length}: this model reads from 8 to {positions} tokens."
        )


def check_texts(texts: Iterable[str], argument: str) -> list[str]:
    """The texts as a list, in the order in which they come; what is no list of texts is refused.

    Raises:
        TypeError: one string in place of a list, a mapping or a set, or an entry that is no string,
            with its position.
        ValueError: a text that cannot be written in UTF-8, with its position.
    """
    if isinstance(texts, str):
        raise TypeError(f"{argument} is one string, expected a list of strings: give [{argument}].")
    if isinstance(texts, Mapping | set | frozenset):  # the first gives its keys, a set any order
        raise TypeError(
            f"{argument} is a {type(texts).__name__}, expected a list of strings: of a mapping "
            "from ids to texts give list(mapping.values())."
        )
    texts = list(texts)
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{argument}[{position}] is {type(text).__name__}, expected a string.")
        if not is_unicode(text):
            raise ValueError(
                f"{argument}[{position}] holds half a character (a lone surrogate): read it anew "
                "with the right encoding."
            )
    return texts

"""What every training asks before it starts, and how it keeps its folder."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .batching import best_device, check_max_length, find_device
from .bundled import file_sha256
from .engines import has_bfloat16
from .files import replacing_folder, write_whole
from .hub import quiet_libraries

if TYPE_CHECKING:
    from .mining import Group

WEIGHT_FILES = ("*.safetensors", "*.bin")


def training_device(device: str | None) -> str:
    """The device, if training can run on it; by default an NVIDIA GPU if there is one."""
    if device is None:
        best = best_device()
        return best if best.startswith("cuda") else "cpu"
    if device not in ("cpu", "cuda", "cuda:0"):
        raise ValueError(
            f"device is {device!r}: training runs on 'cpu' or 'cuda:0'; set CUDA_VISIBLE_DEVICES "
            "before Python starts to choose another GPU."
        )
    return find_device(device)


def check_file(groups: Sequence[Group], path: Path, batch: int, group: int, distil: bool) -> None:
    """Refuse groups that make no batch, or have no scores where they are needed.

    Warns:
        UserWarning: lines have too few negatives for a group.
    """
    if group < 2:
        raise ValueError(f"group is {group}: a group needs a positive and a negative.")
    if not 1 <= batch <= len(groups):
        raise ValueError(
            f"batch is {batch}, but {path} has {len(groups)} lines: choose from 1 to that number, "
            "or no step can be made."
        )
    scored = sum(group.pos_scores is not None for group in groups)
    if distil and scored < len(groups):
        raise ValueError(
            f"{len(groups) - scored} of {len(groups)} lines of {path} have no pos_scores and "
            "neg_scores, which distil needs: fill them with teacher_scores."
        )
    short = sum(len(line.neg) < group - 1 for line in groups)
    if short:
        warnings.warn(
            f"{short} of {len(groups)} lines have fewer than {group - 1} negatives: a group of "
            f"{group} shows some of them twice.",
            stacklevel=3,
        )


def check_steps(steps: int | None, epochs: float | None, batches: int) -> int:
    """How many steps these arguments ask for; ValueError if not one of both, or below 1."""
    if (steps is None) == (epochs is None):
        raise ValueError("Give either steps or epochs, one of them.")
    total = steps if epochs is None else round(epochs * batches)
    if total < 1 or total != int(total):
        raise ValueError(f"That makes {total} steps: train for one or more, a whole number.")
    return int(total)


def check_pace(rate: float, warmup: float, save_every: int, log_every: int) -> None:
    """ValueError for what is out of its range."""
    if not (0 < rate < inf and save_every > 0 and log_every > 0 and 0 <= warmup <= 1):
        raise ValueError(
            f"rate is {rate}, save_every {save_every}, log_every {log_every} and warmup {warmup}: "
            "the first three must be numbers above 0, warmup from 0 to 1."
        )


def check_dropout(dropout: float | None) -> None:
    """ValueError for what is no share; with a share of 1 nothing could be learned."""
    if dropout is not None and not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}: give a share from 0 to below 1.")


def check_window(model: str, query_length: int, passage_length: int) -> int:
    """The length of a pair, in tokens; ValueError if the model cannot read as much."""
    from transformers import AutoConfig

    window = query_length + passage_length
    try:
        if min(query_length, passage_length) < 8:
            raise ValueError("each must be at least 8.")
        check_max_length(window, AutoConfig.from_pretrained(model))
    except ValueError as error:
        raise ValueError(
            f"query_length {query_length} and passage_length {passage_length} make a window of "
            f"{window} tokens: {error}"
        ) from None
    return window


def can_half(device: str) -> bool:
    """Whether this is a GPU that computes in bfloat16."""
    import torch

    # older cards are said to support it too, by a slow detour
    return device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)


def half_is_quick(device: str) -> bool:
    """Whether bfloat16 saves time there; a processor without instructions for it is far slower."""
    return can_half(device) or (device == "cpu" and has_bfloat16())


def identity(base: str | Path) -> str:
    """What tells one base model from another: the sha256 of a folder's weights, or a hub name."""
    folder = Path(base)
    if not folder.is_dir():
        return str(base)
    weights = sorted(path for kind in WEIGHT_FILES for path in folder.glob(kind))
    return " ".join(file_sha256(path) for path in weights)


def claim_folder(output: Path, recipe: dict[str, Any]) -> None:
    """Take a new folder, or one of the same training; refuse any other."""
    saved = output / "recipe.json"
    if saved.exists():
        before = json.loads(saved.read_text(encoding="utf-8"))
        odd = [key for key in recipe if before.get(key) != recipe[key]]
        if odd:
            changed = ", ".join(
                f"{key} {before.get(key)!s:.16}, now {recipe[key]!s:.16}" for key in odd
            )
            raise ValueError(
                f"{output} holds a training with other arguments ({changed}): choose another "
                "folder, or the same arguments to go on."
            )
    elif output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty and holds no training: choose a new folder.")
    output.mkdir(parents=True, exist_ok=True)
    if not saved.exists():
        write_whole(json.dumps(recipe, indent=1) + "\n", saved)


def write_log(rows: Sequence[dict[str, float]], path: Path) -> None:
    """Write all losses so far: a JSON object a line."""
    write_whole("".join(json.dumps(row) + "\n" for row in rows), path)


def read_log(output: str | Path) -> list[dict[str, float]]:
    """The losses of a training: a dict for each line of its log, in order.

    `finetune` writes "step", "loss" and "rate"; `rerank_utils.training` "step", "distil" and
    "label". A loss is the mean over the steps since the last one, or since the training was
    resumed.

    Args:
        output: the folder of the training.
    """
    lines = (Path(output) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def write_model(model: Any, tokenizer: Any, folder: str | Path, window: int | None = None) -> Path:
    """Write a model, whole or not at all: an interrupt or a full disk leaves no half of it.

    Args:
        model: of transformers.
        tokenizer: its tokenizer.
        folder: where.
        window: tokens of a pair that the tokenizer must allow; None leaves it as it is.

    Returns:
        `folder`.

    Raises:
        OSError: it cannot be written.
    """
    folder = Path(folder)
    if window is not None:
        _widen(tokenizer, window)
    with saving(folder, "The model"), replacing_folder(folder) as fresh:
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
    return folder


def _widen(tokenizer: Any, window: int) -> None:
    if tokenizer.model_max_length > 1_000_000:  # what transformers says where nobody has set it
        tokenizer.model_max_length = window
    tokenizer.model_max_length = max(window, tokenizer.model_max_length)


@contextmanager
def quiet() -> Iterator[None]:
    """No log lines and bars from the libraries, and the root logger as before afterwards."""
    from datasets.utils.logging import (
        disable_progress_bar,
        enable_progress_bar,
        is_progress_bar_enabled,
    )

    quiet_libraries()
    root, bars = logging.getLogger(), is_progress_bar_enabled()
    handlers, level = list(root.handlers), root.level
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # FlagEmbedding's collator pads to the longest, and says a length that is not used
            warnings.filterwarnings("ignore", "`max_length` is ignored when `padding`")
            yield
    finally:
        logging.disable(before)
        root.handlers[:], root.level = handlers, level
        if bars:
            enable_progress_bar()


def save_state(state: dict[str, Any], path: Path) -> None:
    """Save what a training needs to go on; the last good state stays if that fails.

    Raises:
        OSError: it cannot be saved.
    """
    import torch

    fresh = path.with_suffix(".tmp")
    try:
        with saving(path, "The state of the training"):
            torch.save(state, fresh)
            fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


@contextmanager
def saving(path: Path, what: str) -> Iterator[None]:
    """The errors of a full disk as one sentence, whatever class the libraries give them."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's writer raises the second
        raise OSError(
            f"{what} could not be saved in {path} ({error}); what was saved before, if anything, "
            "is kept. Make room on the disk and call again with the same arguments."
        ) from error

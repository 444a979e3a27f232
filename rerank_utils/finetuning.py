"""Fine-tuning: a reranker for one's own data, with FlagEmbedding's own trainer.

`finetune` wraps `FlagEmbedding.finetune.reranker.encoder_only.base` (see `trainer` for what is
mended in it). `teacher_scores` and `half_depth` are for distillation: a small model that learns
to score as a large one does.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .batching import best_device, check_max_length
from .bundled import file_sha256, untrained_reranker
from .hub import find_model, quiet_libraries
from .mining import Group, read_jsonl
from .reranking import score_pairs

if TYPE_CHECKING:
    from FlagEmbedding import FlagReranker

WEIGHT_FILES = ("*.safetensors", "*.bin")


class CollapseWarning(UserWarning):
    """The loss grew, or ended no better than guessing: the model has probably collapsed."""


def finetune(
    base: str | Path,
    train_file: str | Path,
    output: str | Path,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    rate: float = 2e-5,
    batch: int = 4,
    group: int = 8,
    query_length: int = 64,
    passage_length: int = 192,
    warmup: float = 0.1,
    dropout: float | None = None,
    half: bool | None = None,
    distil: bool = False,
    seed: int = 0,
    save_every: int = 100,
    log_every: int = 10,
    device: str | None = None,
) -> Path:
    """Train a reranker on groups of texts, with FlagEmbedding's trainer, in this process.

    For each line of the file one positive and `group - 1` negatives are drawn, and the loss is
    the cross-entropy of picking the positive out of the group. The learning rate rises from 0
    during the warm-up and falls to 0 in a straight line.

    With `distil` the loss is the sum of two cross-entropies of equal weight: the one above, and
    one against the softmax of the teacher's scores over the same group. FlagEmbedding has no
    temperature for them; `teacher_scores` does.

    What is interrupted goes on: call again with the same arguments. `output` holds the recipe,
    the losses (see `read_log`), the newest checkpoint while training, and at the end the model.

    Args:
        base: a model folder or a hub name: a reranker, or any encoder, which gets a fresh head.
        train_file: lines as `mining.write_jsonl` writes them.
        output: a folder of its own, new or of the same training.
        steps, epochs: how long; give one of them. A step is one batch, an epoch is once through
            the file, less the lines that fill no batch.
        rate: the highest learning rate. Too high a rate is the usual cause of a model that
            scores everything alike. 2e-5 suits a large trained reranker; a small one with a
            fresh head can take ten times as much.
        batch: lines a step.
        group: texts a line, one of them a positive. A line with fewer negatives shows some twice.
        query_length, passage_length: together the window, in tokens, special tokens included.
            The query may take query_length + passage_length // 4 of it; the passage is cut.
        warmup: share of the steps.
        dropout: share of values set to zero in training, by default what the model says. Without
            dropout (0) a CPU is a good deal quicker.
        half: compute in bfloat16 (weights stay in float32); by default on a GPU that can.
        distil: also learn the pos_scores and neg_scores, which all lines must have.
        seed: of the head, if it is fresh, the order of the lines and all that is drawn. Set for
            the whole process.
        save_every, log_every: steps between checkpoints, and between losses in the log.
        device: "cpu" or "cuda:0"; by default a GPU if there is one. Set CUDA_VISIBLE_DEVICES
            to choose another GPU.

    Returns:
        The folder of the trained model, `output/model`, for FlagReranker or `load_reranker`.

    Warns:
        CollapseWarning: see the class.
        UserWarning: lines have too few negatives for a group.

    Raises:
        ValueError: an argument out of its range, a training file that `read_jsonl` refuses,
            too few lines for a batch, or a folder that holds another training.
        FileNotFoundError, ConnectionError: see `hub.find_model`.
        FloatingPointError: the loss is not a finite number.
        OSError: a checkpoint cannot be saved; the last one stays.
        KeyboardInterrupt: with what is kept, and how to go on.
    """
    output, train_file = Path(output), Path(train_file)
    device = _check_device(device or best_device())
    groups = read_jsonl(train_file)
    _check_file(groups, train_file, batch, group, distil)
    steps = _check_steps(steps, epochs, len(groups) // batch)
    if min(rate, save_every, log_every) <= 0 or not 0 <= warmup <= 1:
        raise ValueError(
            f"rate is {rate}, save_every {save_every}, log_every {log_every} and warmup {warmup}: "
            "the first three must be above 0, warmup from 0 to 1."
        )
    found = find_model(base)
    window = _check_window(found, query_length, passage_length)
    settings = {
        "steps": steps,
        "rate": rate,
        "batch": batch,
        "group": group,
        "query_length": query_length,
        "passage_length": passage_length,
        "warmup": warmup,
        "dropout": dropout,
        "half": _can_half(device) if half is None else half,
        "distil": distil,
        "seed": seed,
    }
    data = {"base": _identity(base), "train_file": file_sha256(train_file)}
    _claim_folder(output, settings | data)
    model = output / "model"
    if model.exists():
        return model
    with _quiet(), tempfile.TemporaryDirectory(prefix="rerank-lines-") as cache:
        from .trainer import runner

        running = runner(
            found,
            train_file,
            output,
            Path(cache),
            device=device,
            save_every=save_every,
            log_every=log_every,
            **settings,
        )
        _train(running, output)
        _write_model(running, model, window)
    shutil.rmtree(output / "checkpoints", ignore_errors=True)
    _warn_of_collapse(read_log(output), math.log(group) * (2 if distil else 1))
    return model


def read_log(output: str | Path) -> list[dict[str, float]]:
    """The losses of a training: "step", "loss" (mean since the last) and "rate", in order.

    Args:
        output: the folder that was given to `finetune`.
    """
    lines = (Path(output) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _check_device(device: str) -> str:
    if device not in ("cpu", "cuda", "cuda:0"):
        raise ValueError(
            f"device is {device!r}: training runs on 'cpu' or 'cuda:0'; set CUDA_VISIBLE_DEVICES "
            "before Python starts to choose another GPU."
        )
    if device == "cpu":
        return device
    import torch

    if not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but there is no such GPU here: use 'cpu'.")
    return device


def _check_file(groups: Sequence[Group], path: Path, batch: int, group: int, distil: bool) -> None:
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


def _check_steps(steps: int | None, epochs: float | None, batches: int) -> int:
    if (steps is None) == (epochs is None):
        raise ValueError("Give either steps or epochs, one of them.")
    total = steps if epochs is None else round(epochs * batches)
    if total < 1:
        raise ValueError(f"That makes {total} steps: train for at least one.")
    return total


def _check_window(model: str, query_length: int, passage_length: int) -> int:
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


def _can_half(device: str) -> bool:
    import torch

    return device.startswith("cuda") and torch.cuda.is_bf16_supported()


def _identity(base: str | Path) -> str:
    """What tells one base model from another: the sha256 of a folder's weights, or a hub name."""
    folder = Path(base)
    if not folder.is_dir():
        return str(base)
    weights = sorted(path for kind in WEIGHT_FILES for path in folder.glob(kind))
    return " ".join(file_sha256(path) for path in weights)


def _claim_folder(output: Path, recipe: dict[str, Any]) -> None:
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
    saved.write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")


def _train(running: Any, output: Path) -> None:
    from .trainer import last_checkpoint

    try:
        running.train(output / "checkpoints")
    except KeyboardInterrupt:
        step, _ = last_checkpoint(output / "checkpoints")
        kept = f"the checkpoint of step {step} is kept" if step else "no checkpoint was saved yet"
        raise KeyboardInterrupt(
            f"Stopped after step {running.trainer.state.global_step}; {kept} in {output}. Call "
            "finetune again with the same arguments to go on from there."
        ) from None


def _write_model(running: Any, folder: Path, window: int) -> None:
    """Write into a fresh folder, then move: a folder called `model` is always whole."""
    fresh = folder.with_name("model.writing")
    shutil.rmtree(fresh, ignore_errors=True)
    tokenizer = running.tokenizer
    if tokenizer.model_max_length > 1_000_000:  # what transformers says where nobody has set it
        tokenizer.model_max_length = window
    tokenizer.model_max_length = max(window, tokenizer.model_max_length)
    try:
        running.model.model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        fresh.replace(folder)
    except Exception as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise OSError(
            f"The model could not be written to {folder} ({error}); the last checkpoint is kept. "
            "Make room on the disk and call again with the same arguments."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No log lines and bars from the libraries, and their log set-up undone afterwards."""
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


def _warn_of_collapse(log: Sequence[dict[str, float]], guessing: float) -> None:
    """Warn where the last losses are above the first, or no better than guessing.

    Args:
        log: see `read_log`; fewer than 5 losses say nothing.
        guessing: the loss of a model that scores everything alike.
    """
    if len(log) < 5:
        return
    part = max(1, len(log) // 5)
    first = sum(row["loss"] for row in log[:part]) / part
    last = sum(row["loss"] for row in log[-part:]) / part
    grew = last > 1.02 * first
    if grew or last > 0.98 * guessing:
        said = f"rose from {first:.2f} to {last:.2f}" if grew else f"ended at {last:.2f}"
        warnings.warn(
            f"The loss {said}; a model that scores everything alike has {guessing:.2f}. The rate "
            f"of {max(row['rate'] for row in log):.0e} is probably too high, or the steps too "
            "few: try a third of it, and look at the curve (read_log).",
            CollapseWarning,
            stacklevel=3,
        )


def fresh_reranker(encoder: str | Path, output: str | Path, max_length: int = 512) -> Path:
    """An encoder with an untrained one-logit head: what a reranker starts from.

    As it is, it ranks at random; it is there to be trained and compared with.

    Args:
        encoder: a model folder or hub name, such as an embedder.
        output: where the model is written, with its tokenizer.
        max_length: the window that is stored with the tokenizer, in tokens.

    Returns:
        `output`, for FlagReranker.
    """
    import torch
    from transformers import AutoTokenizer

    found = find_model(encoder)
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = untrained_reranker(found)
        check_max_length(max_length, model.config)
        model.save_pretrained(output)
        tokenizer = AutoTokenizer.from_pretrained(found, model_max_length=max_length)
        tokenizer.save_pretrained(output)
    return Path(output)


def teacher_scores(
    groups: Sequence[Group],
    reranker: FlagReranker,
    temperature: float = 1.0,
    **options: Any,
) -> list[Group]:
    """The same groups with a teacher's scores, for `finetune(..., distil=True)`.

    FlagEmbedding takes the softmax of the scores of a group as the target. Logits are right
    for that. Probabilities are not: from 0 to 1 they give nearly the same target to all.

    Args:
        groups: see `mining.Mined`.
        reranker: the teacher.
        temperature: what the scores are divided by. Above 1 the target is softer, and tells more
            about the order of the negatives.
        options: cache, backend and dtype of `reranking.score_pairs`.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}: give a number above 0.")
    pairs = [(group.query, text) for group in groups for text in [*group.pos, *group.neg]]
    distinct = list(dict.fromkeys(pairs))
    found = score_pairs(reranker, distinct, **options) / temperature
    score = dict(zip(distinct, found.tolist(), strict=True))
    return [
        replace(
            group,
            pos_scores=[score[group.query, text] for text in group.pos],
            neg_scores=[score[group.query, text] for text in group.neg],
        )
        for group in groups
    ]


def half_depth(source: str | Path, output: str | Path, layers: Sequence[int] | None = None) -> Path:
    """A reranker with some of the layers of another: what a distilled model starts from.

    Embeddings, kept layers, pooler, head and tokenizer are the source's. Without training the
    result ranks badly: its layers have never been neighbours.

    Args:
        source: folder or hub name of a BERT or (XLM-)RoBERTa reranker.
        output: where the new model is written.
        layers: which layers to keep, counted from 0, in rising order; by default every second
            one, the last included.

    Returns:
        `output`, for FlagReranker.

    Raises:
        ValueError: layers that the model does not have, or a model of another kind.
    """
    from torch.nn import ModuleList
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    found = find_model(source)
    if Path(output).resolve() == Path(found).resolve():
        raise ValueError(f"output is the source itself, {output}: choose another folder.")
    with _quiet():
        model = AutoModelForSequenceClassification.from_pretrained(found)
        encoder = getattr(model.base_model, "encoder", None)
        stack = getattr(encoder, "layer", None)
        if not isinstance(stack, ModuleList):
            raise ValueError(
                f"{source} is a {model.config.model_type} model, whose layers are not known here: "
                "give a BERT or XLM-RoBERTa reranker."
            )
        depth = len(stack)
        kept = list(range((depth - 1) % 2, depth, 2)) if layers is None else list(layers)
        if not kept or kept != sorted(set(kept)) or not 0 <= kept[0] <= kept[-1] < depth:
            raise ValueError(
                f"layers is {kept}: name layers from 0 to {depth - 1}, each once, in rising order."
            )
        encoder.layer = ModuleList(stack[i] for i in kept)
        model.config.num_hidden_layers = len(kept)
        model.save_pretrained(output)
        AutoTokenizer.from_pretrained(found).save_pretrained(output)
    return Path(output)

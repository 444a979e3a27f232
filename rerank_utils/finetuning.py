"""Fine-tuning: a reranker for one's own data, with FlagEmbedding's own trainer.

`finetune` wraps `FlagEmbedding.finetune.reranker.encoder_only.base` (see `trainer` for what is
mended in it). How a small model learns from a large one is in `distillation`.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .batching import check_max_length
from .bundled import file_sha256, untrained_reranker
from .hub import find_model
from .mining import read_jsonl, write_jsonl
from .opening import read_architecture, require_one_number
from .training_folder import (
    can_half,
    check_dropout,
    check_file,
    check_pace,
    check_steps,
    check_window,
    claim_folder,
    identity,
    quiet,
    read_log,
    training_device,
    write_model,
)


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
        device: "cpu" or "cuda:0"; by default an NVIDIA GPU if there is one. Set
            CUDA_VISIBLE_DEVICES to choose another GPU.

    Returns:
        The folder of the trained model, `output/model`, for FlagReranker or `load_reranker`.

    Warns:
        CollapseWarning: see the class.
        UserWarning: lines have too few negatives for a group.

    Raises:
        ValueError: an argument out of its range, a base that is a classifier of several classes,
            a training file that `read_jsonl` refuses, too few lines for a batch, or a folder that
            holds another training.
        FileNotFoundError, ConnectionError: see `hub.find_model`.
        FloatingPointError: the loss is not a finite number.
        OSError: a checkpoint cannot be saved; the last one stays.
        KeyboardInterrupt: with what is kept, and how to go on.
    """
    output, train_file = Path(output), Path(train_file)
    device = training_device(device)
    groups = read_jsonl(train_file)
    check_file(groups, train_file, batch, group, distil)
    steps = check_steps(steps, epochs, len(groups) // batch)
    check_pace(rate, warmup, save_every, log_every)
    check_dropout(dropout)
    found = find_model(base)
    _check_head(found, base)
    window = check_window(found, query_length, passage_length)
    settings = {
        "steps": steps,
        "rate": rate,
        "batch": batch,
        "group": group,
        "query_length": query_length,
        "passage_length": passage_length,
        "warmup": warmup,
        "dropout": dropout,
        "half": can_half(device) if half is None else half,
        "distil": distil,
        "seed": seed,
    }
    data = {"base": identity(base), "train_file": file_sha256(train_file)}
    claim_folder(output, settings | data)
    model = output / "model"
    if model.exists():
        shutil.rmtree(output / "checkpoints", ignore_errors=True)  # an interrupt may leave them
        return model
    with quiet(), tempfile.TemporaryDirectory(prefix="rerank-lines-") as cache:
        from .trainer import runner

        running = runner(
            found,
            write_jsonl(groups, Path(cache) / "train.jsonl"),  # as checked, whatever its name
            output,
            Path(cache),
            device=device,
            save_every=save_every,
            log_every=log_every,
            **settings,
        )
        _train(running, output)
        write_model(running.model.model, running.tokenizer, model, window)
    shutil.rmtree(output / "checkpoints", ignore_errors=True)
    _warn_of_collapse(read_log(output), math.log(group) * (2 if distil else 1))
    return model


def _check_head(found: str, base: str | Path) -> None:
    """Refuse a head of several classes; an encoder without one gets a fresh head."""
    from transformers import AutoConfig

    if read_architecture(found, base).endswith("ForSequenceClassification"):
        require_one_number(AutoConfig.from_pretrained(found), base)


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


def _warn_of_collapse(log: Sequence[dict[str, float]], guessing: float) -> None:
    """Warn where the last losses are clearly above the first, or no better than guessing.

    Args:
        log: see `read_log`; fewer than 5 losses say nothing.
        guessing: the loss of a model that scores everything alike.
    """
    if len(log) < 5:
        return
    part = max(1, len(log) // 5)
    first = sum(row["loss"] for row in log[:part]) / part
    last = sum(row["loss"] for row in log[-part:]) / part
    grew = last > first + 0.1 * guessing  # a low loss only wobbles
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

    Raises:
        ValueError: the model has a head already, or cannot read so many tokens; or output is the
            encoder itself.
        OSError: it cannot be written; what stood there before is kept.
    """
    import torch
    from transformers import AutoTokenizer

    found = find_model(encoder)
    kind = read_architecture(found, encoder)
    if kind.endswith("ForSequenceClassification"):
        raise ValueError(f"{encoder} has a head already ({kind}): give it to finetune as it is.")
    if Path(output).resolve() == Path(found).resolve():
        raise ValueError(f"output is the encoder itself, {output}: choose another folder.")
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        model = untrained_reranker(found)
        check_max_length(max_length, model.config)
        tokenizer = AutoTokenizer.from_pretrained(found, model_max_length=max_length)
        return write_model(model, tokenizer, output)

"""Distillation: a small reranker learns to score as a large one does.

The student is cut out of its teacher (`half_depth`). It can learn the teacher's scores alone
(`teacher_scores`, then `finetuning.finetune` with `distil`), or what the teacher's layers make of
every token as well (`match_layers`). A score is one number a pair, a layer some hundred numbers a
token: from the same pairs the student learns far more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .batching import check_max_length
from .bundled import file_sha256
from .hub import find_model
from .mining import Group, read_jsonl
from .opening import read_architecture, require_head, require_one_number
from .reranking import score_pairs
from .training_folder import (
    check_file,
    check_pace,
    check_steps,
    claim_folder,
    half_is_quick,
    identity,
    quiet,
    training_device,
    write_model,
)

if TYPE_CHECKING:
    from FlagEmbedding import FlagReranker
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}: give a finite number above 0.")
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
        ValueError: layers that the model does not have, a model of another kind, or one that is
            no reranker.
        FileNotFoundError, ConnectionError: see `hub.find_model`.
        OSError: it cannot be written; what stood there before is kept.
    """
    from .matching import cut

    if Path(output).resolve() == Path(find_model(source)).resolve():
        raise ValueError(f"output is the source itself, {output}: choose another folder.")
    with quiet():
        model, tokenizer = _open(source)
        cut(model, layers)
        return write_model(model, tokenizer, output)


def _open(source: str | Path, **options: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A reranker as transformers has it, and its tokenizer."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    found = find_model(source)
    require_head(Path(found), read_architecture(found, source))
    model = AutoModelForSequenceClassification.from_pretrained(found, **options)
    require_one_number(model.config, source)
    return model, AutoTokenizer.from_pretrained(found)


def match_layers(
    teacher: str | Path,
    train_file: str | Path,
    output: str | Path,
    *,
    layers: Sequence[int] | None = None,
    student: str | Path | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    layer_share: float = 1.0,
    rate: float = 3e-4,
    batch: int = 4,
    max_length: int = 512,
    warmup: float = 0.05,
    half: bool | None = None,
    seed: int = 0,
    save_every: int = 100,
    log_every: int = 10,
    device: str | None = None,
) -> Path:
    """Train a student of fewer layers on what its teacher makes of the same pairs.

    The student is cut out of the teacher, so each of its layers has one to follow. The loss of a
    step is the sum of

    - for each layer the mean squared distance from the teacher's, over the variance of the
      teacher's; of the last layer only the first token, as the head reads no other;
    - the KL divergence of the student's softmax over a group from the teacher's;
    - a tenth of the mean squared distance of their logits.

    Nobody says which text of a group is right: no labels are used. The embeddings stay the
    teacher's. That a student also follows the layers is the idea of TinyBERT (Jiao et al., 2020,
    arXiv:1909.10351).

    What is interrupted goes on: call again with the same arguments. `output` holds the recipe,
    the losses (see `finetuning.read_log`), the state while training, and at the end the model.

    Args:
        teacher: folder or hub name of a BERT or (XLM-)RoBERTa reranker.
        train_file: lines as `mining.write_jsonl` writes them, with or without scores. All texts
            of a line are a group.
        output: a folder of its own, new or of the same training.
        layers: which of the teacher's layers to keep, see `half_depth`.
        student: folder or hub name of what to begin with in place of the teacher's own layers: a
            student of an earlier teacher follows the next one sooner.
        steps, epochs: how long; give one of them. A step is one batch.
        layer_share: share of the steps in which the layers count, the first ones; in the others
            the scores alone do, and the student may leave its teacher's layers. The loss in the
            log falls where the layers leave it.
        rate: the highest learning rate.
        batch: lines a step.
        max_length: the window, in tokens, special tokens included.
        warmup: share of the steps.
        half: compute in bfloat16 (weights stay in float32); by default where that is quick.
        seed: of the order of the lines.
        save_every, log_every: steps between saved states, and between losses in the log.
        device: "cpu" or "cuda:0"; by default an NVIDIA GPU if there is one.

    Returns:
        The folder of the trained model, `output/model`, for FlagReranker or `load_reranker`.

    Raises:
        ValueError: an argument out of its range, a teacher that is no reranker, a student of
            another shape, a training file that `read_jsonl` refuses, too few lines for a batch,
            or a folder that holds another training.
        FileNotFoundError, ConnectionError: see `hub.find_model`.
        FloatingPointError: the loss is not a finite number.
        OSError: a state cannot be saved; the last one stays.
        KeyboardInterrupt: with what is kept, and how to go on.
    """
    from .matching import STATE, Matching

    output, train_file = Path(output), Path(train_file)
    device = training_device(device)
    if not 0 <= layer_share <= 1:
        raise ValueError(f"layer_share is {layer_share}: give a share, from 0 to 1.")
    groups = read_jsonl(train_file)
    check_file(groups, train_file, batch, group=2, distil=False)
    check_pace(rate, warmup, save_every, log_every)
    settings = {
        "layers": None if layers is None else list(layers),
        "steps": check_steps(steps, epochs, len(groups) // batch),
        "layer_share": layer_share,
        "rate": rate,
        "batch": batch,
        "max_length": max_length,
        "warmup": warmup,
        "half": half_is_quick(device) if half is None else half,
        "seed": seed,
    }
    data = {
        "teacher": identity(teacher),
        "student": None if student is None else identity(student),
        "train_file": file_sha256(train_file),
    }
    with quiet():
        # the backward pass of eager attention is twice as fast on a CPU
        attention = "eager" if device == "cpu" else "sdpa"
        large, tokenizer = _open(teacher, dtype="float32", attn_implementation=attention)
        large.to(device)
        check_max_length(max_length, large.config)
        begun = None if student is None else _open(student, dtype="float32")[0]
        matching = Matching(large, tokenizer, settings, begun)
        claim_folder(output, settings | data)
        model = output / "model"
        if not model.exists():
            matching.train(groups, output, save_every, log_every)
            write_model(matching.student, tokenizer, model, max_length)
    (output / STATE).unlink(missing_ok=True)
    return model

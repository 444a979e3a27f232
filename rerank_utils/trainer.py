"""FlagEmbedding's trainer for encoder-only rerankers, mended where it fails or misleads.

Importing this takes seconds, as it brings torch and transformers: `finetuning` does so when it
is needed. What is mended in FlagEmbedding 1.4 with transformers 5, one method each:

- An exact resumption: `--resume_from_checkpoint` ends in an AttributeError, because the saved
  weights lack the prefix under which the trainer's wrapper looks for them. And what is drawn
  for a line depends on how much was drawn before, which a checkpoint does not know.
- A checkpoint is written where the last good one stands, and is taken for whole if half of it
  is there.
- A loss of NaN is left out of the log, and training goes on.
- A checkpoint in half precision is trained in half precision, where small steps are lost.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import torch
from FlagEmbedding.abc.finetune.reranker import (
    AbsRerankerDataArguments,
    AbsRerankerModelArguments,
    AbsRerankerTrainDataset,
    AbsRerankerTrainingArguments,
)
from FlagEmbedding.finetune.reranker.encoder_only.base import (
    EncoderOnlyRerankerRunner,
    EncoderOnlyRerankerTrainer,
)
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback

from .training_folder import write_log

PREFIX = "checkpoint-"


def last_checkpoint(folder: Path) -> tuple[int, Path | None]:
    """The step and the folder of the newest whole checkpoint; (0, None) if there is none."""
    steps = [int(path.name.removeprefix(PREFIX)) for path in folder.glob(f"{PREFIX}*")]
    return (max(steps), folder / f"{PREFIX}{max(steps)}") if steps else (0, None)


class Groups(AbsRerankerTrainDataset):
    """FlagEmbedding's dataset; what it draws for a line depends on seed, epoch and line alone."""

    seed = epoch = 0

    def __getitem__(self, item: int) -> tuple[list, list | None]:
        state = random.getstate()
        random.seed(f"{self.seed} {self.epoch} {item}")
        try:
            return super().__getitem__(item)
        finally:
            random.setstate(state)


class MendedTrainer(EncoderOnlyRerankerTrainer):
    """FlagEmbedding's trainer, with whole checkpoints that can be resumed, and no NaN."""

    _writing: Path | None = None

    def compute_loss(self, model: Any, inputs: dict, *args: Any, **options: Any) -> Any:
        """The loss of one batch.

        Raises:
            FloatingPointError: it is not a finite number. The weights are as before the step.
        """
        found = super().compute_loss(model, inputs, *args, **options)
        loss = found[0] if isinstance(found, tuple) else found
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss.item()} at step {self.state.global_step + 1}: the weights or "
                "the teacher's scores overflow. Choose a lower rate, and another folder."
            )
        return found

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from safetensors.torch import load_file

        weights = load_file(Path(resume_from_checkpoint) / "model.safetensors")
        self.model.model.load_state_dict(weights)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._writing or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write beside the last checkpoint, move there when all is written, then drop the old."""
        folder = Path(self.args.output_dir)
        old, _ = last_checkpoint(folder)
        self._writing = folder / "writing"
        shutil.rmtree(self._writing, ignore_errors=True)
        name = f"{PREFIX}{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            (self._writing / name).replace(folder / name)
        except Exception as error:  # each of the libraries that write has a class of its own
            kept = f"the checkpoint of step {old} is whole" if old else "there is no earlier one"
            raise OSError(
                f"Step {self.state.global_step} could not be saved in {folder} ({error}); {kept}. "
                "Make room on the disk and call again with the same arguments."
            ) from error
        finally:
            shutil.rmtree(self._writing, ignore_errors=True)
            self._writing = None
        if old:
            shutil.rmtree(folder / f"{PREFIX}{old}")


class Rounds(TrainerCallback):
    """Tells the dataset which round through the file this is, also after a resumption."""

    def __init__(self, groups: Groups):
        self.groups = groups

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """In a round that was broken off, `state.epoch` is a fraction."""
        self.groups.epoch = int((state.epoch or 0) + 1e-6)


class Progress(TrainerCallback):
    """One line with the loss, and a log: a JSON object for each loss that is written."""

    def __init__(self, log: Path):
        self.log = log

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Open the line where the training stands; a checkpoint brings its own intervals along."""
        state.save_steps, state.logging_steps = args.save_steps, args.logging_steps
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="train")

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Move on by one."""
        self.bar.update()

    def on_log(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Show the newest loss; write all of them, those before an interrupt included."""
        rows = [
            {"step": row["step"], "loss": row["loss"], "rate": row["learning_rate"]}
            for row in state.log_history
            if "loss" in row
        ]
        write_log(rows, self.log)
        self.bar.set_postfix(loss=f"{rows[-1]['loss']:.3f}", refresh=False)

    def close(self) -> None:
        """End the line, also after an error."""
        if hasattr(self, "bar"):
            self.bar.close()


class Runner(EncoderOnlyRerankerRunner):
    """FlagEmbedding's runner with the parts above.

    Args:
        model_args, data_args, training_args: FlagEmbedding's own.
        dropout: share of values set to zero in training; None leaves what the model says.
        log: where the losses are written.
    """

    def __init__(
        self,
        model_args: AbsRerankerModelArguments,
        data_args: AbsRerankerDataArguments,
        training_args: AbsRerankerTrainingArguments,
        dropout: float | None,
        log: Path,
    ):
        self.dropout = dropout
        self.progress = Progress(log)
        super().__init__(model_args, data_args, training_args)

    def load_tokenizer_and_model(self) -> tuple:
        """In single precision, whatever the checkpoint is in; the quicker attention for a CPU."""
        tokenizer, model = super().load_tokenizer_and_model()
        model.float()
        if self.training_args.use_cpu:
            model.model.set_attn_implementation("eager")
        if self.dropout is not None:
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = self.dropout
        return tokenizer, model

    def load_train_dataset(self) -> Groups:
        """The training file."""
        groups = Groups(args=self.data_args, tokenizer=self.tokenizer)
        groups.seed = self.training_args.seed
        return groups

    def load_trainer(self) -> MendedTrainer:
        """The mended trainer, which prints one line and no more."""
        trainer = MendedTrainer(
            model=self.model,
            args=self.training_args,
            train_dataset=self.train_dataset,
            data_collator=self.data_collator,
            processing_class=self.tokenizer,
            callbacks=[self.progress, Rounds(self.train_dataset)],
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def train(self, checkpoints: Path) -> None:
        """Go on from the newest checkpoint, or begin."""
        step, checkpoint = last_checkpoint(checkpoints)
        if step == self.training_args.max_steps:
            self.trainer._load_from_checkpoint(str(checkpoint))
            return
        try:
            self.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            self.progress.close()


def runner(
    base: str,
    train_file: Path,
    output: Path,
    cache: Path,
    *,
    device: str,
    steps: int,
    rate: float,
    batch: int,
    group: int,
    query_length: int,
    passage_length: int,
    warmup: float,
    dropout: float | None,
    half: bool,
    distil: bool,
    seed: int,
    save_every: int,
    log_every: int,
) -> Runner:
    """A Runner with arguments that are safe; see `finetuning.finetune` for what they mean."""
    training = AbsRerankerTrainingArguments(
        output_dir=str(output / "checkpoints"),
        max_steps=steps,
        learning_rate=rate,
        warmup_steps=round(warmup * steps),
        per_device_train_batch_size=batch,
        dataloader_drop_last=True,  # a smaller last batch would be regrouped, or crash
        dataloader_pin_memory=device != "cpu",
        use_cpu=device == "cpu",
        bf16=half,
        seed=seed,
        save_steps=save_every,
        logging_steps=log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
    )
    _ = training.device  # counts the GPUs; with two it would cut each batch in two
    training._n_gpu = min(training.n_gpu, 1)
    data = AbsRerankerDataArguments(
        train_data=[str(train_file)],
        cache_path=str(cache),
        train_group_size=group,
        query_max_len=query_length,
        passage_max_len=passage_length,
        knowledge_distillation=distil,
    )
    model = AbsRerankerModelArguments(model_name_or_path=base)
    return Runner(model, data, training, dropout, output / "log.jsonl")

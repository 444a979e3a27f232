"""Train a reranker such as the bundled one: `python -m rerank_utils.training --output FOLDER`.

Three stages, all on the training side of the split. (1) The packaged bi-encoder is tuned for a
few minutes on (query, document) pairs; with BM25 beside it, it is the teacher. (2) A
cross-encoder, the same tuned MiniLM with a fresh head, learns to rank as the teacher does: a
listwise KL divergence over one group of candidates. (3) The labels join the loss. Progress is
saved, and the same command resumes.

What it learns from is in `training_data`, the teacher in `teacher`.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax
from tqdm import tqdm

from .bundled import MAX_LENGTH, merge, minilm_path, untrained_reranker, write_bundle
from .descent import Descent, in_order, length_parts
from .teacher import BiEncoder, Teacher, tune
from .training_data import TrainingSet
from .training_folder import half_is_quick, save_state

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Recipe:
    """Every number of the training. Learning rates are peak values, lengths are in tokens."""

    seed: int = 0
    tune_steps: int = 100
    tune_batch: int = 32
    tune_rate: float = 5e-4
    bm25_weight: float = 0.4
    steps: int = 2400
    queries_per_step: int = 4
    reports_per_step: int = 2
    sentences_per_step: int = 1
    group: int = 12
    random_negatives: int = 2
    mined_ranks: int = 60
    mined_passages: int = 3
    docstrings: int = 4000
    report_share: float = 1.0
    rate: float = 3e-4
    warmup: int = 100
    distil_only: float = 0.2
    label_weight: float = 0.3
    max_length: int = MAX_LENGTH
    long_length: int = 256
    long_share: float = 0.15
    rank: int = 64
    alpha: int = 32
    save_every: int = 100
    snapshot_every: int = 300
    average_from: int = 1200
    average_to: int = 1800
    log_every: int = 50

    def __post_init__(self):
        mined = self.group - 1 - self.random_negatives
        if not 0 <= self.mined_passages <= mined:
            raise ValueError(
                f"mined_passages is {self.mined_passages}, but a group of {self.group} with "
                f"{self.random_negatives} random negatives has room for {mined} mined ones."
            )
        if self.average_to > self.steps or (self.average_to and not self.averaged()):
            raise ValueError(
                f"No snapshot is saved from step {self.average_from} to {self.average_to}: there "
                f"is one every {self.snapshot_every} of {self.steps} steps. Choose other steps, or "
                "0 and 0 to keep the weights of the last step."
            )

    @classmethod
    def of(cls, folder: Path) -> Recipe:
        """The recipe of the training in a folder."""
        path = folder / "recipe.json"
        if not path.exists():
            raise FileNotFoundError(f"No training in {folder}: `make reranker` makes one.")
        saved = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{name: saved[name] for name in asdict(cls())})

    def averaged(self) -> list[int]:
        """The steps whose snapshots are averaged into the result; none: the last step is it."""
        saved = range(self.snapshot_every, self.steps + 1, self.snapshot_every)
        return [step for step in saved if self.average_from <= step <= self.average_to]


class Trainer:
    """Trains the reranker of a recipe into a folder, and resumes from what it finds there."""

    def __init__(self, recipe: Recipe, output: Path):
        from transformers import AutoTokenizer

        self.recipe = recipe
        self.output = output
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(minilm_path())
        self.data = TrainingSet(recipe.docstrings, recipe.report_share, recipe.seed)
        self.log: list[dict] = []
        self._claim_folder()

    def _claim_folder(self) -> None:
        """Refuse to resume another recipe, or other data, in this folder."""
        self.output.mkdir(parents=True, exist_ok=True)
        ours = asdict(self.recipe) | {
            "reports": len(self.data.reports),
            "data": self.data.fingerprint(),
        }
        saved = self.output / "recipe.json"
        if saved.exists() and json.loads(saved.read_text(encoding="utf-8")) != ours:
            raise ValueError(
                f"{self.output} holds a training with another recipe or other data: choose "
                "another folder or empty this one."
            )
        saved.write_text(json.dumps(ours, indent=1), encoding="utf-8")

    def run(self) -> None:
        """All stages; leaves the adapter, the log and the merged model in the folder."""
        started = time.time()
        model = self.fresh_model()
        self.train(model, self.teacher(model))
        self._average(model)
        model.save_pretrained(self.output / "adapter")
        write_bundle(self.output / "adapter", self.output / "bundle")
        merge(self.output / "bundle", self.output / "merged")
        print(f"Trained in {time.time() - started:.0f} s (this run): {self.output / 'merged'}")

    def fresh_model(self) -> PeftModel:
        """MiniLM with a fresh head and a LoRA adapter, which alone are trained."""
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(self.recipe.seed)
        base = untrained_reranker().to(self.device)
        base.config._attn_implementation = "eager"  # its backward pass is twice as fast on a CPU
        base.requires_grad_(False)
        config = LoraConfig(
            r=self.recipe.rank,
            lora_alpha=self.recipe.alpha,
            target_modules=r".*encoder.*\.(query|key|value|dense)",
            modules_to_save=["pooler", "classifier"],
            task_type="SEQ_CLS",
        )
        return get_peft_model(base, config)

    def encoder(self, model: PeftModel) -> BiEncoder:
        """The encoder of `model`, head left aside."""
        return BiEncoder(model.base_model.model.bert, self.tokenizer, self.recipe.max_length)

    def teacher(self, model: PeftModel) -> Teacher:
        """Stage 1: tune the encoder of `model`, in place, as a bi-encoder."""
        recipe, data, saved = self.recipe, self.data, self.output / "tuned.pt"
        if not saved.exists():
            encoder = self.encoder(model)
            descent = Descent(model, recipe.tune_rate, recipe.tune_steps, warmup=10)
            rng = random.Random(recipe.seed)
            tune(encoder, data, descent, recipe.tune_steps, recipe.tune_batch, rng)
            state = {
                "model": _trained(model),
                "queries": encoder.embed([query.text for query in data.queries]),
                "documents": encoder.embed(list(data.documents.values())),
            }
            save_state(state, saved)
        state = torch.load(saved, map_location=self.device, weights_only=False)
        _load(model, state["model"], saved)
        return Teacher(data, state["queries"], state["documents"], recipe.bm25_weight)

    def train(self, model: PeftModel, teacher: Teacher) -> None:
        """Stages 2 and 3; the state is saved now and then, and resumed from if found."""
        recipe = self.recipe
        torch.manual_seed(recipe.seed)
        rng = random.Random(recipe.seed)
        descent = Descent(model, recipe.rate, recipe.steps, recipe.warmup)
        first = self._resume(model, descent, rng)
        model.eval()  # no dropout, as for the teacher
        bar = tqdm(range(first, recipe.steps), initial=first, total=recipe.steps, desc="train")
        losses: list[tuple[float, float]] = []
        for step in bar:
            losses.append(self._train_step(step, rng, model, teacher, descent))
            if (step + 1) % recipe.log_every == 0:
                distil, label = np.mean(losses, axis=0)
                losses.clear()
                bar.set_postfix(distil=f"{distil:.3f}", label=f"{label:.3f}")
                self.log.append({"step": step + 1, "distil": distil, "label": label})
                lines = "".join(json.dumps(row) + "\n" for row in self.log)
                (self.output / "log.jsonl").write_text(lines)
            if (step + 1) % recipe.save_every == 0:
                self._save(step + 1, model, descent, rng)
            if (step + 1) % recipe.snapshot_every == 0:
                model.save_pretrained(self._snapshot(step + 1))

    def _train_step(
        self,
        step: int,
        rng: random.Random,
        model: PeftModel,
        teacher: Teacher,
        descent: Descent,
    ) -> tuple[float, float]:
        recipe, data = self.recipe, self.data
        batch = self.draw(rng)
        scores = teacher.scores(batch)
        groups = [self.group(i, row, rng) for i, row in zip(batch, scores, strict=True)]
        pairs = [
            (data.queries[i].text, data.documents[data.ids[column]])
            for i, group in zip(batch, groups, strict=True)
            for column in group
        ]
        is_long = rng.random() < recipe.long_share
        window = recipe.long_length if is_long else recipe.max_length
        logits = self._score(model, pairs, window).view(len(batch), -1)
        aim = torch.from_numpy(np.take_along_axis(scores, np.array(groups), 1)).to(self.device)
        distil = kl_div(log_softmax(logits, -1), softmax(aim, -1), reduction="batchmean")
        label = cross_entropy(logits, torch.zeros(len(batch), dtype=torch.long, device=self.device))
        weight = recipe.label_weight if step >= recipe.distil_only * recipe.steps else 0.0
        descent.step((1 - weight) * distil + weight * label)
        return distil.item(), label.item()

    def draw(self, rng: random.Random) -> list[int]:
        """The queries of a step."""
        recipe, data = self.recipe, self.data
        summaries = recipe.queries_per_step - recipe.reports_per_step - recipe.sentences_per_step
        return [
            *rng.sample(data.reports, recipe.reports_per_step),
            *rng.sample(data.sentences, recipe.sentences_per_step),
            *rng.sample(data.summaries, summaries),
        ]

    def group(self, query: int, scores: np.ndarray, rng: random.Random) -> list[int]:
        """One positive, then mined negatives, then random ones, as document columns.

        What is mined for a report or a sentence are documents and a few other passages.
        """
        recipe, data = self.recipe, self.data
        asked = data.queries[query]
        wrong = asked.positives | asked.related
        order = np.argsort(-scores)
        mined: list[int] = []
        wanted = recipe.group - 1 - recipe.random_negatives
        if asked.field == "docstring":
            shares = {"docstring": wanted}
        else:
            shares = {"CWE": wanted - recipe.mined_passages, "passage": recipe.mined_passages}
        for kind, share in shares.items():
            first = order[data.kind[order] == kind][: recipe.mined_ranks].tolist()
            allowed = [column for column in first if not data.owned(column, wrong)]
            mined += rng.sample(allowed, share)
        others: list[int] = []
        while len(others) < recipe.random_negatives:
            column = rng.randrange(len(scores))
            if column not in mined + others and not data.owned(column, wrong):
                others.append(column)
        return [data.column[rng.choice(sorted(asked.positives))], *mined, *others]

    def _score(self, model: PeftModel, pairs: list[tuple[str, str]], window: int) -> torch.Tensor:
        """Logits (len(pairs),), run in three length-sorted parts to save padding."""
        device, parts, places = self.device.type, [], []
        for place, inputs in length_parts(self.tokenizer, pairs, window, self.device):
            with torch.autocast(device, torch.bfloat16, enabled=half_is_quick(device)):
                parts.append(model(**inputs).logits.float().view(-1))
            places.append(place)
        return in_order(parts, places)

    def _average(self, model: PeftModel) -> None:
        """Put the mean of some snapshots into the model: on dev as good as the best."""
        from peft import load_peft_weights, set_peft_model_state_dict

        steps = self.recipe.averaged()
        saved = [load_peft_weights(str(self._snapshot(step)), device="cpu") for step in steps]
        if saved:
            mean = {
                name: torch.stack([weights[name] for weights in saved]).mean(0) for name in saved[0]
            }
            set_peft_model_state_dict(model, mean)

    def _snapshot(self, step: int) -> Path:
        return self.output / "snapshots" / str(step)

    def _save(self, step: int, model: PeftModel, descent: Descent, rng: random.Random) -> None:
        state = {
            "step": step,
            "model": _trained(model),
            "descent": descent.state_dict(),
            "log": self.log,
            "rng": rng.getstate(),
            "torch": torch.get_rng_state(),
        }
        save_state(state, self.output / "state.pt")

    def _resume(self, model: PeftModel, descent: Descent, rng: random.Random) -> int:
        saved = self.output / "state.pt"
        if not saved.exists():
            return 0
        state = torch.load(saved, map_location=self.device, weights_only=False)
        _load(model, state["model"], saved)
        descent.load_state_dict(state["descent"])
        rng.setstate(state["rng"])
        self.log = state["log"]
        torch.set_rng_state(state["torch"].cpu())
        return state["step"]


def _trained(model: PeftModel) -> dict[str, torch.Tensor]:
    """The weights that training changes."""
    return {
        name: value
        for name, value in model.state_dict().items()
        if "lora_" in name or "modules_to_save" in name
    }


def _load(model: PeftModel, weights: dict[str, torch.Tensor], source: Path) -> None:
    odd = model.load_state_dict(weights, strict=False).unexpected_keys
    if odd:
        raise ValueError(f"{source} holds weights this model has not, such as {odd[0]}.")


def main(arguments: list[str] | None = None) -> None:
    """The command line: one flag for each number of the recipe."""
    parser = argparse.ArgumentParser(description="Train the bundled reranker.")
    parser.add_argument("--output", type=Path, required=True, help="folder; resumed if it exists")
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    values = vars(parser.parse_args(arguments))
    output = values.pop("output")
    Trainer(Recipe(**values), output).run()


if __name__ == "__main__":
    main()

"""Train a reranker such as the bundled one: `python -m rerank_utils.training --output FOLDER`.

Two stages, both on the training side of the split. (1) The packaged bi-encoder is tuned on (query,
document) pairs, four times with other draws, up to half an hour each on two cores; these four,
with BM25 beside them, are the teacher. (2) A cross-encoder, the first of them with a fresh head,
learns to rank as the teacher does: a listwise KL divergence over one group of candidates. With
`label_weight` the labels join the loss, with `--start` it begins from a reranker trained before,
and with `--encoder mpnet` the teacher is a larger encoder (see `mpnet`). Each bi-encoder is saved
when it is tuned, the second stage now and then; the same command resumes. With `--embedder-only` it
ends after the first bi-encoder, which is a better first stage too.

What it learns from is in `training_data`, the first stage in `tuning`, the teacher in `teacher`,
what a query is compared with in `candidates`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax
from tqdm import tqdm

from .adapters import AdaptedScorer, load_trained, trained
from .batching import check_max_length
from .bundled import ADAPTER, file_sha256, merge, minilm_path, write_bundle
from .candidates import Candidates, mine
from .descent import Descent, in_order, length_parts
from .errors import told
from .files import replacing_folder
from .hub import quiet_libraries
from .pairs import PairEncoder, Reader
from .teacher import Teacher
from .training_data import TrainingSet
from .training_folder import claim_folder, half_is_quick, save_state, saving, write_log
from .training_recipe import Recipe
from .tuning import Encoders

if TYPE_CHECKING:
    from peft import PeftModel


PAIRS_AT_ONCE = {"cpu": 96, "cuda": 960}
"""Of a step, at most: a backward pass keeps all of a part in memory, some GB on a CPU."""
PAIR_MEMORY = 45e6
"""Bytes of a GPU for a pair in bfloat16: 9 GB were seen for 480, doubled for longer pairs."""
Score = Callable[..., torch.Tensor]
"""From the inputs of a model, (rows, tokens), to (rows,) logits."""


def pairs_at_once(device: torch.device) -> int:
    """How many pairs of a step to run together; on a GPU as many as its free memory holds."""
    most = PAIRS_AT_ONCE[device.type]
    if device.type == "cpu":
        return most
    free, _ = torch.cuda.mem_get_info(device)
    return min(most, int(free / PAIR_MEMORY / (1 if half_is_quick(device.type) else 2)))


class Trainer:
    """Trains the reranker of a recipe into a folder, and resumes from what it finds there.

    Args:
        recipe: all numbers.
        output: the folder.
        start: that of the adapter to begin from; None for the first tuned encoder.

    Raises:
        ValueError: the folder holds another training, start holds no adapter of this rank and
            alpha, a step asks more texts than there are, or a window is longer than the model's.
    """

    def __init__(self, recipe: Recipe, output: Path, start: Path | None = None):
        from transformers import AutoConfig, AutoTokenizer

        self.recipe = recipe
        self.output = output
        self.start = start
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(minilm_path())
        for length in (recipe.max_length, recipe.long_length):
            check_max_length(length, AutoConfig.from_pretrained(minilm_path()))
        self.data = TrainingSet(
            recipe.docstrings, recipe.excerpts, recipe.mixtures, recipe.report_share, recipe.seed
        )
        if recipe.piece_length:
            self.data.cut(recipe.piece_length, self.tokenizer)
        self.encode = {
            window: PairEncoder(Reader(self.tokenizer, window))
            for window in (recipe.max_length, recipe.long_length)
        }
        self.encoders = Encoders(recipe, output, self.data, self.device)
        self.log: list[dict] = []
        self.pairs_at_once = pairs_at_once(self.device)  # asked before the memory fills
        self._check_texts()
        found = {"reports": len(self.data.reports), "data": self.data.fingerprint()}
        found["start"] = self._check_start()
        claim_folder(output, asdict(recipe) | found)

    def _check_texts(self) -> None:
        recipe, data, half = self.recipe, self.data, self.recipe.tune_batch // 2
        asked = max(recipe.reports_per_step, half)
        if asked > len(data.reports):
            raise ValueError(
                f"A step asks {asked} reports (reports_per_step, or half of tune_batch), but a "
                f"report_share of {recipe.report_share:g} leaves {len(data.reports)}: "
                "lower the first or raise the last."
            )
        weaknesses = sum(document.startswith("CWE-") for document in data.ids)
        for what, wanted, there in (
            ("sentences", max(recipe.sentences_per_step, half), len(data.sentences)),
            ("docstrings", recipe.docstrings_per_step(), len(data.summaries)),
            ("documents (half of tune_batch)", half, weaknesses),
        ):
            if wanted > there:
                raise ValueError(f"A step asks {wanted} {what}, but there are {there}: ask fewer.")

    def _check_start(self) -> str | None:
        """The sha256 of the adapter to begin from; ValueError if it is none for this recipe."""
        if self.start is None:
            return None
        described = self.start / "adapter_config.json"
        if not ((self.start / ADAPTER).exists() and described.exists()):
            raise ValueError(f"start is {self.start}: give the adapter folder of a training.")
        known = json.loads(described.read_text(encoding="utf-8"))
        for name, key in (("rank", "r"), ("alpha", "lora_alpha")):
            if known.get(key) != getattr(self.recipe, name):
                raise ValueError(
                    f"The adapter in {self.start} has {name} {known.get(key)}, the recipe "
                    f"{getattr(self.recipe, name)}: give the {name} that it was trained with."
                )
        return file_sha256(self.start / ADAPTER)

    def run(self) -> None:
        """Both stages; leaves the adapter, the log and the merged model in the folder."""
        started = time.time()
        model = self.beginning()
        candidates = self.candidates(self.encoders.teacher())
        self.train(model, candidates)
        self._average(model)
        with saving(self.output, "The model"):
            model.save_pretrained(self.output / "adapter")
            write_bundle(self.output / "adapter", self.output / "bundle")
            with replacing_folder(self.output / "merged") as fresh:
                merge(self.output / "bundle", fresh)
        print(f"Trained in {time.time() - started:.0f} s (this run): {self.output / 'merged'}")

    def beginning(self) -> PeftModel:
        """What the second stage begins with: the first tuned encoder, or the weights of `start`."""
        from peft import load_peft_weights, set_peft_model_state_dict

        check_beginning(self.recipe, self.start)
        if self.start is None:
            return self.encoders.tuned()
        model = self.encoders.fresh_reranker()
        weights = load_peft_weights(str(self.start), device="cpu")
        try:
            odd = set_peft_model_state_dict(model, weights).unexpected_keys
        except KeyError as error:  # peft looks for the head before anything else
            odd = [str(error.args[0])]
        except RuntimeError as error:  # torch lists all weights of another shape
            odd = [str(error).splitlines()[-1].strip()]
        if odd:
            raise ValueError(
                f"The adapter in {self.start} does not fit this reranker ({odd[0]}): give that of "
                "a training of `rerank_utils.training`."
            )
        return model

    def candidates(self, teacher: Teacher) -> list[Candidates]:
        """What each query is compared with; ValueError where that is too little for a group."""
        found = mine(self.data, teacher, self.recipe.mined_ranks, self.recipe.seed)
        unasked = "docstring" if not self.recipe.docstrings_per_step() else None
        for query, one in zip(self.data.queries, found, strict=True):
            if query.field == unasked:
                continue
            there = one.mined | {"random": one.others}
            wanted = self._shares(query.field) | {"random": self.recipe.random_negatives}
            for kind, count in wanted.items():
                if len(there[kind].columns) < count:
                    raise ValueError(
                        f"A group has {count} texts of kind {kind!r}, but only "
                        f"{len(there[kind].columns)} can stand beside the query "
                        f"{query.text[:60]!r}: take more of them, or mine fewer."
                    )
        return found

    def train(self, model: PeftModel, candidates: Sequence[Candidates]) -> None:
        """Stage 2; the state is saved now and then, and resumed from if found."""
        recipe = self.recipe
        rng = random.Random(recipe.seed)
        descent = Descent(model, recipe.rate, recipe.steps, recipe.warmup)
        first = self._resume(model, descent, rng)
        model.eval()  # no dropout, as for the teacher
        scorer = AdaptedScorer(model)
        bar = tqdm(range(first, recipe.steps), initial=first, total=recipe.steps, desc="train")
        losses: list[tuple[float, float]] = []
        for step in bar:
            losses.append(self._train_step(step, rng, scorer, candidates, descent))
            last = step + 1 == recipe.steps
            if (step + 1) % recipe.log_every == 0 or last:
                distil, label = np.mean(losses, axis=0)
                losses.clear()
                bar.set_postfix(distil=f"{distil:.3f}", label=f"{label:.3f}")
                self.log.append({"step": step + 1, "distil": distil, "label": label})
                write_log(self.log, self.output / "log.jsonl")
            # before the state: who resumes after it does not come by this step again
            if (step + 1) % recipe.snapshot_every == 0:
                with saving(self._snapshot(step + 1), "A snapshot"):
                    model.save_pretrained(self._snapshot(step + 1))
            if (step + 1) % recipe.save_every == 0 or last:
                self._save(step + 1, model, descent, rng)

    def _train_step(
        self,
        step: int,
        rng: random.Random,
        scorer: AdaptedScorer,
        candidates: Sequence[Candidates],
        descent: Descent,
    ) -> tuple[float, float]:
        recipe = self.recipe
        batch = self.draw(rng)
        groups = [self.group(query, candidates[query], rng) for query in batch]
        is_long = rng.random() < recipe.long_share
        window = recipe.long_length if is_long else recipe.max_length
        weight = recipe.label_weight if step >= recipe.distil_only * recipe.steps else 0.0
        seen = []

        def losses() -> Iterator[torch.Tensor]:
            size = max(1, self.pairs_at_once // recipe.group)
            with scorer.step() as score:
                for start in range(0, len(batch), size):
                    part = slice(start, start + size)
                    distil, label = self._losses(score, batch[part], groups[part], window)
                    seen.append((distil.item() / len(batch), label.item() / len(batch)))
                    yield ((1 - weight) * distil + weight * label) / len(batch)

        descent.step(losses())
        return tuple(np.sum(seen, axis=0).tolist())

    def _losses(
        self,
        score: Score,
        batch: Sequence[int],
        groups: Sequence[tuple[list[int], list[float]]],
        window: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Divergence from the teacher and cross-entropy of the labels, summed over queries."""
        data = self.data
        pairs = [
            (data.queries[query].text, data.documents[data.ids[column]])
            for query, (columns, _) in zip(batch, groups, strict=True)
            for column in columns
        ]
        logits = self._score(score, pairs, window).view(len(batch), -1)
        aim = torch.tensor([scores for _, scores in groups], device=self.device)
        first = torch.zeros(len(batch), dtype=torch.long, device=self.device)
        distil = kl_div(log_softmax(logits, -1), softmax(aim, -1), reduction="sum")
        return distil, cross_entropy(logits, first, reduction="sum")

    def draw(self, rng: random.Random) -> list[int]:
        """The queries of a step."""
        recipe, data = self.recipe, self.data
        return [
            *rng.sample(data.reports, recipe.reports_per_step),
            *rng.sample(data.sentences, recipe.sentences_per_step),
            *rng.sample(data.summaries, recipe.docstrings_per_step()),
        ]

    def group(
        self, query: int, candidates: Candidates, rng: random.Random
    ) -> tuple[list[int], list[float]]:
        """Columns and teacher's scores of one positive, then mined and random negatives."""
        shares = self._shares(self.data.queries[query].field)
        return candidates.group(shares, self.recipe.random_negatives, rng)

    def _shares(self, field: str) -> dict[str, int]:
        """How many of each kind are mined for a query of this field."""
        recipe = self.recipe
        shares = {
            "excerpt": recipe.mined_excerpts,
            "passage": recipe.mined_passages,
            "mixture": recipe.mined_mixtures,
        }
        wanted = recipe.group - 1 - recipe.random_negatives
        shares["CWE"] = wanted - sum(shares.values())
        return {"docstring": wanted} if field == "docstring" else shares

    def _score(self, score: Score, pairs: list[tuple[str, str]], window: int) -> torch.Tensor:
        """Logits (len(pairs),), run in length-sorted parts to save padding."""
        device, parts, places = self.device.type, [], []
        # around all parts, so that weights are put into half precision once
        with torch.autocast(device, torch.bfloat16, enabled=half_is_quick(device)):
            for place, inputs in length_parts(self.encode[window], pairs, self.device):
                parts.append(score(**inputs).float())
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
            "model": trained(model),
            "descent": descent.state_dict(),
            "log": self.log,
            "rng": rng.getstate(),
        }
        save_state(state, self.output / "state.pt")

    def _resume(self, model: PeftModel, descent: Descent, rng: random.Random) -> int:
        saved = self.output / "state.pt"
        if not saved.exists():
            return 0
        state = torch.load(saved, map_location=self.device, weights_only=False)
        load_trained(model, state["model"], saved)
        descent.load_state_dict(state["descent"])
        rng.setstate(state["rng"])
        self.log = state["log"]
        return state["step"]


def check_beginning(recipe: Recipe, start: Path | None) -> None:
    """ValueError if there is nothing that the second stage could begin as."""
    if start is None and recipe.encoder != "minilm":
        raise ValueError(
            f"With encoder {recipe.encoder} the teacher is no model that a reranker could begin "
            "as: give start, the adapter folder of a training with minilm."
        )


def main(arguments: list[str] | None = None) -> None:
    """The command line: one flag for each number of the recipe."""
    parser = argparse.ArgumentParser(description="Train the bundled reranker.")
    parser.add_argument("--output", type=Path, required=True, help="folder; resumed if it exists")
    parser.add_argument(
        "--start", type=Path, help="adapter folder of a reranker to begin from, trained before"
    )
    parser.add_argument(
        "--embedder-only",
        action="store_true",
        help="tune the bi-encoder, write it to the folder's embedder/, and stop",
    )
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    values = vars(parser.parse_args(arguments))
    output, start = values.pop("output"), values.pop("start")
    embedder_only = values.pop("embedder_only")
    quiet_libraries()
    try:
        with told():
            recipe = Recipe(**values)
            if not embedder_only:
                check_beginning(recipe, start)  # before the folder is taken with what is wrong
            trainer = Trainer(recipe, output, start)
            if embedder_only:
                print(f"Tuned: {trainer.encoders.write()}")
            else:
                trainer.run()
    except KeyboardInterrupt:
        where = "begins this encoder anew" if embedder_only else "goes on from here"
        sys.exit(f"\nStopped. Run the same command again: it {where}.")


if __name__ == "__main__":
    main()

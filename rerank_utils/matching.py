"""Layer by layer, a student follows the teacher it was cut from: what `match_layers` runs.

Importing this takes seconds, as it brings torch: `distillation` does so when it is needed.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import ModuleList
from torch.nn.functional import kl_div, log_softmax, mse_loss, softmax
from tqdm import tqdm

from .descent import Descent, in_order, length_parts
from .encoder import FirstTokenScorer
from .mining import Group
from .pairs import PairEncoder, Reader
from .training_folder import save_state, write_log

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STATE = "state.pt"
LOGIT_WEIGHT = 0.1
"""Of the squared distance of the logits, which holds their scale, beside the divergence."""


def cut(model: PreTrainedModel, layers: Sequence[int] | None) -> list[int]:
    """Drop all layers but these, in place; returns the kept ones."""
    encoder = getattr(model.base_model, "encoder", None)
    stack = getattr(encoder, "layer", None)
    if not isinstance(stack, ModuleList):
        raise ValueError(
            f"This is a {model.config.model_type} model, whose layers are not known here: give a "
            "BERT or XLM-RoBERTa reranker."
        )
    depth = len(stack)
    kept = list(range((depth - 1) % 2, depth, 2)) if layers is None else list(layers)
    if not kept or kept != sorted(set(kept)) or not 0 <= kept[0] <= kept[-1] < depth:
        raise ValueError(
            f"layers is {kept}: name layers from 0 to {depth - 1}, each once, in rising order."
        )
    encoder.layer = ModuleList(stack[i] for i in kept)
    model.config.num_hidden_layers = len(kept)
    return kept


def _read(
    model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]
) -> tuple[Sequence[torch.Tensor], torch.Tensor]:
    """What embeddings and layers make of the inputs, of the last the first token; and the logits.

    The last layer is computed for the first token alone where that is known how.
    """
    if FirstTokenScorer.supports(model):
        scorer = FirstTokenScorer(model)
        states = list(scorer.states(**inputs))
        return states, scorer.head(states[-1])
    found = model(**inputs, output_hidden_states=True)
    return found.hidden_states, found.logits.view(-1)


class Matching:
    """Teacher and student, and the training of the latter.

    Args:
        teacher: what the student is cut from and follows.
        tokenizer: of both.
        settings: `match_layers`' arguments that decide what comes out.
        student: what to begin with; None for the teacher's layers as they are.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: dict[str, Any],
        student: PreTrainedModel | None = None,
    ):
        self.teacher, self.settings = teacher, settings
        self.encode = PairEncoder(Reader(tokenizer, settings["max_length"]))
        self.student = copy.deepcopy(teacher)
        self.layers = cut(self.student, settings["layers"])
        if student is not None:
            self._begin_with(student)
        self.student.base_model.embeddings.requires_grad_(False)
        steps = settings["steps"]
        warmup = round(settings["warmup"] * steps)
        self.descent = Descent(self.student, settings["rate"], steps, warmup)
        self.log: list[dict[str, float]] = []

    def _begin_with(self, student: PreTrainedModel) -> None:
        embeddings = self.teacher.base_model.embeddings.state_dict()
        try:
            self.student.load_state_dict(student.state_dict())
        except RuntimeError:
            raise ValueError(
                f"student has {student.config.num_hidden_layers} layers, or layers of another "
                f"shape: give a model that was cut to layers {self.layers} of such a teacher."
            ) from None
        self.student.base_model.embeddings.load_state_dict(embeddings)

    def train(self, groups: Sequence[Group], output: Path, save_every: int, log_every: int) -> None:
        """Go on from the state in the folder, or begin."""
        first = self._resume(output / STATE)
        steps = self.settings["steps"]
        for model in (self.teacher, self.student):
            model.eval()  # no dropout: teacher and student are to see the same
        losses: list[float] = []
        saved = step = first
        try:
            with tqdm(range(first, steps), initial=first, total=steps, desc="train") as bar:
                for step in bar:
                    follow = step < self.settings["layer_share"] * steps
                    losses.append(self._step(self._batch(groups, step), follow))
                    if (step + 1) % log_every == 0 or step + 1 == steps:
                        mean = sum(losses) / len(losses)
                        losses.clear()
                        self._note(output, {"step": step + 1, "loss": mean})
                        bar.set_postfix(loss=f"{mean:.3f}", refresh=False)
                    if (step + 1) % save_every == 0 or step + 1 == steps:
                        self._save(step + 1, output / STATE)
                        saved = step + 1
        except KeyboardInterrupt:
            kept = f"the state of step {saved} is kept" if saved else "no state was saved yet"
            raise KeyboardInterrupt(
                f"Stopped after step {step}; {kept} in {output}. Call match_layers again with the "
                "same arguments to go on from there."
            ) from None

    def _batch(self, groups: Sequence[Group], step: int) -> list[Group]:
        """The lines of a step: each round through the file has an order of its own."""
        size = self.settings["batch"]
        turn, place = divmod(step, len(groups) // size)
        order = list(range(len(groups)))
        random.Random(f"{self.settings['seed']} {turn}").shuffle(order)
        return [groups[i] for i in order[place * size : (place + 1) * size]]

    def _step(self, batch: Sequence[Group], follow: bool) -> float:
        loss = self.loss(batch, follow)
        self.descent.step([loss])
        return loss.item()

    def loss(self, batch: Sequence[Group], follow: bool = True) -> torch.Tensor:
        """How far the student is from its teacher on these groups: see `match_layers`.

        `follow` says whether the layers count, beside the scores.
        """
        texts = [[*group.pos, *group.neg] for group in batch]
        pairs = [
            (group.query, text) for group, line in zip(batch, texts, strict=True) for text in line
        ]
        device = self.student.device
        apart, ours, theirs, places = torch.zeros((), device=device), [], [], []
        # around all parts, so that weights are put into half precision once a step
        with torch.autocast(device.type, torch.bfloat16, enabled=self.settings["half"]):
            for place, inputs in length_parts(self.encode, pairs, device):
                with torch.no_grad():
                    large, wanted = _read(self.teacher, inputs)
                small, logits = _read(self.student, inputs)
                if follow:
                    read = inputs["attention_mask"].bool()
                    apart = apart + len(place) / len(pairs) * self._distance(small, large, read)
                ours.append(logits.float())
                theirs.append(wanted.float())
                places.append(place)
        mine, aim = in_order(ours, places), in_order(theirs, places)
        sizes = [len(line) for line in texts]
        divergence = sum(
            kl_div(log_softmax(a, -1), softmax(b, -1), reduction="sum")
            for a, b in zip(mine.split(sizes), aim.split(sizes), strict=True)
        ) / len(batch)
        return apart + divergence + LOGIT_WEIGHT * mse_loss(mine, aim)

    def _distance(
        self,
        ours: Sequence[torch.Tensor],
        theirs: Sequence[torch.Tensor],
        read: torch.Tensor,
    ) -> torch.Tensor:
        """The sum over the layers; `read` (pairs, tokens) is False where there is padding."""
        total = 0.0
        for place, layer in enumerate(self.layers, start=1):
            small, large = ours[place].float(), theirs[layer + 1].float()
            if place == len(self.layers):
                small, large = small[:, 0], large[:, 0]
            else:
                small, large = small[read], large[read]
            total = total + (small - large).square().mean() / large.var()
        return total

    def _note(self, output: Path, row: dict[str, float]) -> None:
        self.log.append(row | {"rate": self.descent.optimizer.param_groups[0]["lr"]})
        write_log(self.log, output / "log.jsonl")

    def _save(self, step: int, path: Path) -> None:
        state = {
            "step": step,
            "student": self.student.state_dict(),
            "descent": self.descent.state_dict(),
            "log": self.log,
        }
        save_state(state, path)

    def _resume(self, path: Path) -> int:
        if not path.exists():
            return 0
        state = torch.load(path, map_location=self.student.device, weights_only=True)
        self.student.load_state_dict(state["student"])
        self.descent.load_state_dict(state["descent"])
        self.log = state["log"]
        return state["step"]

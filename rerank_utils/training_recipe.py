"""Every number of the bundled reranker's training, and what they must be like."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path

from .bundled import MAX_LENGTH
from .candidates import SPARE
from .pieces import LEAST

ABOVE_ZERO = (
    *("teachers", "tune_steps", "tune_batch", "tune_rate", "steps", "queries_per_step", "group"),
    *("report_share", "rate", "max_length", "long_length", "rank", "alpha"),
    *("save_every", "snapshot_every", "log_every"),
)
"""Numbers of a recipe that cannot be 0."""
SHARES = ("report_share", "distil_only", "label_weight", "long_share")


ENCODERS = ("minilm", "mpnet")


@dataclass(frozen=True)
class Recipe:
    """Every number of the training. Learning rates are peak values, lengths are in tokens.

    `encoder` is what the teacher is made of: "minilm", which the reranker then begins as, or the
    larger "mpnet", with which it has to begin from another training.
    `label_weight` is the share of the labels in the loss, after `distil_only` of the steps.
    `piece_length` cuts the documents as `pieces.cut_into_pieces` does; 0 leaves them whole.
    """

    seed: int = 0
    encoder: str = "minilm"
    teachers: int = 4
    tune_steps: int = 100
    tune_batch: int = 64
    tune_rate: float = 5e-4
    bm25_weight: float = 0.4
    steps: int = 950
    queries_per_step: int = 40
    reports_per_step: int = 14
    sentences_per_step: int = 12
    group: int = 24
    random_negatives: int = 3
    mined_ranks: int = 60
    mined_excerpts: int = 5
    mined_passages: int = 5
    mined_mixtures: int = 4
    docstrings: int = 11500
    excerpts: int = 10
    mixtures: int = 6000
    piece_length: int = 0
    report_share: float = 1.0
    rate: float = 5e-4
    warmup: int = 50
    distil_only: float = 0.2
    label_weight: float = 0.0
    max_length: int = MAX_LENGTH
    long_length: int = 256
    long_share: float = 0.1
    rank: int = 64
    alpha: int = 32
    save_every: int = 10
    snapshot_every: int = 190
    average_from: int = 0
    average_to: int = 0
    log_every: int = 10

    def __post_init__(self):
        self._check_numbers()
        self._check_group()
        self._check_texts()
        if self.average_from and not self.average_to:
            raise ValueError(
                f"average_from is {self.average_from}, but average_to is 0, which averages "
                f"nothing: give average_to too, such as {self.steps}."
            )
        if self.average_to > self.steps or (self.average_to and not self.averaged()):
            raise ValueError(
                f"No snapshot is saved from step {self.average_from} to {self.average_to}: there "
                f"is one every {self.snapshot_every} of {self.steps} steps. Choose other steps, or "
                "0 and 0 to keep the weights of the last step."
            )

    def _check_numbers(self) -> None:
        if self.encoder not in ENCODERS:
            raise ValueError(f"encoder is {self.encoder!r}: choose {' or '.join(ENCODERS)}.")
        for name, value in asdict(self).items():
            if name == "encoder":
                continue
            if not 0 <= value < inf or (value == 0 and name in ABOVE_ZERO):
                least = "above 0" if name in ABOVE_ZERO else "that is 0 or more"
                raise ValueError(f"{name} is {value}: give a number {least}.")
            if name in SHARES and value > 1:
                raise ValueError(f"{name} is {value}: give a share, 1 at most.")
        if 0 < self.piece_length < LEAST:
            raise ValueError(
                f"piece_length is {self.piece_length}: give {LEAST} or more, or 0 for whole texts."
            )
        if self.tune_batch < 2:
            raise ValueError("tune_batch is 1: give 2 or more, half reports and half sentences.")

    def _check_group(self) -> None:
        mined = self.mined_excerpts + self.mined_passages + self.mined_mixtures
        room = self.group - 1 - self.random_negatives
        if mined > room:
            raise ValueError(
                f"mined_excerpts, mined_passages and mined_mixtures are {mined} together, but a "
                f"group of {self.group} with {self.random_negatives} random negatives has room for "
                f"{room} mined ones."
            )
        if self.random_negatives > SPARE:
            raise ValueError(
                f"random_negatives is {self.random_negatives}, but {SPARE} are kept for a query: "
                "give that number or less."
            )
        if self.mined_ranks < room:
            raise ValueError(
                f"mined_ranks is {self.mined_ranks}, but a docstring's group of {self.group} has "
                f"{room} mined ones: give that number or more."
            )

    def _check_texts(self) -> None:
        for made in ("excerpts", "mixtures"):
            if getattr(self, f"mined_{made}") and not getattr(self, made):
                raise ValueError(
                    f"mined_{made} is {getattr(self, f'mined_{made}')}, but {made} is 0: there are "
                    f"none to mine. Set mined_{made} to 0 too."
                )
        asked = self.docstrings_per_step()
        needed = 1 + self.mined_ranks + self.random_negatives
        if asked < 0 or (asked and self.docstrings < needed):
            raise ValueError(
                f"A step asks {asked} docstrings (queries_per_step less reports_per_step and "
                f"sentences_per_step), each beside {self.mined_ranks} mined and "
                f"{self.random_negatives} random ones, but docstrings is {self.docstrings}: give "
                f"{needed} or more, or let queries_per_step be the sum of the other two."
            )

    def docstrings_per_step(self) -> int:
        """How many of the queries of a step are docstrings."""
        return self.queries_per_step - self.reports_per_step - self.sentences_per_step

    @classmethod
    def of(cls, folder: Path) -> Recipe:
        """The recipe of the training in a folder."""
        path = folder / "recipe.json"
        if not path.exists():
            raise FileNotFoundError(f"No training in {folder}: `make reranker` makes one.")
        saved = json.loads(path.read_text(encoding="utf-8"))
        unknown = sorted(asdict(cls()).keys() - saved.keys())
        if unknown:
            raise ValueError(
                f"The training in {folder} is of another version of this project: its recipe has "
                f"no {unknown[0]}. Train anew, in another folder."
            )
        return cls(**{name: saved[name] for name in asdict(cls())})

    def averaged(self) -> list[int]:
        """The steps whose snapshots are averaged into the result; none: the last step is it."""
        saved = range(self.snapshot_every, self.steps + 1, self.snapshot_every)
        return [step for step in saved if self.average_from <= step <= self.average_to]

"""What the choices of the training recipe give: `python benchmarks/recipe.py FOLDER`.

Trains a reranker on the same number of pairs for each choice, one thing changed at a time, and
compares all of them with the first on dev. FOLDER is that of a training: its recipe is changed, and
its tuned encoders are the teacher, so that no choice has another one. What is trained stays in
FOLDER: an interrupt loses little, and a second call neither trains nor scores anything again.
"""

from __future__ import annotations

import argparse
import copy
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from bench import gather, write

from rerank_utils.candidates import Candidates, Scored
from rerank_utils.collection import Collection
from rerank_utils.evaluation import Evaluation, compare, evaluate
from rerank_utils.hub import quiet_libraries
from rerank_utils.matching import cut
from rerank_utils.pipeline import retrieve
from rerank_utils.profiles import OFFLINE
from rerank_utils.reranking import load_reranker, rerank
from rerank_utils.run import Run
from rerank_utils.score_cache import ScoreCache
from rerank_utils.teacher import Teacher
from rerank_utils.training import Trainer
from rerank_utils.training_curve import QUICK
from rerank_utils.training_data import TrainingSet
from rerank_utils.training_folder import read_log, write_model
from rerank_utils.training_recipe import Recipe

DEPTH = 50


@dataclass(frozen=True)
class Choice:
    """What of a training is changed.

    Attributes:
        recipe: its numbers that differ.
        sentences: the only field of the catalogue that they are taken from; None for all.
        layers: of the encoder, those that are kept; None for all.
        also_right: further texts of the right weakness in a group, in place of mined documents.
    """

    recipe: dict[str, Any] = field(default_factory=dict)
    sentences: str | None = None
    layers: tuple[int, ...] | None = None
    also_right: int = 0


@dataclass(frozen=True)
class SeveralRight(Candidates):
    """Candidates of which a group has up to `count` of `also` too, if there are so many."""

    also: Scored
    count: int

    def group(
        self, shares: Mapping[str, int], others: int, rng: random.Random
    ) -> tuple[list[int], list[float]]:
        """As without them, with as many documents fewer."""
        more = min(self.count, len(self.also.columns))
        fewer = {"CWE": shares["CWE"] - more} if more else {}
        columns, scores = super().group({**shares, **fewer}, others, rng)
        places = self.also.draw(more, rng)
        found = self.also.columns[places], self.also.scores[places]
        return columns + found[0].tolist(), scores + found[1].tolist()


def choices(recipe: Recipe, data: TrainingSet) -> dict[str, Choice]:
    """The recipe itself first, which the others are compared with."""
    found = {
        "the recipe": Choice(),
        "other draws": Choice({"seed": recipe.seed + 1}),
        "other draws again": Choice({"seed": recipe.seed + 2}),
        "groups half as large, twice as many": Choice(_groups(recipe, 0.5)),
        "groups twice as large, half as many": Choice(_groups(recipe, 2)),
        "mined from a third of the ranks": Choice({"mined_ranks": recipe.mined_ranks // 3}),
        "mined from three times the ranks": Choice({"mined_ranks": recipe.mined_ranks * 3}),
        "three layers": Choice(layers=(1, 3, 5)),
        "half the rate": Choice({"rate": recipe.rate / 2}),
        "twice the rate": Choice({"rate": recipe.rate * 2}),
        "pairs of 256 tokens": Choice({"long_share": 1.0}),
        "labels, 0.3 of the loss": Choice({"label_weight": 0.3}),
        "three more right texts in a group": Choice(also_right=3),
    }
    without = {"reports_per_step": recipe.reports_per_step + recipe.sentences_per_step}
    found["reports in place of sentences"] = Choice(without | {"sentences_per_step": 0})
    for name in sorted({data.queries[place].field for place in data.sentences}):
        found[f"sentences: {name} alone"] = Choice(sentences=name)
    return found


def _groups(recipe: Recipe, factor: float) -> dict[str, int]:
    """Groups of another size; as many pairs a step, in the same proportions."""
    sizes = ("group", "mined_excerpts", "mined_passages", "mined_mixtures", "random_negatives")
    counts = ("queries_per_step", "reports_per_step", "sentences_per_step")
    changed = {name: max(1, round(getattr(recipe, name) * factor)) for name in sizes}
    return changed | {name: max(1, round(getattr(recipe, name) / factor)) for name in counts}


def several_right(
    data: TrainingSet, teacher: Teacher, candidates: Sequence[Candidates], count: int
) -> list[Candidates]:
    """The same, with the excerpts and passages of the right weaknesses as further right texts.

    Those that hold the query word for word are left out: they show nothing but that.
    """
    owned, kinds = data.columns_by_owner(), ("excerpt", "passage")
    texts, found = list(data.documents.values()), []
    for place, (query, one) in enumerate(zip(data.queries, candidates, strict=True)):
        columns = {column for weakness in query.positives for column in owned.get(weakness, ())}
        good = [c for c in sorted(columns) if data.kind[c] in kinds and query.text not in texts[c]]
        fine = np.array(good, dtype=int)
        scores = teacher.scores([place])[0][fine]
        found.append(SeveralRight(**vars(one), also=Scored(fine, scores), count=count))
    return found


def train(trainer: Trainer, choice: Choice, pairs: int, folder: Path) -> Path:
    """The model of a choice, trained unless the folder has it; writes beside it how it went."""
    merged = folder / "merged"
    if not merged.exists():
        own = copy.copy(trainer)
        own.output, own.log, own.data = folder, [], copy.copy(trainer.data)
        recipe = replace(trainer.recipe, **choice.recipe)
        steps = round(pairs / (recipe.queries_per_step * recipe.group))
        own.recipe = replace(
            recipe, steps=steps, warmup=steps // 10, snapshot_every=steps + 1, average_to=0
        )
        if choice.sentences:
            field_of = [query.field for query in own.data.queries]
            places = own.data.sentences
            own.data.sentences = [i for i in places if field_of[i] == choice.sentences]
        model = trainer.beginning()
        if choice.layers:
            cut(model.base_model.model, choice.layers)
        teacher = trainer.encoders.teacher()
        candidates = own.candidates(teacher)
        if choice.also_right:
            candidates = several_right(own.data, teacher, candidates, choice.also_right)
        own.train(model, candidates)
        write_model(model.merge_and_unload(), own.tokenizer, merged)
    return merged


def measure(model: Path, candidates: Run, collection: Collection) -> Evaluation:
    """How the model reranks the dense candidates; its scores are kept beside it."""
    reranker = load_reranker(model, OFFLINE.reranker_length, "cpu")
    cache = ScoreCache(model.parent / f"scores-{QUICK['dtype']}")
    texts = (collection.queries, collection.documents)
    run = rerank(candidates, *texts, reranker, DEPTH, cache=cache, **QUICK)
    return evaluate(run, collection.qrels)


def row(name: str, folder: Path, found: Evaluation, first: Evaluation) -> dict[str, Any]:
    """A line of the table: the choice on dev, and how it differs from the first."""
    last = read_log(folder)[-1]
    line = {"choice": name, "divergence": last["distil"], "nDCG@10": found.mean("nDCG@10")}
    if found is first:
        return line
    apart = compare(first, found, "nDCG@10")
    return line | {
        "difference": apart.difference,
        "low": apart.low,
        "high": apart.high,
        "p": apart.p,
    }


def chosen(known: Mapping[str, Choice], numbers: Sequence[int] | None) -> dict[str, Choice]:
    """The first choice, and those of these numbers; ValueError for a number that none has."""
    names = list(known)
    if odd := [number for number in numbers or () if not 0 <= number < len(names)]:
        listed = ", ".join(f"{number} {name}" for number, name in enumerate(names))
        raise ValueError(f"There is no choice {odd[0]}. There are: {listed}.")
    wanted = range(len(names)) if numbers is None else [0, *numbers]
    return {names[number]: known[names[number]] for number in wanted}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train each choice in turn, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="of a training of the bundled reranker")
    parser.add_argument("--pairs", type=int, default=48_000, help="to train each choice on")
    parser.add_argument("--only", type=int, nargs="*", help="these choices, counted from 0")
    parser.add_argument("--queries", type=int, default=None, help="of dev, by default all")
    given = parser.parse_args(arguments)
    quiet_libraries()
    try:
        trainer = Trainer(Recipe.of(given.folder), given.folder)
        known = chosen(choices(trainer.recipe, trainer.data), given.only)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    collection = OFFLINE.load().split("dev", given.queries)
    candidates = retrieve(replace(OFFLINE, queries=given.queries, depth=DEPTH), collection)
    found: dict[str, Evaluation] = {}

    def measured(name: str, choice: Choice) -> list[dict[str, Any]]:
        slug = re.sub(r"\W+", "_", name)
        folder = given.folder / "choices" / str(given.pairs) / slug
        folder.mkdir(parents=True, exist_ok=True)
        found[name] = measure(train(trainer, choice, given.pairs, folder), candidates, collection)
        return [row(name, folder, found[name], next(iter(found.values())))]

    rows = gather(measured(name, choice) for name, choice in known.items())
    facts = {"queries": len(collection.queries), "depth": DEPTH, "pairs": given.pairs}
    write("recipe", facts, rows)


if __name__ == "__main__":
    main()

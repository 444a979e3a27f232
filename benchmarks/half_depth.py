"""Half the layers of the bundled reranker: `python benchmarks/half_depth.py FOLDER`.

Distils it on groups mined as `rerank_utils.training` mines them, and compares student and teacher
on dev: quality, and pairs a second. One student follows its teacher's layers (`match_layers`);
with `--score-steps` another learns from the scores alone, with FlagEmbedding's trainer. FOLDER is
that of a training: the tuned encoder in it is what mines.
"""

from __future__ import annotations

import argparse
import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench import take_turns, write

from rerank_utils.distillation import half_depth, match_layers, teacher_scores
from rerank_utils.engines import has_bfloat16
from rerank_utils.evaluation import evaluate
from rerank_utils.finetuning import finetune
from rerank_utils.hub import quiet_libraries
from rerank_utils.mining import Group, read_jsonl, write_jsonl
from rerank_utils.pipeline import retrieve
from rerank_utils.profiles import OFFLINE, locate
from rerank_utils.reranking import load_reranker, rerank
from rerank_utils.run import Run
from rerank_utils.training import Trainer
from rerank_utils.training_curve import QUICK
from rerank_utils.training_folder import identity
from rerank_utils.training_recipe import Recipe

DEPTH = 50
BATCH = 4
"""Groups a step."""


def draw_groups(trainer: Trainer, count: int) -> list[Group]:
    """So many groups of the recipe, as texts."""
    candidates = trainer.candidates(trainer.encoders.teacher())
    rng, data = random.Random(trainer.recipe.seed), trainer.data
    groups = []
    while len(groups) < count:
        for query in trainer.draw(rng):
            columns, _ = trainer.group(query, candidates[query], rng)
            positive, *negatives = (data.documents[data.ids[column]] for column in columns)
            groups.append(Group(data.queries[query].text, [positive], negatives))
    return groups[:count]


def learn_scores(
    trainer: Trainer, source: Path, groups: list[Group], folder: Path, steps: int
) -> Path:
    """A student of half the layers, trained on the teacher's scores alone."""
    few, window = groups[: steps * BATCH], OFFLINE.reranker_length
    teacher = hashlib.sha256(identity(source).encode()).hexdigest()[:8]
    lines = folder / f"scored-{len(few)}-{teacher}.jsonl"
    if not lines.exists():
        write_jsonl(teacher_scores(few, load_reranker(source, window, "cpu"), **QUICK), lines)
    return finetune(
        half_depth(source, folder / "as_cut"),
        lines,
        folder / "scores",
        steps=steps,
        rate=2e-4,
        batch=BATCH,
        group=trainer.recipe.group,
        query_length=window // 2,
        passage_length=window // 2,
        dropout=0.0,
        half=has_bfloat16() or None,
        distil=True,
        device="cpu",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Mine, distil, compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="of a training of the bundled reranker")
    parser.add_argument("--reranker", default=OFFLINE.reranker, help="the teacher")
    parser.add_argument("--student", help="of an earlier teacher, to go on from")
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument(
        "--layer-share",
        type=float,
        default=1.0,
        help="of the steps, the first ones, that follow the layers beside the scores",
    )
    parser.add_argument("--score-steps", type=int, default=0, help="of learning scores alone")
    parser.add_argument("--queries", type=int, default=None, help="of dev, by default all")
    parser.add_argument("--rounds", type=int, default=1, help="of the comparison")
    given = parser.parse_args(arguments)
    if not 0 <= given.layer_share <= 1:  # said before the groups are drawn, which takes minutes
        parser.error(f"--layer-share is {given.layer_share}: give a share, from 0 to 1.")
    quiet_libraries()
    profile = replace(OFFLINE, queries=given.queries, depth=DEPTH)
    window, source = profile.reranker_length, locate(given.reranker)

    try:
        trainer, work = Trainer(Recipe.of(given.folder), given.folder), given.folder / "half_depth"
    except (ValueError, OSError) as error:
        parser.error(str(error))
    count = BATCH * max(given.steps, given.score_steps)
    lines = work / f"train-{count}.jsonl"
    if not lines.exists():
        write_jsonl(draw_groups(trainer, count), lines)
    models = {
        "teacher": source,
        "half, as cut": half_depth(source, work / "as_cut"),
        "half, layers matched": match_layers(
            source,
            lines,
            work / "layers",
            student=given.student,
            steps=given.steps,
            layer_share=given.layer_share,
            rate=given.rate,
            batch=BATCH,
            max_length=window,
            device="cpu",
        ),
    }
    if given.score_steps:
        models["half, scores alone"] = learn_scores(
            trainer, source, read_jsonl(lines), work, given.score_steps
        )

    collection = profile.load().split("dev", given.queries)
    candidates = retrieve(profile, collection)
    few = Run.from_lists(*zip(*list(candidates)[:8], strict=True))
    rerankers = {name: load_reranker(model, window, "cpu") for name, model in models.items()}

    def work_on(run: Run) -> dict[str, Callable[[], Run]]:
        texts = collection.queries, collection.documents
        return {
            name: partial(rerank, run, *texts, reranker, DEPTH, **QUICK)
            for name, reranker in rerankers.items()
        }

    timings = take_turns(work_on(candidates), given.rounds, warm_up=work_on(few))
    quality = {
        name: evaluate(timing.output, collection.qrels).mean("nDCG@10")
        for name, timing in timings.items()
    }
    pairs = sum(len(documents) for _, documents, _ in candidates)
    rows = [
        {
            "reranker": name,
            "nDCG@10": round(quality[name], 4),
            "share of the teacher": quality[name] / quality["teacher"],
            "pairs/s": pairs / timing.median,
            "x teacher": timings["teacher"].median / timing.median,
        }
        for name, timing in timings.items()
    ]
    facts = {"queries": len(collection.queries), "depth": DEPTH, "max length": window}
    trained = {"steps": given.steps, "rate": given.rate, "layer share": given.layer_share}
    trained |= {"steps on scores": given.score_steps}
    write("half_depth", facts | trained, rows)


if __name__ == "__main__":
    main()

"""Report: the full test split of the offline profile, as the table the README shows.

`python -m rerank_utils.report --help`. The choices, how BM25 and dense are fused and the weights in
the mixes, are made on dev; on test everything is run once and written down.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from .bundled import minilm_path
from .collection import Collection, Qrels
from .errors import told
from .evaluation import Comparison, answer_groups, compare, evaluate
from .experiment import Experiment, Row, experiment, format_p
from .files import write_whole
from .fusion import convex_combination, interpolate, reciprocal_rank_fusion
from .hub import quiet_libraries
from .lexical import search_bm25
from .pipeline import ARTIFACTS, RUN_DEPTH, Result, noted, retrieve, run_pipeline, score_cache
from .plotting import plot_before_after
from .profiles import OFFLINE, Profile, locate
from .reranking import load_reranker, rerank
from .run import Run

WEIGHTS = np.round(np.arange(0.1, 1.0, 0.1), 1).tolist()
FUSIONS: dict[str, Callable[[list[Run]], Run]] = {"RRF": reciprocal_rank_fusion} | {
    f"{weight:g} dense": lambda runs, w=weight: convex_combination(runs, [1 - w, w])
    for weight in WEIGHTS
}
"""Ways to fuse BM25 and dense, in this order, that dev chooses among."""
SHARES = [
    (first / 10, second / 10, (10 - first - second) / 10)
    for first, second in itertools.product(range(1, 9), repeat=2)
    if first + second < 10
]
"""Weights of BM25, dense and the reranker that dev chooses among."""
Splits = tuple[Run, Run]
"""A run on dev and the same on test."""
WAYS = {"": False, " in pieces": True}
"""How long documents are reranked: cut at the window, or piece by piece."""
DENSE = "dense (MiniLM, FAISS flat)"
KEPT = "dense, top {} by tuned and reranker in pieces"
"""The row of an index that stays as it is, while the embedder was tuned: see `pairs_to_mix`."""
FIGURE = Path("notebooks/before_after.png")
MARKERS = ("<!-- results: written by make evaluate -->", "<!-- end of results -->")
DESCRIPTION = """\
Evaluate every pipeline of the course on the full test split: BM25, dense and hybrid retrieval, each
of them reranked; dense and hybrid mixed with the reranker; and all three mixed. Long documents are
reranked cut off, and in pieces. With --tuned an embedder that was tuned on the training side stands
beside them, and scores what dense has found. All choices are made on dev.

The table goes between the markers in README.md, the figure to notebooks/before_after.png, all
numbers to artifacts/offline/evaluation.json. Call it at the top of the project. Scores of pairs are
kept in artifacts/cache: an interrupted run goes on where it stopped.
"""


@dataclass
class Report:
    """What the report found.

    Attributes:
        test: the plain pipeline on test: dense, then reranked.
        table: every pipeline against dense.
        fusion: key of `FUSIONS`, chosen on dev.
        weights: of the reranker in each mix of two, see `pairs_to_mix`, chosen on dev.
        shares: of BM25, dense or tuned, and the reranker in the mix of all three, chosen on dev.
        dev: what each choice gave on dev.
    """

    test: Result
    table: Experiment
    fusion: str
    weights: dict[str, float]
    shares: dict[str, tuple[float, ...]]
    dev: dict[str, dict]

    def numbers(self) -> dict:
        """Everything, for a JSON file."""
        means = {name: found.means() for name, found in self.table.evaluations.items()}
        dense = means[DENSE]["nDCG@10"]
        return {
            "dev": self.dev,
            "fusion": self.fusion,
            "weights": self.weights,
            "shares": self.shares,
            "test": {
                "queries": len(self.test.collection.queries),
                "rows": means,
                "nDCG@10 as a multiple of dense": {
                    name: row["nDCG@10"] / dense if dense else None for name, row in means.items()
                },
                "comparisons": [asdict(row) for row in self.table.rows],
                "seconds": self.test.seconds,
            },
        }


def choose_fusion(runs: list[Run], qrels: Qrels) -> tuple[str, dict[str, dict[str, float]]]:
    """The fusion with the highest R@50, since it feeds a reranker; where equal, the highest
    nDCG@10; and both measures by fusion.

    Args:
        runs: BM25 and dense on dev queries.
        qrels: their judgments.
    """
    scores = {
        name: evaluate(fuse(runs), qrels, ["R@50", "nDCG@10"]).means()
        for name, fuse in FUSIONS.items()
    }
    return max(scores, key=lambda name: tuple(scores[name].values())), scores


def choose_weight(
    first_stage: Run, reranked: Run, qrels: Qrels, depth: int
) -> tuple[float, dict[float, float]]:
    """The weight of the reranker with the highest nDCG@10, and nDCG@10 by weight.

    Args:
        first_stage, reranked: runs on dev queries.
        qrels: their judgments.
        depth: candidates a query that were reranked.
    """
    scores = {
        weight: evaluate(interpolate(first_stage, reranked, weight, depth), qrels).mean("nDCG@10")
        for weight in WEIGHTS
    }
    return max(scores, key=scores.__getitem__), scores


def choose_shares(
    runs: list[Run], qrels: Qrels
) -> tuple[tuple[float, ...], dict[tuple[float, ...], float]]:
    """The weights of three runs with the highest nDCG@10 of their mix, and nDCG@10 by weights.

    Args:
        runs: on dev queries, over the same candidates.
        qrels: their judgments.
    """
    scores = {shares: evaluate(_mix(runs, shares), qrels).mean("nDCG@10") for shares in SHARES}
    return max(scores, key=scores.__getitem__), scores


def _mix(runs: list[Run], shares: tuple[float, ...]) -> Run:
    return convex_combination(runs, shares, "standard")


def among(candidates: Run, run: Run, depth: int) -> Run:
    """What another run says of the first `depth` candidates of each query."""
    first = {query: set(ids[:depth]) for query, ids, _ in candidates}
    rows = [
        [pair for pair in zip(ids, scores, strict=True) if pair[0] in first[query]]
        for query, ids, scores in run.select(candidates.query_ids)
    ]
    documents, scores = ([[pair[i] for pair in row] for row in rows] for i in (0, 1))
    return Run.from_lists(list(first), documents, scores, run.name)


def make_report(
    profile: Profile = OFFLINE, artifacts: Path = ARTIFACTS, tuned: Path | None = None
) -> Report:
    """Choose on the dev split of a profile, then run every pipeline on its test split.

    Args:
        profile: its split is not used; its number of queries holds for both splits.
        artifacts: where vectors and scores of pairs are kept. Each pair is scored once, however
            many first stages find it.
        tuned: the embedder that `training --embedder-only` wrote, to be another first stage.
    """
    dev, test = (
        run_pipeline(replace(profile, split=split), artifacts) for split in ("dev", "test")
    )
    qrels, depth = dev.collection.qrels, profile.depth
    dev_bm25, bm25 = (_bm25(found.collection) for found in (dev, test))
    fusion, by_fusion = choose_fusion([dev_bm25, dev.first_stage], qrels)
    dev_hybrid = FUSIONS[fusion]([dev_bm25, dev.first_stage])
    hybrid = FUSIONS[fusion]([bm25, test.first_stage])
    first_stages = {"dense": (dev.first_stage, test.first_stage), "hybrid": (dev_hybrid, hybrid)}
    if tuned is not None:
        first_stages["tuned"] = tuple(_tuned(tuned, found, artifacts) for found in (dev, test))
    reranked = {
        name + way: tuple(
            _reranked(run, found, artifacts, in_pieces)
            for run, found in zip(runs, (dev, test), strict=True)
        )
        for way, in_pieces in WAYS.items()
        for name, runs in first_stages.items()
    }
    # three scores of the same candidates: for dense those of the hybrid, for tuned its own
    three = {
        name: [
            [among(last, run, depth) for run in (words, vectors, last)]
            for words, vectors, last in zip(
                (dev_bm25, bm25), first_stages[name], reranked[candidates], strict=True
            )
        ]
        for name, candidates in (("dense", "hybrid"), ("tuned", "tuned"))
        if name in first_stages
    }
    by_shares = {name: choose_shares(runs, qrels) for name, (runs, _) in three.items()}
    shares = {name: found for name, (found, _) in by_shares.items()}
    pairs = pairs_to_mix(first_stages, reranked, depth)
    by_weight = {
        name: choose_weight(first[0], second[0], qrels, depth)
        for name, (first, second) in pairs.items()
    }
    weights = {name: weight for name, (weight, _) in by_weight.items()}
    mixed = {
        name: f"{name} mixed ({weight:g} reranker, chosen on dev)"
        for name, weight in weights.items()
    }
    runs = {
        "BM25": bm25,
        DENSE: test.first_stage,
        f"hybrid: BM25 and dense ({fusion}, chosen on dev)": hybrid,
    }
    if tuned is not None:
        tuned_row = tuned_title(tuned)
        runs[tuned_row] = first_stages["tuned"][1]
    runs[f"BM25, top {depth} reranked"] = _reranked(bm25, test, artifacts)
    runs |= {
        f"{name}, top {depth} reranked{way}": reranked[name + way][1]
        for way in WAYS
        for name in first_stages
    }
    runs |= {
        mixed[name]: interpolate(first[1], second[1], weights[name], depth)
        for name, (first, second) in pairs.items()
    }
    for name, (_, parts) in three.items():
        weighed = " : ".join(f"{share:g}" for share in shares[name])
        title = f"BM25, {name} and reranker mixed ({weighed}, chosen on dev)"
        runs[title] = _mix(parts, shares[name])
    chosen = {
        "queries": len(qrels),
        "dense": dev.before.means(),
        "reranked": dev.after.means(),
        "by fusion": by_fusion,
        "nDCG@10 by first stage": {
            name + way: [
                evaluate(run, qrels).mean("nDCG@10") for run in (first, reranked[name + way][0])
            ]
            for way in WAYS
            for name, (first, _) in first_stages.items()
        },
        "nDCG@10 by weight": {name: scores for name, (_, scores) in by_weight.items()},
        "nDCG@10 by shares": {
            name: {" ".join(map(str, key)): mean for key, mean in found.items()}
            for name, (_, found) in by_shares.items()
        },
    }
    groups = answer_groups(test.collection.qrels)
    table = experiment(runs, test.collection.qrels, baseline=DENSE, groups=groups)
    cut, whole = (f"dense, top {depth} reranked{way}" for way in WAYS)
    beside = [(cut, whole)]
    if tuned is not None:
        beside += [(cut, tuned_row), (tuned_row, mixed["tuned and reranker"])]
        beside += [(whole, mixed[KEPT.format(depth)])]
    table = replace(table, notes=[*table.notes, _beside(table, beside, groups)])
    return Report(test, table, fusion, weights, shares, chosen)


def pairs_to_mix(
    first_stages: Mapping[str, Splits], reranked: Mapping[str, Splits], depth: int
) -> dict[str, tuple[Splits, Splits]]:
    """What each mix with the reranker is made of, by the beginning of its row.

    It is a first stage and what the reranker made of it. For an index that has to stay as it is,
    the tuned embedder also scores what dense has found, beside the reranker.

    Args:
        first_stages: dense, hybrid and perhaps tuned, which holds all documents.
        reranked: each of them in both `WAYS`.
        depth: candidates a query.
    """
    pairs = {
        f"{name} and reranker{way}": (runs, reranked[name + way])
        for way in WAYS
        for name, runs in first_stages.items()
    }
    if "tuned" in first_stages:
        kept = tuple(
            among(found, scored, depth)
            for found, scored in zip(first_stages["dense"], first_stages["tuned"], strict=True)
        )
        pairs[KEPT.format(depth)] = kept, reranked["dense in pieces"]
    return pairs


def _bm25(collection: Collection) -> Run:
    depth = min(RUN_DEPTH, len(collection.documents))
    return search_bm25(collection.documents, collection.queries, depth)


def _tuned(folder: Path, found: Result, artifacts: Path) -> Run:
    from transformers import AutoTokenizer

    length = AutoTokenizer.from_pretrained(folder).model_max_length
    embedder = {"embedder": str(folder), "pooling": "mean", "embedder_length": length}
    embedder["depth"] = len(found.collection.documents)  # it scores what others found, too
    with noted([]):  # it reads fewer tokens than MiniLM as it comes, whose cut texts are counted
        return retrieve(replace(found.profile, **embedder), found.collection, artifacts)


def tuned_title(folder: Path) -> str:
    """The row of a tuned embedder, which may be another model than the first stage's."""
    theirs, ours = (
        {key: config[key] for key in ("model_type", "hidden_size", "num_hidden_layers")}
        for config in (
            json.loads((path / "config.json").read_text(encoding="utf-8"))
            for path in (folder, minilm_path())
        )
    )
    name = "the same MiniLM" if theirs == ours else f"a model of type {theirs['model_type']}"
    return f"tuned: {name}, trained on the training side"


def _reranked(run: Run, found: Result, artifacts: Path, in_pieces: bool = False) -> Run:
    profile, collection = found.profile, found.collection
    reranker = load_reranker(locate(profile.reranker), profile.reranker_length)
    cache = score_cache(profile, artifacts)
    texts = (collection.queries, collection.documents)
    with noted([]):  # the pipeline has counted the cut texts already
        return rerank(run, *texts, reranker, profile.depth, cache=cache, in_pieces=in_pieces)


def as_markdown(table: Experiment) -> str:
    """The table as the README shows it: means of all measures, and for the first of them the
    difference from the baseline with interval and corrected p. All tests are in the CSV file."""
    measures = list(table.evaluations[table.baseline].values)
    columns = ["run", measures[0], "difference, p", *measures[1:]]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for name, found in table.evaluations.items():
        first, *others = (f"{mean:.3f}" for mean in found.means().values())
        cells = [name, first, _difference(table.row(name, measures[0])), *others]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *table.notes])


def _difference(row: Row) -> str:
    return "–" if row.difference is None else _stated(row, row.corrected_p)


def _beside(table: Experiment, pairs: list[tuple[str, str]], groups: dict[str, int]) -> str:
    """The differences between these runs in nDCG@10, as a sentence."""
    found = []
    for before, after in pairs:
        runs = table.evaluations[before], table.evaluations[after]
        apart = compare(*runs, "nDCG@10", groups=groups)
        names = " over ".join(name.split(":")[0].split(" (")[0] for name in (after, before))
        found.append(f"{names} {_stated(apart, apart.p)}")
    return f"Beside these, not corrected: {'; '.join(found)}."


def _stated(found: Row | Comparison, p: float) -> str:
    said = format_p(p)
    said = f"p {said}" if said.startswith("<") else f"p = {said}"
    return f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}], {said}"


def write_between_markers(path: Path, text: str, markers: tuple[str, str] = MARKERS) -> None:
    """Replace what stands between the two markers of a file.

    Raises:
        ValueError: the file has not exactly one pair of markers.
    """
    page = path.read_text(encoding="utf-8")
    first, last = markers
    head, _, rest = page.partition(first)
    _, found, tail = rest.partition(last)
    if not found or any(page.count(marker) != 1 for marker in markers):
        raise ValueError(f"{path} must hold the lines {first!r} and {last!r} once, in this order.")
    write_whole(f"{head}{first}\n{text}\n{last}{tail}", path)


def main(arguments: list[str] | None = None) -> int:
    """Run, print, and write table and figure of the README; to be called at the project's top."""
    parser = argparse.ArgumentParser(
        prog="python -m rerank_utils.report",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--queries",
        type=int,
        metavar="N",
        help="only the first N of each split, to try it out; README and figure stay as they are",
    )
    parser.add_argument(
        "--tuned",
        type=Path,
        metavar="DIR",
        help="the embedder/ of a training, for more rows (`make evaluate` gives it; without it the "
        "README loses them)",
    )
    options = parser.parse_args(arguments)
    if options.queries is not None and options.queries < 1:
        parser.error(f"--queries is {options.queries}: ask for at least one.")
    if options.tuned and not (options.tuned / "config.json").is_file():
        parser.error(
            f"--tuned is {options.tuned}, which holds no model: give the folder embedder/ that "
            "`python -m rerank_utils.training --embedder-only` wrote."
        )
    page = Path("README.md")
    if not options.queries and not (page.exists() and MARKERS[0] in page.read_text("utf-8")):
        parser.error("The table goes into the project's README.md: run this at its top.")
    quiet_libraries()
    try:
        with told():
            report = make_report(replace(OFFLINE, queries=options.queries), tuned=options.tuned)
    except KeyboardInterrupt:
        sys.exit("\nStopped. Run the same command again: it goes on from here.")
    print(f"\n{report.table}\n")
    weights = ", ".join(f"{weight:g} ({name})" for name, weight in report.weights.items())
    print(f"chosen on dev: fusion {report.fusion}, weight of the reranker {weights}")
    for name, shares in report.shares.items():
        print(f"chosen on dev: weights of BM25, {name} and reranker {shares}")
    if options.queries:
        return 0
    folder = ARTIFACTS / "offline"
    folder.mkdir(parents=True, exist_ok=True)
    numbers = json.dumps(report.numbers(), indent=1)
    write_whole(numbers, folder / "evaluation.json")
    report.table.to_csv(folder / "evaluation.csv")
    test = report.test
    test.save(folder / "test")
    split = (
        f"The {len(test.collection.queries)} queries are the test split: their weaknesses took no "
        "part in training, neither as answers nor as candidates. Training reports that are filed "
        "under one of these too were asked with their other weaknesses alone (model card)."
    )
    write_between_markers(page, f"{as_markdown(report.table)}\n{split}")
    title = f"{len(test.collection.queries)} vulnerability reports of the test split"
    plot_before_after(test.before, test.after, title).savefig(FIGURE, dpi=120)
    print(
        f"written: {folder / 'evaluation.json'}, {folder / 'evaluation.csv'}, README.md, {FIGURE}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

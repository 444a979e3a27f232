"""Experiment: several runs on the same judgments, in one table that says how sure we are."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from .collection import Qrels
from .evaluation import MEASURES, Comparison, Evaluation, compare, evaluate
from .files import write_whole
from .run import Run

HEADER = (
    "measure",
    "run",
    "mean",
    "difference",
    "95 % interval",
    "p (Holm)",
    "better / same / worse",
)


@dataclass(frozen=True)
class Row:
    """One run in one measure. The fields after `mean` are None where there is no test: for the
    baseline itself, and for all runs if only one query was judged.

    Attributes:
        measure, run: their names.
        mean: over all judged queries.
        difference: mean minus the baseline's mean.
        low, high: 95 % bootstrap interval of the difference.
        p: two-sided paired permutation test.
        corrected_p: p after Holm's correction over all rows of the experiment.
        wins, ties, losses: queries on which the run is better than the baseline, equal, worse.
    """

    measure: str
    run: str
    mean: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    corrected_p: float | None = None
    wins: int | None = None
    ties: int | None = None
    losses: int | None = None

    def cells(self) -> list[str]:
        """The row as printed, in the order of `HEADER`."""
        cells = [self.measure, self.run, f"{self.mean:.3f}"]
        if self.difference is None:
            return cells + ["–"] * 4
        return [
            *cells,
            f"{self.difference:+.3f}",
            f"[{self.low:+.3f}, {self.high:+.3f}]",
            format_p(self.corrected_p),
            f"{self.wins} / {self.ties} / {self.losses}",
        ]


@dataclass(frozen=True, repr=False)
class Experiment:
    """Runs against a baseline. Printing it, or leaving it last in a notebook cell, shows the table.

    Attributes:
        baseline: name of the run that the others are compared with.
        evaluations: run name -> its measures for each query.
        rows: measure by measure, in each the runs in the order given.
        notes: sentences that belong under the table.
    """

    baseline: str
    evaluations: dict[str, Evaluation]
    rows: list[Row]
    notes: list[str]

    def row(self, run: str, measure: str) -> Row:
        """The row of one run and measure.

        Raises:
            KeyError: the experiment has no such row.
        """
        for row in self.rows:
            if (row.run, row.measure) == (run, measure):
                return row
        raise KeyError(f"The experiment has no run {run!r} with the measure {measure!r}.")

    def __str__(self) -> str:
        table = [list(HEADER), *(row.cells() for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = []
        for place, cells in enumerate(table):
            if place and cells[0] != table[place - 1][0]:
                lines.append("")  # between measures
            words = zip(cells[:2], widths[:2], strict=True)
            numbers = zip(cells[2:], widths[2:], strict=True)
            padded = [f"{c:<{w}}" for c, w in words] + [f"{c:>{w}}" for c, w in numbers]
            lines.append("  ".join(padded).rstrip())
        return "\n".join([*lines, "", *self.notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The table as notebooks show it."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in HEADER)
        body = [
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row.cells()) + "</tr>"
            for row in self.rows
        ]
        notes = html.escape(" ".join(self.notes))
        return f"<table><tr>{head}</tr>{''.join(body)}</table><p>{notes}</p>"

    def to_csv(self, path: str | Path | None = None) -> str:
        """The rows as CSV with all digits; empty where there is no test.

        Args:
            path: also written there, if given.
        """
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        names = [field.name for field in fields(Row)]
        writer.writerow(names)
        writer.writerows([getattr(row, name) for name in names] for row in self.rows)
        if path is not None:
            write_whole(stream.getvalue(), path)
        return stream.getvalue()

    def to_latex(self) -> str:
        """The table for a paper; it needs the package booktabs."""
        lines = [r"\begin{tabular}{llrrrrr}", r"\toprule", _latex(HEADER), r"\midrule"]
        for place, row in enumerate(self.rows):
            if place and row.measure != self.rows[place - 1].measure:
                lines.append(r"\midrule")
            lines.append(_latex(row.cells()))
        lines += [r"\bottomrule", r"\end{tabular}"]
        return "\n".join([*lines, *(f"% {note}" for note in self.notes)])


def experiment(
    runs: Sequence[Run] | Mapping[str, Run],
    qrels: Qrels,
    baseline: str | None = None,
    measures: Sequence[str] = MEASURES,
    seed: int = 0,
    groups: Mapping[str, int] | None = None,
) -> Experiment:
    """Evaluate runs on the same queries and test each against a baseline.

    Every run but the baseline is compared with it in every measure (`evaluation.compare`). The
    more comparisons, the likelier that one looks good by chance; Holm's correction over all of
    them keeps the chance of even one false finding below the level one reads p at.

    Args:
        runs: two runs or more; a mapping names them, otherwise their own names count.
        qrels: query id -> document id -> grade.
        baseline: name of a run; by default the first.
        measures: see `evaluation.evaluate`.
        seed: of bootstrap and test, for each comparison anew.
        groups: query id -> group, see `evaluation.compare`: such as `answer_groups(qrels)`, where
            queries share answers.

    Raises:
        ValueError: fewer than two runs, a name twice, an unknown baseline, a run without any
            document, runs that hold different judged queries, and what `evaluate` raises.
    """
    named = _named(runs)
    baseline = next(iter(named)) if baseline is None else baseline
    if baseline not in named:
        raise ValueError(f"No run is called {baseline!r}: choose among {', '.join(named)}.")
    evaluations = {
        name: evaluate(replace(run, name=name), qrels, measures) for name, run in named.items()
    }
    _require_same_queries(named, qrels)
    base, queries = evaluations[baseline], len(qrels)
    others = [name for name in named if name != baseline]
    keys = [(measure, name) for measure in measures for name in others] if queries > 1 else []
    resamples = max(9_999, 2_500 * len(keys) - 1)  # so that a corrected p below 0.001 can come out
    found = {
        key: compare(base, evaluations[key[1]], key[0], seed, resamples, groups) for key in keys
    }
    corrected = holm([comparison.p for comparison in found.values()])
    tests = dict(zip(found, zip(found.values(), corrected, strict=True), strict=True))
    rows = [
        _row(measure, name, evaluations[name].mean(measure), tests.get((measure, name)))
        for measure in measures
        for name in named
    ]
    ranked = set(named[baseline].query_ids)
    silent = sum(query not in ranked for query in qrels)
    drawn = "queries"
    if groups is not None:
        drawn = f"{len({groups[query] for query in qrels}):,} groups of queries that share answers"
    notes = _notes(baseline, queries, drawn, silent, resamples, keys)
    return Experiment(baseline, evaluations, rows, notes)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p values corrected for there being several of them, by Holm's step-down method (1979).

    The smallest of m is multiplied by m, the next by m - 1 and so on; none may come out below
    one that was smaller, or above 1. Whoever then rejects what is at most 0.05 has at most a
    5 % chance of even one false rejection, however the tests depend on each other.

    Args:
        p_values: (m,) between 0 and 1.

    Returns:
        (m,) float64 in the order given.

    Raises:
        ValueError: a p value is outside [0, 1] or NaN.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_values holds {p[~((p >= 0) & (p <= 1))][0]}: a p value is 0 to 1.")
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return corrected


def format_p(p: float) -> str:
    """A p value as printed: three digits, and "< 0.001" below them."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _named(runs: Sequence[Run] | Mapping[str, Run]) -> dict[str, Run]:
    pairs = list(runs.items()) if isinstance(runs, Mapping) else [(r.name, r) for r in runs]
    named = dict(pairs)
    if len(named) < len(pairs):
        raise ValueError(
            "Two runs have the same name: pass a mapping from a name of your own to each run."
        )
    if len(named) < 2:
        raise ValueError("An experiment needs two runs or more: a baseline and another.")
    for name, run in named.items():
        if not (run.doc_ids != "").any():
            raise ValueError(f"The run {name!r} is empty: it ranks no document for any query.")
    return named


def _require_same_queries(named: dict[str, Run], qrels: Qrels) -> None:
    (first, *others), held = named, {n: set(r.query_ids) & set(qrels) for n, r in named.items()}
    for name in others:
        if odd := held[first] ^ held[name]:
            query = min(odd)
            has, lacks = (first, name) if query in held[first] else (name, first)
            raise ValueError(
                f"The runs hold different queries: {query!r} is in {has!r} and not in {lacks!r} "
                f"({len(odd)} such). Make both from the same queries; a query without results "
                "has an empty ranking, which Run.select gives it."
            )


def _row(measure: str, name: str, mean: float, test: tuple[Comparison, float] | None) -> Row:
    if test is None:
        return Row(measure, name, mean)
    found, corrected = test
    interval = (found.difference, found.low, found.high)
    counts = (found.wins, found.ties, found.losses)
    return Row(measure, name, mean, *interval, found.p, float(corrected), *counts)


def _notes(
    baseline: str, queries: int, drawn: str, silent: int, resamples: int, keys: list
) -> list[str]:
    if not keys:
        return ["One query alone gives no interval and no test: judge more queries."]
    notes = [
        f"{queries:,} queries; differences are against {baseline}.",
        f"Interval: bootstrap over {drawn}, 9,999 resamples. p: two-sided paired permutation "
        f"test, {resamples:,} resamples, Holm-corrected over {len(keys)} comparisons.",
    ]
    if silent:
        notes.insert(1, f"{silent:,} of the queries have no ranking in these runs and count 0.")
    return notes


def _latex(cells: Sequence[str]) -> str:
    special = {c: f"\\{c}" for c in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "<": "$<$", "–": "--"}
    special |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return " & ".join(cell.translate(str.maketrans(special)) for cell in cells) + r" \\"

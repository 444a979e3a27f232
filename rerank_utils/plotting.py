"""Plotting: evaluations and runs to figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .analysis import Movement
from .evaluation import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEFORE, AFTER = "#8a8f98", "#1f5fbf"
UP, SAME, DOWN = AFTER, BEFORE, "#c4452d"


def plot_before_after(before: Evaluation, after: Evaluation, title: str = "") -> Figure:
    """Each measure before and after reranking, as two dots on one line with the change.

    Args:
        before, after: evaluations of the two runs with the same measures.
        title: printed above.
    """
    import matplotlib.pyplot as plt

    measures = list(before.values)
    figure, axes = plt.subplots(figsize=(7, 0.6 * len(measures) + 1.4), layout="constrained")
    rows = np.arange(len(measures))[::-1]
    first, second = ([e.mean(m) for m in measures] for e in (before, after))
    axes.hlines(rows, first, second, color=AFTER, alpha=0.35, linewidth=4)
    axes.scatter(first, rows, s=70, color=BEFORE, label=before.name, zorder=3)
    axes.scatter(second, rows, s=70, color=AFTER, label=after.name, zorder=3)
    for row, old, new in zip(rows, first, second, strict=True):
        axes.annotate(
            f"{new:.3f} ({new - old:+.3f})",
            (max(old, new), row),
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(rows, measures)
    axes.set_ylim(-0.7, len(measures) - 0.3)
    axes.set_xlim(0, max(first + second) * 1.3 or 1)
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= 1])
    axes.set_xlabel("mean over queries")
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    if title:
        axes.set_title(title, loc="left")
    return figure


def plot_rank_movement(
    moves: Sequence[Movement], before: str = "first stage", after: str = "reranked", title: str = ""
) -> Figure:
    """A line for each relevant document, from its rank before to its rank after.

    Ranks are drawn on a logarithmic axis, best on top, because the first places matter most. A
    document that a run does not hold stands below the dotted line.

    Args:
        moves: from `analysis.movements`, all or those of some queries.
        before, after: names of the two runs.
        title: printed above.

    Raises:
        ValueError: there is nothing to draw.
    """
    import matplotlib.pyplot as plt

    if not moves:
        raise ValueError("moves is empty: these queries have no relevant document.")
    deepest = max([move.before or 1 for move in moves] + [move.after or 1 for move in moves])
    lost = deepest * 1.6 + 1
    figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
    neither = "in neither run"
    kinds = {"up": (UP, []), "same place": (SAME, []), "down": (DOWN, []), neither: (SAME, [])}
    for move in moves:
        old, new = (lost if rank is None else rank for rank in (move.before, move.after))
        kind = "up" if new < old else "down" if new > old else "same place"
        kinds[neither if old == new == lost else kind][1].append((old, new))
    for name, (colour, pairs) in kinds.items():
        if pairs:
            lines = axes.plot([0, 1], np.transpose(pairs), color=colour, alpha=0.5, marker="o")
            lines[0].set_label(f"{name}: {len(pairs)}")
    axes.set_yscale("log")
    axes.set_ylim(lost * 1.25, 0.8)
    ticks = [rank for rank in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if rank <= deepest]
    labels = [str(rank) for rank in ticks]
    if any(None in (move.before, move.after) for move in moves):
        axes.axhline(deepest * 1.25 + 0.5, color=BEFORE, linestyle=":")
        ticks, labels = [*ticks, lost], [*labels, "not found"]
    axes.set_yticks(ticks, labels)
    axes.minorticks_off()
    axes.set_xticks([0, 1], [before, after])
    axes.set_xlim(-0.15, 1.15)
    axes.set_ylabel("rank of a relevant document")
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    if title:
        axes.set_title(title, loc="left")
    return figure

"""Plotting: evaluations and runs to figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .evaluation import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEFORE, AFTER = "#8a8f98", "#1f5fbf"


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

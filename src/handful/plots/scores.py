"""Figures of how good a classifier is: confusion, reliability, and risk against coverage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from handful.plots.style import (
    ACCENT,
    CONTROL,
    FONT,
    GRID,
    INK,
    MUTED,
    OURS,
    Array,
    add_axes,
    box,
    labels_of,
    new_figure,
    pt,
    write,
)
from handful.wording import percent

ERRORS = LinearSegmentedColormap.from_list("errors", ["#fdeee3", "#f3a873", ACCENT])
# Beyond this many classes, numbers in the cells could not be read.
NUMBERED = 40
# Beyond this many, neither could the whole.
WHOLE = 100


def confusion(matrix: Array, names: Sequence[str]) -> Figure:
    """Counts int (Y, Y), rows the truth. Zeros stay blank, errors are coloured by their share.

    Of more classes than `WHOLE` those `NUMBERED` are shown that are confused most.
    """
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    told = "predicted as"
    if len(matrix) > WHOLE:
        told += f": the {NUMBERED} of {len(matrix):,} classes that are confused most"
        shown = _confused(matrix)
        matrix, share = (every[np.ix_(shown, shown)] for every in (matrix, share))
        names = [names[k] for k in shown]
    classes = len(matrix)
    sizes = (12, 44), (20, 36), (NUMBERED, 30), (WHOLE, 9)
    cell = next(size for limit, size in sizes if classes <= limit)
    labels = labels_of(names, 16)
    longest = max(map(len, labels))
    size = 12 if classes <= NUMBERED else 7.5
    margin, turned = 30 + 0.617 * size * longest, longest > 3
    top = margin if turned else 44
    figure = new_figure(margin + cell * classes + 6, top + cell * classes + 6)
    axes = add_axes(figure, margin, top, cell * classes, cell * classes)
    wrong = np.where(np.eye(classes, dtype=bool), 0, share)
    axes.imshow(np.ma.masked_equal(wrong, 0), cmap=ERRORS, vmin=0,
                vmax=max(float(wrong.max()), 1e-9), aspect="auto", zorder=1)  # fmt: skip
    for k in range(classes):
        axes.add_patch(box(k - 0.5, k - 0.5, 1, 1, "#e4eff7"))
    axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=GRID, linewidth=0.6 if classes <= NUMBERED else 0.2)
    axes.tick_params(which="both", length=0, top=False, labeltop=True, labelbottom=False)
    axes.set_xticks(range(classes), labels, fontsize=pt(size), color=INK, rotation=90 * turned)
    axes.set_yticks(range(classes), labels, fontsize=pt(size), color=INK)
    axes.spines[:].set_visible(False)
    width, height = figure.get_size_inches() * 96
    style: dict[str, Any] = {"fontsize": pt(11), "color": MUTED, "family": FONT}
    across, down = (margin + width) / 2 / width, 1 - (top + height) / 2 / height
    figure.text(across, 1 - 4 / height, told, va="top", ha="center", **style)
    figure.text(5 / width, down, "truth", va="center", ha="left", rotation=90, **style)
    if classes <= NUMBERED:
        _numbers(axes, matrix, wrong, cell)
    return figure


def _confused(matrix: Array) -> Array:
    """`NUMBERED` classes, in their order: of the most frequent error both, of the next, and on."""
    errors = matrix * ~np.eye(len(matrix), dtype=bool)
    # so many cells lie in as many rows and columns at least
    worst = np.argsort(-errors, axis=None, kind="stable")[: NUMBERED**2]
    pairs = np.stack(np.unravel_index(worst, errors.shape), axis=1)
    classes, first = np.unique(pairs, return_index=True)
    return np.sort(classes[np.argsort(first)][:NUMBERED])


def _numbers(axes: Axes, matrix: Array, wrong: Array, cell: float) -> None:
    worst = float(wrong.max())
    for row, column in zip(*np.nonzero(matrix), strict=True):
        text = str(matrix[row, column])
        strong = wrong[row, column] > 0.6 * worst
        colour = INK if row == column else "white" if strong else "#6b2c00"
        weight = "normal" if row == column else "bold"
        size = min(13, cell / (0.62 * len(text) + 0.5))
        write(axes, column, row, text, size, ha="center", color=colour, weight=weight)


def reliability(
    edges: Sequence[float],
    images: Sequence[int],
    confidence: Sequence[float | None],
    accuracy: Sequence[float | None],
    low: Sequence[float | None],
    high: Sequence[float | None],
    ece: float,
) -> Figure:
    """Accuracy against confidence per bin with its interval, over the histogram of confidences.

    One entry a bin, None where a bin is empty; `edges` has one more. `ece` is printed.
    """
    figure = new_figure(430, 450)
    upper = add_axes(figure, 62, 12, 354, 280)
    full = [b for b, count in enumerate(images) if count]
    x, y, bottom, top = (
        np.array([values[b] for b in full], dtype=float)
        for values in (confidence, accuracy, low, high)
    )
    upper.plot([0, 1], [0, 1], color=CONTROL, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    upper.errorbar(x, y, yerr=np.maximum([y - bottom, top - y], 0), fmt="o-", color=OURS,
                   markersize=5, linewidth=1.4, elinewidth=1, capsize=2.5, zorder=3)  # fmt: skip
    text = f"calibration error (ECE) {percent(ece)}"
    write(upper, 0.99, 0.13, text, 12.5, weight="bold", ha="right")
    write(upper, 0.99, 0.05, "dashed: perfect calibration", 11, color=MUTED, ha="right")
    upper.set(xlim=(0, 1.02), ylim=(0, 1.03))
    upper.tick_params(labelbottom=False)
    upper.yaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
    lower = add_axes(figure, 62, 308, 354, 92)
    lower.bar(edges[:-1], images, width=np.diff(edges) * 0.88, align="edge", color=OURS)
    lower.set(xlim=(0, 1.02), yscale="log", ylim=(0.7, max(10, 2 * max(images, default=1))))
    lower.xaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
    style: dict[str, Any] = {"fontsize": pt(11.5), "color": MUTED, "family": FONT}
    upper.set_ylabel("how often right", **style)
    lower.set_xlabel("confidence: probability of the predicted class", **style)
    lower.set_ylabel("images (log)", **style)
    for axes in (upper, lower):
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(which="minor", length=0)
    return figure


def risk(coverage: Array, wrong: Array, marks: Mapping[str, tuple[float, float]]) -> Figure:
    """Error of the answers that are given against how many are, the surest first.

    coverage, wrong: shares (T,), in that order. marks: points (coverage, error) by their names.
    """
    figure = new_figure(430, 330)
    axes = add_axes(figure, 62, 12, 354, 262)
    # one or two answers are no share of anything: begin where a hundredth is answered
    first = min(len(coverage) - 1, len(coverage) // 100)
    axes.plot(coverage[first:], wrong[first:], color=OURS, linewidth=1.6, zorder=2)
    for name, (given, error) in marks.items():
        axes.plot([given], [error], "D", color=ACCENT, markersize=6, zorder=3)
        axes.annotate(name, (given, error), xytext=(-6, 7), textcoords="offset points",
                      ha="right", color=ACCENT, fontsize=pt(11.5), family=FONT)  # fmt: skip
    most = max([float(wrong[first:].max()), *(error for _, error in marks.values()), 1e-3])
    axes.set(xlim=(0, 1.02), ylim=(0, 1.25 * most))
    axes.xaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1, 1 if most < 0.05 else 0, " %"))
    style: dict[str, Any] = {"fontsize": pt(11.5), "color": MUTED, "family": FONT}
    axes.set_xlabel("answered, the surest first", **style)
    axes.set_ylabel("of these wrong", **style)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure

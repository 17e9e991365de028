"""Accuracy against the number of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from handful.plots.style import (
    ACCENT,
    CONTROL,
    FONT,
    GRID,
    MUTED,
    OURS,
    add_axes,
    new_figure,
    pt,
)
from handful.wording import percent

ERRORS = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
"""Shares of errors that get a tick, named by what is right."""
LEAST = 1e-4
"""An error of none has no place on a logarithmic axis."""

Point = tuple[int, float, tuple[float, float] | None]
"""Labels per class, mean accuracy, and its interval where there is one; shares of one."""
Line = Sequence[Point]


def labels(
    lines: Mapping[str, Line],
    runs: Sequence[tuple[int, float]],
    published: Sequence[tuple[int, float, str]] = (),
    ahead: tuple[str, Point] | None = None,
    counted: str = "labelled images per class",
) -> Figure:
    """Both axes are logarithmic, the upright one in errors, so a power law is a straight line.

    lines: by what they are called, the first in colour, the others grey. runs: each run of the
    first line, as labels per class and accuracy. published: other people's figures, with their
    names. ahead: what is expected beyond the first line, and what to call it. counted: what the
    numbers of a point count.
    """
    figure = new_figure(620, 418)
    axes = add_axes(figure, 66, 14, 540, 360)
    axes.set(xscale="log", yscale="log")
    for place, (name, line) in enumerate(lines.items()):
        _line(axes, name, line, OURS if place == 0 else CONTROL, shift=1 + 0.03 * place)
    if ahead is not None:
        name, there = ahead
        labelled, reached, _ = next(iter(lines.values()))[-1]
        _line(axes, name, [(labelled, reached, None), there], OURS, style="--")
    x, y = [n for n, _ in runs], [_error(accuracy) for _, accuracy in runs]
    axes.plot(x, y, "o", color=OURS, alpha=0.35, markersize=3.5, markeredgewidth=0, zorder=2)
    every = [*lines.values(), *([[ahead[1]]] if ahead is not None else [])]
    numbers = sorted({n for line in every for n, _, _ in line})
    for n, accuracy, name in published:
        last = n > numbers[-1]  # a name on its right would leave the page
        axes.plot([n], [_error(accuracy)], "D", color=ACCENT, markersize=5, zorder=4)
        axes.annotate(
            name, (n, _error(accuracy)), xytext=(-7 if last else 7, -1),
            textcoords="offset points", ha="right" if last else "left", va="center",
            fontsize=pt(10.5), color=ACCENT, family=FONT,
        )  # fmt: skip
    _ticks(axes, numbers)
    _with_a_number(axes)
    style: dict[str, Any] = {"fontsize": pt(11.5), "color": MUTED, "family": FONT}
    axes.set_xlabel(counted, **style)
    axes.set_ylabel("test images answered rightly", **style)
    legend = axes.legend(loc="best", frameon=False, prop={"family": FONT, "size": pt(11.5)})
    for text in legend.get_texts():
        text.set_color(MUTED)
    return figure


def _with_a_number(axes: Axes) -> None:
    """Errors that lie close together still have one on either side that is written."""
    high, low = axes.get_ylim()
    if not any(low <= error <= high for error in ERRORS):
        below = max((error for error in ERRORS if error < low), default=low)
        above = min((error for error in ERRORS if error > high), default=high)
        axes.set_ylim(above, below)


def _error(accuracy: float) -> float:
    return max(1 - accuracy, LEAST)


def _line(
    axes: Axes, name: str, line: Line, colour: str, shift: float = 1.0, style: str = "-"
) -> None:
    x = [n * shift for n, _, _ in line]  # beside each other where two lines share a number
    y = [_error(mean) for _, mean, _ in line]
    axes.plot(
        x,
        y,
        "o",
        linestyle=style,
        color=colour,
        linewidth=1.6,
        markersize=5.5,
        label=name,
        zorder=3,
    )
    for n, (_, _, interval) in zip(x, line, strict=True):
        if interval is not None:
            ends = [_error(bound) for bound in interval]
            axes.plot([n, n], ends, color=colour, linewidth=1.2, zorder=3)


def _ticks(axes: Axes, numbers: Sequence[int]) -> None:
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(FixedLocator(numbers))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:g}"))
    axes.yaxis.set_major_locator(FixedLocator(ERRORS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda error, _: percent(1 - error)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)

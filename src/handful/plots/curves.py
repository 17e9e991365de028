"""Curves of both stages, drawn from the rows of metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from handful.plots.style import (
    ACCENT,
    CONTROL,
    FONT,
    GRID,
    MUTED,
    OURS,
    PAGE,
    PHONE,
    Layout,
    add_axes,
    bare_axes,
    new_figure,
    pt,
    write,
)

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class _Line:
    x: list[float]
    y: list[float]
    colour: str = OURS
    text: str = ""


@dataclass(frozen=True)
class _Panel:
    title: str
    lines: list[_Line]
    percent: bool = False
    mark: tuple[float, float] | None = None


def curves(rows: Rows, layout: Layout = "wide") -> Figure | None:
    """Curves of both stages; None where the rows of metrics.jsonl hold none.

    The control is thin and grey; a dot marks the length that validation chose.
    """
    groups = [group for group in (_pretext_panels(rows), _classifier_panels(rows)) if group]
    if not groups:
        return None
    wide = layout == "wide"
    across = max(map(len, groups)) if wide else 2
    lines = [group[i : i + across] for group in groups for i in range(0, len(group), across)]
    page, high = (across * PAGE / 4, 138) if wide else (PHONE, 100)
    stride, left, key = page / across, 42, _key_of([*groups[0], *groups[-1]])
    height = len(lines) * (high + 62) + 28 * bool(key)
    figure = new_figure(page, height)
    for row, panels in enumerate(lines):
        for column, panel in enumerate(panels):
            x, y = column * stride + left, row * (high + 62) + 24
            _draw(add_axes(figure, x, y, stride - left - 16, high), panel, 12 if wide else 11)
    axes = bare_axes(figure, 0, height - 26, page, 24)
    x = 10.0
    for colour, style, text in key:
        axes.plot([x, x + 9, x + 18], [12] * 3, style, color=colour, linewidth=2, markersize=6,
                  markevery=[1])  # fmt: skip
        write(axes, x + 25, 12, text, 11.5)
        x += 44 + 7 * len(text)
    return figure


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _scale(key: str) -> float:
    """Shares are drawn in per cent."""
    return 100.0 if key.endswith("accuracy") else 1.0


def _series(rows: Rows, stage: str, key: str, colour: str = OURS, text: str = "") -> list[_Line]:
    """The finite values of one key in one stage, as one line or none."""
    found = [
        (float(row["step"]), _scale(key) * float(row[key]))
        for row in rows
        if row.get("stage") == stage and _finite(row.get("step")) and _finite(row.get(key))
    ]
    return [_Line([x for x, _ in found], [y for _, y in found], colour, text)] if found else []


def _pretext_panels(rows: Rows) -> list[_Panel]:
    spread = _series(rows, "pretext", "alignment", OURS, "alignment")
    spread += _series(rows, "pretext", "uniformity", ACCENT, "uniformity")
    panels = [
        _Panel("Pretext loss", _series(rows, "pretext", "loss")),
        _Panel("kNN accuracy", _series(rows, "pretext", "knn_accuracy"), percent=True),
        _Panel("Effective rank", _series(rows, "pretext", "effective_rank")),
        _Panel("Alignment, uniformity", spread),
    ]
    return [panel for panel in panels if panel.lines]


def _classifier_panels(rows: Rows) -> list[_Panel]:
    stages = {row.get("stage") for row in rows}
    # Without a refit, the model that chose its length is the one that is kept.
    ours = "selection" if "selection" in stages else "downstream"
    final = _series(rows, "downstream", "loss") or _series(rows, "selection", "loss")
    panels = [_Panel("Classifier loss", _series(rows, "control", "loss", CONTROL) + final)]
    kept = [row for row in rows if row.get("stage") == ours and row.get("kept")]
    for title, key in (
        ("Validation loss", "validation_loss"),
        ("Validation accuracy", "validation_accuracy"),
    ):
        chosen = kept[-1] if kept and _finite(kept[-1].get(key)) else None
        mark = (float(chosen["step"]), _scale(key) * float(chosen[key])) if chosen else None
        panels.append(_Panel(title, _series(rows, ours, key), key == "validation_accuracy", mark))
    return [panel for panel in panels if panel.lines]


def _key_of(panels: Sequence[_Panel]) -> list[tuple[str, str, str]]:
    """Colour, line style and text of what needs explaining below the panels."""
    key: list[tuple[str, str, str]] = []
    if any(line.colour == CONTROL for panel in panels for line in panel.lines):
        key += [(OURS, "-", "with contrast"), (CONTROL, "-", "control")]
    if any(panel.mark for panel in panels):
        key.append((ACCENT, "o", "stopping point"))
    return key


def _draw(axes: Axes, panel: _Panel, size: float) -> None:
    for line in panel.lines:
        width = 1.1 if line.colour == CONTROL else 1.8
        marker = "o" if len(line.x) < 3 else ""
        axes.plot(line.x, line.y, marker=marker, color=line.colour, linewidth=width,
                  markersize=3.5)  # fmt: skip
    if panel.mark:
        axes.axvline(panel.mark[0], color=ACCENT, linewidth=0.9, linestyle=(0, (3, 2)))
        axes.plot(*panel.mark, "o", color=ACCENT, markersize=5.5, zorder=5)
    axes.margins(x=0.03)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("step", fontsize=pt(10.5), color=MUTED, labelpad=1, family=FONT)
    if panel.percent:
        low, high = axes.get_ylim()
        low = max(0, min(low, high - 1))  # closer than a point, ticks would need many digits
        axes.set_ylim(low, min(high, 100 + 0.03 * (100 - low)))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], min_n_ticks=3))
    # Begins where the tick labels begin: panels are narrow and titles are not.
    shift = ScaledTranslation(-32 / 96, 9 / 96, axes.figure.dpi_scale_trans)
    write(axes, 0, 1, panel.title + (", %" if panel.percent else ""), size, weight="bold",
          va="bottom", transform=axes.transAxes + shift)  # fmt: skip
    _name_lines(axes, panel.lines)


def _name_lines(axes: Axes, lines: Sequence[_Line]) -> None:
    """Names above the ends of those lines that have one, with room for them."""
    low, high = axes.get_ylim()
    room = 0.16 * (high - low) if any(line.text for line in lines) else 0
    axes.set_ylim(low, high + room)
    for line in lines:
        top = max(line.y[max(0, len(line.y) // 2 - 1) :])
        axes.annotate(line.text, (line.x[-1], top), (0, 3), textcoords="offset points",
                      fontsize=pt(10.5), color=line.colour, ha="right", family=FONT)  # fmt: skip

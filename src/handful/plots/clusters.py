"""t-SNE maps with a legend and each class's name on its cluster."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from handful.plots.style import (
    FONT,
    INK,
    PHONE,
    Array,
    Layout,
    add_axes,
    bare_axes,
    class_style,
    labels_of,
    new_figure,
    pt,
    write,
)

# Up to this many classes, names fit on the clusters themselves.
FEW = 15


def tsne(
    before: Array | None,
    after: Array,
    labels: Array,
    names: Sequence[str],
    layout: Layout = "wide",
) -> Figure:
    """Maps float (M, 2) of the representation, with a legend and each class's name on it.

    labels: int (M,), -1 for unlabelled. Without `before` there is one map.
    """
    panels = [("Before training", before)] if before is not None else []
    panels.append(("After training", after))
    wide = layout == "wide"
    side = 438 if wide else PHONE - 4
    page = float((side + 12) * len(panels) if wide else PHONE)
    rows = 1 if wide else len(panels)
    present = [int(k) for k in np.unique(labels)]
    marks = _marks(names)
    legend, legend_rows = _legend_grid(present, marks, names, page)
    figure = new_figure(page, rows * (side + 32) + 12 + 20 * legend_rows)
    for position, (title, xy) in enumerate(panels):
        x = 2 + position * (side + 12) * wide
        y = 26 + position * (side + 32) * (not wide)
        axes = add_axes(figure, x, y, side, side)
        axes.set_title(title, fontsize=pt(13), color=INK, weight="bold", loc="left", pad=5,
                       family=FONT)  # fmt: skip
        _scatter(axes, xy, labels, present, marks, side)
    below = bare_axes(figure, 0, rows * (side + 32) + 4, page, 20 * legend_rows + 8)
    for k, text, across, down in legend:
        colour, marker = class_style(k)
        below.plot([across], [down], marker, color=colour, markersize=6, clip_on=False)
        write(below, across + 10, down, text, 12)
    return figure


def _marks(names: Sequence[str]) -> list[str]:
    """What stands on the clusters: names, or numbers where many long names would cover the map."""
    crowded = len(names) > FEW and max(map(len, names)) > 6
    return [f"#{k}" for k in range(len(names))] if crowded else labels_of(names, 12)


def _legend_grid(
    present: Sequence[int], marks: Sequence[str], names: Sequence[str], page: float
) -> tuple[list[tuple[int, str, float, float]], int]:
    """Class, text and place of each legend entry, in columns of one width; and how many rows."""
    texts = [
        f"{mark}  {text}" if mark.startswith("#") and mark != text else text
        for mark, text in zip(marks, labels_of(names, 22), strict=True)
    ]
    shown = [texts[k] if k >= 0 else "unlabelled" for k in present]
    fitting = max(1, int(page // (30 + 7.4 * max(map(len, shown)))))
    rows = math.ceil(len(shown) / fitting)
    columns = math.ceil(len(shown) / rows)
    stride = page / columns
    entries = [
        (k, text, 10 + i % columns * stride, 10.0 + 20 * (i // columns))
        for i, (k, text) in enumerate(zip(present, shown, strict=True))
    ]
    return entries, rows


def _scatter(
    axes: Axes, xy: Array, labels: Array, present: Sequence[int], texts: Sequence[str], side: float
) -> None:
    size = float(np.clip(13000 / max(len(xy), 1), 6.5, 30))
    centres: list[tuple[float, float, str]] = []
    for k in present:
        points = xy[labels == k]
        colour, marker = class_style(k)
        axes.scatter(points[:, 0], points[:, 1], s=size, c=colour, marker=marker, alpha=0.75,
                     linewidths=0)  # fmt: skip
        if k >= 0:
            median = np.median(points, axis=0)
            # The member nearest to the median: the median itself may lie where no point is.
            member = points[np.square(points - median).sum(axis=1).argmin()]
            centres.append((float(member[0]), float(member[1]), texts[k]))
    middle = (xy.max(axis=0) + xy.min(axis=0)) / 2
    half = max(float(np.ptp(xy, axis=0).max()) / 2, 1e-6) * 1.06
    axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(True)
    height = 13 if len(centres) <= FEW else 11
    pixel = 2 * half / side
    outline = [withStroke(linewidth=2.5, foreground="white")]
    for x, y, text in apart(centres, pixel, height, middle - half, middle + half):
        write(axes, x, y, text, height, weight="bold", ha="center", path_effects=outline, zorder=5)


def apart(
    centres: Sequence[tuple[float, float, str]],
    pixel: float,
    height: float,
    low: Array,
    high: Array,
) -> list[tuple[float, float, str]]:
    """Labels (x, y, text) moved by little so that they neither cover each other nor leave the map.

    pixel: the length of one, in the map's units. height: of the text, in pixels. low, high: the
    map's corners (2,). Where there is no room for all, the overlap that is left stays.
    """
    at = np.array([(x, y) for x, y, _ in centres]).reshape(-1, 2)
    half = np.array([(0.36 * height * len(t) + 1, 0.6 * height) for _, _, t in centres])
    half = half.reshape(-1, 2) * pixel
    first, last = low + half, np.maximum(low + half, high - half)
    rank = np.arange(len(at))
    # Of two labels at one place, the later goes down and to the right.
    tie = np.sign(rank[:, None] - rank)[..., None] * np.array([1, -1])
    for _ in range(200):
        gap = at[:, None] - at[None]  # (Y, Y, 2)
        overlap = half[:, None] + half[None] - np.abs(gap)
        hit = (overlap > 0).all(axis=2, keepdims=True) & (tie != 0)
        if not hit.any():
            break
        shorter = overlap == overlap.min(axis=2, keepdims=True)
        direction = np.where(gap == 0, tie, np.sign(gap))
        at = np.clip(at + 0.3 * (direction * overlap * shorter * hit).sum(axis=1), first, last)
    return [(float(x), float(y), t) for (x, y), (_, _, t) in zip(at, centres, strict=True)]

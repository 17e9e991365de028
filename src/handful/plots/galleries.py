"""Pictures in rows: the augmentation gallery and the mistakes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from handful.plots.style import (
    ACCENT,
    INK,
    MUTED,
    PAGE,
    PHONE,
    Array,
    Layout,
    canvas,
    labels_of,
    tile,
    write,
)
from handful.wording import percent

MAX_ROWS = 40


def views(originals: Array, drawn: Array, names: Sequence[str], layout: Layout = "wide") -> Figure:
    """The augmentation gallery: a row a class (40 at most), its image and then views of it.

    originals: uint8 (Y, C, H, W). drawn: uint8 (Y, V, C, H, W).
    """
    rows = min(len(originals), MAX_ROWS)
    wide = layout == "wide"
    labels = labels_of(names[:rows], 18 if wide else 9)
    margin = max(46.0, 7.2 * max(map(len, labels)) + 14)
    count = min(drawn.shape[1], 10 if wide else 6)
    page = PAGE if wide else PHONE
    cell = min((56 if rows > 12 else 66) if wide else 60, (page - margin - 10) / (count + 1))
    width, side, top = margin + 10 + cell * (count + 1), cell - 4, 26
    figure, axes = canvas(width, top + rows * cell)
    write(axes, margin + side / 2, 11, "image", 11, color=MUTED, ha="center")
    write(axes, margin + cell + 10, 11, "views of it", 11, color=MUTED)
    for row in range(rows):
        y = top + row * cell
        write(axes, margin - 9, y + side / 2, labels[row], 12, ha="right")
        tile(axes, originals[row], margin, y, side)
        for column in range(count):
            tile(axes, drawn[row, column], margin + 10 + cell * (column + 1), y, side)
    return figure


def mistakes(
    images: Array,
    truth: Sequence[int],
    predicted: Sequence[int],
    probability: Sequence[float],
    names: Sequence[str],
    layout: Layout = "wide",
) -> Figure:
    """Images uint8 (M, C, H, W) that were misread, each with its truth and what it was taken for.

    truth, predicted: class numbers. probability: what the model gave its answer, 0 to 1.
    """
    wide = layout == "wide"
    side, labels = 66 if wide else 54, labels_of(names, 12)
    shown = max((len(labels[k]) for k in [*truth, *predicted]), default=1)
    cell = side + 52 + 8.2 * max(shown, 1)
    columns = min(5, int(PAGE // cell)) if wide else int(PHONE // cell)
    cell = min(PAGE / columns, cell + 24) if wide else PHONE / columns
    row_height = side + 14
    figure, axes = canvas(columns * cell, math.ceil(len(images) / columns) * row_height)
    for position, image in enumerate(images):
        x, y = position % columns * cell + 3, position // columns * row_height + 5
        tile(axes, image, x, y, side)
        lines = (("true", truth, INK), ("said", predicted, ACCENT))
        for line, (word, classes, colour) in enumerate(lines):
            at = y + side / 2 - 21 + 19 * line
            write(axes, x + side + 8, at, word, 10.5, color=MUTED)
            name = labels[classes[position]]
            write(axes, x + side + 35, at, name, 12, color=colour, weight="bold")
        chance = percent(probability[position])
        write(axes, x + side + 8, y + side / 2 + 18, chance, 11, color=MUTED)
    return figure

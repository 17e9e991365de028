"""The pipeline x → t, t′ → f → h → g → z, drawn with a run's own images."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from handful.plots.style import (
    ACCENT,
    MUTED,
    OURS,
    PHONE,
    Array,
    Layout,
    box,
    canvas,
    show,
    tile,
    write,
)

X, VIEWS, F, H, G, Z = range(6)


def pipeline(
    image: Array, two: Array, h: Array | None, z: Array | None, layout: Layout = "wide"
) -> Figure:
    """From a run's own image uint8 (C, H, W) and views (2, C, H, W) to h and z.

    h: float (2, D). z: float (2, K). The drawing ends before the first that is None.
    """
    last = VIEWS if h is None else H if z is None else Z
    plan = _Plan(layout == "wide", last)
    figure, axes = canvas(*plan.size)
    plan.draw_views(axes, image, two)
    if h is not None:
        plan.band(axes, F, H, "#e4f0f8", "kept: the\nclassifier reads h")
        plan.network(axes, F, "f", "encoder")
        plan.vectors(axes, H, "h", h)
    if h is not None and z is not None:
        plan.band(axes, G, Z, "#f0f1f4", "for the pretext\ntask only")
        plan.network(axes, G, "g", "head")
        plan.vectors(axes, Z, "z", z)
        plan.agreement(axes)
    return figure


class _Plan:
    """Where things are: `along` runs with the data, `across` separates the two views."""

    def __init__(self, wide: bool, last: int) -> None:
        self.wide, self.last = wide, last
        self.side = 88.0 if wide else 74.0
        self.across = (76.0, 232.0) if wide else (106.0, 238.0)
        self.middle = sum(self.across) / 2
        self.along = (56, 220, 352, 480, 636, 764) if wide else (50, 176, 272, 360, 496, 584)

    @property
    def size(self) -> tuple[float, float]:
        end = self.along[self.last] + self.side / 2
        if self.wide:
            return end + (128 if self.last == Z else 24), 350
        return PHONE, end + (46 if self.last >= H else 10)

    def at(self, along: float, across: float) -> tuple[float, float]:
        return (along, across) if self.wide else (across, along)

    def draw_views(self, axes: Axes, image: Array, two: Array) -> None:
        half = self.side / 2
        self.square(axes, X, self.middle, "$x$", lambda x, y: tile(axes, image, x, y, self.side))
        for k, (across, letter) in enumerate(
            zip(self.across, ("$t$", r"$t^{\prime}$"), strict=True)
        ):
            self.arrow(
                axes, (self.along[X] + half, self.middle), (self.along[VIEWS] - half, across)
            )
            outward = 19 if across > self.middle else -19
            between = (self.along[X] + self.along[VIEWS]) / 2, (self.middle + across) / 2 + outward
            write(axes, *self.at(*between), letter, 16, ha="center", color=ACCENT)

            def fill(x: float, y: float, view: Array = two[k]) -> None:
                tile(axes, view, x, y, self.side)

            self.square(axes, VIEWS, across, f"$x_{'ab'[k]}$", fill)

    def square(
        self, axes: Axes, stop: int, across: float, name: str, fill: Callable[[float, float], None]
    ) -> None:
        """A picture of side `side` with its name: below it, or beside it on a phone."""
        x, y = self.at(self.along[stop], across)
        fill(x - self.side / 2, y - self.side / 2)
        if self.wide:
            write(axes, x, y + self.side / 2 + 13, name, 14, ha="center")
        elif across < self.middle:
            write(axes, x - self.side / 2 - 8, y, name, 14, ha="right")
        else:
            write(axes, x + self.side / 2 + 8, y, name, 14)

    def vectors(self, axes: Axes, stop: int, letter: str, values: Array) -> None:
        """Both rows of values (2, K), each as a square of coloured cells."""
        columns = math.ceil(math.sqrt(values.shape[1]))
        grids = np.full((2, math.ceil(values.shape[1] / columns) * columns), np.nan)
        grids[:, : values.shape[1]] = values
        grids = grids.reshape(2, -1, columns)
        scale = {"vmin": float(values.min()), "vmax": float(values.max())}
        for k, across in enumerate(self.across):

            def fill(x: float, y: float, grid: Array = grids[k]) -> None:
                show(axes, grid, x, y, self.side, self.side, cmap="cividis",
                     interpolation="nearest", **scale)  # fmt: skip

            self.square(axes, stop, across, f"${letter}_{'ab'[k]}$", fill)

    def network(self, axes: Axes, stop: int, letter: str, what: str) -> None:
        """A box that both views pass through, with arrows from the stop before and to the next."""
        low, high = self.across[0] - self.side / 2, self.across[1] + self.side / 2
        deep = 30.0 if self.wide else 22.0
        here = self.along[stop]
        axes.add_patch(FancyBboxPatch(
            self.at(here - deep, low), *self.at(2 * deep, high - low),
            "round,pad=0,rounding_size=8", facecolor="white", edgecolor=OURS, linewidth=1.4,
        ))  # fmt: skip
        x, y = self.at(here, self.middle)
        if self.wide:
            write(axes, x, y - 9, f"${letter}$", 19, ha="center")
            write(axes, x, y + 14, what, 11, ha="center", color=MUTED)
        else:
            write(axes, x - 10, y, f"${letter}$", 18, ha="right")
            write(axes, x - 2, y, what, 11.5, color=MUTED)
        before, after = self.along[stop - 1] + self.side / 2, self.along[stop + 1] - self.side / 2
        for across in self.across:
            self.arrow(axes, (before, across), (here - deep, across))
            self.arrow(axes, (here + deep, across), (after, across))

    def arrow(
        self,
        axes: Axes,
        start: tuple[float, float],
        end: tuple[float, float],
        style: str = "-|>",
        colour: str = MUTED,
    ) -> None:
        look = {"arrowstyle": style, "color": colour, "linewidth": 1.2, "shrinkA": 2.5,
                "shrinkB": 2.5, "mutation_scale": 9}  # fmt: skip
        axes.annotate("", self.at(*end), self.at(*start), arrowprops=look)

    def band(self, axes: Axes, first: int, last: int, colour: str, text: str) -> None:
        """A background over the stops that share a fate, and what that is."""
        low = self.along[first] - (44 if self.wide else 34)
        high = self.along[last] + self.side / 2 + (14 if self.wide else 42)
        if self.wide:
            axes.add_patch(box(low, 16, high - low, 332, colour))
            write(
                axes, (low + high) / 2, 326, text.replace("\n", " "), 11, ha="center", color=MUTED
            )
        else:
            axes.add_patch(box(0, low, PHONE, high - low, colour))
            write(axes, PHONE / 2, high - 20, text, 11, ha="center", color=MUTED)

    def agreement(self, axes: Axes) -> None:
        """Between the two projections: what the loss asks of them."""
        along, gap = float(self.along[Z]), self.side / 2
        if self.wide:
            # Beside the tiles, from the middle of one to the middle of the other.
            along += self.side / 2 + 22
            gap = 0.0
        self.arrow(
            axes, (along, self.across[0] + gap), (along, self.across[1] - gap), "<|-|>", ACCENT
        )
        if self.wide:
            write(axes, along + 10, self.middle, "the loss\ndraws them\ntogether", 11, color=ACCENT)
        else:
            write(axes, self.middle, along - 16, "drawn\ntogether", 10.5, ha="center", color=ACCENT)

"""Arrays to figures, in one style: colours that colour-blind people can tell apart, no pyplot.

Lengths are CSS pixels (96 an inch), so a figure shown at its natural size has text of the stated
height. Figures with several parts come in two layouts: `wide` for a page, `narrow` for a phone.
"""

from handful.plots.clusters import tsne
from handful.plots.curves import curves
from handful.plots.galleries import mistakes, views
from handful.plots.labels import labels
from handful.plots.pipeline import pipeline
from handful.plots.scores import confusion, reliability, risk
from handful.plots.style import Figure, Layout, drawable, png, short

__all__ = [
    "Figure",
    "Layout",
    "confusion",
    "curves",
    "drawable",
    "labels",
    "mistakes",
    "pipeline",
    "png",
    "reliability",
    "risk",
    "short",
    "tsne",
    "views",
]

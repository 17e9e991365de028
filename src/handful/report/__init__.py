"""A run folder's figures and its report: one HTML file that opens anywhere.

Only what lies in the run folder is read. What a run does not have is left out of its report.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from handful import plots
from handful.report.card import card
from handful.report.page import render
from handful.report.record import Record
from handful.runs import RunFolder
from handful.wording import percent

__all__ = ["build", "draw", "notebook", "write"]

FIGURES = ("pipeline", "views", "curves", "tsne", "confusion", "reliability", "risk", "mistakes")
SHOWN = ("curves", "mistakes")
"""Of these, what a notebook shows."""
LAYOUTS: tuple[plots.Layout, ...] = ("wide", "narrow")


def build(run: Path) -> Path:
    """Draw the figures of the run folder `run` and write its report.html; returns its path.

    Raises ValueError where `run` is no run folder or a file in it cannot be read or written.
    """
    folder = RunFolder(run)
    summary = {} if folder.state() == "interrupted" else folder.summary()
    draw(folder, summary)
    write(folder, summary)
    return folder.report


def notebook(run: Path, summary: Mapping[str, Any]) -> str:
    """HTML for a notebook: figures of merit and, of those that were drawn, two pictures."""
    places = {name: RunFolder(run).figures / f"{name}.png" for name in SHOWN}
    found = {name: place.read_bytes() for name, place in places.items() if place.is_file()}
    return card(run.name, summary, found)


def draw(folder: RunFolder, summary: Mapping[str, Any]) -> None:
    """Write figures/*.png, and those laid out for a phone into figures/phone/.

    `summary` is what summary.json holds or will hold; empty says that the run has not ended. A
    figure that the run has nothing for is removed. Raises ValueError as `build` does.
    """
    record = Record.read(folder, summary)
    for name in FIGURES:
        for layout in LAYOUTS:
            figure = _draw(record, name, layout)
            if figure is None:
                (folder.path / _file(name, layout)).unlink(missing_ok=True)
            else:
                folder.write(_file(name, layout), plots.png(figure))


def write(folder: RunFolder, summary: Mapping[str, Any]) -> None:
    """Write report.html from the figures that `draw` left and from `summary`, as `draw` takes it.

    Raises ValueError as `build` does.
    """
    figures = {
        name: {
            layout: path.read_bytes()
            for layout in LAYOUTS
            if (path := folder.path / _file(name, layout)).exists()
        }
        for name in FIGURES
    }
    folder.write("report.html", render(Record.read(folder, summary), figures).encode())


def _file(name: str, layout: plots.Layout) -> str:
    return f"figures/{'' if layout == 'wide' else 'phone/'}{name}.png"


def _draw(record: Record, name: str, layout: plots.Layout) -> plots.Figure | None:
    """One figure in one layout, or None where the run lacks what it shows."""
    arrays, names = record.arrays, record.class_names
    match name:
        case "pipeline" if record.has("pipeline_image", "pipeline_views"):
            image, views = arrays["pipeline_image"], arrays["pipeline_views"]
            h, z = arrays.get("pipeline_h"), arrays.get("pipeline_z")
            return plots.pipeline(image, views, h, z, layout)
        case "views" if record.has("gallery_originals", "gallery_views"):
            return plots.views(arrays["gallery_originals"], arrays["gallery_views"], names, layout)
        case "curves":
            return plots.curves(record.rows, layout)
        case "tsne" if record.has("map_xy", "map_labels"):
            before = arrays.get("map_xy_before")
            return plots.tsne(before, arrays["map_xy"], arrays["map_labels"], names, layout)
        case "confusion" if layout == "wide" and record.confusion:
            return plots.confusion(np.array(record.confusion), names)
        case "reliability" if layout == "wide" and (bins := record.reliability):
            shown = bins.confidence, bins.accuracy, bins.low, bins.high
            return plots.reliability(bins.edges, bins.images, *shown, bins.ece)
        case "risk" if layout == "wide" and record.risk:
            marks = {
                f"at most {percent(row['error'])} expected": (row["coverage"], row["test_error"])
                for row in record.abstention
                if row["test_error"] is not None
            }
            return plots.risk(*record.risk, marks)
        case "mistakes" if record.has("mistakes_images") and record.mistakes:
            truth, predicted, probability = (
                [mistake[key] for mistake in record.mistakes]
                for key in ("truth", "predicted", "probability")
            )
            images = arrays["mistakes_images"]
            return plots.mistakes(images, truth, predicted, probability, names, layout)
    return None

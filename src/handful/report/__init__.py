"""A run folder's figures and its report: one HTML file that opens anywhere.

Only what lies in the run folder is read. What a run does not have is left out of its report.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from handful import plots
from handful.report.page import render
from handful.report.record import Record, read_json

__all__ = ["build", "draw", "write"]

FIGURES = ("pipeline", "views", "curves", "tsne", "confusion", "reliability", "mistakes")
LAYOUTS: tuple[plots.Layout, ...] = ("wide", "narrow")


def build(run: Path) -> Path:
    """Draw the figures of the run folder `run` and write its report.html; returns its path.

    Raises ValueError where `run` is no run folder or a file in it cannot be read or written.
    """
    draw(run)
    summary = run / "summary.json"
    return write(run, read_json(summary) if summary.exists() else {})


def draw(run: Path) -> None:
    """Write figures/*.png, and those laid out for a phone into figures/phone/.

    The summary need not be there yet. A figure that the run has nothing for is removed. Raises
    ValueError as `build` does.
    """
    record = Record.read(run)
    for name in FIGURES:
        for layout in LAYOUTS:
            path = _figure_path(run, name, layout)
            figure = _draw(record, name, layout)
            if figure is None:
                path.unlink(missing_ok=True)
            else:
                _replace(path, plots.png(figure))


def write(run: Path, summary: Mapping[str, Any]) -> Path:
    """Write report.html from the figures that `draw` left and from `summary`; returns its path.

    `summary` is what summary.json holds or will hold; empty says that the run has not ended.
    Raises ValueError as `build` does.
    """
    record = Record.read(run, summary)
    figures = {
        name: {
            layout: path.read_bytes()
            for layout in LAYOUTS
            if (path := _figure_path(run, name, layout)).exists()
        }
        for name in FIGURES
    }
    _replace(run / "report.html", render(record, figures).encode())
    return run / "report.html"


def _figure_path(run: Path, name: str, layout: plots.Layout) -> Path:
    return run / "figures" / ("" if layout == "wide" else "phone") / f"{name}.png"


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
        case "mistakes" if record.has("mistakes_images") and record.mistakes:
            truth, predicted, probability = (
                [mistake[key] for mistake in record.mistakes]
                for key in ("truth", "predicted", "probability")
            )
            images = arrays["mistakes_images"]
            return plots.mistakes(images, truth, predicted, probability, names, layout)
    return None


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from None

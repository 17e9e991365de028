"""The page of an audit: what was found, with thumbnails, in one HTML file that loads nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from handful.report.page import template

Kind = Literal[
    "leak",
    "conflict",
    "wrong label",
    "duplicate",
    "blank",
    "tiny",
    "unreadable",
    "outlier",
    "imbalance",
]
TITLES: dict[Kind, str] = {
    "leak": "Training images that are also test images",
    "conflict": "Copies with different labels",
    "wrong label": "Likely wrong labels",
    "duplicate": "Copies among the training images",
    "blank": "Images that show nothing",
    "tiny": "Images of too few pixels",
    "unreadable": "Files and rows that were left out",
    "outlier": "Images unlike all others",
    "imbalance": "Classes with far fewer labels",
}
"""The most serious first."""
MOST = 100
"""Findings of a kind that the page shows; the table has all."""
SIDE = 128
"""Pixels of a thumbnail at most."""


@dataclass(frozen=True)
class Line:
    """One finding in words, and up to two pictures, uint8 (C, H, W)."""

    image: str
    label: str
    suggested: str
    score: str
    other: str
    note: str
    pixels: Sequence[NDArray[np.uint8]] = ()

    @cached_property
    def pictures(self) -> list[str]:
        return [thumbnail(pixels) for pixels in self.pixels]


def thumbnail(pixels: NDArray[np.uint8]) -> str:
    """A picture uint8 (C, H, W) as a data URI."""
    last = np.ascontiguousarray(np.moveaxis(pixels, 0, -1))
    picture = Image.fromarray(last[..., 0] if last.shape[-1] == 1 else last)
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def render(facts: Mapping[str, Any], sections: Mapping[Kind, Sequence[Line]]) -> str:
    """The page. facts: what it says of the whole. sections: lines by kind; of none, no section."""
    shown = [(kind, TITLES[kind], sections[kind]) for kind in TITLES if sections.get(kind)]
    return template("audit.html.jinja").render(facts, sections=shown)

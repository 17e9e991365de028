"""One style for every figure: colours, text, axes in CSS pixels, and the way to PNG."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

Layout = Literal["wide", "narrow"]
Array = NDArray[Any]

INK, MUTED, FRAME, GRID = "#1b1f24", "#59616c", "#c9ced6", "#e6e9ed"
OURS, CONTROL, ACCENT = "#0072B2", "#8d939b", "#D55E00"
# Okabe and Ito (2008); black and yellow come last: they are the hardest to see as points.
PALETTE = (OURS, ACCENT, "#009E73", "#E69F00", "#56B4E9", "#CC79A7", INK, "#E8D830")
MARKERS = "o^sDvPX"

PAGE, PHONE = 900, 344
FONT = "DejaVu Sans"
# Tiles are at most this large in pixels of their own; more would only cost resampling time.
TILE = 160


def png(figure: Figure) -> bytes:
    """The figure as a PNG file of at most 256 colours, sharp on dense screens.

    The file's resolution tells its natural size: 96 dots an inch are one to a CSS pixel.
    """
    dpi = 192 if figure.get_figwidth() * 96 < 600 else 144
    raw = io.BytesIO()
    figure.set_dpi(dpi)
    canvas: Any = FigureCanvasAgg(figure)  # has no annotations
    canvas.print_raw(raw)
    across, down = (int(side) for side in figure.bbox.size)
    picture = Image.frombuffer("RGBA", (across, down), raw.getvalue()).convert("RGB")
    buffer = io.BytesIO()
    picture = picture.quantize(256, dither=Image.Dither.NONE)
    picture.save(buffer, format="png", optimize=True, dpi=(dpi, dpi))
    return buffer.getvalue()


def class_style(index: int) -> tuple[str, str]:
    """Colour and marker of a class: eight colours, then the same ones with the next marker."""
    if index < 0:
        return FRAME, "o"
    return PALETTE[index % len(PALETTE)], MARKERS[index // len(PALETTE) % len(MARKERS)]


def short(name: str, limit: int) -> str:
    """A name of at most `limit` characters; what is left out of its middle becomes `…`."""
    name = " ".join(name.split())
    if len(name) <= limit:
        return name
    tail = (limit - 1) // 3
    return f"{name[: limit - 1 - tail]}…{name[len(name) - tail :]}"


def drawable(name: str) -> bool:
    """Whether the figures' font has every character of a name; else they show its number."""
    return all(character.isspace() or ord(character) in _glyphs() for character in name)


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family=FONT))).get_charmap())


def labels_of(names: Sequence[str], limit: int) -> list[str]:
    """Names as figures show them: shortened, or `#3` where that could not be read or told apart."""
    shortened = [short(name, limit) for name in names]
    seen = Counter(shortened)
    return [
        # A dollar sign would start a formula.
        text.replace("$", r"\$") if seen[text] == 1 and drawable(name) else f"#{index}"
        for index, (name, text) in enumerate(zip(names, shortened, strict=True))
    ]


def pt(pixels: float) -> float:
    """CSS pixels as the points that matplotlib counts text in."""
    return pixels * 0.75


def new_figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width / 96, height / 96), facecolor="white")


def add_axes(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Axes whose top left corner is x, y in CSS pixels, with the frame and ticks of all figures."""
    across, down = figure.get_size_inches() * 96
    axes = figure.add_axes((x / across, 1 - (y + height) / down, width / across, height / down))
    axes.tick_params(
        labelsize=pt(11), labelcolor=MUTED, labelfontfamily=FONT, color=FRAME,
        length=3, width=0.6, pad=3,
    )  # fmt: skip
    for side, spine in axes.spines.items():
        spine.set(color=FRAME, linewidth=0.8, visible=side in ("left", "bottom"))
    return axes


def bare_axes(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Axes without a frame that are drawn on in CSS pixels from their top left corner."""
    axes = add_axes(figure, x, y, width, height)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return axes


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure that is drawn on in CSS pixels from its top left corner."""
    figure = new_figure(width, height)
    return figure, bare_axes(figure, 0, 0, width, height)


def write(axes: Axes, x: float, y: float, text: str, size: float = 12, **style: Any) -> None:
    """Text at x, y in the axes' own coordinates, `size` CSS pixels high."""
    style = {"color": INK, "va": "center", "ha": "left", "family": FONT} | style
    axes.text(x, y, text, fontsize=pt(size), **style)


def box(x: float, y: float, width: float, height: float, colour: str) -> Rectangle:
    return Rectangle((x, y), width, height, facecolor=colour, linewidth=0, zorder=-1)


def tile(axes: Axes, image: Array, x: float, y: float, side: float) -> None:
    """An image uint8 (C, H, W), whole, in the square whose top left corner is x, y."""
    pixels = np.moveaxis(image, 0, -1)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    if max(picture.size) > TILE:
        picture.thumbnail((TILE, TILE))
    scale = side / max(picture.size)
    width, height = picture.width * scale, picture.height * scale
    left, top = x + (side - width) / 2, y + (side - height) / 2
    show(axes, np.asarray(picture), left, top, width, height)


def show(
    axes: Axes, array: Array, x: float, y: float, width: float, height: float, **style: Any
) -> None:
    """Imshow in a part of a canvas, whose limits and aspect stay as they are."""
    limits = axes.get_xlim(), axes.get_ylim()
    axes.imshow(array, extent=(x, x + width, y + height, y), aspect="auto", **style)
    axes.set(xlim=limits[0], ylim=limits[1])

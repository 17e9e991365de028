"""The letters A-Z from a machine's own fonts, as folders of pictures with a test split.

Train and test pictures share no family of fonts: the bold of a font that trained would be no test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from string import ascii_uppercase
from typing import NamedTuple

import numpy as np
from fontTools.ttLib import TTFont  # matplotlib brings it
from matplotlib.font_manager import findSystemFonts
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

PER_CLASS = 20
FEWEST = 8
"""Fonts below which a test would be of one or two."""
SIDE, LARGEST = 32, 26
"""Pixels of a picture, and of the longest side of a font's largest letter in it."""
PICTORIAL = 5
"""Fonts that say so in PANOSE's first digit hold symbols, whatever their codes say."""


class Font(NamedTuple):
    family: str
    style: str
    path: Path
    size: float
    """At which its largest letter is LARGEST pixels."""

    def __str__(self) -> str:
        return f"{self.family} {self.style}"


class Divided(NamedTuple):
    train: list[Font]
    test: list[Font]

    @property
    def varied(self) -> int:
        """Training pictures of a class that vary a font which it has already."""
        return max(0, PER_CLASS - len(self.train))


def fonts(folder: Path | None = None) -> list[Font]:
    """Fonts for Latin text, each once however often it is installed, by family and style.

    folder: to look in instead of where the system keeps its fonts.
    """
    found: dict[str, Font] = {}
    for path in sorted(findSystemFonts(None if folder is None else [str(folder)])):
        font = _usable(Path(path))
        if font:
            drawn = b"".join(picture(font, letter).tobytes() for letter in ascii_uppercase)
            found.setdefault(hashlib.sha256(drawn).hexdigest(), font)
    return sorted(found.values())


def _usable(path: Path) -> Font | None:
    """The font in a file; None where it cannot be read or where its letters are no letters."""
    try:
        with TTFont(path, fontNumber=0, lazy=True) as tables:
            codes, names = tables.getBestCmap() or {}, tables["name"]
            pictorial = "OS/2" in tables and tables["OS/2"].panose.bFamilyType == PICTORIAL
            family, style = names.getBestFamilyName(), names.getBestSubFamilyName()
        # symbols in the places of letters have names of their own
        if pictorial or any(codes.get(ord(letter)) != letter for letter in ascii_uppercase):
            return None
        font = Font(family or path.stem, style or "", path, _size(path))
        drawn = {picture(font, letter).tobytes() for letter in ascii_uppercase}
    except Exception:  # what reads damaged fonts raises whatever it stumbles over
        return None
    return font if len(drawn) == len(ascii_uppercase) else None


def _size(path: Path) -> float:
    measured = 100
    large = _opened(path, measured)
    boxes = np.array([large.getbbox(letter) for letter in ascii_uppercase])
    return LARGEST * measured / max(1.0, float((boxes[:, 2:] - boxes[:, :2]).max()))


def _opened(path: Path, size: float) -> ImageFont.FreeTypeFont:
    # the basic layout is in every Pillow
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def picture(
    font: Font, letter: str, smaller: float = 1.0, shift: tuple[int, int] = (0, 0)
) -> Image.Image:
    """A black letter in the middle of a white square, grey.

    smaller: the share of the usual size. shift: pixels to the right and down.
    """
    image = Image.new("L", (SIDE, SIDE), "white")
    opened = _opened(font.path, font.size * smaller)
    left, top, right, bottom = opened.getbbox(letter)
    place = (SIDE - left - right) / 2 + shift[0], (SIDE - top - bottom) / 2 + shift[1]
    ImageDraw.Draw(image).text(place, letter, fill="black", font=opened)
    return image


def divided(found: Sequence[Font], draw: int) -> Divided | None:
    """At most PER_CLASS fonts to train with, about two thirds of them all, and others to test.

    Families are taken in an order that `draw` shuffles, and the siblings of fonts that train do not
    test. None where there are fewer than FEWEST fonts or one family only.
    """
    families = [list(group) for _, group in groupby(found, attrgetter("family"))]
    if len(found) < FEWEST or len(families) < 2:
        return None
    np.random.default_rng(draw).shuffle(families)
    wanted = min(PER_CLASS, 2 * len(found) // 3)
    train = families.pop()
    while len(train) < wanted and len(families) > 1:
        train = train + families.pop()
    return Divided(train[:wanted], [font for family in families for font in family])


def write(folder: Path, chosen: Divided, generator: Generator) -> None:
    """`train` and `test`, in each a folder of PNG files for every letter.

    PER_CLASS pictures of a class train, a font each; where fonts are fewer, they come again up to
    15 % smaller and at another place, up to two pixels away. Each font of the test is drawn once.
    """
    for number, (font, smaller, shift) in enumerate(_training(chosen, generator)):
        _write(folder / "train", number, font, smaller, shift)
    for number, font in enumerate(chosen.test):
        _write(folder / "test", number, font)


def _training(
    chosen: Divided, generator: Generator
) -> Iterator[tuple[Font, float, tuple[int, int]]]:
    yield from ((font, 1.0, (0, 0)) for font in chosen.train)
    away = [(right, down) for right in range(-2, 3) for down in range(-2, 3) if right or down]
    for number in range(chosen.varied):  # each at a place of its own: no two are the same
        font = chosen.train[number % len(chosen.train)]
        yield font, generator.uniform(0.85, 1), away.pop(generator.integers(len(away)))


def _write(
    folder: Path, number: int, font: Font, smaller: float = 1.0, shift: tuple[int, int] = (0, 0)
) -> None:
    for letter in ascii_uppercase:
        place = folder / letter / f"{number:03}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        picture(font, letter, smaller, shift).save(place)

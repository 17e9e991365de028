"""Picture files to pixels: any size, mode and orientation in, uint8 (C, H, W) out."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

DIGIT_BOX = 20 / 28  # MNIST: the longer side of the ink, as a share of the frame
WORKING_SIDE = 112  # ink is looked for at this resolution: four times MNIST's
BLANK_CONTRAST = 16.0  # grey levels: less than this on 0-255 is paper, not ink
SPECK = 0.05  # a blob smaller than this share of the largest is dust
MOST_PIXELS = 2**28 // 3  # of one picture: 256 MiB in colour
ROUNDED = 1e-3  # share by which floats may miss 0 or what is white
NOT_OPENED = {"EPS", "WMF"}  # Pillow hands these to other programs
LEVELS = 255, 4095, 16383, 65535  # of files of 16 bits: white of 8, 12, 14 and 16


Role = Literal["train", "validation", "test", "unlabelled"]

SPLITS: dict[str, Role] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
    "unlabelled": "unlabelled",
    "unlabeled": "unlabelled",
}
"""What the parts of a source may be called, in any case."""
NO_LABEL = ("", "-1", "unlabelled", "unlabeled")
"""What says, in any case, that an image has no label."""


class Part(NamedTuple):
    """Picture files of one part of a data set, with the name of each one's class.

    origin: what they are, for people. files: a file and its class, None where that is not known.
    """

    role: Role
    origin: str
    files: Sequence[tuple[Path, str | None]]


Kind = Literal["digits", "letterbox", "crop"]


@dataclass(frozen=True)
class Preparation:
    """How pictures become the arrays that a model was trained on; travels in model.json.

    kind: `digits` centres light ink on black as MNIST was made, `letterbox` fits the whole picture,
    `crop` the largest square in its middle.
    size: height and width in pixels. channels: 1 (grey) or 3 (RGB).
    white: of pictures of 16 bits the grey that is white, one of `LEVELS`, as those that trained use
    it; None is 65,535.
    """

    kind: Kind
    size: int
    channels: Literal[1, 3]
    white: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            known = ", ".join(get_args(Kind))
            raise ValueError(f"unknown preparation {self.kind!r}: expected one of {known}")
        if self.size < 1 or self.channels not in (1, 3):
            raise ValueError(
                f"preparation of {self.size} pixels and {self.channels} channels: expected a "
                "positive size and 1 or 3 channels"
            )
        if self.white not in (None, *LEVELS):
            raise ValueError(f"preparation with white at {self.white}: expected one of {LEVELS}")
        if self.kind == "digits" and self.channels != 1:
            raise ValueError("digits are prepared in 1 channel; use letterbox or crop for colour")

    def describe(self) -> str:
        """One phrase for people: what becomes of a picture."""
        done = {
            "digits": "its ink centred as MNIST's is",
            "letterbox": "fitted whole, the rest of the frame in the colour of its border",
            "crop": "cut to the square in its middle",
        }
        colour = "grey" if self.channels == 1 else "colour"
        told = f"{done[self.kind]}; {self.size} × {self.size} pixels, {colour}"
        return told if self.white is None else f"{told}, white at {self.white:,} of 16 bits"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preparation:
        """The inverse of `as_dict`. Raises ValueError where a value is missing or does not fit."""
        try:
            return cls(values["kind"], int(values["size"]), values["channels"], values.get("white"))
        except (KeyError, TypeError) as error:
            raise ValueError(f"preparation {dict(values)} is incomplete: {error}") from None


def open_image(path: Path | str) -> Image.Image:
    """The first frame of a picture file, upright as its EXIF data asks, in the mode it has.

    Raises ValueError with one line naming the file where it cannot be read.
    """
    try:
        found = Path(path).stat()
        # a pipe would be waited for
        if stat.S_ISREG(found.st_mode) and found.st_size:
            return _opened(path)
        reason = "the file is empty"
        if not stat.S_ISREG(found.st_mode):
            reason = "it is a folder" if stat.S_ISDIR(found.st_mode) else "it is no regular file"
    except UnidentifiedImageError:
        reason = "not a picture in a known format"
    except OSError as error:
        reason = error.strerror.lower() if error.strerror else f"the file is damaged ({error})"
    except _TooLarge as error:
        reason = str(error)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        reason = f"more than the {MOST_PIXELS:,} pixels that are safe; make it smaller first"
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        reason = f"the file is damaged ({error})"
    raise ValueError(f"cannot read {legible(path)}: {legible(' '.join(reason.split()))}")


class _TooLarge(Exception):
    pass


def _opened(path: Path | str) -> Image.Image:
    with Image.open(path, formats=_formats()) as image:
        if image.width * image.height > MOST_PIXELS:
            raise _TooLarge(
                f"{image.width:,} × {image.height:,} pixels are more than the {MOST_PIXELS:,} that "
                "are safe; make it smaller first"
            )
        image.load()
        return ImageOps.exif_transpose(image)


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.ID if name not in NOT_OPENED)


def legible(name: Path | str) -> str:
    """A name as text of one line: bytes that are no text, and ends of lines, show as escapes."""
    text = str(name).encode("utf-8", "backslashreplace").decode("utf-8")
    return text.replace("\n", "\\n").replace("\r", "\\r")


def to_pixels(image: Image.Image, preparation: Preparation) -> Bytes:
    """A picture as the model wants it, uint8 (C, H, W).

    Transparency is composited over white; greys of more than 8 bits are scaled to 0-255.
    A picture that already is light ink on pure black, of the right size, passes `digits` unchanged.
    """
    flat = flatten(image, preparation.white)
    if preparation.kind == "digits":
        return _digit(_in_mode(flat, "L"), preparation.size)[None]
    plain = _in_mode(flat, "L" if preparation.channels == 1 else "RGB")
    if preparation.kind == "crop" and plain.width != plain.height:
        plain = ImageOps.fit(plain, (min(plain.size),) * 2)
    return _letterbox(plain, preparation.size)


def is_grey(image: Image.Image) -> bool:
    """Whether a picture has no colour, whatever its mode; JPEG's rounding is allowed for."""
    flat = flatten(image)
    if flat.mode == "L":
        return True
    small = flat.resize((min(64, flat.width), min(64, flat.height)), reducing_gap=2.0)
    values = np.asarray(small, np.int16)
    return int(np.ptp(values, axis=2).max()) <= 4


def is_prepared_digit(pixels: Bytes) -> bool:
    """Whether uint8 (H, W) is light ink on pure black, as MNIST is.

    Every MNIST image is more than half pure black, though in one of eighty ink touches the border.
    """
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    # counts: far cheaper than the median and the mean that they stand for
    half_black = 2 * np.count_nonzero(pixels) <= pixels.size
    return bool(2 * np.count_nonzero(border) < border.size and half_black and pixels.max() >= 128)


def flatten(image: Image.Image, white: int | None = None) -> Image.Image:
    """Any mode to 8-bit L or RGB without transparency. white: as a `Preparation` has it."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(image, white))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return _in_mode(image, "L" if image.mode in ("1", "L") else "RGB")


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # Pillow would copy it


def white_of(image: Image.Image) -> int | None:
    """Of a picture of 16 bits the lowest of `LEVELS` that it keeps to, None of any other.

    Nothing in such a file says what is white: cameras of 12 bits write files of 16.
    """
    if not image.mode.startswith("I;16"):
        return None
    high = int(np.asarray(image).max())
    return next(level for level in LEVELS if high <= level)


def _eight_bits(image: Image.Image, white: int | None) -> Bytes:
    """Greys of 16 or 32 bits or floating point, brought to 0-255 by the scale that they use."""
    values = np.nan_to_num(np.asarray(image, np.float64))
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16"):
        low, high = 0.0, white or 65535.0
    elif (
        low >= -ROUNDED
    ):  # nothing says which scale a wide mode uses: the narrowest one that holds it
        scales = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        low, high = 0.0, next((one for one in scales if high <= (1 + ROUNDED) * one), high)
    share = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    return np.rint(share * 255).astype(np.uint8)


def _letterbox(image: Image.Image, size: int) -> Bytes:
    """The whole picture, centred, on the median colour of its border: uint8 (C, size, size)."""
    if image.size != (size, size):
        pixels = np.asarray(image)
        ring = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        median = np.rint(np.median(ring, axis=0)).astype(int)
        fill = tuple(median.tolist()) if image.mode == "RGB" else int(median)
        if round(min(image.size) / max(image.size) * size):
            image = ImageOps.contain(image, (size, size), Image.Resampling.BICUBIC)
        else:  # a line, of which Pillow would leave nothing
            line = (size, 1) if image.width > image.height else (1, size)
            image = image.resize(line, Image.Resampling.BICUBIC)
        frame = Image.new(image.mode, (size, size), fill)
        frame.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        image = frame
    pixels = np.array(image)  # a copy: what Pillow lends is read-only
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy()


def _digit(grey: Image.Image, size: int) -> Bytes:
    """Ink scaled into a box of 20/28 of the frame, its centre of mass in the middle: (H, W)."""
    if grey.size == (size, size):
        pixels = np.array(grey)
        if is_prepared_digit(pixels):
            return pixels
    ink = _find_ink(grey)
    if not ink.any():
        return np.zeros((size, size), np.uint8)
    box = round(size * DIGIT_BOX)
    drawn = Image.fromarray(np.rint(ink * 255).astype(np.uint8))
    scale = box / max(drawn.size)
    width, height = (max(1, round(side * scale)) for side in drawn.size)
    scaled = np.asarray(drawn.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    # A thin pen fades when it shrinks: bring it back to full ink.
    scaled = np.minimum(scaled * (255 / max(np.percentile(scaled[scaled > 0], 90), 1.0)), 255)
    frame = np.zeros((size, size), np.uint8)
    top, left = (
        min(max(round(size / 2 - _mean_position(scaled.sum(axis))), 0), size - length)
        for axis, length in ((1, height), (0, width))
    )
    frame[top : top + height, left : left + width] = np.rint(scaled)
    return frame


def _mean_position(mass: Floats) -> float:
    return float(mass @ np.arange(len(mass)) / mass.sum())


def _find_ink(grey: Image.Image) -> Floats:
    """The ink's own rectangle as 0 (paper) to 1 (ink), float (h, w); of size 0 without ink.

    Looked for in the whole picture first, then once more, closer, around what was found.
    """
    box = (0, 0, *grey.size)
    ink = np.zeros((0, 0))
    for _ in range(2):
        part = grey.crop(box)
        scale = max(1.0, max(part.size) / WORKING_SIDE)
        width, height = (max(1, round(side / scale)) for side in part.size)
        small = part.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
        ink = _ink(np.asarray(small, np.float64))
        found = _bounds(ink > 0)
        if found is None:
            return np.zeros((0, 0))
        top, bottom, left, right = found
        ink = ink[top:bottom, left:right]
        margin = 0.25 * max(ink.shape)
        box = (
            max(0, int(box[0] + (left - margin) * scale)),
            max(0, int(box[1] + (top - margin) * scale)),
            min(grey.width, int(box[0] + (right + margin) * scale) + 1),
            min(grey.height, int(box[1] + (bottom + margin) * scale) + 1),
        )
        if scale == 1.0:
            break
    return ink


def _ink(grey: Floats) -> Floats:
    """How much ink covers each pixel, 0-1 (H, W), on paper whose brightness may vary smoothly.

    The side of the paper's brightness on which the strongest marks lie is the ink's.
    """
    paper = _paper(grey)
    contrast = grey - paper
    calm = _blur(contrast)
    if -calm.min() > calm.max():
        contrast, calm = -contrast, -calm
    noise = 1.4826 * float(np.median(np.abs(contrast)))
    peak = float(calm.max())
    if peak < max(BLANK_CONTRAST, 4 * noise):
        return np.zeros_like(grey)
    solid = max(peak, float(np.median(contrast[calm > 0.5 * peak])))
    floor = min(max(0.15 * solid, 2.5 * noise), 0.5 * solid)
    ink = np.clip((contrast - floor) / (0.9 * solid - floor), 0, 1)
    return np.where(_without_specks(ink > 0), ink, 0.0)


def _paper(grey: Floats) -> Floats:
    """The brightness of the paper everywhere, (H, W): a quadratic surface through the border.

    Fitted again and again without what departs from it most, so that ink which reaches the border
    has no part in it; then with the paper inside too.
    """
    height, width = grey.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    ring = max(1, round(0.06 * min(height, width)))
    trusted = np.ones(grey.shape, bool)
    trusted[ring:-ring, ring:-ring] = False
    level = np.median(grey[trusted])
    surface = np.full_like(grey, level)
    for step in range(6):
        distance = np.abs(grey - surface)
        near = max(6.0, 2.5 * float(np.median(distance[trusted])))
        if step == 3:  # the border has settled: let the paper inside speak as well
            trusted = np.ones(grey.shape, bool)
        use = trusted & (distance <= near)
        if use.sum() < terms.shape[-1] * 4:
            break
        surface = terms @ np.linalg.lstsq(terms[use], grey[use], rcond=None)[0]
    return surface


def _blur(values: Floats) -> Floats:
    """Means over 3 × 3, so that one noisy pixel is no ink: (H, W)."""
    padded = np.pad(values, 1, mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return np.asarray((rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9)


def _bounds(mask: Mask) -> tuple[int, int, int, int] | None:
    """Top, bottom, left, right (ends exclusive) of what is true; None where nothing is."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _without_specks(mask: Mask) -> Mask:
    """The mask without blobs (8-connected) that are tiny beside the largest."""
    blob = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:  # every pixel takes the highest number in its neighbourhood until none changes
        padded = np.pad(blob, 1)
        rows = np.maximum(np.maximum(padded[:-2], padded[1:-1]), padded[2:])
        spread = np.maximum(np.maximum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])
        spread = np.where(mask, spread, 0)
        if np.array_equal(spread, blob):
            break
        blob = spread
    area = np.bincount(blob.ravel())
    area[0] = 0
    kept: Mask = area[blob] >= max(1, SPECK * area.max())
    return kept & mask

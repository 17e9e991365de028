"""Arrays of any layout and scale to square pixels: what is learned of them once, and kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

SMALLEST = 20
"""Pixels a side: smaller images are enlarged, for encoders halve them and leave a border out."""
SCALES = 1.0, 255.0
"""What the pixels of images usually reach."""


@dataclass(frozen=True)
class Layout:
    """How rows of numbers are images.

    shape: of one image, (H, W), (C, H, W) or (H, W, C) with 1 or 3 channels, row by row.
    low, high: the numbers that become black and white.
    """

    shape: Shape
    low: float
    high: float

    @classmethod
    def of(cls, rows: Array, shape: Shape | None = None) -> Layout:
        """The layout that fits numbers (N, F).

        Without a shape they are a square of greys, black at its end where F is no square number.
        Bytes are 0 to 255, and so are numbers that are not negative and reach at most 255 and more
        than half of it; likewise 0 to 1. Of others the smallest becomes black, the largest white.
        """
        if shape is None:
            side = math.isqrt(rows.shape[1] - 1) + 1
            shape = (side, side)
        return cls(shape, *_range(rows))

    @property
    def frame(self) -> tuple[int, int, int]:
        """C, H and W."""
        return framed(self.shape)

    def pixels(self, rows: Array, shape: Shape | None = None) -> NDArray[np.uint8]:
        """Numbers (N, F) as uint8 (N, C, S, S), in the middle of black squares.

        shape: of these images, where it is another one of the same frame. Squares of less than
        `SMALLEST` pixels a side are enlarged by a whole factor. Numbers beyond `low` and `high` are
        black and white. Raises ValueError where they plainly are on another scale than the first.
        """
        self._check_scale(rows)
        images = _channels_first(self._bytes(rows), shape or self.shape)
        height, width = images.shape[2:]
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        around = ((top, side - height - top), (left, side - width - left))
        if height != width:
            images = np.pad(images, ((0, 0), (0, 0), *around))
        if side < SMALLEST:  # each of these copies, and images may be more than memory holds
            times = -(-SMALLEST // side)
            images = images.repeat(times, axis=2).repeat(times, axis=3)
        return np.require(images, requirements=["C", "W"])  # a copy of what may not be written

    def _bytes(self, rows: Array) -> NDArray[np.uint8]:
        """uint8 (N, F), with black at the end where an image is larger than a row."""
        if rows.dtype != np.uint8 or (self.low, self.high) != (0.0, 255.0):
            span = max(self.high - self.low, float(np.finfo(np.float64).tiny))
            share = (np.clip(rows.astype(np.float64), self.low, self.high) - self.low) / span
            rows = np.rint(share * 255).astype(np.uint8)
        missing = math.prod(self.shape) - rows.shape[1]
        return np.pad(rows, ((0, 0), (0, missing))) if missing else rows

    def _check_scale(self, rows: Array) -> None:
        if not rows.size or self.low != 0 or self.high not in SCALES:
            return
        high = float(rows.max())
        fractions = rows.dtype.kind == "f" and high <= 1 and bool((rows % 1 > 0).any())
        if (self.high == 1 and high > 255 / 2) or (self.high == 255 and fractions):
            raise ValueError(
                f"fit saw pixels from 0 to {self.high:g} and these reach {high:g}: "
                "bring them to the same scale"
            )


def framed(shape: Shape) -> tuple[int, int, int]:
    """C, H and W of images of a shape. Raises ValueError where that is none of images."""
    if len(shape) == 2 and min(shape) > 0:
        return (1, *shape)
    if len(shape) == 3 and min(shape) > 0:
        if shape[0] in (1, 3):
            return (shape[0], shape[1], shape[2])
        if shape[2] in (1, 3):
            return (shape[2], shape[0], shape[1])
    raise ValueError(
        f"images of shape {shape} have no layout that is known: expected (H, W), (C, H, W) or "
        "(H, W, C) with 1 or 3 channels"
    )


def _channels_first(rows: NDArray[np.uint8], shape: Shape) -> NDArray[np.uint8]:
    """(N, F) to (N, C, H, W)."""
    images = rows.reshape(-1, *shape)
    if images.ndim == 3:
        return images[:, None]
    return images if shape[0] in (1, 3) else images.transpose(0, 3, 1, 2)


def _range(rows: Array) -> tuple[float, float]:
    if rows.dtype.kind == "b":
        return 0.0, 1.0
    if rows.dtype == np.uint8:
        return 0.0, 255.0
    low, high = float(rows.min()), float(rows.max())
    for scale in SCALES:
        if low >= 0 and scale / 2 < high <= scale:
            return 0.0, scale
    return low, high

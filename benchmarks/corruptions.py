"""Digits made hard in fifteen ways, after MNIST-C (Mu and Gilmer 2019, arXiv 1906.02337).

A re-implementation from the paper's descriptions: the kinds are the paper's, the strengths are
chosen by eye to look like its figures. Accuracies here are not comparable digit by digit with
published MNIST-C ones. Two more views that MNIST-C has not: `inverted` and `shifted`.

Each takes uint8 (N, 28, 28), light ink on black, and a generator that all its chance comes from,
and returns new uint8 (N, 28, 28). Lengths are in pixels, angles in radians, brightness in shares
of 255.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from handful.pictures import Preparation, to_pixels

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]
Corruption = Callable[[Bytes, Generator], Bytes]

SIDE = 28
CENTRE = (SIDE - 1) / 2


def shot_noise(images: Bytes, generator: Generator) -> Bytes:
    """So few photons that their number shows: four for full ink (Poisson)."""
    photons = 4
    return _bytes(generator.poisson(_floats(images) * photons) / photons)


def impulse_noise(images: Bytes, generator: Generator) -> Bytes:
    """Salt and pepper on 17 % of all pixels."""
    chance = generator.random(images.shape)
    return np.where(chance < 0.17, np.where(chance < 0.085, 255, 0), images).astype(np.uint8)


def glass_blur(images: Bytes, generator: Generator) -> Bytes:
    """Blurred, each pixel taken from a random place beside it, twice, and blurred again."""
    values = _blurred(_floats(images), 0.7)
    n, y, x = np.ogrid[: len(values), :SIDE, :SIDE]
    for _ in range(2):
        dy, dx = generator.integers(-1, 2, (2, *values.shape))
        values = values[n, (y + dy).clip(0, SIDE - 1), (x + dx).clip(0, SIDE - 1)]
    return _bytes(_blurred(values, 0.7))


def motion_blur(images: Bytes, generator: Generator) -> Bytes:
    """Smeared along a straight line of seven pixels, in any direction."""
    steps = np.arange(-3, 4)
    angle = generator.uniform(0, np.pi, len(images))
    direction = np.stack([np.sin(angle), np.cos(angle)], axis=1)
    values = _floats(images)
    moved = (_warped(values, np.eye(2)[None], step * direction) for step in steps)
    return _bytes(sum(moved, np.zeros_like(values)) / len(steps))


def shear(images: Bytes, generator: Generator) -> Bytes:
    """Slanted by a tangent of 0.4, to the left or to the right."""
    inverse = np.tile(np.eye(2), (len(images), 1, 1))
    inverse[:, 1, 0] = 0.4 * _signs(generator, len(images))
    return _bytes(_warped(_floats(images), inverse))


def scale(images: Bytes, generator: Generator) -> Bytes:
    """Shrunk to 70 % around the middle."""
    return _bytes(_warped(_floats(images), np.eye(2)[None] / 0.7))


def rotate(images: Bytes, generator: Generator) -> Bytes:
    """Turned by 0.4 (23°), one way or the other."""
    angle = 0.4 * _signs(generator, len(images))
    sine, cosine = np.sin(angle), np.cos(angle)
    inverse = np.stack([cosine, -sine, sine, cosine], axis=1).reshape(-1, 2, 2)
    return _bytes(_warped(_floats(images), inverse))


def brightness(images: Bytes, generator: Generator) -> Bytes:
    """Half of white added everywhere: the paper turns grey, ink cannot be lighter than white."""
    return _bytes(_floats(images) + 0.5)


def translate(images: Bytes, generator: Generator) -> Bytes:
    """Moved by three pixels on each axis, either way."""
    return _moved(images, *(3 * _signs(generator, len(images)) for _ in range(2)))


def stripe(images: Bytes, generator: Generator) -> Bytes:
    """A quarter of the width inverted at each side."""
    bands = np.zeros(SIDE, bool)
    bands[: SIDE // 4] = bands[-SIDE // 4 :] = True
    return np.where(bands, 255 - images, images)


def fog(images: Bytes, generator: Generator) -> Bytes:
    """Noise that is the fainter the finer, added; the whole then fits into the range again."""
    cells = (2, 4, 7, 14, 28)
    clouds = np.zeros(images.shape)
    for count in cells:
        coarse = generator.random((len(images), count, count))
        clouds += ndimage.zoom(coarse, (1, SIDE // count, SIDE // count), order=1) / count
    clouds -= clouds.min((1, 2), keepdims=True)
    clouds /= clouds.max((1, 2), keepdims=True)
    thickness = 1.5
    return _bytes((_floats(images) + thickness * clouds) / (1 + thickness))


def spatter(images: Bytes, generator: Generator) -> Bytes:
    """Drops as light as ink, of all sizes."""
    liquid = _blurred(generator.standard_normal(images.shape), 1.2)
    liquid /= liquid.std((1, 2), keepdims=True)
    return _bytes(np.maximum(_floats(images), (liquid - 1.3) / 0.5))


def dotted_line(images: Bytes, generator: Generator) -> Bytes:
    """A straight line of dots across, anywhere near the middle and in any direction."""
    along, across = _line(generator, len(images))
    dots = (1.5 - np.abs(across)) * (along % 4 < 2)
    return _bytes(np.maximum(_floats(images), dots))


def zigzag(images: Bytes, generator: Generator) -> Bytes:
    """A line across that goes up and down by three pixels, a tooth every eight."""
    along, across = _line(generator, len(images))
    steepness = 1.5
    wave = steepness * (np.abs(along % 8 - 4) - 2)
    distance = np.abs(across - wave) / np.hypot(1, steepness)
    return _bytes(np.maximum(_floats(images), 1.2 - distance))


def canny_edges(images: Bytes, generator: Generator) -> Bytes:
    """Outlines alone (Canny 1986): the crests of the gradient, those that strong ones lead to."""
    dy, dx = (_blurred(_floats(images), 1.0, order) for order in ((1, 0), (0, 1)))
    slope = np.hypot(dy, dx)
    steepest = slope.max((1, 2), keepdims=True)
    crest = (slope > 0) & (slope >= np.maximum(*_beside(slope, dy, dx)))
    strong, weak = (crest & (slope > share * steepest) for share in (0.3, 0.1))
    within = np.zeros((3, 3, 3), bool)
    within[1] = True  # of one image, never of the next
    edges = ndimage.binary_propagation(strong, within, weak)
    return np.where(edges, 255, 0).astype(np.uint8)


def inverted(images: Bytes, generator: Generator) -> Bytes:
    """Dark ink on white."""
    return 255 - images


def shifted(images: Bytes, generator: Generator) -> Bytes:
    """Moved by up to four pixels either way on each axis, any amount as likely."""
    return _moved(images, *generator.integers(-4, 5, (2, len(images))))


CORRUPTIONS: dict[str, Corruption] = {
    "shot noise": shot_noise,
    "impulse noise": impulse_noise,
    "glass blur": glass_blur,
    "motion blur": motion_blur,
    "shear": shear,
    "scale": scale,
    "rotate": rotate,
    "brightness": brightness,
    "translate": translate,
    "stripe": stripe,
    "fog": fog,
    "spatter": spatter,
    "dotted line": dotted_line,
    "zigzag": zigzag,
    "canny edges": canny_edges,
}
"""MNIST-C's fifteen, in the paper's order."""
OTHERS: dict[str, Corruption] = {"inverted": inverted, "shifted": shifted}


def _floats(images: Bytes) -> Floats:
    """0-255 to 0-1."""
    return images / 255


def _bytes(values: Floats) -> Bytes:
    """0-1, and what lies beyond cut off, to 0-255."""
    scaled: Floats = np.rint(values.clip(0, 1) * 255)
    return scaled.astype(np.uint8)


def _blurred(values: Floats, sigma: float, order: int | tuple[int, int] = 0) -> Floats:
    """order: of the derivative, of all axes or of (y, x)."""
    blurred: Floats = ndimage.gaussian_filter(values, sigma, order, axes=(1, 2))
    return blurred


def _signs(generator: Generator, n: int) -> NDArray[np.int64]:
    return generator.choice(np.array([-1, 1]), n)


def _warped(values: Floats, inverse: Floats, offset: Floats | float = 0.0) -> Floats:
    """Resampled bilinearly, black outside: (N, 28, 28).

    inverse: (N or 1, 2, 2), from places (y, x) around the middle of the result to those of the
    image; offset: (N, 2), added there.
    """
    n = len(values)
    grid = np.indices((SIDE, SIDE)).reshape(2, -1) - CENTRE
    places = np.broadcast_to(inverse @ grid, (n, 2, SIDE * SIDE)) + CENTRE
    places = places + np.broadcast_to(offset, (n, 2))[..., None]
    numbers = np.broadcast_to(np.arange(n)[:, None], (n, SIDE * SIDE))
    warped = ndimage.map_coordinates(values, [numbers, *places.swapaxes(0, 1)], order=1)
    return np.asarray(warped).reshape(values.shape)


def _moved(images: Bytes, dy: NDArray[np.int64], dx: NDArray[np.int64]) -> Bytes:
    """Each image by its own whole number of pixels, black where it was."""
    margin = 4
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin)))
    place = np.arange(SIDE) + margin
    rows, columns = place - dy[:, None], place - dx[:, None]
    numbers = np.arange(len(images))
    moved: Bytes = padded[numbers[:, None, None], rows[:, :, None], columns[:, None]]
    return moved


def _line(generator: Generator, n: int) -> tuple[Floats, Floats]:
    """Coordinates along and across a line of its own for each image, (N, 28, 28) each.

    It passes the middle by up to six pixels.
    """
    angle = generator.uniform(0, np.pi, (n, 1, 1))
    sine, cosine = np.sin(angle), np.cos(angle)
    past, start = generator.uniform(-6, 6, (2, n, 1, 1))
    y, x = np.indices((SIDE, SIDE)) - CENTRE
    return cosine * x + sine * y - start, cosine * y - sine * x - past


def _beside(slope: Floats, dy: Floats, dx: Floats) -> tuple[Floats, Floats]:
    """The slopes before and after each place, along its gradient to the nearest eighth turn."""
    eighth = np.rint(np.arctan2(dy, dx) / (np.pi / 4))
    step_y, step_x = (np.rint(f(eighth * (np.pi / 4))).astype(int) for f in (np.sin, np.cos))
    padded = np.pad(slope, ((0, 0), (1, 1), (1, 1)))
    n, y, x = np.ogrid[: len(slope), :SIDE, :SIDE]
    after, before = (padded[n, y + 1 + way * step_y, x + 1 + way * step_x] for way in (1, -1))
    return before, after


def as_mnist(digits: NDArray[np.float64]) -> Bytes:
    """scikit-learn's digits, 0-16 (N, 8, 8), prepared as MNIST was: uint8 (N, 28, 28).

    They fill their frame: with a margin there is paper to be found, and upsampled first, strokes
    end as strokes do.
    """
    preparation = Preparation("digits", 28, 1)
    prepared = []
    for values in np.rint(digits * (255 / 16)).astype(np.uint8):
        picture = Image.fromarray(np.pad(values, 4)).resize((64, 64), Image.Resampling.BICUBIC)
        prepared.append(to_pixels(picture, preparation)[0])
    return np.stack(prepared)

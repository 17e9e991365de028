"""Which pictures are the same, exactly or nearly: pixels in, pairs of positions out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from handful.geometry import moments, warp
from handful.images import ImageSet

NEAR = 0.988
"""Correlation of pixels from which on two pictures are one. Of mnist50's 500 training images no two
reach 0.98, of the first 15,000 of MNIST none this; yet each of the 500 reaches 0.99 with itself
shifted by a pixel, saved as a JPEG of quality 75 or made brighter by three tenths."""
FARTHEST = 2
"""Pixels that two pictures may be shifted against each other, on each axis."""
LARGEST = 32
"""Side at which larger pictures are compared: what is finer, JPEG changes."""
COARSE = 14
NEIGHBOURS = 5
"""Of each picture so many that look most alike, coarsely, are compared pixel by pixel."""
ROWS = 512


class Twin(NamedTuple):
    """Two positions that hold one picture."""

    first: int
    second: int
    alike: float
    """Correlation of their pixels; 1 says that all pixels are equal."""

    @property
    def exact(self) -> bool:
        return self.alike == 1.0


def within(images: ImageSet) -> list[Twin]:
    """Pairs in one set, first < second: each copy with the first of its kind, each near pair."""
    once, place = _kinds(images.fingerprints)
    found = [Twin(int(once[k]), i, 1.0) for i, k in enumerate(place) if once[k] != i]
    x = _comparable(images.select(torch.from_numpy(once)).images)
    near = {(min(i, j), max(i, j)): alike for i, j, alike in _near(x, x, itself=True)}
    found += [Twin(int(once[i]), int(once[j]), alike) for (i, j), alike in near.items()]
    return sorted(Twin(min(a, b), max(a, b), alike) for a, b, alike in found)


def across(images: ImageSet, others: ImageSet) -> list[Twin]:
    """For each image that is also among `others`, or nearly, the pair with the most alike."""
    judging = others.fingerprints
    theirs, _ = _kinds(judging)
    known = dict(zip(judging[theirs].tolist(), theirs.tolist(), strict=True))
    prints = images.fingerprints.tolist()
    found = [Twin(i, known[p], 1.0) for i, p in enumerate(prints) if p in known]
    rest = torch.tensor([i for i, p in enumerate(prints) if p not in known], dtype=torch.int64)
    x, y = _comparable(images.select(rest).images), _comparable(others.images)
    best: dict[int, Twin] = {}
    for i, j, alike in _near(x, y, itself=False):
        position = int(rest[i])
        if position not in best or alike > best[position].alike:
            best[position] = Twin(position, j, alike)
    return sorted([*found, *best.values()])


def groups(count: int, twins: list[Twin]) -> Tensor:
    """The first position of the group that each belongs to, int64 (count,): alone, its own."""
    first = list(range(count))

    def root(i: int) -> int:
        while first[i] != i:
            first[i] = first[first[i]]
            i = first[i]
        return i

    for twin in twins:
        a, b = root(twin.first), root(twin.second)
        first[max(a, b)] = min(a, b)
    return torch.tensor([root(i) for i in range(count)], dtype=torch.int64)


def _kinds(prints: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each different picture occurs first, ascending, and which of them each one is."""
    _, once, place = np.unique(prints, return_index=True, return_inverse=True)
    order = once.argsort()
    return once[order], order.argsort()[place]


def _comparable(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) as floats, no side above LARGEST."""
    if max(images.shape[2:]) <= LARGEST or not len(images):
        return images.float()
    size = (LARGEST, LARGEST)
    parts = [
        F.interpolate(part.float(), size, mode="bilinear", antialias=True)
        for part in images.split(ROWS)
    ]
    return torch.cat(parts)


def _near(x: Tensor, y: Tensor, *, itself: bool) -> list[tuple[int, int, float]]:
    """Pairs of float (N, C, H, W) and (M, C, H, W) that correlate by NEAR, but are not equal.

    itself: x and y are the same images, each of which is no neighbour of its own.
    """
    neighbours = min(NEIGHBOURS, len(y) - itself)
    if neighbours < 1 or not len(x):
        return []
    ours, theirs = _coarse(x), _coarse(y)
    found = []
    for start in range(0, len(x), ROWS):
        similar = ours[start : start + ROWS] @ theirs.T
        if itself:
            rows = torch.arange(len(similar))
            similar[rows, start + rows] = -1.0
        j = similar.topk(neighbours, 1).indices.flatten()
        i = (start + torch.arange(len(similar))).repeat_interleave(neighbours)
        alike = _correlation(x[i], y[j])
        kept = alike >= NEAR
        # what rounding lifts to 1 is not equal all the same: equal pictures were told before
        below = alike.clamp(max=1 - 1e-6)
        found += list(zip(*(v[kept].tolist() for v in (i, j, below)), strict=True))
    return found


def _coarse(x: Tensor) -> Tensor:
    """What a picture looks like from afar, centred: (N, C · COARSE²) of norm 1, 0 if blank."""
    parts = []
    for part in x.split(ROWS):
        part = part - part.mean((1, 2, 3), keepdim=True)
        centre, _ = moments(part.square().sum(1, keepdim=True))
        eye = torch.eye(2).expand(len(part), 2, 2)
        part = F.adaptive_avg_pool2d(warp(part, eye, -centre, padding="reflection"), COARSE)
        parts.append(_unit(part))
    return torch.cat(parts)


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    """Of the pixels of pairs (P, C, H, W), at the best of all small shifts: (P,), at most 1.

    What the shift moves out of the frame is left out of it, and brightness and contrast are free.
    """
    height, width = (side - 2 * FARTHEST for side in x.shape[2:])
    if min(height, width) < 1:
        return (_unit(x) * _unit(y)).sum(1)
    middle = _unit(x[..., FARTHEST:-FARTHEST, FARTHEST:-FARTHEST])
    best = torch.full((len(x),), -1.0)
    for down in range(2 * FARTHEST + 1):
        for right in range(2 * FARTHEST + 1):
            window = _unit(y[..., down : down + height, right : right + width])
            best = torch.maximum(best, (middle * window).sum(1))
    return best


def _unit(x: Tensor) -> Tensor:
    """Flattened to mean 0 and norm 1 (N, D); zeros where nothing varies."""
    x = x.flatten(1)
    return F.normalize(x - x.mean(1, keepdim=True), dim=1)

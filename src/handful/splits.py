"""Which images are labelled, which are held out, and in what order they come: index work only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

ROW_STEPS = 50
"""Training reports at the end of each epoch, and within a long one after so many steps."""


def draw(labels: Tensor, per_class: int, draw: int | None) -> Tensor:
    """Which `per_class` images of each class are labelled: int64, ascending positions in `labels`.

    labels: int64 (N,) in the official order; images with -1 are never drawn.
    draw: the images with the smallest SHA-256 of "draw:position" are taken, so that a draw of few
    lies within the same draw of more and is the same on every machine; None takes the first ones.

    Raises ValueError naming the class that has too few.
    """
    chosen = []
    for label in range(int(labels.max()) + 1 if len(labels) else 0):
        members = (labels == label).nonzero().squeeze(1).tolist()
        if len(members) < per_class:
            raise ValueError(
                f"class number {label} has {len(members)} labelled images and --per-class asks "
                f"for {per_class}: lower --per-class or add images"
            )
        if draw is not None:
            members.sort(key=lambda position: _digest(draw, position))
        chosen += members[:per_class]
    return torch.tensor(sorted(chosen), dtype=torch.int64)


def _digest(draw: int, position: int) -> bytes:
    return hashlib.sha256(f"{draw}:{position}".encode()).digest()


def split(
    labels: Tensor, sources: Tensor, share: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Positions to keep and positions to hold out, both int64 and ascending.

    labels, sources: int64 (N,). All images of one source fall on the same side. `share` of the
    sources of each class are held out, at least one of each class and never all of them; a class
    with one source is kept whole, and so is a source without a label. One whose images contradict
    each other has the larger label, and stays where it is all that the other class has; its own may
    then hold nothing out. A share of 0 holds nothing.
    """
    unique, place = torch.unique(sources, return_inverse=True)
    # One label for each source, however many copies of it carry none.
    label_of = torch.full((len(unique),), -1).scatter_reduce(0, place, labels, "amax")
    held_sources = torch.zeros(len(unique), dtype=torch.bool)
    for label in torch.unique(label_of[label_of >= 0]).tolist() if share > 0 else ():
        members = (label_of == label).nonzero().squeeze(1)
        count = min(max(1, round(share * len(members))), len(members) - 1)
        shuffled = members[torch.randperm(len(members), generator=generator)]
        held_sources[shuffled[:count]] = True
    for label in torch.unique(labels[labels >= 0]).tolist():
        members = place[labels == label]
        if held_sources[members].all():  # held out under another label, and all that the class has
            held_sources[members] = False
    held = held_sources[place]
    return (~held).nonzero().squeeze(1), held.nonzero().squeeze(1)


def folds(labels: Tensor, sources: Tensor, count: int, generator: Generator) -> Tensor:
    """The fold, 0 to `count` - 1, in which each image is held out: int64 (N,), -1 for never.

    labels, sources: int64 (N,). All images of one source and label are in one fold, and each class
    is spread over the folds evenly. A class with one source is never held out, nor is what has no
    label.
    """
    found = torch.full_like(labels, -1)
    for label in torch.unique(labels[labels >= 0]).tolist():
        unique, place = torch.unique(sources[labels == label], return_inverse=True)
        if len(unique) > 1:
            shuffled = torch.randperm(len(unique), generator=generator)
            found[labels == label] = (shuffled % count)[place]
    return found


def batches(n: int, batch_size: int, generator: Generator) -> Iterator[Tensor]:
    """One epoch over n images in a new order: int64 positions, in nearly equal batches.

    As few batches as `batch_size` allows, their sizes at most one apart. A single image has nothing
    to be contrasted with or normalised by, so at a batch size of 2 an odd n gives one batch of 3;
    only n = 1 or a batch size of 1 gives batches of one.
    """
    if n:
        order = torch.randperm(n, generator=generator)
        yield from order.tensor_split(batches_per_epoch(n, batch_size))


def endless_batches(n: int, batch_size: int, generator: Generator) -> Iterator[Tensor]:
    """Epoch after epoch of `batches`."""
    while n:
        yield from batches(n, batch_size, generator)


def batches_per_epoch(n: int, batch_size: int) -> int:
    """How many batches `batches` makes of n images."""
    parts = -(-n // batch_size)
    return min(parts, n // 2) if batch_size > 1 and n > 1 else parts


def mean_batch(n: int, batch_size: int) -> float:
    """Images of a batch of `batches`, of n > 0 images: those of an epoch are nearly equal."""
    return n / batches_per_epoch(n, batch_size)

"""What `handful audit` finds of faults that were planted in mnist50.

python -m benchmarks.audit [--seeds 0-2]

Of each seed a line: labels flipped, and how many of them stand in the first tenth of the list;
copies among the training images and leaks into the test that were planted, and how many were found.
"""

from __future__ import annotations

import argparse
import io
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image

from handful import audit, datasets, devices
from handful.config import DataConfig
from handful.datasets import Dataset
from handful.images import ImageSet, concatenate
from handful.wording import numbers, percent

FLIPPED = 0.05
FIRST = 0.1
PLANTED = 24


class Found(NamedTuple):
    """What came of the labels that were flipped."""

    flipped: int
    first: int
    """Of these, in the first tenth of the list."""
    named: int
    """Of these, among the likely wrong."""
    likely: int
    """Labels that are called likely wrong, others included."""


def flipped(images: ImageSet, rng: Generator) -> tuple[ImageSet, np.ndarray]:
    """The same with FLIPPED of the labels replaced by another at random, and which those are."""
    which = rng.choice(len(images), round(FLIPPED * len(images)), replace=False)
    labels = images.labels.clone()
    classes = len(images.class_names)
    other = rng.integers(1, classes, len(which))
    labels[which] = (labels[which] + torch.from_numpy(other)) % classes
    return replace(images, labels=labels), which


def labels(dataset: Dataset, seed: int) -> Found:
    """Flip labels, train, count."""
    train, which = flipped(dataset.train, np.random.default_rng(seed))
    config, chosen = audit.setting("mnist50", None, [f"seed={seed}"], "auto")
    device = devices.choose(config.device)
    found = audit.examined(config, replace(dataset, train=train), device, chosen=chosen)
    judged = found.judged
    assert judged is not None
    positions = judged.positions.numpy()
    first = positions[judged.doubts.order[: round(FIRST * len(positions))]]
    likely = positions[judged.doubts.wrong]
    named = np.isin(which, likely).sum()
    return Found(len(which), int(np.isin(which, first).sum()), int(named), len(likely))


def copy(pixels: np.ndarray, number: int) -> np.ndarray:
    """A copy of uint8 (H, W): equal, shifted, saved as a JPEG, brighter, or all of that."""
    kind = number % 5
    if kind in (1, 4):
        pixels = np.roll(pixels, (1, -1), (0, 1))
    if kind in (3, 4):
        pixels = np.minimum(pixels * 1.2, 255).astype(np.uint8)
    if kind in (2, 4):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=75)
        pixels = np.asarray(Image.open(buffer))
    return pixels


def copies(images: ImageSet, which: np.ndarray, first_source: int) -> ImageSet:
    """Copies of some images, each a source of its own."""
    made = [copy(images.images[int(i), 0].numpy(), k) for k, i in enumerate(which)]
    pixels = torch.from_numpy(np.stack(made))[:, None]
    chosen = images.select(torch.from_numpy(which))
    return replace(chosen, images=pixels, sources=torch.arange(len(which)) + first_source)


def planted(dataset: Dataset, seed: int) -> tuple[int, int, int]:
    """Copies found, leaks found (of PLANTED each), and pairs that nobody planted."""
    rng = np.random.default_rng(seed)
    train, test = dataset.train, dataset.test
    assert test is not None
    first = 1 + int(test.sources.max())
    which = rng.choice(len(train), 2 * PLANTED, replace=False)
    twice, leaked = which[:PLANTED], which[PLANTED:]
    more = concatenate([train, copies(train, twice, first)])
    opened = concatenate([test, copies(train, leaked, first + PLANTED)])
    config, chosen = audit.setting("mnist50", None, ["downstream.folds=0"], "cpu")
    changed = replace(dataset, train=more, test=opened)
    found = audit.examined(config, changed, torch.device("cpu"), chosen=chosen)
    pairs = {(f.kind, f.image, f.other) for f in found.findings}
    doubled = {("duplicate", len(train) + k, int(i)) for k, i in enumerate(twice)}
    shown = {("leak", int(i), len(test) + k) for k, i in enumerate(leaked)}
    return len(pairs & doubled), len(pairs & shown), len(pairs - doubled - shown)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit", description=__doc__)
    parser.add_argument("--seeds", default="0-2", metavar="NUMBERS")
    given = parser.parse_args()
    dataset = datasets.load(DataConfig())
    for seed in numbers("--seeds", given.seeds):
        doubled, shown, others = planted(dataset, seed)
        print(
            f"seed {seed}: {doubled} of {PLANTED} copies and {shown} of {PLANTED} leaks found, "
            f"{others} findings beside them",
            flush=True,
        )
        found = labels(dataset, seed)
        print(
            f"seed {seed}: {found.first} of {found.flipped} flipped labels "
            f"({percent(found.first / found.flipped)}) in the first tenth of the list; "
            f"{found.named} of the {found.likely} likely wrong ones were flipped",
            flush=True,
        )


if __name__ == "__main__":
    main()

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from handful import storage
from handful.images import UNLABELLED, ImageSet, concatenate, to_float

NAMES = ("cat", "dog")


def pixels(n: int, channels: int = 1, size: int = 4) -> torch.Tensor:
    """uint8 (n, channels, size, size): image i is i everywhere."""
    return torch.arange(n, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, channels, size, size)


def five() -> ImageSet:
    labels = torch.tensor([0, 1, -1, 1, 0])
    return ImageSet.of(pixels(5), labels, NAMES, [f"{i}.png" for i in range(5)])


def test_every_image_is_its_own_source_at_first() -> None:
    assert five().sources.tolist() == [0, 1, 2, 3, 4]


def test_images_without_labels_are_unlabelled() -> None:
    images = ImageSet.of(pixels(3))
    assert images.labels.tolist() == [UNLABELLED] * 3
    assert images.labels.dtype == torch.int64
    assert len(images.labelled()) == 0


def test_labels_of_any_integer_type_become_int64() -> None:
    images = ImageSet.of(pixels(2), torch.tensor([0, 1], dtype=torch.uint8), NAMES)
    assert images.labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": pixels(2).float()}, r"must be uint8 \(N, C, H, W\), got torch.float32"),
        ({"images": pixels(2)[:, 0]}, r"must be uint8 \(N, C, H, W\), got torch.uint8 \(2, 4, 4\)"),
        ({"images": pixels(2, channels=2)}, "1 or 3 channels, got 2"),
        ({"labels": torch.tensor([0])}, "2 images came with 1 labels"),
        ({"sources": torch.arange(3)}, "3 sources"),
        ({"paths": ("one.png",)}, "1 paths"),
        ({"labels": torch.tensor([0, 2])}, "between -1 and 1, got 0 to 2"),
        ({"labels": torch.tensor([-2, 0])}, "between -1 and 1, got -2 to 0"),
    ],
)
def test_what_does_not_fit_together_is_refused(changed: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "images": pixels(2),
        "labels": torch.tensor([0, 1]),
        "class_names": NAMES,
        "sources": torch.arange(2),
    }
    ImageSet(**good)
    with pytest.raises(ValueError, match=message):
        ImageSet(**good | changed)


def test_an_empty_set_is_a_set() -> None:
    empty = five().select(torch.tensor([], dtype=torch.int64))
    assert len(empty) == 0
    assert empty.class_counts.tolist() == [0, 0]
    assert "0 images" in empty.describe()


@pytest.mark.parametrize(
    "index", [torch.tensor([3, 0]), torch.tensor([True, False, False, True, False])]
)
def test_select_takes_everything_that_belongs_to_an_image(index: torch.Tensor) -> None:
    images = five()
    expected = [3, 0] if index.dtype == torch.int64 else [0, 3]
    chosen = images.select(index)
    assert chosen.images[:, 0, 0, 0].tolist() == expected
    assert chosen.sources.tolist() == expected
    assert chosen.labels.tolist() == [images.labels[i] for i in expected]
    assert chosen.paths == tuple(f"{i}.png" for i in expected)
    assert chosen.class_names == NAMES


def test_labelled_leaves_out_what_nobody_labelled() -> None:
    assert five().labelled().sources.tolist() == [0, 1, 3, 4]


def test_labels_are_forgotten_in_a_copy_alone() -> None:
    images = five()
    assert images.without_labels().labels.tolist() == [-1] * 5
    assert images.without_labels().sources.tolist() == images.sources.tolist()
    assert images.labels.tolist() == [0, 1, -1, 1, 0]


def test_counts_size_and_channels() -> None:
    images = ImageSet.of(pixels(3, channels=3)[..., :2], torch.tensor([1, 1, -1]), NAMES)
    assert images.class_counts.tolist() == [0, 2]
    assert images.size == (4, 2)
    assert images.channels == 3


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 0, 1, 1], "4 images of 4×4, 1 channel, 2 classes with 2 labelled each"),
        ([0, 0, 0, 1], "4 images of 4×4, 1 channel, 2 classes with 1–3 labelled each"),
        (
            [0, 1, -1, -1],
            "4 images of 4×4, 1 channel, 2 classes with 1 labelled each, 2 unlabelled",
        ),
        ([-1] * 4, "4 images of 4×4, 1 channel, unlabelled"),
    ],
)
def test_describe(labels: list[int], expected: str) -> None:
    assert ImageSet.of(pixels(4), torch.tensor(labels), NAMES).describe() == expected


def test_describe_speaks_of_channels() -> None:
    assert "3 channels" in ImageSet.of(pixels(1, channels=3)).describe()


def test_concatenate_keeps_order_labels_sources_and_paths() -> None:
    first = five()
    both = concatenate([first, first.select(torch.tensor([2, 1]))])
    assert both.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 2, 1]
    assert both.sources.tolist() == [0, 1, 2, 3, 4, 2, 1]
    assert both.labels.tolist() == [0, 1, -1, 1, 0, -1, 1]
    assert both.paths[-2:] == ("2.png", "1.png")


def test_concatenate_drops_paths_that_only_some_have() -> None:
    first = five()
    pathless = ImageSet.of(first.images, first.labels, NAMES)
    assert concatenate([first, pathless]).paths == ()


def test_concatenate_refuses_other_classes_and_shapes() -> None:
    first = five()
    with pytest.raises(ValueError, match="class names differ"):
        concatenate([first, ImageSet.of(pixels(1), torch.tensor([0]), ("dog", "cat"))])
    with pytest.raises(ValueError, match=r"image shapes differ: \(1, 4, 4\) and \(3, 4, 4\)"):
        concatenate([first, ImageSet.of(pixels(1, channels=3), torch.tensor([0]), NAMES)])


def test_fingerprints_are_of_the_pixels_alone() -> None:
    first = five()
    assert first.fingerprints.dtype == np.uint64
    assert first.fingerprints is first.fingerprints  # not computed again
    assert len(set(first.fingerprints.tolist())) == 5
    again = first.select(torch.tensor([3, 3, 0])).without_labels().fingerprints
    assert again.tolist() == first.fingerprints[[3, 3, 0]].tolist()


def test_to_float_spans_zero_to_one() -> None:
    x = to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, torch.tensor([0, 0.2, 1]))


def test_what_is_new_is_each_unknown_image_once() -> None:
    pixels = torch.tensor([3, 1, 3, 2, 1, 5], dtype=torch.uint8).view(6, 1, 1, 1)
    images = ImageSet.of(pixels)
    known = images.select(torch.tensor([1])).fingerprints
    assert images.not_among(known).tolist() == [0, 3, 5]
    assert images.not_among(images.fingerprints).tolist() == []


def test_images_too_many_for_memory_are_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path))
    images = ImageSet.of(pixels(200, 3), torch.arange(200) % 2, NAMES)
    order = torch.arange(200).flip(0)
    kept = images.labels == 0
    expected = images.select(order), images.select(kept), concatenate([images, images])
    with (
        mock.patch.object(storage, "IN_MEMORY", 1000),
        mock.patch.object(storage.np, "memmap", wraps=np.memmap) as mapped,
    ):
        found = images.select(order), images.select(kept), concatenate([images, images])
        assert mapped.call_count == 3
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)
        # what is all of it, or alone, is not copied
        assert found[0].select(torch.arange(200)).images is found[0].images
        alone = concatenate([found[0].select(order[:0]), found[0]])
        assert alone.images is found[0].images
    assert torch.equal(images.taken(order), expected[0].images)
    assert not list(tmp_path.iterdir())


GROWN = """
import torch
from handful import storage
from handful.images import ImageSet, concatenate, room

def private():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

storage.IN_MEMORY = 2**24
images = ImageSet.of(room(4000, 3, 128, 128))
before = private()
for part in images.images.split(500):
    part.random_(0, 256)
order = torch.randperm(4000)
moved = concatenate([images.select(order), images.select(order[:2000])])
assert torch.equal(moved.images[7], images.images[order[7]])
print(len(moved), (private() - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which memory is of files")
def test_images_too_many_for_memory_take_none(tmp_path: Path) -> None:
    """197 MB and twice copies of them: what is private to the process hardly grows."""
    done = subprocess.run(
        [sys.executable, "-c", GROWN],
        env={**os.environ, "HANDFUL_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    count, megabytes = map(int, done.stdout.split())
    assert count == 6000
    assert megabytes < 120

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from handful import twins
from handful.datasets import Dataset
from handful.images import ImageSet, concatenate


def altered(images: ImageSet, how: str) -> ImageSet:
    """Copies of grey images, each changed in the same way."""
    return ImageSet.of(
        torch.from_numpy(np.stack([change(image[0].numpy(), how) for image in images.images])),
        images.labels,
        images.class_names,
    )


def change(pixels: np.ndarray, how: str) -> np.ndarray:
    """uint8 (H, W) to (1, H, W)."""
    if "shift" in how:
        pixels = np.roll(pixels, (1, -1), (0, 1))
    if "bright" in how:
        pixels = np.minimum(pixels * 1.2, 255).astype(np.uint8)
    if "dark" in how:
        pixels = (pixels * 0.6 + 20).astype(np.uint8)
    if "jpeg" in how:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=75)
        pixels = np.asarray(Image.open(buffer))
    return pixels[None]


WAYS = ("shift", "jpeg", "bright", "dark", "shift bright jpeg")


@pytest.mark.parametrize("how", WAYS)
def test_altered_copies_of_digits_are_found_and_nothing_else(few: ImageSet, how: str) -> None:
    n = len(few)
    both = concatenate([few, altered(few, how)])
    found = twins.within(both)
    assert {(t.first, t.second) for t in found} == {(i, i + n) for i in range(n)}
    assert not any(t.exact for t in found)


def test_a_shift_by_two_pixels_is_the_same_and_by_four_is_not(few: ImageSet) -> None:
    # ink in the middle, so that nothing turns around the edge
    small = torch.zeros(10, 1, 28, 28, dtype=torch.uint8)
    small[:, :, 7:21, 7:21] = few.images[:10, :, ::2, ::2]
    base = ImageSet.of(small)
    for pixels, expected in ((2, 10), (4, 0)):
        moved = ImageSet.of(small.roll(pixels, 3))
        pairs = twins.across(base, moved)
        assert sum(t.first == t.second for t in pairs) == expected


def test_mnist50_has_no_copies_and_no_leaks(bundled: Dataset) -> None:
    assert bundled.test is not None
    assert twins.within(bundled.train) == []
    some = bundled.test.select(torch.arange(3000))
    assert twins.across(bundled.train, some) == []


def test_equal_pictures_are_exact_however_many_there_are(few: ImageSet) -> None:
    again = few.select(torch.tensor([3, 0, 3, 3, 3, 3, 3, 3, 3, 1]))
    found = twins.within(again)
    assert [(t.first, t.second) for t in found] == [(0, k) for k in range(2, 9)]
    assert all(t.exact for t in found)


def test_across_tells_the_nearest_and_prefers_equal_ones(few: ImageSet) -> None:
    test = concatenate(
        [altered(few.select(torch.tensor([5, 7])), "jpeg"), few.select(torch.tensor([7]))]
    )
    found = twins.across(few, test)
    assert [(t.first, t.second, t.exact) for t in found] == [(5, 0, False), (7, 2, True)]


def test_large_colour_pictures(few: ImageSet) -> None:
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (12, 3, 6, 6)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (96, 96), mode="bicubic").clamp(0, 255)
    x = smooth.to(torch.uint8)
    noisy = (x.float() + torch.from_numpy(rng.normal(0, 6, x.shape))).clamp(0, 255).to(torch.uint8)
    found = twins.within(ImageSet.of(torch.cat([x, noisy.roll(1, 2)])))
    assert {(t.first, t.second) for t in found} == {(i, i + 12) for i in range(12)}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_or_no_images(few: ImageSet, count: int) -> None:
    images = few.select(torch.arange(count))
    assert twins.within(images) == []
    assert twins.across(images, few.select(torch.arange(0))) == []
    assert twins.across(few.select(torch.arange(0)), images) == []


def test_tiny_pictures_have_no_room_for_shifts() -> None:
    x = torch.tensor([[0, 9, 3], [200, 7, 90], [1, 250, 4]], dtype=torch.uint8)
    images = ImageSet.of(torch.stack([x, x.T, x // 2])[:, None])
    assert [(t.first, t.second) for t in twins.within(images)] == [(0, 2)]


def test_blank_pictures_are_near_nothing(few: ImageSet) -> None:
    blank = ImageSet.of(
        torch.tensor([0, 90, 255], dtype=torch.uint8).view(3, 1, 1, 1).repeat(1, 1, 28, 28)
    )
    assert twins.within(blank) == []


def test_groups_join_whatever_a_chain_of_pairs_joins() -> None:
    pairs = [twins.Twin(4, 5, 1.0), twins.Twin(1, 3, 0.99), twins.Twin(3, 5, 0.99)]
    assert twins.groups(7, pairs).tolist() == [0, 1, 2, 1, 1, 1, 6]

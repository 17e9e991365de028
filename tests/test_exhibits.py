from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from handful.config import NetworkConfig, ViewsConfig
from handful.exhibits import (
    GALLERY_CLASSES,
    GALLERY_VIEWS,
    MAP_IMAGES,
    MISTAKES,
    for_maps,
    gallery,
    mistakes,
    pipeline,
    tsne,
)
from handful.images import ImageSet
from handful.networks import ConvNet, ProjectionHead, represent
from handful.recipes import RICH_DIGITS

NAMES = tuple("0123456789")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def blank(n: int, classes: int) -> ImageSet:
    labels = torch.arange(n) % classes
    names = [str(i) for i in range(classes)]
    return ImageSet.of(torch.zeros(n, 1, 8, 8, dtype=torch.uint8), labels, names)


def test_the_gallery_shows_the_first_image_of_each_class(few: ImageSet) -> None:
    shown = gallery(few, RICH_DIGITS, generator())
    assert shown["gallery_originals"].shape == (10, 1, 28, 28)
    assert shown["gallery_views"].shape == (10, GALLERY_VIEWS, 1, 28, 28)
    for label, original in enumerate(shown["gallery_originals"]):
        first = few.images[few.labels == label][0]
        assert np.array_equal(original, first.numpy())
    assert shown["gallery_views"].dtype == np.uint8
    different = {view.tobytes() for row in shown["gallery_views"] for view in row}
    assert len(different) == 10 * GALLERY_VIEWS


def test_a_row_of_the_gallery_shows_views_of_its_own_image() -> None:
    """Each class has a brightness of its own, which views of place alone keep."""
    brightness = torch.tensor([50, 120, 200], dtype=torch.uint8)
    images = ImageSet.of(brightness.view(-1, 1, 1, 1).repeat(1, 1, 16, 16), torch.arange(3), "abc")
    shown = gallery(images, ViewsConfig(), generator())
    assert shown["gallery_views"].max((2, 3, 4)).tolist() == [
        [value] * GALLERY_VIEWS for value in (50, 120, 200)
    ]


def test_the_gallery_leaves_out_classes_without_images_and_ends_somewhere() -> None:
    images = blank(6, 6)
    some = images.select(torch.tensor([1, 4]))
    assert len(gallery(some, ViewsConfig(), generator())["gallery_originals"]) == 2
    many = gallery(blank(50, 50), ViewsConfig(), generator())
    assert len(many["gallery_originals"]) == GALLERY_CLASSES


def test_the_pipeline_is_what_the_networks_make_of_two_views(few: ImageSet) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = ConvNet(1, 28, NetworkConfig(width=8, head_hidden=16, head_dim=4))
        head = ProjectionHead(encoder.dim, NetworkConfig(width=8, head_hidden=16, head_dim=4))
    shown = pipeline(encoder, head, few.images[3], RICH_DIGITS, generator())
    assert np.array_equal(shown["pipeline_image"], few.images[3].numpy())
    views = shown["pipeline_views"]
    assert views.shape == (2, 1, 28, 28)
    assert views.dtype == np.uint8
    assert not np.array_equal(views[0], views[1])
    h = represent(encoder, torch.from_numpy(views))
    np.testing.assert_allclose(shown["pipeline_h"], h.numpy(), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        z = head.eval()(h.clone())
    np.testing.assert_allclose(shown["pipeline_z"], z.numpy(), rtol=1e-4, atol=1e-5)


def test_a_map_shows_no_more_than_it_can() -> None:
    few, many = blank(MAP_IMAGES, 3), blank(MAP_IMAGES + 700, 3)
    assert for_maps(few, generator()) is few
    shown = for_maps(many, generator())
    sources = shown.sources.tolist()
    assert len(set(sources)) == MAP_IMAGES
    assert sources == sorted(sources)
    assert max(sources) >= MAP_IMAGES
    assert torch.equal(for_maps(many, generator()).sources, shown.sources)


@pytest.mark.parametrize("n", [10, 30])
def test_maps_of_before_and_after(n: int) -> None:
    rng = generator()
    before, after = torch.randn(n, 6, generator=rng), torch.randn(n, 6, generator=rng)
    shown = tsne(before, after, torch.arange(n) % 2, seed=0)
    assert shown["map_xy"].shape == shown["map_xy_before"].shape == (n, 2)
    np.testing.assert_array_equal(shown["map_h"], after.numpy())
    assert shown["map_labels"].tolist() == [i % 2 for i in range(n)]
    assert not np.allclose(shown["map_xy"], shown["map_xy_before"])


def answers(n: int) -> tuple[ImageSet, Tensor]:
    """Images that know their place, and probabilities that are right for every third."""
    labels = torch.arange(n) % 10
    pixels = torch.arange(n).to(torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 2, 2)
    logits = torch.randn(n, 10, generator=generator())
    predicted = (labels + (torch.arange(n) % 3 > 0).long()) % 10
    logits[torch.arange(n), predicted] += 6 + torch.rand(n, generator=generator())
    return ImageSet.of(pixels, labels, NAMES), logits.double().softmax(1)


def test_the_worst_mistakes_come_first() -> None:
    test, probabilities = answers(120)
    shown = mistakes(test, probabilities)
    index = shown["mistakes_index"]
    assert len(index) == MISTAKES
    confidence, predicted = probabilities.max(1)
    wrong = [i for i in range(120) if int(predicted[i]) != int(test.labels[i])]
    assert len(wrong) > MISTAKES
    expected = sorted(wrong, key=lambda i: -float(confidence[i]))[:MISTAKES]
    assert index.tolist() == expected
    assert shown["mistakes_images"][:, 0, 0, 0].tolist() == expected
    np.testing.assert_allclose(shown["test_probabilities"], probabilities.numpy(), rtol=1e-6)
    assert shown["test_probabilities"].dtype == np.float32
    assert shown["test_labels"].tolist() == test.labels.tolist()


def test_no_mistakes_are_no_images() -> None:
    test, _ = answers(6)
    shown = mistakes(test, torch.nn.functional.one_hot(test.labels, 10).double())
    assert shown["mistakes_images"].shape == (0, 1, 2, 2)
    assert shown["mistakes_index"].shape == (0,)

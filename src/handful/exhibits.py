"""What a report shows of a run, as arrays: views, the pipeline, maps, mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from handful import maps
from handful.config import ViewsConfig
from handful.images import ImageSet
from handful.networks import Encoder, ProjectionHead, in_parts
from handful.views import two_views, view

Arrays = dict[str, np.ndarray[Any, Any]]

GALLERY_VIEWS = 8
GALLERY_CLASSES = 20
MAP_IMAGES = 2000
MISTAKES = 25


def gallery(images: ImageSet, config: ViewsConfig, generator: Generator) -> Arrays:
    """The first image of each class, and some of its views as training sees them."""
    first = [
        int((images.labels == label).nonzero()[0])
        for label, count in enumerate(images.class_counts.tolist())
        if count
    ][:GALLERY_CLASSES]
    originals = images.images[torch.tensor(first)]  # (Y, C, H, W)
    repeated = originals.repeat_interleave(GALLERY_VIEWS, dim=0)
    views = _bytes(view(repeated, config, generator))
    return {
        "gallery_originals": originals.numpy(),
        "gallery_views": views.reshape(len(first), GALLERY_VIEWS, *originals.shape[1:]),
    }


def pipeline(
    encoder: Encoder,
    head: ProjectionHead,
    image: Tensor,
    config: ViewsConfig,
    generator: Generator,
) -> Arrays:
    """One image uint8 (C, H, W) on its way: two views, their h and their z."""
    x_a, x_b = two_views(image[None], config, generator)
    seen = (torch.cat([x_a, x_b]) * 255).round().to(torch.uint8)
    h = in_parts(encoder, seen, encoder)
    z = in_parts(lambda x: head(encoder(x)), seen, encoder, head)
    return {
        "pipeline_image": image.numpy(),
        "pipeline_views": seen.numpy(),
        "pipeline_h": h.cpu().numpy(),
        "pipeline_z": z.cpu().numpy(),
    }


def for_maps(images: ImageSet, generator: Generator) -> ImageSet:
    """At most as many images as a map can show, chosen at random, in their order."""
    if len(images) <= MAP_IMAGES:
        return images
    chosen = torch.randperm(len(images), generator=generator)[:MAP_IMAGES]
    return images.select(chosen.sort().values)


def tsne(before: Tensor, after: Tensor, labels: Tensor, seed: int) -> Arrays:
    """Maps of representations (M, D) before and after training; the second can place new points."""
    first, second = (maps.fit(h.cpu().numpy(), seed) for h in (before, after))
    return {
        "map_h": second.h,
        "map_xy": second.xy,
        "map_xy_before": first.xy,
        "map_labels": labels.numpy(),
    }


def mistakes(test: ImageSet, probabilities: Tensor) -> Arrays:
    """The test images that the classifier got wrong with most confidence, and all probabilities.

    probabilities: (T, Y).
    """
    confidence, predicted = probabilities.max(1)
    wrong = (predicted != test.labels).nonzero().squeeze(1)
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][:MISTAKES]
    return {
        "test_probabilities": probabilities.float().numpy(),
        "test_labels": test.labels.numpy(),
        "mistakes_images": test.images[worst].numpy(),
        "mistakes_index": worst.numpy(),
    }


def _bytes(x: Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = (x * 255).round().to(torch.uint8).numpy()
    return array

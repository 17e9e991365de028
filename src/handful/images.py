"""The one type that flows through handful: a set of images with labels and sources."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handful.storage import empty, is_large

UNLABELLED = -1


def to_float(images: Tensor) -> Tensor:
    """uint8 0-255 to float32 0-1."""
    return images.float() / 255


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images, their labels and where each came from.

    images: uint8 (N, C, H, W) with C = 1 or 3.
    labels: int64 (N,), an index into `class_names`; -1 means unlabelled.
    class_names: one name per class, in the order of the classifier's outputs.
    sources: int64 (N,), the original image that each one is, or is a copy of.
    paths: one per image where the images were files, else empty.

    Raises ValueError where these do not fit together.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    sources: Tensor
    paths: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise ValueError(
                "images must be uint8 (N, C, H, W), got "
                f"{self.images.dtype} {tuple(self.images.shape)}"
            )
        if self.images.shape[1] not in (1, 3):
            raise ValueError(f"images must have 1 or 3 channels, got {self.images.shape[1]}")
        if not len(self.labels) == len(self.sources) == n or len(self.paths) not in (0, n):
            raise ValueError(
                f"{n} images came with {len(self.labels)} labels, {len(self.sources)} sources "
                f"and {len(self.paths)} paths"
            )
        if n and not (
            self.labels.min() >= UNLABELLED and self.labels.max() < len(self.class_names)
        ):
            raise ValueError(
                f"labels must lie between -1 and {len(self.class_names) - 1}, got "
                f"{int(self.labels.min())} to {int(self.labels.max())}"
            )

    @classmethod
    def of(
        cls,
        images: Tensor,
        labels: Tensor | None = None,
        class_names: Sequence[str] = (),
        paths: Sequence[str] = (),
    ) -> ImageSet:
        """A set in which every image is its own source; without labels, an unlabelled one."""
        n = len(images)
        if labels is None:
            labels = torch.full((n,), UNLABELLED)
        return cls(images, labels.long(), tuple(class_names), torch.arange(n), tuple(paths))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[2], self.images.shape[3]

    @property
    def class_counts(self) -> Tensor:
        """Labelled images of each class, int64 (Y,)."""
        known = self.labels[self.labels >= 0]
        return torch.bincount(known, minlength=len(self.class_names))

    def select(self, index: Tensor) -> ImageSet:
        """The images at `index` (int64 positions or a boolean mask), in that order."""
        if index.dtype == torch.bool:
            index = index.nonzero().squeeze(1)
        paths = tuple(self.paths[i] for i in index.tolist()) if self.paths else ()
        return replace(
            self,
            images=_rows(self.images, index),
            labels=self.labels[index],
            sources=self.sources[index],
            paths=paths,
        )

    def taken(self, index: Tensor) -> Tensor:
        """Pixels (M, C, H, W) at positions int64 (M,), on the device that these are on."""
        return self.images[index.to(self.images.device)].to(index.device)

    def to(self, device: torch.device) -> ImageSet:
        """The same set with its tensors on another device; pixels too many for memory stay."""
        return replace(
            self,
            images=self.images if is_large(self.images.nbytes) else self.images.to(device),
            labels=self.labels.to(device),
            sources=self.sources.to(device),
        )

    def labelled(self) -> ImageSet:
        """Only the images whose label is known."""
        return self.select(self.labels >= 0)

    def without_labels(self) -> ImageSet:
        """The same images with every label forgotten."""
        return replace(self, labels=torch.full_like(self.labels, UNLABELLED))

    @cached_property
    def fingerprints(self) -> NDArray[np.uint64]:
        """64 bits of SHA-256 of each image's pixels, uint64 (N,): the same for the same image.

        Computed once: nobody changes the pixels of a set.
        """
        pixels = self.images.cpu().numpy()
        found = b"".join(hashlib.sha256(image.tobytes()).digest()[:8] for image in pixels)
        return np.frombuffer(found, "<u8")

    def joined(self) -> ImageSet:
        """The same with one source for all that are equal, pixel by pixel: the place of the first.

        Nothing that one of them taught may be judged by another.
        """
        return replace(self, sources=first_of(self.fingerprints))

    def not_among(self, known: NDArray[np.uint64]) -> Tensor:
        """Positions of the images whose fingerprints are not known, each image once: int64 (M,)."""
        prints, once = np.unique(self.fingerprints, return_index=True)
        return torch.from_numpy(np.sort(once[~np.isin(prints, known)]))

    def describe(self) -> str:
        """One line for people: how many images of what size, and how they are labelled."""
        counts = self.class_counts
        height, width = self.size
        text = f"{len(self):,} images of {height}×{width}, {self.channels} channel"
        text += "s" if self.channels > 1 else ""
        if not int(counts.sum()):
            return f"{text}, unlabelled"
        low, high = int(counts.min()), int(counts.max())
        each = f"{low}" if low == high else f"{low}–{high}"
        text += f", {len(counts)} classes with {each} labelled each"
        unlabelled = len(self) - int(counts.sum())
        return f"{text}, {unlabelled:,} unlabelled" if unlabelled else text


def first_of(prints: NDArray[np.uint64]) -> Tensor:
    """For each fingerprint where it stands first: int64 (N,)."""
    _, first, kind = np.unique(prints, return_index=True, return_inverse=True)
    return torch.from_numpy(first[kind])


ROWS = 1024
"""Images that are copied at once where they are too many for memory."""


def room(*shape: int) -> Tensor:
    """uint8 of a shape, to be filled; on disk where that is too much for memory."""
    return torch.from_numpy(empty(shape))


def _rows(images: Tensor, index: Tensor) -> Tensor:
    """Those at positions int64 (M,), in that order."""
    if not is_large(len(index) * images[:1].nbytes):
        return images[index]
    if len(index) == len(images) and torch.equal(index, torch.arange(len(index))):
        return images
    found = room(len(index), *images.shape[1:])
    for part, places in zip(found.split(ROWS), index.split(ROWS), strict=True):
        part.copy_(images[places])
    return found


def _together(parts: Sequence[Tensor]) -> Tensor:
    if not is_large(sum(part.nbytes for part in parts)):
        return torch.cat(list(parts))
    some = [part for part in parts if len(part)]
    if len(some) == 1:
        return some[0]
    found = room(sum(map(len, some)), *some[0].shape[1:])
    for place, part in zip(found.split([len(part) for part in some]), some, strict=True):
        place.copy_(part)
    return found


def concatenate(sets: Sequence[ImageSet]) -> ImageSet:
    """One set after another. Sources are kept: sets that share a source number share a source.

    Raises ValueError where class names or image shapes differ.
    """
    first = sets[0]
    for other in sets[1:]:
        if other.class_names != first.class_names:
            raise ValueError(f"class names differ: {first.class_names} and {other.class_names}")
        if other.images.shape[1:] != first.images.shape[1:]:
            raise ValueError(
                f"image shapes differ: {tuple(first.images.shape[1:])} and "
                f"{tuple(other.images.shape[1:])}"
            )
    keep_paths = all(part.paths for part in sets)
    return ImageSet(
        _together([part.images for part in sets]),
        torch.cat([part.labels for part in sets]),
        first.class_names,
        torch.cat([part.sources for part in sets]),
        tuple(chain.from_iterable(part.paths for part in sets)) if keep_paths else (),
    )

"""What a source is: a folder, a table, arrays, idx files or an archive; and what its parts hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from handful import archives, arrays, folders, hub, idx, manifests
from handful.decoding import OnRow
from handful.folders import Read
from handful.images import UNLABELLED, ImageSet
from handful.pictures import Part, Preparation, Role, is_prepared_digit, to_pixels

KINDS = (
    "mnist50, a folder, a table (.csv, .tsv), arrays (.npz, .npy), an archive (.zip, .tar) or a "
    "Hugging Face data set (hub:NAME)"
)


class Located(NamedTuple):
    """Where a source is: a folder, a table or a file of arrays; and what there is to say of it.

    inside: the folder in the cache that it was unpacked into, if it was.
    """

    place: Path
    inside: Path | None
    notes: list[str]


class Piece(NamedTuple):
    """A part of a source, before anything of it was read."""

    role: Role
    origin: str
    open: Callable[[], ImageSet | Part]
    as_is: bool = False
    """Whether its images are taken for prepared where they have the size."""


def located(source: str) -> Located:
    """What and where a source is: a folder that holds a table or arrays by their names is that."""
    if hub.is_name(source):
        return _from_hub(source, source)
    inside = None
    try:
        path = Path(source).expanduser()
        there = path.exists()
    except RuntimeError:  # ~ of a user that is not there
        there = False
    if not there:
        raise ValueError(f"{source} does not exist: give {KINDS}")
    if archives.is_archive(path):
        inside = archives.unpacked(path)
        path = _innermost(inside)
    if path.is_dir() and not idx.find(path):
        path = arrays.find(path) or _table(path) or path
    if hub.is_saved(path):
        return _from_hub(path, source)
    if not path.is_dir() and path.suffix.lower() not in arrays.SUFFIXES | manifests.SUFFIXES:
        raise ValueError(f"{source} is a file of another kind: give {KINDS}")
    return Located(path, inside, [f"{source}: unpacked into {inside}"] if inside else [])


def _from_hub(data_set: str | Path, source: str) -> Located:
    table, notes = hub.unpacked(data_set)
    inside = table.parent
    return Located(table, inside, [f"{source}: unpacked into {inside}", *notes])


def _table(folder: Path) -> Path | None:
    """The table of a folder's pictures. One of something else may lie beside class folders."""
    table = manifests.find(folder)
    if table and folders.has_folders(folder) and not manifests.has_columns(table):
        return None
    return table


def _innermost(folder: Path) -> Path:
    """What an archive is of, where it is of one file or folder; a folder of pictures is a class."""
    while len(held := folders.visible(folder)) == 1:
        (only,) = held
        if only.is_file():
            return only if only.suffix.lower() in arrays.SUFFIXES | manifests.SUFFIXES else folder
        is_class = any(map(folders.is_picture, folders.visible(only)))
        if folders.role_of(only) or (is_class and not manifests.find(only)):
            return folder
        folder = only
    return folder


def pieces(place: Path, inside: Path | None) -> tuple[list[Piece], list[tuple[Role | None, str]]]:
    """The parts of a source, one at least, and a line for each row of a table that is amiss.

    With each line comes the part that the row is of, None where that is not known.
    """
    if place.is_dir():
        found = idx.find(place)
        if not found:
            return [
                Piece(role, str(path), partial(folders.part, role, path))
                for role, path in folders.places(place)
            ], []
        parts: list[tuple[Role, str]] = [("train", "train")]
        parts += [("test", "test")] * ("test-images" in found)
        return [
            Piece(
                role,
                str(found.get(f"{part}-images")),
                partial(idx.read_part, place, found, part),
                as_is=True,
            )
            for role, part in parts
        ], []
    if place.suffix.lower() in arrays.SUFFIXES:
        sets = arrays.read(place)
        return [
            Piece(role, f"{place} ({role})", partial(sets.pop, role)) for role in list(sets)
        ], []
    listed, skipped = manifests.read(place, inside)
    return [Piece(part.role, part.origin, partial(_same, part)) for part in listed], skipped


def _same(part: Part) -> Part:
    return part


def flat(folder: Path) -> Piece:
    """All pictures in a folder and below it, whatever the folders in it are called."""
    return Piece("unlabelled", str(folder), partial(folders.part, "unlabelled", folder))


def classes(opened: ImageSet | Part) -> list[str]:
    """The names of the classes that occur."""
    if isinstance(opened, ImageSet):
        occurring = torch.unique(opened.labels[opened.labels >= 0]).tolist()
        return [opened.class_names[i] for i in occurring]
    names = {name for _, name in opened.files if name is not None}
    return sorted(names, key=folders.natural)


def ready(
    piece: Piece,
    opened: ImageSet | Part,
    names: Sequence[str],
    preparation: Preparation,
    other_classes: bool = False,
    on_row: OnRow | None = None,
) -> Read:
    """The images of a part as a model takes them, and a line for each file that was not read."""
    if isinstance(opened, ImageSet):
        images = matched(opened, names, piece.origin, other_classes)
        return Read(prepared(images, preparation, piece.as_is), [])
    if not other_classes:
        _check_known(classes(opened), names, piece.origin)
    return folders.read(opened, names, preparation, on_row)


def matched(
    images: ImageSet, class_names: Sequence[str], origin: str, other_classes: bool = False
) -> ImageSet:
    """The same images with labels numbered as in `class_names`, matched by name."""
    if not other_classes:
        _check_known(classes(images), class_names, origin)
    place = {name: number for number, name in enumerate(class_names)}
    # The last entry is the one that a label of -1 looks up.
    numbers = [place.get(name, UNLABELLED) for name in images.class_names] + [UNLABELLED]
    labels = torch.tensor(numbers)[images.labels]
    return replace(images, labels=labels, class_names=tuple(class_names))


def _check_known(occurring: Iterable[str], class_names: Sequence[str], origin: str) -> None:
    unknown = [name for name in occurring if name not in class_names]
    if unknown:
        raise ValueError(
            f"{origin} has classes that were not trained: {_some(unknown)}; trained were "
            f"{_some(class_names)}"
        )


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")


def prepared(images: ImageSet, preparation: Preparation, as_is: bool = False) -> ImageSet:
    """Arrays brought to a model's size and channels; those that fit stay as they are.

    as_is: digits that fit are those that have the size, whether or not they are light on black.
    """
    size = preparation.size
    if images.images.shape[1:] == (preparation.channels, size, size) and (
        as_is
        or preparation.kind != "digits"
        or all(map(is_prepared_digit, images.images[:, 0].numpy()))
    ):
        return images
    pictures = (
        Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
        for pixels in images.images.numpy()
    )
    stacked = np.stack([to_pixels(picture, preparation) for picture in pictures])
    return replace(images, images=torch.from_numpy(stacked))

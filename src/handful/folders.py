"""Folders of picture files: which files there are, how they are to be prepared, their pixels."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import torch
from PIL import Image

from handful.config import DataConfig
from handful.decoding import OnRow, decode, in_parallel
from handful.images import UNLABELLED, ImageSet
from handful.pictures import (
    LEVELS,
    SPLITS,
    Kind,
    Part,
    Preparation,
    Role,
    flatten,
    is_grey,
    is_prepared_digit,
    legible,
    open_image,
    white_of,
)

PICTURES = frozenset(
    {".apng", ".avif", ".bmp", ".dds", ".dib", ".gif", ".icns", ".ico", ".j2k", ".jfif", ".jp2"}
    | {".jpe", ".jpeg", ".jpg", ".jpx", ".pbm", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm"}
    | {".psd", ".qoi", ".rgb", ".sgi", ".tga", ".tif", ".tiff", ".webp", ".xbm", ".xpm"}
)
"""What Pillow reads without the help of other programs; films and what is rare aside."""
SAMPLED = 64  # files of a folder that decide how all of it is prepared

UNREADABLE = frozenset(
    {".arw", ".cr2", ".cr3", ".dng", ".eps", ".heic", ".heif", ".jxl", ".nef", ".orf", ".raf"}
    | {".rw2", ".svg"}
)
"""Pictures too, which other programs must convert first."""


class Read(NamedTuple):
    """What came out of a folder: the images, and a line for each file that could not be read."""

    images: ImageSet
    skipped: list[str]


def visible(folder: Path) -> list[Path]:
    """What a folder holds, hidden and system entries aside, `img2` before `img10`."""
    paths = (path for path in folder.iterdir() if not path.name.startswith("."))
    names = (path for path in paths if path.name != "__MACOSX")
    return sorted(names, key=lambda path: natural(path.name))


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """A key by which names sort as people count."""
    pieces = re.split(r"([0-9]+)", name.casefold())
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces], name


def has_folders(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_dir() for path in visible(folder))


def files(folder: Path, above: tuple[Path, ...] = ()) -> list[Path]:
    """Every file in a folder and below it, in natural order.

    above: the folders that links led out of. A link to what holds one of them leads nowhere new.
    """
    found: list[Path] = []
    for path in visible(folder):
        if not path.is_dir():
            found.append(path)
        elif not path.is_symlink():
            found += files(path, above)
        else:
            through, target = (*above, folder.resolve()), path.resolve()
            if not any(other.is_relative_to(target) for other in through):
                found += files(path, through)
    return found


def pictures(folder: Path) -> list[Path]:
    """Every picture file in a folder and below it, in natural order."""
    return [path for path in files(folder) if is_picture(path)]


def is_picture(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() in PICTURES


def matching(pattern: Path) -> list[Path]:
    """The pictures that a pattern with *, ? or [ matches, in natural order; else the path itself.

    Raises ValueError where a pattern matches none.
    """
    if not glob.has_magic(str(pattern)):
        return [pattern]
    # Path.glob takes no absolute pattern
    matches = map(Path, glob.iglob(str(pattern), recursive=True))  # noqa: PTH207
    found = [path for path in matches if is_picture(path) and path.is_file()]
    if not found:
        raise ValueError(f"no picture matches {pattern}")
    return sorted(found, key=lambda path: [natural(part) for part in path.parts])


def other_files(folder: Path) -> str:
    """How many files are no pictures, by their suffix; empty where all are."""
    kinds = Counter(path.suffix.lower() or "no suffix" for path in files(folder))
    others = [f"{count} {kind}" for kind, count in kinds.items() if kind not in PICTURES]
    return ", ".join(sorted(others))


def unreadable(folder: Path) -> list[str]:
    """A line for each picture of a kind that cannot be read."""
    return [
        f"cannot read {legible(path)}: save it as .png or .jpg"
        for path in files(folder)
        if path.suffix.lower() in UNREADABLE
    ]


def class_names(part: Path) -> list[str]:
    """The names of the class folders, naturally sorted.

    Raises ValueError where there are none, or where one has no picture.
    """
    names = [path.name for path in visible(part) if path.is_dir() and role_of(path) != "unlabelled"]
    if not names:
        raise ValueError(f"{part} has no class folders: make one folder of images for each class")
    for name in names:
        if not pictures(part / name):
            others = other_files(part / name)
            held = f"only files of other kinds ({others})" if others else "no images"
            raise ValueError(f"class folder {part / name} has {held}: add images or remove it")
    return names


def role_of(folder: Path) -> Role | None:
    """What the pictures in a folder are for, where its name says so."""
    return SPLITS.get(folder.name.casefold())


def places(folder: Path) -> list[tuple[Role, Path]]:
    """Where its parts are: train/, val/ and test/ with class folders, or the folder itself.

    unlabelled/, on top or in train/, is a part of its own. A class may be called train.
    Raises ValueError where parts lie beside class folders.
    """
    held = [path for path in visible(folder) if path.is_dir()]
    named = [(role, path) for path in held if (role := role_of(path))]
    found = sorted(
        (part for part in named if part[0] != "unlabelled"),
        key=lambda part: get_args(Role).index(part[0]),
    )
    if all(role == "train" and not has_folders(path) for role, path in found):
        found = [("train", folder)]
    elif other := next((path for path in held if not role_of(path) and pictures(path)), None):
        raise ValueError(
            f"{folder} has {other.name} beside {found[0][1].name}: put class folders into "
            "train/, or rename that one"
        )
    above = dict.fromkeys([folder, *(path for role, path in found if role == "train")])
    apart = (path for place in above for path in visible(place) if path.is_dir())
    return found + [("unlabelled", path) for path in apart if role_of(path) == "unlabelled"]


def part(role: Role, place: Path) -> Part:
    """The pictures there, by class unless they are unlabelled. Raises ValueError for none."""
    if role != "unlabelled":
        names = class_names(place)
        named = [(path, legible(name)) for name in names for path in pictures(place / name)]
        return Part(role, str(place), named)
    found = pictures(place)
    if not found:
        raise ValueError(f"{place} has no images")
    return Part(role, str(place), [(path, None) for path in found])


def read(
    part: Part, names: Sequence[str], preparation: Preparation, on_row: OnRow | None = None
) -> Read:
    """The pictures of a part, labels numbered as in `names`; those of other classes have none.

    on_row: called with rows that tell how far it is, where there are many.
    Raises ValueError where no file can be read, or none of a class.
    """
    number = {name: i for i, name in enumerate(names)}
    labels = [number.get(name or "", UNLABELLED) for _, name in part.files]
    paths = [path for path, _ in part.files]
    images, kept, skipped = decode(paths, preparation, on_row)
    found = Read(
        ImageSet.of(
            torch.from_numpy(images),
            torch.tensor([labels[i] for i in kept], dtype=torch.int64),
            names,
            [legible(paths[i]) for i in kept],
        ),
        skipped,
    )
    if not len(found.images):
        raise ValueError(f"{part.origin} has no readable image: {found.skipped[0]}")
    for label in sorted(set(labels) - {UNLABELLED} - set(found.images.labels.tolist())):
        first = next(path for path, name in part.files if name == names[label])
        reason = next(line for line in found.skipped if legible(first) in line)
        raise ValueError(f"class {names[label]} of {part.origin} has no readable image: {reason}")
    return found


def spread(n: int) -> list[int]:
    """At most SAMPLED positions, evenly spread over n."""
    return sorted({int(i) for i in np.linspace(0, n - 1, min(n, SAMPLED))})


class _Facts(NamedTuple):
    side: int
    grey: bool
    mnist: bool
    white: int | None


def preparation_for(paths: Sequence[Path], config: DataConfig) -> Preparation:
    """How pictures are prepared: as the configuration asks, else as a sample of them suggests.

    `auto` takes grey 28 × 28 pictures on pure black for digits. Without a size it is 28 for digits,
    else the median of the longer sides, between 28 and 128 and a multiple of 4. White of pictures
    of 16 bits is the lowest usual level that all of them keep to.
    """
    sample = [_facts(image) for i in spread(len(paths)) if (image := _opened(paths[i]))]
    grey = bool(sample) and all(facts.grey for facts in sample)
    mnist = bool(sample) and all(facts.mnist for facts in sample)
    kind: Kind = "crop" if config.prepare == "crop" else "letterbox"
    if config.prepare == "digits" or (config.prepare == "auto" and mnist):
        kind = "digits"
    side = float(np.median([facts.side for facts in sample] or [28]))
    usual = 28 if kind == "digits" else 4 * round(min(max(side, 28), 128) / 4)
    white = _highest(facts.white for facts in sample)
    if white not in (None, LEVELS[-1]) and len(paths) > SAMPLED:
        white = _highest(in_parallel(_white, paths))
    return Preparation(kind, config.size or usual, 1 if grey or kind == "digits" else 3, white)


def _highest(whites: Iterable[int | None]) -> int | None:
    return max((white for white in whites if white is not None), default=None)


def _opened(path: Path) -> Image.Image | None:
    try:
        return open_image(path)
    except ValueError:
        return None  # reported, with its reason, when every file is read


def _white(path: Path) -> int | None:
    image = _opened(path)
    return white_of(image) if image else None


def _facts(image: Image.Image) -> _Facts:
    white = white_of(image)
    flat = flatten(image, white)
    grey = is_grey(flat)
    mnist = grey and image.size == (28, 28) and is_prepared_digit(np.asarray(flat.convert("L")))
    return _Facts(max(image.size), grey, mnist, white)

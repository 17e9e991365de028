"""Folders of picture files: which files there are, how they are to be prepared, their pixels."""

from __future__ import annotations

import glob
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from handful.config import DataConfig
from handful.images import UNLABELLED, ImageSet
from handful.pictures import Preparation, is_grey, is_prepared_digit, open_image, to_pixels

PICTURES = frozenset(
    {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"}
    | {".tif", ".tiff", ".webp"}
)
UNLABELLED_NAMES = ("unlabelled", "unlabeled")
SAMPLED = 64  # files of a folder that decide how all of it is prepared
MANY = 2000  # files from which on reading takes so long that people want to know how far it is

OnRow = Callable[[dict[str, Any]], None]


class Read(NamedTuple):
    """What came out of a folder: the images, and a line for each file that could not be read."""

    images: ImageSet
    skipped: list[str]


def visible(folder: Path) -> list[Path]:
    """What a folder holds, hidden and system entries aside, `img2` before `img10`."""
    names = (path for path in folder.iterdir() if not path.name.startswith((".", "__")))
    return sorted(names, key=lambda path: (_natural(path.name), path.name))


def _natural(name: str) -> list[tuple[int, str]]:
    pieces = re.split(r"([0-9]+)", name.casefold())
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces]


def has_folders(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_dir() for path in visible(folder))


def files(folder: Path) -> list[Path]:
    """Every file in a folder and below it, in natural order."""
    found: list[Path] = []
    for path in visible(folder):
        found += files(path) if path.is_dir() else [path]
    return found


def pictures(folder: Path) -> list[Path]:
    """Every picture file in a folder and below it, in natural order."""
    return [path for path in files(folder) if path.suffix.lower() in PICTURES]


def matching(pattern: Path) -> list[Path]:
    """The files that a pattern with *, ? or [ matches, in natural order; else the path itself.

    Raises ValueError where a pattern matches none.
    """
    if not glob.has_magic(str(pattern)):
        return [pattern]
    # Path.glob takes no absolute pattern
    matches = map(Path, glob.iglob(str(pattern), recursive=True))  # noqa: PTH207
    found = [path for path in matches if path.is_file()]
    if not found:
        raise ValueError(f"no file matches {pattern}")
    return sorted(found, key=lambda path: [(_natural(part), part) for part in path.parts])


def other_files(folder: Path) -> str:
    """How many files are no pictures, by their suffix; empty where all are."""
    kinds = Counter(path.suffix.lower() or "no suffix" for path in files(folder))
    others = [f"{count} {kind}" for kind, count in kinds.items() if kind not in PICTURES]
    return ", ".join(sorted(others))


def class_names(part: Path) -> list[str]:
    """The names of the class folders, naturally sorted.

    Raises ValueError where there are none, or where one has no picture.
    """
    names = [
        path.name for path in visible(part) if path.is_dir() and path.name not in UNLABELLED_NAMES
    ]
    if not names:
        raise ValueError(f"{part} has no class folders: make one folder of images for each class")
    for name in names:
        if not pictures(part / name):
            others = other_files(part / name)
            held = f"only files of other kinds ({others})" if others else "no images"
            raise ValueError(f"class folder {part / name} has {held}: add images or remove it")
    return names


def unlabelled(*places: Path) -> list[Path]:
    """The folders of pictures without labels that lie in these places, each once."""
    inside = (place / name for place in places for name in UNLABELLED_NAMES)
    return [folder for folder in dict.fromkeys(inside) if folder.is_dir()]


def read_classes(
    part: Path, names: Sequence[str], preparation: Preparation, on_row: OnRow | None = None
) -> Read:
    """The pictures of all class folders, labelled by their folder.

    on_row: called with rows that tell how far it is, where there are many.
    Raises ValueError for a class none of whose files can be read.
    """
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        of_class = pictures(part / name)
        paths += of_class
        labels += [label] * len(of_class)
    read = _decode(paths, labels, names, preparation, on_row)
    for label, name in enumerate(names):
        if not (read.images.labels == label).any():
            reason = next(line for line in read.skipped if str(part / name) in line)
            raise ValueError(f"class folder {part / name} has no readable image: {reason}")
    return read


def read_unlabelled(
    folder: Path, names: Sequence[str], preparation: Preparation, on_row: OnRow | None = None
) -> Read:
    """All pictures in a folder and below it, without labels. Raises ValueError for none.

    on_row: as `read_classes` has it.
    """
    paths = pictures(folder)
    if not paths:
        raise ValueError(f"{folder} has no images")
    read = _decode(paths, [UNLABELLED] * len(paths), names, preparation, on_row)
    if not len(read.images):
        raise ValueError(f"{folder} has no readable image: {read.skipped[0]}")
    return read


def _decode(
    paths: Sequence[Path],
    labels: Sequence[int],
    names: Sequence[str],
    preparation: Preparation,
    on_row: OnRow | None,
) -> Read:
    def pixels(path: Path) -> NDArray[np.uint8] | str:
        try:
            return to_pixels(open_image(path), preparation)
        except ValueError as error:
            return str(error)

    shape = (len(paths), preparation.channels, preparation.size, preparation.size)
    images = np.empty(shape, np.uint8)
    kept: list[int] = []
    skipped: list[str] = []
    began = time.monotonic()
    # Threads, not processes: Pillow's decoders leave Python's lock while they work.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for i, found in enumerate(pool.map(pixels, paths)):
            if isinstance(found, str):
                skipped.append(found)
            else:
                images[len(kept)] = found
                kept.append(i)
            if on_row and len(paths) >= MANY:
                done = {"step": i + 1, "steps": len(paths)}
                on_row({"stage": "read", **done, "seconds": time.monotonic() - began})
    return Read(
        ImageSet.of(
            torch.from_numpy(images[: len(kept)]),
            torch.tensor([labels[i] for i in kept], dtype=torch.int64),
            names,
            [str(paths[i]) for i in kept],
        ),
        skipped,
    )


def spread(n: int) -> list[int]:
    """At most SAMPLED positions, evenly spread over n."""
    return sorted({int(i) for i in np.linspace(0, n - 1, min(n, SAMPLED))})


class _Facts(NamedTuple):
    side: int
    grey: bool
    mnist: bool


def preparation_for(paths: Sequence[Path], config: DataConfig) -> Preparation:
    """How pictures are prepared: as the configuration asks, else as a sample of them suggests.

    `auto` takes grey 28 × 28 pictures on pure black for digits. Without a size it is 28 for digits,
    else the median of the longer sides, between 28 and 128 and a multiple of 4.
    """
    sample = [facts for i in spread(len(paths)) if (facts := _facts(paths[i]))]
    grey = bool(sample) and all(facts.grey for facts in sample)
    mnist = bool(sample) and all(facts.mnist for facts in sample)
    kind: Literal["digits", "letterbox"] = "letterbox"
    if config.prepare == "digits" or (config.prepare == "auto" and mnist):
        kind = "digits"
    side = float(np.median([facts.side for facts in sample] or [28]))
    usual = 28 if kind == "digits" else 4 * round(min(max(side, 28), 128) / 4)
    return Preparation(kind, config.size or usual, 1 if grey or kind == "digits" else 3)


def _facts(path: Path) -> _Facts | None:
    try:
        image = open_image(path)
    except ValueError:
        return None  # reported, with its reason, when every file is read
    grey = is_grey(image)
    mnist = grey and image.size == (28, 28) and is_prepared_digit(np.asarray(image.convert("L")))
    return _Facts(max(image.size), grey, mnist)

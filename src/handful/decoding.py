"""Picture files to one array of pixels: in parallel, and kept where there are many of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import PIL
from numpy.typing import NDArray

from handful import pictures, storage
from handful.pictures import Bytes, Preparation, open_image, to_pixels

MANY = 2000
"""Files from which on reading takes so long that people want to know how far it is, and that a
second run should be spared it."""
MOST_KEPT = 2**34
"""Bytes of pixels that are kept; what was not asked for longest is removed first."""
IMAGES, KEPT = "images.npy", "kept.npy"

OnRow = Callable[[dict[str, Any]], None]
T = TypeVar("T")


class Decoded(NamedTuple):
    """Pixels uint8 (K, C, H, W), which files they are of, and a line for each of the others."""

    images: NDArray[np.uint8]
    kept: list[int]
    skipped: list[str]


def decode(paths: Sequence[Path], preparation: Preparation, on_row: OnRow | None = None) -> Decoded:
    """Every picture, prepared.

    Those of many files are kept in the cache folder, under a name that their content and the
    preparation give them: the next time the files are read and compared, not decoded.
    on_row: called with rows that tell how far it is, where there are many.
    """
    if len(paths) < MANY:
        return _decoded(paths, preparation, None)
    place = _place(paths, preparation)
    if place.is_dir():
        try:
            return _held(place, paths, preparation)
        except (OSError, ValueError, EOFError):  # damaged
            shutil.rmtree(place, ignore_errors=True)
    found = _decoded(paths, preparation, on_row)
    with suppress(OSError):  # no room, or no right to write there
        _keep(place, found)
    return found


def in_parallel(function: Callable[[Path], T], paths: Iterable[Path]) -> Iterator[T]:
    # Threads, not processes: Pillow's decoders leave Python's lock while they work.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(function, paths)


def _decoded(paths: Sequence[Path], preparation: Preparation, on_row: OnRow | None) -> Decoded:
    def pixels(path: Path) -> Bytes | str:
        try:
            return to_pixels(open_image(path), preparation)
        except ValueError as error:
            return str(error)

    shape = (len(paths), preparation.channels, preparation.size, preparation.size)
    images = storage.empty(shape)
    kept: list[int] = []
    skipped: list[str] = []
    began = time.monotonic()
    for i, found in enumerate(in_parallel(pixels, paths)):
        if isinstance(found, str):
            skipped.append(found)
        else:
            images[len(kept)] = found
            kept.append(i)
        if on_row:
            done = {"step": i + 1, "steps": len(paths)}
            on_row({"stage": "read", **done, "seconds": time.monotonic() - began})
    return Decoded(images[: len(kept)], kept, skipped)


def _place(paths: Sequence[Path], preparation: Preparation) -> Path:
    """By what the pixels depend on: content and order of the files, and what prepares them."""
    made_by = Path(pictures.__file__).read_bytes(), PIL.__version__.encode()
    settings = json.dumps(preparation.as_dict()).encode()
    return storage.place("decoded", [settings, *made_by, *in_parallel(_content, paths)])


def _content(path: Path) -> bytes:
    """A digest; nothing of what cannot be read, or is no file, which may be waited for."""
    try:
        if path.is_file():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        pass
    return b""


def _keep(place: Path, found: Decoded) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    _make_room(place.parent, found.images.nbytes)
    with storage.filling(place) as folder:
        np.save(folder / IMAGES, found.images)
        np.save(folder / KEPT, np.array(found.kept, np.int64))


def _make_room(folder: Path, needed: int) -> None:
    """Raises OSError where the disk has none, or where it would be all that is kept and more."""
    if needed > min(MOST_KEPT, shutil.disk_usage(folder).free * 0.9):
        raise OSError(f"no room in {folder}")
    held = sorted(folder.glob("decoded-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    total = needed
    for path in held:
        total += sum(file.stat().st_size for file in path.iterdir())
        if total > MOST_KEPT:
            shutil.rmtree(path, ignore_errors=True)


def _held(place: Path, paths: Sequence[Path], preparation: Preparation) -> Decoded:
    """What lies there. What could not be read is tried again, for its reason.

    Raises ValueError where it can be read now, or what lies there is damaged.
    """
    with suppress(OSError):  # somebody else's
        os.utime(place)
    kept = np.load(place / KEPT, allow_pickle=False).tolist()
    # mapped, since whoever takes it copies it; written to, it stays as it is
    images = np.load(place / IMAGES, mmap_mode="c", allow_pickle=False)
    others = [paths[i] for i in sorted(set(range(len(paths))) - set(kept))]
    skipped = _decoded(others, preparation, None).skipped
    if len(images) != len(kept) or len(skipped) != len(others):
        raise ValueError(f"{place} is not of these files")
    return Decoded(images, kept, skipped)

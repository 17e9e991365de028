"""Picture files to one array of pixels: in parallel, and kept where there are many of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import PIL
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from handful import pictures
from handful.devices import cache_folder
from handful.pictures import Bytes, Preparation, open_image, to_pixels

MANY = 2000
"""Files from which on reading takes so long that people want to know how far it is, and that a
second run should be spared it."""
MOST_KEPT = 2**34
"""Bytes of pixels that are kept; what was not asked for longest is removed first."""
IMAGES, KEPT = "images.npy", "kept.npy"
DAY = 86_400  # seconds after which nobody is decoding any more

OnRow = Callable[[dict[str, Any]], None]
T = TypeVar("T")


class Decoded(NamedTuple):
    """Pixels uint8 (K, C, H, W), which files they are of, and a line for each of the others."""

    images: NDArray[np.uint8]
    kept: list[int]
    skipped: list[str]


def decode(paths: Sequence[Path], preparation: Preparation, on_row: OnRow | None = None) -> Decoded:
    """Every picture, prepared.

    Those of many files lie in the cache folder, under a name that their content and the preparation
    give them: decoded once, then mapped into memory from there as they are needed.
    on_row: called with rows that tell how far it is, where there are many.
    """
    if len(paths) < MANY:
        return _decoded(paths, preparation, np.empty(_shape(paths, preparation), np.uint8), None)
    place = cache_folder() / f"decoded-{_name(paths, preparation)}"
    try:
        if not place.is_dir():
            _keep(place, paths, preparation, on_row)
        return _held(place, paths, preparation)
    except (OSError, ValueError):  # no room, no right to write there, or damaged
        shutil.rmtree(place, ignore_errors=True)
    return _decoded(paths, preparation, np.empty(_shape(paths, preparation), np.uint8), on_row)


def _shape(paths: Sequence[Path], preparation: Preparation) -> tuple[int, int, int, int]:
    return len(paths), preparation.channels, preparation.size, preparation.size


def _in_parallel(function: Callable[[Path], T], paths: Iterable[Path]) -> Iterator[T]:
    # Threads, not processes: Pillow's decoders leave Python's lock while they work.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(function, paths)


def _decoded(
    paths: Sequence[Path], preparation: Preparation, images: Bytes, on_row: OnRow | None
) -> Decoded:
    """Decode into `images` (N, C, H, W), of which the first K are filled."""

    def pixels(path: Path) -> Bytes | str:
        try:
            return to_pixels(open_image(path), preparation)
        except ValueError as error:
            return str(error)

    kept: list[int] = []
    skipped: list[str] = []
    began = time.monotonic()
    for i, found in enumerate(_in_parallel(pixels, paths)):
        if isinstance(found, str):
            skipped.append(found)
        else:
            images[len(kept)] = found
            kept.append(i)
        if on_row:
            done = {"step": i + 1, "steps": len(paths)}
            on_row({"stage": "read", **done, "seconds": time.monotonic() - began})
    return Decoded(images[: len(kept)], kept, skipped)


def _name(paths: Sequence[Path], preparation: Preparation) -> str:
    """What the pixels depend on: content and order of the files, and what prepares them."""
    made_by = Path(pictures.__file__).read_bytes(), PIL.__version__.encode()
    settings = json.dumps(preparation.as_dict()).encode()
    parts = [settings, *made_by, *_in_parallel(_content, paths)]
    digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts))
    return digest.hexdigest()[:24]


def _content(path: Path) -> bytes:
    """A digest; nothing of what cannot be read, or is no file, which may be waited for."""
    try:
        if path.is_file():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        pass
    return b""


def _keep(
    place: Path, paths: Sequence[Path], preparation: Preparation, on_row: OnRow | None
) -> None:
    """Decode into a folder beside the place first: whoever finds that finds all of it."""
    shape = _shape(paths, preparation)
    place.parent.mkdir(parents=True, exist_ok=True)
    _make_room(place.parent, int(np.prod(shape)))
    with tempfile.TemporaryDirectory(prefix=".decoded-", dir=place.parent) as made:
        images = open_memmap(Path(made) / IMAGES, mode="w+", dtype=np.uint8, shape=shape)
        found = _decoded(paths, preparation, images, on_row)
        images.flush()
        np.save(Path(made) / KEPT, np.array(found.kept, np.int64))
        del found, images  # no system renames what is mapped
        whole = Path(made) / "whole"
        whole.mkdir()
        for name in (IMAGES, KEPT):
            (Path(made) / name).replace(whole / name)
        try:
            whole.rename(place)
        except OSError:
            if not place.is_dir():  # else another run was faster
                raise


def _make_room(folder: Path, needed: int) -> None:
    """Raises OSError where the disk has none."""
    for left in folder.glob(".decoded-*"):  # by runs that were killed
        with suppress(OSError):
            if left.stat().st_mtime < time.time() - DAY:
                shutil.rmtree(left)
    held = sorted(folder.glob("decoded-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    total = needed
    for path in held:
        total += sum(file.stat().st_size for file in path.iterdir())
        if total > MOST_KEPT:
            shutil.rmtree(path, ignore_errors=True)
    if needed > shutil.disk_usage(folder).free * 0.9:
        raise OSError(f"no room in {folder}")


def _held(place: Path, paths: Sequence[Path], preparation: Preparation) -> Decoded:
    """What lies there. What could not be read is tried again, for its reason."""
    os.utime(place)
    kept = np.load(place / KEPT, allow_pickle=False).tolist()
    # copied where it is written to: what is kept stays as it is
    images = np.load(place / IMAGES, mmap_mode="c", allow_pickle=False)[: len(kept)]
    others = [paths[i] for i in sorted(set(range(len(paths))) - set(kept))]
    scratch = np.empty(_shape(others, preparation), np.uint8)
    return Decoded(images, kept, _decoded(others, preparation, scratch, None).skipped)

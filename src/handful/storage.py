"""What lies on disk beside the runs: folders kept from run to run, and images too many for memory.

Folders are named by what they hold, and there whole or not at all.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

MARK = ".files"  # written last: how many files there were
DAY = 86_400  # seconds after which nobody is filling a folder any more
IN_MEMORY = 2**31
"""Bytes of an array that are held in memory; of more each is read from disk where it is used."""


def cache_folder() -> Path:
    """Where all that is: `HANDFUL_CACHE`, else where this system keeps such things."""
    chosen = os.environ.get("HANDFUL_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("handful", appauthor=False)


def is_large(size: int) -> bool:
    """Whether so many bytes are kept out of memory."""
    return size > IN_MEMORY


def empty(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Bytes to be filled; many are those of a file that is gone with the array.

    Raises ValueError where there is no room for that file.
    """
    size = math.prod(shape)
    if not is_large(size):
        return np.empty(shape, np.uint8)
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            _take(file.fileno(), size)
        except OSError:
            free = shutil.disk_usage(folder).free
            raise ValueError(
                f"{size:,} bytes of pixels need as much room in {folder}, which has {free:,}: "
                "choose another folder with HANDFUL_CACHE, or a smaller data.size"
            ) from None
        return np.memmap(file, np.uint8, "r+", shape=shape)


def _take(file: int, size: int) -> None:
    """Make a file so long, with all the room that it needs: who writes without it is killed."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.ftruncate(file, size)


def place(kind: str, parts: Iterable[bytes]) -> Path:
    """Where in the cache the folder lies that these parts, in this order, make."""
    digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts))
    return cache_folder() / f"{kind}-{digest.hexdigest()[:24]}"


def is_whole(place: Path) -> bool:
    """Whether all files are there that there were."""
    mark = place / MARK
    return mark.is_file() and mark.read_text() == _count(place)


@contextmanager
def filling(place: Path) -> Iterator[Path]:
    """An empty folder beside `place`: it takes that name once it was filled without an error.

    Whoever finds `place` finds all of it; where another run was faster, what that one made.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    _sweep(place)
    with tempfile.TemporaryDirectory(
        prefix=f".{place.name}-", dir=place.parent, ignore_cleanup_errors=True
    ) as partial:
        filled = Path(partial) / place.name  # others may read it: the one around it is private
        filled.mkdir()
        yield filled
        (filled / MARK).write_text(_count(filled))
        try:
            filled.rename(place)
        except OSError:
            if is_whole(place):
                return
            shutil.rmtree(place, ignore_errors=True)
            filled.rename(place)


def _count(place: Path) -> str:
    """How many files there are; hidden ones are other programs'."""
    files = (file for file in place.rglob("*") if not file.name.startswith("."))
    return str(sum(file.is_file() for file in files))


def _sweep(place: Path) -> None:
    """Remove what runs that were killed left."""
    kind = place.name.partition("-")[0]
    for left in place.parent.glob(f".{kind}-*"):
        with suppress(OSError):
            if left.stat().st_mtime < time.time() - DAY:
                shutil.rmtree(left)

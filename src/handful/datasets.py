"""Everything becomes an ImageSet: the bundled mnist50, idx files, folders of pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from handful import folders, idx
from handful.config import DataConfig
from handful.folders import OnRow
from handful.images import UNLABELLED, ImageSet, concatenate
from handful.pictures import Preparation, is_prepared_digit, to_pixels

OFFICIAL = "official test set"
NAMED = 5  # unreadable files that the notes name; the rest are counted


@dataclass(frozen=True, eq=False)
class Dataset:
    """What a source holds.

    train: labelled and, where the source has some, unlabelled images.
    test: None where the source has no test split. No source number of it occurs in `train`.
    test_of: what the test split is, for people; empty where there is none.
    notes: lines for people: what was found, what was skipped and why.
    """

    train: ImageSet
    test: ImageSet | None
    test_of: str
    preparation: Preparation
    notes: tuple[str, ...]


def load(config: DataConfig, on_row: OnRow | None = None) -> Dataset:
    """The images that `config.source` names.

    on_row: called with rows that tell how far the reading of many files is.
    Raises ValueError with one line naming the folder, file or class that is amiss.
    """
    dataset = _source(config, on_row)
    return dataset if config.pool is None else _with_pool(dataset, config.pool, on_row)


def _source(config: DataConfig, on_row: OnRow | None) -> Dataset:
    if config.source == "mnist50":
        return _bundled(config)
    folder = _folder(config.source)
    if idx.find(folder):
        dataset = _idx_dataset(folder, config)
    else:
        dataset = _folder_dataset(folder, config, on_row)
    if len(dataset.train.class_names) < 2:
        raise ValueError(
            f"{folder} has one class only, {dataset.train.class_names[0]}: a classifier needs two"
        )
    return dataset


def _with_pool(dataset: Dataset, pool: str, on_row: OnRow | None) -> Dataset:
    """The same with the images in the folder `pool` as unlabelled ones.

    What the source has already is left out: its test images must not train anything, and a labelled
    image is no second one because it lies in two places.
    """
    folder, names = _folder(pool), dataset.train.class_names
    unreadable: list[str]
    found = idx.find(folder)
    if found:
        images = _matched(_read_idx_part(folder, found, "train"), names, pool, other_classes=True)
        images, unreadable = _prepared(images, dataset.preparation), []
    else:
        images, unreadable = folders.read_unlabelled(folder, names, dataset.preparation, on_row)
    held = [dataset.train] if dataset.test is None else [dataset.train, dataset.test]
    known = np.concatenate([part.fingerprints() for part in held])
    values, once = np.unique(images.fingerprints(), return_index=True)
    new = torch.from_numpy(np.sort(once[~np.isin(values, known)]))
    all_of_it, images = len(images), images.select(new).without_labels()
    first = 1 + max(int(part.sources.max()) for part in held if len(part))
    paths = images.paths or ("",) * len(images)
    images = replace(images, sources=torch.arange(len(images)) + first, paths=paths)
    train = concatenate([dataset.train, images]) if len(images) else dataset.train
    note = f"pool: {len(images):,} images in {folder}"
    if len(images) < all_of_it:
        note += f"; {all_of_it - len(images):,} that are there twice or in the source are left out"
    notes = (*dataset.notes, note, *_unreadable(unreadable))
    return replace(dataset, train=train, notes=notes)


def load_images(
    source: str,
    preparation: Preparation,
    class_names: Sequence[str],
    *,
    other_classes: bool = False,
    on_row: OnRow | None = None,
) -> tuple[ImageSet, str]:
    """Images to try a model on, prepared as its own were, with labels numbered as its classes.

    source: `mnist50` or a directory with a test split (that split is taken), any other directory of
    idx files or folder of class folders (all of it), or a folder of pictures (unlabelled).
    on_row: as `load` has it. With the images comes what they are of the source, for people.

    Raises ValueError as `load` does, for files that cannot be read and for class names that are not
    among `class_names`; with `other_classes`, images of such classes are unlabelled instead.
    """
    if source == "mnist50":
        images = _bundled(DataConfig()).test
        assert images is not None
        images = _matched(images, class_names, source, other_classes)
        return _prepared(images, preparation), "MNIST's official test images"
    folder = _folder(source)
    found = idx.find(folder)
    if found:
        part = "test" if "test-images" in found else "train"
        images = _matched(_read_idx_part(folder, found, part), class_names, source, other_classes)
        return _prepared(images, preparation), f"all of {found[f'{part}-images']}"
    parts = [folder / name for name in ("test", "train") if folders.has_folders(folder / name)]
    root = parts[0] if parts else folder
    if folders.has_folders(root):
        names = folders.class_names(root)
        images, skipped = folders.read_classes(root, names, preparation, on_row)
    else:
        images, skipped = folders.read_unlabelled(root, class_names, preparation, on_row)
    if skipped:
        count = f"{len(skipped)} file{'s' * (len(skipped) > 1)} of {source} cannot be read"
        raise ValueError(f"{count}, repair or remove: {skipped[0]}")
    return _matched(images, class_names, source, other_classes), f"all of {root}"


def fetch_mnist(out: Path) -> None:
    """Put MNIST's four official files, gzipped, into the folder `out`; fetched through OpenML.

    Official files that are there already are kept, and nothing is fetched.
    Raises ValueError where OpenML cannot be reached, sends something else, or `out` is unwritable.
    """
    if all(_is_official(out / f"{name}.gz", digest) for name, digest in idx.MNIST_SHA256.items()):
        return
    from sklearn.datasets import fetch_openml  # costs a second that only this command should pay

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder {out}: {error.strerror}") from None
    try:
        fetched = fetch_openml("mnist_784", version=1, as_frame=False, parser="liac-arff")
    except OSError as error:
        raise ValueError(f"cannot fetch MNIST from OpenML, is there internet? ({error})") from None
    images = fetched.data.astype(np.uint8).reshape(-1, 28, 28)
    labels = fetched.target.astype(np.uint8)
    parts = (images[:60_000], labels[:60_000], images[60_000:], labels[60_000:])
    for (name, digest), array in zip(idx.MNIST_SHA256.items(), parts, strict=True):
        if idx.sha256(array) != digest:
            raise ValueError(f"what OpenML sent is not the official {name}: try again later")
    try:
        for name, array in zip(idx.MNIST_SHA256, parts, strict=True):
            idx.write_idx(out / f"{name}.gz", array)
    except OSError as error:
        raise ValueError(f"cannot write into {out}: {error.strerror}") from None


def scores_on_mnist(source: str) -> bool:
    """Whether the test images of a source are MNIST's official ones."""
    if source == "mnist50":
        return True
    name = "t10k-images-idx3-ubyte"
    found = idx.find(_folder(source)).get("test-images")
    return found is not None and _is_official(found, idx.MNIST_SHA256[name])


def _is_official(path: Path, digest: str) -> bool:
    try:
        return idx.sha256(idx.read_idx(path)) == digest
    except ValueError:
        return False


def _folder(source: str) -> Path:
    folder = Path(source).expanduser()
    if not folder.exists():
        raise ValueError(
            f"{source} does not exist: give mnist50, a directory of idx files or a folder of "
            "class folders"
        )
    if not folder.is_dir():
        raise ValueError(f"{source} is a file: give the folder that holds the images")
    return folder


def _bundled(config: DataConfig) -> Dataset:
    """Sources are MNIST's own numbers: places in the training order, then the test images."""
    if config.size not in (None, 28):
        raise ValueError(f"data.size = {config.size}: mnist50 has 28 × 28 images; leave it out")
    with (
        resources.as_file(resources.files("handful") / "data" / "mnist50.npz") as path,
        np.load(path, allow_pickle=False) as arrays,
    ):
        stored = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    names = [str(digit) for digit in range(10)]
    train = ImageSet.of(stored["train_images"][:, None], stored["train_labels"], names)
    train = replace(train, sources=stored["train_index"].long())
    test = ImageSet.of(stored["test_images"][:, None], stored["test_labels"], names)
    test = replace(test, sources=test.sources + 60_000)
    note = "mnist50: the first 50 training images of each class and the 10,000 official test images"
    return Dataset(train, test, OFFICIAL, Preparation("digits", 28, 1), (note,))


def _idx_dataset(folder: Path, config: DataConfig) -> Dataset:
    found = idx.find(folder)
    train = _read_idx_part(folder, found, "train")
    test, test_of, notes = None, "", [f"{folder}: {train.describe()}"]
    side = train.size[0]
    if config.size not in (None, side):
        raise ValueError(
            f"data.size = {config.size}: the idx images are {side} × {side} and stay so; "
            "leave it out"
        )
    sample = train.images[folders.spread(len(train)), 0].numpy()
    if config.dev:
        first = len(train) - len(train) // 6
        positions = torch.arange(len(train))
        train, test = train.select(positions[:first]), train.select(positions[first:])
        test_of = f"training images from number {first:,} on"
        notes.append(f"development: scored on {test_of}; the test files stay shut")
    elif "test-images" in found:
        test = _read_idx_part(folder, found, "test")
        if test.size != train.size:
            raise ValueError(f"{folder}: training images are {train.size}, test images {test.size}")
        test = _matched(test, train.class_names, str(found["test-labels"]))
        test, test_of = replace(test, sources=test.sources + len(train)), OFFICIAL
        notes.append(f"test: {len(test):,} images")
    digits = config.prepare == "digits" or (
        config.prepare == "auto" and all(map(is_prepared_digit, sample))
    )
    preparation = Preparation("digits" if digits else "letterbox", side, 1)
    return Dataset(train, test, test_of, preparation, tuple(notes))


def _read_idx_part(folder: Path, found: dict[str, Path], part: str) -> ImageSet:
    """The images of one part; their classes are the numbers that occur in its labels."""
    for kind in ("images", "labels"):
        if f"{part}-{kind}" not in found:
            raise ValueError(f"{folder} has idx files, but no {part} {kind} among them")
    image_path, label_path = found[f"{part}-images"], found[f"{part}-labels"]
    images, labels = idx.read_idx(image_path), idx.read_idx(label_path)
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


def _folder_dataset(folder: Path, config: DataConfig, on_row: OnRow | None) -> Dataset:
    if config.dev:
        raise ValueError(f"--dev needs a directory of idx files, and {folder} has none")
    divided = folders.has_folders(folder / "train")
    if not divided and folders.has_folders(folder / "test"):
        raise ValueError(f"{folder} has test/ with class folders but no train/ with class folders")
    root = folder / "train" if divided else folder
    names = folders.class_names(root)
    paths = [path for name in names for path in folders.pictures(root / name)]
    preparation = folders.preparation_for(paths, config)
    train, skipped = folders.read_classes(root, names, preparation, on_row)
    test, notes = None, [f"{folder}: {train.describe()}"]
    if divided and (folder / "test").is_dir():
        test_names = folders.class_names(folder / "test")
        test, more = folders.read_classes(folder / "test", test_names, preparation, on_row)
        test = _matched(test, names, str(folder / "test"))
        skipped += more
        notes.append(f"test: {len(test):,} images")
    for extra in folders.unlabelled(folder, root):
        images, more = folders.read_unlabelled(extra, names, preparation, on_row)
        train = concatenate([train, replace(images, sources=images.sources + len(train))])
        skipped += more
        notes.append(f"unlabelled: {len(images):,} images in {extra}")
    if test is not None:
        test = replace(test, sources=test.sources + len(train))
    test_of = f"images in {folder.resolve().name}/test" if test is not None else ""
    notes += _left_out(folder, skipped)
    return Dataset(train, test, test_of, preparation, tuple(notes))


def _left_out(folder: Path, skipped: list[str]) -> list[str]:
    """Notes on the files that are no pictures and on those that could not be read."""
    others = folders.other_files(folder)
    return [f"not pictures: {others}"] * bool(others) + _unreadable(skipped)


def _unreadable(skipped: Sequence[str]) -> list[str]:
    notes = [f"skipped: {reason}" for reason in skipped[:NAMED]]
    if len(skipped) > NAMED:
        notes.append(f"skipped: {len(skipped) - NAMED} more unreadable files")
    return notes


def _matched(
    images: ImageSet, class_names: Sequence[str], origin: str, other_classes: bool = False
) -> ImageSet:
    """The same images with labels numbered as in `class_names`, matched by name."""
    place = {name: number for number, name in enumerate(class_names)}
    occurring = torch.unique(images.labels[images.labels >= 0]).tolist()
    unknown = [name for i in occurring if (name := images.class_names[i]) not in place]
    if unknown and not other_classes:
        raise ValueError(
            f"{origin} has classes that were not trained: {_some(unknown)}; trained were "
            f"{_some(class_names)}"
        )
    # The last entry is the one that a label of -1 looks up.
    numbers = [place.get(name, UNLABELLED) for name in images.class_names] + [UNLABELLED]
    labels = torch.tensor(numbers)[images.labels]
    return replace(images, labels=labels, class_names=tuple(class_names))


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")


def _prepared(images: ImageSet, preparation: Preparation) -> ImageSet:
    """Grey arrays brought to a model's size and channels; those that fit stay as they are."""
    if images.images.shape[1:] == (preparation.channels, preparation.size, preparation.size):
        return images
    pictures = (Image.fromarray(pixels) for pixels in images.images[:, 0].numpy())
    arrays = np.stack([to_pixels(picture, preparation) for picture in pictures])
    return replace(images, images=torch.from_numpy(arrays))

"""Everything becomes an ImageSet: mnist50, and whatever else a source may be."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from handful import folders, idx, manifests, sources
from handful.config import DataConfig
from handful.decoding import OnRow
from handful.images import ImageSet, concatenate, first_of
from handful.pictures import Kind, Part, Preparation, Role, is_prepared_digit, legible
from handful.sources import Piece

OFFICIAL = "official test set"
NAMED = 5  # things amiss that the notes name; the rest are counted
SMALLEST, LARGEST = 8, 128  # pixels a side that arrays are brought to unless data.size says more


@dataclass(frozen=True, eq=False)
class Dataset:
    """What a source holds.

    train: labelled and, where the source has some, unlabelled images.
    test: None where the source has no test split. No source number of it occurs in `train`.
    test_of: what the test split is, for people; empty where there is none.
    notes: lines for people: what was found, what was skipped and why.
    validation: labelled images that the source sets apart for that, None where it does not; such an
    image has one source with those of `train` that it is a copy of.
    """

    train: ImageSet
    test: ImageSet | None
    test_of: str
    preparation: Preparation
    notes: tuple[str, ...]
    validation: ImageSet | None = None
    skipped: tuple[str, ...] = ()
    """A line for each file or row that could not be used, and why."""
    numbered: tuple[str, ...] = ()
    """Of each image of `train` the part of the source that it was in and its number there; empty
    where nothing moved them."""

    @cached_property
    def content(self) -> str:
        """A name for these images with these labels."""
        held = [x for part in self.parts for x in (part.fingerprints, part.labels.numpy())]
        return hashlib.sha256(b"".join(array.tobytes() for array in held)).hexdigest()[:12]

    @property
    def parts(self) -> list[ImageSet]:
        """Those that there are."""
        return [part for part in (self.train, self.validation, self.test) if part is not None]


def load(config: DataConfig, on_row: OnRow | None = None) -> Dataset:
    """The images that `config.source` names.

    on_row: called with rows that tell how far the reading of many files is.
    Raises ValueError with one line naming the folder, file or class that is amiss.
    """
    for name in filter(None, (config.source, config.pool)):
        if legible(name) != name:  # no run folder could keep it
            raise ValueError(f"{legible(name)} is a name that is no text of one line: rename it")
    dataset = _bundled(config) if config.source == "mnist50" else _source(config, on_row)
    return dataset if config.pool is None else _with_pool(dataset, config, on_row)


def load_images(
    source: str,
    preparation: Preparation,
    class_names: Sequence[str],
    *,
    other_classes: bool = False,
    on_row: OnRow | None = None,
) -> tuple[ImageSet, str]:
    """Images to try a model on, prepared as its own were, with labels numbered as its classes.

    source: as `load` takes it. Of one with a test split that split is taken, else its validation
    split if it has one, else all of it but what it keeps apart as unlabelled; a folder of pictures
    without class folders will do, and is unlabelled.
    on_row: as `load` has it. With the images comes what they are of the source, for people.

    Raises ValueError as `load` does, for files that cannot be read and for class names that are not
    among `class_names`; with `other_classes`, images of such classes are unlabelled instead.
    """
    if source == "mnist50":
        images = _bundled(DataConfig()).test
        assert images is not None
        images = sources.matched(images, class_names, source, other_classes)
        return sources.prepared(images, preparation), "MNIST's official test images"
    place, inside, _ = sources.located(source)
    pieces, rows = sources.pieces(place, inside)
    if place.is_dir() and not idx.find(place) and not folders.has_folders(place):
        pieces = [sources.flat(place)]
    order: tuple[Role, ...] = ("test", "validation", "train", "unlabelled")
    role = min((piece.role for piece in pieces), key=order.index)
    chosen = [piece for piece in pieces if piece.role == role]
    read = [
        sources.ready(piece, piece.open(), class_names, preparation, other_classes, on_row)
        for piece in chosen
    ]
    images = concatenate([images for images, _ in read])
    unused = [line for row_role, line in rows if row_role in (None, role)]
    unread = [line for _, lines in read for line in lines]
    for kind, done, amiss in (("row", "used", unused), ("file", "read", unread)):
        if amiss:
            count = f"{len(amiss)} {kind}{'s' * (len(amiss) > 1)} of {source} cannot be {done}"
            raise ValueError(f"{count}, repair or remove: {amiss[0]}")
    return _renumbered(images, 0), f"all of {chosen[0].origin}"


class Pool(NamedTuple):
    """Images without labels: where they lie, how they are prepared, and what could not be read."""

    place: Path
    images: ImageSet
    preparation: Preparation
    amiss: list[str]


def load_pool(
    source: str,
    preparation: Preparation | None = None,
    class_names: Sequence[str] = (),
    on_row: OnRow | None = None,
) -> Pool:
    """All images of a source but those that test or validate, their labels forgotten.

    source: as `load` takes it; of a folder without such splits every picture in it and below it.
    preparation: None takes the one that fits the images. on_row: as `load` has it.
    Raises ValueError as `load` does, and where there are no such images.
    """
    if source == "mnist50":
        bundled = _bundled(DataConfig())
        images = replace(bundled.train.without_labels(), class_names=tuple(class_names))
        wanted = preparation or bundled.preparation
        return Pool(Path(source), sources.prepared(images, wanted), wanted, [])
    place, inside, _ = sources.located(source)
    pieces, rows = sources.pieces(place, inside)
    amiss = [line for _, line in rows]
    official = place.is_dir() and bool(idx.find(place))
    judging = any(piece.role in ("validation", "test") for piece in pieces)
    if place.is_dir() and not official and not judging:
        pieces = [sources.flat(place)]
    sets = []
    for piece in pieces:
        if piece.role in ("train", "unlabelled"):
            opened = piece.open()
            preparation = preparation or _preparation(opened, DataConfig(), official)
            found, skipped = sources.ready(piece, opened, class_names, preparation, True, on_row)
            sets.append(found.without_labels())
            amiss += skipped
    if preparation is None or not any(map(len, sets)):
        raise ValueError(f"{place} has {pieces[0].role} images only: a pool takes others")
    return Pool(place, _renumbered(concatenate(sets), 0), preparation, amiss)


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
    place = sources.located(source).place
    found = idx.find(place).get("test-images") if place.is_dir() else None
    return found is not None and _is_official(found, idx.MNIST_SHA256[name])


def _is_official(path: Path, digest: str) -> bool:
    try:
        return idx.sha256(idx.read_idx(path)) == digest
    except ValueError:
        return False


def _source(config: DataConfig, on_row: OnRow | None) -> Dataset:
    place, inside, notes = sources.located(config.source)
    official = place.is_dir() and bool(idx.find(place))
    if config.dev and not official:
        raise ValueError(f"--dev needs a directory of idx files, and {place} has none")
    pieces, rows = sources.pieces(place, inside)
    amiss = [line for _, line in rows]
    opened = {piece: piece.open() for piece in pieces if not (config.dev and piece.role == "test")}
    first = next((found for piece, found in opened.items() if piece.role == "train"), None)
    if first is None:
        raise ValueError(
            f"{place} has {pieces[0].role} images but none to train with: put those into train/, "
            "or call them so"
        )
    names = _enough(sources.classes(first), place)
    preparation = _preparation(first, config, official)
    sets: dict[Role, list[ImageSet]] = defaultdict(list)
    for piece, found in opened.items():
        images, skipped = sources.ready(piece, found, names, preparation, on_row=on_row)
        amiss += skipped
        sets[piece.role].append(images)
        notes.append(_note(piece, images, place, config))
    test_of = OFFICIAL if official else _test_of(place)
    if config.dev:
        (images,) = sets["train"]
        last = torch.arange(len(images)) >= len(images) - len(images) // 6
        sets["train"], sets["test"] = [images.select(~last)], [images.select(last)]
        test_of = f"training images from number {int((~last).sum()):,} on"
        notes.append(f"development: scored on {test_of}; the test files stay shut")
    notes += [f"each picture: {preparation.describe()}"] * (not official)
    if place.is_dir() and not official:
        others = folders.other_files(place)
        notes += [f"not read: {others}"] * bool(others)
        amiss += folders.unreadable(place)
        amiss += _loose(place, opened.values())
        if table := manifests.find(place):
            notes.append(f"not used: {table}, which has no columns for the path and the label")
    dataset, leaks = _assembled(sets, test_of, preparation, notes)
    doubtful = [*_alike(names), *leaks.values()]
    # what is in the test images as well, training tells for every source
    told = [*_alike(names), *(line for role, line in leaks.items() if role != "test")]
    notes = [*dataset.notes, *told, *_amiss(amiss, config, doubtful)]
    return replace(dataset, notes=tuple(notes), skipped=tuple(amiss))


def _loose(place: Path, opened: Iterable[Part | ImageSet]) -> list[str]:
    """A line where pictures lie beside the class folders that are read."""
    parts = [part for part in opened if isinstance(part, Part)]
    if not parts or manifests.find(place):
        return []
    held = {path for part in parts for path, _ in part.files}
    loose = sum(path not in held for path in folders.pictures(place))
    if not loose:
        return []
    lie = "1 picture lies" if loose == 1 else f"{loose:,} pictures lie"
    return [f"{lie} in {place} outside of class folders: sort them, or put them into unlabelled/"]


def _test_of(place: Path) -> str:
    return f"images in {place.resolve().name}{'/test' if place.is_dir() else ' (test)'}"


def _enough(names: list[str], place: Path) -> list[str]:
    if not names:
        raise ValueError(f"no image of {place} has a label: a classifier needs two classes")
    if len(names) < 2:
        raise ValueError(f"{place} has one class only, {names[0]}: a classifier needs two")
    return names


def _note(piece: Piece, images: ImageSet, place: Path, config: DataConfig) -> str:
    if piece.role == "train":
        return f"{place}: {images.describe()}"
    note = f"{piece.role}: {len(images):,} images"
    if piece.role == "unlabelled":
        note += f" in {piece.origin}"
    elif piece.role == "validation" and config.per_class:
        note += ", left out: the labels of this run are those of --per-class"
    elif piece.role == "validation" and not config.validation:
        note += ", which train as well: data.validation is 0"
    return note


def _assembled(
    sets: Mapping[Role, list[ImageSet]], test_of: str, preparation: Preparation, notes: list[str]
) -> tuple[Dataset, dict[Role, str]]:
    """Every image its own source, but equal ones share theirs, those that test apart.

    Unlabelled images that test or validate are left out; of labelled ones a line for each such role
    comes with the data set. Raises ValueError for test images without any label.
    """
    roles: tuple[Role, ...] = "train", "unlabelled"
    train = concatenate([images for role in roles for images in sets[role]])
    numbered = [f"{role} {i}" for role in roles for i in range(sum(map(len, sets[role])))]
    prints = train.fingerprints
    leaks: dict[Role, str] = {}
    judging: dict[Role, ImageSet] = {}
    judges: dict[Role, NDArray[np.uint64]] = {}
    leaked = np.zeros(len(train), bool)
    for role in ("validation", "test"):
        if sets[role]:
            images = judging[role] = concatenate(sets[role])
            if not (images.labels >= 0).any():
                raise ValueError(f"no {role} image has a label: add some, or leave the images out")
            judges[role] = images.fingerprints
            among = np.isin(prints, judges[role])
            leaked |= among
            if count := int((among & (train.labels >= 0).numpy()).sum()):
                leaks[role] = f"{count:,} labelled images that train are {role} images as well"
    left_out = leaked & (train.labels < 0).numpy()
    if count := int(left_out.sum()):
        notes = [*notes, f"left out: {count:,} unlabelled images that test or validate as well"]
    train = train.select(torch.from_numpy(~left_out))
    validation, test = judging.get("validation"), judging.get("test")
    found = first_of(np.concatenate([prints[~left_out], judges.get("validation", prints[:0])]))
    train = replace(train, sources=found[: len(train)])
    if validation is not None:  # which trains as well where nothing is to validate
        validation = replace(validation, sources=found[len(train) :])
    if test is not None:
        test = _renumbered(test, len(found))
    test_of = "" if test is None else test_of
    names = tuple(compress(numbered, ~left_out))
    dataset = Dataset(train, test, test_of, preparation, tuple(notes), validation, numbered=names)
    return dataset, leaks


def _renumbered(images: ImageSet, first: int) -> ImageSet:
    return replace(images, sources=torch.arange(len(images)) + first)


def _preparation(first: ImageSet | Part, config: DataConfig, official: bool) -> Preparation:
    """How the training images are prepared, and with them all others."""
    if isinstance(first, Part):
        return folders.preparation_for([path for path, _ in first.files], config)
    side = max(first.size)
    if official and config.size not in (None, side):
        raise ValueError(
            f"data.size = {config.size}: the idx images are {side} × {side} and stay so; "
            "leave it out"
        )
    digits = config.prepare == "digits"
    if config.prepare == "auto" and first.channels == 1 and (official or first.size == (28, 28)):
        sample = first.images[folders.spread(len(first)), 0].numpy()
        digits = all(map(is_prepared_digit, sample))
    size = side if official else config.size or min(max(side, SMALLEST), LARGEST)
    grey = digits or first.channels == 1
    kind: Kind = "crop" if config.prepare == "crop" else "letterbox"
    return Preparation("digits" if digits else kind, size, 1 if grey else 3)


def _with_pool(dataset: Dataset, config: DataConfig, on_row: OnRow | None) -> Dataset:
    """The same with the images in `config.pool` as unlabelled ones.

    What the source has already is left out: its test images must not train anything, and a labelled
    image is no second one because it lies in two places.
    """
    assert config.pool is not None
    found = load_pool(config.pool, dataset.preparation, dataset.train.class_names, on_row)
    place, images, amiss = found.place, found.images, found.amiss
    known = np.concatenate([part.fingerprints for part in dataset.parts])
    new = images.not_among(known)
    all_of_it, images = len(images), images.select(new)
    first = 1 + max(int(part.sources.max()) for part in dataset.parts if len(part))
    paths = images.paths or ("",) * len(images)
    images = replace(_renumbered(images, first), paths=paths)
    train = concatenate([dataset.train, images]) if len(images) else dataset.train
    note = f"pool: {len(images):,} images in {place}"
    if len(images) < all_of_it:
        note += f"; {all_of_it - len(images):,} that are there twice or in the source are left out"
    notes = (*dataset.notes, note, *_amiss(amiss, config))
    numbered = dataset.numbered or tuple(f"train {i}" for i in range(len(dataset.train)))
    return replace(
        dataset,
        train=train,
        notes=notes,
        skipped=(*dataset.skipped, *amiss),
        numbered=(*numbered, *(f"pool {i}" for i in new.tolist())),
    )


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


def _alike(names: Sequence[str]) -> list[str]:
    """A line for each group of names that a person would take for one."""
    groups = defaultdict(list)
    for name in names:
        groups[unicodedata.normalize("NFKC", name).casefold()].append(name)
    return [
        f"classes {' and '.join(group)} differ in case or accents' coding only: rename one if they "
        "are the same"
        for group in groups.values()
        if len(group) > 1
    ]


def _amiss(skipped: Sequence[str], config: DataConfig, doubtful: Sequence[str] = ()) -> list[str]:
    """Notes on what was skipped. Raises ValueError where nothing may be amiss, and something is."""
    if config.strict and (skipped or doubtful):
        first = [*skipped, *doubtful][0]
        raise ValueError(f"--strict: {len(skipped) + len(doubtful)} amiss, the first: {first}")
    notes = [f"skipped: {line}" for line in skipped[:NAMED]]
    if len(skipped) > NAMED:
        notes.append(f"skipped: {len(skipped) - NAMED} more")
    return notes

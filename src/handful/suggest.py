"""Which images to label next: those that leave a doubt, and of these ones that differ.

Where labels spread, the classifier learns what they got wrong like all else, and may be sure of it.
What tells is which images they left between two classes: those come first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from handful import datasets
from handful.datasets import Pool
from handful.decoding import OnRow
from handful.estimator import SimCLREncoder
from handful.images import ImageSet
from handful.predictor import Predictor, Ranking
from handful.runs import RunFolder
from handful.storage import cache_folder

Array = np.ndarray[Any, Any]

DOUBTFUL = 20
"""Among so many times as are asked for, the most doubtful, images are chosen."""
KNOWN = "labelled_fingerprints", "tested_fingerprints"
"""Images that taught a run already, and those that judge it: a label for these would spoil that."""
STARTS = 4
"""First centres of groups that are tried."""


class Suggestion(NamedTuple):
    """An image that is worth a label."""

    image: str
    """Its file, or its number among the images of an array."""
    ranking: Ranking
    """Classes with their probabilities, best first; empty where no model knows classes."""
    undecided: bool = False
    """The run's labels left it between classes: these stand with their shares of what spread to
    it, whatever the model says."""


def suggest(
    run: Path | None,
    pool: str,
    count: int,
    *,
    seed: int = 0,
    device: str = "auto",
    say: Callable[[str], None] | None = None,
    on_row: OnRow | None = None,
) -> list[Suggestion]:
    """The images of a pool whose labels would teach a model most, at most `count`.

    run: its model says what it doubts, or, of an encoder alone, what is typical; images that it
        learned from or was tested on are left out. Where its labels spread, images that they left
        between two classes come first.
        None begins without a label: an encoder is trained on the pool, and typical images of it
        are taken.
    pool: as `datasets.load_pool` takes it. Labels in it are not looked at; an image that is there
        twice counts once.
    say, on_row: called with lines for people, and with rows that tell how far the reading is.
    Raises ValueError for anything that a user can mend.
    """
    if count < 1:
        raise ValueError(f"-n {count}: ask for at least one image")
    say = say or (lambda line: None)
    model = None if run is None else Predictor.load(run, device)
    arrays = {} if run is None else RunFolder(run).arrays()
    if run is not None and not arrays:
        say(f"{run} is no run folder: which images its model learned from is not known")
    if model is None:
        if RunFolder(pool).is_run:
            raise ValueError(f"{pool} is a run: name the pool after it")
        found = datasets.load_pool(pool, on_row=on_row)
    else:
        found = datasets.load_pool(pool, model.preparation, model.class_names, on_row)
    for line in found.amiss:
        say(f"skipped: {line}")
    known = [arrays[name] for name in KNOWN if name in arrays]
    new = found.images.not_among(np.concatenate([np.array([], np.uint64), *known]))
    images = found.images.select(new)
    say(f"{found.place}: {len(images):,} of {len(found.images):,} images are new")
    if not len(images):
        raise ValueError(f"{pool} has no image that the run does not know: nothing to suggest")
    name = _named(found, images, new.tolist())
    if model is None:
        chosen = _first(images.images.numpy(), count, seed, device, say, on_row)
        return [Suggestion(name(i), ()) for i in chosen.tolist()]
    if len(model.class_names) < 2:  # of an encoder alone, which doubts nothing
        chosen = typical(model.embed(images), np.ones(len(images)), count, seed)
        return [Suggestion(name(i), ()) for i in chosen.tolist()]
    return _doubted(model, arrays, images, name, count, seed, say)


def _doubted(
    model: Predictor,
    arrays: Mapping[str, Array],
    images: ImageSet,
    name: Callable[[int], str],
    count: int,
    seed: int,
    say: Callable[[str], None],
) -> list[Suggestion]:
    """What the labels of a run left between two classes, and after that what its model doubts."""
    between, shares = left_between(arrays, images, count, seed)
    if "undecided_fingerprints" in arrays:
        say(f"left between two classes by labels that spread: {len(between) or 'none'} of these")
    first = [
        Suggestion(name(i), ranking, undecided=True)
        for i, ranking in zip(between.tolist(), model.rankings(shares), strict=True)
    ]
    if len(between) == count:
        return first
    left = np.setdiff1d(np.arange(len(images)), between)
    h, probabilities = model.embed(images)[left], model.predict_proba(images)[left]
    chosen = worth_a_label(h, probabilities, count - len(between), seed)
    rankings = model.rankings(probabilities[chosen])
    return first + [
        Suggestion(name(i), ranking)
        for i, ranking in zip(left[chosen].tolist(), rankings, strict=True)
    ]


def left_between(
    arrays: Mapping[str, Array], images: ImageSet, count: int, seed: int = 0
) -> tuple[NDArray[np.int64], Array]:
    """Positions of at most `count` images (K,) that the labels of a run left between two classes,
    and what they could be, float (K, Y): one of each group, or if they are few all of them, the
    most doubtful first.

    arrays: those of the run, with what `stages.between` has.
    """
    if "undecided_fingerprints" not in arrays:
        return np.array([], np.int64), np.zeros((0, 0))
    _, places, rows = np.intersect1d(
        images.fingerprints, arrays["undecided_fingerprints"], return_indices=True
    )
    shares = arrays["undecided_shares"][rows]
    if len(rows) <= count:
        chosen = np.argsort(-doubt(shares), kind="stable")
    else:
        chosen = typical(arrays["undecided_h"][rows], np.ones(len(rows)), count, seed)
    return places[chosen], shares[chosen]


def _first(
    pixels: Array,
    count: int,
    seed: int,
    device: str,
    say: Callable[[str], None],
    on_row: OnRow | None,
) -> NDArray[np.int64]:
    """Positions of typical images of uint8 (N, C, H, W), by an encoder that learns from these."""
    if len(pixels) <= count:
        return np.arange(len(pixels))
    say("an encoder learns what the images have in common")
    encoder = SimCLREncoder(random_state=seed, device=device).fit(pixels, on_row=on_row)
    return typical(encoder.transform(pixels), np.ones(len(pixels)), count, seed)


def _named(pool: Pool, images: ImageSet, numbers: Sequence[int]) -> Callable[[int], str]:
    """What to call the images, by their positions: files of an archive as they lie in that."""
    unpacked = cache_folder() in pool.place.parents
    folder = pool.place.parent if pool.place.is_file() else pool.place

    def name(i: int) -> str:
        path = images.paths[i] if images.paths else ""
        if not path:
            return str(numbers[i])
        return str(Path(path).relative_to(folder)) if unpacked else path

    return name


def doubt(probabilities: Array) -> NDArray[np.float64]:
    """How near the second class comes to the first: 0 to 1 (N,) of probabilities (N, Y)."""
    second, first = np.partition(probabilities, -2, axis=1)[:, -2:].T
    found: NDArray[np.float64] = 1 - (first - second)
    return found


def worth_a_label(h: Array, probabilities: Array, count: int, seed: int = 0) -> NDArray[np.int64]:
    """Positions of `count` images that leave a doubt and differ from each other, int64.

    h: (N, D). probabilities: (N, Y). The most doubtful images fall into groups of similar h, which
    lie where doubt is; the most typical one of each is taken (Zhdanov 2019, "Diverse mini-batch
    active learning"). The most doubtful one comes first.
    """
    left = doubt(probabilities)
    most = np.argsort(-left, kind="stable")[: count * DOUBTFUL]
    chosen = most[typical(h[most], left[most], count, seed)]
    found: NDArray[np.int64] = chosen[np.argsort(-left[chosen], kind="stable")]
    return found


def typical(h: Array, weight: Array, count: int, seed: int = 0) -> NDArray[np.int64]:
    """Positions of one image from each of `count` groups of similar h, the largest group first.

    h: (N, D), of which the direction counts. weight: (N,), how much each image draws the middle of
    its group to itself; from there the nearest image is taken. All positions where N ≤ `count`.
    """
    from sklearn.cluster import KMeans

    if len(h) <= count:
        return np.arange(len(h))
    units = h / np.maximum(np.linalg.norm(h, axis=1, keepdims=True), 1e-12)
    distinct = len(np.unique(units, axis=0))
    # some doubt everywhere: without any weight a group has no middle
    means = KMeans(min(count, distinct), n_init=STARTS, random_state=seed)
    group = means.fit(units, sample_weight=weight + 1e-6).labels_
    away = np.linalg.norm(units - means.cluster_centers_[group], axis=1)
    nearest = [members[away[members].argmin()] for members in _members(group)]
    return np.array(nearest, np.int64)


def _members(group: Array) -> list[NDArray[np.int64]]:
    """Positions of each group's images, the largest group first."""
    numbers, sizes = np.unique(group, return_counts=True)
    return [np.flatnonzero(group == number) for number in numbers[np.argsort(-sizes)]]

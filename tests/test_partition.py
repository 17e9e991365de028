"""Who may look at which images. Pixels tell images apart here: no index has to be believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from handful import datasets
from handful.config import RunConfig
from handful.datasets import Dataset
from handful.images import ImageSet
from handful.partition import HELD_OUT, NOT_DRAWN, Partition, partition
from handful.pictures import Preparation

NAMES = ("a", "b", "c")


def flat(labels: list[int], first: int = 1) -> ImageSet:
    """Image i is `first + i` everywhere, and so are all its copies where they are brightest."""
    values = torch.arange(first, first + len(labels), dtype=torch.uint8)
    images = ImageSet.of(values.view(-1, 1, 1, 1).repeat(1, 1, 8, 8), torch.tensor(labels), NAMES)
    return replace(images, sources=images.sources + first)


def seen(images: ImageSet | None) -> set[int]:
    """Which originals a set holds, or copies of them."""
    return set() if images is None else set(images.images.amax((1, 2, 3)).tolist())


def dataset(labels: list[int], test: int = 0, validation: int = 0) -> Dataset:
    return Dataset(
        train=flat(labels),
        test=flat([i % 3 for i in range(test)], first=200) if test else None,
        test_of="test images" if test else "",
        preparation=Preparation("letterbox", 8, 1),
        notes=(),
        validation=flat([i % 3 for i in range(validation)], first=100) if validation else None,
    )


def configured(**settings: Any) -> RunConfig:
    changes = {"data.source": "somewhere", "data.draw": 3} | {
        key.replace("__", "."): value for key, value in settings.items()
    }
    return RunConfig().updated(changes)


cases = st.fixed_dictionaries(
    {
        "labels": st.lists(st.integers(-1, 2), max_size=60).map(lambda more: [0, 1, 2] * 4 + more),
        "test": st.sampled_from([0, 9]),
        "validation": st.sampled_from([0, 7]),
        "settings": st.fixed_dictionaries(
            {
                "data__per_class": st.sampled_from([None, 2, 4]),
                "data__unlabelled": st.booleans(),
                "data__holdout": st.sampled_from([0.0, 0.2, 0.5]),
                "data__validation": st.sampled_from([0.0, 0.2, 0.4]),
                "data__split_seed": st.integers(0, 5),
                "data__copies": st.integers(0, 3),
                "downstream__refit": st.booleans(),
                "downstream__steps": st.just(1),
            }
        ),
    }
)


def divided(case: dict[str, Any]) -> tuple[Partition, RunConfig, Dataset]:
    config = configured(**case["settings"])
    source = dataset(case["labels"], case["test"], case["validation"])
    return partition(config, source), config, source


@given(cases)
def test_no_source_is_on_both_sides(case: dict[str, Any]) -> None:
    parts, config, _ = divided(case)
    assert not seen(parts.fit) & seen(parts.validation)
    for training in (parts.fit, parts.final, parts.pretext):
        assert not seen(training) & seen(parts.test)
    if not config.downstream.refit:
        assert not seen(parts.final) & seen(parts.validation)
        assert not seen(parts.pretext) & seen(parts.validation)


@given(cases)
def test_no_validation_label_reaches_the_pretext_task(case: dict[str, Any]) -> None:
    parts, _, _ = divided(case)
    known = parts.pretext.labelled()
    assert seen(known) == seen(parts.fit)
    assert not seen(known) & seen(parts.validation)


@given(cases)
def test_every_image_keeps_its_label_and_its_source(case: dict[str, Any]) -> None:
    parts, _, source = divided(case)
    truth: dict[int, int] = {}
    for images in source.parts:
        truth |= zip(images.sources.tolist(), images.labels.tolist(), strict=True)
    for images in parts:
        if isinstance(images, ImageSet):
            values = images.images.amax((1, 2, 3)).long()
            assert torch.equal(values, images.sources)
            for number, label in zip(values.tolist(), images.labels.tolist(), strict=True):
                assert label in (-1, truth[number])
    for images in (parts.fit, parts.final, parts.everything, parts.validation):
        assert images is None or (images.labels >= 0).all()


@given(cases)
def test_copies_train_and_originals_judge(case: dict[str, Any]) -> None:
    parts, config, _ = divided(case)
    for images in (parts.fit, parts.final):
        assert len(images) == len(seen(images)) * (1 + config.data.copies)
    for judging in (parts.validation, parts.test):
        assert judging is None or len(judging) == len(seen(judging))


@given(cases)
def test_what_is_refitted_and_kept_is_all_there_is(case: dict[str, Any]) -> None:
    parts, config, _ = divided(case)
    judged = seen(parts.validation) if config.downstream.refit else set()
    assert seen(parts.final) == seen(parts.fit) | judged
    held_out = seen(parts.test) if parts.test_of == HELD_OUT else set()
    assert seen(parts.everything) == seen(parts.final) | held_out


@given(cases)
def test_the_pool_is_what_was_not_drawn(case: dict[str, Any]) -> None:
    parts, config, source = divided(case)
    numbers, labels = source.train.sources.tolist(), source.train.labels.tolist()
    nameless = {n for n, label in zip(numbers, labels, strict=True) if label < 0}
    drawn = seen(parts.fit) | seen(parts.validation)
    if source.test is None:
        drawn |= seen(parts.test)
    pool = set(numbers) - drawn if config.data.unlabelled else nameless
    extra = seen(parts.validation) if config.downstream.refit else set()
    assert seen(parts.pretext) == seen(parts.fit) | extra | pool
    assert parts.unlabelled == len(pool)
    in_pool = torch.tensor([value in pool for value in parts.pretext.sources.tolist()])
    assert (parts.pretext.labels[in_pool] == -1).all()
    assert int(in_pool.sum()) == len(pool)


def test_the_draw_does_not_move_the_images_of_a_pretext_task_with_a_pool() -> None:
    settings = {"data__validation": 0.0, "downstream__steps": 1, "data__per_class": 2}
    config = configured(data__unlabelled=True, **settings)
    source = dataset([0, 1, 2, -1] * 10, test=9)
    first, other = (
        partition(config.updated({"data.draw": draw}), source).pretext for draw in (1, 2)
    )
    assert torch.equal(first.images, other.images)
    assert not torch.equal(first.labels, other.labels)


def test_a_copy_of_what_judges_is_not_in_the_pool() -> None:
    source = dataset([0, 1, 2] * 10)
    copies = flat([-1] * 30)
    both = replace(source, train=datasets.concatenate([source.train, copies]))
    parts = partition(configured(downstream__refit=False), both)
    assert seen(parts.test)
    assert not seen(parts.pretext) & (seen(parts.test) | seen(parts.validation))
    assert seen(parts.pretext) == seen(parts.fit)


@given(cases)
def test_counts_are_of_originals(case: dict[str, Any]) -> None:
    parts, config, _ = divided(case)
    assert parts.labelled == len(seen(parts.fit) | seen(parts.validation))
    if config.data.per_class and parts.test_of != HELD_OUT:
        assert parts.labelled == 3 * config.data.per_class


@given(cases, st.integers(0, 9))
def test_the_seed_of_a_run_moves_no_image_to_another_side(case: dict[str, Any], seed: int) -> None:
    parts, config, source = divided(case)
    other = partition(config.updated({"seed": seed}), source)
    assert [seen(part) for part in other[:6]] == [seen(part) for part in parts[:6]]


def test_the_same_configuration_gives_the_same_images() -> None:
    source, config = dataset([0, 1, 2] * 10), configured(data__copies=2)
    first, again = partition(config, source), partition(config, source)
    assert torch.equal(first.final.images, again.final.images)
    assert torch.equal(first.pretext.images, again.pretext.images)
    copies = partition(config.updated({"seed": 1}), source)
    assert not torch.equal(first.final.images, copies.final.images)


def test_another_split_seed_holds_out_others() -> None:
    source = dataset([0, 1, 2] * 20)
    sides = {
        frozenset(seen(partition(configured(data__split_seed=i), source).validation))
        for i in range(5)
    }
    assert len(sides) == 5


def test_a_share_of_each_class_is_held_out() -> None:
    labels = [0] * 10 + [1] * 20 + [2] * 40
    parts = partition(configured(), dataset(labels))
    assert parts.test is not None
    assert parts.validation is not None
    assert parts.test.class_counts.tolist() == [2, 4, 8]
    assert parts.validation.class_counts.tolist() == [2, 3, 6]
    assert parts.test_of == HELD_OUT
    assert parts.labelled == 56


def test_nothing_is_held_out_where_the_source_has_a_test_split() -> None:
    source = dataset([0, 1, 2] * 10, test=9)
    parts = partition(configured(data__validation=0.0, downstream__steps=1), source)
    assert parts.labelled == 30
    assert seen(parts.test) == seen(source.test)
    assert parts.test_of == "test images"
    assert parts.validation is None


def test_a_sources_own_validation_images_replace_the_share() -> None:
    source = dataset([0, 1, 2] * 4, test=9, validation=6)
    parts = partition(configured(data__copies=2), source)
    assert seen(parts.validation) == set(range(100, 106))
    assert seen(parts.fit) == set(range(1, 13))
    assert seen(parts.final) == seen(parts.fit) | seen(parts.validation)
    assert parts.labelled == 12 + 6
    kept_apart = partition(configured(downstream__refit=False), source)
    for training in (kept_apart.final, kept_apart.everything, kept_apart.pretext):
        assert not seen(training) & seen(kept_apart.validation)


def test_validation_images_without_a_label_are_left_out() -> None:
    source = replace(dataset([0, 1, 2] * 4, test=9), validation=flat([0, -1, 2], first=100))
    assert seen(partition(configured(), source).validation) == {100, 102}


def test_where_nothing_validates_such_images_train() -> None:
    source = dataset([0, 1, 2] * 4, test=9, validation=6)
    parts = partition(configured(data__validation=0.0, downstream__steps=1), source)
    assert parts.validation is None
    assert seen(parts.fit) == set(range(1, 13)) | set(range(100, 106))
    assert parts.labelled == 18


def test_copies_among_images_that_would_validate_are_on_no_two_sides() -> None:
    source = dataset([0, 1, 2] * 4, validation=6)
    assert source.validation is not None
    sources = torch.tensor([1, 2, 3, 103, 104, 105])  # three are copies of images that train
    source = replace(source, validation=replace(source.validation, sources=sources))
    for seed in range(10):
        settings = {"data__validation": 0.0, "data__holdout": 0.3, "data__split_seed": seed}
        parts = partition(configured(**settings, downstream__steps=1), source)
        assert parts.test is not None
        assert not set(parts.test.sources.tolist()) & set(parts.final.sources.tolist())
        assert set(parts.everything.sources.tolist()) == {*range(1, 13), 103, 104, 105}


def test_a_copy_of_what_trains_does_not_validate() -> None:
    source = dataset([0, 1, 2] * 4, validation=6)
    assert source.validation is not None
    sources = torch.tensor([1, 2, 3, 103, 104, 105])
    source = replace(source, validation=replace(source.validation, sources=sources))
    for seed in range(10):
        parts = partition(configured(data__holdout=0.3, data__split_seed=seed), source)
        assert parts.validation is not None
        assert parts.test is not None
        assert set(parts.validation.sources.tolist()) == {103, 104, 105}
        assert not set(parts.test.sources.tolist()) & set(parts.final.sources.tolist())
    sources = torch.arange(1, 7)  # copies alone: a share of the others validates
    source = replace(source, validation=replace(source.validation, sources=sources))
    parts = partition(configured(), source)
    assert parts.validation is not None
    assert not set(parts.validation.sources.tolist()) & set(parts.fit.sources.tolist())


def test_labels_a_class_are_those_drawn_and_no_more() -> None:
    source = dataset([0, 1, 2] * 4, test=9, validation=6)
    parts = partition(configured(data__per_class=3), source)
    assert parts.labelled == 9
    assert seen(parts.everything) | seen(parts.validation) < set(range(1, 13))


def test_test_images_without_a_label_are_left_out() -> None:
    source = dataset([0, 1, 2] * 10)
    parts = partition(configured(), replace(source, test=flat([0, -1, 2], first=200)))
    assert seen(parts.test) == {200, 202}


def test_nothing_may_be_held_out_at_all() -> None:
    config = configured(data__holdout=0.0, data__validation=0.0, downstream__steps=1)
    parts = partition(config, dataset([0, 1, 2]))
    assert parts.test is None
    assert parts.validation is None
    assert len(parts.everything) == len(parts.final) == len(parts.fit) == 3


def test_a_class_with_too_few_images_says_so() -> None:
    with pytest.raises(ValueError, match="class number 2 has 2 labelled images"):
        partition(configured(data__per_class=3), dataset([0, 1] * 5 + [2, 2]))


def test_the_course_has_forty_to_ten_and_four_thousand_four_hundred(bundled: Dataset) -> None:
    config = configured(data__copies=10, downstream__refit=False, data__draw=None)
    parts = partition(config, bundled)
    assert len(parts.fit) == len(parts.final) == len(parts.pretext) == 4400
    assert parts.fit.class_counts.tolist() == [440] * 10
    assert parts.validation is not None
    assert parts.validation.class_counts.tolist() == [10] * 10
    assert len(torch.unique(parts.fit.sources)) == 400


def test_refitting_uses_all_five_thousand_five_hundred(bundled: Dataset) -> None:
    parts = partition(configured(data__copies=10, data__draw=None), bundled)
    assert len(parts.final) == len(parts.pretext) == 5500
    assert int((parts.pretext.labels < 0).sum()) == 1100


# --- development ---


@pytest.fixture
def shut(idx_folder: Callable[..., Path]) -> Path:
    """120 training images, and test files that nothing can open unharmed."""
    folder = idx_folder(12)
    for kind in ("images-idx3", "labels-idx1"):
        (folder / f"t10k-{kind}-ubyte").write_bytes(b"to be opened once, at the end")
    return folder


def test_development_never_opens_the_test_file(shut: Path) -> None:
    config = configured(data__source=str(shut), data__dev=True)
    parts = partition(config, datasets.load(config.data))
    assert parts.test is not None
    assert len(parts.test) == 20
    assert parts.test_of == "training images from number 100 on"
    opened = config.updated({"data.dev": False})
    with pytest.raises(ValueError, match="t10k"):  # that opening it would have been noticed
        datasets.load(opened.data)


def test_development_images_are_in_no_pool(shut: Path) -> None:
    config = configured(data__source=str(shut), data__dev=True, data__per_class=3)
    parts = partition(config.updated({"data.unlabelled": True}), datasets.load(config.data))
    assert parts.test is not None
    assert parts.labelled == 30
    assert parts.unlabelled == 100 - 30
    judged = {image.numpy().tobytes() for image in parts.test.images}
    assert len(judged) == 20
    for images in (parts.pretext, parts.final, parts.fit):
        assert not judged & {image.numpy().tobytes() for image in images.images}


def test_one_image_a_class_leaves_nothing_to_hold_out() -> None:
    """What cannot be split off is None, and training goes on without it."""
    images = ImageSet.of(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.arange(3), "abc")
    dataset = Dataset(images, None, "", Preparation("letterbox", 8, 1), ())
    parts = partition(RunConfig(), dataset)
    assert parts.validation is None
    assert parts.test is None
    assert parts.test_of == ""
    assert len(parts.final) == len(parts.everything) == 3


def test_copies_of_photographs_have_no_black_corners() -> None:
    source = dataset([0, 1, 2] * 4, test=3)
    darkest = [
        partition(
            configured(data__copies=3, downstream__views__keep_ink=ink), source
        ).fit.images.amin((1, 2, 3))
        for ink in (True, False)
    ]
    assert int(darkest[0].min()) == 0
    assert int(darkest[1].min()) > 0


def test_labels_that_were_not_drawn_test() -> None:
    """More of them than a part of the drawn ones would be, and none of these is lost."""
    parts = partition(configured(data__per_class=2), dataset([0, 1, 2, -1] * 6))
    assert parts.test_of == NOT_DRAWN
    assert parts.labelled == 6
    assert parts.test is not None
    assert torch.bincount(parts.test.labels).tolist() == [4, 4, 4]
    assert not seen(parts.test) & seen(parts.everything)
    assert not seen(parts.test) & seen(parts.pretext)


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ({"data__per_class": 2, "data__unlabelled": True}, [0, 1, 2] * 6),
        ({"data__per_class": 2}, [0, 1] * 6 + [2, 2]),
        ({}, [0, 1, 2] * 6),
    ],
)
def test_labels_that_are_used_or_lack_a_class_do_not(
    settings: dict[str, Any], labels: list[int]
) -> None:
    assert partition(configured(**settings), dataset(labels)).test_of == HELD_OUT


def test_a_copy_of_a_drawn_image_does_not_test() -> None:
    source = dataset([0, 1, 2] * 6)
    train = replace(source.train, sources=source.train.sources % 9)
    parts = partition(configured(data__per_class=2), replace(source, train=train))
    assert parts.test is not None
    assert not set(parts.test.sources.tolist()) & set(parts.final.sources.tolist())

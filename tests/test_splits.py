from __future__ import annotations

import hashlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from handful.splits import batches, draw, folds, mean_batch, split


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


labels_of_three = st.lists(st.integers(-1, 2), min_size=30, max_size=80).map(
    lambda values: torch.tensor([*values, *[0, 1, 2] * 6])
)


def test_no_draw_takes_the_first_of_each_class() -> None:
    labels = torch.tensor([1, 0, -1, 1, 0, 0, 1])
    assert draw(labels, 2, None).tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize("number", [0, 7, 104])
def test_draw_takes_the_smallest_digests(number: int) -> None:
    labels = torch.randint(10, (3000,), generator=generator())
    expected = []
    for label in range(10):
        digests = {
            hashlib.sha256(f"{number}:{index}".encode()).hexdigest(): index
            for index in range(3000)
            if labels[index] == label
        }
        expected += [digests[digest] for digest in sorted(digests)[:5]]
    assert draw(labels, 5, number).tolist() == sorted(expected)


def test_a_known_draw_never_changes() -> None:
    """Published figures hang on it."""
    assert draw(torch.zeros(10, dtype=torch.int64), 3, 7).tolist() == [3, 4, 7]


@given(labels_of_three, st.integers(1, 5), st.integers(0, 5), st.integers(0, 200))
def test_draws_are_nested_balanced_and_labelled(
    labels: torch.Tensor, few: int, more: int, number: int
) -> None:
    many = min(few + more, 6)
    small, large = draw(labels, few, number), draw(labels, many, number)
    assert set(small.tolist()) <= set(large.tolist())
    assert torch.bincount(labels[large], minlength=3).tolist() == [many] * 3
    assert small.tolist() == sorted(set(small.tolist()))


def test_different_draws_differ() -> None:
    labels = torch.zeros(1000, dtype=torch.int64)
    assert draw(labels, 10, 1).tolist() != draw(labels, 10, 2).tolist()


@pytest.mark.parametrize("number", [None, 3])
def test_too_few_names_class_count_and_remedy(number: int | None) -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, -1, -1])
    with pytest.raises(ValueError, match=r"class number 1 has 2 .* asks for 3: lower --per-class"):
        draw(labels, 3, number)


def test_a_class_without_images_is_too_few() -> None:
    with pytest.raises(ValueError, match="class number 1 has 0"):
        draw(torch.tensor([0, 2]), 1, None)


@st.composite
def copied_sets(draw_value: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and sources of images with copies, in any order; some sources have no label."""
    label_of = draw_value(st.lists(st.integers(-1, 3), min_size=1, max_size=40))
    numbers = draw_value(st.permutations(range(100, 100 + len(label_of))))
    copies = draw_value(st.lists(st.integers(1, 4), min_size=len(label_of), max_size=len(label_of)))
    images = [
        (label, source)
        for label, source, count in zip(label_of, numbers, copies, strict=True)
        for _ in range(count)
    ]
    images = draw_value(st.permutations(images))
    return torch.tensor([i[0] for i in images]), torch.tensor([i[1] for i in images])


@given(copied_sets(), st.floats(0.01, 0.99), st.integers(0, 1000))
def test_split_never_parts_a_source_nor_loses_an_image(
    images: tuple[torch.Tensor, torch.Tensor], share: float, seed: int
) -> None:
    labels, sources = images
    keep, held = split(labels, sources, share, generator(seed))
    assert sorted([*keep.tolist(), *held.tolist()]) == list(range(len(labels)))
    assert not set(sources[keep].tolist()) & set(sources[held].tolist())
    assert (labels[held] >= 0).all()
    for label in range(4):
        of_class = labels == label
        total = len(sources[of_class].unique())
        taken = len(sources[held][labels[held] == label].unique())
        if total >= 2:
            assert 1 <= taken <= total - 1
            assert taken in {1, total - 1, round(share * total)}
        else:
            assert taken == 0


def test_split_is_stratified_and_seeded() -> None:
    labels = torch.arange(10).repeat_interleave(50)
    sources = torch.arange(500)
    keep, held = split(labels, sources, 0.2, generator(0))
    assert torch.bincount(labels[held]).tolist() == [10] * 10
    again = split(labels, sources, 0.2, generator(0))[1]
    other = split(labels, sources, 0.2, generator(1))[1]
    assert held.tolist() == again.tolist() != other.tolist()
    assert len(keep) == 400


def test_splitting_images_instead_of_sources_would_leak() -> None:
    """The trap that `split` exists for: eleven images of each source, split one by one."""
    labels = torch.arange(10).repeat_interleave(50).repeat_interleave(11)
    sources = torch.arange(500).repeat_interleave(11)
    careless_keep, careless_held = split(labels, torch.arange(5500), 0.2, generator())
    shared = set(sources[careless_keep].tolist()) & set(sources[careless_held].tolist())
    assert len(shared) > 400
    keep, held = split(labels, sources, 0.2, generator())
    assert not set(sources[keep].tolist()) & set(sources[held].tolist())
    assert len(held) == 100 * 11


def test_a_copy_without_its_label_goes_where_its_source_goes() -> None:
    labels = torch.tensor([0, 0, -1, -1])
    sources = torch.tensor([4, 9, 4, 9])
    keep, held = split(labels, sources, 0.5, generator())
    assert not set(sources[keep].tolist()) & set(sources[held].tolist())
    assert len(keep) == len(held) == 2


def test_the_one_source_of_a_class_stays_though_it_has_another_label_too() -> None:
    labels, sources = torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 2])
    for seed in range(30):
        keep, held = split(labels, sources, 0.34, generator(seed))
        assert set(labels[keep].tolist()) == {0, 1}
        assert not set(sources[keep].tolist()) & set(sources[held].tolist())


def test_a_share_of_zero_holds_nothing() -> None:
    keep, held = split(torch.tensor([0, 0, 1, 1]), torch.arange(4), 0.0, generator())
    assert keep.tolist() == [0, 1, 2, 3]
    assert held.numel() == 0
    assert held.dtype == torch.int64


@given(st.integers(0, 300), st.integers(1, 80), st.integers(0, 100))
def test_batches_cover_every_image_once_in_near_equal_parts(n: int, size: int, seed: int) -> None:
    parts = [part.tolist() for part in batches(n, size, generator(seed))]
    assert sorted(position for part in parts for position in part) == list(range(n))
    lengths = [len(part) for part in parts]
    if n:
        assert mean_batch(n, size) == pytest.approx(sum(lengths) / len(parts))
        assert max(lengths) - min(lengths) <= 1
        assert max(lengths) <= size or (size == 2 and max(lengths) == 3)
        assert min(lengths) >= 2 or n == 1 or size == 1
        if size != 2:
            assert len(parts) == math.ceil(n / size)


def test_batches_are_shuffled_anew_by_the_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    rng = generator(5)
    first, second = torch.cat([*batches(50, 8, rng)]), torch.cat([*batches(50, 8, rng)])
    assert first.tolist() != second.tolist()
    assert first.tolist() == torch.cat([*batches(50, 8, generator(5))]).tolist()
    assert torch.equal(before, torch.random.get_rng_state())


@given(copied_sets(), st.integers(2, 6))
def test_folds_hold_every_labelled_source_out_once_and_whole(
    made: tuple[torch.Tensor, torch.Tensor], count: int
) -> None:
    labels, sources = made
    held = folds(labels, sources, count, generator())
    for source in sources.unique():
        assert len(held[(sources == source) & (labels >= 0)].unique()) <= 1
    assert bool((held[labels < 0] == -1).all())
    for label in labels[labels >= 0].unique().tolist():
        of_class = labels == label
        distinct = len(sources[of_class].unique())
        if distinct == 1:  # there would be nothing to learn the class from
            assert bool((held[of_class] == -1).all())
            continue
        sizes = [len(sources[of_class & (held == fold)].unique()) for fold in range(count)]
        assert sum(sizes) == distinct
        assert max(sizes) - min(sizes) <= 1


def test_folds_follow_the_generator() -> None:
    labels, sources = torch.zeros(40, dtype=torch.int64), torch.arange(40)
    first, again, other = (folds(labels, sources, 4, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)

"""Labels spread as the paper's equation says, and stop before what is like none of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from handful import propagation
from handful.propagation import guess, spread


def clusters(counts: list[int], spread_of: float = 0.15, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points around directions at right angles to each other, and which one each is around."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    noise = torch.randn((len(which), 16), generator=generator) * spread_of
    return torch.eye(16)[which] + noise, which


def first_of_each(which: Tensor, labelled: int) -> Tensor:
    labels = torch.full_like(which, -1)
    for label in range(labelled):
        labels[(which == label).nonzero()[0, 0]] = label
    return labels


def by_definition(h: Tensor, labels: Tensor, classes: int) -> np.ndarray[tuple[int, int], np.dtype]:
    """Zhou et al. (2004), one number at a time, and a solution without any iteration."""
    n = len(h)
    units = (h / h.norm(dim=1, keepdim=True)).double().numpy()
    one_way = np.zeros((n, n))
    for i in range(n):
        similar = units @ units[i]
        similar[i] = -np.inf
        for j in np.argsort(-similar)[: propagation.NEIGHBOURS]:
            one_way[i, j] = max(similar[j], 0) ** propagation.SHARPNESS
    weights = one_way + one_way.T
    degree = weights.sum(1)
    smooth = weights / np.sqrt(np.outer(degree, degree))
    known = np.zeros((n, classes))
    for i, label in enumerate(labels.tolist()):
        if label >= 0:
            known[i, label] = 1
    found = np.linalg.solve(np.eye(n) - propagation.SPREAD * smooth, known)
    return np.asarray(found / np.sqrt(degree)[:, None])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 4))
def test_labels_spread_as_the_equation_says(seed: int, classes: int) -> None:
    h, which = clusters([15] * classes, 0.4, seed)
    labels = torch.where(torch.arange(len(which)) % 5 == 0, which, -1)
    found = spread(h, labels, classes).numpy()
    assert found == pytest.approx(by_definition(h, labels, classes), rel=1e-3, abs=1e-4)


def test_blocks_of_rows_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    h, which = clusters([20, 30])
    labels = first_of_each(which, 2)
    whole = spread(h, labels, 2)
    monkeypatch.setattr(propagation, "ROWS", 7)
    assert torch.allclose(spread(h, labels, 2), whole)


@pytest.mark.parametrize("counts", [[40, 40, 40], [20, 40, 200], [30, 30, 30, 30, 30, 120]])
def test_one_label_a_class_names_its_cluster_however_large(counts: list[int]) -> None:
    h, which = clusters(counts)
    found = guess(h, first_of_each(which, len(counts)), len(counts))
    assert (found.classes == which).double().mean() > 0.98
    for label in range(len(counts)):
        assert found.familiar[which == label].double().mean() > 0.9


def test_more_labels_of_one_class_take_nothing_from_the_others() -> None:
    h, which = clusters([60, 60])
    labels = first_of_each(which, 2)
    labels[:20] = 0
    assert (guess(h, labels, 2).classes == which).double().mean() > 0.98


def test_given_labels_stay_though_all_neighbours_differ() -> None:
    h, which = clusters([30, 30])
    labels = first_of_each(which, 2)
    labels[5] = 1
    found = guess(h, labels, 2)
    assert int(found.classes[5]) == 1
    assert bool(found.familiar[labels >= 0].all())


@pytest.mark.parametrize("strangers", [10, 40, 150])
def test_what_is_like_no_label_is_left_out(strangers: int) -> None:
    h, which = clusters([60, 60, strangers])
    found = guess(h, first_of_each(which, 2), 2)
    assert found.familiar[which < 2].double().mean() > 0.9
    assert found.familiar[which == 2].double().mean() < 0.05


def test_what_lies_between_two_classes_is_undecided() -> None:
    h, which = clusters([60, 60, 5], 0.05)
    h[which == 2] += torch.eye(16)[0] + torch.eye(16)[1] - torch.eye(16)[2]
    labels = first_of_each(which, 2)
    found = guess(h, labels, 2)
    assert found.undecided[which == 2].double().mean() > 0.9
    assert found.undecided[which < 2].double().mean() < 0.05
    assert found.reached.sum(0).numpy() == pytest.approx(1)  # as much of either class in all
    unknown = labels < 0
    assert torch.equal(found.reached.argmax(1)[unknown], found.classes[unknown])
    labels[which == 2] = 0
    assert not guess(h, labels, 2).undecided[which == 2].any()  # somebody decided


def test_a_class_without_labels_is_never_guessed() -> None:
    h, which = clusters([30, 30])
    found = guess(h, first_of_each(which, 2), 5)
    assert set(found.classes.tolist()) == {0, 1}


def test_what_no_label_reaches_is_no_lesson() -> None:
    """Opposite directions have no edge: most of the pool gets nothing at all."""
    near, far = torch.eye(4)[0].repeat(5, 1), -torch.eye(4)[0].repeat(40, 1)
    h = torch.cat([near, far]) + 1e-3 * torch.arange(45)[:, None] * torch.eye(4)[1]
    labels = torch.full((45,), -1)
    labels[0] = 1
    found = guess(h, labels, 2)
    assert found.familiar[:5].all()
    assert not found.familiar[20:].any()
    assert not found.undecided.any()  # between no classes at all


def test_labels_spread_as_far_from_a_gpu(gpu: torch.device) -> None:
    h, which = clusters([200, 100, 50])
    labels = first_of_each(which, 3)
    here, there = guess(h, labels, 3), guess(h.to(gpu), labels, 3)
    assert torch.equal(here.classes, there.classes)
    assert torch.equal(here.familiar, there.familiar)

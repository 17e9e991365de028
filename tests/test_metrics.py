"""Metrics against scikit-learn and scipy, and what must hold for any input."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize_scalar
from scipy.spatial.distance import pdist
from scipy.special import log_softmax
from sklearn.metrics import (
    brier_score_loss,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
)
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from handful import metrics
from handful.metrics import Prior

seeds = st.integers(0, 2**31 - 1)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scored(seed: int, n: int = 400, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Logits that are often right, and their labels."""
    labels = (normal(seed, n).abs() * 1e6).long() % classes
    logits = 2 * normal(seed + 1, n, classes)
    logits[torch.arange(n), labels] += 2
    return logits, labels


@pytest.mark.parametrize(("right", "n"), [(98, 100), (9862, 10_000), (0, 7), (7, 7), (1, 2)])
def test_wilson_agrees_with_scipy(right: int, n: int) -> None:
    exact = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert metrics.wilson(right, n) == pytest.approx((exact.low, exact.high), abs=1e-6)


def test_98_of_100_has_the_interval_that_the_report_speaks_of() -> None:
    low, high = metrics.wilson(98, 100)
    assert (round(100 * low, 1), round(100 * high, 1)) == (93.0, 99.4)


@given(st.integers(1, 10**6), st.data())
def test_wilson_holds_the_share_and_stays_within_0_and_1(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    low, high = metrics.wilson(right, n)
    assert 0 <= low <= right / n <= high <= 1
    assert low < high


@pytest.mark.parametrize(("right", "n"), [(0, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_what_is_no_proportion(right: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{right} of {n}"):
        metrics.wilson(right, n)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12).filter(lambda v: np.std(v) > 1e-3))
def test_mean_interval_agrees_with_scipy(values: list[float]) -> None:
    mean, sd, low, high = metrics.mean_interval(values)
    assert mean == pytest.approx(np.mean(values), abs=1e-9)
    assert sd == pytest.approx(np.std(values, ddof=1))
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (low, high) == pytest.approx(expected, abs=1e-6)


def test_one_value_has_a_mean_and_no_spread() -> None:
    mean, *rest = metrics.mean_interval([0.984])
    assert mean == 0.984
    assert all(math.isnan(value) for value in rest)
    with pytest.raises(ValueError, match="at least one"):
        metrics.mean_interval([])


@given(seeds, st.integers(1, 300), st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_paired_difference_is_antisymmetric_and_holds_the_difference(
    seed: int, n: int, p: float, q: float
) -> None:
    rng = np.random.default_rng(seed)
    a, b = torch.from_numpy(rng.random(n) < p), torch.from_numpy(rng.random(n) < q)
    difference, low, high = metrics.paired_difference(a, b)
    assert difference == pytest.approx(float(a.double().mean() - b.double().mean()))
    assert low <= difference <= high
    turned = metrics.paired_difference(b, a)
    assert turned == pytest.approx((-difference, -high, -low))


def test_paired_interval_nears_walds_where_there_are_many_images() -> None:
    a = torch.arange(100_000) % 50 != 0
    b = torch.arange(100_000) % 40 != 0
    gap = (a.double() - b.double()).numpy()
    half = 1.959964 * gap.std() / math.sqrt(len(gap))
    assert metrics.paired_difference(a, b) == pytest.approx(
        (gap.mean(), gap.mean() - half, gap.mean() + half), abs=3e-5
    )


def test_paired_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        kind = rng.choice(4, size=200, p=[0.90, 0.05, 0.02, 0.03])
        a, b = torch.from_numpy((kind == 0) | (kind == 1)), torch.from_numpy(kind % 2 == 0)
        _, low, high = metrics.paired_difference(a, b)
        covered += low <= 0.05 - 0.02 <= high
    assert 0.935 < covered / 2000 < 0.985


def test_paired_interval_keeps_a_width_where_the_two_never_disagree() -> None:
    same = torch.ones(50, dtype=torch.bool)
    difference, low, high = metrics.paired_difference(same, same)
    assert difference == 0
    assert low < -0.01 < 0.01 < high
    with pytest.raises(ValueError, match="50 and 49"):
        metrics.paired_difference(same, same[1:])


@pytest.mark.parametrize("seed", range(3))
def test_report_agrees_with_scikit_learn(seed: int) -> None:
    logits, labels = scored(seed)
    report = metrics.evaluate(logits, labels)
    p, predicted = logits.softmax(1).numpy(), logits.argmax(1).numpy()
    matrix = confusion_matrix(labels, predicted, labels=range(5))
    assert report.confusion == matrix.tolist()
    assert report.accuracy == pytest.approx((predicted == labels.numpy()).mean())
    assert report.interval == metrics.wilson(int(matrix.trace()), 400)
    assert report.nll == pytest.approx(log_loss(labels, p, labels=range(5)))
    brier = brier_score_loss(labels, p, labels=range(5), scale_by_half=False)
    assert report.brier == pytest.approx(brier)
    columns = precision_recall_fscore_support(labels, predicted, labels=range(5), zero_division=0)
    for key, expected in zip(("precision", "recall", "f1", "images"), columns, strict=True):
        assert [row[key] for row in report.per_class] == pytest.approx(expected.tolist())


def test_a_class_that_never_comes_up_has_zeros() -> None:
    report = metrics.evaluate(torch.tensor([[9.0, 0, 0], [0, 9, 0]]), torch.tensor([0, 0]))
    never = {"images": 0, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert report.per_class[2] == never
    assert json.loads(json.dumps(report.as_dict()))["interval"] == list(report.interval)


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, -1], "unlabelled"), ([0, 3], "0 to 3"), ([0], "1 labels"), ([], "0 labels")],
)
def test_labels_that_cannot_be_scored_are_refused(labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.evaluate(torch.zeros(2, 3), torch.tensor(labels, dtype=torch.int64))


def test_reliability_agrees_with_bins_filled_by_hand() -> None:
    logits, labels = scored(5)
    p = logits.softmax(1)
    sure, predicted = p.max(1)
    found, ece = metrics.reliability(p, labels), 0.0
    for b in range(15):
        inside = (sure > b / 15) & (sure <= (b + 1) / 15)
        assert found.images[b] == int(inside.sum())
        if not inside.any():
            assert found.accuracy[b] is found.confidence[b] is found.low[b] is None
            continue
        right = (predicted == labels)[inside].double()
        assert found.accuracy[b] == pytest.approx(float(right.mean()))
        assert found.confidence[b] == pytest.approx(float(sure[inside].mean()))
        assert (found.low[b], found.high[b]) == metrics.wilson(int(right.sum()), len(right))
        ece += len(right) / 400 * abs(float(right.mean() - sure[inside].mean()))
    assert found.ece == pytest.approx(ece)
    assert sum(found.images) == 400
    assert metrics.evaluate(logits, labels).ece == pytest.approx(ece)


def test_certain_and_right_is_perfectly_calibrated() -> None:
    found = metrics.reliability(torch.eye(3), torch.arange(3))
    assert found.ece == 0
    assert found.images == [0] * 14 + [3]


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_temperature_agrees_with_scipy(factor: float) -> None:
    logits, labels = scored(7)
    logits = factor * logits
    doubt = 1 / (len(labels) + 2)
    targets = np.full((400, 5), doubt / 4)
    targets[np.arange(400), labels] = 1 - doubt

    def loss(log_t: float) -> float:
        return float(-(targets * log_softmax(logits.numpy() / math.exp(log_t), axis=1)).sum())

    best = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded")
    assert metrics.fit_temperature(logits, labels) == pytest.approx(math.exp(best.x), rel=1e-3)


@pytest.mark.parametrize("prior", [Prior(1.0, 0.1), Prior(1.3, 0.3), Prior(0.5, 5.0)])
def test_a_prior_draws_the_temperature_to_what_is_expected(prior: Prior) -> None:
    logits, labels = scored(7)

    def loss(log_t: float) -> float:
        scores = log_softmax(logits.numpy() / math.exp(log_t), axis=1)
        likelihood = scores[np.arange(400), labels].sum()
        return float(-likelihood + ((log_t - math.log(prior.temperature)) / prior.spread) ** 2 / 2)

    best = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded")
    found = metrics.fit_temperature(logits, labels, prior)
    assert found == pytest.approx(math.exp(best.x), rel=1e-3)
    # answers that are all right say little of certainty, however many
    few = metrics.fit_temperature(5 * torch.eye(4), torch.arange(4), Prior(1.2, 0.1))
    assert 1.15 < few < 1.2
    assert metrics.fit_temperature(5 * torch.eye(4), torch.arange(4)) > 1


def test_temperature_stays_in_its_range_and_certainty_takes_images() -> None:
    few, many = torch.eye(4), torch.eye(4).repeat(1000, 1)
    labels = torch.arange(4)
    certain = metrics.fit_temperature(many, labels.repeat(1000))
    assert 0.05 <= certain < metrics.fit_temperature(few, labels) < 1
    assert metrics.fit_temperature(100 * few, labels.flip(0)) == pytest.approx(20, rel=1e-3)
    assert metrics.fit_temperature(few / 100, labels) == pytest.approx(0.05, rel=1e-3)


@given(seeds, st.floats(0.1, 50))
@settings(max_examples=30)
def test_alignment_and_uniformity_look_at_directions_only(seed: int, scale: float) -> None:
    a, b = normal(seed, 20, 6), normal(seed + 1, 20, 6)
    assert metrics.alignment(a, scale * b) == pytest.approx(metrics.alignment(b, a))
    assert 0 <= metrics.alignment(a, b) <= 4
    assert metrics.uniformity(scale * a) == pytest.approx(metrics.uniformity(a))
    assert -8 <= metrics.uniformity(a) <= 0


def test_alignment_of_the_same_and_the_opposite() -> None:
    z = normal(0, 8, 3)
    assert metrics.alignment(z, 2 * z) == pytest.approx(0, abs=1e-12)
    assert metrics.alignment(z, -z) == pytest.approx(4)


@pytest.mark.parametrize("n", [2, 37, 1100])
def test_uniformity_agrees_with_all_pairs(n: int) -> None:
    z = normal(3, n, 8)
    unit = (z / z.norm(dim=1, keepdim=True)).numpy()
    expected = math.log(np.exp(-2 * pdist(unit, "sqeuclidean")).mean())
    assert metrics.uniformity(z) == pytest.approx(expected, abs=1e-9)


def test_uniformity_of_collapse_and_of_one_point_is_zero() -> None:
    assert metrics.uniformity(torch.ones(9, 4)) == pytest.approx(0, abs=1e-6)
    assert metrics.uniformity(torch.ones(1, 4)) == 0


def test_effective_rank_of_what_is_known() -> None:
    signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert metrics.effective_rank(signs + 7) == pytest.approx(2)
    assert metrics.effective_rank(signs[:, :1] * torch.ones(1, 5)) == pytest.approx(1)
    assert metrics.effective_rank(torch.full((6, 3), 0.1)) == 0
    assert metrics.effective_rank(torch.zeros(6, 3)) == 0


@given(seeds, st.integers(2, 30), st.integers(1, 8))
@settings(max_examples=40)
def test_effective_rank_is_that_of_roy_and_vetterli(seed: int, n: int, d: int) -> None:
    h = normal(seed, n, d)
    singular = np.linalg.svd((h - h.mean(0)).numpy(), compute_uv=False)
    expected = math.exp(stats.entropy(singular))
    assert metrics.effective_rank(h) == pytest.approx(expected, rel=1e-6)
    assert 1 - 1e-9 <= metrics.effective_rank(3 * h - 5) <= min(n - 1, d) + 1e-9


@pytest.mark.parametrize("k", [1, 5, 40])
def test_knn_agrees_with_scikit_learn(k: int) -> None:
    bank_h, h = normal(1, 40, 6).abs(), normal(2, 700, 6).abs()
    bank_labels, labels = torch.arange(40) % 4, torch.arange(700) % 4
    oracle = KNeighborsClassifier(k, weights=lambda d: 1 - d, metric="cosine", algorithm="brute")
    oracle.fit(bank_h.numpy(), bank_labels.numpy())
    expected = (oracle.predict(h.numpy()) == labels.numpy()).mean()
    assert metrics.knn_accuracy(bank_h, bank_labels, h, labels, k) == pytest.approx(expected)


def test_k_beyond_the_bank_takes_the_whole_bank() -> None:
    bank_h, labels, h = normal(1, 6, 3), torch.arange(6) % 2, normal(2, 9, 3)
    whole = metrics.knn_accuracy(bank_h, labels, h, torch.arange(9) % 2, k=6)
    assert metrics.knn_accuracy(bank_h, labels, h, torch.arange(9) % 2, k=200) == whole


def test_a_tied_vote_goes_to_the_nearest() -> None:
    # Opposite and orthogonal rows have no weight, so classes 0 and 1 tie at zero votes.
    bank_h = torch.tensor([[-1.0, 0], [0, 1]])
    query = torch.tensor([[1.0, 0]])
    assert metrics.knn_accuracy(bank_h, torch.tensor([0, 1]), query, torch.tensor([1]), k=2) == 1
    with pytest.raises(ValueError, match="got 0 and 1"):
        metrics.knn_accuracy(bank_h[:0], torch.tensor([]), query, torch.tensor([1]))

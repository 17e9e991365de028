from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta
from torch import Tensor

from handful.confidence import (
    Evidence,
    Familiar,
    abstention,
    risk_coverage,
    upper_limit,
)

answers = st.lists(st.tuples(st.integers(50, 100), st.booleans()), min_size=1, max_size=60)


def evidence(pairs: list[tuple[int, bool]]) -> Evidence:
    probability = torch.tensor([p / 100 for p, _ in pairs], dtype=torch.float64)
    return Evidence(probability, torch.tensor([right for _, right in pairs]))


def by_trial(known: Evidence, error: float) -> float:
    """The oracle: every threshold is tried."""
    fitting = []
    for threshold in known.probability.tolist():
        reached = known.probability >= threshold
        doubt = (1 - known.probability[reached]).mean()
        wrong = (~known.right[reached]).double().mean()
        if doubt <= error and wrong <= error:
            fitting.append(threshold)
    sure = known.probability >= 1 - error
    if fitting:
        return min(fitting)
    if int((sure & ~known.right).sum()) <= error * int(sure.sum()):
        return 1 - error
    return max(p for p, right in zip(known.probability, known.right, strict=True) if not right)


@given(answers, st.sampled_from([0.005, 0.013, 0.1, 0.3]))
def test_answers_stop_at_the_lowest_threshold_that_keeps_what_was_asked_for(
    pairs: list[tuple[int, bool]], error: float
) -> None:
    known = evidence(pairs)
    found = abstention(known, error)
    assert found.threshold == pytest.approx(by_trial(known, error))
    reached = known.probability >= found.threshold
    assert found.answered == int(reached.sum())
    assert found.wrong == int((~known.right[reached]).sum())
    assert found.wrong <= error * found.answered
    assert found.known == len(pairs)


@given(answers)
def test_a_smaller_error_never_asks_for_more_answers(pairs: list[tuple[int, bool]]) -> None:
    known = evidence(pairs)
    counts = [abstention(known, error).answered for error in (0.4, 0.1, 0.02)]
    assert counts == sorted(counts, reverse=True)


def test_sure_and_wrong_is_reason_to_say_nothing() -> None:
    found = abstention(evidence([(100, False)] * 5 + [(99, True)] * 15), 0.01)
    assert found.threshold > 1
    assert (found.answered, found.limit) == (0, 1.0)


def test_few_labels_certify_little() -> None:
    """A hundred right answers of a hundred leave 3 % possible, however sure they were."""
    found = abstention(evidence([(100, True)] * 100), 0.01)
    assert (found.answered, found.wrong) == (100, 0)
    assert found.limit == pytest.approx(1 - 0.05 ** (1 / 100))
    assert not found.certified
    assert abstention(evidence([(100, True)] * 500), 0.01).certified


@pytest.mark.parametrize(("wrong", "n"), [(0, 1), (0, 500), (3, 480), (7, 10)])
def test_the_limit_is_that_of_clopper_and_pearson(wrong: int, n: int) -> None:
    assert upper_limit(wrong, n) == pytest.approx(beta.ppf(0.95, wrong + 1, n - wrong))


def test_without_a_right_answer_nothing_is_excluded() -> None:
    assert upper_limit(0, 0) == upper_limit(4, 4) == 1.0


@pytest.mark.parametrize("error", [0.0, 1.0, -0.1, float("nan")])
def test_an_expected_error_is_a_share(error: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        abstention(evidence([(90, True)]), error)


def test_evidence_is_of_the_most_probable_class() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    known = Evidence.of(logits, torch.tensor([0, 1, 0]))
    assert known.right.tolist() == [True, False, False]
    assert known.probability.tolist() == pytest.approx(logits.double().softmax(1).amax(1).tolist())


def test_the_curve_of_risk_begins_with_the_surest() -> None:
    probability, right = torch.tensor([0.6, 0.9, 0.8]), torch.tensor([False, True, False])
    coverage, risk = risk_coverage(probability, right)
    assert coverage.tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert risk.tolist() == pytest.approx([0, 1 / 2, 2 / 3])


def squares_by_hand(rows: Tensor, others: Tensor, scaled_by: Tensor) -> Tensor:
    """Mahalanobis' squared distance of each row to the others, by its definition."""
    scale = scaled_by.double().std(0, correction=0)
    known, new = others.double() / scale, rows.double() / scale
    covariance = 0.9 * known.T.cov() + 0.1 * torch.eye(known.shape[1], dtype=torch.float64)
    away = new - known.mean(0)
    return (away @ torch.linalg.inv(covariance) * away).sum(1)


def test_distances_are_by_the_definitions() -> None:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(600, 8, generator=generator).abs()  # more than one block of rows
    style = torch.randn(600, 3, generator=generator) * torch.tensor([1.0, 20.0, 0.1]) + 5
    familiar = Familiar(h, style)
    units = torch.nn.functional.normalize(h, dim=1)
    similar = units @ units.T
    similar.fill_diagonal_(-1)
    alone = torch.stack(
        [
            squares_by_hand(style[i : i + 1], torch.cat([style[:i], style[i + 1 :]]), style)[0]
            for i in range(600)
        ]
    )
    own = ((1 - similar.amax(1)) * alone).sqrt().sqrt()
    assert familiar.usual == pytest.approx(float(torch.quantile(own, 0.99)), rel=2e-3)
    new, drawn = torch.randn(5, 8, generator=generator), torch.randn(5, 3, generator=generator)
    near = 1 - (torch.nn.functional.normalize(new, dim=1) @ units.T).amax(1)
    by_hand = (near * squares_by_hand(drawn, style, style)).sqrt().sqrt()
    found = familiar.distance(new, drawn) * familiar.usual
    torch.testing.assert_close(found.double(), by_hand.double(), rtol=1e-3, atol=0)


def test_a_labelled_image_is_familiar_and_one_far_in_h_or_in_style_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(600, 8, generator=generator).abs()
    style = torch.randn(600, 4, generator=generator)
    familiar = Familiar(h, style)
    assert familiar.distance(h, style).max() < 0.1
    assert familiar.distance(-h, style).mean() > 1
    moved = torch.nn.functional.normalize(h + torch.randn(600, 8, generator=generator) / 5, dim=1)
    assert familiar.distance(moved, style).mean() < 1 < familiar.distance(moved, style + 9).mean()


def test_channels_that_are_dead_do_no_harm() -> None:
    h, style = torch.rand(20, 8), torch.rand(20, 4) * torch.tensor([1.0, 1.0, 0.0, 1.0])
    for drawn in (style, style * 0):
        found = Familiar(h, drawn).distance(torch.rand(5, 8), torch.rand(5, 4))
        assert torch.isfinite(found).all()


def test_one_labelled_image_knows_nothing_usual() -> None:
    familiar = Familiar(torch.ones(1, 4), torch.ones(1, 2))
    assert familiar.usual == 0.0
    other = familiar.distance(torch.tensor([[1.0, -1.0, 1.0, -1.0]]), torch.zeros(1, 2))
    assert float(other[0]) > 1
    assert len(familiar.distance(torch.ones(0, 4), torch.ones(0, 2))) == 0

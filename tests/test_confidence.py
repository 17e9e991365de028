from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

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


def test_a_labelled_image_is_familiar_and_an_opposite_one_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(600, 8, generator=generator).abs()  # more than one block of rows
    familiar = Familiar(h)
    assert familiar.distance(h).abs().max() < 1e-3
    assert familiar.distance(-h).min() > 1
    units = torch.nn.functional.normalize(h, dim=1)
    similar = units @ units.T
    similar.fill_diagonal_(-1)
    own = 1 - similar.amax(1)
    assert familiar.usual == pytest.approx(float(torch.quantile(own, 0.99)), abs=1e-5)
    moved = torch.randn(5, 8, generator=generator)
    by_hand = 1 - (torch.nn.functional.normalize(moved, dim=1) @ units.T).amax(1)
    assert torch.allclose(familiar.distance(moved) * familiar.usual, by_hand, atol=1e-5)


def test_one_labelled_image_knows_nothing_usual() -> None:
    familiar = Familiar(torch.ones(1, 4))
    assert familiar.usual == 0.0
    assert float(familiar.distance(torch.tensor([[1.0, -1.0, 1.0, -1.0]]))[0]) > 1
    assert len(familiar.distance(torch.ones(0, 4))) == 0

from __future__ import annotations

import numpy as np
import pytest

from handful import doubts


def by_loops(p: np.ndarray, labels: np.ndarray) -> tuple[list[float], list[bool]]:
    """The paper's words, image by image: thresholds, then the largest that reaches its own."""
    classes = p.shape[1]
    thresholds = [
        np.mean([p[i, k] for i in range(len(p)) if labels[i] == k] or [np.inf])
        for k in range(classes)
    ]
    scores, wrong = [], []
    for row, label in zip(p, labels, strict=True):
        best = max(row[k] for k in range(classes) if k != label)
        scores.append((1 + row[label] - best) / 2)
        reached = [k for k in range(classes) if row[k] >= thresholds[k]]
        wrong.append(bool(reached) and max(reached, key=lambda k: row[k]) != label)
    return scores, wrong


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_the_definition_by_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, 60)
    p = rng.dirichlet(np.ones(5), 60)  # no label names the last class
    found = doubts.of_labels(p, labels)
    scores, wrong = by_loops(p, labels)
    np.testing.assert_allclose(found.score, scores)
    assert found.wrong.tolist() == wrong
    assert any(wrong)
    assert not all(wrong)
    assert (found.suggested[found.wrong] != labels[found.wrong]).all()


def test_a_class_that_is_never_sure_has_a_low_threshold() -> None:
    # the network says 0.6 at most for class 1, which is as sure as it ever is of it
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6], [0.35, 0.65]])
    found = doubts.of_labels(p, np.array([0, 0, 1, 1, 0]))
    assert found.wrong.tolist() == [False, False, False, False, True]
    assert found.order[0] == 4
    assert found.suggested[4] == 1


def test_far_out_is_what_lies_beyond_the_outer_fence() -> None:
    rng = np.random.default_rng(0)
    usual = np.exp(rng.normal(0, 0.3, 1000))
    fence = doubts.far_out(usual)
    assert (usual > fence).mean() < 0.002
    assert 5 * usual.max() > fence
    assert doubts.far_out(np.concatenate([usual, [50.0]])) == pytest.approx(fence, rel=0.05)

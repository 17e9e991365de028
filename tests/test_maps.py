"""Maps keep neighbours together, are the same twice, and take in new points."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.manifold import trustworthiness
from sklearn.neighbors import KNeighborsClassifier

from handful import maps


def clusters(n: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """n rows in four well separated directions, and which each follows."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 4
    rows = 6 * np.eye(4, 12)[labels] + rng.normal(size=(n, 12))
    return rows.astype(np.float32), labels


@pytest.fixture(scope="module")
def fitted() -> maps.Map:
    return maps.fit(clusters(160)[0], seed=3)


def test_neighbours_stay_neighbours(fitted: maps.Map) -> None:
    h, labels = clusters(160)
    assert fitted.xy.shape == (160, 2)
    assert fitted.xy.dtype == np.float32
    assert trustworthiness(h, fitted.xy, n_neighbors=10, metric="cosine") > 0.85
    assert KNeighborsClassifier(5).fit(fitted.xy, labels).score(fitted.xy, labels) > 0.98


def test_the_same_input_gives_the_same_map(fitted: maps.Map) -> None:
    np.testing.assert_array_equal(maps.fit(clusters(160)[0], seed=3).xy, fitted.xy)


def test_length_of_rows_does_not_matter(fitted: maps.Map) -> None:
    h = clusters(160)[0]
    # A power of two: scaling by it is exact in floating point.
    np.testing.assert_array_equal(maps.fit(4 * h, seed=3).xy, fitted.xy)


def test_new_points_join_their_cluster(fitted: maps.Map) -> None:
    h, labels = clusters(40, seed=9)
    reference = KNeighborsClassifier(5).fit(fitted.xy, clusters(160)[1])
    assert reference.score(fitted.place(h), labels) > 0.95


def test_placing_needs_the_stored_arrays_only_and_no_company(fitted: maps.Map) -> None:
    h = clusters(6, seed=4)[0]
    stored = maps.Map(fitted.h.copy(), fitted.xy.copy())
    together = stored.place(h)
    np.testing.assert_array_equal(together, fitted.place(h))
    alone = np.concatenate([stored.place(row[None]) for row in h])
    np.testing.assert_allclose(alone, together, atol=1e-3)


@pytest.mark.parametrize("n", [maps.FEWEST, 13])
def test_a_handful_of_points_is_enough(n: int) -> None:
    found = maps.fit(clusters(n)[0], seed=0)
    assert np.isfinite(found.xy).all()
    assert np.isfinite(found.place(clusters(3, seed=5)[0])).all()


def test_collapsed_rows_and_a_single_column_are_no_error() -> None:
    assert np.isfinite(maps.fit(np.zeros((20, 5), np.float32), seed=0).xy).all()
    line = np.linspace(-1, 1, 24, dtype=np.float32)[:, None]
    assert np.isfinite(maps.fit(line, seed=0).xy).all()


def test_what_does_not_fit_is_refused(fitted: maps.Map) -> None:
    with pytest.raises(ValueError, match=r"rows of 12 values, got \(3, 5\)"):
        fitted.place(np.zeros((3, 5), np.float32))
    with pytest.raises(ValueError, match="at least 10 rows"):
        maps.fit(np.zeros((9, 5), np.float32), seed=0)
    assert fitted.place(np.zeros((0, 12), np.float32)).shape == (0, 2)

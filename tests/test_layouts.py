"""How arrays become square pixels: layouts, scales, sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handful.layouts import SMALLEST, Layout, framed

RNG = np.random.default_rng(0)


def test_bytes_of_a_square_stay_as_they_are() -> None:
    rows = RNG.integers(0, 256, (3, 28 * 28), np.uint8)
    layout = Layout.of(rows)
    assert layout == Layout((28, 28), 0.0, 255.0)
    np.testing.assert_array_equal(layout.pixels(rows)[:, 0], rows.reshape(3, 28, 28))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 0.25, 1.0]]), [0, 128, 64, 255]),
        (np.array([[0, 51, 102, 255]], np.int64), [0, 51, 102, 255]),
        (np.array([[0.0, 0.2, 0.4, 0.9]]), [0, 51, 102, 230]),  # the brightest need not be white
        (np.array([[0.0, 4.0, 8.0, 16.0]]), [0, 64, 128, 255]),
        (np.array([[-2.0, 0.0, 1.0, 2.0]]), [0, 128, 191, 255]),
        (np.array([[False, True, True, False]]), [0, 255, 255, 0]),
        (np.array([[7.0, 7.0, 7.0, 7.0]]), [0, 0, 0, 0]),
    ],
)  # fmt: skip
def test_the_scale_of_numbers_is_learned(values: np.ndarray, expected: list[int]) -> None:
    found = Layout.of(values).pixels(values)
    times = found.shape[2] // 2
    assert found[0, 0, ::times, ::times].ravel().tolist() == expected


def test_later_numbers_are_measured_by_the_first() -> None:
    layout = Layout.of(np.array([[-1.0, 0.0, 0.0, 1.0]]))
    later = layout.pixels(np.array([[-9.0, 0.0, 0.5, 9.0]]))
    assert later[0, 0, ::10, ::10].ravel().tolist() == [0, 128, 191, 255]


def test_another_scale_is_refused_in_one_line() -> None:
    bytes_, shares = np.array([[0, 200, 9, 9]], np.uint8), np.array([[0.0, 0.8, 0.5, 0.1]])
    with pytest.raises(ValueError, match="0 to 1 and these reach 200: bring them to the same scal"):
        Layout.of(shares).pixels(bytes_)
    with pytest.raises(ValueError, match=r"0 to 255 and these reach 0\.8"):
        Layout.of(bytes_).pixels(shares)
    Layout.of(bytes_).pixels(np.zeros((1, 4)))  # an image may be black


@given(features=st.integers(1, 700))
def test_rows_of_any_length_are_kept_whole(features: int) -> None:
    rows = np.arange(1, features + 1, dtype=np.float64)[None] % 256
    layout = Layout((*Layout.of(rows).shape,), 0.0, 255.0)
    found = layout.pixels(rows)
    _, channels, height, width = found.shape
    assert channels == 1
    assert height == width >= SMALLEST
    side = layout.shape[0]
    assert (side - 1) ** 2 < features <= side**2
    times = height // side
    flat = found[0, 0, ::times, ::times].ravel()
    np.testing.assert_array_equal(flat[:features], rows[0])
    assert not flat[features:].any()
    block = np.ones((times, times), np.uint8)
    np.testing.assert_array_equal(found[0, 0], np.kron(flat.reshape(side, side), block))


def test_colour_is_found_on_either_side() -> None:
    images = RNG.integers(0, 256, (2, 3, 24, 24), np.uint8)
    last = images.transpose(0, 2, 3, 1)
    for given_, shape in ((images, (3, 24, 24)), (last, (24, 24, 3))):
        rows = given_.reshape(2, -1)
        layout = Layout.of(rows, shape)
        assert layout.frame == (3, 24, 24)
        np.testing.assert_array_equal(layout.pixels(rows), images)
    first = Layout.of(images.reshape(2, -1), (3, 24, 24))
    np.testing.assert_array_equal(first.pixels(last.reshape(2, -1), (24, 24, 3)), images)


def test_oblong_images_lie_in_the_middle_of_black() -> None:
    rows = np.full((1, 20 * 31), 255, np.uint8)
    found = Layout.of(rows, (20, 31)).pixels(rows)[0, 0]
    assert found.shape == (31, 31)
    assert not found[:5].any()
    assert (found[5:25] == 255).all()
    assert not found[25:].any()


@pytest.mark.parametrize("shape", [(5,), (4, 8, 8), (8, 8, 4), (2, 2, 2, 2), (0, 4), (3, 0, 4)])
def test_what_is_no_shape_of_images_is_said(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"no layout that is known: expected \(H, W\)"):
        framed(shape)

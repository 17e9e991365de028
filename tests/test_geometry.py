"""Warps against scipy.ndimage, moments against sums, and what poses leave alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from handful.datasets import Dataset
from handful.geometry import affine, moments, upright, warp
from handful.images import to_float


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(n: int, channels: int = 1, height: int = 12, width: int = 12) -> Tensor:
    shape = (n, channels, height, width)
    return torch.randint(256, shape, generator=generator(), dtype=torch.uint8)


def resampled(x: Tensor, row: np.ndarray, column: np.ndarray, mode: str) -> Tensor:
    """Each image and channel of x (N, C, H, W) read at row, column (N, H, W), by scipy."""
    read = [
        [
            ndimage.map_coordinates(channel, [row[i], column[i]], order=1, mode=mode)
            for channel in image.double().numpy()
        ]
        for i, image in enumerate(x)
    ]
    return torch.tensor(np.array(read)).float()


def warp_by_scipy(
    x: Tensor, matrix: Tensor, shift: Tensor, field: Tensor | None, mode: str = "grid-constant"
) -> Tensor:
    """What is at q moves to p = matrix @ q + shift: at p, read q (and where the field says)."""
    n, _, height, width = x.shape
    rows, columns = np.mgrid[:height, :width]
    p = np.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], -1)  # (H, W, 2)
    q = np.empty((n, height, width, 2))
    for i in range(n):
        inverse = np.linalg.inv(matrix[i].double().numpy())
        q[i] = (p - shift[i].double().numpy()) @ inverse.T
        if field is not None:
            q[i] += field[i].double().numpy()
    column = ((q[..., 0] + 1) * width - 1) / 2
    row = ((q[..., 1] + 1) * height - 1) / 2
    return resampled(x, row, column, mode)


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 9, 14)])
@pytest.mark.parametrize("bent", [False, True])
@pytest.mark.parametrize(
    ("padding", "mode"), [("zeros", "grid-constant"), ("reflection", "reflect")]
)
def test_a_warp_is_what_scipy_makes_of_it(
    shape: tuple[int, int, int], bent: bool, padding: str, mode: str
) -> None:
    rng, n = generator(), 5
    x = torch.rand((n, *shape), generator=rng)
    matrix = affine(
        torch.rand(n, generator=rng) * 2,
        torch.rand((n, 2), generator=rng) - 0.5,
        torch.rand(n, generator=rng) - 0.5,
    )
    shift = torch.rand((n, 2), generator=rng) - 0.5
    field = torch.randn((n, *shape[1:], 2), generator=rng) * 0.1 if bent else None
    expected = warp_by_scipy(x, matrix, shift, field, mode)
    torch.testing.assert_close(warp(x, matrix, shift, field, padding), expected, rtol=0, atol=2e-5)


def test_a_warp_agrees_with_scipys_affine_transform() -> None:
    """In pixels, rows first, as scipy has it: another formula for the same thing."""
    x = to_float(noise(1, height=11, width=11))
    angle = 0.4
    moved = warp(
        x, affine(torch.tensor([angle]), torch.zeros(1, 2), torch.zeros(1)), torch.zeros(1, 2)
    )
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]])  # from output (row, column) to input
    expected = ndimage.affine_transform(
        x[0, 0].numpy(), turn, np.array([5, 5]) - turn @ [5, 5], order=1, mode="grid-constant"
    )
    torch.testing.assert_close(moved[0, 0], torch.tensor(expected), rtol=0, atol=1e-5)


def test_quarter_turns_and_whole_pixels_are_exact() -> None:
    x = to_float(noise(1, height=8, width=8))
    none = torch.zeros(1)
    turned = warp(x, affine(none + math.pi / 2, torch.zeros(1, 2), none), torch.zeros(1, 2))
    torch.testing.assert_close(turned, x.rot90(-1, (2, 3)), rtol=0, atol=1e-5)
    shifted = warp(x, torch.eye(2)[None], torch.tensor([[2 * 2 / 8, -1 * 2 / 8]]))
    expected = torch.zeros_like(x)
    expected[..., :-1, 2:] = x[..., 1:, :-2]  # two to the right, one up
    torch.testing.assert_close(shifted, expected, rtol=0, atol=1e-5)


def test_affine_scales_then_slants_then_turns() -> None:
    turn, scale, slant = 0.3, (0.2, -0.1), 0.25
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    expected = rotation @ np.array([[1, slant], [0, 1]]) @ np.diag(np.exp(scale))
    matrix = affine(torch.tensor([turn]), torch.tensor([scale]), torch.tensor([slant]))
    torch.testing.assert_close(matrix[0], torch.tensor(expected).float())


@pytest.mark.parametrize("field", [None, torch.zeros(4, 9, 14, 2)])
def test_an_identity_warp_changes_nothing(field: Tensor | None) -> None:
    x = to_float(noise(4, 3, 9, 14))
    unmoved = warp(x, torch.eye(2).expand(4, 2, 2), torch.zeros(4, 2), field)
    torch.testing.assert_close(unmoved, x, rtol=0, atol=1e-5)


def test_moments_are_sums_over_pixels() -> None:
    x = to_float(noise(3, channels=3, height=7, width=10))
    centre, spread = moments(x)
    rows, columns = np.mgrid[:7, :10]
    place = np.stack([(2 * columns + 1) / 10 - 1, (2 * rows + 1) / 7 - 1])  # (2, H, W)
    for image, mean, covariance in zip(x.sum(1).double().numpy(), centre, spread, strict=True):
        weights = image / image.sum()
        expected = (place * weights).sum((1, 2))
        away = place - expected[:, None, None]
        np.testing.assert_allclose(mean, expected, atol=1e-6)
        products = (away[:, None] * away[None] * weights).sum((2, 3))
        np.testing.assert_allclose(covariance, products, atol=1e-6)


def test_upright_ink_is_centred_and_leans_to_no_side(bundled: Dataset) -> None:
    digits = to_float(bundled.train.images)
    before, after = (moments(x) for x in (digits, upright(digits)))
    assert float(after[0].abs().max()) < 0.02  # a quarter of a pixel: bilinear, and some leaves
    leaning = before[1][:, 0, 1].abs()
    assert float(after[1][:, 0, 1].abs().mean()) < 0.05 * float(leaning.mean())


def test_a_slant_is_what_upright_takes_out(bundled: Dataset) -> None:
    digits = to_float(bundled.train.images[:200])
    none, n = torch.zeros(200), len(digits)
    slanted = warp(digits, affine(none, torch.zeros(n, 2), none + 0.3), torch.zeros(n, 2))
    apart = (slanted - digits).square().mean()
    assert float((upright(slanted) - upright(digits)).square().mean()) < 0.1 * float(apart)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_upright_keeps_the_precision_that_it_gets(bundled: Dataset, dtype: torch.dtype) -> None:
    digits = to_float(bundled.train.images[:20])
    found = upright(digits.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), upright(digits), rtol=0, atol=0.05)


def test_no_ink_and_too_steep_a_line_stay_what_they_are() -> None:
    assert not upright(torch.zeros(2, 1, 28, 28)).any()
    flat = torch.zeros(1, 1, 28, 28)
    for i in range(28):  # it rises by 2 in 28: no shear of a letter made that
        flat[0, 0, 13 + i // 14, i] = 1.0
    assert float(upright(flat).sum()) > 0.5 * float(flat.sum())

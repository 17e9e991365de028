"""Affine maps of whole batches of images, and the one resampling that carries them out."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def warp(
    x: Tensor,
    matrix: Tensor,
    shift: Tensor,
    field: Tensor | None = None,
    padding: str = "zeros",
) -> Tensor:
    """Resample images once, bilinearly, under an affine map and a displacement.

    x: float (N, C, H, W). matrix: (N, 2, 2) and shift: (N, 2) move what is at (x, y) to
    `matrix @ (x, y) + shift`, in units of half the image's side from its centre; one of each moves
    all images alike.
    field: (N, H, W, 2), added to the place that is read, in the same units.
    Outside the image is black (`zeros`) or its mirror image (`reflection`).
    """
    grid = places_read(matrix, shift, x.shape[2], x.shape[3])
    if field is not None:
        grid += field
    return sampled(x, grid, padding)


def places_read(matrix: Tensor, shift: Tensor, height: int, width: int) -> Tensor:
    """Where each pixel of an affine map is read, (N, H, W, 2), in the units of `warp`."""
    inverse = _inverse(matrix)
    offset = -(inverse @ shift[:, :, None])
    affine_part = torch.cat([inverse, offset], 2).view(-1, 6)
    # what is made while a graph is traced must not be kept
    basis = _pixel_basis.__wrapped__ if torch.compiler.is_compiling() else _pixel_basis
    # one product makes the whole grid, far faster than many small ones, image by image
    grid = affine_part @ basis(height, width, matrix.device)
    return grid.view(-1, height, width, 2)


def sampled(x: Tensor, grid: Tensor, padding: str = "zeros") -> Tensor:
    """Images (N, C, H, W) read at the places of a grid, one for each or one for all."""
    grid = grid.expand(x.shape[0], -1, -1, -1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def _inverse(matrix: Tensor) -> Tensor:
    """Inverse of (N, 2, 2) matrices, by the formula: far cheaper than a general solver."""
    a, b, c, d = matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 1, 0], matrix[:, 1, 1]
    adjugate = torch.stack([torch.stack([d, -b], 1), torch.stack([-c, a], 1)], 1)
    return adjugate / (a * d - b * c)[:, None, None]


def _places(height: int, width: int, device: torch.device) -> Tensor:
    """Pixel centres as (x, y) in a frame that spans -1 to 1, row by row: (H·W, 2)."""
    ys = (torch.arange(height, device=device) * 2 + 1) / height - 1
    xs = (torch.arange(width, device=device) * 2 + 1) / width - 1
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack([x, y], -1).view(-1, 2)


@lru_cache(maxsize=16)
def _pixel_basis(height: int, width: int, device: torch.device) -> Tensor:
    """(6, H·W·2): what the rows (a, b, c) and (d, e, f) of an affine map add to x and y of a pixel.

    Pixel centres, in a frame that spans -1 to 1.
    """
    x, y = _places(height, width, device).T
    place = torch.stack([x, y, torch.ones_like(x)])  # (3, H·W)
    basis = torch.zeros(2, 3, height * width, 2, device=device)
    basis[0, ..., 0], basis[1, ..., 1] = place, place
    return basis.view(6, -1)


def affine(rotation: Tensor, log_scale: Tensor, shear: Tensor) -> Tensor:
    """Matrices (N, 2, 2): scale on each axis, then shear, then rotation.

    rotation: (N,) radians. log_scale: (N, 2). shear: (N,) tangent.
    """
    cos, sin = rotation.cos(), rotation.sin()
    scale_x, scale_y = log_scale.exp().unbind(1)
    top = torch.stack([cos * scale_x, (cos * shear - sin) * scale_y], 1)
    bottom = torch.stack([sin * scale_x, (sin * shear + cos) * scale_y], 1)
    return torch.stack([top, bottom], 1)


STEEPEST = 0.8
"""Tangent of the largest slant that is taken out: beyond it a stroke lies rather than leans."""
TINY = 1e-3


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Where the ink of float images (N, C, H, W) lies: its centre (N, 2) and spread (N, 2, 2).

    Centre of mass and covariance as (x, y), in units of half the image's side from its centre; of
    an empty image, zeros.
    """
    height, width = x.shape[2:]
    ink = x.sum(1).flatten(1)  # (N, H·W)
    weights = ink / ink.sum(1, keepdim=True).clamp(min=TINY)
    place = _places(height, width, x.device)  # (H·W, 2)
    centre = weights @ place
    products = (place[:, :, None] * place[:, None, :]).flatten(1)  # (H·W, 4)
    second = (weights @ products).view(-1, 2, 2)
    return centre, second - centre[:, :, None] * centre[:, None, :]


def upright(x: Tensor) -> Tensor:
    """Float images (N, C, H, W) of any precision, their ink centred and its slant taken out.

    Slant is how far ink leans to the side for each step down: sheared back, x and y of the ink are
    uncorrelated.
    """
    kind, x = x.dtype, x.float()  # half precision has too few digits for places
    centre, spread = moments(x)
    slant = spread[:, 0, 1] / spread[:, 1, 1].clamp(min=TINY)
    matrix = torch.eye(2, device=x.device).repeat(len(x), 1, 1)
    matrix[:, 0, 1] = -slant.clamp(-STEEPEST, STEEPEST)
    return warp(x, matrix, -(matrix @ centre[:, :, None])[:, :, 0]).to(kind)

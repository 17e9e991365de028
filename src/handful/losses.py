"""Contrastive losses. Tensors in, a scalar out; they know nothing of processes or networks.

Of a batch larger than one tile the matrix of similarities is never held: tiles of it are computed,
used and dropped, and computed again in the backward pass. Memory beyond the inputs and their
gradients is a few tiles, however large the batch; each similarity is computed once for both of its
views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Result = TypeVar("Result")

LOWEST_TEMPERATURE = 0.002
FLOAT32_DOWN_TO = 1 / 32
"""exp(1 / temperature), summed over a large batch, stays far inside float32 down to here."""
TILE_CPU, TILE_GPU = 512, 8192
"""Rows and columns of a tile: on a CPU it should stay in the cache, a GPU wants much at once."""
LARGEST_KEPT = 2048
"""Rows and columns of the largest tile that waits for the backward pass: 16 MB."""


def nt_xent(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float,
    sources: Tensor | None = None,
    *,
    others: Tensor | None = None,
    other_sources: Tensor | None = None,
) -> Tensor:
    """NT-Xent, the normalised temperature-scaled cross-entropy: a scalar, the mean over 2N views.

    SimCLR (Chen et al. 2020), equation 1 and Algorithm 1: each view must tell its partner from all
    other views by cosine similarity over `temperature`.

    z_a, z_b: projections (N, K) of two views of the same images, row by row.
    sources: int64 (N,). Images made of one source are not each other's negatives; without it,
        every other image is a negative, as in the paper.
    others: (R, K), views that are negatives and no more, as another process holds them, with their
        sources int64 (R,) if and only if `sources` are given. The mean of all processes' losses,
        weighted by their images, is then the loss of the joint batch; so is its gradient.

    Raises ValueError for a temperature below 0.002, and on a device without float64 below 0.032.
    """
    if others is not None and (sources is None) != (other_sources is None):
        raise ValueError("give the sources of all views, other processes' as well, or of none")
    crowd, agreement = _contrast(
        z_a, z_b, others, temperature, _groups(sources, other_sources, None)
    )
    return torch.mean(crowd) - torch.mean(agreement)


def sup_con(
    z_a: Tensor,
    z_b: Tensor,
    labels: Tensor,
    temperature: float,
    sources: Tensor | None = None,
    classes: int | None = None,
) -> Tensor:
    """The labelled form of NT-Xent: every view of the same class is a partner.

    SupCon (Khosla et al. 2020), equation 2 (the sum over partners outside the logarithm), as the
    mean over 2N views. An unlabelled image (-1) has its own other view as its only partner, and
    images of its source are hidden from it; without any label this is `nt_xent`.

    z_a, z_b: (N, K). labels: int64 (N,). sources: int64 (N,) or None.
    classes: how many labels there are; where it is not given, a GPU waits to look.

    Raises ValueError as `nt_xent`.
    """
    crowd, agreement = _contrast(z_a, z_b, None, temperature, _groups(sources, None, labels))
    u = F.normalize(torch.cat([z_a, z_b]).to(crowd.dtype), dim=1)  # (2N, K)
    label = labels.repeat(2)
    known = label >= 0
    member = F.one_hot(label.clamp(min=0), classes or -1).to(u.dtype) * known[:, None]  # (2N, Y)
    # a sum over partners is a product with the sum of the class, the view itself (1) left out
    with torch.autocast(u.device.type, enabled=False):
        towards = (u * (member @ (member.T @ u))).sum(1) - 1
    partners = (member @ member.sum(0) - 1).clamp(min=1)
    agreements = torch.where(known, towards / partners / temperature, agreement.repeat(2))
    return torch.mean(crowd - agreements)


class _Groups(NamedTuple):
    """Who is hidden from whom: views of one source, unless they share a label."""

    sources: Tensor
    labels: Tensor | None


def _groups(
    sources: Tensor | None, other_sources: Tensor | None, labels: Tensor | None
) -> _Groups | None:
    if sources is None:
        return None
    both = sources.repeat(2)
    if other_sources is not None:
        both = torch.cat([both, other_sources])
    return _Groups(both, None if labels is None else labels.repeat(2))


class _Tile(NamedTuple):
    """Some views in a row: their projections (T, K), and where they stand among all views."""

    z: Tensor
    at: slice


def _tiles(parts: Iterable[Tensor], size: int) -> list[_Tile]:
    found, start = [], 0
    for part in parts:
        for z in part.split(size):
            found.append(_Tile(z, slice(start, start + len(z))))
            start += len(z)
    return found


def _in_full_precision(function: Callable[..., Result]) -> Callable[..., Result]:
    """Without the caller's autocast, whose half precision would overflow and blur."""

    @wraps(function)
    def outside(ctx: Any, z: Tensor, *rest: Any) -> Result:
        with torch.autocast(z.device.type, enabled=False):
            return function(ctx, z, *rest)

    return outside


class _Contrast(torch.autograd.Function):
    """What both losses are made of.

    crowd (2N,): the logarithm of each view's summed exponentials of similarity to all other views
        that are not hidden from it. agreement (N,): similarity of the two views of an image.

    Similarities are cosines over temperature, in at least float32: half precision overflows at
    low temperatures, so it stops here. They are at most 1 / temperature in size, so that no
    maximum need be taken out before the exponential.
    """

    @staticmethod
    @_in_full_precision
    def forward(
        ctx: Any,
        z_a: Tensor,
        z_b: Tensor,
        others: Tensor | None,
        temperature: float,
        groups: _Groups | None,
    ) -> tuple[Tensor, Tensor]:
        pairs = _Pairs(z_a, z_b, others, temperature, groups)
        total = z_a.new_zeros(pairs.views, dtype=pairs.dtype)
        for row, column, similar in pairs:
            total[row.at] += similar.sum(1)
            if column is not row:
                total[column.at] += similar.sum(0)
        agreement = [(u_a * u_b).sum(1) for _, u_a, _, u_b in pairs.partners()]
        ctx.save_for_backward(z_a, z_b, others, total)
        ctx.temperature, ctx.groups, ctx.kept = temperature, groups, pairs.kept
        kind = torch.float64 if z_a.dtype == torch.float64 else torch.float32
        crowd = total[: 2 * len(z_a)].log().to(kind)
        return crowd, (torch.cat(agreement) / temperature).to(kind)

    @staticmethod
    @once_differentiable
    @_in_full_precision
    def backward(  # type: ignore[override]
        ctx: Any, to_crowd: Tensor, to_agreement: Tensor
    ) -> tuple[Tensor | None, ...]:
        z_a, z_b, others, total = ctx.saved_tensors
        pairs = _Pairs(z_a, z_b, others, ctx.temperature, ctx.groups, ctx.kept)
        weight = torch.zeros_like(total)  # other processes' views have their own crowds
        weight[: len(to_crowd)] = to_crowd / total[: len(to_crowd)]
        gradient = z_a.new_zeros((len(total), z_a.shape[1]), dtype=pairs.dtype)
        end = len(total) if ctx.needs_input_grad[2] else len(to_crowd)
        for row, column, similar in pairs:
            pull = similar * (weight[row.at, None] + weight[column.at])
            gradient[row.at].addmm_(pull, pairs.unit(column))
            if column is not row and column.at.start < end:
                gradient[column.at].addmm_(pull.T, pairs.unit(row))
        for a, u_a, b, u_b in pairs.partners():
            share = to_agreement[a, None]
            gradient[a].addcmul_(share, u_b)
            gradient[b].addcmul_(share, u_a)
        gradient.div_(pairs.temperature)
        for tile in pairs.tiles:
            _through_norm(gradient[tile.at], tile.z, pairs.unit(tile))
        found = gradient.to(z_a.dtype)
        to_a, to_b, to_others = found.tensor_split((len(z_a), 2 * len(z_a)))
        return to_a, to_b, None if others is None else to_others, None, None


def _through_norm(gradient: Tensor, z: Tensor, u: Tensor) -> None:
    """Turn the gradient of u = z / |z| into that of z, in place; all are (T, K)."""
    gradient.addcmul_(u, (u * gradient).sum(1, keepdim=True), value=-1)
    gradient.div_(z.to(u.dtype).norm(dim=1, keepdim=True).clamp(min=1e-12))


# what autograd calls it by has no types
_contrast: Callable[..., tuple[Tensor, Tensor]] = _Contrast.apply


class _Kept(NamedTuple):
    """What the backward pass need not compute again, where one tile holds all views."""

    unit: Tensor
    similar: Tensor


class _Pairs:
    """Tiles of exp(cosine / temperature), zero for a view with itself and for hidden views.

    Iterating gives (rows, columns, similarities (T, U)), every pair of views once: the tile of rows
    and columns stands for the mirrored one as well. Rows are of z_a and z_b alone.
    """

    def __init__(
        self,
        z_a: Tensor,
        z_b: Tensor,
        others: Tensor | None,
        temperature: float,
        groups: _Groups | None,
        kept: _Kept | None = None,
    ) -> None:
        self.temperature, self.groups, self.kept = temperature, groups, kept
        self.images = len(z_a)
        self.dtype = _working_type(z_a, temperature)
        self.size = TILE_CPU if z_a.device.type == "cpu" else TILE_GPU
        # a small batch is one tile: many small operations would take longer than its products
        joint = 2 * len(z_a) <= min(self.size, LARGEST_KEPT)
        parts = [torch.cat([z_a, z_b])] if joint else [z_a, z_b]
        self.tiles = _tiles(parts if others is None else [*parts, others], self.size)
        self.views = self.tiles[-1].at.stop

    def unit(self, tile: _Tile) -> Tensor:
        return self.kept.unit if self.kept else F.normalize(tile.z.to(self.dtype), dim=1)

    def partners(self) -> Iterator[tuple[slice, Tensor, slice, Tensor]]:
        """Where views a of some images stand, their units (T, K), and those of their views b."""
        n = self.images
        if self.tiles[0].at.stop == 2 * n:
            u = self.unit(self.tiles[0])
            yield slice(n), u[:n], slice(n, 2 * n), u[n:]
            return
        half = -(-n // self.size)
        for a, b in zip(self.tiles[:half], self.tiles[half : 2 * half], strict=True):
            yield a.at, self.unit(a), b.at, self.unit(b)

    def __iter__(self) -> Iterator[tuple[_Tile, _Tile, Tensor]]:
        if self.kept:
            yield self.tiles[0], self.tiles[0], self.kept.similar
            return
        for i, row in enumerate(self.tiles):
            if row.at.start >= 2 * self.images:
                break
            u = self.unit(row)
            scaled = u / self.temperature
            for column in self.tiles[i:]:
                similar = (scaled @ (u if column is row else self.unit(column)).T).exp_()
                self._hide(row, column, similar)
                if len(self.tiles) == 1:
                    self.kept = _Kept(u, similar)
                yield row, column, similar

    def _hide(self, row: _Tile, column: _Tile, similar: Tensor) -> None:
        if self.groups is not None:
            sources, labels = self.groups
            hidden = sources[row.at, None] == sources[column.at]
            if labels is not None:
                known = labels[row.at, None] >= 0
                hidden &= ~((labels[row.at, None] == labels[column.at]) & known)
            if column.at.start < 2 * self.images:
                self._show_partners(row, column, hidden)
            similar.masked_fill_(hidden, 0)
        if row is column:
            similar.fill_diagonal_(0)

    def _show_partners(self, row: _Tile, column: _Tile, hidden: Tensor) -> None:
        for offset in (self.images, -self.images):  # from a view to its image's other one
            place = row.at.start + offset - column.at.start
            if -len(row.z) < place < len(column.z):
                hidden.diagonal(place).fill_(False)


def _working_type(z: Tensor, temperature: float) -> torch.dtype:
    if temperature < LOWEST_TEMPERATURE:
        raise ValueError(f"temperature {temperature} is too low: at least {LOWEST_TEMPERATURE}")
    if temperature >= FLOAT32_DOWN_TO and z.dtype != torch.float64:
        return torch.float32
    if z.device.type == "mps":
        raise ValueError(
            f"temperature {temperature} needs float64, which {z.device.type} lacks: "
            f"at least {FLOAT32_DOWN_TO:.3f} there, or --device cpu"
        )
    return torch.float64

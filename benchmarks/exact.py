"""Errors of the tiled NT-Xent against the whole matrix in float64."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import cells
from benchmarks.measure import Benchmark, Options, Row
from handful import losses

TEMPERATURE = 0.1


def dense(z_a: Tensor, z_b: Tensor, temperature: float) -> Tensor:
    """NT-Xent from the matrix of all similarities: SimCLR (Chen et al. 2020), equation 1."""
    n = len(z_a)
    z = F.normalize(torch.cat([z_a, z_b]), dim=1)
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)  # (2N, 2N)
    partner = torch.arange(2 * n).roll(n)
    return F.cross_entropy(logits, partner)


def errors(n: int, dim: int, dtype: torch.dtype, tile: int) -> tuple[float, float]:
    """Relative errors of the value and, norm-wise, of both gradients together."""
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(2, n, dim, generator=generator, dtype=torch.float64).to(dtype)
    exact, slope = _value_and_gradient(dense, pair.double())
    with patch.object(losses, "TILE_CPU", tile):
        value, found = _value_and_gradient(losses.nt_xent, pair)
    return float((value - exact).abs() / exact), float((found - slope).norm() / slope.norm())


def _value_and_gradient(loss: object, pair: Tensor) -> tuple[Tensor, Tensor]:
    assert callable(loss)
    pair = pair.clone().requires_grad_()
    value = loss(*pair, TEMPERATURE)
    (gradient,) = torch.autograd.grad(value, pair)
    return value.detach().double(), gradient.double()


def run(options: Options) -> Iterator[Row]:
    n, dim = (60, 8) if options.quick else (1500, 32)
    for tiles, size in (("small", min(256, n // 4)), ("usual", losses.TILE_CPU)):
        for dtype in (torch.float64, torch.float32):
            value, gradient = errors(n, dim, dtype, size)
            kind = str(dtype).removeprefix("torch.")
            yield {"case": f"{kind}, {tiles} tiles", "kind": kind, "tile": size,
                   "value": value, "gradient": gradient}  # fmt: skip


BENCHMARK = Benchmark(
    title="Exactness of the loss",
    about=f"""Relative errors of value and gradient (norm of the difference over the norm) against
the whole matrix in float64, from the same projections, 2 × 1,500 × 32, at temperature
{TEMPERATURE}.""",
    columns={
        "computed in": cells.text("kind"),
        "rows of a tile": cells.text("tile"),
        "error of the value": lambda row: f"{row['value']:.1e}",
        "error of the gradient": lambda row: f"{row['gradient']:.1e}",
    },
    run=run,
)

"""Contrastive losses, forward and backward."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import cells, peers
from benchmarks.measure import Benchmark, Call, Options, Row, alternate, duel
from handful.losses import nt_xent, sup_con

DIM, TEMPERATURE, CLASSES = 128, 0.5, 10
Loss = Callable[[Tensor, Tensor], Tensor]
"""Two views' projections (N, K) to a scalar."""

SIZES = {
    "lightly": (256, 1024, 4096),
    "simclr": (256,),
    "pytorch-metric-learning": (256,),
    "pytorch-metric-learning, SupCon": (1024,),
}
SLOW, GIGABYTES = ("simclr", 1024), 16
"""What takes minutes, and the memory that a machine should have for it."""


def ours(z_a: Tensor, z_b: Tensor) -> Tensor:
    return nt_xent(z_a, z_b, TEMPERATURE)


def our_sup_con(z_a: Tensor, z_b: Tensor) -> Tensor:
    return sup_con(z_a, z_b, _labels(len(z_a)), TEMPERATURE)


def _labels(n: int) -> Tensor:
    return torch.arange(n) % CLASSES


def theirs(peer: str, n: int) -> Loss:
    """A peer's loss of two views of n images."""
    peers.prepare()
    if peer == "lightly":
        from lightly.loss import NTXentLoss

        lightly: Loss = NTXentLoss(TEMPERATURE)
        return lightly
    if peer == "simclr":
        from simclr.modules import NT_Xent

        simclr: Loss = NT_Xent(n, TEMPERATURE, 1)
        return simclr
    from pytorch_metric_learning import losses

    labelled = peer.endswith("SupCon")
    loss: Any = (losses.SupConLoss if labelled else losses.NTXentLoss)(TEMPERATURE)
    labels = (_labels(n) if labelled else torch.arange(n)).repeat(2)
    return lambda z_a, z_b: loss(torch.cat([z_a, z_b]), labels)


def projections(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z_a, z_b = torch.randn(2, n, DIM, generator=generator)
    return z_a.requires_grad_(), z_b.requires_grad_()


def descent(loss: Loss, n: int) -> Call:
    """Value and gradient, of the same projections each time."""
    z = projections(n)

    def call() -> None:
        for part in z:
            part.grad = None
        loss(*z).backward()

    return call


def run(options: Options) -> Iterator[Row]:
    for peer, n in _cases(options):
        mine = our_sup_con if peer.endswith("SupCon") else ours
        calls = {"ours": descent(mine, n), "theirs": descent(theirs(peer, n), n)}
        times = alternate(calls, options.rounds)
        yield {"case": f"{peer}, {n}", "peer": peer, "n": n, **duel(times, "ours", "theirs")}


def _cases(options: Options) -> Iterator[tuple[str, int]]:
    for peer, sizes in SIZES.items():
        yield from ((peer, n) for n in ((64,) if options.quick else sizes))
    if options.slow and not options.quick:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        if memory > GIGABYTES:
            yield SLOW


BENCHMARK = Benchmark(
    title="Loss",
    about=f"""Value and gradient of two views' projections, N × {DIM} each, in milliseconds. NT-Xent
against `NTXentLoss` of lightly and of pytorch-metric-learning (labels: the images' numbers) and
`NT_Xent` of simclr; SupCon of {CLASSES} classes against `SupConLoss`. The peers with one size alone
hold several arrays of 2N · 4N² numbers (pytorch-metric-learning) or {DIM} · 4N² (simclr); `--slow`
adds simclr's at {SLOW[1]:,} where there are more than {GIGABYTES} GB.""",
    columns={
        "peer": cells.text("peer"),
        "N": cells.number("n"),
        "ours, ms": cells.milliseconds("ours"),
        "peer, ms": cells.milliseconds("theirs"),
        "times as fast": cells.times_as_fast,
    },
    run=run,
)

"""Where the time of a pretext step goes, and how near the encoder comes to the machine's limit."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import cells
from benchmarks.epoch import bare_epoch, networks
from benchmarks.measure import Benchmark, Call, Options, Row, alternate, median
from handful import datasets
from handful.config import DataConfig, RunConfig
from handful.images import ImageSet
from handful.losses import nt_xent, sup_con
from handful.networks import multiply_adds
from handful.optim import optimizer
from handful.recipes import RECIPES
from handful.splits import batches_per_epoch
from handful.views import two_views

PHASES = ("views", "forward", "loss", "backward", "optimiser")
FORWARD_AND_BACKWARD = 3
"""Times the multiply-adds of a forward pass: the backward pass needs two products for each one."""


def phases(images: ImageSet, config: RunConfig, steps: int) -> dict[str, float]:
    """Share of each part in a pretext step, by medians over some steps."""
    pretext = config.pretext
    encoder, head = networks(images, config.network)
    chosen = optimizer(
        [(nn.ModuleList([encoder, head]), pretext.learning_rate)],
        pretext.optimizer,
        pretext.weight_decay,
    )
    generator = torch.Generator().manual_seed(0)
    chunks = torch.arange(len(images)).tensor_split(
        batches_per_epoch(len(images), pretext.batch_size)
    )
    spent: list[list[float]] = []
    for step in range(steps + 1):
        batch = images.select(chunks[step % len(chunks)])
        marks = [time.perf_counter()]
        x = torch.cat(two_views(batch.images, pretext.views, generator))
        marks.append(time.perf_counter())
        z_a, z_b = head(encoder(x)).chunk(2)
        marks.append(time.perf_counter())
        if pretext.loss == "sup_con":
            loss = sup_con(z_a, z_b, batch.labels, pretext.temperature, batch.sources)
        else:
            loss = nt_xent(z_a, z_b, pretext.temperature, batch.sources)
        marks.append(time.perf_counter())
        chosen.zero_grad()
        loss.backward()
        marks.append(time.perf_counter())
        chosen.step()
        marks.append(time.perf_counter())
        spent.append([b - a for a, b in itertools.pairwise(marks)])
    medians = [statistics.median(part) for part in zip(*spent[1:], strict=True)]  # the first warms
    return {name: part / sum(medians) for name, part in zip(PHASES, medians, strict=True)}


def heaviest(size: int) -> dict[str, tuple[Call, float]]:
    """What comes near the machine's limit, and its floating-point operations.

    Libraries differ: on some machines convolutions compute twice as fast as products of matrices.
    """
    a, b = torch.rand(2, size, size)
    channels, side = 128, 14
    batch = size // 32
    x = torch.rand(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
    kernel = torch.rand(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
    return {
        "product": (lambda: a @ b, 2 * size**3),
        "convolution": (
            lambda: F.conv2d(x, kernel, padding=1),
            2 * 9 * channels**2 * side**2 * batch,
        ),
    }


def run(options: Options) -> Iterator[Row]:
    images = datasets.load(DataConfig()).train
    side = images.size[0]
    heavy = heaviest(256 if options.quick else 2048)
    for name, recipe in RECIPES.items():
        config = recipe.config
        encoder, _ = networks(images, config.network)
        macs = multiply_adds(encoder, side, side)
        calls = {kind: call for kind, (call, _) in heavy.items()}
        calls["encoder"] = bare_epoch(images, config.network, config.pretext.batch_size)
        times = alternate(calls, options.rounds)
        peaks = {kind: operations / min(times[kind]) for kind, (_, operations) in heavy.items()}
        flop = 2 * FORWARD_AND_BACKWARD * macs * 2 * len(images)  # two views of each image
        reached = flop / median(times, "encoder") / max(peaks.values())
        parts = phases(images, config, 4 if options.quick else 24)
        yield {
            "case": name, "multiply_adds": macs, "peaks": peaks, "reached": reached, **parts
        }  # fmt: skip


BENCHMARK = Benchmark(
    title="A pretext step",
    about="""Each recipe on grey images of 28 × 28. The peak in float32 is the best of several
products of 2048 × 2048 matrices and of 3 × 3 convolutions of 128 channels; the share of the higher
one that the encoder alone reaches, forward and backward, counts three times the multiply-adds of
its convolutions. Then the parts of a step: *forward* is of encoder and head, *backward* also of the
loss. `best` and `ensemble` have no pretext task: their rows are of the step that they would take if
they had one. That of `pool` is the one of `best`.""",
    columns={
        "recipe": cells.text("case"),
        "multiply-adds an image": lambda row: f"{row['multiply_adds'] / 1e6:.1f} million",
        "peak of products / convolutions, GFLOP/s": lambda row: " / ".join(
            f"{peak / 1e9:.0f}" for peak in row["peaks"].values()
        ),
        "encoder reaches": cells.percent("reached"),
        **{name: cells.percent(name) for name in PHASES},
    },
    run=run,
)

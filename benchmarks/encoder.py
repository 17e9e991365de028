"""Accuracy for seconds: the encoder against the one that came before it, on development images."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import nn

from benchmarks import cells
from benchmarks.measure import Benchmark, Call, Options, Row, alternate, median
from handful import datasets, devices
from handful.config import DataConfig, DownstreamConfig, NetworkConfig, RunConfig
from handful.datasets import Dataset
from handful.finetune import finetune
from handful.images import ImageSet
from handful.metrics import mean_interval
from handful.networks import ConvNet, channels_last, classifier_head, classify, multiply_adds
from handful.partition import partition
from handful.recipes import MILD_DIGITS, RECIPES

DRAWS, PER_CLASS, BUDGETS = range(8), 50, (5.0, 10.0)
TRIAL = 10
"""Steps that are timed to tell how many fit into the budget."""


class SixConvolutions(ConvNet):
    """The first encoder: stages of two 3 × 3 convolutions, halved by max-pooling in between."""

    def __init__(self, channels: int, size: int, config: NetworkConfig) -> None:
        super().__init__(channels, size, config)
        layers: list[nn.Module] = []
        inputs = channels
        for stage, width in enumerate((32, 64, 128)):
            layers += [nn.MaxPool2d(2)] if stage else []
            for _ in range(2):
                convolution = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
                layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                inputs = width
        self.layers, self.dim = nn.Sequential(*layers), inputs
        for parameter in self.parameters():
            parameter.data = channels_last(parameter.data)


ENCODERS: dict[str, type[ConvNet]] = {"ours": ConvNet, "six": SixConvolutions}


def built(kind: type[ConvNet], images: ImageSet, seed: int) -> tuple[ConvNet, nn.Linear]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = kind(images.channels, images.size[0], RECIPES["demo"].config.network)
        encoder.normalise_to(images.images)
        return encoder, classifier_head(encoder.dim, len(images.class_names))


def train(encoder: ConvNet, head: nn.Linear, images: ImageSet, steps: int, draw: int = 0) -> None:
    config = DownstreamConfig(steps=steps, batch_size=125, views=MILD_DIGITS)
    generator = devices.generator(draw, "encoder")
    finetune(encoder, head, images, config, generator=generator, stage="", on_row=lambda row: None)


def seconds_per_step(images: ImageSet, rounds: int) -> dict[str, float]:
    def trial(kind: type[ConvNet]) -> Call:
        encoder, head = built(kind, images, 0)
        return lambda: train(encoder, head, images, TRIAL)

    times = alternate({name: trial(kind) for name, kind in ENCODERS.items()}, rounds)
    return {name: median(times, name) / TRIAL for name in ENCODERS}


def accuracy(kind: type[ConvNet], data: DataConfig, dataset: Dataset, steps: int) -> float:
    """Of the development images, after so many steps on a draw."""
    draw = data.draw or 0
    parts = partition(RunConfig(data=data, downstream=RECIPES["demo"].config.downstream), dataset)
    assert parts.test is not None
    encoder, head = built(kind, parts.final, draw)
    train(encoder, head, parts.final, steps, draw)
    found = classify(encoder, head, parts.test.images).argmax(1)
    return float((found == parts.test.labels).double().mean())


def run(options: Options) -> Iterator[Row]:
    if options.mnist is None:
        print("encoder: skipped, it needs --mnist DIR with the official idx files", file=sys.stderr)
        return
    data = DataConfig(source=str(options.mnist), dev=True, per_class=PER_CLASS, validation=0.0)
    dataset = datasets.load(data)
    pace = seconds_per_step(dataset.train.select(torch.arange(500)), options.rounds)
    for budget in (0.2,) if options.quick else BUDGETS:
        yield compared(data, dataset, budget, pace)


def compared(data: DataConfig, dataset: Dataset, budget: float, pace: dict[str, float]) -> Row:
    steps = {name: max(1, round(budget / pace[name])) for name in ENCODERS}
    found = {
        name: [
            accuracy(kind, data.model_copy(update={"draw": draw}), dataset, steps[name])
            for draw in DRAWS
        ]
        for name, kind in ENCODERS.items()
    }
    gains = [a - b for a, b in zip(found["ours"], found["six"], strict=True)]
    mean, _, low, high = mean_interval(gains)
    side = dataset.train.size[0]
    macs = {
        name: multiply_adds(built(kind, dataset.train, 0)[0], side, side)
        for name, kind in ENCODERS.items()
    }
    return {
        "case": f"{budget:g} s each", "accuracy": found, "steps": steps, "multiply_adds": macs,
        "difference": mean, "interval": [low, high], "pace": pace["six"] / pace["ours"],
    }  # fmt: skip


def _mean(values: list[float]) -> str:
    return f"{100 * mean_interval(values)[0]:.2f} %"


BENCHMARK = Benchmark(
    title="Encoder",
    about=f"""The encoder against the first one (six 3 × 3 convolutions of 32, 32, 64, 64, 128 and
128 channels, max-pooled between the pairs), both trained by `handful.finetune` from scratch for
equally many seconds: {PER_CLASS} images a class, mild views, batches of 125, no average of weights.
Mean accuracy on the development images over draws {DRAWS[0]}–{DRAWS[-1]}, and the paired difference
with its 95 % interval (Student's t).""",
    columns={
        "trained for": cells.text("case"),
        "multiply-adds, ours / first": lambda row: " / ".join(
            f"{row['multiply_adds'][name] / 1e6:.1f} million" for name in ENCODERS
        ),
        "steps, ours / first": lambda row: " / ".join(str(row["steps"][name]) for name in ENCODERS),
        "accuracy, ours / first": lambda row: " / ".join(
            _mean(row["accuracy"][name]) for name in ENCODERS
        ),
        "difference, points": lambda row: (
            f"{100 * row['difference']:+.2f} "
            f"({100 * row['interval'][0]:+.2f} to {100 * row['interval'][1]:+.2f})"
        ),
    },
    run=run,
)

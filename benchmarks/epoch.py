"""One epoch of the pretext task: our loop, lightly's, and the encoder alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from benchmarks import cells, peers
from benchmarks.loss import theirs
from benchmarks.measure import Benchmark, Call, Options, Row, alternate, duel, median
from benchmarks.views import pictures
from handful import datasets
from handful.config import DataConfig, NetworkConfig, PretextConfig
from handful.images import ImageSet
from handful.networks import ConvNet, ProjectionHead
from handful.pretrain import pretrain
from handful.recipes import RECIPES
from handful.splits import batches_per_epoch

IMAGES, TRIAL = 5_000, 500
"""So many images make 40 steps and one record of health, as often as in a run of `demo`."""
WORKERS = (0, 1, 2)


def some_images(options: Options, count: int) -> ImageSet:
    """The first of MNIST's training images, else those of mnist50 again and again."""
    if options.mnist:
        train = datasets.load(DataConfig(source=str(options.mnist), dev=True)).train
        return ImageSet.of(train.images[:count])
    train = datasets.load(DataConfig()).train
    return ImageSet.of(train.images[torch.arange(count) % len(train)])


def our_epoch(images: ImageSet, network: NetworkConfig, config: PretextConfig) -> Call:
    """`handful.pretrain`, for as many steps as an epoch has."""
    encoder, head = networks(images, network)
    steps = batches_per_epoch(len(images), config.batch_size)
    config = config.model_copy(update={"steps": steps, "loss": "nt_xent"})
    generator = torch.Generator().manual_seed(0)
    return lambda: pretrain(
        encoder, head, images, config, generator=generator, on_row=lambda row: None
    )


def networks(images: ImageSet, network: NetworkConfig) -> tuple[ConvNet, ProjectionHead]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = ConvNet(images.channels, images.size[0], network)
        return encoder, ProjectionHead(encoder.dim, network)


def bare_epoch(images: ImageSet, network: NetworkConfig, batch_size: int) -> Call:
    """Forward and backward through the encoder alone, of tensors that lie ready."""
    encoder, _ = networks(images, network)
    steps = batches_per_epoch(len(images), batch_size)
    x = torch.rand(2 * len(images) // steps, images.channels, *images.size)

    def epoch() -> None:
        for _ in range(steps):
            encoder.zero_grad()
            encoder(x).sum().backward()

    return epoch


def lightly_epoch(
    images: ImageSet,
    network: NetworkConfig,
    config: PretextConfig,
    transform: peers.TwoViews,
    workers: int,
) -> Call:
    """The loop of lightly's examples: a loader, its loss, AdamW; our encoder and head."""
    encoder, head = networks(images, network)
    loader = DataLoader(
        Pictures(pictures(images.images), transform),
        config.batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    loss = theirs("lightly", config.batch_size)
    both = nn.ModuleList([encoder, head])
    chosen = torch.optim.AdamW(
        both.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
    )

    def epoch() -> None:
        for x_a, x_b in loader:
            z_a, z_b = head(encoder(torch.cat([x_a, x_b]))).chunk(2)
            chosen.zero_grad()
            loss(z_a, z_b).backward()
            chosen.step()

    return epoch


class Pictures(Dataset[Any]):
    def __init__(self, opened: list[Image.Image], transform: peers.TwoViews) -> None:
        self.opened, self.transform = opened, transform

    def __len__(self) -> int:
        return len(self.opened)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.opened[index])


def run(options: Options) -> Iterator[Row]:
    config = RECIPES["demo"].config
    network, pretext = config.network, config.pretext
    images = some_images(options, 250 if options.quick else IMAGES)
    ours_and_bare: dict[str, Call] = {
        "ours": our_epoch(images, network, pretext),
        "bare": bare_epoch(images, network, pretext.batch_size),
    }
    times = alternate(ours_and_bare, 2 * options.rounds)
    share = duel(times, "ours", "bare")
    yield {"case": "encoder alone", **share, "share": share["ratio"]}
    side = images.size[0]
    lists = {
        "lightly's default": peers.lightly_default(),
        "our list in lightly": peers.lightly_with(pretext.views, side),
    }
    few = images.select(torch.arange(min(TRIAL, len(images))))
    for name, transform in lists.items():
        trial = {w: lightly_epoch(few, network, pretext, transform, w) for w in WORKERS}
        found = alternate({str(w): call for w, call in trial.items()}, 1)
        best = min(WORKERS, key=lambda w: median(found, str(w)))
        calls = ours_and_bare | {
            "lightly": lightly_epoch(images, network, pretext, transform, best)
        }
        times = alternate(calls, options.rounds)
        ours, bare = duel(times, "ours", "lightly"), duel(times, "bare", "lightly")
        share = duel(times, "ours", "bare")["ratio"]
        yield {"case": name, "workers": best, **ours, "bare": bare["ratio"], "share": share}


BENCHMARK = Benchmark(
    title="An epoch of the pretext task",
    about=f"""One epoch of `demo`'s encoder, head, batch size and views with NT-Xent on {IMAGES:,}
images, seconds. Ours is `handful.pretrain`, its record of health included. lightly's is a
`DataLoader` over pictures in memory at its best number of workers of 0, 1 and 2, which stay alive
between epochs, with the same encoder and head, `NTXentLoss` and the same fused AdamW. The encoder
alone goes forward and backward through tensors that lie ready, as many and as large; *share* is the
part of our epoch that this takes.""",
    columns={
        "compared with": cells.text("case"),
        "workers": lambda row: str(row.get("workers", "–")),
        "ours, s": cells.seconds("ours"),
        "theirs, s": cells.seconds("theirs"),
        "theirs ÷ ours": cells.times_as_fast,
        "theirs ÷ encoder alone": lambda row: f"{row['bare']:.2f}" if "bare" in row else "–",
        "share": cells.percent("share"),
    },
    run=run,
)

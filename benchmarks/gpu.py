"""What a GPU makes of it: `python -m benchmarks.gpu` prints a JSON row a measurement.

Where there is none it says so. `--device cpu --small` tries every line of it on any machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Generator, Tensor, nn

from benchmarks import peers
from handful import datasets, devices, experiment
from handful.config import DataConfig, ViewsConfig
from handful.losses import nt_xent
from handful.networks import Encoder, ProjectionHead, multiply_adds
from handful.optim import descend, optimizer
from handful.recipes import RECIPES, RICH_GENERAL
from handful.views import two_views

ROUNDS = 5


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median of some runs after one that pays for set-up, each waited for."""
    taken = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - began)
    return median(taken[1:])


def trainer(
    encoder: nn.Module, head: nn.Module, views: ViewsConfig, device: torch.device
) -> Callable[[Tensor], None]:
    """The step of the pretext task on uint8 images (N, C, H, W), in the device's own precision."""
    chosen = optimizer([(nn.ModuleList([encoder, head]), 1e-3)], "adamw", 0.05)
    network, generator = nn.ModuleList([encoder, head]), Generator().manual_seed(0)
    dtype = devices.precision("auto", device)

    def step(images: Tensor) -> None:
        x = torch.cat(two_views(images, views, generator))
        with devices.autocast(device, dtype):
            z = head(encoder(x.contiguous(memory_format=torch.channels_last)))
        z_a, z_b = z.chunk(2)
        descend(chosen, nt_xent(z_a, z_b, 0.5), network, None)

    return step


def digits(device: torch.device, batch: int) -> dict[str, Any]:
    """Pretraining of mnist50's images with the encoder of `demo`."""
    recipe = RECIPES["demo"].config
    images = datasets.load(DataConfig(source="mnist50")).train.images.to(device)
    encoder = Encoder(1, 28, recipe.network).to(device)
    head = ProjectionHead(encoder.dim, recipe.network).to(device)
    encoder.normalise_to(images)
    step = trainer(encoder, head, recipe.pretext.views, device)
    index = torch.arange(batch, device=device) % len(images)
    taken = seconds(lambda: [step(images[index]) for _ in range(10)], device) / 10
    flops = 2 * 3 * 2 * batch * multiply_adds(encoder, 28, 28)  # two views, three passes
    return {
        "what": "pretraining of mnist50, demo's encoder", "batch": batch,
        "images_per_second": batch / taken, "share_of_peak": flops / taken / peak(device),
    }  # fmt: skip


def peak(device: torch.device) -> float:
    """Measured multiplications and additions a second of a large product, in training's type."""
    side = 8192 if device.type == "cuda" else 1024
    a = torch.randn(side, side, device=device, dtype=devices.precision("auto", device))
    return 2 * side**3 / seconds(lambda: a @ a, device)


def resnet(device: torch.device) -> tuple[nn.Module, nn.Module]:
    """ResNet-18 with the stem for 32 × 32 pixels, and SimCLR's head."""
    peers.prepare()
    from torchvision.models import resnet18

    network = resnet18()
    network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    network.maxpool, network.fc = nn.Identity(), nn.Identity()
    head = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
    return network.to(device, memory_format=torch.channels_last), head.to(device)


def colour(device: torch.device, batch: int, batches: int) -> Iterator[dict[str, Any]]:
    """ResNet-18 on random 32 × 32 images: our views on the device against lightly's loader."""
    images = torch.randint(0, 256, (batch * batches, 3, 32, 32), dtype=torch.uint8)
    encoder, head = resnet(device)
    resident = images.to(device)
    step = trainer(encoder, head, RICH_GENERAL, device)
    ours = seconds(lambda: [step(part) for part in resident.split(batch)], device)
    yield {
        "what": "pretraining, ResNet-18 at 32 × 32", "batch": batch,
        "images_per_second": len(images) / ours,
    }  # fmt: skip
    loader = _lightly_loader(images, batch)
    chosen = optimizer([(nn.ModuleList([encoder, head]), 1e-3)], "adamw", 0.05)
    network, dtype = nn.ModuleList([encoder, head]), devices.precision("auto", device)

    def epoch() -> None:
        for x_a, x_b in loader:
            x = torch.cat([x_a, x_b]).to(device, memory_format=torch.channels_last)
            with devices.autocast(device, dtype):
                z_a, z_b = head(encoder(x)).chunk(2)
            descend(chosen, nt_xent(z_a, z_b, 0.5), network, None)

    theirs = seconds(epoch, device)
    yield {
        "what": "the same network fed by lightly's loader", "batch": batch,
        "images_per_second": len(images) / theirs, "ours_over_theirs": theirs / ours,
    }  # fmt: skip


def _lightly_loader(images: Tensor, batch: int) -> Any:
    from lightly.transforms import SimCLRTransform
    from PIL import Image
    from torch.utils.data import DataLoader

    transform = SimCLRTransform(input_size=32, gaussian_blur=0.0)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]

    class Pictures(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, index: int) -> Any:
            return transform(pictures[index])

    return DataLoader(Pictures(), batch, num_workers=torch.get_num_threads(), drop_last=True)


def loss(device: torch.device, n: int) -> dict[str, Any]:
    """NT-Xent forward and backward of 2N projections, and the memory that it adds."""
    z_a, z_b = (torch.randn(n, 128, device=device, requires_grad=True) for _ in range(2))

    def work() -> None:
        nt_xent(z_a, z_b, 0.5).backward()  # type: ignore[no-untyped-call]

    work()
    row: dict[str, Any] = {"what": "NT-Xent, forward and backward", "n": n}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        row["megabytes"] = (torch.cuda.max_memory_allocated(device) - before) / 1e6
    return row | {"seconds": seconds(work, device)}


def fast(device: torch.device, settings: list[str]) -> dict[str, Any]:
    """The whole recipe `fast`: its seconds and its accuracy."""
    changes = dict(one.split("=") for one in settings)
    config = RECIPES["fast"].config.updated(
        {"data.source": "mnist50", "device": str(device)} | {k: int(v) for k, v in changes.items()}
    )
    with tempfile.TemporaryDirectory() as folder:
        summary = experiment.run(config, Path(folder) / "run").summary
    return {"what": "fast", **{name: summary[name] for name in ("seconds", "test_accuracy")}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes that a CPU can bear")
    options = parser.parse_args()
    try:
        device = devices.choose(options.device)
    except ValueError as error:
        sys.exit(str(error))
    small = options.small
    for row in measurements(device, small):
        print(json.dumps({**row, "device": devices.describe(device), **devices.versions()}))


def measurements(device: torch.device, small: bool) -> Iterator[dict[str, Any]]:
    for batch in (64,) if small else (250, 2048):
        yield digits(device, batch)
    yield loss(device, 512 if small else 65_536)
    yield fast(device, ["pretext.steps=1", "downstream.steps=1"] if small else [])
    yield from colour(device, 16 if small else 1024, 1 if small else 8)


if __name__ == "__main__":
    main()

"""How fast a GPU trains; without one nothing is measured."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader

from benchmarks import cells, peers
from benchmarks.epoch import Pictures
from benchmarks.measure import Benchmark, Call, Options, Row, alternate, duel, median
from handful import datasets, devices, experiment
from handful.config import DataConfig
from handful.losses import nt_xent
from handful.networks import ConvNet, ProjectionHead, multiply_adds
from handful.optim import descend, optimizer
from handful.pretrain import pretrain
from handful.recipes import RECIPES, RICH_GENERAL
from handful.views import two_views

ROUNDS, STEPS = 5, 40


def awaited(call: Call, device: torch.device) -> Call:
    """The same call, over only when the device is done."""

    def finished() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return finished


def seconds(call: Call, device: torch.device) -> float:
    return median(alternate({"it": awaited(call, device)}, ROUNDS), "it")


def digits(device: torch.device, batch: int) -> Row:
    """The pretext task of `demo` on as many different images as a batch has."""
    recipe = RECIPES["demo"].config
    images = datasets.load(DataConfig(source="mnist50")).train
    images = images.select(torch.arange(batch) % len(images))
    config = recipe.pretext.model_copy(update={"steps": STEPS, "batch_size": batch})
    encoder = ConvNet(1, 28, recipe.network).to(device)
    head = ProjectionHead(encoder.dim, recipe.network).to(device)
    encoder.normalise_to(images.images)
    dtype = devices.precision("auto", device)

    def work() -> None:
        generator = Generator().manual_seed(0)
        pretrain(
            encoder, head, images, config, generator=generator, dtype=dtype, on_row=lambda row: None
        )

    taken = seconds(work, device) / STEPS
    flops = 2 * 3 * 2 * batch * multiply_adds(encoder, 28, 28)  # two views, three passes
    return {
        "what": "demo's pretext task", "images": batch, "images_per_second": batch / taken,
        "share_of_peak": flops / taken / peak(device),
    }  # fmt: skip


def peak(device: torch.device) -> float:
    """Measured multiplications and additions a second of a large product, in training's type."""
    side = 8192 if device.type == "cuda" else 1024
    a = torch.randn(side, side, device=device, dtype=devices.precision("auto", device))
    return 2 * side**3 / seconds(lambda: a @ a, device)


def resnet(device: torch.device) -> nn.Module:
    """ResNet-18 with the stem for 32 × 32 pixels, and SimCLR's head on it."""
    peers.prepare()
    from torchvision.models import resnet18

    network = resnet18()
    network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    network.maxpool = nn.Identity()
    network.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
    placed: nn.Module = network.to(device, memory_format=torch.channels_last)
    return placed


def colour(device: torch.device, batch: int, batches: int) -> Row:
    """ResNet-18 on random 32 × 32 images: our views on the device against lightly's loader.

    lightly's views are its own defaults, ours the list for photographs; the rest is the same.
    """
    images = torch.randint(0, 256, (batch * batches, 3, 32, 32), dtype=torch.uint8)
    network, dtype = resnet(device), devices.precision("auto", device)
    chosen = optimizer([(network, 1e-3)], "adamw", 0.05)
    resident, generator = images.to(device), Generator().manual_seed(0)
    loader = _loader(images, batch)

    def step(x_a: Tensor, x_b: Tensor) -> None:
        both = [x.to(device, non_blocking=True) for x in (x_a, x_b)]  # pinned, where it was loaded
        x = torch.cat(both).contiguous(memory_format=torch.channels_last)
        with devices.autocast(device, dtype):
            z_a, z_b = network(x).chunk(2)
        descend(chosen, nt_xent(z_a, z_b, 0.5), network, None)

    def ours() -> None:
        for part in resident.split(batch):
            step(*two_views(part, RICH_GENERAL, generator))

    def theirs() -> None:
        for x_a, x_b in loader:
            step(x_a, x_b)

    calls = {"ours": awaited(ours, device), "theirs": awaited(theirs, device)}
    found = duel(alternate(calls, ROUNDS), "ours", "theirs")
    rate = {"images_per_second": len(images) / found["ours"]}
    return {"what": "ResNet-18 on 32 × 32", "images": batch, **rate, **found}


def _loader(images: Tensor, batch: int) -> Any:
    from lightly.transforms import SimCLRTransform

    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    shown = Pictures(pictures, SimCLRTransform(input_size=32, gaussian_blur=0.0))
    return DataLoader(
        shown,
        batch,
        num_workers=torch.get_num_threads(),
        persistent_workers=True,
        pin_memory=torch.cuda.is_available(),
    )


def loss(device: torch.device, n: int) -> Row:
    """NT-Xent forward and backward of 2N projections, and the memory that it adds."""
    z_a, z_b = (torch.randn(n, 128, device=device, requires_grad=True) for _ in range(2))

    def work() -> None:
        nt_xent(z_a, z_b, 0.5).backward()  # type: ignore[no-untyped-call]

    row: Row = {"what": "NT-Xent", "images": n, "seconds": seconds(work, device)}
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        row["megabytes"] = (torch.cuda.max_memory_allocated(device) - before) / 1e6
    return row


def fast(device: torch.device, steps: dict[str, int]) -> Row:
    """The whole recipe `fast`: its seconds. Its accuracy is for benchmarks/accuracy.py to say."""
    settings = {"data.source": "mnist50", "device": str(device), **steps}
    with tempfile.TemporaryDirectory() as folder:
        run = experiment.run(RECIPES["fast"].config.updated(settings), Path(folder) / "run")
    return {"what": "fast", "seconds": run.summary["seconds"], "stages": run.summary["stages"]}


def run(options: Options) -> Iterator[Row]:
    """On a GPU; with `quick` on the CPU, in sizes that it can bear."""
    try:
        device = devices.choose("cpu" if options.quick else "cuda")
    except ValueError as error:
        print(error, file=sys.stderr)
        return
    for row in measurements(device, options.quick):
        case = " ".join(str(row[key]) for key in ("what", "images") if key in row)
        # what the page names as the machine is the device here
        yield {"case": case, "cpu": devices.describe(device), **row}


def measurements(device: torch.device, small: bool) -> Iterator[Row]:
    for batch in (64,) if small else (125, 2048):
        yield digits(device, batch)
    yield colour(device, 16 if small else 1024, 1 if small else 8)
    yield loss(device, 512 if small else 65_536)
    yield fast(device, {"pretext.steps": 1, "downstream.steps": 1} if small else {})


def _if_there(key: str, cell: cells.Cell) -> cells.Cell:
    return lambda row: cell(row) if key in row else "–"


BENCHMARK = Benchmark(
    title="On a GPU",
    about="""The pretext task of `demo` on the digits of `mnist50`, repeated where a batch has more;
a ResNet-18 as SimCLR has it for small images, in half precision, trained on random 32 × 32 images
by our views made on the GPU and by lightly's loader, which feeds it the views of its own defaults
from a worker for each processor (measured when its batches were still copied waiting, which the
benchmark has since mended in its favour); one forward and backward pass of NT-Xent; and the whole
recipe `fast` in a process that has trained before. *Share of the peak* counts multiplications of
convolutions against those of one large matrix product in the same type.

The networks for digits are small and forty steps few: fourteen checks of the representation, on the
CPU, are part of them. The whole matrix of similarities of 65,536 images would be 69 GB.""",
    columns={
        "what": cells.text("what"),
        "images at once": _if_there("images", cells.number("images")),
        "images a second": _if_there("images_per_second", cells.number("images_per_second")),
        "share of the peak": _if_there(
            "share_of_peak", lambda row: f"{100 * row['share_of_peak']:.1f} %"
        ),
        "seconds": _if_there("seconds", cells.seconds("seconds")),
        "memory, MB": _if_there("megabytes", cells.number("megabytes")),
        "as fast as lightly": _if_there("ratio", cells.times_as_fast),
    },
    run=run,
)

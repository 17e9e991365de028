"""How time and memory grow with images, batches and sides of images.

python -m benchmarks.scale

Each point is a process of its own. Rows go to benchmarks/performance.jsonl, the figure to
docs/images/scale.png, both into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import cells, loss
from benchmarks.epoch import networks, our_epoch
from benchmarks.measure import ROOT, Benchmark, Call, Options, Row, in_fresh_process, seconds_of
from benchmarks.memory import megabytes_above
from handful.config import NetworkConfig
from handful.devices import keep_freed_memory
from handful.images import ImageSet
from handful.plots import png
from handful.plots.style import FRAME, GRID, INK, MUTED, OURS
from handful.recipes import RECIPES

FIGURE = ROOT / "docs" / "images" / "scale.png"
MEASURED = ("seconds", "megabytes")
BATCH = 128
ENOUGH = 2.0
"""Seconds after which a point is not measured again."""


def noise(count: int, side: int = 28) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    shape = (count, 1, side, side)
    return ImageSet.of(torch.randint(256, shape, generator=generator, dtype=torch.uint8))


def _epoch(images: int) -> Call:
    config = RECIPES["demo"].config
    return our_epoch(noise(images), config.network, config.pretext)


def _encoder(batch: int) -> Call:
    encoder, _ = networks(noise(1), NetworkConfig())
    x = torch.rand(batch, 1, 28, 28)

    def call() -> None:
        encoder.zero_grad()
        encoder(x).sum().backward()

    return call


def _loss(batch: int) -> Call:
    return loss.descent(loss.ours, batch)


def _step(side: int) -> Call:
    config = RECIPES["demo"].config
    pretext = config.pretext.model_copy(update={"batch_size": BATCH})
    return our_epoch(noise(BATCH, side), config.network, pretext)


SERIES: dict[str, tuple[Callable[[int], Call], tuple[int, ...]]] = {
    "images of a pretext epoch": (_epoch, (500, 1000, 2000, 6000, 20_000, 60_000)),
    "batch through the encoder": (_encoder, (128, 256, 512, 1024, 2048)),
    "batch through the loss": (_loss, (256, 512, 1024, 2048, 4096, 8192, 16_384)),
    "side of the image in a pretext step": (_step, (28, 40, 56, 80, 128)),
}
"""What is made larger: the call for a size, and the sizes."""


def point(series: str, size: int) -> Row:
    """Seconds and megabytes of one size, once a tiny loss has set up what all have in common."""
    make, _ = SERIES[series]
    _loss(8)()
    keep_freed_memory()  # as training does
    calls: list[Call] = []

    def first() -> None:
        calls.append(make(size))
        calls[0]()

    megabytes = megabytes_above(first)
    warm = [seconds_of(calls[0])]  # the first pass also paid for set-up
    while sum(warm) < ENOUGH:
        warm.append(seconds_of(calls[0]))
    return {"seconds": min(warm), "megabytes": max(megabytes, 0.1)}


def run(options: Options) -> Iterator[Row]:
    rows = []
    for series, (_, sizes) in SERIES.items():
        for size in sizes[:2] if options.quick else sizes:
            found = in_fresh_process("benchmarks.scale", "--point", series, size)
            rows.append({"case": f"{series}, {size}", "series": series, "size": size, **found})
            yield rows[-1]
    if not options.quick:
        FIGURE.write_bytes(png(figure(rows)))


def slope(points: list[Row], key: str) -> float:
    """The exponent of growth: of a straight line fitted to logarithms."""
    x, y = np.log([[point["size"], point[key]] for point in points]).T
    return float(np.polyfit(x, y, 1)[0])


def by_series(rows: list[Row]) -> dict[str, list[Row]]:
    """Points of each series in order of size; a series of one point has no slope."""
    found = {name: [row for row in rows if row["series"] == name] for name in SERIES}
    return {
        name: sorted(points, key=lambda row: row["size"])
        for name, points in found.items()
        if len(points) > 1
    }


def figure(rows: list[Row]) -> Figure:
    """Seconds above megabytes, a column a series; all axes are logarithmic."""
    series = by_series(rows)
    drawn = Figure(figsize=(2.9 * len(series), 4.6), layout="constrained")
    grid = drawn.subplots(2, len(series), sharex="col", sharey="row", squeeze=False)
    for line, key in zip(grid, MEASURED, strict=True):
        for axes, (name, points) in zip(line, series.items(), strict=True):
            _panel(axes, points, key)
            if key == MEASURED[0]:
                axes.set_title(name, fontsize=9.5, color=INK)
        line[0].set_ylabel(key, fontsize=9, color=MUTED)
    return drawn


def _panel(axes: Axes, points: list[Row], key: str) -> None:
    x, y = ([point[name] for point in points] for name in ("size", key))
    axes.loglog(x, y, "o-", color=OURS, markersize=4, linewidth=1.5)
    axes.text(
        0.05, 0.93, f"slope {slope(points, key):.2f}", transform=axes.transAxes, va="top",
        fontsize=9, color=INK,
    )  # fmt: skip
    axes.set_xticks(x, [f"{size:,}" for size in x], rotation=40)
    axes.minorticks_off()
    axes.grid(color=GRID, linewidth=0.8)
    axes.tick_params(labelsize=8, labelcolor=MUTED, color=FRAME)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FRAME)


def growth(rows: list[Row]) -> str:
    """The slopes in words, and the figure."""
    lines = [
        f"- {name}: time {slope(points, 'seconds'):.2f}, memory {slope(points, 'megabytes'):.2f}"
        for name, points in by_series(rows).items()
    ]
    picture = "![Time and memory against size](images/scale.png)"
    return "\n".join(["Fitted exponents of growth:", "", *lines, "", picture])


BENCHMARK = Benchmark(
    title="Scale",
    about="""A process for each point: the quickest of its warm passes, and the peak of resident
memory beyond what was there before it, images included. An epoch of the pretext task is `demo`'s on
images of noise; batches go forward and backward through `demo`'s encoder or NT-Xent (128 numbers a
view); a pretext step has 128 images, two views of each.""",
    columns={
        "what grows": cells.text("series"),
        "to": cells.number("size"),
        "seconds": lambda row: f"{row['seconds']:.3g}",
        "memory, MB": cells.number("megabytes"),
    },
    run=run,
    after=growth,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few points, and nothing is kept")
    parser.add_argument("--point", nargs=2, metavar=("SERIES", "SIZE"), help="measure this one")
    options = parser.parse_args()
    if options.point:
        print(json.dumps(point(options.point[0], int(options.point[1]))))
        return
    from benchmarks.__main__ import measure  # which knows this module

    measure(["scale"], Options(quick=options.quick))


if __name__ == "__main__":
    main()

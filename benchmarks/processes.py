"""Whole commands, from the start of the process to its end."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import cells
from benchmarks.epoch import networks
from benchmarks.measure import ROOT, Benchmark, Call, Options, Row, alternate, median
from benchmarks.views import pictures
from handful import datasets
from handful.config import DataConfig
from handful.networks import classifier_head
from handful.predictor import Predictor
from handful.recipes import RECIPES


def command(*arguments: object) -> Call:
    """`python ARGUMENTS`, whose answer goes nowhere."""
    words = [sys.executable, *map(str, arguments)]
    return lambda: subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def handful(*arguments: object) -> Call:
    return command("-m", "handful", *arguments)


def write_model(folder: Path) -> None:
    """A model as `demo` makes them, but for its training, on which no time depends."""
    config, data = RECIPES["demo"].config, datasets.load(DataConfig())
    names = data.train.class_names
    encoder, _ = networks(data.train, config.network)
    Predictor(
        encoder, classifier_head(encoder.dim, len(names)), names, data.preparation,
        config.network, test_views=config.test_views,
    ).save(folder / "model")  # fmt: skip


def write_pictures(folder: Path, count: int) -> None:
    """mnist50's images of the official test set as PNG files; nobody looks at their labels."""
    test = datasets.load(DataConfig()).test
    assert test is not None
    folder.mkdir()
    for place, picture in enumerate(pictures(test.images[:count])):
        picture.save(folder / f"{place:05}.png")


def start(options: Options) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        write_pictures(folder / "pictures", 1)
        calls = {
            "python -c pass": command("-c", "pass"),
            "python -c 'import torch'": command("-c", "import torch"),
            "handful --help": handful("--help"),
            "handful predict RUN one.png": handful("predict", folder, folder / "pictures"),
        }
        times = alternate(calls, options.rounds)
    for case in calls:
        yield {"case": case, "seconds": median(times, case), "rounds": options.rounds}


def predict(options: Options) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder, count = Path(name), 50 if options.quick else 10_000
        write_model(folder)
        write_pictures(folder / "pictures", count)
        one = folder / "pictures" / "00000.png"
        calls = {
            "one": handful("predict", folder, one, "--csv"),
            "all": handful("predict", folder, folder / "pictures", "--csv"),
        }
        times = alternate(calls, 2 if options.quick else 3)
    taken = [b - a for a, b in zip(times["one"], times["all"], strict=True)]
    yield {
        "case": f"{count:,} PNG files", "images": count, "rate": count / statistics.median(taken),
        "seconds": median(times, "all"), "start": median(times, "one"), "rounds": len(taken),
    }  # fmt: skip


START = Benchmark(
    title="Start",
    about="Whole processes, median seconds, beside the start of Python and of torch alone.",
    columns={"command": cells.text("case"), "seconds": cells.seconds("seconds")},
    run=start,
)
PREDICT = Benchmark(
    title="Predict",
    about="""`handful predict RUN FOLDER --csv` with a model as `demo` makes them, on grey PNG files
of 28 × 28 pixels. Images a second without the time that one image alone takes. Medians of
three runs.""",
    columns={
        "folder": cells.text("case"),
        "seconds": cells.seconds("seconds"),
        "of which start": cells.seconds("start"),
        "images/s": cells.number("rate"),
    },
    run=predict,
)

"""Whole commands, from the start of the process to its end."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from benchmarks import cells
from benchmarks.measure import ROOT, Benchmark, Call, Options, Row, alternate, median
from benchmarks.views import pictures
from handful import datasets, experiment, predictor
from handful.config import DataConfig
from handful.predictor import Predictor


def command(*arguments: object) -> Call:
    """`python ARGUMENTS`, whose answer goes nowhere."""
    words = [sys.executable, *map(str, arguments)]
    return lambda: subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def handful(*arguments: object) -> Call:
    return command("-m", "handful", *arguments)


def write_model(folder: Path, quick: bool) -> None:
    """`demo` into an empty folder, without what a model does not need."""
    lengths = {"pretext__steps": 1, "downstream__steps": 1} if quick else {}
    experiment.train("mnist50", out=folder, recipe="demo", control=False, tsne=False, **lengths)


def write_pictures(folder: Path, count: int) -> None:
    """mnist50's images of the official test set as PNG files."""
    test = datasets.load(DataConfig()).test
    assert test is not None
    folder.mkdir()
    for place, picture in enumerate(pictures(test.images[:count])):
        picture.save(folder / f"{place:05}.png")


def start(options: Options) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "run", quick=True)  # its training has no part in what one image takes
        write_pictures(folder / "pictures", 1)
        calls = {
            "python -c pass": command("-c", "pass"),
            "python -c 'import torch'": command("-c", "import torch"),
            "handful --help": handful("--help"),
            "handful predict RUN one.png": handful("predict", folder / "run", folder / "pictures"),
        }
        times = alternate(calls, options.rounds)
    for case in calls:
        yield {"case": case, "seconds": median(times, case), "rounds": options.rounds}


def predict(options: Options) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder, count = Path(name), 50 if options.quick else 10_000
        write_model(folder / "run", options.quick)
        write_pictures(folder / "pictures", count)
        one = folder / "pictures" / "00000.png"
        calls = {
            "one": handful("predict", folder / "run", one, "--csv"),
            "all": handful("predict", folder / "run", folder / "pictures", "--csv"),
        }
        times = alternate(calls, 2 if options.quick else 3)
        looks = second_looks(folder / "run", count)
    taken = [b - a for a, b in zip(times["one"], times["all"], strict=True)]
    yield {
        "case": f"{count:,} PNG files", "images": count, "rate": count / statistics.median(taken),
        "seconds": median(times, "all"), "start": median(times, "one"), "rounds": len(taken),
        **looks,
    }  # fmt: skip


def second_looks(run: Path, count: int) -> Row:
    """How many images are looked at again, and how many answers are not those of all views."""
    model, test = Predictor.load(run), datasets.load(DataConfig()).test
    assert test is not None
    images = test.images[:count]
    answers = model.logits(images).argmax(1)
    with patch.object(predictor, "SURE", math.inf):
        elsewise = int((model.logits(images).argmax(1) != answers).sum())
    once = replace(model, test_views=1).predict_proba(images).max(1)
    return {"again": float((once < predictor.SURE).mean()), "elsewise": elsewise}


START = Benchmark(
    title="Start",
    about="Whole processes, median seconds, beside the start of Python and of torch alone.",
    columns={"command": cells.text("case"), "seconds": cells.seconds("seconds")},
    run=start,
)
PREDICT = Benchmark(
    title="Predict",
    about="""`handful predict RUN FOLDER --csv` with the model of `demo`, on mnist50's test images
as grey PNG files of 28 × 28 pixels; nothing is chosen by them, but how many are looked at again
in further views depends on them. Images a second without the time that one image alone takes.
Medians of three runs.""",
    columns={
        "folder": cells.text("case"),
        "seconds": cells.seconds("seconds"),
        "of which start": cells.seconds("start"),
        "images/s": cells.number("rate"),
        "looked at again": cells.percent("again"),
        "other answers than of all views": cells.number("elsewise"),
    },
    run=predict,
)

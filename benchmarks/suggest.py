"""What `handful suggest` is worth: errors by the number of labels, against labels at random.

python -m benchmarks.suggest run DIR --draws 100-109      (or --dev --draws 0-9)
python -m benchmarks.suggest table

DIR holds MNIST's official files. Both begin with the same two images a class and go on in rounds;
the pool is for choosing alone. `run` appends a row a draw to benchmarks/suggest.jsonl, `table`
writes docs/suggest.md and its figure.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.accuracy import REPORTED_ON, TUNED_ON, commit_of_recipes, mean_of, whole
from handful import bench, datasets, plots
from handful.bench import Row, read
from handful.config import DataConfig
from handful.datasets import Dataset
from handful.estimator import SimCLRClassifier
from handful.metrics import mean_interval
from handful.plots.labels import Point
from handful.splits import draw as drawn
from handful.suggest import worth_a_label

HERE = Path(__file__).parents[1]
ROWS = HERE / "benchmarks" / "suggest.jsonl"
PAGE, FIGURE = HERE / "docs" / "suggest.md", HERE / "docs" / "images" / "suggest.png"
FIRST, ROUND, LAST, POOL = 2, 20, 100, 10_000
SIZES = list(range(10 * FIRST, LAST + 1, ROUND))
QUICK = {"pretext_steps": 0, "downstream_steps": 300, "width": 12, "preset": "digits"}
SETTINGS = {"downstream.batch_size": 50}
ARMS = ("suggested", "suggested images"), ("random", "images at random")


def classifier() -> SimCLRClassifier:
    return SimCLRClassifier("fast", **QUICK, settings=SETTINGS, random_state=0)


def fitted(dataset: Dataset, chosen: NDArray[np.int64]) -> SimCLRClassifier:
    images = dataset.train.select(torch.from_numpy(chosen))
    return classifier().fit(images.images[:, 0].numpy(), images.labels.numpy())


def accuracies(dataset: Dataset, number: int, *, asks: bool) -> list[float]:
    """After each round, the next images suggested by the model so far, or else at random."""
    assert dataset.test is not None
    test = dataset.test.images[:, 0].numpy(), dataset.test.labels.numpy()
    chosen = drawn(dataset.train.labels, FIRST, number).numpy()
    rng = np.random.default_rng(number)
    others = np.setdiff1d(np.arange(len(dataset.train)), chosen)
    pool = rng.permutation(others)[:POOL]
    found = []
    for size in SIZES:
        model = fitted(dataset, chosen)
        found.append(float(model.score(*test)))
        if size == LAST:
            break
        left = pool[~np.isin(pool, chosen)]
        if asks:
            images = dataset.train.images[left, 0].numpy()
            h, probabilities = model.transform(images), model.predict_proba(images)
            more = left[worth_a_label(h, probabilities, ROUND)]
        else:
            more = left[:ROUND]  # in no order
        chosen = np.concatenate([chosen, more])
    return found


def run(options: argparse.Namespace) -> None:
    allowed = TUNED_ON if options.dev else REPORTED_ON
    if not set(options.draws) <= set(allowed):
        sys.exit(f"draws {allowed[0]}-{allowed[-1]} are for this")
    dataset = datasets.load(DataConfig(source=options.source, dev=options.dev))
    commit = commit_of_recipes()
    if commit is None and not options.dev:
        sys.exit("commit src first: a row names the commit that made it")
    known = {(row["draw"], row["dev"], row["commit"]) for row in read(ROWS)}
    for number in options.draws:
        if commit and (number, options.dev, commit) in known:
            continue
        row = {
            "draw": number, "dev": options.dev, "commit": commit, "sizes": SIZES,
            "suggested": accuracies(dataset, number, asks=True),
            "random": accuracies(dataset, number, asks=False),
            "test_images": len(dataset.test or ()),
        }  # fmt: skip
        bench.append(ROWS, row)
        print(f"draw {number}: suggested {row['suggested']}, random {row['random']}", flush=True)


def fewer(rows: Sequence[Row]) -> list[float]:
    """Of each draw, by which share suggested labels have fewer errors at the end."""
    return [1 - (1 - row["suggested"][-1]) / (1 - row["random"][-1]) for row in rows]


def page(rows: Sequence[Row]) -> str:
    shares = [100 * share for share in fewer(rows)]
    mean, _, low, high = mean_interval(shares)
    lines = []
    for place, size in enumerate(rows[0]["sizes"]):
        arms = [[100 * row[arm][place] for row in rows] for arm, _ in ARMS]
        gains = [a - b for a, b in zip(*arms, strict=True)]
        lines.append(
            f"| {size} | {mean_of(arms[0])} | {mean_of(arms[1])} | {mean_of(gains, True)} |"
        )
    draws = [row["draw"] for row in rows]
    return _PAGE.format(
        lines="\n".join(lines), mean=mean, low=low, high=high, commit=rows[0]["commit"],
        draws=f"{min(draws)}–{max(draws)}", again=f"{min(draws)}-{max(draws)}",
        count=len(rows), pool=POOL, round=ROUND, first=FIRST,
        images=rows[0]["test_images"],
        quick=", ".join(f"{name} {value}" for name, value in {**QUICK, **SETTINGS}.items()),
    )  # fmt: skip


_PAGE = """# What `handful suggest` is worth

Made by `python -m benchmarks.suggest table` from `benchmarks/suggest.jsonl`, one row a draw.

Both begin with the same {first} MNIST digits of each class, then {round} more are labelled in each
round: those that `suggest` names by the model of the round before, or others at random. The pool,
{pool:,} training images drawn at random, is for choosing alone: models learn from the labelled
images and nothing else. Accuracy in per cent on the {images:,} official test images, draws {draws}
({count} of them), seed 0: mean ± standard deviation (95 % interval of the mean, Student's t), and
the paired difference. Commit {commit}.

| labels | suggested | at random | difference |
|---|---|---|---|
{lines}

At the end suggested labels leave **{mean:.0f} %** fewer errors ({low:.0f} to {high:.0f} %): mean of
each draw's share, with its interval.

![Errors by the number of labels](images/suggest.png)

The model is a quick one: recipe `fast` with {quick}.
How `suggest` chooses was fixed before these draws were run; of development draws, which `--dev`
runs, only draw 0 had been looked at.

Repeat: `python -m benchmarks.suggest run DIR --draws {again}`, DIR with the four idx files.
"""


def _curve(rows: Sequence[Row], arm: str) -> list[Point]:
    """Labels, mean accuracy and its interval, after each round."""
    found = []
    for place, size in enumerate(rows[0]["sizes"]):
        mean, _, low, high = mean_interval([row[arm][place] for row in rows])
        found.append((size, mean, (low, min(high, 1.0))))
    return found


def newest(rows: Sequence[Row]) -> list[Row]:
    """The rows on test images that the last commit made."""
    tested = [row for row in rows if not row["dev"]]
    if not tested:
        sys.exit(f"{ROWS} has no row on test images: run some draws first")
    return [row for row in tested if row["commit"] == tested[-1]["commit"]]


def table(_: argparse.Namespace) -> None:
    rows = newest(read(ROWS))
    PAGE.write_text(page(rows), encoding="utf-8")
    curves = {name: _curve(rows, arm) for arm, name in ARMS}
    FIGURE.write_bytes(plots.png(plots.labels(curves, [], counted="labelled images")))
    print(PAGE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run", help="train, and append rows")
    runner.add_argument("source")
    runner.add_argument("--draws", type=whole, default=range(100, 110))
    runner.add_argument("--dev", action="store_true")
    runner.set_defaults(call=run)
    commands.add_parser("table", help="write docs/suggest.md").set_defaults(call=table)
    options = parser.parse_args()
    options.call(options)


if __name__ == "__main__":
    main()

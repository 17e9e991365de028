"""Accuracy against labels: one recipe on many draws, each run a process of its own.

Rows are kept as they come, so that what was interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch

from handful import __version__, datasets, plots
from handful.config import DataConfig, assignment
from handful.forecast import Forecast, forecast
from handful.metrics import mean_interval
from handful.recipes import compose
from handful.runs import RunFolder

Row = dict[str, Any]

KEPT = (
    "recipe", "per_class", "draw", "seed", "labelled_images", "unlabelled_images", "test_images",
    "test_accuracy", "test_interval", "test_accuracy_single_view", "validation_accuracy",
    "validation_images", "selected_step", "control_test_accuracy", "control_difference",
    "calibration", "images_through_encoder", "seconds", "stages", "device", "precision", "versions",
)  # fmt: skip
"""What a row takes from the summary of its run."""
UNCOMMITTED = "uncommitted"
FEWEST = 8
"""Labelled images a class below which an eighth of them is none."""
ELSEWHERE = {
    "data.source": "SOURCE",
    "data.per_class": "--per-class",
    "data.draw": "--draws",
    "seed": "--seeds",
    "recipe": "--recipe",
}
"""Settings that tell one run from another: not to be set for all."""
PUBLISHED = (
    (30, 0.9629, "harmonic net 2019"),
    (100, 0.9816, "harmonic net"),
    (200, 0.9879, "harmonic net"),
)
"""MNIST's test accuracy from 300, 1,000 and 2,000 labelled images in all and no others, as arXiv
1905.00135 is quoted: not every figure that there is."""


class Cell(NamedTuple):
    """Which of the runs it is."""

    per_class: int
    draw: int
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.per_class} per class, draw {self.draw}, seed {self.seed}"

    def options(self) -> list[str]:
        """The cell in words of `handful train`."""
        named = {"per-class": self.per_class, "draw": self.draw, "seed": self.seed}
        return [f"--{name}={value}" for name, value in named.items()]


def labels(
    source: str,
    recipe: str,
    cells: Sequence[Cell],
    path: Path,
    *,
    control: bool | None = None,
    assignments: Sequence[str] = (),
    jobs: int = 1,
    on_row: Callable[[Cell, Row], None] | None = None,
) -> list[Row]:
    """A row for each cell: those that the file `path` holds, and runs for the others.

    A row of other images, another commit, version or setting does not count. What of the package is
    not committed, or changed while the run went on, has no name: its rows are kept and never taken
    for another's.
    control: also train by cross-entropy alone; None does where the recipe contrasts.
    jobs: runs at a time, each with its share of the cores. on_row: called with each new row.
    Raises ValueError with the cell and the run's own message where one fails; rows stay.
    """
    _check(assignments)
    setting, _ = compose(source, recipe, None, {}, assignments)
    control = setting.contrasts if control is None else control
    setting, _ = compose(source, recipe, None, {"control": control}, assignments)
    made_of = origin()
    made_by = {
        "source": source,
        "data": _content(setting.data),
        "asked": _digest(setting.to_toml().encode()),
        **made_of,
    }
    held = {} if made_by["commit"] == UNCOMMITTED else _held(read(path), made_by)
    options = [f"--recipe={setting.recipe}", "--control" if control else "--no-control"]
    # nobody sees the maps; what somebody sets comes later and counts
    options += [f"--set={one}" for one in ("tsne=false", *assignments)]
    missing = [cell for cell in cells if cell not in held]
    for cell, summary in _each(source, missing, options, jobs):
        if summary["test_accuracy"] is None:
            raise ValueError(f"{source} leaves no test images to measure on: give it more labels")
        held[cell] = {name: summary[name] for name in KEPT} | made_by
        if origin() != made_of:
            held[cell]["commit"] = UNCOMMITTED
        append(path, held[cell])
        if on_row:
            on_row(cell, held[cell])
    return [held[cell] for cell in cells]


def _check(assignments: Sequence[str]) -> None:
    for key, _ in map(assignment, assignments):
        if key in ELSEWHERE:
            raise ValueError(f"--set {key}: `bench labels` takes that from {ELSEWHERE[key]}")


def _content(data: DataConfig) -> str:
    """Names the images and labels that a source holds now."""
    found = datasets.load(data)
    parts = [found.train] if found.test is None else [found.train, found.test]
    held = [array for part in parts for array in (part.fingerprints(), part.labels.numpy())]
    return _digest(b"".join(array.tobytes() for array in held))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def comparable(source: str, assignments: Sequence[str] = ()) -> bool:
    """Whether `PUBLISHED` was measured with the same kind of labels on the same test images."""
    data = compose(source, None, None, {}, assignments)[0].data
    return not (data.dev or data.unlabelled) and datasets.scores_on_mnist(source)


def origin() -> Row:
    """What computes: the package's version, and its commit where it lies in a repository."""
    return {"version": __version__, "commit": commit()}


def commit() -> str | None:
    """The last commit that touched the package; UNCOMMITTED where it has changed since.

    None where no repository keeps the package: a virtual environment may lie inside one.
    """
    package = Path(__file__).parent
    try:
        if not _git(package, "ls-files", "--", "."):
            return None
        if _git(package, "status", "--porcelain", "--", "."):
            return UNCOMMITTED
        return _git(package, "log", "-1", "--format=%h", "--", ".") or None
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def read(path: Path) -> list[Row]:
    """Rows of a file, none where there is none. Raises ValueError where a line is damaged."""
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def append(path: Path, row: Row) -> None:
    """One more row. Raises ValueError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from None


def _held(rows: Sequence[Row], made_by: Row) -> dict[Cell, Row]:
    """The newest row of each cell that the same code made with the same settings."""
    return {
        Cell(row["per_class"], row["draw"], row["seed"]): row
        for row in rows
        if made_by.items() <= row.items()
    }


def _each(
    source: str, cells: Sequence[Cell], options: Sequence[str], jobs: int
) -> Iterator[tuple[Cell, Row]]:
    """Cells with the summaries of their runs, as they come in.

    After one that fails none is begun; those under way still come, and then its error.
    """
    threads = max(1, torch.get_num_threads() // jobs) if jobs > 1 else None
    failure: ValueError | None = None
    pool = ThreadPoolExecutor(jobs)
    try:
        started = {
            pool.submit(apart, source, [*cell.options(), *options], threads): cell for cell in cells
        }
        for done in as_completed(started):
            try:
                yield started[done], done.result()
            except CancelledError:
                pass
            except ValueError as error:
                failure = failure or ValueError(f"{started[done]}: {error}")
                for other in started:
                    other.cancel()
    finally:
        pool.shutdown(cancel_futures=True)
    if failure:
        raise failure


def apart(source: str, options: Sequence[str], threads: int | None = None) -> Row:
    """The summary of a run in a process of its own, whose folder goes with it.

    options: more words for `handful train`. threads: of the processor; None leaves that open.
    Raises ValueError with the run's own message where it is refused, RuntimeError with all that it
    said where it breaks.
    """
    limit: Mapping[str, str] = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        words = [sys.executable, "-m", "handful", "train", source, f"--out={out}", "--quiet"]
        done = subprocess.run(
            [*words, *options], env={**os.environ, **limit}, capture_output=True, text=True
        )
        if done.returncode == 2:
            raise ValueError(done.stderr.strip().splitlines()[-1].removeprefix("handful: "))
        if done.returncode:
            raise RuntimeError(f"a run ended with {done.returncode}:\n{done.stderr.strip()}")
        return RunFolder(out).summary()


def curve(source: str, assignments: Sequence[str] = ()) -> tuple[list[int], int]:
    """What to learn a curve from: numbers of labels per class, and how many there are.

    An eighth, a quarter and a half of what the class with the fewest has: what is left over tests
    where nothing else does. Raises ValueError where that is too little.
    """
    images = datasets.load(compose(source, None, None, {}, assignments)[0].data).train.labelled()
    most = int(images.class_counts.min())
    if most < FEWEST:
        raise ValueError(
            f"a class of {source} has {most} labelled images: a learning curve takes {FEWEST}"
        )
    return sorted(most // part for part in (8, 4, 2)), most


class Point(NamedTuple):
    """All rows of one number of labels: shares of one, in the order of the rows."""

    per_class: int
    images: int
    """Test images of a run; of the smallest where runs left different ones over."""
    accuracies: list[float]
    controls: list[float]
    """Empty where no control was run, as are the gains over it."""
    gains: list[float]


def points(rows: Sequence[Row]) -> list[Point]:
    """By numbers of labels, ascending."""
    found = []
    for per_class in sorted({row["per_class"] for row in rows}):
        some = [row for row in rows if row["per_class"] == per_class]
        compared = [row for row in some if row["control_test_accuracy"] is not None]
        found.append(
            Point(
                per_class,
                min(row["test_images"] for row in some),
                [row["test_accuracy"] for row in some],
                [row["control_test_accuracy"] for row in compared],
                [row["control_difference"]["difference"] for row in compared],
            )
        )
    return found


def expected(rows: Sequence[Row], at: int) -> Forecast:
    """What one more run, of `at` labels per class, should give. Raises ValueError as `forecast`."""
    return forecast(
        [row["per_class"] for row in rows],
        [row["test_accuracy"] for row in rows],
        [row["test_images"] for row in rows],
        at,
    )


def figure(
    found: Sequence[Point],
    recipe: str,
    *,
    on_mnist: bool = False,
    ahead: Forecast | None = None,
) -> bytes:
    """PNG of accuracy against labels, beside other people's figures where `on_mnist`.

    ahead: what is expected beyond them.
    """
    lines = {recipe: [_mean(point.per_class, point.accuracies) for point in found]}
    if all(point.controls for point in found):
        control = [_mean(point.per_class, point.controls) for point in found]
        lines["control, no contrast"] = control
    if ahead:
        last, mean, _ = lines[recipe][-1]
        there = (ahead.per_class, ahead.accuracy, (ahead.low, ahead.high))
        lines["expected, 80 % interval"] = [(last, mean, None), there]
    runs = [(point.per_class, accuracy) for point in found for accuracy in point.accuracies]
    return plots.png(plots.labels(lines, runs, PUBLISHED if on_mnist else ()))


def _mean(per_class: int, accuracies: list[float]) -> tuple[int, float, tuple[float, float] | None]:
    mean, _, low, high = mean_interval(accuracies)
    return per_class, mean, None if math.isnan(low) else (max(low, 0.0), min(high, 1.0))

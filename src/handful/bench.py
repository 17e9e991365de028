"""One recipe on many draws, each run a process of its own.

Rows are kept as they come, so that what was interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch

from handful import __version__, devices
from handful.config import RunConfig, assignment, flat
from handful.datasets import Dataset
from handful.recipes import compose
from handful.runs import RunFolder

Row = dict[str, Any]

KEPT = (
    "recipe", "preset", "per_class", "draw", "seed", "labelled_images", "unlabelled_images",
    "test_images", "test_accuracy", "test_interval", "test_accuracy_single_view",
    "validation_accuracy", "validation_images", "selected_step", "control_test_accuracy",
    "control_difference", "calibration", "images_through_encoder", "seconds", "stages", "device",
    "precision", "versions",
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


def setting(
    source: str, recipe: str | None, assignments: Sequence[str] = (), control: bool | None = None
) -> RunConfig:
    """What every run has in common.

    control: also train by cross-entropy alone; None does where the recipe contrasts.
    Raises ValueError as `compose`, and for a setting that tells one run from another.
    """
    for key in flat(dict(map(assignment, assignments))):
        if key in ELSEWHERE:
            raise ValueError(f"--set {key}: here {ELSEWHERE[key]} says that")
    plain, _ = compose(source, recipe, None, {}, assignments)
    control = plain.contrasts if control is None else control
    return compose(source, recipe, None, {"control": control}, assignments)[0]


def labels(
    asked: RunConfig,
    dataset: Dataset,
    cells: Sequence[Cell],
    path: Path,
    *,
    assignments: Sequence[str] = (),
    jobs: int = 1,
    on_row: Callable[[Cell, Row], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Row]:
    """A row for each cell: those that the file `path` holds, and runs for the others.

    asked: from `setting`, with the same assignments. dataset: what its source holds. A row of other
    images or settings, by other code, another torch or another kind of device does not count. Rows
    of code that changed while the run went on, or cannot be read, are kept and never taken for
    another's.
    jobs: runs at a time, each with its share of the cores. on_row: called with each new row.
    say: called with a line for people on how many are there already, where `path` has rows.
    Raises ValueError with the cell and the run's own message where one is refused, RuntimeError
    where one breaks; rows stay.
    """
    source, code = asked.data.source, _code()
    _check_test(asked, dataset, max(cell.per_class for cell in cells))
    made_by = {
        "source": source,
        "data": dataset.content,
        "asked": _digest(asked.to_toml().encode()),
        "version": __version__,
        "code": code,
        "computed_with": _computer(asked.device),
    }
    rows = read(path)
    held = _held(rows, made_by) if code else {}
    options = [f"--recipe={asked.recipe}", "--control" if asked.control else "--no-control"]
    # nobody sees the maps; what somebody sets comes later and counts
    options += [f"--set={one}" for one in ("tsne=false", *assignments)]
    missing = [cell for cell in cells if cell not in held]
    if say and rows:
        say(_resumed(path, rows, cells, missing))
    for cell, summary in _each(source, missing, options, jobs):
        held[cell] = {name: summary[name] for name in KEPT} | made_by | {"commit": commit()}
        if _code() != code:
            held[cell] |= {"code": None, "commit": UNCOMMITTED}
        append(path, held[cell])
        if on_row:
            on_row(cell, held[cell])
    return [held[cell] for cell in cells]


def _check_test(asked: RunConfig, dataset: Dataset, per_class: int) -> None:
    """Raises ValueError where a run would have to test on labels that it was to train with."""
    if dataset.test is not None:
        return
    most = _fewest(dataset)
    told = f"{asked.data.source} has no test images of its own: labels that are not drawn test"
    if asked.data.unlabelled or not asked.data.holdout:
        raise ValueError(f"{told}, which data.unlabelled = true or data.holdout = 0 keeps from it")
    if per_class >= most:
        raise ValueError(
            f"{told}, and of a class with {most} different labelled images {per_class} leave none: "
            f"at most {most - 1} per class"
        )


def _fewest(dataset: Dataset) -> int:
    """Different labelled images of the class that has fewest: none tests what its copy taught."""
    train = dataset.train
    every = (train.sources[train.labels == k].unique() for k in range(len(train.class_names)))
    return min(len(sources) for sources in every)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _code() -> str | None:
    """A digest of the package's modules: a commit says nothing of what is changed beside it.

    None where they are no files, or come and go.
    """
    package = Path(__file__).parent
    digests: list[str] = []
    try:
        for module in sorted(package.rglob("[!.]*.py")):
            digests += [str(module.relative_to(package)), _digest(module.read_bytes())]
    except OSError:
        return None
    return _digest("\n".join(digests).encode()) if digests else None


def _computer(device: str) -> str:
    """Torch and the kind of device, of which results depend in their last digits."""
    kind, *_ = devices.describe(devices.choose(device)).split(",")
    return f"torch {torch.__version__}, {kind}"


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
    return {_cell(row): row for row in rows if made_by.items() <= row.items()}


def _cell(row: Row) -> Cell:
    return Cell(row["per_class"], row["draw"], row["seed"])


def _resumed(
    path: Path, rows: Sequence[Row], cells: Sequence[Cell], missing: Sequence[Cell]
) -> str:
    told = f"{path} has {len(cells) - len(missing)} of {len(cells)} runs"
    cells_there = {_cell(row) for row in rows if row.keys() >= {*Cell._fields}}
    others = len(cells_there & {*missing})
    if not others:
        return told
    why = "other code, source, settings, torch or kind of device"
    return f"{told}, and {others} that do not count ({why})"


def _each(
    source: str, cells: Sequence[Cell], options: Sequence[str], jobs: int
) -> Iterator[tuple[Cell, Row]]:
    """Cells with the summaries of their runs, as they come in.

    After one that fails none is begun; those under way still come, and then its error.
    """
    failure: ValueError | RuntimeError | None = None
    threads = max(1, torch.get_num_threads() // jobs) if jobs > 1 else None
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
            except (ValueError, RuntimeError) as error:
                failure = failure or type(error)(f"{started[done]}: {error}")
                for other in started:
                    other.cancel()
    finally:
        pool.shutdown(cancel_futures=True)
    if failure:
        raise failure


def apart(
    source: str, options: Sequence[str], threads: int | None = None, out: Path | None = None
) -> Row:
    """The summary of a run in a process of its own.

    options: more words for `handful train`. threads: of the processor; None leaves that open.
    out: the run folder; None takes one that goes with the process.
    Raises ValueError with the run's own message where it is refused, RuntimeError with all that it
    said where it breaks.
    """
    limit: Mapping[str, str] = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        out = out or Path(folder) / "run"
        words = [sys.executable, "-m", "handful", "train", source, f"--out={out}", "--quiet"]
        done = subprocess.run(
            [*words, *options], env={**os.environ, **limit}, capture_output=True, text=True
        )
        if done.returncode == 2:
            raise ValueError(done.stderr.strip().splitlines()[-1].removeprefix("handful: "))
        if done.returncode:
            raise RuntimeError(f"a run ended with {done.returncode}:\n{done.stderr.strip()}")
        return RunFolder(out).summary()


def curve(
    asked: RunConfig, dataset: Dataset, sizes: Sequence[int] | None = None
) -> tuple[Sequence[int], int]:
    """Numbers of labels per class to learn a curve from, and how many there are.

    Without `sizes` an eighth, a quarter and a half of what the class with the fewest has.
    Raises ValueError where that is too little.
    """
    most = _fewest(dataset)
    if sizes is None and most < FEWEST:
        raise ValueError(
            f"a class of {asked.data.source} has {most} labelled images: a learning curve takes "
            f"{FEWEST}"
        )
    return sizes or sorted(most // part for part in (8, 4, 2)), most

"""What people see: progress while a run works, on stderr, and its figures at the end."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.progress import TaskID

    from handful.predictor import Answer

STAGES = {
    "pretext": "pretext task",
    "selection": "choosing the length",
    "downstream": "classifier",
    "control-selection": "control: choosing the length",
    "control": "control: classifier",
}
CANDIDATES = 3
"""Classes that `predict` names for each file."""
LINES = 10
"""Most lines a stage prints where stderr is no terminal."""


class Progress:
    """Takes rows of metrics.jsonl and lines for people as they come, and shows none of them."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def say(self, line: str) -> None:
        pass

    def row(self, row: Mapping[str, Any]) -> None:
        pass


def progress(quiet: bool) -> Progress:
    """Bars on a terminal, lines elsewhere, nothing at all when quiet."""
    if quiet:
        return Progress()
    return Bars() if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else Lines()


class Lines(Progress):
    """At most `LINES` lines a stage: for logs, pipes and clusters."""

    def __init__(self) -> None:
        self.stage = ""
        self.began = time.monotonic()
        self.figures = Figures()
        self.tenths = 0

    def say(self, line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    def row(self, row: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if row["stage"] != self.stage:
            self.stage, self.tenths, self.figures = row["stage"], 0, Figures()
            self.began = now - row.get("seconds", 0.0)
        figures = self.figures.after(row)
        done = row["step"] / max(1, row["steps"])
        tenths = int(done * LINES)
        if tenths > self.tenths:
            self.tenths = tenths
            left = (now - self.began) * (1 - done) / done
            ending = f", {duration(left)} left" if done < 1 else ""
            name = STAGES.get(self.stage, self.stage)
            self.say(f"{name}: step {row['step']} of {row['steps']}, {figures}{ending}")


class Bars(Progress):
    """One bar a stage, with time left and the latest figures."""

    def __init__(self) -> None:
        from rich import progress as rich
        from rich.console import Console

        self.bars = rich.Progress(
            rich.TextColumn("{task.description}", markup=False),
            rich.BarColumn(bar_width=24),
            rich.TaskProgressColumn(),
            rich.TimeRemainingColumn(elapsed_when_finished=True),
            rich.TextColumn("{task.fields[figures]}", markup=False),
            console=Console(stderr=True, highlight=False),
        )
        self.stage = ""
        self.task: TaskID | None = None
        self.figures = Figures()

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._finish()
        self.bars.stop()

    def say(self, line: str) -> None:
        self.bars.console.print(line, markup=False, soft_wrap=True)

    def row(self, row: Mapping[str, Any]) -> None:
        if row["stage"] != self.stage or self.task is None:
            self._finish()
            self.stage, self.figures = row["stage"], Figures()
            name = STAGES.get(self.stage, self.stage)
            self.task = self.bars.add_task(name, total=row["steps"], figures="")
        self.bars.update(self.task, completed=row["step"], figures=self.figures.after(row))

    def _finish(self) -> None:
        """Early stopping ends a stage before its planned length: its bar is full all the same."""
        if self.task is not None:
            completed = self.bars.tasks[self.task].completed
            self.bars.update(self.task, total=completed)


class Figures:
    """The latest value of each figure: validation is not measured in every row."""

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}

    def after(self, row: Mapping[str, Any]) -> str:
        wanted = ("loss", "validation_loss", "validation_accuracy", "knn_accuracy")
        self.latest |= {key: row[key] for key in wanted if row.get(key) is not None}
        return ", ".join(
            f"{key.replace('_', ' ')} {percent(value)}"
            if key.endswith("accuracy")
            else f"{key.replace('_', ' ')} {value:.3f}"
            for key, value in self.latest.items()
        )


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Cells in aligned columns. Nothing is cut or wrapped: output may go into a pipe."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def accuracy(share: float, interval: Sequence[float], images: int | None = None) -> str:
    low, high = interval
    counted = "" if images is None else f", {images:,} images"
    return f"{percent(share)}  (95 % interval {100 * low:.2f} to {100 * high:.2f}{counted})"


def run(summary: Mapping[str, Any], report: str) -> str:
    """The end of `train`: what came out, how sure that is, what it cost."""
    rows: list[tuple[str, str]] = []
    if summary.get("test_accuracy") is not None:
        rows += _measured(summary, "test", summary.get("test_of"))
    if summary.get("validation_accuracy") is not None:
        rows += _measured(summary, "validation", summary.get("validation_of"))
    if summary.get("control_test_accuracy") is not None:
        control = summary["control_test_accuracy"]
        interval = summary.get("control_interval")
        shown = accuracy(control, interval) if interval else percent(control)
        rows.append(("control, no pretext task", shown))
    paired = summary.get("control_difference")
    if paired:
        low, high = paired["interval"]
        rows.append(
            (
                "difference, paired",
                f"{100 * paired['difference']:+.2f} points"
                f"  (95 % interval {100 * low:+.2f} to {100 * high:+.2f})",
            )
        )
    if summary.get("seconds") is not None:
        rows.append(("time", duration(summary["seconds"])))
    return table([*rows, ("report", report)])


def _measured(summary: Mapping[str, Any], split: str, of: str | None) -> list[tuple[str, str]]:
    share = summary[f"{split}_accuracy"]
    interval, images = summary.get(f"{split}_interval"), summary.get(f"{split}_images")
    shown = accuracy(share, interval, images) if interval else percent(share)
    return [(f"{split} accuracy", f"{shown}  {of}" if of else shown)]


def evaluation(found: Mapping[str, Any]) -> str:
    """`evaluate`: accuracy and calibration, then a line a class."""
    rows = [("accuracy", accuracy(found["accuracy"], found["interval"], found["images"]))]
    names = {
        "nll": "negative log-likelihood",
        "brier": "Brier score",
        "ece": "expected calibration error",
    }
    rows += [(name, f"{found[key]:.4f}") for key, name in names.items() if key in found]
    text = table(rows)
    classes = found.get("per_class") or []
    if not classes:
        return text
    labels = found.get("class_names") or [c.get("name", str(i)) for i, c in enumerate(classes)]
    head = ("class", "images", "precision", "recall", "F1")
    body = [
        (str(label), f"{c['images']:,.0f}", *(percent(c[k]) for k in ("precision", "recall", "f1")))
        for label, c in zip(labels, classes, strict=True)
    ]
    return f"{text}\n\n{table([head, *body])}"


def answers(found: Iterable[Answer]) -> str:
    """`predict`: a line a file, the class first and the next candidates after it."""
    body = [["file", "class", "probability", "next candidates"]]
    for answer in found:
        if answer.error is not None:
            body.append([str(answer.path), "–", "", answer.error])
            continue
        (best, share), *others = answer.ranking[:CANDIDATES]
        rest = ", ".join(f"{name} {percent(p)}" for name, p in others)
        body.append([str(answer.path), best, percent(share), rest])
    return table(body)


def answers_json(found: Iterable[Answer]) -> str:
    """`predict --json`: an array with an object a file, with `error` instead of a class."""
    records: list[dict[str, Any]] = []
    for answer in found:
        record: dict[str, Any] = {"file": str(answer.path)}
        if answer.error is not None:
            records.append(record | {"error": answer.error})
            continue
        best, *others = (
            {"class": name, "probability": p} for name, p in answer.ranking[:CANDIDATES]
        )
        records.append(record | best | {"candidates": others})
    return as_json(records)


def answers_csv(found: Iterable[Answer]) -> str:
    """`predict --csv`: a head and a row a file; `error` is empty where there is an answer."""
    columns = ["file", "class", "probability"]
    for place in range(2, CANDIDATES + 1):
        columns += [f"class_{place}", f"probability_{place}"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, "error"])
    for answer in found:
        cells = [cell for name, p in answer.ranking[:CANDIDATES] for cell in (name, f"{p:.6f}")]
        cells += [""] * (2 * CANDIDATES - len(cells))
        writer.writerow([answer.path, *cells, answer.error or ""])
    return text.getvalue().rstrip("\n")


def as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)

"""What people see: progress while a run works, on stderr, and its figures at the end."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from shlex import quote
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from handful.wording import between, duration, percent, points, points_between

if TYPE_CHECKING:
    from pathlib import Path

    from rich.progress import TaskID

    from handful.confidence import Abstention
    from handful.efficiency import Point
    from handful.export import Exported
    from handful.forecast import Forecast
    from handful.predictor import Answer
    from handful.suggest import Suggestion

STAGES = {
    "read": "reading images",
    "pretext": "pretext task",
    "selection": "choosing the length",
    "folds": "calibration",
    "downstream": "classifier",
    "keeping": "classifier, on all labels",
    "control": "control",
    "audit": "judging labels",
    "predict": "reading images",
}
FIGURES = {
    "loss": "loss",
    "validation_loss": "validation",
    "validation_accuracy": "correct",
    "knn_accuracy": "kNN",
}
"""What of a row is shown while a stage runs, and the short name of it."""
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


def progress(quiet: bool = False) -> Progress:
    """Bars on a terminal, lines elsewhere, nothing at all when quiet."""
    if quiet:
        return Progress()
    return Bars() if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else Lines()


class Lines(Progress):
    """At most `LINES` lines a stage: for logs, pipes and clusters."""

    def __init__(self) -> None:
        self.last: Mapping[str, Any] = {}
        self.parts = 0
        self.latest: dict[str, float] = {}

    def say(self, line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    def row(self, row: Mapping[str, Any]) -> None:
        if _begins(row, self.last):
            self.parts, self.latest = 0, {}
        self.last = row
        self.latest |= _measured(row)
        parts = LINES * row["step"] // max(1, row["steps"])
        if parts > self.parts:
            self.parts = parts
            name = STAGES.get(row["stage"], row["stage"])
            step = f"{name}: step {row['step']} of {row['steps']}"
            self.say(", ".join(filter(None, [step, _figures(self.latest), _time(row)])))


class Bars(Progress):
    """One bar a stage, with time left and the latest figures."""

    def __init__(self) -> None:
        from rich import progress as rich
        from rich.console import Console

        self.bars = rich.Progress(
            rich.TextColumn("{task.description}", markup=False),
            rich.BarColumn(bar_width=20),
            rich.TaskProgressColumn(),
            rich.TextColumn("{task.fields[time]}", markup=False),
            rich.TextColumn("{task.fields[figures]}", markup=False),
            console=Console(stderr=True, highlight=False),
        )
        self.task: TaskID | None = None
        self.last: Mapping[str, Any] = {}
        self.latest: dict[str, float] = {}

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
        if self.task is None or _begins(row, self.last):
            self._finish()
            name = STAGES.get(row["stage"], row["stage"])
            self.task = self.bars.add_task(name, total=row["steps"], time="", figures="")
            self.latest = {}
        self.last = row
        self.latest |= _measured(row)
        self.bars.update(
            self.task, completed=row["step"], time=_time(row), figures=_figures(self.latest)
        )

    def _finish(self) -> None:
        """Early stopping ends a stage before its planned length: its bar is full all the same."""
        if self.task is not None:
            took = _time({**self.last, "steps": self.last["step"]})
            self.bars.update(self.task, total=self.last["step"], time=took)


def _begins(row: Mapping[str, Any], last: Mapping[str, Any]) -> bool:
    """Whether a row is of another stage than the last, or of the same stage of other images."""
    return bool(row["stage"] != last.get("stage") or row["step"] < last["step"])


def _measured(row: Mapping[str, Any]) -> dict[str, float]:
    """What a row measured: validation is not in every one."""
    return {key: row[key] for key in FIGURES if row.get(key) is not None}


def _figures(latest: Mapping[str, float]) -> str:
    return ", ".join(
        f"{FIGURES[key]} {percent(value)}"
        if key.endswith("accuracy")
        else f"{FIGURES[key]} {value:.3f}"
        for key, value in latest.items()
    )


def _time(row: Mapping[str, Any]) -> str:
    """What is left of a stage at the pace so far; once it is over, what it took."""
    step, steps = row["step"], row["steps"]
    if step >= steps:
        return f"took {duration(row['seconds'])}"
    return f"{duration(row['seconds'] * (steps - step) / step)} left"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Cells in aligned columns. Nothing is cut or wrapped: output may go into a pipe."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def accuracy(share: float, interval: Sequence[float], images: int) -> str:
    sure = f"95 % interval {between(interval, images)}, {images:,} images"
    return f"{percent(share, images)}  ({sure})"


def run(summary: Mapping[str, Any], path: str, report: str) -> str:
    """The end of `train`: what came out, how sure that is, what it cost, and what would help."""
    rows: list[tuple[str, str]] = []
    tested = "accuracy on development images" if summary["dev"] else "test accuracy"
    for split, name in (("test", tested), ("validation", "validation accuracy")):
        if summary[f"{split}_accuracy"] is not None:
            keys = (f"{split}_accuracy", f"{split}_interval", f"{split}_images")
            measured = accuracy(*(summary[key] for key in keys))
            rows.append((name, f"{measured}  {summary[f'{split}_of']}"))
    if leaked := summary.get("test_images_that_train"):
        rows.append(("too good", f"{leaked:,} of the test images also train"))
    if summary["control_test_accuracy"] is not None:
        n, paired = summary["test_images"], summary["control_difference"]
        control = accuracy(summary["control_test_accuracy"], summary["control_interval"], n)
        rows.append(("control, no contrast", control))
        sure = f"(95 % interval {points_between(paired['interval'], n)})"
        difference = f"{points(paired['difference'], n)} points  {sure}"
        rows.append(("difference, paired", difference))
    time = duration(summary["seconds"])
    if summary.get("pretext_taken"):
        time += f", and {duration(summary['pretext_taken'])} of an earlier run for the pretext task"
    rows += [("time", time), ("report", report)]
    if summary.get("undecided_images") and "pool" in summary:  # which older runs do not tell
        pool = summary["pool"] or summary["source"]
        rows.append(("to label next", f"handful suggest {quote(path)} {quote(pool)} -n 5"))
    return table(rows)


def cell(name: object, row: Mapping[str, Any]) -> str:
    """`bench`: one run that came in."""
    n, control = row["test_images"], row["control_test_accuracy"]
    beside = "" if control is None else f" (control {percent(control, n)})"
    return f"{name}: {percent(row['test_accuracy'], n)}{beside}, {duration(row['seconds'])}"


def efficiency(found: Iterable[Point]) -> str:
    """`bench labels`: a line a number of labels; means over runs with their 95 % intervals."""
    rows = [("labels a class", "runs", "test accuracy", "worst", "control", "gain, points")]
    for point in found:
        n = point.images
        rows.append(
            (
                f"{point.per_class:,}",
                str(len(point.accuracies)),
                _mean(point.accuracies, n, percent, between),
                percent(min(point.accuracies), n),
                _mean(point.controls, n, percent, between),
                _mean(point.gains, n, points, points_between),
            )
        )
    return table(rows)


def expectation(ahead: Forecast, labelled: int, images: int) -> str:
    """`learn-curve`: what more labels would give, of `labelled` a class that there are."""
    from handful.forecast import SHARE  # imports numpy

    more = ", twice what there is," if ahead.per_class == 2 * labelled else ""
    return (
        f"with {ahead.per_class:,} labels a class{more} expect "
        f"{between((ahead.low, ahead.high), images)}\n({100 * SHARE:.0f} % interval of one run, if "
        "errors go on falling as a power of the number of labels)"
    )


def _mean(
    values: Sequence[float],
    images: int,
    one: Callable[[float, int], str],
    span: Callable[[Sequence[float], int], str],
) -> str:
    """The mean and, of several values, its interval."""
    from handful.metrics import mean_interval  # imports torch

    if not values:
        return "–"
    mean, _, *interval = mean_interval(values)
    sure = f" ({span(interval, images)})" if len(values) > 1 else ""
    return f"{one(mean, images)}{sure}"


def evaluation(found: Mapping[str, Any]) -> str:
    """`evaluate`: accuracy and calibration, then a line a class."""
    measured = accuracy(found["accuracy"], found["interval"], found["images"])
    figures = [
        ("accuracy", f"{measured}  {found['scored']}"),
        ("negative log-likelihood", f"{found['nll']:.4f}"),
        ("Brier score", f"{found['brier']:.4f}"),
        ("expected calibration error", f"{found['ece']:.4f}"),
    ]
    rates = ("precision", "recall", "f1")
    classes = [
        (name, f"{row['images']:,}", *(percent(row[rate]) for rate in rates))
        for name, row in zip(found["class_names"], found["per_class"], strict=True)
    ]
    return f"{table(figures)}\n\n{table([('class', 'images', *rates), *classes])}"


def answers(found: Iterable[Answer], least: float = 0.0) -> Iterator[str]:
    """`predict`: a line a file, the class first and the next candidates after it, all at once.

    least: probability below which no class is named.
    """
    body = [["file", "class", "probability", "next candidates"]]
    for answer in found:
        if answer.error is not None:
            body.append([str(answer.path), "–", "", answer.error])
            continue
        (best, share), *others = answer.ranking[:CANDIDATES]
        rest = _named(others)
        if share < least:
            best, rest = "–", f"unsure: {_named(answer.ranking[:CANDIDATES])}"
        if _strange(answer):
            far = f"{answer.distance:.2f} times the usual distance"
            rest += f"; unlike the images that taught it ({far})"
        body.append([str(answer.path), best, percent(share), rest])
    yield table(body)


def _named(ranking: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {percent(p)}" for name, p in ranking)


def _strange(answer: Answer) -> bool:
    return answer.distance is not None and answer.distance > 1


def answers_json(found: Iterable[Answer], least: float = 0.0) -> Iterator[str]:
    """`predict --json`: one array of what `_record` makes of each file."""
    yield as_json([_record(answer, least) for answer in found])


def answers_jsonl(found: Iterable[Answer], least: float = 0.0) -> Iterator[str]:
    """`predict --jsonl`: a line a file as it comes, the same objects."""
    for answer in found:
        yield json.dumps(_record(answer, least), ensure_ascii=False)


def _record(answer: Answer, least: float) -> dict[str, Any]:
    """An answer as an object, with `error` instead of a class where there is none.

    Below the probability `least` the class is null and `unsure` is true. `distance` is the one to
    the images that taught, above 1 where it is unlike all of these, null where none is known.
    """
    record: dict[str, Any] = {"file": str(answer.path)}
    if answer.error is not None:
        return record | {"error": answer.error}
    best, *others = ({"class": name, "probability": p} for name, p in answer.ranking[:CANDIDATES])
    if answer.ranking[0][1] < least:
        others, best = [best, *others], {"class": None, "probability": best["probability"]}
    doubt = {"unsure": best["class"] is None, "distance": answer.distance}
    return record | best | doubt | {"candidates": others}


def answers_csv(found: Iterable[Answer], least: float = 0.0) -> Iterator[str]:
    """`predict --csv`: a head, and a row a file as it comes; `error` is empty where there is none.

    Below the probability `least` the class is empty, and `unsure` names the candidate.
    """
    columns = ["file", "class", "probability"]
    for place in range(2, CANDIDATES + 1):
        columns += [f"class_{place}", f"probability_{place}"]
    yield _csv_row([*columns, "distance", "unsure", "error"])
    for answer in found:
        cells = [cell for name, p in answer.ranking[:CANDIDATES] for cell in (name, f"{p:.6f}")]
        cells += [""] * (2 * CANDIDATES - len(cells))
        distance = "" if answer.distance is None else f"{answer.distance:.3f}"
        unsure = ""
        if answer.ranking and answer.ranking[0][1] < least:
            unsure, cells[0] = cells[0], ""
        yield _csv_row([str(answer.path), *cells, distance, unsure, answer.error or ""])


def _csv_row(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


def suggestions(found: Sequence[Suggestion]) -> str:
    """`suggest`: a line an image, with what the model takes it for."""
    body = [["", "image", "could be" if found[0].ranking else "", ""]]
    for place, (image, ranking, undecided) in enumerate(found, 1):
        by = "by the labels that spread" if undecided else ""
        body.append([str(place), image, _named(ranking[:CANDIDATES]), by])
    return table(body)


def suggestions_json(found: Sequence[Suggestion]) -> str:
    """`suggest --json`: an array with an object an image, the first to be labelled first."""
    return as_json(
        [
            {
                "image": image,
                "candidates": [
                    {"class": name, "share" if undecided else "probability": share}
                    for name, share in ranking[:CANDIDATES]
                ],
            }
            for image, ranking, undecided in found
        ]
    )


def suggestions_csv(found: Sequence[Suggestion]) -> str:
    """`suggest --csv`: a head and a row an image; the label is for people to fill in."""
    rows = [[image, "", ranking[0][0] if ranking else ""] for image, ranking, _ in found]
    return "\n".join(_csv_row(row) for row in [["path", "label", "candidate"], *rows])


def abstention(found: Abstention) -> str:
    """`predict --abstain`: from where on there are answers, and who vouches for them."""
    wrong = "none" if found.wrong == 0 else f"{found.wrong:,}"
    vouched = (
        f"of {found.known:,} labelled images, answered by networks that had not learned from them, "
        f"{found.answered:,} reach that, {wrong} of them with a wrong answer: with 95 % confidence "
        f"the error is at most {percent(found.limit)}"
    )
    short = "" if found.certified else f"; they cannot certify {100 * found.error:g} %"
    least = f"{100 * found.threshold:.4g} %"
    if found.threshold > 1:
        return f"no probability is enough for an answer; {vouched}{short}"
    return f"answers from a probability of {least} on; {vouched}{short}"


def exported(found: Exported) -> str:
    """`export`: the file, and how it compared with PyTorch."""
    left_out = f", {found.edge:,} left out where rounding decides that" if found.edge else ""
    again = f" ({found.again:,} of them in all test views{left_out})" if found.again else ""
    return (
        f"{found.path}\nchecked on {found.images:,} {found.of}{again}: same classes as PyTorch, "
        f"probabilities differ by at most {found.difference:.1g}"
    )


def audit(counts: Mapping[str, int], place: Path) -> str:
    """`audit`: how many findings of each kind, and where they are."""
    rows = [(title, f"{count:,}") for title, count in counts.items()]
    found = table(rows) if rows else "nothing was found"
    files = [("page", str(place / "audit.html")), ("table", str(place / "audit.csv"))]
    return f"{found}\n\n{table(files)}"


def as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)

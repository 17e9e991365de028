import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from handful import screen
from handful.confidence import Abstention
from handful.efficiency import Point
from handful.predictor import Answer


def rows(stage: str, steps: int, count: int) -> list[dict[str, Any]]:
    return [
        {
            "stage": stage,
            "step": steps * (i + 1) // count,
            "steps": steps,
            "seconds": 0.1 * (i + 1),
            "loss": 1 / (i + 1),
            **({"validation_accuracy": 0.5} if i == 0 else {}),
        }
        for i in range(count)
    ]


@pytest.mark.parametrize(("steps", "count"), [(1000, 1000), (1000, 7), (3, 3), (1, 1)])
def test_lines_are_few_and_end_with_the_last_step(
    capsys: pytest.CaptureFixture[str], steps: int, count: int
) -> None:
    with screen.Lines() as progress:
        for stage in ("pretext", "downstream"):
            for row in rows(stage, steps, count):
                progress.row(row)
    lines = capsys.readouterr().err.splitlines()
    for name in ("pretext task", "classifier"):
        own = [line for line in lines if line.startswith(f"{name}: ")]
        assert 1 <= len(own) <= screen.LINES
        assert f"step {steps} of {steps}, loss {1 / count:.3f}, correct 50.0 %, took" in own[-1]
        assert all(line.endswith(" left") for line in own[:-1])


def test_two_readings_in_a_row_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    lines, bars = screen.Lines(), screen.Bars()
    for count in (4, 3):
        for row in rows("read", count, count):
            lines.row(row)
            bars.row(row)
    shown = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in shown if "took" in line] == [
        "reading images: step 4 of 4",
        "reading images: step 3 of 3",
    ]
    assert [(task.completed, task.total) for task in bars.bars.tasks] == [(4, 4), (3, 3)]


def test_time_left_is_in_proportion(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"stage": "pretext", "step": 25, "steps": 100, "seconds": 30.0, "loss": 1.0}
    screen.Lines().row(row)
    assert capsys.readouterr().err.endswith("loss 1.000, 1 min 30 s left\n")


def test_bars_finish_where_a_stage_stops_early() -> None:
    with screen.Bars() as progress:
        progress.say("a line with [brackets]")
        for row in rows("selection", 100, 10)[:4]:
            progress.row(row)
        progress.row(rows("downstream", 40, 1)[0])
    assert [(task.completed, task.total) for task in progress.bars.tasks] == [(40, 40), (40, 40)]
    assert [task.fields["figures"] for task in progress.bars.tasks] == [
        "loss 0.250, correct 50.0 %",
        "loss 1.000, correct 50.0 %",
    ]
    assert [task.fields["time"] for task in progress.bars.tasks] == ["took 0.4 s", "took 0.1 s"]


def test_which_progress_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(screen.progress(quiet=False)) is screen.Lines
    assert type(screen.progress(quiet=True)) is screen.Progress
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert type(screen.progress(quiet=False)) is screen.Bars
    monkeypatch.setenv("TERM", "dumb")
    assert type(screen.progress(quiet=False)) is screen.Lines


SUMMARY = {
    "dev": False,
    "test_accuracy": 0.985,
    "test_interval": [0.982, 0.987],
    "test_images": 10_000,
    "test_of": "official test set",
    "validation_accuracy": None,
    "control_test_accuracy": 0.98,
    "control_interval": [0.977, 0.983],
    "control_difference": {"difference": -0.005, "interval": [-0.008, 0.001]},
    "seconds": 250.0,
}


def test_the_end_of_a_run_with_a_control() -> None:
    text = screen.run(SUMMARY, "runs/demo", "runs/demo/report.html")
    assert "98.50 %  (95 % interval 98.20–98.70 %, 10,000 images)  official test set" in text
    assert "98.00 %  (95 % interval 97.70–98.30 %, 10,000 images)" in text
    assert "-0.50 points  (95 % interval -0.80 to +0.10)" in text
    assert "4 min 10 s" in text
    assert "runs/demo/report.html" in text
    assert "validation" not in text


def test_the_end_of_a_run_without_a_test_split_shows_what_there_is() -> None:
    validation = {
        "validation_accuracy": 0.9,
        "validation_interval": [0.8, 0.95],
        "validation_images": 60,
        "validation_of": "the model itself",
    }
    nothing = {"test_accuracy": None, "control_test_accuracy": None}
    lines = screen.run(SUMMARY | nothing | validation, "r", "r.html").splitlines()
    assert [line.split()[0] for line in lines] == ["validation", "time", "report"]
    assert "90.0 %  (95 % interval 80.0–95.0 %, 60 images)  the model itself" in lines[0]


def test_the_end_of_a_run_says_what_to_label_where_labels_left_a_doubt() -> None:
    found = SUMMARY | {"undecided_images": 7, "source": "my photos", "pool": None}
    assert "to label next" not in screen.run(found | {"undecided_images": 0}, "r", "r.html")
    last = screen.run(found, "runs/x", "r.html").splitlines()[-1]
    assert last.endswith("  handful suggest runs/x 'my photos' -n 5")
    of_old = {key: value for key, value in found.items() if key != "pool"}
    assert "to label next" not in screen.run(of_old, "runs/x", "r.html")
    last = screen.run(found | {"pool": "more/"}, "runs/x", "r.html").splitlines()[-1]
    assert last.endswith("  handful suggest runs/x more/ -n 5")


def test_a_development_run_claims_no_test() -> None:
    text = screen.run(SUMMARY | {"dev": True, "test_of": "training images"}, "r", "r.html")
    assert text.startswith("accuracy on development images  98.50 %")
    assert "test accuracy" not in text


def test_an_evaluation_has_a_line_a_class() -> None:
    found = {
        "scored": "all of photos/test",
        "accuracy": 0.75,
        "interval": [0.5, 0.9],
        "images": 4,
        "nll": 0.5,
        "brier": 0.3,
        "ece": 0.1,
        "class_names": ["cat", "dog"],
        "per_class": [
            {"images": 2, "precision": 1.0, "recall": 0.5, "f1": 2 / 3},
            {"images": 2, "precision": 2 / 3, "recall": 1.0, "f1": 0.8},
        ],
    }
    lines = screen.evaluation(found).splitlines()
    assert "75.0 %  (95 % interval 50.0–90.0 %, 4 images)  all of photos/test" in lines[0]
    assert lines[-2].split() == ["cat", "2", "100.0", "%", "50.0", "%", "66.7", "%"]
    assert lines[-1].split() == ["dog", "2", "66.7", "%", "100.0", "%", "80.0", "%"]


SHOWN = [screen.answers, screen.answers_json, screen.answers_jsonl, screen.answers_csv]
Show = Callable[[Iterable[Answer], float], Iterator[str]]


@pytest.mark.parametrize("show", SHOWN)
def test_a_model_of_two_classes_has_fewer_candidates(show: Show) -> None:
    answers = [
        Answer(Path("a.png"), (("cat", 0.75), ("dog", 0.25))),
        Answer(Path("b.png"), error="the file is empty"),
    ]
    text = "\n".join(show(answers, 0.0))
    assert text == text.strip()
    assert "cat" in text
    assert "dog" in text
    assert "the file is empty" in text
    if show is screen.answers_json:
        assert json.loads(text)[0]["candidates"] == [{"class": "dog", "probability": 0.25}]
    if show is screen.answers_csv:
        assert [line.count(",") for line in io.StringIO(text)] == [9, 9, 9]


@pytest.mark.parametrize("show", [screen.answers_jsonl, screen.answers_csv])
def test_lines_for_programs_are_told_as_answers_come(show: Show) -> None:
    asked = 0

    def endless() -> Iterator[Answer]:
        nonlocal asked
        while True:
            asked += 1
            yield Answer(Path("name, with a comma.png"), (("cat", 0.75), ("dog", 0.25)))

    lines = list(islice(show(endless(), 0.0), 4))
    assert asked == 4 - (show is screen.answers_csv)  # it has a head
    assert lines[2] == lines[3]
    if show is screen.answers_csv:
        assert next(csv.reader(lines[1:2]))[0] == "name, with a comma.png"


def test_lines_of_json_are_the_objects_of_the_array() -> None:
    (array,) = screen.answers_json(ANSWERS, 0.8)
    lines = list(screen.answers_jsonl(ANSWERS, 0.8))
    assert [json.loads(line) for line in lines] == json.loads(array)


ANSWERS = [
    Answer(Path("sure.png"), (("cat", 0.99), ("dog", 0.01)), 0.4),
    Answer(Path("unsure.png"), (("dog", 0.55), ("cat", 0.45)), 2.5),
]


def test_an_unsure_answer_names_no_class_and_a_stranger_is_marked() -> None:
    _, sure, unsure = "\n".join(screen.answers(ANSWERS, 0.8)).splitlines()
    assert sure.split()[1] == "cat"
    assert "unlike" not in sure
    assert unsure.split()[1] == "–"
    assert "unsure: dog 55.0 %, cat 45.0 %" in unsure
    assert "unlike the images that taught it (2.50 times the usual distance)" in unsure
    assert "dog" in "\n".join(screen.answers(ANSWERS)).splitlines()[2].split()[1]


def test_an_unsure_answer_is_none_for_programs() -> None:
    sure, unsure = json.loads("".join(screen.answers_json(ANSWERS, 0.8)))
    assert (sure["class"], sure["unsure"], sure["distance"]) == ("cat", False, 0.4)
    assert (unsure["class"], unsure["unsure"], unsure["probability"]) == (None, True, 0.55)
    assert [one["class"] for one in unsure["candidates"]] == ["dog", "cat"]
    head, sure, unsure = csv.reader(screen.answers_csv(ANSWERS, 0.8))
    row = dict(zip(head, unsure, strict=True))
    told = (row["class"], row["distance"], row["unsure"], row["error"])
    assert told == ("", "2.500", "dog", "")
    assert dict(zip(head, sure, strict=True))["class"] == "cat"


def test_what_few_labels_cannot_certify_is_said() -> None:
    found = Abstention(0.01, 0.8123, 100, 95, 0, 0.031)
    assert screen.abstention(found) == (
        "answers from a probability of 81.23 % on; of 100 labelled images, answered by networks "
        "that had not learned from them, 95 reach that, none of them with a wrong answer: with "
        "95 % confidence the error is at most 3.1 %; they cannot certify 1 %"
    )
    nothing = screen.abstention(Abstention(0.0004, 1.001, 100, 0, 0, 1.0))
    assert nothing.startswith("no probability is enough for an answer")
    assert nothing.endswith("they cannot certify 0.04 %")
    assert "cannot" not in screen.abstention(Abstention(0.05, 0.5, 900, 900, 3, 0.01))


def test_efficiency_has_a_line_for_each_number_of_labels() -> None:
    points = [
        Point(5, 10_000, [0.93, 0.94], [0.92, 0.92], [0.01, 0.02]),
        Point(1000, 100, [0.99], [], []),
    ]
    head, several, single = screen.efficiency(points).splitlines()
    assert head.startswith("labels a class")
    assert several.split("  ")[0] == "5"
    assert "93.50 % (87.15–99.85 %)" in several
    assert "+1.50 (-4.85 to +7.85)" in several
    assert single.split() == ["1,000", "1", "99.0", "%", "99.0", "%", "–", "–"]


def test_a_run_that_came_in_is_one_line() -> None:
    row = {"test_images": 10_000, "test_accuracy": 0.98, "control_test_accuracy": None,
           "seconds": 61.0}  # fmt: skip
    assert screen.cell("this one", row) == "this one: 98.00 %, 1 min 1 s"
    beside = screen.cell("this one", row | {"control_test_accuracy": 0.97})
    assert beside == "this one: 98.00 % (control 97.00 %), 1 min 1 s"

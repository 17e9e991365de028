"""Many runs, a row each. Most tests put a stand-in for the runs; one trains for real."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from PIL import Image

from handful import bench, cli, datasets
from handful.bench import Cell, Row
from handful.config import DataConfig
from handful.datasets import Dataset

CELLS = [Cell(5, 100), Cell(5, 101), Cell(10, 100), Cell(10, 101)]


def summary_of(options: Sequence[str]) -> Row:
    """As a run leaves it: the more labels, the better; the control is worse by a point."""
    given = dict(option.removeprefix("--").split("=") for option in options[:3])
    per_class, draw, seed = (int(given[name]) for name in ("per-class", "draw", "seed"))
    accuracy = 0.9 + per_class / 200 + draw / 10000
    found: Row = dict.fromkeys(bench.KEPT)
    return found | {
        "recipe": "fast",
        "per_class": per_class,
        "draw": draw,
        "seed": seed,
        "test_images": 10_000,
        "test_accuracy": accuracy,
        "control_test_accuracy": accuracy - 0.01,
        "control_difference": {"difference": 0.01, "interval": [0.0, 0.02]},
        "seconds": 2.0,
    }


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The options of the runs that were asked for."""
    asked: list[list[str]] = []

    def apart(source: str, options: Sequence[str], threads: int | None = None) -> Row:
        asked.append([*options])
        return summary_of(options)

    monkeypatch.setattr(bench, "apart", apart)
    monkeypatch.setattr(bench, "commit", lambda: "abc1234")
    monkeypatch.setattr(bench, "_code", lambda: "a1")
    monkeypatch.setattr(Dataset, "content", "0123456789ab")
    return asked


def measured(
    path: Path,
    cells: Sequence[Cell] = CELLS,
    control: bool | None = None,
    source: str = "mnist50",
    **options: Any,
) -> list[Row]:
    asked = bench.setting(source, "fast", options.get("assignments", ()), control)
    return bench.labels(asked, datasets.load(asked.data), cells, path, **options)


def test_only_what_is_missing_is_run(tmp_path: Path, runs: list[list[str]]) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    measured(path, CELLS[:2])
    assert len(runs) == 2
    rows = measured(path, [CELLS[2], *CELLS[:2], CELLS[3]])
    assert len(runs) == 4
    assert [Cell(row["per_class"], row["draw"], row["seed"]) for row in rows] == [
        CELLS[2], *CELLS[:2], CELLS[3],
    ]  # fmt: skip
    assert len(path.read_text().splitlines()) == 4
    assert measured(path) == [rows[1], rows[2], rows[0], rows[3]]
    assert len(runs) == 4


def test_what_is_there_already_is_told(
    tmp_path: Path, runs: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, told = tmp_path / "rows.jsonl", list[str]()
    measured(path, CELLS[:1], say=told.append)
    assert told == []
    bench.append(path, {"another": "row"})
    measured(path, CELLS[:3], say=told.append)
    monkeypatch.setattr(bench, "_code", lambda: "b2")
    measured(path, CELLS[2:], say=told.append)
    assert told == [
        f"{path} has 1 of 3 runs",
        f"{path} has 0 of 2 runs, and 1 that do not count "
        "(other code, source, settings, torch or kind of device)",
    ]


def test_a_row_says_what_made_it(tmp_path: Path, runs: list[list[str]]) -> None:
    (row,) = measured(tmp_path / "rows.jsonl", CELLS[:1])
    assert row["commit"] == "abc1234"
    assert row["source"] == "mnist50"
    assert row.keys() >= {"version", "asked", "seed", "draw", "seconds", "test_interval"}
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == row


@pytest.mark.parametrize(
    "change",
    [
        {"assignments": ["pretext.steps=3"]},
        {"control": False},
        {"_code": "b2"},
        {"_computer": "torch 2.14.0, cpu"},
        {"content": "ba9876543210"},
    ],
)
def test_a_row_of_something_else_does_not_count(
    tmp_path: Path, runs: list[list[str]], monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    path = tmp_path / "rows.jsonl"
    before = measured(path, CELLS[:1])
    for name in {"_code", "_computer"} & change.keys():
        monkeypatch.setattr(bench, name, mock.Mock(return_value=change.pop(name)))
    if "content" in change:
        monkeypatch.setattr(Dataset, "content", change.pop("content"))
    assert measured(path, CELLS[:1], **change) != before
    assert len(runs) == 2
    assert measured(path, CELLS[:1], **change)
    assert len(runs) == 2


def test_code_is_told_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is committed or not, or git refuses to say."""
    (tmp_path / "views").mkdir()
    for name in ("bench.py", "views/rich.py"):
        (tmp_path / name).write_text("")
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "bench.py"))
    before = bench._code()
    assert bench._code() == before
    (tmp_path / ".#bench.py").symlink_to("nowhere")  # an editor's lock
    assert bench._code() == before
    (tmp_path / "views" / "rich.py").write_text("x = 1")
    assert bench._code() != before
    (tmp_path / "gone.py").symlink_to("nowhere")
    assert bench._code() is None
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "archive.zip" / "bench.py"))
    assert bench._code() is None


def test_rows_of_code_without_a_name_do_not_count(
    tmp_path: Path, runs: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_code", lambda: None)
    for _ in range(2):
        assert len(measured(tmp_path / "rows.jsonl", CELLS[:2])) == 2
    assert len(runs) == 4


def test_the_threads_of_a_run_do_not_tell_it_from_another(monkeypatch: pytest.MonkeyPatch) -> None:
    told = bench._computer("cpu")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 96)
    assert bench._computer("cpu") == told == f"torch {torch.__version__}, cpu"


def test_code_that_changes_meanwhile_leaves_rows_without_a_name(
    tmp_path: Path, runs: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = iter(["a1", "a1", "b2", "a1", "a1"])
    monkeypatch.setattr(bench, "_code", lambda: next(codes))
    rows = measured(tmp_path / "rows.jsonl", CELLS[:2])
    assert [row["commit"] for row in rows] == ["abc1234", bench.UNCOMMITTED]
    assert [row["code"] for row in rows] == ["a1", None]
    measured(tmp_path / "rows.jsonl", CELLS[:2])
    assert len(runs) == 3


@pytest.mark.parametrize(
    "setting", ["data.draw=3", "data.per_class=4", "seed=1", "data.source=x", "data={draw=3}"]
)
def test_what_tells_runs_apart_is_not_set_for_all(
    tmp_path: Path, runs: list[list[str]], setting: str
) -> None:
    with pytest.raises(ValueError, match=r"--set \S+: here (--\S+|SOURCE) says that"):
        measured(tmp_path / "rows.jsonl", assignments=[setting])
    assert runs == []


@pytest.mark.parametrize(
    ("settings", "word"),
    [([], "--control"), (["pretext.steps=0"], "--no-control"),
     (["pretext.steps=0", "downstream.contrast=0.3"], "--control")],
)  # fmt: skip
def test_a_control_runs_where_there_is_a_contrast_to_leave_out(
    tmp_path: Path, runs: list[list[str]], settings: list[str], word: str
) -> None:
    measured(tmp_path / "rows.jsonl", CELLS[:1], assignments=settings)
    assert word in runs[0]


def test_rows_are_of_what_a_source_holds(idx_folder: Callable[[int, int], Path]) -> None:
    one, other, fewer = idx_folder(4, 5), idx_folder(4, 5), idx_folder(3, 5)
    found = [
        datasets.load(DataConfig(source=str(source))).content for source in (one, other, fewer)
    ]
    assert found[0] == found[1] != found[2]


def test_the_control_and_settings_reach_the_run(tmp_path: Path, runs: list[list[str]]) -> None:
    measured(
        tmp_path / "rows.jsonl", [Cell(7, 3, 1)], control=False, assignments=["pretext.steps=3"]
    )
    assert runs == [
        ["--per-class=7", "--draw=3", "--seed=1", "--recipe=fast", "--no-control",
         "--set=tsne=false", "--set=pretext.steps=3"]
    ]  # fmt: skip


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_fails_is_named_and_what_was_done_stays(
    tmp_path: Path, runs: list[list[str]], monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    stand_in: Callable[..., Row] = bench.apart

    def failing(source: str, options: Sequence[str], threads: int | None = None) -> Row:
        if "--per-class=10" in options:
            raise ValueError("class 3 has 8 labelled images")
        return stand_in(source, options, threads)

    path = tmp_path / "rows.jsonl"
    monkeypatch.setattr(bench, "apart", failing)
    with pytest.raises(ValueError, match=r"^10 per class, draw 10\d, seed 0: class 3 has 8"):
        measured(path, jobs=jobs)
    monkeypatch.setattr(bench, "apart", stand_in)
    assert len(bench.read(path)) == len(runs)
    assert len(measured(path)) == 4
    assert len(runs) == 4


def test_a_damaged_file_is_named(tmp_path: Path, runs: list[list[str]]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"per_class": 5}\n{"per_cl')
    with pytest.raises(ValueError, match=r"rows\.jsonl is damaged"):
        measured(path)
    assert runs == []


def test_the_commit_is_that_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        name = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", *name, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    package = tmp_path / "package" / "bench.py"
    package.parent.mkdir()
    package.write_text("a")
    monkeypatch.setattr(bench, "__file__", str(package))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert bench.commit() is None
    git("init")
    assert bench.commit() is None  # nothing of the package is in it
    git("add", ".")
    git("commit", "-m", "first")
    first = git("log", "-1", "--format=%h")
    (tmp_path / "elsewhere").write_text("b")
    git("add", ".")
    git("commit", "-m", "second")
    assert bench.commit() == first
    package.write_text("changed")
    assert bench.commit() == bench.UNCOMMITTED


SHORT = [
    f"--set={setting}"
    for setting in ("network.width=4", "pretext.steps=1", "downstream.steps=2", "test_views=1")
]


def test_labels_through_real_processes(
    idx_folder: Callable[[int, int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "bench", "labels", str(idx_folder(4, 20)), "--recipe=fast", "--per-class=2,3",
        "--draws=100", f"--out={tmp_path}", "--jobs=2", *SHORT,
    ]  # fmt: skip
    assert cli.main(words) == 0
    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) == 2
    assert "2 per class, draw 100, seed 0: " in shown.err
    assert [line.split()[0] for line in shown.out.splitlines()[1:3]] == ["2", "3"]
    with Image.open(tmp_path / "labels.png") as picture:
        assert picture.format == "PNG"
    rows = bench.read(tmp_path / "rows.jsonl")
    assert sorted(row["labelled_images"] for row in rows) == [20, 30]
    assert all(row["control_test_accuracy"] is not None for row in rows)


def test_a_run_without_a_control_leaves_a_row(
    idx_folder: Callable[[int, int], Path], tmp_path: Path
) -> None:
    words = ["bench", "labels", str(idx_folder(4, 20)), "--recipe=fast", "--per-class=2",
             "--draws=100", f"--out={tmp_path}", "--no-control", *SHORT]  # fmt: skip
    assert cli.main(words) == 0
    (row,) = bench.read(tmp_path / "rows.jsonl")
    assert row["control_test_accuracy"] is row["control_difference"] is None


def test_a_curve_is_learned_from_parts_of_the_smallest_class(
    idx_folder: Callable[[int, int], Path],
) -> None:
    def curve(per_class: int, *sizes: list[int]) -> tuple[Sequence[int], int]:
        asked = bench.setting(str(idx_folder(per_class, 5)), None)
        return bench.curve(asked, datasets.load(asked.data), *sizes)

    assert curve(19) == ([2, 4, 9], 19)
    with pytest.raises(ValueError, match=r"a class of .* has 7 labelled images.* takes 8"):
        curve(7)
    assert curve(7, [2, 3]) == ([2, 3], 7)


def test_learn_curve_says_what_twice_the_labels_would_give(
    idx_folder: Callable[[int, int], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    runs: list[list[str]],
) -> None:
    words = ["learn-curve", str(idx_folder(8, 0)), "--recipe=fast", f"--out={tmp_path}"]
    assert cli.main([*words, "--draws=0-1"]) == 0
    shown = capsys.readouterr()
    assert "with 16 labels a class, twice what there is, expect " in shown.out
    assert "(80 % interval of one run, if errors go on falling as a power" in shown.out
    assert [run[0] for run in runs] == [f"--per-class={n}" for n in (1, 1, 2, 2, 4, 4)]
    assert all("--no-control" in run for run in runs)
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.format == "PNG"
    assert cli.main([*words, "--draws=0-1", "--per-class=1,4", "--at=9"]) == 0
    assert "with 9 labels a class expect " in capsys.readouterr().out
    assert len(runs) == 6


def test_a_recipe_of_fixed_length_may_have_members(idx_folder: Callable[[int, int], Path]) -> None:
    """Settings are laid over the recipe that is asked for and over no other."""
    asked = bench.setting(str(idx_folder(8, 0)), "fast", ["members=3"])
    assert bench.curve(asked, datasets.load(asked.data)) == ([1, 2, 4], 8)
    assert asked.members == 3


def test_too_few_runs_for_a_curve_are_refused_before_they_are_made(
    idx_folder: Callable[[int, int], Path],
    capsys: pytest.CaptureFixture[str],
    runs: list[list[str]],
) -> None:
    words = ["learn-curve", str(idx_folder(8, 0)), "--recipe=fast", "--draws=0"]
    assert cli.main(words) == 2
    assert "at least 4 runs at 2 numbers of labels, got 3 at 3" in capsys.readouterr().err
    assert runs == []


@pytest.mark.parametrize(
    ("settings", "per_class", "told"),
    [
        ([], 8, r"of a class with 8 different labelled images 8 leave none: at most 7 per class"),
        (["data.unlabelled=true"], 4, r"which data\.unlabelled = true or .* keeps from it"),
        (["data.holdout=0"], 4, r"which .* data\.holdout = 0 keeps from it"),
    ],
)
def test_labels_that_train_do_not_test(
    idx_folder: Callable[[int, int], Path],
    tmp_path: Path,
    runs: list[list[str]],
    settings: list[str],
    per_class: int,
    told: str,
) -> None:
    source, path = str(idx_folder(8, 0)), tmp_path / "rows.jsonl"
    with pytest.raises(ValueError, match=told):
        measured(path, [Cell(per_class, 1)], source=source, assignments=settings)
    assert runs == []
    assert measured(path, [Cell(7, 1)], source=source)


def test_a_run_that_breaks_leaves_the_rows_of_others_and_its_name(
    tmp_path: Path, runs: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in: Callable[..., Row] = bench.apart

    def breaking(source: str, options: Sequence[str], threads: int | None = None) -> Row:
        if "--draw=101" in options:
            raise RuntimeError("a run ended with -9")
        return stand_in(source, options, threads)

    monkeypatch.setattr(bench, "apart", breaking)
    with pytest.raises(RuntimeError, match=r"^5 per class, draw 101, seed 0: a run ended with -9"):
        measured(tmp_path / "rows.jsonl", CELLS[:2])
    assert [row["draw"] for row in bench.read(tmp_path / "rows.jsonl")] == [100]


def test_a_run_that_breaks_is_not_taken_for_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(words: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(words, -9, "", "Traceback\nZeroDivisionError")

    monkeypatch.setattr(bench.subprocess, "run", broken)
    with pytest.raises(RuntimeError, match=r"ended with -9:\nTraceback\nZeroDivisionError"):
        bench.apart("photos", [])


def test_a_run_that_cannot_be_is_one_line(
    idx_folder: Callable[[int, int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["bench", "labels", str(idx_folder(2, 5)), "--per-class=9", f"--out={out}"]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("handful: 9 per class, draw 10")
    assert "has 2 labelled images" in line
    assert not out.exists()


def test_copies_of_labelled_images_are_none_to_test_with(bundled: Dataset) -> None:
    zeros, ones = ((bundled.train.labels == k).nonzero()[:6, 0] for k in (0, 1))
    some = bundled.train.select(torch.cat([zeros, ones]))
    some = replace(some, class_names=("0", "1"))
    same = some.sources.clone()
    same[1] = same[0]
    plain = bench.setting("photos", "fast")
    for sources, most in ((some.sources, 5), (same, 4)):
        held = replace(bundled, train=replace(some, sources=sources), test=None)
        bench._check_test(plain, held, most)
        with pytest.raises(ValueError, match=f"at most {most} per class"):
            bench._check_test(plain, held, most + 1)

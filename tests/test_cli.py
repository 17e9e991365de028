import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import handful
from handful import cli, recipes, runs
from handful.config import RunConfig, parse
from handful.idx import write_idx
from handful.networks import ConvNet, classifier_head
from handful.pictures import Preparation
from handful.predictor import Predictor
from handful.recipes import RECIPES, compose, recipe_for

SHORT = [
    f"--set={setting}"
    for setting in (
        "network.width=4",
        "pretext.steps=2",
        "pretext.batch_size=16",
        "downstream.steps=3",
        "downstream.batch_size=16",
        "downstream.checks=2",
        "test_views=1",
        "tsne=false",
    )
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def process(*arguments: object, cwd: Path | None = None, **environment: str) -> Ended:
    """`handful` as a user runs it."""
    done = subprocess.run(
        [sys.executable, "-m", "handful", *map(str, arguments)],
        cwd=cwd,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=240,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Any:
    """The same without a process of its own: for the many small mistakes."""

    def run(*arguments: object) -> Ended:
        code = cli.main(list(map(str, arguments)))
        return Ended(code, *capsys.readouterr())

    return run


def only_line(ended: Ended) -> str:
    """The one line of a mistake."""
    assert ended.code == 2, ended
    assert ended.err.count("\n") == 1, ended.err
    assert ended.err.startswith("handful: "), ended.err
    return ended.err.removeprefix("handful: ").rstrip("\n")


def stripes(n: int, classes: int = 3) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """uint8 (n, 28, 28) with a bar whose place is the class, and labels (n,)."""
    labels = np.arange(n, dtype=np.uint8) % classes
    images = np.zeros((n, 28, 28), np.uint8)
    for i, label in enumerate(labels):
        images[i, 6:22, 7 + 5 * label : 10 + 5 * label] = 200 + i % 50
    return images, labels


def write_split(folder: Path, part: str, n: int) -> None:
    folder.mkdir(exist_ok=True)
    first = 12 * (part == "train")  # so that no picture is in both parts
    images, labels = (array[first:] for array in stripes(first + n))
    write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
    write_idx(folder / f"{part}-labels-idx1-ubyte", labels)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of idx files: 36 training and 12 test images of 3 classes."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    write_split(folder, "train", 36)
    write_split(folder, "t10k", 12)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of class folders, 10 pictures each."""
    folder = tmp_path / "photos"
    for image, label in zip(*stripes(30), strict=True):
        place = folder / ("left", "middle", "right")[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{len(list(place.iterdir()))}.png")
    return folder


@pytest.fixture(scope="module")
def run(digits: Path) -> Path:
    """A run that real training made, shortened."""
    folder = digits.parent / "run"
    ended = process("train", digits, "--recipe", "demo", "--out", folder, "--per-class", 8, *SHORT)
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, for what needs no training."""
    folder = tmp_path_factory.mktemp("untrained")
    network = RunConfig().network.model_copy(update={"width": 4})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = ConvNet(1, 28, network)
        head = classifier_head(encoder.dim, 4)
    names = ("zero", "one", "two, too", "three")
    Predictor(encoder, head, names, Preparation("digits", 28, 1), network).save(folder / "model")
    return folder


# Help, versions, recipes


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        [],
        ["train", "--help"],
        ["predict", "-h"],
        ["version"],
        ["recipes"],
        ["train", "x", "--recipe", "no-such-recipe"],
        ["train", "x", "--no-such-option"],
    ],
    ids=" ".join,
)
def test_what_needs_no_torch_imports_none(arguments: list[str]) -> None:
    script = (
        "import sys; from handful.cli import main; main(sys.argv[1:]); "
        "heavy = {'torch', 'matplotlib', 'sklearn', 'scipy', 'openTSNE'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_help_names_every_command(command: Any) -> None:
    ended = command("--help")
    assert ended.code == 0
    for name in (
        "train",
        "evaluate",
        "predict",
        "embed",
        "export",
        "suggest",
        "audit",
        "learn-curve",
        "plot",
        "data",
        "recipes",
        "version",
    ):
        assert f" {name} " in ended.out
    assert command() == ended


def test_the_package_is_lazy_and_complete() -> None:
    assert set(handful.__all__) <= set(dir(handful))
    for name in handful.__all__:
        assert getattr(handful, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = handful.nonsense  # type: ignore[attr-defined]


def test_version(command: Any) -> None:
    assert command("version").out == f"handful {handful.__version__}\n"
    assert command("--version") == command("version")


def test_recipes_state_command_cost_and_result(command: Any) -> None:
    ended = command("recipes")
    assert {"demo", "fast", "standard", "course"} <= set(RECIPES)
    for name, recipe in RECIPES.items():
        assert f"{name}: {recipe.summary}" in ended.out
        for text in (recipe.command, recipe.cost, recipe.reaches):
            assert text in ended.out


# Which configuration a command line asks for


def test_settings_are_laid_in_order(tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text("seed = 5\n[pretext]\nsteps = 50\ntemperature = 0.3\n[downstream]\nsteps = 7\n")
    found, chosen = compose(
        "digits/", "fast", file, {"seed": 6, "data.draw": 3}, ["pretext.steps=9", "seed=8"]
    )
    expected = recipe_for("digits/", "fast").updated(
        {
            "data.source": "digits/",
            "data.draw": 3,
            "downstream.steps": 7,
            "pretext.temperature": 0.3,
            "pretext.steps": 9,
            "seed": 8,
        }
    )
    assert found == expected
    assert sorted(chosen) == [
        "data.draw", "data.source", "downstream.steps", "pretext.steps", "pretext.temperature",
        "seed",
    ]  # fmt: skip


@pytest.mark.parametrize(("source", "recipe"), [("mnist50", "demo"), ("photos", "standard")])
def test_the_default_recipe_follows_the_source(source: str, recipe: str) -> None:
    config, chosen = compose(source, None, None, {}, [])
    assert chosen == {"data.source"}
    assert (config.recipe, config.data.source) == (recipe, source)
    assert cli.default_out(config) == Path("runs") / f"{source}-{recipe}"


def test_the_default_run_folder_is_named_after_the_last_folder() -> None:
    config = parse({"recipe": "fast", "data": {"source": "some/where/"}})
    assert cli.default_out(config) == Path("runs/where-fast")
    for source, name in (
        ("/", "images"),
        ("hub:owner/pets:default", "owner-pets-default"),
        ("hub:mnist@refs/pr/1", "mnist-refs-pr-1"),
    ):
        asked = config.updated({"data.source": source})
        assert cli.default_out(asked) == Path(f"runs/{name}-fast")


def test_a_complete_file_stands_alone(tmp_path: Path) -> None:
    """What a run leaves unset in its config.toml stays unset, whatever the recipe says by now."""
    config = parse({"recipe": "retired", "data": {"source": "digits"}, "seed": 4})
    file = tmp_path / "config.toml"
    file.write_text(config.to_toml())
    found, chosen = compose("digits", None, file, {}, [])
    assert found == config
    assert {"preset", "pretext.views.flip"} <= chosen


def test_a_file_names_its_recipe(tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text('recipe = "fast"\nseed = 3\n')
    expected = recipe_for("photos", "fast").updated({"data.source": "photos", "seed": 3})
    assert compose("photos", None, file, {}, [])[0] == expected
    with pytest.raises(ValueError, match="contradicts recipe = fast"):
        compose("photos", "demo", file, {}, [])


# Mistakes: one line, exit code 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["train"], "SOURCE"),
        (["trian", "mnist50"], "train"),
        (["train", "mnist50", "--no-such"], "--no-such"),
        (["train", "mnist50", "--seed", "one"], "--seed"),
        (["train", "mnist50", "--seed", "-1"], "seed = -1"),
        (["train", "mnist50", "--recipe", "dmeo"], "demo"),
        (["train", "mnist50", "--per-class", "0"], "data.per_class = 0"),
        (["train", "mnist50", "--dev"], "full training set"),
        (["train", "mnist50", "--draw", "3"], "--draw 3 needs --per-class"),
        (["train", "mnist50", "--control", "--set", "pretext.steps=0"], "drop one of them"),
        (["train", "mnist50", "--set", "pretext.stpes=3"], "did you mean pretext.steps?"),
        (["train", "mnist50", "--set", "pretext.temperature=0"], "pretext.temperature = 0"),
        (["train", "mnist50", "--set", "pretext.steps=many"], "pretext.steps = 'many'"),
        (["train", "mnist50", "--set", "pretext"], "expected key=value"),
        (["train", "mnist50", "--config", "/no/such.toml"], "/no/such.toml"),
        (["train", "mnist50", "--device", "abacus"], "unknown device abacus"),
        (["train", "mnist50", "--track", "diary"], "--track diary: there is tensorboard alone"),
        (["train", "/no/such/folder"], "/no/such/folder"),
        (["evaluate", "/no/run", "mnist50"], "/no/run"),
        (["predict", "/no/run", "a.png"], "/no/run"),
        (["predict", "/no/run"], "FILES"),
        (["predict", "/no/run", "a.png", "--json", "--csv"], "exclude each other"),
        (["predict", "/no/run", "a.png", "--jsonl", "--csv"], "--jsonl and --csv exclude"),
        (["embed", "/no/run", "mnist50", "--out", "x.npz"], "/no/run"),
        (["embed", "/no/run", "mnist50"], "--out"),
        (["export", "/no/run"], "/no/run"),
        (["export", "/no/run", "--format", "tflite"], "tflite"),
        (["plot", "/no/run"], "/no/run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(
    command: Any,
    arguments: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = command(*arguments, *(["--quiet"] if arguments[0] == "train" else []))
    assert reason in only_line(ended)
    assert ended.out == ""
    assert not any(tmp_path.iterdir()), "a mistake left something behind"


@pytest.mark.parametrize("content", ["seed = ", "\x00", "[seed]\nx = 1", "no_such = 1", "data = 3"])
def test_a_file_of_settings_that_makes_no_sense(command: Any, tmp_path: Path, content: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(content)
    only_line(command("train", "mnist50", "--config", file, "--quiet"))


def test_mistakes_in_processes() -> None:
    assert "nowhere does not exist" in only_line(process("train", "nowhere", "--quiet"))
    assert "RUN" in only_line(process("evaluate"))


def test_what_is_not_the_users_mistake_keeps_its_traceback(
    command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(recipes, "compose", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        command("train", "mnist50")


def test_a_traceback_can_be_asked_for(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANDFUL_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown recipe"):
        command("train", "mnist50", "--recipe", "dmeo")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n20.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_too_little_memory_is_one_line_with_a_remedy(
    command: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(recipes, "compose", full)
    assert "pretext.batch_size" in only_line(command("train", "mnist50"))


def test_a_full_disk_is_one_line(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "runs/a/metrics.jsonl")

    monkeypatch.setattr(recipes, "compose", full)
    assert only_line(command("train", "x")) == "runs/a/metrics.jsonl: No space left on device"


def test_a_reader_that_leaves_early_causes_no_noise() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "handful", "recipes"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as early:
        assert early.stdout is not None
        assert early.stderr is not None
        early.stdout.close()
        assert early.stderr.read() == b""


# Data that is not as it should be


def empty_class(photos: Path) -> Path:
    (photos / "empty").mkdir()
    return photos


def class_of_text(photos: Path) -> Path:
    (photos / "notes").mkdir()
    (photos / "notes" / "a.txt").write_text("a")
    return photos


def one_class(photos: Path) -> Path:
    for name in ("left", "right"):
        (photos / name).rename(photos.parent / name)
    return photos


def broken_class(photos: Path) -> Path:
    (photos / "broken").mkdir()
    (photos / "broken" / "a.png").write_bytes(b"no picture")
    return photos


def a_file(photos: Path) -> Path:
    return photos / "left" / "0.png"


def no_folders(photos: Path) -> Path:
    return photos / "left"


def stray_label(photos: Path) -> Path:
    folder = photos.parent / "idx"
    write_split(folder, "train", 36)
    labels = stripes(36)[1]
    labels[5] = 200
    write_idx(folder / "train-labels-idx1-ubyte", labels)
    return folder


def too_few_labels(photos: Path) -> Path:
    folder = photos.parent / "idx"
    write_split(folder, "train", 36)
    write_idx(folder / "train-labels-idx1-ubyte", stripes(35)[1])
    return folder


def cut_archive(photos: Path) -> Path:
    folder = photos.parent / "idx"
    write_split(folder, "train", 36)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    return folder


@pytest.mark.parametrize(
    "damage",
    [
        empty_class,
        class_of_text,
        one_class,
        broken_class,
        a_file,
        no_folders,
        stray_label,
        too_few_labels,
        cut_archive,
    ],
)
def test_data_that_cannot_be_trained_on(
    command: Any, photos: Path, tmp_path: Path, damage: Any
) -> None:
    out = tmp_path / "run"
    only_line(command("train", damage(photos), "--out", out, "--quiet", *SHORT))
    assert not out.exists()


def test_too_few_images_of_a_class(command: Any, photos: Path, tmp_path: Path) -> None:
    arguments = ["train", photos, "--out", tmp_path / "run", "--per-class", 11, "--quiet"]
    assert "11" in only_line(command(*arguments, *SHORT))


def test_strict_refuses_what_is_otherwise_left_out(
    command: Any, photos: Path, tmp_path: Path
) -> None:
    (photos / "left" / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "run"
    line = only_line(command("train", photos, "--strict", "--out", out, "--quiet", *SHORT))
    assert "--strict: 1 amiss, the first: cannot read" in line
    assert "broken.png" in line
    assert not out.exists()


@pytest.mark.parametrize("name", ["a.csv", "a.npz", "a.npy", "a.zip", "a.tar.gz"])
def test_files_that_are_not_what_their_name_says(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "cache"))
    (tmp_path / name).write_bytes(b"\xffneither this nor that")
    line = only_line(command("train", tmp_path / name, "--out", tmp_path / "run", "--quiet"))
    assert name in line
    assert not (tmp_path / "run").exists()


def test_a_folder_with_one_unreadable_image_trains_and_says_so(
    photos: Path, tmp_path: Path
) -> None:
    (photos / "left" / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "run"
    ended = process("train", photos, "--out", out, *SHORT)
    assert ended.code == 0, ended.err
    assert "broken.png" in ended.err
    assert "report.html" in ended.out
    summary = json.loads((out / "summary.json").read_text())
    assert summary["class_names"] == ["left", "middle", "right"]
    assert summary["recipe"] == "standard"


# The run folder


def test_train_prints_its_results_and_nothing_else_on_stdout(run: Path, digits: Path) -> None:
    arguments = ["train", digits, "--recipe", "demo", "--per-class", 8, "--out", run, *SHORT]
    again = process(*arguments, "--quiet")
    assert again.code == 0, again.err
    assert again.err == ""
    summary = json.loads((run / "summary.json").read_text())
    assert f"{100 * summary['test_accuracy']:.1f} %" in again.out
    assert str(run / "report.html") in again.out
    for word in ("test accuracy", "control", "difference", "time", "report"):
        assert word in again.out
    aloud = process(*arguments)
    assert (aloud.code, aloud.out) == (0, again.out)
    assert "complete" in aloud.err


def test_a_complete_run_is_not_done_again_and_another_one_is_refused(
    command: Any, run: Path, digits: Path
) -> None:
    before = (run / "summary.json").stat().st_mtime_ns
    arguments = ["train", digits, "--recipe", "demo", "--per-class", 8, "--out", run, *SHORT]
    assert command(*arguments).code == 0
    assert "seed: here 3, there 0" in only_line(command(*arguments, "--seed", 3, "--quiet"))
    assert (run / "summary.json").stat().st_mtime_ns == before


def test_the_config_of_a_run_repeats_it(run: Path, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    ended = process("train", digits, "--config", run / "config.toml", "--out", out, "--quiet")
    assert ended.code == 0, ended.err
    assert runs.RunFolder(out).config() == runs.RunFolder(run).config()
    first, second = (json.loads((f / "summary.json").read_text()) for f in (run, out))
    for key in ("test_accuracy", "control_test_accuracy", "confusion", "selected_step"):
        assert first[key] == second[key]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to another process")
def test_ctrl_c_is_one_line_and_leaves_a_run_that_is_refused_until_overwritten(
    command: Any, digits: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = ["train", digits, "--recipe", "demo", "--out", out]
    endless = [*arguments, *SHORT, "--set=pretext.steps=1000000", "--quiet"]
    with subprocess.Popen(
        [sys.executable, "-m", "handful", *map(str, endless)],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        # a parent that ignores SIGINT, as jobs in the background do, would hand that on
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as working:
        deadline = time.monotonic() + 120
        while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        working.send_signal(signal.SIGINT)
        assert working.stderr is not None
        assert working.stderr.read() == "handful: stopped by Ctrl-C\n"
    assert working.returncode == 130
    assert runs.RunFolder(out).state() == "interrupted"
    refused = command(*arguments, *SHORT, "--quiet")
    assert "--overwrite" in only_line(refused)
    replaced = command(*arguments, *SHORT, "--quiet", "--overwrite")
    assert replaced.code == 0, replaced.err
    assert runs.RunFolder(out).state() == "complete"


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_a_folder_of_somebody_else_is_left_alone(
    command: Any, digits: Path, photos: Path, overwrite: list[str]
) -> None:
    before = sorted(photos.rglob("*"))
    arguments = ["train", digits, "--out", photos, "--quiet", *overwrite, *SHORT]
    assert "not made by handful" in only_line(command(*arguments))
    assert sorted(photos.rglob("*")) == before


def test_an_output_that_cannot_be_written(command: Any, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    arguments = ["train", digits, "--out", tmp_path / "file" / "run", "--quiet", *SHORT]
    assert "cannot write" in only_line(command(*arguments))


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes wherever it likes"
)
def test_a_read_only_output(command: Any, digits: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        ended = command("train", digits, "--out", tmp_path / "run", "--quiet", *SHORT)
        assert "cannot write" in only_line(ended)
    finally:
        tmp_path.chmod(0o700)


# What a run is good for


def test_evaluate_agrees_with_the_summary(run: Path, digits: Path, command: Any) -> None:
    ended = process("evaluate", run, digits, "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    summary = json.loads((run / "summary.json").read_text())
    assert found["images"] == 12
    assert found["accuracy"] == summary["test_accuracy"]
    assert found["confusion"] == summary["confusion"]
    shown = command("evaluate", run, digits)
    assert f"{100 * found['accuracy']:.1f} %" in shown.out
    assert "12 images)  all of " in shown.out
    assert shown.err == ""
    assert "precision" in shown.out


def test_evaluate_warns_of_images_that_the_run_learned_from(
    run: Path, digits: Path, tmp_path: Path, command: Any
) -> None:
    for path in digits.glob("train-*"):
        shutil.copy(path, tmp_path)
    ended = command("evaluate", run, tmp_path, "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["learned_from"] == 24
    assert ended.err.startswith("handful: 24 of these 36 images are labelled images that the run")
    assert ended.err.count("\n") == 1


def test_embed_writes_an_archive_without_pickle(run: Path, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "h.npz"
    ended = process("embed", run, digits, "--out", out)
    assert ended.code == 0, ended.err
    assert ended.out == f"12 images, all of {digits / 't10k-images-idx3-ubyte.gz'} → {out}\n"
    with np.load(out, allow_pickle=False) as archive:
        assert archive["h"].shape[0] == 12
        assert archive["labels"].tolist() == stripes(12)[1].tolist()


def test_embed_into_a_folder_that_is_not_there(
    command: Any, run: Path, digits: Path, tmp_path: Path
) -> None:
    ended = command("embed", run, digits, "--out", tmp_path / "none" / "h.npz")
    assert "h.npz" in only_line(ended)


def test_plot_draws_the_report_again(run: Path, command: Any) -> None:
    (run / "report.html").unlink()
    ended = process("plot", run)
    assert ended.code == 0, ended.err
    assert ended.out == f"{run / 'report.html'}\n"
    assert (run / "report.html").stat().st_size > 1000


def test_a_trained_model_knows_pictures_of_its_classes(
    run: Path, digits: Path, tmp_path: Path
) -> None:
    images, _ = stripes(12)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    ended = process("predict", run, tmp_path, "--csv")
    assert ended.code == 0, ended.err
    rows = list(csv.DictReader(io.StringIO(ended.out)))
    assert [Path(row["file"]).name for row in rows] == [f"{i}.png" for i in range(12)]
    written = list(csv.DictReader(io.StringIO((run / "predictions.csv").read_text())))
    assert [row["class"] for row in rows] == [row["predicted"] for row in written]
    for row, other in zip(rows, written, strict=True):
        assert float(row["probability"]) == pytest.approx(float(other["probability"]), abs=1e-4)


# Predict


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder with two pictures, a damaged one, a text file and a hidden one."""
    folder = tmp_path / "mixed"
    (folder / "deeper").mkdir(parents=True)
    images, _ = stripes(2)
    Image.fromarray(images[0]).save(folder / "img10.png")
    Image.fromarray(images[1]).convert("RGBA").resize((90, 60)).save(folder / "deeper" / "a.png")
    (folder / "img2.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("notes")
    (folder / ".hidden").write_text("hidden")
    return folder


def test_predict_answers_in_order_and_names_what_it_could_not_read(
    untrained: Path, mixed: Path
) -> None:
    ended = process("predict", untrained, mixed / "img10.png", mixed, mixed / "no.png", "--json")
    records = json.loads(ended.out)
    names = ["img10.png", "a.png", "img2.jpg", "img10.png", "no.png"]
    assert [Path(record["file"]).name for record in records] == names
    assert ["error" in record for record in records] == [False, False, True, False, True]
    for record in records:
        if "error" not in record:
            shares = [record["probability"], *(c["probability"] for c in record["candidates"])]
            assert shares == sorted(shares, reverse=True)
            assert len(shares) == 3
    assert records[0] == records[3]
    assert ended.code == 2
    note, mistake = ended.err.splitlines()
    assert "1 .txt" in note
    assert mistake == "handful: 2 of 5 files could not be read"


def test_predict_as_csv(command: Any, untrained: Path, mixed: Path) -> None:
    ended = command("predict", untrained, mixed / "img10.png", mixed / "img2.jpg", "--csv")
    assert "1 of 2 files" in only_line(ended)
    good, bad = csv.DictReader(io.StringIO(ended.out))
    assert good["class"] in ("zero", "one", "two, too", "three")
    assert 0 <= float(good["probability_3"]) <= float(good["probability_2"])
    assert float(good["probability_2"]) <= float(good["probability"]) <= 1
    assert (good["error"], bad["class"]) == ("", "")
    assert bad["error"]


def test_predict_takes_paths_from_standard_input_and_patterns(
    command: Any, untrained: Path, mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys, "stdin", io.StringIO(f"{mixed / 'img10.png'}\n\n{mixed / 'no[1].png'}\n")
    )
    ended = command("predict", untrained, mixed / "**" / "*.png", "-", "--jsonl")
    records = [json.loads(line) for line in ended.out.splitlines()]
    names = [Path(record["file"]).name for record in records]
    assert names == ["a.png", "img10.png", "img10.png", "no[1].png"]
    assert records[1] == records[2]
    assert ended.code == 2
    assert ended.err.splitlines()[-1] == "handful: 1 of 4 files could not be read"
    nothing = command("predict", untrained, mixed / "*.webp")
    assert f"no picture matches {mixed / '*.webp'}" in only_line(nothing)
    assert nothing.code == 2


def test_predict_for_people(command: Any, untrained: Path, mixed: Path) -> None:
    ended = command("predict", untrained, mixed / "img10.png", mixed / "notes.txt")
    assert "1 of 2 files" in only_line(ended)
    head, good, bad = ended.out.splitlines()
    assert head.split()[:3] == ["file", "class", "probability"]
    assert good.startswith(str(mixed / "img10.png"))
    assert good.count("%") == 3
    assert "picture" in bad


def test_predict_abstains_where_it_is_told_to(command: Any, run: Path, photos: Path) -> None:
    ended = command("predict", run, photos, "--abstain", 0.2, "--json")
    assert ended.code == 0
    assert ended.err.startswith("handful: answers from a probability of ")
    least = Predictor.load(run, "cpu").abstention(0.2).threshold
    records = json.loads(ended.out)
    assert [one["unsure"] for one in records] == [one["probability"] < least for one in records]
    assert all((one["class"] is None) == one["unsure"] for one in records)


@pytest.mark.parametrize("error", [0, 1, -2])
def test_an_expected_error_that_is_no_share(
    command: Any, run: Path, error: int, photos: Path
) -> None:
    ended = command("predict", run, photos, f"--abstain={error}")
    assert "between 0 and 1" in only_line(ended)


def test_a_model_that_cannot_tell_when_to_abstain(
    command: Any, untrained: Path, photos: Path
) -> None:
    ended = command("predict", untrained, photos, "--abstain", 0.01)
    assert "downstream.folds=4" in only_line(ended)


def test_a_pool_joins_the_pretext_task(command: Any, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    rng = np.random.default_rng(0)
    for number in range(5):
        pixels = np.zeros((28, 28), np.uint8)
        pixels[8:20, 8:20] = rng.integers(50, 255, (12, 12), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "more" / f"{number}.png")
    words = ["--recipe", "fast", "--per-class", 8, *SHORT]
    ended = command("train", digits, "--out", tmp_path / "run", "--pool", tmp_path / "more", *words)
    assert ended.code == 0, ended.err
    summary = runs.RunFolder(tmp_path / "run").summary()
    assert summary["unlabelled_images"] == 5
    assert "pool: " in ended.err


def test_predict_with_a_folder_that_is_no_run(command: Any, mixed: Path) -> None:
    ended = command("predict", mixed, mixed / "img10.png")
    assert "expected the run folder" in only_line(ended)


def test_predict_in_a_folder_without_pictures(
    command: Any, untrained: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    assert "no pictures" in only_line(command("predict", untrained, tmp_path / "empty"))


def test_data_mnist_says_where_it_wrote(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from handful import datasets

    seen: list[Path] = []
    monkeypatch.setattr(datasets, "fetch_mnist", seen.append)  # the internet is not ours to test
    ended = command("data", "mnist", "--out", tmp_path / "mnist")
    assert (ended.code, ended.out) == (0, f"{tmp_path / 'mnist'}\n")
    assert seen == [tmp_path / "mnist"]

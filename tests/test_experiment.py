"""Whole runs on a few bundled digits: what they leave behind, and that they kept to the rules."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from handful import (
    checkpoints,
    config,
    datasets,
    devices,
    experiment,
    idx,
    metrics,
    networks,
    partition,
    pretext,
    report,
    runs,
    splits,
    stages,
    storage,
)
from handful.datasets import Dataset
from handful.experiment import Run, embed, evaluate
from handful.images import ImageSet, concatenate
from handful.metrics import Prior
from handful.networks import ConvNet, Cosines, Ensemble
from handful.predictor import Predictor
from handful.propagation import Guess
from handful.recipes import RECIPES

IdxFolder = Callable[..., Path]
Row = dict[str, Any]

GOLDEN = Path(__file__).parent / "golden" / "five_steps.json"
TINY: dict[str, Any] = {
    "device": "cpu",
    "test_views": 2,
    "network__width": 8,
    "network__head_hidden": 32,
    "network__head_dim": 16,
    "pretext__steps": 4,
    "pretext__batch_size": 32,
    "downstream__steps": 6,
    "downstream__batch_size": 32,
    "downstream__checks": 3,
}
VIEWS: dict[str, Any] = {
    "rotation": 20.0,
    "translation": 0.1,
    "scale": 0.2,
    "shear": 0.2,
    "elastic": 0.03,
    "elastic_cells": 5,
    "stroke": 0.6,
    "blur": 0.5,
    "gamma": 0.4,
    "contrast": 0.0,
    "cutout": 0.3,
    "flip": False,
    "keep_ink": True,
}
# Every number is spelt out, so that tuning a recipe moves none. The rates are low because AdamW's
# first steps follow the sign of each gradient: at the usual rates another CPU's rounding moves the
# losses by a hundredth, at these by about a ten-thousandth.
FIVE_STEPS: dict[str, Any] = {
    "device": "cpu",
    "preset": "digits",
    "tsne": False,
    "test_views": 2,
    "data.validation": 0.0,
    "network": {"width": 8, "head_hidden": 32, "head_dim": 16},
    "pretext": {
        "temperature": 0.5,
        "steps": 5,
        "batch_size": 64,
        "learning_rate": 1e-4,
        "weight_decay": 0.05,
        "warmup": 0.1,
        "views": VIEWS,
    },
    "downstream": {
        "steps": 5,
        "batch_size": 64,
        "learning_rate": 1e-4,
        "weight_decay": 0.05,
        "warmup": 0.1,
        "label_smoothing": 0.1,
        "views": VIEWS,
    },
}


def bare(source: Path | str, out: Path, **settings: Any) -> Run:
    """A tiny run without control, maps and pictures."""
    with (
        mock.patch.object(report, "draw"),
        mock.patch.object(report, "write"),
    ):
        settings = {"recipe": "demo", "control": False, "tsne": False} | TINY | settings
        return experiment.train(str(source), out=out, **settings)


def random_state() -> tuple[list[int], list[int]]:
    """Of NumPy and PyTorch."""
    _, key, place, *_ = np.random.get_state()  # noqa: NPY002
    return [*key.tolist(), place], torch.get_rng_state().tolist()


class Whole:
    """One run with everything in it, and what was watched while it went on."""

    def __init__(self, source: Path, out: Path) -> None:
        self.source = source
        self.rows: list[Row] = []
        self.said: list[str] = []
        settings = TINY | {"data__per_class": 6, "data__draw": 3, "data__unlabelled": True}
        changes = {key.replace("__", "."): value for key, value in settings.items()}
        self.config = RECIPES["demo"].config.updated(changes | {"data.source": str(source)})
        self.random = random_state()
        self.run = experiment.run(self.config, out, on_row=self.rows.append, say=self.said.append)
        self.random_after = random_state()

    @property
    def path(self) -> Path:
        return self.run.path

    @property
    def summary(self) -> dict[str, Any]:
        return self.run.summary

    def predictions(self) -> list[dict[str, str]]:
        with (self.path / "predictions.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def source(idx_folder: IdxFolder) -> Path:
    """100 training images and 80 test images."""
    return idx_folder(10, test=80)


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(source, tmp_path_factory.mktemp("runs") / "whole")


# --- what a run leaves behind ---


def test_a_run_writes_every_file_of_its_folder(whole: Whole) -> None:
    written = {
        str(path.relative_to(whole.path)) for path in whole.path.rglob("*") if path.is_file()
    }
    expected = {
        "config.toml",
        "summary.json",
        "metrics.jsonl",
        "predictions.csv",
        "report.html",
        "model/weights.safetensors",
        "model/model.json",
        "figures/arrays.npz",
    }
    assert expected <= written
    assert whole.run.report == whole.path / "report.html"
    assert any(name.startswith("checkpoints/") for name in written)
    for figure in (
        "views",
        "pipeline",
        "curves",
        "tsne",
        "confusion",
        "reliability",
        "risk",
        "mistakes",
    ):
        with Image.open(whole.path / "figures" / f"{figure}.png") as image:
            assert min(image.size) > 100
    assert not [name for name in written if name.endswith((".part", ".tmp", ".pkl", ".pt"))]


def test_the_summary_says_what_the_run_was(whole: Whole) -> None:
    summary = whole.summary
    assert summary == json.loads((whole.path / "summary.json").read_text(encoding="utf-8"))
    expected = {
        "recipe": "demo",
        "source": str(whole.source),
        "per_class": 6,
        "draw": 3,
        "seed": 0,
        "dev": False,
        "labelled_images": 60,
        "unlabelled_images": 40,
        "validation_images": 10,
        "test_images": 80,
        "test_of": "official test set",
        "class_names": list("0123456789"),
        "complete": True,
    }
    assert {key: summary[key] for key in expected} == expected
    assert summary["versions"]["torch"] == torch.__version__
    assert summary["device"].startswith("cpu")
    assert summary["precision"] == "float32"
    assert set(summary["stages"]) >= {
        "pretext",
        "selection",
        "downstream",
        "test",
        "control",
        "maps",
    }
    assert sum(summary["stages"].values()) <= summary["seconds"]


def test_the_summary_agrees_with_the_predictions(whole: Whole) -> None:
    summary, rows = whole.summary, whole.predictions()
    truth = datasets.load(whole.config.data).test
    assert truth is not None
    assert [int(row["index"]) for row in rows] == list(range(80))
    assert [int(row["label"]) for row in rows] == truth.labels.tolist()
    right = [row["label"] == row["predicted"] for row in rows]
    assert summary["test_accuracy"] == pytest.approx(sum(right) / 80)
    low, high = summary["test_interval"]
    assert 0 <= low <= summary["test_accuracy"] <= high <= 1
    confusion = np.zeros((10, 10), int)
    for row in rows:
        confusion[int(row["label"]), int(row["predicted"])] += 1
    assert summary["confusion"] == confusion.tolist()
    for number, of_class in enumerate(summary["per_class_report"]):
        assert of_class["name"] == str(number)
        assert of_class["images"] == confusion[number].sum()
        assert of_class["recall"] == pytest.approx(
            confusion[number, number] / max(1, confusion[number].sum())
        )
    probabilities = np.load(whole.path / "figures" / "arrays.npz")["test_probabilities"]
    stated = [float(row["probability"]) for row in rows]
    np.testing.assert_allclose(stated, probabilities.max(1), atol=1e-5)
    nll = -np.log(probabilities[np.arange(80), truth.labels.numpy()]).mean()
    assert summary["calibration"]["nll"] == pytest.approx(nll, rel=1e-4)


def test_the_saved_model_is_the_one_that_was_tested(whole: Whole) -> None:
    test = datasets.load(whole.config.data).test
    assert test is not None
    model = Predictor.load(whole.path, "cpu")
    assert model.predict(test) == [row["predicted"] for row in whole.predictions()]
    assert model.temperature == pytest.approx(whole.summary["calibration"]["temperature"])
    assert (model.test_views, model.mirrored) == (2, False)
    single = model.predict_proba(test).argmax(1) == test.labels.numpy()
    assert single.mean() == pytest.approx(whole.summary["test_accuracy"])


def test_a_model_says_the_same_of_an_image_alone(whole: Whole) -> None:
    test = datasets.load(whole.config.data).test
    assert test is not None
    model = Predictor.load(whole.path, "cpu")
    together = model.predict_proba(test)
    alone = model.predict_proba(test.images[7:8])
    np.testing.assert_allclose(alone[0], together[7], rtol=1e-4, atol=1e-6)


def test_rows_are_those_of_the_stages_in_their_order(whole: Whole) -> None:
    lines = (whole.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == whole.rows
    order = list(dict.fromkeys(row["stage"] for row in whole.rows))
    assert order == ["pretext", "selection", "downstream", "control"]
    for row in whole.rows:
        assert {"step", "steps", "epoch", "seconds", "loss", "learning_rate"} <= set(row)
        assert row["step"] <= row["steps"]


def test_the_length_that_validation_chose_is_the_length_of_the_refit(whole: Whole) -> None:
    chosen = [row["step"] for row in whole.rows if row["stage"] == "selection" and row.get("kept")]
    refit = [row["step"] for row in whole.rows if row["stage"] == "downstream"]
    assert whole.summary["selected_step"] == chosen[-1] == refit[-1]
    assert whole.summary["validation_accuracy"] is not None
    assert "chose the length" in whole.summary["validation_of"]


@pytest.mark.parametrize("test", [20, 0])
def test_the_schedule_ends_where_validation_was_best(
    idx_folder: IdxFolder, tmp_path: Path, test: int
) -> None:
    """In the refit, and in the model that is kept where the test images were held out."""
    lengths: dict[str, Any] = {}
    real = stages.finetune

    def watched(*given: Any, **options: Any) -> Any:
        lengths[options["stage"]] = given[3].steps
        length = real(*given, **options)
        return length._replace(step=4) if options["stage"] == "selection" else length

    with mock.patch.object(stages, "finetune", watched):
        summary = bare(idx_folder(10, test), tmp_path / "run").summary
    kept = {} if test else {"keeping": 4}
    assert lengths == {"selection": 6, "downstream": 4} | kept
    assert summary["selected_step"] == 4


def test_the_control_is_there_and_had_as_many_images(whole: Whole) -> None:
    summary = whole.summary
    assert summary["images_through_encoder"]["pretext"] == 4 * 2 * 25  # 100 images, four batches
    encoded = summary["images_through_encoder"]
    assert 0 <= encoded["control"] - encoded["pretext"] - encoded["downstream"] < 32
    last = [row for row in whole.rows if row["stage"] == "control"][-1]
    assert last["step"] == last["steps"]  # its schedule ends where it ends
    assert 0 <= summary["control_test_accuracy"] <= 1
    low, high = summary["control_interval"]
    assert low <= summary["control_test_accuracy"] <= high
    difference = summary["control_difference"]
    assert difference["difference"] == pytest.approx(
        summary["test_accuracy"] - summary["control_test_accuracy"]
    )
    assert difference["interval"][0] <= difference["difference"] <= difference["interval"][1]


def test_people_are_told_what_there_is_and_how_long_it_takes(whole: Whole) -> None:
    told = "\n".join(whole.said)
    assert "60 images of 28×28, 1 channel, 10 classes with 6 labelled each" in told
    assert "training will take about 1 min\n" in told


def test_a_run_leaves_global_randomness_alone(whole: Whole) -> None:
    """First weights, training and t-SNE included."""
    assert whole.random == whole.random_after


def test_arrays_for_the_figures_are_all_there(whole: Whole) -> None:
    with np.load(whole.path / "figures" / "arrays.npz", allow_pickle=False) as arrays:
        shapes = {name: arrays[name].shape for name in arrays.files}
    assert shapes["gallery_originals"] == (10, 1, 28, 28)
    assert shapes["pipeline_views"] == (2, 1, 28, 28)
    assert shapes["pipeline_z"] == (2, 16)
    assert shapes["map_h"] == (80, Predictor.load(whole.path, "cpu").encoder.dim)
    assert shapes["map_xy"] == shapes["map_xy_before"] == (80, 2)
    assert shapes["map_labels"] == shapes["test_labels"] == (80,)
    wrong = round(80 * (1 - whole.summary["test_accuracy"]))
    assert shapes["mistakes_index"] == (min(25, wrong),)


def test_the_configuration_in_the_folder_repeats_the_run(whole: Whole, tmp_path: Path) -> None:
    again = config.load(whole.path / "config.toml")
    assert again == whole.config.updated({"preset": "digits"})  # what it saw in the images
    with mock.patch.object(report, "draw"), mock.patch.object(report, "write"):
        experiment.run(again.updated({"control": False, "tsne": False}), tmp_path / "again")
    assert (tmp_path / "again" / "predictions.csv").read_bytes() == (
        whole.path / "predictions.csv"
    ).read_bytes()


# --- run folders that are there already ---


def test_a_complete_run_is_not_done_again(whole: Whole) -> None:
    said: list[str] = []
    times = {path: path.stat().st_mtime_ns for path in whole.path.rglob("*")}
    with mock.patch.object(pretext, "pretrain", side_effect=AssertionError):
        again = experiment.run(whole.config, whole.path, say=said.append)
    assert again.summary == whole.summary
    assert "is complete: nothing to do" in said[-1]
    assert {path: path.stat().st_mtime_ns for path in whole.path.rglob("*")} == times


def test_a_run_of_images_that_changed_since_is_not_passed_off(
    idx_folder: IdxFolder, tmp_path: Path
) -> None:
    source = idx_folder(10, 20)
    bare(source, tmp_path / "run")
    path = source / "train-labels-idx1-ubyte"
    labels = idx.read_idx(path).copy()
    labels[:2] = labels[1::-1]
    idx.write_idx(path, labels)
    with pytest.raises(ValueError, match="other images or labels than there are now: --overwrite"):
        bare(source, tmp_path / "run")
    assert bare(source, tmp_path / "run", overwrite=True).summary["test_images"] == 20


def test_another_configuration_is_refused_with_the_difference(whole: Whole) -> None:
    with pytest.raises(ValueError, match="seed: here 1, there 0"):
        experiment.run(whole.config.updated({"seed": 1}), whole.path)


def test_an_interrupted_run_is_refused_and_overwritten(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with (
        mock.patch.object(stages, "finetune", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        bare(source, out)
    assert not (out / "summary.json").exists()
    with pytest.raises(ValueError, match="did not finish"):
        bare(source, out)
    assert bare(source, out, overwrite=True).summary["complete"]
    rows = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["step"] for row in rows if '"pretext"' in row] == [4]


# --- honesty, watched from inside ---


class Watched:
    """Which images each training saw, and with which encoder it began."""

    def __init__(self, source: Path, out: Path, **settings: Any) -> None:
        self.images: dict[str, set[bytes]] = {}
        self.labelled: dict[str, set[bytes]] = {}
        self.began: dict[str, Tensor] = {}
        real = pretext.pretrain, stages.finetune

        def pretrain(encoder: ConvNet, head: Any, images: Any, *rest: Any, **options: Any) -> int:
            self._note("pretext", encoder, images)
            return real[0](encoder, head, images, *rest, **options)

        def finetune(encoder: ConvNet, classifier: Any, images: Any, *rest: Any, **kw: Any) -> Any:
            self._note(kw["stage"], encoder, images)
            return real[1](encoder, classifier, images, *rest, **kw)

        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(pretext, "pretrain", pretrain))
            stack.enter_context(mock.patch.object(stages, "finetune", finetune))
            self.run = bare(source, out, **settings)

    def _note(self, stage: str, encoder: ConvNet, images: Any) -> None:
        self.images[stage] = {image.numpy().tobytes() for image in images.images}
        self.labelled[stage] = {image.numpy().tobytes() for image in images.labelled().images}
        self.began[stage] = torch.cat([p.detach().flatten() for p in encoder.parameters()]).clone()


def test_the_control_starts_where_the_pretext_task_started(source: Path, tmp_path: Path) -> None:
    watched = Watched(source, tmp_path / "run", control=True)
    began = watched.began
    assert torch.equal(began["control"], began["pretext"])
    assert torch.equal(began["selection"], began["downstream"])
    assert not torch.equal(began["selection"], began["pretext"])
    assert watched.images["control"] == watched.images["downstream"]


def test_no_test_image_trains_and_no_validation_label_does_before_its_time(
    source: Path, tmp_path: Path
) -> None:
    watched = Watched(source, tmp_path / "run", data__per_class=6, data__unlabelled=True)
    test = datasets.load(config.DataConfig(source=str(source))).test
    assert test is not None
    tested = {image.numpy().tobytes() for image in test.images}
    assert len(tested) == 80
    for images in watched.images.values():
        assert not images & tested
    assert len(watched.images["pretext"]) == 100
    assert len(watched.images["selection"]) == 50
    assert watched.labelled["pretext"] == watched.images["selection"]
    assert len(watched.images["downstream"]) == 60


def test_a_run_with_a_hold_out_keeps_a_model_of_everything(
    idx_folder: IdxFolder, tmp_path: Path
) -> None:
    watched = Watched(idx_folder(10), tmp_path / "run")
    summary = watched.run.summary
    assert summary["test_images"] == 20
    assert summary["test_of"] == partition.HELD_OUT
    assert summary["labelled_images"] == 80
    assert len(watched.images["downstream"]) == 80
    assert len(watched.images["keeping"]) == 100
    assert not watched.images["downstream"] >= watched.images["keeping"]
    rows = (watched.run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [row for row in map(json.loads, rows) if row["stage"] == "keeping"]
    assert kept[-1]["step"] == summary["selected_step"]
    model = Predictor.load(watched.run.path, "cpu")
    assert model.temperature == pytest.approx(summary["calibration"]["temperature"])


def test_what_is_kept_is_the_model_of_everything(idx_folder: IdxFolder, tmp_path: Path) -> None:
    last: list[Predictor] = []
    real = stages.kept

    def kept(*arguments: Any) -> Any:
        model, undecided = real(*arguments)
        last.append(model)
        return model, undecided

    with mock.patch.object(stages, "kept", kept):
        run = bare(idx_folder(10), tmp_path / "run")
    saved = Predictor.load(run.path, "cpu")
    assert torch.equal(saved.head.weight, last[0].head.weight)


def test_a_map_of_another_encoder_places_nothing(idx_folder: IdxFolder, tmp_path: Path) -> None:
    source = idx_folder(10)
    run = bare(source, tmp_path / "run", tsne=True)
    assert "map_xy" in runs.RunFolder(run.path).arrays()
    embed(run.path, str(source), tmp_path / "h.npz", "cpu")
    with np.load(tmp_path / "h.npz") as archive:
        assert "xy" not in archive


def test_development_leaves_the_test_files_shut(idx_folder: IdxFolder, tmp_path: Path) -> None:
    source = idx_folder(12)
    for kind in ("images-idx3", "labels-idx1"):
        (source / f"t10k-{kind}-ubyte").write_bytes(b"shut")
    summary = bare(
        source, tmp_path / "run", data__dev=True, data__per_class=5, data__draw=0
    ).summary
    assert summary["dev"] is True
    assert summary["test_images"] == 20
    assert summary["labelled_images"] == 50
    assert summary["test_of"] == "training images from number 100 on"


# --- seeds ---


def outcome(run: Run) -> tuple[bytes, bytes, list[float]]:
    rows = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return (
        (run.path / "predictions.csv").read_bytes(),
        (run.path / "model" / "weights.safetensors").read_bytes(),
        [json.loads(row)["loss"] for row in rows],
    )


def test_a_seed_gives_the_same_run_twice_and_another_seed_another(
    source: Path, tmp_path: Path
) -> None:
    first = outcome(bare(source, tmp_path / "a", seed=1, data__copies=1))
    torch.rand(7)  # what else a program draws makes no difference
    assert outcome(bare(source, tmp_path / "b", seed=1, data__copies=1)) == first
    other = outcome(bare(source, tmp_path / "c", seed=2, data__copies=1))
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_a_control_changes_nothing_of_the_run(source: Path, tmp_path: Path) -> None:
    alone = outcome(bare(source, tmp_path / "a"))
    beside = outcome(bare(source, tmp_path / "b", control=True))
    assert beside[:2] == alone[:2]
    assert beside[2][: len(alone[2])] == alone[2]


def test_five_steps_are_the_golden_five(
    idx_folder: IdxFolder, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Losses of 5 pretext and 5 downstream steps on 60 digits, and the loss on 40 test digits.

    Anything that changes what is computed shows here. Where the change is meant, write the file
    anew and say in the commit why: `pytest tests/test_experiment.py -k golden --golden`.
    """
    settings = FIVE_STEPS | {"data.source": str(idx_folder(6, test=40))}
    with mock.patch.object(report, "draw"), mock.patch.object(report, "write"):
        run = experiment.run(config.RunConfig().updated(settings), tmp_path / "run")
    rows = [
        json.loads(row)
        for row in (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    found = {
        stage: [row["loss"] for row in rows if row["stage"] == stage]
        for stage in ("pretext", "downstream")
    } | {"test": [run.summary["calibration"]["nll"]]}
    assert [len(losses) for losses in found.values()] == [5, 5, 1]
    if request.config.getoption("golden"):
        GOLDEN.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for name, losses in found.items():
        assert losses == pytest.approx(golden[name], rel=5e-4), name


# --- kinds of runs ---


def test_without_a_pretext_task_there_is_a_classifier_all_the_same(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    summary = bare(source, out, pretext__steps=0, control=True).summary
    assert summary["images_through_encoder"]["pretext"] == 0
    assert summary["test_accuracy"] is not None
    assert summary["control_test_accuracy"] is None  # it would be the run itself
    assert not (out / "checkpoints" / "pretext").exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"pretext.steps": 0, "control": True}, "no control: without any contrast"),
        ({"data.holdout": 0.0, "control": True}, "no control: it would be compared on test images"),
        ({"data.unlabelled": True}, "--unlabelled adds nothing"),
        (
            {"downstream.contrast": 0.3, "downstream.train_encoder": False},
            "downstream.contrast adds nothing",
        ),
        (
            {"data.unlabelled": True, "data.per_class": 9, "pretext.steps": 0},
            "10 unlabelled images stay unused",
        ),
        ({"tsne": True}, "no maps: they take at least 10 test images"),
        (
            {"downstream.pseudo_labels": True, "data.validation": 0.0, "data.unlabelled": True},
            "no unlabelled images: no label spreads",
        ),
    ],
)
def test_what_was_asked_for_without_effect_is_said(
    settings: dict[str, Any], told: str, idx_folder: IdxFolder, tmp_path: Path
) -> None:
    source = idx_folder(10) if "data.holdout" in settings else idx_folder(10, test=9)
    changes = {key.replace("__", "."): value for key, value in TINY.items()}
    changes |= {"data.source": str(source), "tsne": False, "control": False} | settings
    said: list[str] = []
    with mock.patch.object(report, "draw"), mock.patch.object(report, "write"):
        config_ = RECIPES["demo"].config.updated(changes)
        run = experiment.run(config_, tmp_path / "run", say=said.append)
    assert [line for line in said if line.startswith(told)]
    assert run.summary["control_test_accuracy"] is None
    assert "map_xy" not in runs.RunFolder(run.path).arrays()


def test_a_run_in_which_everything_has_effect_says_nothing_of_it(whole: Whole) -> None:
    assert not [line for line in whole.said if line.startswith(("no ", "--", "too few"))]


def test_a_linear_probe_keeps_the_encoder_of_the_pretext_task(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    bare(source, out, downstream__train_encoder=False)
    pretext, _ = checkpoints.load(out / "checkpoints" / "pretext")
    model, _ = checkpoints.load(out / "model")
    names = [name for name in model if name.startswith("encoder.")]
    assert any("running_var" in name for name in names)
    for name in names:
        assert torch.equal(model[name], pretext[name]), name


def test_without_validation_the_length_is_fixed_and_nothing_is_calibrated(
    source: Path, tmp_path: Path
) -> None:
    summary = bare(source, tmp_path / "run", recipe="fast").summary
    assert summary["validation_accuracy"] is None
    assert summary["validation_images"] == 0
    assert summary["selected_step"] == 6
    assert summary["calibration"]["temperature"] == 1


UNSEEN = {"recipe": "fast", "pretext__loss": "nt_xent"}
"""A pretext task that leaves labels alone, as folds need it."""


def test_folds_calibrate_where_nothing_is_held_out(source: Path, tmp_path: Path) -> None:
    with mock.patch.object(stages, "finetune", wraps=stages.finetune) as trained:
        run = bare(
            source,
            tmp_path / "run",
            **UNSEEN,
            downstream__folds=4,
            downstream__fold_share=0.5,
        )
    (_, _, everything, _), *parts = (call.args for call in trained.call_args_list)
    assert len(everything) == 100
    assert [len(images) for _, _, images, _ in parts] == [70, 70, 80, 80]
    assert {settings.steps for *_, settings in parts} == {3}
    for _, _, images, _ in parts:  # each class has ten images: three, three, two and two are out
        assert torch.isin(images.sources, everything.sources).all()
    summary = run.summary
    assert summary["calibration"]["temperature"] != 1
    assert (
        summary["calibrated_by"]
        == "100 labelled images, answered by networks that learned from others"
    )
    evidence = Predictor.load(run.path, "cpu").evidence
    assert evidence is not None
    assert len(evidence.right) == 100
    assert [row["error"] for row in summary["abstention"]] == [0.01, 0.005]
    # calibration takes nothing from the network that answers
    encoded = summary["images_through_encoder"]["folds"]
    assert encoded == 70 + 70 + 80 + 80  # three steps are an epoch
    plain = bare(source, tmp_path / "plain", **UNSEEN)
    mine, theirs = (checkpoints.load(one.path / "model")[0] for one in (run, plain))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_no_answer_in_the_evidence_is_by_a_network_that_knew_the_image(
    source: Path, tmp_path: Path
) -> None:
    with (
        mock.patch.object(stages, "finetune", wraps=stages.finetune) as trained,
        mock.patch.object(networks, "classify", wraps=networks.classify) as asked,
    ):
        bare(source, tmp_path / "run", **UNSEEN, data__copies=2, downstream__folds=3)
    learned = {id(call.args[0]): call.args[2].images for call in trained.call_args_list}
    held = [call.args for call in asked.call_args_list if id(call.args[0]) in learned][:3]
    assert sorted(len(images) for _, _, images in held) == [30, 30, 40]  # of copies none is asked
    for encoder, _, images in held:
        known = {image.numpy().tobytes() for image in learned[id(encoder)]}
        assert not known & {image.numpy().tobytes() for image in images}


def test_folds_and_a_pretext_task_that_sees_labels_exclude_each_other(
    source: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="folds = 4 needs a pretext task that sees no label"):
        bare(source, tmp_path / "run", recipe="fast", downstream__folds=4)


def test_one_image_a_class_leaves_nothing_to_calibrate_by(source: Path, tmp_path: Path) -> None:
    one = {"data__per_class": 1, "downstream__folds": 4}
    for name, asked, temperature, by in (
        ("alone", UNSEEN, 1.0, None),
        ("pool", SPREADING, stages.UNDECIDED.temperature, stages.OTHER_RUNS),
    ):
        summary = bare(source, tmp_path / name, **asked | one).summary
        assert summary["calibrated_by"] == by
        assert summary["abstention"] == []
        assert summary["calibration"]["temperature"] == temperature


def test_validation_images_say_when_to_abstain(whole: Whole) -> None:
    evidence = Predictor.load(whole.path, "cpu").evidence
    assert evidence is not None
    assert len(evidence.right) == whole.summary["validation_images"]
    assert float(evidence.right.double().mean()) == whole.summary["validation_accuracy"]
    n = whole.summary["validation_images"]
    assert whole.summary["calibrated_by"] == f"{n} labelled images held out for validation"


def test_a_model_knows_the_labelled_images_again(whole: Whole) -> None:
    model = Predictor.load(whole.path, "cpu")
    settings = config.load(whole.path / "config.toml")
    final = partition.partition(settings, datasets.load(settings.data)).final
    assert model.familiar is not None
    assert len(model.familiar.h) == len(final)
    assert model.distance(final).max() < 0.05
    test = datasets.load(settings.data).test
    assert test is not None
    strange = float((model.distance(test) > 1).mean())
    assert whole.summary["strangers"] == pytest.approx(strange, abs=0.02)


def test_the_control_gets_as_many_images_where_the_length_is_fixed(
    source: Path, tmp_path: Path
) -> None:
    summary = bare(
        source, tmp_path / "run", data__validation=0.0, downstream__batch_size=50, control=True
    ).summary
    encoded = summary["images_through_encoder"]
    assert encoded["control"] == pytest.approx(encoded["pretext"] + encoded["downstream"], abs=50)


def test_the_control_gets_as_many_images_where_batches_are_smaller_than_asked(
    idx_folder: IdxFolder, tmp_path: Path
) -> None:
    """130 images at a batch size of 125 make batches of 65."""
    settings = {"data__validation": 0.0, "downstream__batch_size": 125, "control": True}
    summary = bare(idx_folder(13, 20), tmp_path / "run", **settings).summary
    encoded = summary["images_through_encoder"]
    assert 0 <= encoded["control"] - encoded["pretext"] - encoded["downstream"] < 65


def test_the_course_tells_what_its_validation_figure_is(source: Path, tmp_path: Path) -> None:
    summary = bare(source, tmp_path / "run", recipe="course").summary
    assert summary["validation_images"] == 20
    assert summary["labelled_images"] == 100
    assert summary["validation_of"] == experiment.ITSELF
    rows = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    assert '"selection"' not in rows


def test_validation_is_scored_as_the_model_answers(source: Path, tmp_path: Path) -> None:
    """Second looks included, in the doubt that the fitted temperature leaves."""
    with mock.patch.object(metrics, "evaluate", wraps=metrics.evaluate) as scored:
        run = bare(source, tmp_path / "run", downstream__refit=False, test_views=4)
    model = Predictor.load(run.path, "cpu")
    settings = config.load(run.path / "config.toml")
    validation = partition.partition(settings, datasets.load(settings.data)).validation
    assert validation is not None
    logits = model.logits(validation)
    torch.testing.assert_close(scored.call_args_list[0].args[0], logits, rtol=1e-4, atol=1e-4)
    looked = networks.classify(model.encoder, model.head, validation.images)
    fitted = metrics.fit_temperature(looked, validation.labels)
    assert model.temperature == pytest.approx(fitted, rel=1e-3)
    assert not torch.allclose(looked / fitted, logits, atol=1e-2)  # some were looked at again


def test_settings_may_be_given_by_name(source: Path, tmp_path: Path) -> None:
    run = bare(source, tmp_path / "run", pretext__views__rotation=1.5, seed=3)
    written = config.load(run.path / "config.toml")
    assert written.pretext.views.rotation == 1.5
    assert written.seed == run.summary["seed"] == 3
    assert written.downstream.steps == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pretext__step": 3}, "unknown setting pretext.step; did you mean pretext.steps"),
        ({"recipe": "dmo"}, "unknown recipe dmo: did you mean demo"),
        ({"pretext__temperature": -1.0}, "pretext.temperature = -1.0"),
        ({"device": "tpu"}, "unknown device tpu"),
        ({"data__draw": 4}, "--draw 4 needs --per-class"),
        ({"data__per_class": 11}, "has 10 labelled images and --per-class asks for 11"),
    ],
)
def test_a_mistake_makes_no_run_folder(
    settings: dict[str, Any], message: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        bare(source, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


# --- afterwards ---


def test_evaluate_finds_what_the_run_found(whole: Whole) -> None:
    found = evaluate(whole.path, str(whole.source), "cpu")
    assert found["accuracy"] == pytest.approx(whole.summary["test_accuracy"])
    assert found["confusion"] == whole.summary["confusion"]
    assert found["nll"] == pytest.approx(whole.summary["calibration"]["nll"], rel=1e-4)
    assert found["class_names"] == whole.summary["class_names"]


def test_evaluate_says_what_it_scored_and_whether_the_run_knew_it(
    source: Path, tmp_path: Path
) -> None:
    run = bare(source, tmp_path / "run", data__per_class=6, data__draw=3)
    found = evaluate(run.path, str(source), "cpu")
    assert found["scored"] == f"all of {source / 't10k-images-idx3-ubyte'}"
    assert (found["images"], found["learned_from"]) == (80, 0)
    alone = tmp_path / "alone"
    alone.mkdir()
    for path in source.glob("train-*"):
        shutil.copy(path, alone)
    found = evaluate(run.path, str(alone), "cpu")
    assert found["scored"] == f"all of {alone / 'train-images-idx3-ubyte'}"
    assert (found["images"], found["learned_from"]) == (100, 60)
    bare_model = evaluate(run.path / "model", str(alone), "cpu")  # nobody knows any more
    assert bare_model["learned_from"] == 0


@pytest.mark.parametrize(("refit", "copies"), [(True, 0), (False, 2)])
def test_every_labelled_image_of_a_run_is_known_to_it(
    idx_folder: IdxFolder, tmp_path: Path, refit: bool, copies: int
) -> None:
    """Those held out for a test and those that chose the length included."""
    source = idx_folder(10)
    run = bare(source, tmp_path / "run", downstream__refit=refit, data__copies=copies)
    assert run.summary["test_images"] == 20
    # another one is kept, in any case
    assert run.summary["validation_of"] == (experiment.CHOSE if refit else experiment.TESTED)
    assert evaluate(run.path, str(source), "cpu")["learned_from"] == 100


def test_images_without_labels_cannot_be_scored(whole: Whole, tmp_path: Path) -> None:
    Image.new("L", (28, 28)).save(tmp_path / "one.png")
    with pytest.raises(ValueError, match="has a label to score against"):
        evaluate(whole.path, str(tmp_path), "cpu")


def test_nothing_can_be_evaluated_without_a_run(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run in"):
        evaluate(tmp_path / "nowhere", str(source), "cpu")


def test_embed_places_points_on_the_map(whole: Whole, tmp_path: Path) -> None:
    out = tmp_path / "points.npz"
    count, taken = embed(whole.path, str(whole.source), out, "cpu")
    assert (count, taken) == (80, f"all of {whole.source / 't10k-images-idx3-ubyte'}")
    with np.load(out, allow_pickle=False) as archive:
        points = dict(archive)
    test = datasets.load(whole.config.data).test
    assert test is not None
    assert points["h"].shape == (80, Predictor.load(whole.path, "cpu").encoder.dim)
    assert points["h"].dtype == np.float32
    assert points["labels"].tolist() == test.labels.tolist()
    assert points["class_names"].tolist() == list("0123456789")
    assert "paths" not in points
    with np.load(whole.path / "figures" / "arrays.npz") as arrays:
        np.testing.assert_allclose(points["h"], arrays["map_h"], rtol=1e-4, atol=1e-5)
        places = arrays["map_xy"]
    # an image that is on the map already is placed near itself
    distances = np.linalg.norm(places[:, None] - points["xy"][None], axis=2)
    own = np.diagonal(distances)
    assert np.median(own) < 0.3 * np.median(distances)


def test_embed_takes_classes_that_were_not_trained(whole: Whole, tmp_path: Path) -> None:
    folder = tmp_path / "letters" / "Q"
    folder.mkdir(parents=True)
    Image.fromarray(np.full((28, 28), 9, np.uint8)).save(folder / "q.png")
    assert embed(whole.path, str(folder.parent), tmp_path / "h.npz", "cpu")[0] == 1
    with np.load(tmp_path / "h.npz") as arrays:
        assert arrays["labels"].tolist() == [-1]
    with pytest.raises(ValueError, match="classes that were not trained: Q"):
        evaluate(whole.path, str(folder.parent), "cpu")


def test_embed_knows_files_and_does_without_a_map(
    source: Path, tmp_path: Path, bundled: datasets.Dataset
) -> None:
    run = bare(source, tmp_path / "run")
    folder = tmp_path / "digits"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(bundled.train.images[i, 0].numpy()).save(folder / f"{i}.png")
    out = tmp_path / "points.npz"
    assert embed(run.path, str(folder), out, "cpu") == (3, f"all of {folder}")
    with np.load(out, allow_pickle=False) as archive:
        points = dict(archive)
    assert "xy" not in points
    assert [Path(path).name for path in points["paths"]] == ["0.png", "1.png", "2.png"]
    assert points["labels"].tolist() == [-1, -1, -1]
    expected = Predictor.load(run.path, "cpu").embed(bundled.train.images[:3])
    np.testing.assert_allclose(points["h"], expected, rtol=1e-4, atol=1e-5)


def test_a_run_on_a_table_in_an_archive_validates_as_that_says(
    tmp_path: Path, bundled: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "digits"
    folder.mkdir()
    rows = ["path,label,split"]
    for i, image in enumerate(bundled.train.images[:60, 0]):
        Image.fromarray(image.numpy()).save(folder / f"{i}.png")
        split = ("train", "train", "train", "val", "test")[i % 5]
        rows.append(f"{i}.png,{bundled.train.labels[i]},{split}")
    (folder / "manifest.csv").write_text("\n".join(rows))
    archive = shutil.make_archive(str(tmp_path / "digits"), "zip", folder)
    summary = bare(archive, tmp_path / "run").summary
    assert (summary["labelled_images"], summary["validation_images"]) == (48, 12)
    assert summary["test_of"] == "images in manifest.csv (test)"
    found = evaluate(tmp_path / "run", archive, "cpu")
    assert found["accuracy"] == summary["test_accuracy"]
    assert found["learned_from"] == 0
    count, _ = embed(tmp_path / "run", archive, tmp_path / "h.npz", "cpu")
    assert count == 12


def test_images_that_may_not_decide_do_not_tell_the_kind(
    bundled: Dataset, few: ImageSet, tmp_path: Path
) -> None:
    """Without a label, bright pictures are no reason to mirror digits."""
    bright = replace(few, images=255 - few.images, sources=few.sources + 10_000)
    train = concatenate([few, bright.without_labels()])
    dataset = replace(bundled, train=train, test=None, test_of="")
    with mock.patch.object(experiment.datasets, "load", return_value=dataset):
        run = bare("anything", tmp_path / "run", data__unlabelled=True)
    assert config.load(run.path / "config.toml").preset == "digits"


@pytest.mark.parametrize("refit", [True, False])
def test_a_contrast_reaches_every_stage_that_classifies(
    idx_folder: IdxFolder, tmp_path: Path, refit: bool
) -> None:
    """Twice the images pass the encoder; the control keeps to one view and to as many in all."""
    source, settings = idx_folder(10, 20), {"downstream__refit": refit, "control": True}
    plain = bare(source, tmp_path / "plain", **settings).summary
    joint = bare(source, tmp_path / "joint", **settings, downstream__contrast=0.3).summary
    encoded = [run["images_through_encoder"] for run in (plain, joint)]
    assert encoded[1]["downstream"] == 2 * encoded[0]["downstream"]
    assert encoded[1]["pretext"] == encoded[0]["pretext"]
    assert encoded[1]["control"] >= encoded[1]["pretext"] + encoded[1]["downstream"]


def test_the_model_that_is_kept_had_the_contrast_as_well(
    idx_folder: IdxFolder, tmp_path: Path
) -> None:
    """Without a test split the last training is on all labels: it too begins with the head."""
    heads: list[Any] = []
    real = stages.finetune

    def watched(*given: Any, **options: Any) -> Any:
        heads.append(options["head"])
        return real(*given, **options)

    with mock.patch.object(stages, "finetune", watched):
        bare(idx_folder(10), tmp_path / "run", downstream__contrast=0.3)
    assert len(heads) == 3
    assert None not in heads


def test_the_control_of_a_contrast_beside_cross_entropy_has_none(
    idx_folder: IdxFolder, tmp_path: Path
) -> None:
    heads: dict[str, Any] = {}
    real = stages.finetune

    def watched(*given: Any, **options: Any) -> Any:
        heads[options["stage"]] = options["head"]
        return real(*given, **options)

    settings = {"pretext__steps": 0, "downstream__contrast": 0.3, "control": True}
    with mock.patch.object(stages, "finetune", watched):
        summary = bare(idx_folder(10, 20), tmp_path / "run", **settings).summary
    assert heads["downstream"] is not None
    assert heads["control"] is None
    assert summary["control_difference"] is not None
    encoded = summary["images_through_encoder"]
    assert encoded["control"] >= encoded["downstream"] > encoded["pretext"] == 0


def test_an_ensemble_is_the_mean_of_runs_of_its_members(
    idx_folder: IdxFolder, tmp_path: Path
) -> None:
    """The first is the run without the others; each has its own first weights and views."""
    source = idx_folder(10, 20)
    settings = {"data__validation": 0.0, "control": True}
    alone = bare(source, tmp_path / "alone", **settings)
    run = bare(source, tmp_path / "run", **settings, members=2)
    encoded, once = (one.summary["images_through_encoder"] for one in (run, alone))
    assert encoded == {stage: 2 * images for stage, images in once.items()}
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    for stage in ("pretext", "downstream", "control"):
        first, second = (
            [
                row["loss"]
                for row in rows
                if row["stage"] == stage and row.get("member", 0) == member
            ]
            for member in (0, 1)
        )
        assert first
        assert len(first) == len(second)
        assert first != second
    model, single = (Predictor.load(one.path, "cpu") for one in (run, alone))
    assert model.members == 2
    before, after = single.encoder.state_dict(), model.encoder.state_dict()
    for name, weights in before.items():
        torch.testing.assert_close(after[f"members.0.{name}"], weights)
    assert run.summary["multiply_adds"] == 2 * alone.summary["multiply_adds"]
    assert {path.name for path in (run.path / "checkpoints").iterdir()} == {"pretext", "pretext-1"}


def test_members_of_a_run_take_columns_in_turn_and_so_does_what_is_kept(
    idx_folder: IdxFolder, tmp_path: Path
) -> None:
    """Also where the model is trained once more on what was held out for a test."""
    columns = ["harmonic", "upright"]
    settings = {"data__validation": 0.0, "members": 3, "network__columns": columns}
    for test in (20, 0):
        run = bare(idx_folder(10, test), tmp_path / f"run{test}", **settings)
        encoder = Predictor.load(run.path, "cpu").encoder
        assert isinstance(encoder, Ensemble)
        members = list(encoder.members.children())
        assert [one.upright for one in members] == [False, True, False]
        harmonic = [any(isinstance(m, Cosines) for m in one.modules()) for one in members]
        assert harmonic == [True, False, True]


def test_an_ensemble_is_kept_whole_where_its_test_images_were_held_out(
    idx_folder: IdxFolder, tmp_path: Path
) -> None:
    settings = {"data__validation": 0.0, "members": 2}
    run = bare(idx_folder(10), tmp_path / "run", **settings)
    assert Predictor.load(run.path, "cpu").members == 2


def test_a_curriculum_begins_with_the_views_of_the_pretext_task(
    idx_folder: IdxFolder, tmp_path: Path
) -> None:
    first: list[Any] = []
    real = stages.finetune

    def watched(*given: Any, **options: Any) -> Any:
        first.append(options["first_views"])
        return real(*given, **options)

    with mock.patch.object(stages, "finetune", watched):
        bare(idx_folder(10, 20), tmp_path / "run", downstream__curriculum=1.0,
             pretext__views__rotation=33.0)  # fmt: skip
    assert {views.rotation for views in first} == {33.0}


POOLED = {"recipe": "fast", "data__per_class": 2, "data__unlabelled": True, "pretext__cache": True}


def rows_of(run: Run) -> list[str]:
    """The stages of its rows, each once."""
    return list(dict.fromkeys(row["stage"] for row in runs.RunFolder(run.path).rows()))


def test_what_a_pool_taught_is_kept_for_every_draw(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "cache"))
    settings = POOLED | {"pretext__loss": "nt_xent"}
    first = bare(source, tmp_path / "first", **settings, data__draw=1)
    other = bare(source, tmp_path / "other", **settings, data__draw=2)
    assert rows_of(first) == ["pretext", "downstream"]
    assert rows_of(other) == ["downstream"]
    assert first.summary["images_through_encoder"] == other.summary["images_through_encoder"]
    mine, theirs = (
        checkpoints.load(one.path / "checkpoints" / "pretext")[0] for one in (first, other)
    )
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    # as if it had been done again
    plain = bare(source, tmp_path / "plain", **settings | {"pretext__cache": False}, data__draw=2)
    mine, theirs = (checkpoints.load(one.path / "model")[0] for one in (other, plain))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"pretext__steps": 5}, {"pretext__loss": "sup_con"}, {"network__width": 4}],
)
def test_nothing_is_taken_that_was_made_otherwise(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "cache"))
    settings = POOLED | {"pretext__loss": "nt_xent", "data__draw": 1}
    bare(source, tmp_path / "first", **settings)
    again = bare(source, tmp_path / "again", **settings | change)
    assert rows_of(again) == ["pretext", "downstream"]


def test_labels_of_another_draw_are_others_to_a_loss_that_sees_them(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "cache"))
    settings = POOLED | {"pretext__loss": "sup_con"}
    bare(source, tmp_path / "first", **settings, data__draw=1)
    assert "pretext" in rows_of(bare(source, tmp_path / "other", **settings, data__draw=2))


def test_another_number_of_threads_takes_what_there_is(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They sum in another order, so that the last bits of mean and spread are others."""
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "cache"))
    true = ConvNet.normalise_to

    def rounded_otherwise(self: ConvNet, images: Tensor) -> None:
        true(self, images)
        self.mean *= 1 + 1e-6
        self.std *= 1 + 1e-6

    bare(source, tmp_path / "first", **POOLED)
    monkeypatch.setattr(ConvNet, "normalise_to", rounded_otherwise)
    assert bare(source, tmp_path / "again", **POOLED).summary["pretext_taken"]


def test_a_damaged_or_unwritable_cache_stops_no_run(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "cache"))
    first = bare(source, tmp_path / "first", **POOLED)
    (kept,) = (tmp_path / "cache").iterdir()
    assert first.summary["pretext_taken"] is None
    meta = json.loads((kept / "model.json").read_text(encoding="utf-8"))
    again = bare(source, tmp_path / "taken", **POOLED)
    assert again.summary["pretext_taken"] == meta["seconds"] > 0
    (kept / "weights.safetensors").write_bytes(b"damaged")
    assert rows_of(bare(source, tmp_path / "again", **POOLED)) == rows_of(first)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "file"))
    assert rows_of(bare(source, tmp_path / "third", **POOLED)) == rows_of(first)


def test_unlabelled_images_that_stay_unused_move_nothing(source: Path, tmp_path: Path) -> None:
    settings = {"recipe": "best", "data__per_class": 3, "pretext__steps": 0}
    plain = bare(source, tmp_path / "plain", **settings)
    beside = bare(source, tmp_path / "beside", **settings, data__unlabelled=True)
    mine, theirs = (checkpoints.load(one.path / "model")[0] for one in (plain, beside))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_of_copies_none_makes_its_image_familiar(source: Path, tmp_path: Path) -> None:
    run = bare(source, tmp_path / "run", recipe="course")
    familiar = Predictor.load(run.path, "cpu").familiar
    assert familiar is not None
    assert len(familiar.h) == 80  # and not as many as ten copies more make


def test_what_is_kept_after_a_hold_out_knows_all_labelled_images(
    idx_folder: IdxFolder, tmp_path: Path
) -> None:
    run = bare(idx_folder(10), tmp_path / "run", data__holdout=0.2)
    model = Predictor.load(run.path, "cpu")
    assert model.familiar is not None
    assert model.evidence is not None
    assert len(model.familiar.h) == 100
    assert len(model.evidence.right) == run.summary["validation_images"]


SPREADING = {
    "recipe": "pool",
    "data__per_class": 2,
    "pretext__cache": False,
    "downstream__folds": 0,
}


def watched_lessons(source: Path, out: Path, **settings: Any) -> tuple[Run, list[ImageSet]]:
    """A run, and the images that its classifiers learned from."""
    lessons: list[ImageSet] = []
    true = stages.finetune

    def watching(*given: Any, **named: Any) -> Any:
        lessons.append(given[2])
        return true(*given, **named)

    with mock.patch.object(stages, "finetune", watching):
        return bare(source, out, **SPREADING | settings), lessons


def test_labels_spread_to_the_pool_and_the_classifier_learns_from_both(
    source: Path, tmp_path: Path
) -> None:
    run, (learned,) = watched_lessons(source, tmp_path / "run")
    pool, left_out = run.summary["unlabelled_images"], run.summary["unfamiliar_images"]
    assert pool > 0
    assert len(learned) == run.summary["labelled_images"] + pool - left_out
    assert (learned.labels >= 0).all()
    assert run.summary["images_through_encoder"]["downstream"] > 0


def test_a_fold_keeps_its_labels_from_spreading_and_its_images_out(
    source: Path, tmp_path: Path
) -> None:
    known: list[Tensor] = []
    true = stages.propagation.guess

    def watching(h: Tensor, labels: Tensor, classes: int) -> Any:
        known.append(labels)
        return true(h, labels, classes)

    with mock.patch.object(stages.propagation, "guess", watching):
        run, (whole, *folds) = watched_lessons(source, tmp_path / "run", downstream__folds=2)
    assert len(folds) == 2
    pool = run.summary["unlabelled_images"]
    for labels, learned in zip(known[1:], folds, strict=True):
        assert int((labels >= 0).sum()) == run.summary["labelled_images"] / 2
        assert len(labels) == pool + run.summary["labelled_images"] / 2
        assert len(learned) > pool / 2
    first, second = (set(learned.sources.tolist()) for learned in folds)
    drawn = set(whole.sources.tolist()) - (first & second)
    assert len(drawn) >= run.summary["labelled_images"]  # each is missing in one
    assert run.summary["calibrated_by"].startswith(f"{run.summary['labelled_images']} labelled")


@pytest.mark.parametrize(
    ("pool", "undecided", "expected"),
    [
        (0, 0, stages.PRIOR),
        (10_000, 0, stages.DECIDED),
        (10_000, 180, stages.DECIDED),
        (9_900, 213, Prior((1.18 * 1.5) ** 0.5, 0.08)),
        (10_000, 255, stages.UNDECIDED),
        (10_000, 10_000, stages.UNDECIDED),
        (20, 1, Prior(1.18 * (1.5 / 1.18) ** 0.762, 0.08)),  # 2.8 of 120
    ],
)
def test_the_more_lies_between_classes_the_less_sure_an_answer_is_expected_to_be(
    pool: int, undecided: int, expected: Prior
) -> None:
    session = mock.Mock()
    session.config.downstream.pseudo_labels, session.parts.unlabelled = True, pool
    found = stages._expected(session, mock.Mock(undecided=undecided))
    assert found.temperature == pytest.approx(expected.temperature, rel=1e-3)
    assert found.spread == expected.spread


def test_who_learned_from_labels_that_spread_is_expected_to_be_too_sure(
    source: Path, tmp_path: Path
) -> None:
    true = stages.propagation.guess
    alone = SPREADING | {"data__unlabelled": False}

    def half(h: Tensor, labels: Tensor, classes: int) -> Any:
        pool = (labels < 0).nonzero().squeeze(1)
        undecided = torch.zeros(len(labels), dtype=torch.bool)
        undecided[pool[::2]] = True
        return true(h, labels, classes)._replace(undecided=undecided)

    for name, asked, expected in (
        ("no spreading", UNSEEN, stages.PRIOR),
        ("no pool", alone, stages.PRIOR),
        ("pool", SPREADING, stages.UNDECIDED),
    ):
        with (
            mock.patch.object(stages.propagation, "guess", half),
            mock.patch.object(metrics, "fit_temperature", wraps=metrics.fit_temperature) as fitted,
        ):
            summary = bare(source, tmp_path / name, **asked | {"downstream__folds": 2}).summary
        assert fitted.call_args.args[2] == expected
        pool = summary["unlabelled_images"] if name == "pool" else 0
        assert summary["undecided_images"] == pool / 2


def test_what_a_fold_is_to_answer_teaches_it_under_no_name(source: Path, tmp_path: Path) -> None:
    """Each drawn image lies in the pool once more: a copy of it, of the same source."""
    true, drawn = datasets.load, []

    def doubled(*asked: Any) -> Dataset:
        found = true(*asked)
        drawn.append(splits.draw(found.train.labels, 2, None))
        rest = torch.ones(len(found.train), dtype=torch.bool)
        rest[drawn[0]] = False
        sources = found.train.sources.clone()
        sources[rest.nonzero().squeeze(1)[: len(drawn[0])]] = sources[drawn[0]]
        return replace(found, train=replace(found.train, sources=sources))

    with mock.patch.object(datasets, "load", doubled):
        run, (whole, *folds) = watched_lessons(source, tmp_path / "run", downstream__folds=2)
    labelled = run.summary["labelled_images"]
    kept = [torch.isin(learned.sources, drawn[0]).sum() for learned in (whole, *folds)]
    assert len(folds) == 2
    assert kept[0] > labelled  # copies of what has a label do teach
    for learned in folds:
        assert len(set(learned.sources.tolist()) & set(drawn[0].tolist())) == labelled / 2


def test_labels_that_nobody_drew_are_not_looked_at(source: Path, tmp_path: Path) -> None:
    """With all of them turned around, the same is learned."""
    mine, (learned,) = watched_lessons(source, tmp_path / "mine")
    true = datasets.load

    def turned(*asked: Any) -> Dataset:
        found = true(*asked)
        drawn = splits.draw(found.train.labels, 2, None)
        labels = (found.train.labels + 1) % 10
        labels[drawn] = found.train.labels[drawn]
        fixed.append(drawn)
        return replace(found, train=replace(found.train, labels=labels))

    fixed: list[Tensor] = []
    with (
        mock.patch.object(datasets, "load", turned),
        mock.patch.object(partition, "draw", side_effect=lambda *_: fixed[0]),
    ):
        theirs, (other,) = watched_lessons(source, tmp_path / "theirs")
    assert (learned.labels == other.labels).all()
    ours, others = (checkpoints.load(one.path / "model")[0] for one in (mine, theirs))
    assert all(torch.equal(ours[name], others[name]) for name in ours)


def test_images_too_many_for_memory_teach_the_same(source: Path, tmp_path: Path) -> None:
    settings = SPREADING | {"data__copies": 0}
    mine = bare(source, tmp_path / "mine", **settings)
    with (
        mock.patch.object(storage, "IN_MEMORY", 1000),
        mock.patch.object(storage.np, "memmap", wraps=np.memmap) as mapped,
    ):
        theirs = bare(source, tmp_path / "theirs", **settings)
    assert mapped.called
    ours, others = (checkpoints.load(one.path / "model")[0] for one in (mine, theirs))
    assert all(torch.equal(ours[name], others[name]) for name in ours)


def test_a_pool_of_nothing_is_the_recipe_without_one(source: Path, tmp_path: Path) -> None:
    settings = {"data__per_class": None}
    with_it, _ = watched_lessons(source, tmp_path / "with", **settings)
    without, _ = watched_lessons(
        source, tmp_path / "without", **settings, downstream__pseudo_labels=False
    )
    mine, theirs = (checkpoints.load(one.path / "model")[0] for one in (with_it, without))
    assert with_it.summary["unlabelled_images"] == 0
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_model_that_is_kept_learns_from_the_pool_too(
    idx_folder: IdxFolder, tmp_path: Path
) -> None:
    run, (tested, kept) = watched_lessons(idx_folder(10), tmp_path / "run")
    held_out = run.summary["test_images"]
    assert held_out == 10
    assert len(tested) > 50
    assert len(kept) > 50
    assert len(set(kept.sources.tolist()) - set(tested.sources.tolist())) >= held_out


def test_what_is_undecided_is_told_of_the_model_that_is_kept(
    idx_folder: IdxFolder, tmp_path: Path
) -> None:
    true, labelled = stages.between, []

    def watching(images: ImageSet, *found: Any) -> Any:
        labelled.append(int((images.labels >= 0).sum()))
        return true(images, *found) | {"undecided_shares": np.full(1, len(labelled))}

    with mock.patch.object(stages, "between", watching):
        run = bare(idx_folder(10), tmp_path / "run", **SPREADING)
    assert labelled == [20 - run.summary["test_images"], 20]
    assert runs.RunFolder(run.path).arrays()["undecided_shares"] == [2]


@pytest.mark.parametrize("most", [3, 100])
def test_a_run_remembers_what_its_labels_left_between_classes(bundled: Dataset, most: int) -> None:
    images, generator = bundled.train.select(torch.arange(20)), torch.Generator().manual_seed(0)
    h, reached = (torch.rand(20, n, generator=generator) for n in (4, 10))
    undecided = torch.arange(20) % 3 == 1
    found = Guess(images.labels, ~undecided, undecided, reached.double())
    with mock.patch.object(stages, "MOST_BETWEEN", most):
        known = stages.between(images, h, found)
    prints, directions, shares = (known[f"undecided_{n}"] for n in ("fingerprints", "h", "shares"))
    places = [images.fingerprints.tolist().index(one) for one in prints.tolist()]
    assert len(set(places)) == len(directions) == len(shares) == min(most, 7)
    assert undecided[places].all()
    expected = h[places] / h[places].norm(dim=1, keepdim=True)
    np.testing.assert_allclose(directions, expected, atol=1e-3)
    np.testing.assert_allclose(shares, reached[places] / reached[places].sum(1, keepdim=True), 1e-5)


def test_images_that_no_label_reaches_teach_nothing(source: Path, tmp_path: Path) -> None:
    said: list[str] = []
    true = stages.propagation.guess

    def first_ten(h: Tensor, labels: Tensor, classes: int) -> Any:
        found = true(h, labels, classes)
        familiar = (labels >= 0) | (torch.arange(len(labels)) < 10)
        return found._replace(familiar=familiar, undecided=labels < 0)

    changes = {key.replace("__", "."): value for key, value in (TINY | SPREADING).items()}
    asked = RECIPES["pool"].config.updated(changes | {"data.source": str(source)})
    with mock.patch.object(stages.propagation, "guess", first_ten):
        run = experiment.run(asked, tmp_path / "run", say=said.append)
    left_out = run.summary["unfamiliar_images"]
    assert left_out >= run.summary["unlabelled_images"] - 10
    assert f"left out: {left_out:,} of them, which are like none that has a label" in said
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert f"Like none with a label</dt><dd>{left_out}, left out</dd>" in page
    undecided = run.summary["unlabelled_images"]
    assert f"undecided: {undecided:,} of them, which lie between two classes" in said
    assert f"Between two classes</dt><dd>{undecided}</dd>" in page
    assert "<code>handful suggest</code> names some that are worth a label" in page
    assert len(runs.RunFolder(run.path).arrays()["undecided_fingerprints"]) == undecided
    familiar = Predictor.load(run.path, "cpu").familiar
    assert familiar is not None  # nor are new images like those, and like the others they are
    images = run.summary["labelled_images"] + run.summary["unlabelled_images"]
    assert run.summary["labelled_images"] < len(familiar.h) == images - left_out
    assert "the labels spread from neighbour to neighbour" in page


def test_of_many_that_taught_the_labelled_ones_are_known(source: Path, tmp_path: Path) -> None:
    true, shown = Predictor.acquainted_with, []

    def watching(self: Predictor, images: ImageSet) -> Predictor:
        shown.append(images.sources)
        return true(self, images)

    with (
        mock.patch.object(stages, "MOST_KNOWN", 25),
        mock.patch.object(Predictor, "acquainted_with", watching),
    ):
        run = bare(source, tmp_path / "run", **SPREADING)
    (known,) = shown
    train = datasets.load(runs.RunFolder(run.path).config().data).train
    assert len(known) == len(known.unique()) == 25
    assert torch.isin(train.sources[splits.draw(train.labels, 2, None)], known).all()


@pytest.mark.parametrize("recipe", ["demo", "pool"])
def test_a_run_on_a_gpu_leaves_a_model_for_any_machine(
    recipe: str, gpu: torch.device, idx_folder: IdxFolder, tmp_path: Path
) -> None:
    small = {key.replace("__", "."): value for key, value in TINY.items()}
    small |= {"device": str(gpu), "data.source": str(idx_folder(10, test=50)), "data.per_class": 5}
    asked = RECIPES[recipe].config.updated({**small, "pretext.cache": False})
    run = experiment.run(asked, tmp_path / "run")
    assert f"torch.{run.summary['precision']}" == str(devices.precision("auto", gpu))
    images = datasets.load(asked.data).test
    assert images is not None
    there, here = (Predictor.load(run.path, name) for name in (str(gpu), "cpu"))
    torch.testing.assert_close(there.logits(images), here.logits(images), atol=0.02, rtol=0.02)
    distances = torch.from_numpy(there.distance(images)), torch.from_numpy(here.distance(images))
    torch.testing.assert_close(*distances, atol=0.02, rtol=0.02)


def test_a_branch_of_settings_leaves_the_rest_as_it_was(source: Path, tmp_path: Path) -> None:
    run = bare(
        source, tmp_path / "run", recipe="fast", data={"per_class": 3}, downstream={"ema": 0.5}
    )
    found, usual = runs.RunFolder(run.path).config(), RECIPES["fast"].config
    assert found.data.source == str(source)
    assert (found.data.per_class, found.data.validation) == (3, usual.data.validation)
    assert found.downstream.ema == 0.5
    assert found.downstream.views == usual.downstream.views
    with mock.patch.object(experiment, "run") as asked:
        experiment.train("photos", out="nowhere", data=config.DataConfig(per_class=20))
    laid, chosen = asked.call_args.args[0].data, asked.call_args.kwargs["chosen"]
    assert (laid.source, laid.per_class) == ("photos", 20)
    assert "data.per_class" in chosen


def test_embed_writes_whole_files_or_none(whole: Whole, tmp_path: Path) -> None:
    out = tmp_path / "h.npz"
    for wrong in (tmp_path / "missing" / "h.npz", tmp_path):
        with (
            mock.patch.object(datasets, "load_images", side_effect=AssertionError),
            pytest.raises(ValueError, match=f"cannot write {re.escape(str(wrong))}"),
        ):
            embed(whole.path, str(whole.source), wrong, "cpu")
    embed(whole.path, str(whole.source), out, "cpu")
    before = out.read_bytes()
    with (
        mock.patch.object(os, "fsync", side_effect=OSError(28, "No space left on device")),
        pytest.raises(ValueError, match="No space left"),
    ):
        embed(whole.path, str(whole.source), out, "cpu")
    assert out.read_bytes() == before
    (tmp_path / "link.npz").symlink_to(out)
    embed(whole.path, str(whole.source), tmp_path / "link.npz", "cpu")
    assert {path.name for path in tmp_path.iterdir()} == {"h.npz", "link.npz"}
    assert (tmp_path / "link.npz").is_symlink()


def test_a_foreign_folder_is_refused_before_images_are_read(source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with (
        mock.patch.object(datasets, "load", side_effect=AssertionError),
        pytest.raises(ValueError, match="mine"),
    ):
        bare(source, tmp_path / "mine")

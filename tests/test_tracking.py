"""Curves, figures and settings as TensorBoard's own reader finds them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from handful import config, experiment, runs
from handful.tracking import Board

ROW = {"stage": "pretext", "step": 3, "steps": 9, "epoch": 1, "seconds": 0.5, "loss": 2.0}


def read(run: Path) -> Any:
    found = EventAccumulator(str(run / "tensorboard"))  # type: ignore[no-untyped-call]
    return found.Reload()  # type: ignore[no-untyped-call]


def test_a_run_leaves_what_tensorboard_reads(tmp_path: Path) -> None:
    changes = {
        "data.source": "mnist50", "data.per_class": 4, "tsne": False, "device": "cpu",
        "network.width": 4, "pretext.steps": 3, "downstream.steps": 3, "test_views": 1,
    }  # fmt: skip
    asked = config.RunConfig().updated(changes)
    out = tmp_path / "run"
    run = experiment.run(asked, out, track="tensorboard")
    found = read(out)
    curves = set(found.Tags()["scalars"])
    assert {"pretext/loss", "pretext/learning_rate", "downstream/loss"} <= curves
    rows = [row for row in runs.RunFolder(out).rows() if row["stage"] == "pretext"]
    drawn = [(one.step, one.value) for one in found.Scalars("pretext/loss")]
    assert drawn == [(row["step"], pytest.approx(row["loss"])) for row in rows]
    (accuracy,) = found.Scalars("summary/test_accuracy")
    assert accuracy.value == pytest.approx(run.summary["test_accuracy"])
    text = found.Tensors("config.toml/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "per_class = 4" in text
    (picture,) = found.Images("curves")
    with Image.open(out / "figures" / "curves.png") as kept:
        assert Image.open(io.BytesIO(picture.encoded_image_string)).size == kept.size


def test_members_have_curves_of_their_own(tmp_path: Path) -> None:
    board = Board("tensorboard", tmp_path)
    board.row(ROW)
    board.row(ROW | {"member": 2, "kept": True, "loss": 1.0})
    none = dict.fromkeys(("test_accuracy", "validation_accuracy", "control_test_accuracy"))
    board.finish(none, "", tmp_path)
    assert set(read(tmp_path).Tags()["scalars"]) == {"pretext/loss", "pretext-2/loss"}


def test_nothing_is_written_before_there_is_something(tmp_path: Path) -> None:
    Board("tensorboard", tmp_path)
    assert not any(tmp_path.iterdir())


def test_an_overwritten_run_takes_its_curves_along(tmp_path: Path) -> None:
    runs.claim(tmp_path / "run", config.RunConfig())
    stale = tmp_path / "run" / "tensorboard" / "events"
    stale.parent.mkdir()
    stale.touch()
    runs.claim(tmp_path / "run", config.RunConfig(), overwrite=True)
    assert not stale.exists()


def test_without_tensorboard_a_line_says_how_to_get_it(tmp_path: Path) -> None:
    with (
        mock.patch.dict("sys.modules", {"torch.utils.tensorboard": None}),
        pytest.raises(ValueError, match=r"pip install 'handful\[tensorboard\]'"),
    ):
        Board("tensorboard", tmp_path)

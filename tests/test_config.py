from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from handful import config as configs
from handful.config import RunConfig, ViewsConfig, assignment, flat, parse
from handful.recipes import RECIPES

configurations = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**31 - 1),
        "recipe": st.text(max_size=8),
        "device": st.sampled_from(["auto", "cpu", "cuda:1"]),
        "control": st.booleans(),
        "preset": st.sampled_from(["auto", "digits", "general"]),
        "data.source": st.sampled_from(["mnist50", 'a "quoted" folder', "C:\\bilder\\ä", "'''"]),
        "data.per_class": st.none() | st.integers(1, 5000),
        "data.draw": st.none() | st.integers(0, 109),
        "data.holdout": st.floats(0, 0.99),
        "network.stages": st.none() | st.integers(1, 6),
        "pretext.steps": st.none() | st.integers(0, 9999),
        "pretext.temperature": st.floats(0, 1e6, exclude_min=True, allow_subnormal=False),
        "pretext.views.rotation": st.floats(0, 180),
        "downstream.views.keep_ink": st.booleans(),
        "downstream.learning_rate": st.floats(1e-12, 10),
    },
)


@given(configurations)
def test_a_configuration_survives_the_way_through_toml(changes: dict[str, Any]) -> None:
    config = RunConfig().updated(changes)
    assert configs.parse(configs.tomllib.loads(config.to_toml())) == config


def test_a_configuration_survives_the_way_through_a_file(tmp_path: Path) -> None:
    config = RunConfig().updated({"pretext.steps": 7, "data.source": "fotos/müller"})
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert configs.load(path) == config


def test_a_file_may_say_as_little_as_it_likes(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("seed = 3\n[pretext]\nsteps = 9\n", encoding="utf-8")
    assert configs.load(path) == RunConfig().updated({"seed": 3, "pretext.steps": 9})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed = ", "config.toml"),
        (b"\xff\xfe", "config.toml"),
        (b"sead = 1", "config.toml: unknown setting sead; did you mean seed?"),
        (b"[pretext]\nsteps = -1", "config.toml: pretext.steps = -1"),
        (b"pretext = 3", "config.toml: pretext = 3"),
    ],
)
def test_a_file_that_is_off_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.toml") as caught:
        configs.load(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*nowhere.toml: No such file"):
        configs.load(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("pretext.step", "pretext.steps"),
        ("pretext.temprature", "pretext.temperature"),
        ("data.perclass", "data.per_class"),
        ("downstream.views.rotatoin", "downstream.views.rotation"),
        ("pretekst.steps", "pretext.steps"),
        ("sed", "seed"),
        ("seed.steps", "pretext.steps"),
    ],
)
def test_an_unknown_key_suggests_the_near_one(key: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"unknown setting {key}; did you mean {near}?"):
        RunConfig().updated({key: 1})


def test_a_key_that_is_near_to_nothing_says_where_to_look() -> None:
    with pytest.raises(ValueError, match="unknown setting zzzzqq; see `handful train --help`"):
        RunConfig().updated({"zzzzqq": 1})


def test_an_unknown_key_in_a_tree_suggests_the_near_one() -> None:
    with pytest.raises(ValueError, match=r"unknown setting pretext.step; did you mean pretext.st"):
        parse({"pretext": {"step": 3}})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("seed", 2**31),
        ("data.per_class", 0),
        ("data.draw", -1),
        ("data.validation", 1.0),
        ("data.holdout", -0.1),
        ("data.size", 7),
        ("network.width", 3),
        ("network.head_layers", 4),
        ("pretext.temperature", 0.0),
        ("pretext.temperature", float("nan")),
        ("pretext.learning_rate", float("inf")),
        ("pretext.batch_size", 1),
        ("pretext.steps", 1.5),
        ("pretext.steps", "many"),
        ("pretext.optimizer", "sgd"),
        ("pretext.views.rotation", 181),
        ("pretext.views.rotation", float("nan")),
        ("pretext.views.elastic", float("nan")),
        ("downstream.label_smoothing", 1),
        ("downstream.batch_size", 0),
        ("test_views", 0),
        ("control", "perhaps"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_key(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{key} = {value!r}: ")) as caught:
        RunConfig().updated({key: value})
    assert "\n" not in str(caught.value)


def test_development_needs_more_than_the_bundled_images() -> None:
    with pytest.raises(ValueError, match="--dev needs the full training set"):
        RunConfig().updated({"data.dev": True})
    assert RunConfig().updated({"data.dev": True, "data.source": "mnist/"}).data.dev


def test_an_ensemble_has_a_fixed_length() -> None:
    with pytest.raises(ValueError, match=r"members = 3 needs data\.validation = 0"):
        RunConfig().updated({"members": 3})
    RunConfig().updated({"members": 3, "data.validation": 0, "downstream.steps": 10})


def test_no_column_is_without_a_member() -> None:
    columns = ["plain", "upright"]
    with pytest.raises(ValueError, match=r"network\.columns has 2 columns for members = 1"):
        RunConfig().updated({"network.columns": columns})
    with pytest.raises(ValueError, match=r"network\.columns"):
        RunConfig().updated({"network.columns": []})
    ensemble = {"members": 3, "data.validation": 0, "downstream.steps": 10}
    config = RunConfig().updated({"network.columns": columns, **ensemble})
    assert config.network.columns == ("plain", "upright")
    assert configs.parse(configs.tomllib.loads(config.to_toml())) == config


def test_without_validation_somebody_must_say_how_long() -> None:
    with pytest.raises(
        ValueError, match=r"downstream\.steps must be set where data.validation is 0"
    ):
        RunConfig().updated({"data.validation": 0})
    RunConfig().updated({"data.validation": 0, "downstream.steps": 10})


def test_a_configuration_never_changes() -> None:
    config = RunConfig()
    changed = config.updated({"pretext.views.rotation": 3.0})
    assert config == RunConfig()
    assert changed.pretext.views.rotation == 3.0
    with pytest.raises(ValidationError):
        config.seed = 3  # type: ignore[misc]


def test_differences_are_the_keys_whose_values_differ() -> None:
    ours = RunConfig().updated({"pretext.steps": 5, "seed": 1, "device": "cpu"})
    theirs = RunConfig().updated({"pretext.steps": 6, "pretext.views.flip": True, "seed": 1})
    assert ours.differences(theirs) == {
        "pretext.steps": (5, 6),
        "pretext.views.flip": (False, True),
    }
    assert ours.differences(ours) == {}


def test_the_device_is_no_difference() -> None:
    assert RunConfig(device="cpu").differences(RunConfig(device="cuda:1")) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pretext.steps=100", ("pretext.steps", 100)),
        ("pretext.temperature = 0.5", ("pretext.temperature", 0.5)),
        ("control=true", ("control", True)),
        ('data.source="a b"', ("data.source", "a b")),
        ("data.source=photos/of=me", ("data.source", "photos/of=me")),
        ("pretext.loss=sup_con", ("pretext.loss", "sup_con")),
    ],
)
def test_assignments(text: str, expected: tuple[str, object]) -> None:
    assert assignment(text) == expected


@pytest.mark.parametrize("text", ["pretext.steps", "=3", " =3", ""])
def test_an_assignment_without_key_or_value_says_how(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected key=value, for example pretext.steps=100"):
        assignment(text)


def test_a_configuration_costs_no_import_of_torch() -> None:
    code = "import handful.config, handful.recipes, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_flat_opens_models_as_well() -> None:
    assert flat({"pretext.views": ViewsConfig(rotation=22.0)})["pretext.views.rotation"] == 22.0


def test_views_on_the_way_to_others_take_over_what_is_no_strength() -> None:
    start = ViewsConfig(rotation=90, shear=0.4, elastic_cells=7, flip=True)
    end = ViewsConfig(rotation=10, shear=0.0, elastic_cells=5, flip=False)
    half = start.towards(end, 0.5)
    assert (half.rotation, half.shear) == (50, pytest.approx(0.2))
    assert (half.elastic_cells, half.flip) == (5, False)
    assert start.towards(end, 1) == end
    assert start.towards(end, 0) == end.model_copy(update={"rotation": 90.0, "shear": 0.4})


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({"data.validation": 0.2}, "data.validation = 0"),
        ({"data.copies": 10}, "data.copies = 0"),
        ({"pretext.steps": 0}, "a pretext task"),
    ],
)
def test_labels_spread_where_nothing_is_held_back_and_there_is_an_h(
    changes: dict[str, Any], needed: str
) -> None:
    with pytest.raises(ValueError, match=f"downstream.pseudo_labels = true needs {needed}"):
        RECIPES["pool"].config.updated(changes)

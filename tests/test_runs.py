import csv
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from handful import config as configs
from handful.config import RunConfig
from handful.images import ImageSet
from handful.runs import CONTENTS, HEADER, RunFolder, claim

CONFIG = RunConfig(recipe="fast", seed=1)


def claimed(path: Path, config: RunConfig = CONFIG, overwrite: bool = False) -> RunFolder:
    folder = claim(path, config, overwrite)
    assert isinstance(folder, RunFolder)
    return folder


def finished(path: Path, config: RunConfig = CONFIG) -> RunFolder:
    folder = claimed(path, config)
    folder.append({"stage": "pretext", "step": 1})
    folder.write_arrays({"map_xy": np.zeros((2, 2))})
    folder.model.mkdir()
    (folder.model / "model.json").write_text("{}")
    folder.write_summary({"test_accuracy": 0.5})
    return folder


def test_a_run_is_absent_then_interrupted_then_complete(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one"
    assert RunFolder(path).state() == "absent"
    folder = claimed(path)
    assert folder.state() == "interrupted"
    folder.write_summary({"test_accuracy": None})
    assert folder.state() == "complete"
    assert folder.summary() == {"test_accuracy": None, "complete": True}


def test_an_empty_folder_may_become_a_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert claimed(tmp_path / "run").state() == "interrupted"


def test_config_toml_repeats_the_run(tmp_path: Path) -> None:
    folder = claimed(tmp_path / "run")
    assert folder.config() == CONFIG
    assert configs.load(folder.config_path) == CONFIG


def test_claiming_a_complete_run_of_the_same_configuration_gives_its_summary(
    tmp_path: Path,
) -> None:
    folder = finished(tmp_path / "run")
    before = folder.config_path.read_bytes()
    assert claim(tmp_path / "run", CONFIG) == {"test_accuracy": 0.5, "complete": True}
    elsewhere = CONFIG.updated({"device": "cpu"})
    assert claim(tmp_path / "run", elsewhere) == folder.summary()
    assert folder.config_path.read_bytes() == before


def test_another_configuration_is_refused_with_every_difference(tmp_path: Path) -> None:
    finished(tmp_path / "run")
    other = CONFIG.updated({"seed": 2, "pretext.steps": 9})
    with pytest.raises(ValueError, match="another configuration") as caught:
        claim(tmp_path / "run", other)
    line = str(caught.value)
    assert "seed: here 2, there 1" in line
    assert "pretext.steps: here 9, there unset" in line
    assert "--overwrite" in line
    assert "\n" not in line


def test_a_source_is_the_same_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    of_folder = CONFIG.updated({"data.source": "photos/"})
    finished(tmp_path / "run", of_folder)
    for same in ("photos", "./photos", str(tmp_path / "photos"), "other/../photos"):
        assert isinstance(claim("run", of_folder.updated({"data.source": same})), dict)
    with pytest.raises(ValueError, match=r"data\.source: here others, there photos/"):
        claim("run", of_folder.updated({"data.source": "others"}))


def test_mnist50_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finished(tmp_path / "run")
    with pytest.raises(ValueError, match=r"data\.source: here \./mnist50, there mnist50"):
        claim("run", CONFIG.updated({"data.source": "./mnist50"}))


def test_an_interrupted_run_is_refused_with_the_remedy(tmp_path: Path) -> None:
    claimed(tmp_path / "run")
    with pytest.raises(ValueError, match="did not finish or is still running: --overwrite"):
        claim(tmp_path / "run", CONFIG)


def test_a_run_of_another_version_is_refused_with_the_remedy(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run")
    folder.config_path.write_text(HEADER + "no_such_key = 1\n")
    with pytest.raises(ValueError, match="this version cannot read: --overwrite"):
        claim(tmp_path / "run", CONFIG)
    assert claimed(tmp_path / "run", overwrite=True).config() == CONFIG


@pytest.mark.parametrize("complete", [True, False])
def test_overwrite_removes_the_earlier_run_and_nothing_else(tmp_path: Path, complete: bool) -> None:
    folder = finished(tmp_path / "run") if complete else claimed(tmp_path / "run")
    (folder.path / "notes.txt").write_text("mine")
    again = claimed(tmp_path / "run", CONFIG.updated({"seed": 7}), overwrite=True)
    assert sorted(path.name for path in again.path.iterdir()) == ["config.toml", "notes.txt"]
    assert again.config().seed == 7
    assert again.state() == "interrupted"


def test_a_removal_that_stops_half_way_never_looks_complete_or_foreign() -> None:
    assert CONTENTS[0] == "summary.json"
    assert CONTENTS[-1] == "config.toml"


def test_overwrite_removes_a_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "precious").write_text("x")
    folder = claimed(tmp_path / "run")
    folder.figures.symlink_to(kept, target_is_directory=True)
    claimed(tmp_path / "run", overwrite=True)
    assert (kept / "precious").exists()


@pytest.mark.parametrize("name", ["photo.png", "config.toml", "summary.json"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_of_somebody_else_is_never_touched(
    tmp_path: Path, name: str, overwrite: bool
) -> None:
    (tmp_path / name).write_text("seed = 1\n")
    with pytest.raises(ValueError, match="not made by handful"):
        claim(tmp_path, CONFIG, overwrite)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_file_in_the_place_of_the_folder(tmp_path: Path, overwrite: bool) -> None:
    path = tmp_path / "run"
    path.write_text("x")
    with pytest.raises(ValueError, match="not made by handful"):
        claim(path, CONFIG, overwrite)
    assert path.read_text() == "x"


def test_a_folder_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="cannot write the run folder") as caught:
        claim(tmp_path / "file" / "run", CONFIG)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes wherever it likes"
)
def test_a_read_only_place(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ValueError, match="cannot write the run folder"):
            claim(tmp_path / "run", CONFIG)
    finally:
        tmp_path.chmod(0o700)


def test_of_two_commands_that_start_at_once_one_gets_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed(tmp_path / "run")
    monkeypatch.setattr(RunFolder, "state", lambda self: "absent")
    with pytest.raises(ValueError, match="cannot write the run folder"):
        claim(tmp_path / "run", CONFIG)


@pytest.mark.parametrize(
    ("content", "reason"), [("{", "damaged"), ("[1]", "damaged"), (None, "did not finish")]
)
def test_a_summary_that_is_not_there_or_damaged(
    tmp_path: Path, content: str | None, reason: str
) -> None:
    folder = claimed(tmp_path / "run")
    if content is not None:
        (folder.path / "summary.json").write_text(content)
    with pytest.raises(ValueError, match=reason):
        folder.summary()


def test_no_summary_where_there_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no run there"):
        RunFolder(tmp_path / "none").summary()
    (tmp_path / "x").write_text("x")
    with pytest.raises(ValueError, match="handful did not make it"):
        RunFolder(tmp_path).summary()


Plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(rows=st.lists(st.dictionaries(st.text(), Plain, max_size=4), max_size=4))
def test_rows_come_back_in_order(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    for row in rows:
        folder.append(row)
    assert folder.rows() == rows


def test_a_row_cut_short_by_an_interruption_is_left_out(tmp_path: Path) -> None:
    folder = claimed(tmp_path / "run")
    folder.append({"step": 1})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert folder.rows() == [{"step": 1}]


@pytest.mark.parametrize(("name", "read"), [
    ("metrics.jsonl", RunFolder.rows), ("figures/arrays.npz", RunFolder.arrays),
])  # fmt: skip
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, name: str, read: Any) -> None:
    folder = claimed(tmp_path / "run")
    folder.write(name, b"no such\nthing\n")
    with pytest.raises(ValueError, match=Path(name).name) as caught:
        read(folder)
    assert "\n" not in str(caught.value)


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = claimed(tmp_path / "run")
    folder.write("figures/phone/a.png", b"first")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"cannot write .*a\.png: No space left"):
        folder.write("figures/phone/a.png", b"second")
    assert (folder.figures / "phone" / "a.png").read_bytes() == b"first"


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    folder = claimed(tmp_path / "run")
    folder.append({"loss": math.nan, "deep": [{"x": math.inf}]})
    assert folder.rows() == [{"loss": None, "deep": [{"x": None}]}]
    folder.write_summary({"interval": (0.5, math.nan)})
    text = (folder.path / "summary.json").read_text()
    assert json.loads(text)["interval"] == [0.5, None]


def test_arrays_come_back_with_shape_and_type(tmp_path: Path) -> None:
    folder = claimed(tmp_path / "run")
    assert folder.arrays() == {}
    given_arrays = {"images": np.full((2, 1, 3, 3), 9, np.uint8), "xy": np.ones((4, 2), np.float32)}
    folder.write_arrays(given_arrays)
    found = folder.arrays()
    assert found.keys() == given_arrays.keys()
    for name, array in given_arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert [path.name for path in folder.figures.iterdir()] == ["arrays.npz"]


def test_arrays_are_never_pickled(tmp_path: Path) -> None:
    folder = claimed(tmp_path / "run")
    with pytest.raises(ValueError, match="allow_pickle"):
        folder.write_arrays({"objects": np.array([{}, None], dtype=object)})


@pytest.mark.parametrize("paths", [(), ("a.png", 'b,"c.png', "ü.png")])
def test_predictions_are_a_row_an_image(tmp_path: Path, paths: tuple[str, ...]) -> None:
    folder = claimed(tmp_path / "run")
    images = ImageSet.of(
        torch.zeros(3, 1, 8, 8, dtype=torch.uint8),
        torch.tensor([1, 0, -1]),
        ("cat", "dog, big"),
        paths,
    )
    folder.write_predictions(images, np.array([[0.25, 0.75], [0.125, 0.875], [1.0, 0.0]]))
    with (folder.path / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["index"] for row in rows] == ["0", "1", "2"]
    assert [row["label"] for row in rows] == ["dog, big", "cat", ""]
    assert [row["predicted"] for row in rows] == ["dog, big", "dog, big", "cat"]
    assert [float(row["probability"]) for row in rows] == [0.75, 0.875, 1.0]
    assert tuple(row["path"] for row in rows if "path" in row) == paths

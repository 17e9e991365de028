import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from handful import checkpoints


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "kernel": torch.randn(4, 3, 3, 3, generator=generator),
        "steps": torch.tensor(7),
        "mask": torch.tensor([True, False]),
    }


def test_load_gives_back_what_save_was_given(tmp_path: Path) -> None:
    given_tensors = tensors()
    checkpoints.save(tmp_path / "model", given_tensors, {"class_names": ["b", "a", "ü"]})
    found, meta = checkpoints.load(tmp_path / "model")
    assert found.keys() == given_tensors.keys()
    for name, tensor in given_tensors.items():
        assert found[name].dtype == tensor.dtype
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
    assert meta["class_names"] == ["b", "a", "ü"]
    assert meta["format"] == checkpoints.FORMAT


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_of_the_meta_survive_exactly(
    tmp_path_factory: pytest.TempPathFactory, value: float
) -> None:
    folder = tmp_path_factory.mktemp("meta") / "model"
    checkpoints.save(folder, {}, {"temperature": value})
    assert checkpoints.load(folder)[1]["temperature"] == value


def test_memory_formats_and_shared_memory_do_not_matter(tmp_path: Path) -> None:
    whole = torch.arange(48.0).view(2, 2, 3, 4)
    given_tensors = {
        "last": whole.to(memory_format=torch.channels_last),
        "part": whole[:, 0],
        "whole": whole,
        "trained": torch.nn.Parameter(whole.mT),
    }
    checkpoints.save(tmp_path / "model", given_tensors, {})
    found, _ = checkpoints.load(tmp_path / "model")
    for name, tensor in given_tensors.items():
        assert found[name].is_contiguous()
        torch.testing.assert_close(found[name], tensor.detach(), rtol=0, atol=0)


def test_save_replaces_the_two_files_and_keeps_others(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    checkpoints.save(folder, {"a": torch.zeros(1)}, {"turn": 1})
    (folder / "notes.txt").write_text("mine")
    checkpoints.save(folder, {"b": torch.ones(1)}, {"turn": 2})
    found, meta = checkpoints.load(folder)
    assert list(found) == ["b"]
    assert meta["turn"] == 2
    assert (folder / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_save_that_fails_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    checkpoints.save(folder, {"a": torch.zeros(1)}, {"turn": 1})
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if self.name == "fresh":
            raise OSError("disk full")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(folder, {"a": torch.ones(1)}, {"turn": 2})
    assert checkpoints.load(folder)[1]["turn"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_values_that_json_does_not_know_are_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match="JSON"):
        checkpoints.save(tmp_path / "model", {}, {"temperature": math.nan})
    assert not (tmp_path / "model").exists()


def damaged_json(folder: Path) -> None:
    (folder / "model.json").write_text("{")


def binary_json(folder: Path) -> None:
    (folder / "model.json").write_bytes(b"\xff\xfe\x00")


def foreign_json(folder: Path) -> None:
    (folder / "model.json").write_text("[]")


def newer_format(folder: Path) -> None:
    meta = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(meta | {"format": 99}))


def cut_weights(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-3])


def no_weights(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()


def no_json(folder: Path) -> None:
    (folder / "model.json").unlink()


def pickled_weights(folder: Path) -> None:
    torch.save({"a": torch.zeros(1)}, folder / "weights.safetensors")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damaged_json, "damaged"),
        (binary_json, "damaged"),
        (foreign_json, "not written by handful"),
        (newer_format, "format 99"),
        (cut_weights, "damaged or belongs to another"),
        (pickled_weights, "damaged or belongs to another"),
        (no_weights, r"weights\.safetensors is missing"),
        (no_json, r"model\.json is missing"),
    ],
)
def test_damage_is_one_clear_line(tmp_path: Path, damage: object, reason: str) -> None:
    folder = tmp_path / "model"
    checkpoints.save(folder, tensors(), {})
    assert callable(damage)
    damage(folder)
    with pytest.raises(ValueError, match=reason) as caught:
        checkpoints.load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_weights_that_match_their_digest_and_are_no_safetensors(tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "weights.safetensors").write_bytes(b"nonsense")
    digest = hashlib.sha256(b"nonsense").hexdigest()
    (tmp_path / "model.json").write_text(
        json.dumps({"format": checkpoints.FORMAT, "weights_sha256": digest})
    )
    with pytest.raises(ValueError, match="is damaged"):
        checkpoints.load(tmp_path)

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from handful import sources
from handful.images import ImageSet
from handful.pictures import Part, Preparation, is_prepared_digit


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_a_folder_is_what_it_holds(tmp_path: Path) -> None:
    for held in ("cat/1.png", "results.csv", "weights.npy"):
        touched(tmp_path, held)
    assert sources.located(str(tmp_path)) == (tmp_path, None, [])
    (tmp_path / "labels.csv").write_text("id,name\n")
    assert sources.located(str(tmp_path)) == (tmp_path, None, [])
    (tmp_path / "labels.csv").write_text("path,label\n")
    assert sources.located(str(tmp_path)) == (tmp_path / "labels.csv", None, [])
    touched(tmp_path, "images.npy")
    assert sources.located(str(tmp_path)) == (tmp_path / "images.npy", None, [])
    touched(tmp_path, "train-images-idx3-ubyte")
    assert sources.located(str(tmp_path)) == (tmp_path, None, [])


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        (["photos/cat/1.png", "photos/dog/1.png"], "photos"),
        (["a/b/cat/1.png", "a/b/dog/1.png"], "a/b"),
        (["cat/1.png"], ""),
        (["cat/1.png", "cat/README.txt"], ""),
        (["test/cat/1.png", "test/dog/1.png"], ""),
        (["photos/1.png", "photos/labels.csv"], "photos/labels.csv"),
        (["some/where/a.npz"], "some/where/a.npz"),
        (["rows.tsv"], "rows.tsv"),
        (["1.png"], ""),
        (["mnist/train-images-idx3-ubyte", "mnist/train-labels-idx1-ubyte"], "mnist"),
    ],
)
def test_an_archive_is_what_is_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: list[str], expected: str
) -> None:
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "cache"))
    touched(tmp_path / "packed", *held)
    path = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "packed")
    place, inside, notes = sources.located(path)
    assert inside is not None
    assert inside.is_relative_to(tmp_path / "cache")
    assert place == inside / expected
    assert notes == [f"{path}: unpacked into {inside}"]


def test_sources_that_are_none_say_what_there_is(tmp_path: Path) -> None:
    touched(tmp_path, "song.mp3")
    for name, reason in (("song.mp3", "is a file of another kind"), ("gone", "does not exist")):
        with pytest.raises(ValueError, match=f"{name} {reason}: give mnist50, a folder, a table"):
            sources.located(str(tmp_path / name))
    with pytest.raises(ValueError, match="~nobody-of-this-name/x does not exist: give mnist50"):
        sources.located("~nobody-of-this-name/x")


def test_classes_are_those_that_occur() -> None:
    images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    held = ImageSet.of(images, torch.tensor([2, -1, 0, 2]), ("a", "b", "c"))
    assert sources.classes(held) == ["a", "c"]
    files = [(Path(name), name) for name in ("10", "9", "b", "A")]
    assert sources.classes(Part("train", "", [*files, (Path("x"), None)])) == ["9", "10", "A", "b"]


def test_arrays_of_the_right_size_are_made_digits_too() -> None:
    drawn = np.full((1, 1, 28, 28), 240, np.uint8)
    drawn[:, :, 3:20, 5:9] = 20  # dark ink on paper
    held = ImageSet.of(torch.from_numpy(drawn))
    digits = Preparation("digits", 28, 1)
    made = sources.prepared(held, digits)
    assert is_prepared_digit(made.images[0, 0].numpy())
    assert sources.prepared(made, digits) is made
    assert sources.prepared(held, digits, as_is=True) is held
    assert sources.prepared(held, Preparation("letterbox", 28, 1)) is held


def test_colour_arrays_are_prepared_as_files_are(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 31, 3), np.uint8)
    for i in range(2):
        Image.fromarray(pixels[i]).save(tmp_path / f"{i}.png")
    held = ImageSet.of(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
    for preparation in (Preparation("letterbox", 28, 3), Preparation("digits", 28, 1)):
        piece = sources.flat(tmp_path)
        read = sources.ready(piece, piece.open(), (), preparation)
        assert torch.equal(sources.prepared(held, preparation).images, read.images.images)

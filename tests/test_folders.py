from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from handful import folders
from handful.config import DataConfig
from handful.pictures import Preparation


def pictures(folder: Path, count: int, size: tuple[int, int], mode: str = "L") -> list[Path]:
    folder.mkdir(exist_ok=True)
    colour = (200, 30, 30) if mode == "RGB" else 99
    paths = [folder / f"{i}.png" for i in range(count)]
    for path in paths:
        Image.new(mode, size, colour).save(path)
    return paths


@pytest.mark.parametrize(
    ("size", "mode", "expected"),
    [
        ((20, 10), "L", Preparation("letterbox", 28, 1)),
        ((50, 30), "RGB", Preparation("letterbox", 48, 3)),
        ((30, 63), "L", Preparation("letterbox", 64, 1)),
        ((900, 700), "RGB", Preparation("letterbox", 128, 3)),
    ],
)
def test_size_and_channels_follow_the_files(
    tmp_path: Path, size: tuple[int, int], mode: str, expected: Preparation
) -> None:
    paths = pictures(tmp_path, 3, size, mode)
    assert folders.preparation_for(paths, DataConfig()) == expected
    assert folders.preparation_for(paths, DataConfig(size=40)).size == 40
    assert folders.preparation_for(paths, DataConfig(prepare="crop")).kind == "crop"
    digits = folders.preparation_for(paths, DataConfig(prepare="digits"))
    assert digits == Preparation("digits", 28, 1)


def test_one_colour_picture_makes_the_set_a_colour_set(tmp_path: Path) -> None:
    paths = pictures(tmp_path / "a", 5, (32, 32)) + pictures(tmp_path / "b", 1, (32, 32), "RGB")
    assert folders.preparation_for(paths, DataConfig()).channels == 3


def test_mnist_like_files_are_digits_unless_asked_otherwise(tmp_path: Path) -> None:
    digit = np.zeros((28, 28), np.uint8)
    digit[6:20, 12:15] = 250
    Image.fromarray(digit).save(tmp_path / "1.png")
    paths = [tmp_path / "1.png"]
    assert folders.preparation_for(paths, DataConfig()).kind == "digits"
    letterbox = folders.preparation_for(paths, DataConfig(prepare="letterbox"))
    assert letterbox == Preparation("letterbox", 28, 1)


def test_greys_of_a_camera_with_twelve_bits_keep_their_shades(tmp_path: Path) -> None:
    shades = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    paths = [tmp_path / "dim.png", tmp_path / "bright.png", tmp_path / "small.png"]
    Image.fromarray(shades // 8).save(paths[0])
    Image.fromarray(shades).save(paths[1])
    Image.new("L", (64, 64), 7).save(paths[2])
    preparation = folders.preparation_for(paths, DataConfig())
    assert preparation == Preparation("letterbox", 64, 1, white=4095)
    part = folders.Part("unlabelled", "", [(path, None) for path in paths])
    images = folders.read(part, (), preparation).images.images
    assert [len(image.unique()) for image in images] == [33, 256, 1]


def test_the_brightest_of_many_says_what_is_white(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "SAMPLED", 2)
    for number, level in enumerate((900, 3000, 14_000, 800)):
        Image.new("I;16", (32, 32), level).save(tmp_path / f"{number}.png")
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    paths = folders.pictures(tmp_path)
    assert folders.preparation_for(paths, DataConfig()).white == 16383


def test_digits_of_twelve_bits_are_digits(tmp_path: Path) -> None:
    digit = np.full((28, 28), 3, np.uint16)  # noise that is black
    digit[6:20, 12:15] = 4000
    Image.fromarray(digit).save(tmp_path / "1.png")
    found = folders.preparation_for([tmp_path / "1.png"], DataConfig())
    assert found == Preparation("digits", 28, 1, white=4095)


def test_unreadable_files_do_not_decide(tmp_path: Path) -> None:
    paths = pictures(tmp_path, 2, (40, 40))
    (tmp_path / "bad.png").touch()
    found = folders.preparation_for([tmp_path / "bad.png", *paths], DataConfig())
    assert found == Preparation("letterbox", 40, 1)


def test_names_sort_as_people_count(tmp_path: Path) -> None:
    for name in ("class10", "class2", "Class1", "other", ".hidden", "__MACOSX", "__new"):
        (tmp_path / name).mkdir()
    assert [path.name for path in folders.visible(tmp_path)] == [
        "__new",
        "Class1",
        "class2",
        "class10",
        "other",
    ]


def test_pictures_are_found_below_and_by_any_case(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b10.JPG", "b9.jpeg", "deep/er/a.Tiff", "readme.md", ".hidden.png"):
        (tmp_path / name).touch()
    assert [path.name for path in folders.pictures(tmp_path)] == ["b9.jpeg", "b10.JPG", "a.Tiff"]
    assert folders.other_files(tmp_path) == "1 .md"


def test_links_that_lead_back_are_followed_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pictures(tmp_path / name, 1, (8, 8))
    (tmp_path / "a" / "deep").mkdir()
    (tmp_path / "a" / "deep" / "up").symlink_to("../..", target_is_directory=True)
    (tmp_path / "a" / "other").symlink_to("../b", target_is_directory=True)
    (tmp_path / "b" / "back").symlink_to("../a", target_is_directory=True)
    (tmp_path / "b" / "self").symlink_to(".", target_is_directory=True)
    found = [str(path.relative_to(tmp_path)) for path in folders.files(tmp_path / "a")]
    assert found == ["a/0.png", "a/other/0.png"]


def test_every_kind_that_pillow_writes_is_a_picture(tmp_path: Path) -> None:
    Image.init()
    kinds = Image.registered_extensions()
    for suffix in folders.PICTURES:
        path = tmp_path / f"a{suffix}"
        for mode in ("RGB", "L", "1", "F") if kinds.get(suffix) in Image.SAVE else ():
            try:
                Image.new(mode, (64, 64)).save(path)
                break
            except (OSError, ValueError):  # a mode that it has not
                path.unlink(missing_ok=True)
    made = {path.suffix for path in tmp_path.iterdir()}
    found = folders.read(folders.part("unlabelled", tmp_path), (), Preparation("letterbox", 28, 1))
    assert not found.skipped
    assert {Path(path).suffix for path in found.images.paths} == made
    assert made >= folders.PICTURES - {".psd", ".xpm"}  # which Pillow only reads


def test_parts_have_one_set_of_names_in_any_case(tmp_path: Path) -> None:
    for name in ("Training", "Testing", "VAL", "Unlabelled", "Training/unlabeled"):
        (tmp_path / name / "cat").mkdir(parents=True)
    assert [(role, path.name) for role, path in folders.places(tmp_path)] == [
        ("train", "Training"),
        ("validation", "VAL"),
        ("test", "Testing"),
        ("unlabelled", "Unlabelled"),
        ("unlabelled", "unlabeled"),
    ]


def test_parts_beside_class_folders_are_refused(tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "docs", "lion"):
        (tmp_path / name).mkdir(parents=True)
    assert folders.places(tmp_path) == [("train", tmp_path / "train")]
    pictures(tmp_path / "lion", 1, (8, 8))
    with pytest.raises(ValueError, match="has lion beside train: put class folders into train/"):
        folders.places(tmp_path)
    (tmp_path / "train").rename(tmp_path / "Val")
    with pytest.raises(ValueError, match="has lion beside Val"):
        folders.places(tmp_path)


def test_spread_samples_evenly() -> None:
    assert folders.spread(3) == [0, 1, 2]
    assert folders.spread(0) == []
    many = folders.spread(10_000)
    assert len(many) == folders.SAMPLED
    assert (many[0], many[-1]) == (0, 9999)
    assert np.ptp(np.diff(many)) <= 1


def test_a_pattern_matches_files_in_natural_order(tmp_path: Path) -> None:
    paths = pictures(tmp_path, 11, (4, 4))
    (tmp_path / "folder.png").mkdir()
    assert folders.matching(tmp_path / "*.png") == paths
    assert folders.matching(tmp_path / "[12].png") == paths[1:3]
    assert folders.matching(tmp_path / "no.png") == [tmp_path / "no.png"]
    with pytest.raises(ValueError, match=r"no picture matches .*folder\.\*"):
        folders.matching(tmp_path / "folder.*")

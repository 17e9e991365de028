"""Images that no recipe was tuned on: that they are what they claim, and how they are reported."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from benchmarks import corruptions, letters, robust
from benchmarks.corruptions import CORRUPTIONS, OTHERS, Bytes
from scipy import ndimage
from sklearn.datasets import load_digits

from handful import datasets
from handful.bench import Row, read
from handful.cli import main
from handful.config import DataConfig
from handful.datasets import Dataset
from handful.pictures import Preparation
from handful.predictor import Predictor
from handful.recipes import RECIPES

ALL = CORRUPTIONS | OTHERS
WITHOUT_CHANCE = ("scale", "brightness", "stripe", "canny edges", "inverted")
IN_PLACE = (
    "shot noise", "impulse noise", "glass blur", "motion blur", "brightness", "fog", "spatter",
    "dotted line", "zigzag",
)  # fmt: skip
"""What leaves ink where it is, lighter than what is around it."""
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@pytest.fixture(scope="module")
def digits(bundled: Dataset) -> Bytes:
    assert bundled.test is not None
    return bundled.test.images[:200, 0].numpy()


@pytest.fixture(scope="module")
def found() -> list[letters.Font]:
    return letters.fonts(FONTS)


def changed(what: str, images: Bytes, seed: int = 0) -> Bytes:
    return ALL[what](images, np.random.default_rng(seed))


def test_there_are_fifteen() -> None:
    assert len(CORRUPTIONS) == 15
    assert len(ALL) == 17
    assert all(change.__doc__ and "\n" not in change.__doc__ for change in ALL.values())


@pytest.mark.parametrize("what", ALL)
def test_a_change_is_repeatable_and_of_a_copy(what: str, digits: Bytes) -> None:
    before = digits.copy()
    once = changed(what, digits)
    assert once.shape == digits.shape
    assert once.dtype == np.uint8
    assert np.array_equal(digits, before)
    assert not np.shares_memory(once, digits)
    assert np.array_equal(once, changed(what, digits))
    differing = (once != digits).any((1, 2)).mean()
    assert differing > 0.95
    assert np.array_equal(once, changed(what, digits, 1)) == (what in WITHOUT_CHANCE)


@pytest.mark.parametrize("what", WITHOUT_CHANCE)
def test_a_change_of_one_image_leaves_the_others(what: str, digits: Bytes) -> None:
    assert np.array_equal(changed(what, digits)[3:5], changed(what, digits[3:5]))


@pytest.mark.parametrize("what", ALL)
def test_an_empty_picture_is_no_obstacle(what: str) -> None:
    assert changed(what, np.zeros((2, 28, 28), np.uint8)).shape == (2, 28, 28)


@pytest.mark.parametrize("what", IN_PLACE)
def test_ink_stays_lighter_than_paper(what: str, digits: Bytes) -> None:
    ink = digits >= 128
    values = changed(what, digits).astype(float)
    on = (values * ink).sum((1, 2)) / ink.sum((1, 2))
    off = (values * ~ink).sum((1, 2)) / (~ink).sum((1, 2))
    assert (on > off + 40).mean() > 0.95


@pytest.mark.parametrize(
    ("what", "kept"),
    [("shear", 1.0), ("rotate", 1.0), ("translate", 1.0), ("shifted", 1.0), ("scale", 0.49)],
)
def test_moved_ink_is_not_lost(what: str, kept: float, digits: Bytes) -> None:
    mass = changed(what, digits).sum((1, 2), dtype=float) / digits.sum((1, 2), dtype=float)
    assert np.median(mass) == pytest.approx(kept, rel=0.03)
    assert (mass > 0.9 * kept).mean() > 0.9


def test_shifts_are_of_whole_pixels_and_at_most_four(digits: Bytes) -> None:
    moved = changed("shifted", digits)
    padded = np.pad(digits, ((0, 0), (4, 4), (4, 4)))
    places = [(y, x) for y in range(9) for x in range(9)]
    windows = np.stack([padded[:, y : y + 28, x : x + 28] for y, x in places], axis=1)
    assert (windows == moved[:, None]).all((2, 3)).any(1).all()


def test_stripes_leave_the_middle(digits: Bytes) -> None:
    striped = changed("stripe", digits)
    assert np.array_equal(striped[:, :, 7:21], digits[:, :, 7:21])
    assert np.array_equal(striped[:, :, :7], 255 - digits[:, :, :7])


def test_edges_go_along_strokes(digits: Bytes) -> None:
    edges = changed("canny edges", digits)
    assert set(np.unique(edges)) == {0, 255}
    near = ndimage.binary_dilation(digits > 0, np.ones((1, 5, 5), bool))
    assert not (edges.astype(bool) & ~near).any()
    assert ((edges > 0).sum((1, 2)) > 20).all()


def test_small_digits_are_prepared_as_mnist_was() -> None:
    images = corruptions.as_mnist(load_digits().images[:100])
    assert images.shape == (100, 28, 28)
    assert images.dtype == np.uint8
    assert (images.max((1, 2)) == 255).all()
    ink = images > 0
    height, width = (ink.any(axis).sum(1) for axis in (2, 1))
    assert (np.maximum(height, width) <= 20).all()
    assert (np.maximum(height, width) >= 18).all()
    y, x = np.indices((28, 28))
    for axis in (y, x):
        centre = (images * axis).sum((1, 2)) / images.sum((1, 2)) - 13.5
        assert np.abs(centre).max() <= 1.0


def test_fonts_are_those_of_letters_and_each_once(
    found: list[letters.Font], tmp_path: Path
) -> None:
    names = {font.family for font in found}
    assert {"DejaVu Sans", "DejaVu Serif", "STIXGeneral"} <= names
    # braces, boxes and display pieces, some of them in the places of letters
    assert not {"cmex10", "STIXNonUnicode", "DejaVu Sans Display"} & names
    assert not any("Last Resort" in name for name in names)
    serif = next(font for font in found if font.family == "DejaVu Serif")
    for copy in ("a.ttf", "b.ttf"):
        (tmp_path / copy).write_bytes(serif.path.read_bytes())
    (tmp_path / "damaged.ttf").write_bytes(serif.path.read_bytes()[:1000])
    assert [str(font) for font in letters.fonts(tmp_path)] == [str(serif)]


@pytest.mark.parametrize("draw", range(6))
def test_families_that_train_do_not_test(found: list[letters.Font], draw: int) -> None:
    chosen = letters.divided(found, draw)
    assert chosen is not None
    train, test = ({font.family for font in part} for part in chosen)
    assert train
    assert test
    assert not train & test
    assert len(chosen.train) <= letters.PER_CLASS
    assert chosen == letters.divided(found, draw)


def test_few_fonts_make_no_letters(found: list[letters.Font]) -> None:
    assert letters.divided(found[: letters.FEWEST - 1], 0) is None
    assert letters.divided([font._replace(family="one") for font in found], 0) is None


def test_letters_are_a_source_with_a_test_split(found: list[letters.Font], tmp_path: Path) -> None:
    dejavu = [font for font in found if font.family in ("DejaVu Sans", "DejaVu Serif")]
    chosen = letters.divided(dejavu, 100)
    assert chosen is not None
    assert (len(chosen.train), len(chosen.test), chosen.varied) == (4, 4, 16)
    letters.write(tmp_path, chosen, np.random.default_rng(100))
    dataset = datasets.load(DataConfig(source=str(tmp_path)))
    assert dataset.test is not None
    assert dataset.train.class_names == tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert dataset.train.size == (32, 32)
    assert dataset.train.class_counts.tolist() == [20] * 26
    assert dataset.test.class_counts.tolist() == [4] * 26
    pixels = dataset.train.images
    assert (pixels[:, :, [0, -1], [0, -1]] == 255).all()
    assert (pixels.amin((1, 2, 3)) < 128).all()
    assert len(set(dataset.train.fingerprints)) == len(pixels)


class Standing:
    """In the place of a trained model: it finds 3 in every image."""

    preparation = Preparation("digits", 28, 1)
    class_names = tuple("0123456789")

    def logits(self, images: Any) -> torch.Tensor:
        answers = torch.zeros(len(images), 10)
        answers[:, 3] = 1.0
        return answers


SUMMARY = {
    "test_accuracy": 0.75, "test_interval": [0.7, 0.8], "test_images": 400,
    "control_test_accuracy": 0.7,
    "control_difference": {"difference": 0.05, "interval": [0.01, 0.09]},
}  # fmt: skip


@pytest.fixture
def trained(
    monkeypatch: pytest.MonkeyPatch, found: list[letters.Font], tmp_path: Path
) -> Counter[str]:
    """What was trained, by kind, where nothing is trained and rows go to a new place."""
    count: Counter[str] = Counter()

    def digits(source: str, key: Row, out: Path) -> Standing:
        count["digits"] += 1
        return Standing()

    def apart(source: str, options: list[str]) -> Row:
        assert {"--recipe=standard", "--control"} <= set(options)
        assert (Path(source) / "test" / "A").is_dir()
        count["letters"] += 1
        return SUMMARY

    def blank(some: Any) -> Bytes:
        return np.zeros((len(some), 28, 28), np.uint8)

    monkeypatch.setattr(robust, "_trained", digits)
    monkeypatch.setattr(robust.bench, "apart", apart)
    monkeypatch.setattr(corruptions, "as_mnist", blank)
    monkeypatch.setattr(robust.letters, "fonts", lambda folder: found)
    monkeypatch.setattr(robust, "commit_of_recipes", lambda: "abc1234")
    monkeypatch.setattr(robust, "ROWS", tmp_path / "robust.jsonl")
    return count


def asked(source: Path, *draws: int) -> Namespace:
    return Namespace(source=str(source), recipe="fast", draws=draws, fonts=None)


def test_a_run_does_what_is_missing(trained: Counter[str], idx_folder: Any) -> None:
    source = idx_folder(2, 30)
    robust.run(asked(source, 100))
    rows = read(robust.ROWS)
    assert [row["what"] for row in rows] == [*robust.SETS, "letters"]
    assert {(row["draw"], row["seed"], row["commit"]) for row in rows} == {(100, 0, "abc1234")}
    assert {row["recipe"] for row in rows[:-1]} == {"fast"}
    assert rows[-1]["control_accuracy"] == 0.7
    assert rows[-1]["varied"] == letters.PER_CLASS - len(rows[-1]["train_fonts"])
    robust.run(asked(source, 100))
    assert read(robust.ROWS) == rows
    assert trained == {"digits": 1, "letters": 1}
    lines = robust.ROWS.read_text(encoding="utf-8").splitlines(keepends=True)
    robust.ROWS.write_text("".join(lines[:3]), encoding="utf-8")
    robust.run(asked(source, 100))
    assert read(robust.ROWS) == rows
    assert trained == {"digits": 2, "letters": 2}


def test_without_fonts_letters_are_left_out_and_it_says_why(
    trained: Counter[str],
    idx_folder: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(robust.letters, "fonts", lambda folder: [])
    robust.run(asked(idx_folder(2, 30), 100))
    (line,) = capsys.readouterr().err.splitlines()
    assert "0 fonts" in line
    assert "apt-get install" in line
    assert trained == {"digits": 1}


def test_a_run_needs_a_commit_and_draws_that_are_reported_on(
    trained: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="100-109"):
        robust.run(asked(tmp_path, 3))
    monkeypatch.setattr(robust, "commit_of_recipes", lambda: None)
    with pytest.raises(SystemExit, match="commit src first"):
        robust.run(asked(tmp_path, 100))


def test_the_model_is_kept_while_it_is_scored(
    idx_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ("network.width=4", "pretext.steps=0", "downstream.steps=2")

    def here(source: str, options: list[str], *, out: Path) -> None:
        settings = [f"--set={one}" for one in small]
        assert main(["train", source, f"--out={out}", "--quiet", *options, *settings]) == 0

    monkeypatch.setattr(robust.bench, "apart", here)
    monkeypatch.setattr(robust, "PER_CLASS", 4)
    source = str(idx_folder(8, 20))
    model = robust._trained(source, {"recipe": "fast", "seed": 0, "draw": 100}, tmp_path / "run")
    assert isinstance(model, Predictor)
    assert len(model.logits(np.zeros((2, 28, 28), np.uint8))) == 2


def test_what_is_run_by_default_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Namespace] = []
    monkeypatch.setattr(robust, "run", asked.append)
    monkeypatch.setattr(sys, "argv", ["robust", "run", "DIR"])
    robust.main()
    assert asked[0].recipe in RECIPES


def scored(what: str, draw: int, accuracy: float, **others: Any) -> Row:
    return {"what": what, "recipe": "fast", "draw": draw, "seed": 0, "commit": "abc1234",
            "images_by": "1f", "per_class": 50, "accuracy": accuracy, "interval": [0.5, 0.99],
            "images": 10_000} | others  # fmt: skip


def of_letters(draw: int, accuracy: float, gain: float) -> Row:
    return scored(
        "letters", draw, accuracy, recipe="standard", images=442, control_accuracy=accuracy - gain,
        control_difference={"difference": gain, "interval": [gain - 0.01, gain + 0.01]},
        train_fonts=["a"] * 15, test_fonts=["b"] * 17, varied=5,
    )  # fmt: skip


def line(page: str, what: str) -> str:
    (one,) = (line for line in page.splitlines() if line.startswith(f"| {what} |"))
    return one


def test_the_page_is_made_of_rows() -> None:
    rows = [scored("MNIST test", draw, accuracy) for draw, accuracy in ((100, 0.98), (101, 0.99))]
    rows += [scored("fog", 100, 0.80), scored("fog", 101, 0.90)]
    page = robust.page([*rows, of_letters(100, 0.90, 0.02), of_letters(101, 0.88, 0.01)])
    assert "## `fast`, 50 labels a class" in page
    assert "Draws 100, 101, commit abc1234." in page
    assert line(page, "MNIST test").endswith(
        "| 10,000 | 98.50 ± 0.71 (92.15 to 100.00) | 98.00 | – |"
    )
    assert line(page, "fog").endswith("| 85.00 ± 7.07 (21.47 to 100.00) | 80.00 | -13.50 |")
    assert "mean of the fifteen" not in page
    assert "| 15, 5 images varied | 17 | 442 | 90.0 % (50.0–99.0 %) | 88.0 % |" in line(page, "100")
    assert "Mean 89.00 ± 1.41" in page
    assert "worst 88.00; gain over the control +1.50" in page


def test_the_mean_of_the_fifteen_weighs_each_alike() -> None:
    rows = [scored(what, 100, 0.9) for what in CORRUPTIONS]
    rows[0] |= {"accuracy": 0.6, "images": 10}
    assert "| 88.00 | 88.00 | – |" in line(robust.page(rows), "mean of the fifteen")


def test_the_page_leaves_out_rows_of_older_commits_and_other_images() -> None:
    page = robust.page(
        [
            scored("fog", 100, 0.1, commit="old"),
            scored("zigzag", 100, 0.1, commit="old"),
            scored("fog", 101, 0.2, images_by="2e"),
            scored("fog", 100, 0.5),
            scored("fog", 100, 0.7),
        ]
    )
    assert "| 70.00 | 70.00 |" in line(page, "fog")
    assert "| zigzag |" not in page


def test_the_page_says_what_is_not_measured() -> None:
    assert robust.page([]).count("Not measured yet") == 2


@pytest.mark.skipif(not robust.ROWS.exists(), reason="benchmarks.robust has not been run yet")
def test_the_page_in_docs_is_what_its_rows_make() -> None:
    expected = robust.page(read(robust.ROWS))
    found = robust.PAGE.read_text(encoding="utf-8")
    assert found == expected, "python -m benchmarks.robust table"

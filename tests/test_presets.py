from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from handful import experiment, presets, runs, stages
from handful.config import DownstreamConfig, RunConfig
from handful.images import ImageSet
from handful.recipes import MILD_LETTERS, RECIPES, RICH_LETTERS
from handful.session import Session

TINY = {
    "recipe": "fast",
    "network__width": 4,
    "network__head_hidden": 8,
    "network__head_dim": 8,
    "pretext__steps": 2,
    "downstream__steps": 2,
    "test_views": 1,
}
Folder = Callable[..., Path]


@pytest.fixture
def pointing(tmp_path: Path) -> Folder:
    """Arrows in colour: mirrored, those to the left are those to the right."""

    def make(each: int) -> Path:
        rng = np.random.default_rng(0)
        folder = tmp_path / f"arrows-{each}"
        for label, turn in (("left", 1), ("right", -1)):
            (folder / label).mkdir(parents=True)
            for number in range(each):
                picture = np.full((24, 24, 3), rng.integers(90, 160, 3), np.uint8)
                height = int(rng.integers(6, 18))
                for step in range(9):
                    picture[height - step // 2 : height + step // 2 + 1, 6 + step] = 255
                Image.fromarray(picture[:, ::turn]).save(folder / label / f"{number:02}.png")
        return folder

    return make


def losses(**means: float) -> Callable[..., Tensor]:
    """Trials that end so: 100 images, of which two trials differ by a standard error of 0.1."""
    numbers = iter(range(len(presets.TRIED)))

    def found(*_: object) -> Tensor:
        number = next(numbers)
        noise = torch.randn(100, generator=torch.Generator().manual_seed(number))
        noise = (noise - noise.mean()) / noise.std() / math.sqrt(2)
        return means[presets.TRIED[number]] + noise

    return found


@pytest.mark.parametrize(
    ("letters", "general", "natural", "texture", "taken"),
    [
        (0.5, 0.5, 0.5, 0.5, "letters"),
        (0.5, 0.45, 0.45, 0.45, "letters"),
        (0.5, 0.2, 0.2, 0.2, "general"),
        (0.5, 0.5, 0.2, 0.2, "natural"),
        (0.5, 0.2, 0.15, 0.15, "general"),
        (0.5, 0.5, 0.2, 0.0, "texture"),
        (0.5, 0.9, 0.9, 0.2, "texture"),
        (0.2, 0.5, 0.5, 0.5, "letters"),
    ],
)
def test_more_is_claimed_only_where_it_is_better(
    letters: float,
    general: float,
    natural: float,
    texture: float,
    taken: str,
    pointing: Folder,
    tmp_path: Path,
) -> None:
    found = losses(letters=letters, general=general, natural=natural, texture=texture)
    with mock.patch.object(presets, "_losses", found):
        run = experiment.train(str(pointing(15)), out=tmp_path / "run", **TINY)
    assert run.summary["preset"] == taken
    assert runs.RunFolder(run.path).config().preset == taken
    assert run.summary["presets_tried"].keys() == set(presets.TRIED)


def test_a_guess_knows_how_frequent_classes_are() -> None:
    labels = torch.tensor([0] * 8 + [2] * 2)
    expected = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    assert presets._guess(labels) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("all_lost", "steps", "rounds"), [(True, 60, 2), (False, 60, 1), (True, 20, 1)]
)
def test_kinds_that_taught_nothing_are_tried_for_longer(
    all_lost: bool, steps: int, rounds: int, pointing: Folder, tmp_path: Path
) -> None:
    """Unless the run itself is so short that longer trials would be the same again."""
    lengths: list[int] = []

    def found(session: Session, config: RunConfig, folds: Tensor, lessons: int) -> Tensor:
        lengths.append(lessons)
        mean = math.log(2) if all_lost or config.preset != "texture" else 0.1
        return torch.full((30,), mean)

    settings = TINY | {"downstream__steps": steps}
    with mock.patch.object(presets, "_losses", found):
        run = experiment.train(str(pointing(15)), out=tmp_path / "run", **settings)
    each = len(presets.TRIED)
    assert lengths == [one for one in presets.LESSONS[:rounds] for _ in range(each)]
    assert run.summary["preset"] == ("general" if all_lost else "texture")
    assert run.summary["presets_tried"].keys() == (set() if all_lost else set(presets.TRIED))


def test_how_long_trials_take_is_told_by_a_step_of_theirs(pointing: Folder, tmp_path: Path) -> None:
    """Half the images, since the others are held out, in batches as they come."""
    said: list[str] = []
    asked = {key.replace("__", "."): value for key, value in TINY.items()}
    asked |= {"downstream.batch_size": 8}
    config = experiment.recipe_for(str(pointing(15)), "fast").updated(asked)
    with (
        mock.patch.object(presets, "_losses", losses(letters=0, general=1, natural=1, texture=1)),
        mock.patch.object(presets.networks, "seconds_per_image", return_value=0.01) as timed,
    ):
        experiment.run(config, tmp_path / "run", chosen=asked, say=said.append)
    assert timed.call_args_list[0].args[2] == 6  # of 24, twelve in two batches
    (line,) = [line for line in said if line.startswith("trying")]
    assert "at most 8 min 0 s: letters, general, natural, texture" in line  # 4 · 2 · 6,000 images


def test_arrows_are_not_mirrored(pointing: Folder, tmp_path: Path) -> None:
    """With real trials: mirrored, nothing could tell the classes apart."""
    said: list[str] = []
    settings = TINY | {"network__width": 8, "downstream__steps": 60}
    asked = {key.replace("__", "."): value for key, value in settings.items()}
    config = experiment.recipe_for(str(pointing(20)), "fast").updated(asked)
    run = experiment.run(config, tmp_path / "run", chosen=asked, say=said.append)
    assert run.summary["preset"] == "letters"
    config = runs.RunFolder(run.path).config()
    assert (config.pretext.views, config.downstream.views) == (RICH_LETTERS, MILD_LETTERS)
    told = run.summary["presets_tried"]
    assert told["letters"] < min(told[name] for name in presets.TRIED[1:])
    (line,) = [line for line in said if line.startswith("views: ")]
    assert line.startswith("views: letters, by 32 labelled images held out in turn (cross-entropy")


def test_copies_and_validation_images_have_no_voice(pointing: Folder, tmp_path: Path) -> None:
    held: list[Tensor] = []
    seen: list[int] = []
    true = presets._losses

    def watched(session: Session, config: RunConfig, folds: Tensor, lessons: int) -> Tensor:
        held.append(folds)
        parts = session.parts
        assert parts.validation is not None
        seen.append(int(torch.isin(parts.fit.sources, parts.validation.sources).sum()))
        return true(session, config, folds, lessons)

    settings = TINY | {"data__validation": 0.2, "data__copies": 2}
    with mock.patch.object(presets, "_losses", watched):
        run = experiment.train(str(pointing(30)), out=tmp_path / "run", **settings)
    originals = run.summary["labelled_images"] - run.summary["validation_images"]
    assert set(seen) == {0}
    assert all(int((folds >= 0).sum()) == originals < len(folds) for folds in held)


def test_a_foreign_folder_is_refused_before_anything_is_tried(
    pointing: Folder, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with (
        mock.patch.object(presets, "tried", side_effect=AssertionError),
        pytest.raises(ValueError, match="was not made by handful"),
    ):
        experiment.train(str(pointing(15)), out=tmp_path / "mine", **TINY)


def test_what_was_found_is_not_looked_for_again(pointing: Folder, tmp_path: Path) -> None:
    source = str(pointing(15))
    with mock.patch.object(
        presets, "_losses", losses(letters=0.9, general=0.9, natural=0.1, texture=0.1)
    ):
        first = experiment.train(source, out=tmp_path / "run", **TINY)
    with mock.patch.object(presets, "tried", side_effect=AssertionError):
        again = experiment.train(source, out=tmp_path / "run", **TINY)
        assert again.summary == first.summary
        with pytest.raises(ValueError, match="another configuration"):
            experiment.train(source, out=tmp_path / "run", **TINY, preset="texture")


def test_few_images_and_a_preset_that_was_asked_for_are_not_tried(
    pointing: Folder, tmp_path: Path
) -> None:
    with mock.patch.object(presets, "_losses", side_effect=AssertionError):
        run = experiment.train(str(pointing(6)), out=tmp_path / "few", **TINY)
        assert run.summary["preset"] == "general"
        run = experiment.train(str(pointing(15)), out=tmp_path / "set", **TINY, preset="texture")
    assert run.summary["preset"] == "texture"
    assert run.summary["presets_tried"] == {}


def test_a_trial_leaves_nothing_in_the_run(pointing: Folder, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = []
    sessions: list[Session] = []
    true = presets._losses

    def watched(session: Session, *given: object) -> Tensor:
        sessions.append(session)
        return true(session, *given)  # type: ignore[arg-type]

    with mock.patch.object(presets, "_losses", watched):
        experiment.train(str(pointing(15)), out=tmp_path / "run", **TINY, on_row=rows.append)
    assert len(sessions) >= len(presets.TRIED)
    assert all(session.folder is None for session in sessions)
    assert "presets" not in {row["stage"] for row in rows}


@pytest.mark.parametrize(("recipe", "least"), [("best", True), ("fast", False)])
def test_a_short_trial_averages_what_it_learned(
    pointing: Folder, tmp_path: Path, recipe: str, least: bool
) -> None:
    """An average over as many steps as the whole run's would hold first weights, little else."""
    shorts: list[DownstreamConfig] = []
    true = stages.in_folds

    def watched(
        fitted: Any, images: ImageSet, config: DownstreamConfig, held: Tensor, stage: str
    ) -> Any:
        shorts.append(config)
        return true(fitted, images, config.model_copy(update={"steps": 1}), held, stage)

    changes = {"recipe": recipe, "downstream__steps": 200, "network__columns": ["plain"]}
    with (
        mock.patch.object(stages, "in_folds", watched),
        mock.patch.object(experiment, "_carry_out", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        experiment.train(str(pointing(12)), out=tmp_path / "run", **TINY | changes)
    first, usual = shorts[0], RECIPES[recipe].config.downstream.ema
    assert first.steps is not None
    assert first.ema**first.steps <= presets.LEFT + 1e-6
    assert (first.ema < usual) == least

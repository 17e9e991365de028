from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from handful.config import RunConfig, ViewsConfig, parse
from handful.images import ImageSet
from handful.recipes import (
    FEWEST_LESSONS,
    FEWEST_VIEWS,
    MILD_DIGITS,
    MILD_GENERAL,
    MOST_LESSONS,
    MOST_VIEWS,
    PRESETS,
    RECIPES,
    RICH_DIGITS,
    RICH_GENERAL,
    ink_on_black,
    laid_over,
    recipe_for,
    sized,
    suited,
)
from handful.views import EXPANSION

every_recipe = pytest.mark.parametrize("name", RECIPES)


def fitted(config: RunConfig, images: ImageSet) -> RunConfig:
    """As a run fits its configuration to its images."""
    return sized(suited(config, images), len(images), len(images))


@pytest.fixture(scope="module")
def photos() -> ImageSet:
    """40 colour pictures of nothing."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (40, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return ImageSet.of(pixels, torch.arange(40) % 4, "abcd")


@every_recipe
def test_a_recipe_is_a_valid_configuration_that_knows_its_name(name: str) -> None:
    config = RECIPES[name].config
    assert parse(config.model_dump()) == config
    assert config.recipe == name
    assert RECIPES[name].summary
    assert RECIPES[name].command.startswith("handful train ")


@every_recipe
def test_a_digit_stays_a_digit_in_every_recipe(name: str, few: ImageSet) -> None:
    """Mirrored or turned far, a digit is another digit or none (a 6 is a 9)."""
    config = fitted(RECIPES[name].config, few)
    assert config.preset == "digits"
    for views in (config.pretext.views, config.downstream.views, EXPANSION):
        assert not views.flip
        assert views.rotation <= 30
        assert views.shear <= 0.5
        assert views.keep_ink


@every_recipe
def test_sizing_leaves_nothing_open_that_training_needs(name: str, few: ImageSet) -> None:
    config = fitted(RECIPES[name].config, few)
    if RECIPES[name].config.pretext.steps == 0:  # a recipe without a pretext task stays without
        assert config.pretext.steps == 0
    else:
        assert config.pretext.steps
    assert config.downstream.steps
    assert config.preset != "auto"
    assert fitted(RECIPES[name].config, few) == config
    assert fitted(config, few) == config


def test_an_ensemble_is_of_such_networks_as_the_best_one() -> None:
    best, ensemble = RECIPES["best"].config, RECIPES["ensemble"].config
    views = {f"downstream.views.{name}" for name in ("elastic", "stroke", "cutout")}
    assert best.differences(ensemble).keys() == {"recipe", "members", "network.columns", *views}
    assert ensemble.members > best.members == 1
    assert len(set(ensemble.network.columns)) == len(ensemble.network.columns) > 1
    # nothing is held out to calibrate by, and there is no contrast that a control could lack
    assert best.data.validation == 0
    assert not best.contrasts


def test_sizing_never_overrules_a_number_that_was_given(few: ImageSet) -> None:
    asked = RECIPES["standard"].config.updated({"pretext.steps": 0, "downstream.steps": 3})
    config = sized(asked, len(few), len(few))
    assert (config.pretext.steps, config.downstream.steps) == (0, 3)


@given(st.integers(2, 100_000), st.integers(2, 512), st.integers(1, 512))
def test_length_follows_the_number_of_images_between_floor_and_ceiling(
    seen: int, pretext_batch: int, batch: int
) -> None:
    batches = {"pretext.batch_size": pretext_batch, "downstream.batch_size": batch}
    config = sized(RECIPES["standard"].config.updated(batches), 40, seen)
    assert config.pretext.steps is not None
    assert config.downstream.steps is not None
    # batches of an epoch are nearly equal: n / ceil(n / batch size) images each
    per_step = Fraction(2 * seen, -(-seen // pretext_batch))
    views = config.pretext.steps * per_step
    assert FEWEST_VIEWS - per_step - 2 < views <= MOST_VIEWS
    lesson = Fraction(40, -(-40 // batch))
    lessons = config.downstream.steps * lesson
    assert FEWEST_LESSONS - lesson - 1 < lessons <= MOST_LESSONS


def test_more_images_mean_a_longer_pretext_task() -> None:
    steps = [
        sized(RECIPES["standard"].config, 40, seen).pretext.steps or 0
        for seen in (128, 512, 1024, 2048)
    ]
    assert steps == sorted(set(steps))


def test_photographs_get_views_for_photographs(photos: ImageSet) -> None:
    config = fitted(RECIPES["standard"].config, photos)
    assert config.preset == "general"
    assert config.pretext.views == RICH_GENERAL
    assert config.downstream.views == MILD_GENERAL


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_brings_its_views(preset: str, few: ImageSet, photos: ImageSet) -> None:
    for images in (few, photos):
        asked = RECIPES["standard"].config.updated({"preset": preset})
        config = suited(asked, images, {"preset"})
        assert (config.pretext.views, config.downstream.views) == PRESETS[preset]


def test_letters_are_not_mirrored_and_textures_lie_anyhow() -> None:
    for name, (rich, mild) in PRESETS.items():
        mirrored = {views.flip or views.symmetries for views in (rich, mild)}
        assert mirrored == {name not in ("digits", "letters")}
        assert {rich.symmetries, mild.symmetries} == {name in ("texture", "microscopy")}
        assert {rich.keep_ink, mild.keep_ink} == {name == "digits"}


def test_digits_get_views_for_digits(few: ImageSet) -> None:
    config = fitted(RECIPES["standard"].config, few)
    assert config.pretext.views == RICH_DIGITS
    assert config.downstream.views == MILD_DIGITS


@every_recipe
def test_every_recipe_looks_at_images_that_are_not_its_own(
    name: str, photos: ImageSet, few: ImageSet
) -> None:
    config = recipe_for("photos/", name)
    assert fitted(config, photos).preset == "general"
    assert fitted(config, photos).pretext.views == RICH_GENERAL
    assert fitted(config, photos).downstream.views == MILD_GENERAL
    assert fitted(config, few).preset == "digits"
    bundled = recipe_for("mnist50", name)
    for stage in ("pretext", "downstream"):
        views, known = (getattr(fitted(one, few), stage).views for one in (config, bundled))
        assert views == known == getattr(config, stage).views


def test_a_preset_that_was_asked_for_stands(photos: ImageSet, few: ImageSet) -> None:
    digits = suited(RECIPES["standard"].config.updated({"preset": "digits"}), photos, {"preset"})
    assert digits.pretext.views == RICH_DIGITS
    general = suited(RECIPES["standard"].config.updated({"preset": "general"}), few, {"preset"})
    assert general.pretext.views == RICH_GENERAL


def test_one_view_that_somebody_set_leaves_the_others_to_the_preset(photos: ImageSet) -> None:
    asked = {"pretext.views.elastic": 0.01, "pretext.views.flip": False}
    config = suited(RECIPES["standard"].config.updated(asked), photos, asked)
    expected = RICH_GENERAL.model_copy(update={"elastic": 0.01, "flip": False})
    assert config.pretext.views == expected
    assert config.downstream.views == MILD_GENERAL
    # what was fitted stays: a run's config.toml repeats it
    assert suited(config, photos) == config


def test_a_recipe_with_views_of_its_own_keeps_what_somebody_set(photos: ImageSet) -> None:
    asked = {"downstream.views.stroke": 0.3}
    config = suited(RECIPES["ensemble"].config.updated(asked), photos, asked)
    assert config.downstream.views == MILD_GENERAL.model_copy(update={"stroke": 0.3})
    assert suited(config, photos) == config


def test_views_of_ones_own_stay_without_anyone_saying_so(photos: ImageSet) -> None:
    asked = RECIPES["standard"].config.updated({"pretext.views.rotation": 1.0})
    expected = RICH_GENERAL.model_copy(update={"rotation": 1.0})
    assert suited(asked, photos).pretext.views == expected


def test_no_photograph_is_set_upright(few: ImageSet) -> None:
    ensemble = RECIPES["ensemble"].config
    assert suited(ensemble, few).network == ensemble.network
    photos = suited(ensemble.updated({"preset": "general"}), few, {"preset"})
    assert photos.network.columns == ("harmonic", "harmonic", "plain")
    chosen = {"preset": "general", "network.columns": ["upright"]}
    assert suited(ensemble.updated(chosen), few, chosen.keys()).network.columns == ("upright",)


def test_general_views_do_not_take_the_frame_for_ink() -> None:
    """A photograph is all ink: to keep it in the frame would only ever shrink it."""
    assert not RICH_GENERAL.keep_ink
    assert not MILD_GENERAL.keep_ink
    assert ViewsConfig().keep_ink


def test_ink_on_black_is_what_mnist_looks_like(few: ImageSet, photos: ImageSet) -> None:
    assert ink_on_black(few)
    assert not ink_on_black(photos)
    assert not ink_on_black(ImageSet.of(few.images.repeat(1, 3, 1, 1)))
    assert not ink_on_black(replace(few, images=255 - few.images))


@pytest.mark.parametrize(
    ("source", "name", "expected"),
    [
        ("mnist50", None, "demo"),
        ("photos/", None, "standard"),
        ("photos/", "demo", "demo"),
        ("mnist50", "course", "course"),
    ],
)
def test_each_source_has_its_recipe(source: str, name: str | None, expected: str) -> None:
    config = recipe_for(source, name)
    assert config.recipe == expected
    assert config.data.source == source
    assert config == RECIPES[expected].config.updated({"data.source": source})


def test_an_unknown_recipe_suggests_a_near_one() -> None:
    with pytest.raises(ValueError, match=r"unknown recipe dmeo: did you mean demo\?"):
        recipe_for("mnist50", "dmeo")


def test_an_unknown_recipe_that_is_near_to_none_lists_them() -> None:
    with pytest.raises(ValueError, match="unknown recipe zzz: there are") as caught:
        recipe_for("mnist50", "zzz")
    assert all(name in str(caught.value) for name in RECIPES)


def test_the_course_divides_forty_to_ten_and_makes_ten_copies() -> None:
    config: RunConfig = RECIPES["course"].config
    assert config.data.copies == 10
    assert config.data.validation == 0.2
    assert not config.downstream.refit
    assert config.tsne


def test_drawn_weights_that_nothing_taught_are_trained_at_the_full_rate() -> None:
    usual = RECIPES["standard"].config.downstream.encoder_rate
    assert usual < 1
    none = {"pretext.steps": 0}
    assert laid_over(recipe_for("photos"), none).downstream.encoder_rate == 1.0
    assert laid_over(recipe_for("photos"), {}).downstream.encoder_rate == usual
    said = none | {"downstream.encoder_rate": 0.5}
    assert laid_over(recipe_for("photos"), said).downstream.encoder_rate == 0.5
    given = none | {"network.encoder": "timm:resnet18", "network.weights": "w.safetensors"}
    assert laid_over(recipe_for("photos"), given).downstream.encoder_rate == 0.1

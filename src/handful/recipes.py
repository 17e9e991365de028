"""Named recipes: what each is for, what it costs and what it reached.

Constants were tuned with `--dev` on draws 0-19 alone; reached figures are of the test set, from
draws that no tuning saw (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from handful.config import (
    TIMM,
    Column,
    DataConfig,
    DownstreamConfig,
    NetworkConfig,
    PretextConfig,
    RunConfig,
    ViewsConfig,
    assignment,
    flat,
    read_toml,
)

if TYPE_CHECKING:
    from handful.images import ImageSet


class Recipe(NamedTuple):
    summary: str
    command: str
    cost: str
    reaches: str
    config: RunConfig


MILD_DIGITS = ViewsConfig()
RICH_DIGITS = ViewsConfig(
    rotation=22.0,
    translation=0.12,
    scale=0.22,
    shear=0.3,
    elastic=0.036,
    stroke=0.7,
    blur=0.5,
    gamma=0.5,
    cutout=0.32,
)
"""Views that change the pen as well as the place: a representation must then be of the digit."""
MILD_GENERAL = ViewsConfig(
    rotation=10.0, scale=0.2, shear=0.1, contrast=0.2, flip=True, keep_ink=False
)
RICH_GENERAL = ViewsConfig(
    rotation=15.0,
    translation=0.15,
    scale=0.35,
    shear=0.15,
    blur=0.7,
    contrast=0.5,
    cutout=0.3,
    flip=True,
    keep_ink=False,
)
MILD_LETTERS = MILD_GENERAL.model_copy(
    update={"flip": False, "shear": 0.2, "contrast": 0.5, "hue": 0.2, "grey": 0.2}
)
RICH_LETTERS = RICH_GENERAL.model_copy(
    update={"flip": False, "shear": 0.25, "elastic": 0.02, "contrast": 0.6, "saturation": 0.6,
            "hue": 0.5, "grey": 0.2}
)  # fmt: skip
"""A letter is the same in any colour: in two that vary, without this hardly any is learned."""
MILD_NATURAL = ViewsConfig(
    rotation=0.0, translation=0.0, scale=0.0, shear=0.0, crop=0.5, contrast=0.2, flip=True,
    keep_ink=False,
)  # fmt: skip
RICH_NATURAL = MILD_NATURAL.model_copy(
    update={"crop": 0.8, "contrast": 0.6, "saturation": 0.6, "hue": 0.1, "grey": 0.2, "blur": 0.9}
)
"""SimCLR's for photographs (Chen et al. 2020, appendix A), a little milder: images are small."""
MILD_TEXTURE = MILD_NATURAL.model_copy(update={"flip": False, "symmetries": True})
RICH_TEXTURE = RICH_NATURAL.model_copy(
    update={"crop": 0.7, "contrast": 0.4, "saturation": 0.3, "hue": 0.03, "grey": 0.0, "blur": 0.5,
            "flip": False, "symmetries": True}
)  # fmt: skip
MILD_MICROSCOPY = ViewsConfig(
    rotation=15.0, translation=0.1, scale=0.1, shear=0.0, contrast=0.15, symmetries=True,
    keep_ink=False,
)  # fmt: skip
RICH_MICROSCOPY = MILD_MICROSCOPY.model_copy(
    update={"rotation": 45.0, "scale": 0.2, "shear": 0.1, "elastic": 0.02, "contrast": 0.4,
            "saturation": 0.3, "hue": 0.05, "blur": 0.7, "cutout": 0.25}
)  # fmt: skip
"""Sizes mean something there: hardly any is changed."""
PRESETS = {
    "digits": (RICH_DIGITS, MILD_DIGITS),
    "letters": (RICH_LETTERS, MILD_LETTERS),
    "general": (RICH_GENERAL, MILD_GENERAL),
    "natural": (RICH_NATURAL, MILD_NATURAL),
    "texture": (RICH_TEXTURE, MILD_TEXTURE),
    "microscopy": (RICH_MICROSCOPY, MILD_MICROSCOPY),
}
"""Views of the pretext task, and of the classifier, that fit a kind of images."""

LITTLE_SMOOTHING = 0.02
"""Label smoothing where nothing is held out to calibrate by. Probabilities of digits are then too
modest by about four points from 50 labels a class and six or seven from 10; with the usual 0.1 by
twelve from 50."""
BEST = RunConfig(
    recipe="best",
    tsne=False,
    test_views=16,
    data=DataConfig(validation=0.0),
    network=NetworkConfig(width=24),
    # with views that weaken no contrast measurably earned its images. Batches and decay were
    # chosen by draws 0 and 1; what twenty say of them is close to nothing: docs/ablation.md
    pretext=PretextConfig(steps=0, views=RICH_DIGITS),
    downstream=DownstreamConfig(
        steps=1920,
        batch_size=63,
        weight_decay=0.5,
        label_smoothing=LITTLE_SMOOTHING,
        ema=0.99,
        views=MILD_DIGITS,
        curriculum=1.0,
    ),
)
LIVELY_DIGITS = MILD_DIGITS.model_copy(update={"elastic": 0.016, "stroke": 0.3, "cutout": 0.12})
"""Views that still change the pen a little, for `ensemble`: they lie between two lists of which
development draws 0-9 chose either over MILD_DIGITS (docs/results.md)."""
COLUMNS: tuple[Column, ...] = ("upright_harmonic", "harmonic", "upright")

POOL = BEST.updated(
    {
        "recipe": "pool",
        "data.unlabelled": True,
        "pretext.steps": 2350,  # ten times all images of MNIST
        "pretext.cache": True,
        "downstream.pseudo_labels": True,
        "downstream.steps": 1600,
        "downstream.batch_size": 125,
        "downstream.weight_decay": 0.05,
        "downstream.label_smoothing": 0.0,  # a few labels that spread are wrong: that smooths
        "downstream.folds": 2,
        "downstream.fold_share": 0.25,  # cut short, and yet hardly less sure: docs/confidence.md
    }
)

RECIPES: dict[str, Recipe] = {
    "demo": Recipe(
        summary="50 MNIST digits per class: pretext task, classifier, control, full report",
        command="handful train mnist50",
        cost="about 3.5 min on two CPU cores, control and report included",
        reaches="98.68 % of MNIST's test images, mean of draws 100-104 (worst 98.47)",
        config=RunConfig(
            recipe="demo",
            control=True,
            test_views=8,
            pretext=PretextConfig(loss="sup_con", steps=160, batch_size=125, views=RICH_DIGITS),
            downstream=DownstreamConfig(
                steps=640, patience=25, ema=0.97, views=MILD_DIGITS, curriculum=1.0
            ),
        ),
    ),
    "fast": Recipe(
        summary="the same without control and maps, for a fixed length: a classifier at once",
        command="handful train mnist50 --recipe fast",
        cost="about 40 s on two CPU cores",
        reaches="98.38 % of MNIST's test images, mean of draws 100-104 (worst 98.18)",
        config=RunConfig(
            recipe="fast",
            tsne=False,
            test_views=4,
            data=DataConfig(validation=0.0),
            pretext=PretextConfig(loss="sup_con", steps=80, batch_size=125, views=RICH_DIGITS),
            downstream=DownstreamConfig(
                steps=320,
                label_smoothing=LITTLE_SMOOTHING,
                ema=0.95,
                views=MILD_DIGITS,
                curriculum=1.0,
            ),
        ),
    ),
    "course": Recipe(
        summary="the course project's protocol: 40 and 10 per class, ten copies of each image, "
        "SimCLR on the copies, fine-tuning with early stopping on the originals held out",
        command="handful train mnist50 --recipe course",
        cost="about 9 min on two CPU cores, control and report included",
        reaches="98.61 % of MNIST's test images, mean of five splits (worst 98.41)",
        config=RunConfig(
            recipe="course",
            control=True,
            test_views=16,
            data=DataConfig(copies=10),
            network=NetworkConfig(width=24),
            pretext=PretextConfig(steps=300, batch_size=128, views=RICH_DIGITS),
            downstream=DownstreamConfig(
                steps=1000,
                patience=25,
                refit=False,
                ema=0.97,
                views=MILD_DIGITS,
                curriculum=1.0,
            ),
        ),
    ),
    "best": Recipe(
        summary="one wider network, all its time on labels: cross-entropy, views that weaken",
        command="handful train mnist50 --recipe best",
        cost="about 1 min on two CPU cores with AVX-512, about 3 min without",
        reaches="98.99 % of MNIST's test images, mean of draws 100-109 (worst 98.74); "
        "from 10 labels a class 97.26 %",
        config=BEST,
    ),
    "ensemble": Recipe(
        summary="the mean of four networks such as the one of best that look in three other ways",
        command="handful train mnist50 --recipe ensemble",
        cost="about 13 min on two CPU cores without AVX-512",
        reaches="99.03 % of MNIST's test images, mean of draws 100-104 (worst 98.83)",
        config=BEST.updated(
            {
                "recipe": "ensemble",
                "members": 4,
                "network.columns": COLUMNS,
                "downstream.views": LIVELY_DIGITS.model_dump(),
            }
        ),
    ),
    "pool": Recipe(
        summary="many images, few labels: SimCLR on all, labels that spread, a classifier of both",
        command="handful train DIR --per-class 10 --unlabelled --recipe pool",
        cost="3 to 5 min on two CPU cores with AVX-512, and once for all draws of MNIST's 60,000 "
        "images 13 min for the pretext task; on an NVIDIA H200 50 s with it",
        reaches="97.46 % of MNIST's test images from 1 label a class, 99.33 % from 10 and "
        "99.39 % from 50 (worst 99.36), means of draws 100-102",
        config=POOL,
    ),
    "standard": Recipe(
        summary="your own images: sized to them, without a control unless you ask",
        command="handful train photos/",
        cost="says so before it starts; a few minutes for some hundred small images",
        reaches="depends on the images: the report says, with an interval",
        config=RunConfig(
            recipe="standard",
            pretext=PretextConfig(loss="sup_con", batch_size=128, views=RICH_DIGITS),
            downstream=DownstreamConfig(encoder_rate=0.3, ema=0.95, views=MILD_DIGITS),
        ),
    ),
}


def recipe_for(source: str, name: str | None = None) -> RunConfig:
    """The configuration of a recipe for a source; `demo` for mnist50, else `standard`, by default.

    Raises ValueError where there is no recipe of that name.
    """
    name = name or ("demo" if source == "mnist50" else "standard")
    if name not in RECIPES:
        near = get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(RECIPES)}"
        raise ValueError(f"unknown recipe {name}: {hint}")
    return RECIPES[name].config.updated({"data.source": source})


GENTLE = {"downstream.encoder_rate": 0.1, "pretext.learning_rate": 3e-4}
"""Where weights are given, training shall not lose what they know before its heads know anything.
A tenth is custom; nothing here was measured."""


def laid_over(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """A recipe with what somebody set, and what goes with an encoder of timm.

    changes: by dotted keys. Of a dictionary, such as `{"downstream": {"steps": 7}}`, what it names
    is set and the rest stays as the recipe has it; a model, such as DownstreamConfig(steps=7), sets
    all that it has.
    Raises ValueError as `RunConfig.updated` does.
    """
    asked = flat(changes)
    fitting: dict[str, Any] = {}
    if str(asked.get("network.encoder")).startswith(TIMM):
        fitting["network.columns"] = [
            column.replace("upright_harmonic", "upright").replace("harmonic", "plain")
            for column in config.network.columns
        ]
    if asked.get("network.weights") is not None:
        fitting |= GENTLE
    elif asked.get("pretext.steps") == 0:  # drawn weights know nothing that a low rate would spare
        fitting["downstream.encoder_rate"] = 1.0
    return config.updated({**fitting, **asked})


def compose(
    source: str,
    recipe: str | None,
    file: Path | None,
    options: Mapping[str, Any],
    assignments: Sequence[str],
) -> tuple[RunConfig, frozenset[str]]:
    """The configuration that a command line asks for, and the dotted keys that somebody set.

    The recipe, over it `file`, over that the options (dotted keys), over that each --set. A file
    with every setting, such as a run's config.toml, stands alone: what it leaves out is unset.
    """
    laid = flat(read_toml(file)) if file else {}
    named = laid.get("recipe")
    if recipe and named and recipe != named:
        raise ValueError(f"--recipe {recipe} contradicts recipe = {named} in {file}: leave one out")
    complete = flat(RunConfig().model_dump(exclude_none=True)).keys() <= laid.keys()
    base = RunConfig() if complete else recipe_for(source, recipe or (named and str(named)))
    given = dict(map(assignment, assignments))
    changes = {**laid, "data.source": source, **options, **given}
    config = laid_over(base, changes)
    if options.get("control") and not config.contrasts:
        raise ValueError(
            "--control is the run without its contrast, of which pretext.steps = 0 leaves nothing: "
            "drop one of them"
        )
    return config, frozenset(flat(changes))


def suited(config: RunConfig, images: ImageSet, chosen: Collection[str] = ()) -> RunConfig:
    """The same configuration with the kind of views that fits the images.

    Recipes have views for digits. Others get those of their preset instead, field by field: not
    where a field has another value than in the recipe (of a name that is none, in `standard`), nor
    where its dotted key is among `chosen`, those that somebody set. A preset that stands and that
    nobody chose was applied before.
    """
    if config.preset == "auto":
        config = config.updated({"preset": "digits" if ink_on_black(images) else "general"})
    elif "preset" not in chosen:
        return config
    if config.preset == "digits":
        return config
    changes = {}
    own = RECIPES.get(config.recipe, RECIPES["standard"]).config
    rich, mild = PRESETS[config.preset]
    for stage, views, usual, wanted in (
        ("pretext", config.pretext.views, own.pretext.views, rich),
        ("downstream", config.downstream.views, own.downstream.views, mild),
    ):
        for name, value in wanted:
            key = f"{stage}.views.{name}"
            if getattr(views, name) == getattr(usual, name) and key not in chosen:
                changes[key] = value
    if "network.columns" not in chosen:  # what no pen wrote has no slant
        changes["network.columns"] = [
            "harmonic" if "harmonic" in column else "plain" for column in config.network.columns
        ]
    return config.updated(changes)


FEWEST_VIEWS, MOST_VIEWS, VIEWS_PER_IMAGE = 60_000, 800_000, 240
FEWEST_LESSONS, MOST_LESSONS, LESSONS_PER_IMAGE = 30_000, 300_000, 125


def sized(config: RunConfig, labelled: int, seen: int) -> RunConfig:
    """The same configuration with every length that was left open fitted to the data.

    labelled: how many images train the classifier. seen: how many the pretext task has.
    Lengths grow with the number of images between a floor, below which nothing is learned, and a
    ceiling of patience.
    """
    changes = {}
    if config.pretext.steps is None:
        views = min(max(seen * VIEWS_PER_IMAGE, FEWEST_VIEWS), MOST_VIEWS)
        changes["pretext.steps"] = _steps(views // 2, seen, config.pretext.batch_size)
    if config.downstream.steps is None:
        lessons = min(max(labelled * LESSONS_PER_IMAGE, FEWEST_LESSONS), MOST_LESSONS)
        changes["downstream.steps"] = _steps(lessons, labelled, config.downstream.batch_size)
    return config.updated(changes)


def _steps(total: int, n: int, batch_size: int) -> int:
    """Steps that `total` images make, n of them in each epoch of nearly equal batches."""
    batches = -(-n // batch_size)
    return max(1, total * batches // max(1, n))


def ink_on_black(images: ImageSet) -> bool:
    """Whether images are light strokes on black, as MNIST: grey, and their frame is empty."""
    if images.channels != 1:
        return False
    x = images.images
    frame = [x[..., 0, :], x[..., -1, :], x[..., :, 0], x[..., :, -1]]
    black = sum(float((side == 0).float().mean()) for side in frame) / len(frame)
    return black > 0.95

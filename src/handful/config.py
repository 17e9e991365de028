"""What a run does, as frozen values: one model per stage, TOML in and out.

No torch here: `handful --help` and every mistake in a command line cost no import of it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Fraction = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Column = Literal["plain", "upright", "harmonic", "upright_harmonic"]

SURE = 0.95
"""Probability from which on an image is not looked at again in further views."""


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


TIMM = "timm:"
"""What the name of an encoder of the library timm begins with."""
HUB = "hub:"
"""What the name of a Hugging Face data set begins with, as a source."""


def name_of(source: str) -> str:
    """What the folders of a source's runs begin with."""
    if source.startswith(HUB):
        return re.sub(r"[^\w.-]+", "-", source.removeprefix(HUB))
    return source if source == "mnist50" else Path(source).resolve().name or "images"


class DataConfig(Frozen):
    """Which images, which of them are labelled, and what is held out."""

    source: str = "mnist50"
    """`mnist50`, or a folder, table, file of arrays or archive, as `handful train --help` says."""
    per_class: Count | None = None
    """Labelled images per class; None takes every label there is."""
    draw: Annotated[int, Field(ge=0)] | None = None
    """Which images those are; None takes the first of each class."""
    unlabelled: bool = False
    """Let the remaining training images join the pretext task without their labels."""
    pool: str | None = None
    """More images without labels, in what a source may be: they join the pretext task."""
    dev: bool = False
    """Draw from training images 0-49,999, score on 50,000-59,999, leave the test file shut."""
    holdout: Fraction = 0.2
    """Share of the labelled sources held out as a test split where nothing else can be one."""
    validation: Fraction = 0.2
    """Share of the labelled sources that chooses the length of training; 0 fixes the length.

    A source's own validation images take the place of the share; with 0 they train like others.
    """
    split_seed: Annotated[int, Field(ge=0)] = 0
    """Which sources are held out."""
    copies: Annotated[int, Field(ge=0)] = 0
    """Rotated and shifted copies made of each training image before anything else."""
    size: Annotated[int, Field(ge=8, le=512)] | None = None
    """Images of a folder are brought to size × size pixels; None chooses from the files."""
    prepare: Literal["auto", "digits", "letterbox", "crop"] = "auto"
    """How pictures become arrays: centred as MNIST was, scaled whole into the frame or cut."""
    strict: bool = False
    """Refuse a source in which something is amiss, instead of listing it and going on."""


class ViewsConfig(Frozen):
    """How strongly a view may differ from its image. Every parameter is drawn per image."""

    rotation: Annotated[float, Field(ge=0, le=180)] = 15.0
    """Largest angle, in degrees either way."""
    translation: Fraction = 0.1
    """Largest shift, as a share of the image's side."""
    scale: NotNegative = 0.15
    """Largest change of size, natural logarithm, on each axis."""
    shear: NotNegative = 0.2
    """Largest shear, as a tangent."""
    crop: Fraction = 0.0
    """Largest share of the area that is cut away; what is left fills the frame (in SimCLR 0.92)."""
    elastic: Fraction = 0.0
    """Standard deviation of the smooth displacement field, as a share of the image's side."""
    elastic_cells: Annotated[int, Field(ge=2, le=64)] = 5
    """Knots of that field along each side: fewer bend more smoothly."""
    stroke: Fraction = 0.0
    """Largest blend with the 3 × 3 dilation or erosion: thicker or thinner strokes."""
    blur: Fraction = 0.0
    """Largest blend with a 3 × 3 binomial blur."""
    gamma: NotNegative = 0.0
    """Largest change of the exponent of intensity, natural logarithm."""
    contrast: Fraction = 0.0
    """Largest change of contrast and of brightness, either way."""
    saturation: Fraction = 0.0
    """Largest change of how colourful an image is, either way."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest turn of all colours, either way, as a share of the circle."""
    grey: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the views that have no colour."""
    cutout: Fraction = 0.0
    """Side of a square that is blanked, as a share of the image's side: with `keep_ink` black, else
    in the image's mean colour."""
    flip: bool = False
    """Mirror left and right, each image with probability one half. Never for digits."""
    symmetries: bool = False
    """Turn by quarters and mirror, all eight ways alike: for what has no upper side."""
    keep_ink: bool = True
    """Limit shift and size per image so that its ink (all that is not black) stays in the frame."""

    def towards(self, other: ViewsConfig, share: float) -> ViewsConfig:
        """Strengths on the way to `other`: 0 is this one, 1 the other, whose choices count."""
        mixed = {
            name: start + share * (end - start)
            for (name, end), (_, start) in zip(other, self, strict=True)
            if isinstance(end, float)
        }
        return other.model_copy(update=mixed)


class NetworkConfig(Frozen):
    """Encoder f and projection head g."""

    encoder: str = "convnet"
    """`convnet`, handful's own, which the next settings describe; or `timm:NAME`, an architecture
    of the library timm, from small ones such as resnet18 on."""
    weights: str | None = None
    """A .safetensors file of weights for that architecture, with which all members begin; None
    draws them."""
    width: Annotated[int, Field(ge=4, le=512)] = 16
    """Channels at full size; four times as many at half of it, then twice as many each time."""
    columns: Annotated[tuple[Column, ...], Field(min_length=1)] = ("plain",)
    """How members look at images, each the next in turn. `upright`: centred, their slant taken out.
    `harmonic`: first filters are mixed of cosines (Ulicny et al. 2019) instead of learned freely.
    Networks that look in several ways err less alike (Cireşan et al. 2012)."""
    stages: Annotated[int, Field(ge=1, le=6)] | None = None
    """Sizes at which convolutions look at an image; None fits them to it."""
    head_layers: Literal[2, 3] = 2
    """Layers of the projection head: two as in SimCLR, three as in SimCLRv2."""
    head_hidden: Count = 256
    head_dim: Count = 128


class PretextConfig(Frozen):
    """The contrastive stage before any classifier: self-supervised, or with labels (`sup_con`)."""

    loss: Literal["nt_xent", "sup_con"] = "nt_xent"
    """`nt_xent` sees no label; `sup_con` (Khosla et al. 2020) also draws a class together."""
    temperature: Positive = 0.5
    steps: Annotated[int, Field(ge=0)] | None = None
    """Optimiser steps; 0 leaves the pretext task out, None sizes it to the data."""
    batch_size: Annotated[int, Field(ge=2)] = 256
    """Images per step; each gives two views."""
    optimizer: Literal["adamw", "lars"] = "adamw"
    """LARS adapts each layer's step and wants a learning rate near 1."""
    learning_rate: Positive = 3e-3
    weight_decay: NotNegative = 0.05
    warmup: Fraction = 0.1
    """Share of the steps over which the learning rate rises; a cosine brings it down again."""
    ema: Fraction = 0.0
    """Decay of an exponential moving average of the weights; 0 keeps the weights themselves."""
    cache: bool = False
    """Keep what was trained, and take it from there where all that made it is the same again."""
    views: ViewsConfig = ViewsConfig()


class DownstreamConfig(Frozen):
    """The classifier on the encoder: a linear probe or fine-tuning, the same loop."""

    train_encoder: bool = True
    """False freezes the encoder: a linear probe."""
    steps: Count | None = None
    """Most optimiser steps; None sizes them to the data."""
    batch_size: Annotated[int, Field(ge=1)] = 125
    optimizer: Literal["adamw", "lars"] = "adamw"
    learning_rate: Positive = 3e-3
    encoder_rate: Positive = 1.0
    """Learning rate of the encoder as a multiple of the head's."""
    weight_decay: NotNegative = 0.05
    warmup: Fraction = 0.1
    label_smoothing: Fraction = 0.1
    contrast: NotNegative = 0.0
    """Weight of SupCon beside cross-entropy, on two views of each image: one stage for both."""
    temperature: Positive = 0.3
    """Of that contrast."""
    ema: Fraction = 0.0
    checks: Count = 25
    """How often validation is measured over the whole length."""
    patience: Count = 8
    """Checks in a row that validation finds worse than the best, after which training stops."""
    refit: bool = True
    """Train once more on all labels for the length that validation chose."""
    pseudo_labels: bool = False
    """Where there are unlabelled images: learn from these as well, with labels that spread to them
    along their neighbours in h."""
    folds: Annotated[int, Field(ge=0, le=50)] = 0
    """Where nothing is held out for validation: parts of the labelled images, each answered by a
    network that learned from the others, and from the pool what spreads from those. These answers
    calibrate, and say when to abstain. Of one image a class none can be held out: probabilities
    are then what suited other runs, where labels spread, or as they are."""
    fold_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of the steps, for which each of those networks is trained. One that is cut short is less sure
    of itself, and calibrates the other to be too sure."""
    views: ViewsConfig = ViewsConfig()
    curriculum: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the steps over which views weaken from those of the pretext task to these."""

    @property
    def contrasts(self) -> bool:
        """Whether the contrast has anything to move."""
        return self.contrast > 0 and self.train_encoder


class RunConfig(Frozen):
    """All that is needed to repeat a run."""

    recipe: str = "demo"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the networks train in; `auto` takes bfloat16 on a GPU that has it, else float32."""
    members: Annotated[int, Field(ge=1, le=64)] = 1
    """Networks trained from first weights of their own, whose logits are averaged."""
    control: bool = False
    """Also train the same network by cross-entropy alone, no contrast, for as many images."""
    tsne: bool = True
    """Draw maps of the representation before and after training."""
    test_views: Annotated[int, Field(ge=1, le=64)] = 1
    """Mild views that a prediction averages where the image alone leaves a doubt; 1 makes none."""
    preset: Literal["auto", "digits", "letters", "general", "natural", "texture", "microscopy"] = (
        "auto"
    )
    """Kind of views that fit the images: for `letters` none is mirrored, `natural` has SimCLR's for
    photographs, `texture` and `microscopy` all eight symmetries. `auto` looks whether they are
    digits; else `train` tries four kinds on labelled images (`general` where those are too few, or
    where no kind teaches anything), while estimators and `audit` take `general` ones."""
    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    pretext: PretextConfig = PretextConfig()
    downstream: DownstreamConfig = DownstreamConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.data.dev and self.data.source == "mnist50":
            raise ValueError("--dev needs the full training set: give a directory of idx files")
        if self.members < len(self.network.columns):
            raise ValueError(
                f"network.columns has {len(self.network.columns)} columns for members = "
                f"{self.members}: leave some out, or raise members"
            )
        self._check_encoder()
        if self.members > 1 and self.data.validation:
            raise ValueError(
                f"members = {self.members} needs data.validation = 0 and a fixed length: "
                "nothing is held out that could choose one for all"
            )
        if self.members > 1 and self.downstream.folds:
            raise ValueError(
                f"members = {self.members} needs downstream.folds = 0: nothing calibrates several"
            )
        if self.downstream.folds and self.pretext.steps != 0 and self.pretext.loss == "sup_con":
            raise ValueError(
                f"downstream.folds = {self.downstream.folds} needs a pretext task that sees no "
                "label, which sup_con does: set pretext.loss=nt_xent, or pretext.steps=0"
            )
        if self.downstream.pseudo_labels:
            self._check_pseudo_labels()
        if self.downstream.folds == 1:
            raise ValueError("downstream.folds = 1 leaves nothing to learn from: 0, or at least 2")
        if self.data.validation == 0 and self.downstream.steps is None:
            raise ValueError("downstream.steps must be set where data.validation is 0")
        return self

    def _check_encoder(self) -> None:
        network = self.network
        if network.encoder != "convnet" and not network.encoder.startswith(TIMM):
            raise ValueError(
                f"network.encoder = {network.encoder}: expected convnet, or {TIMM} and the name of "
                f"one of timm's models, such as {TIMM}resnet18"
            )
        if network.encoder == "convnet" and network.weights is not None:
            raise ValueError(
                f"network.weights = {network.weights} needs an encoder that they fit: set "
                f"network.encoder, for example {TIMM}resnet18"
            )
        if network.encoder != "convnet" and any("harmonic" in c for c in network.columns):
            raise ValueError(
                f"network.encoder = {network.encoder} has first filters of its own: leave harmonic "
                "ones out of network.columns"
            )

    def _check_pseudo_labels(self) -> None:
        if self.data.validation:
            needed = "data.validation = 0 and a fixed length: all labels spread"
        elif self.data.copies:
            needed = "data.copies = 0: copies of an image are each other's neighbours"
        elif self.pretext.steps == 0:
            needed = "a pretext task, in whose representation labels spread"
        else:
            return
        raise ValueError(f"downstream.pseudo_labels = true needs {needed}")

    @property
    def contrasts(self) -> bool:
        """Whether any stage contrasts views: what a control leaves out."""
        return self.pretext.steps != 0 or self.downstream.contrasts

    def to_toml(self) -> str:
        return tomli_w.dumps(self.model_dump(exclude_none=True))

    def updated(self, changes: Mapping[str, Any]) -> RunConfig:
        """A copy with dotted keys replaced: `{"pretext.steps": 50}`.

        Raises ValueError naming the key where it does not exist or its value does not fit.
        """
        tree = self.model_dump()
        for key, value in changes.items():
            *parents, leaf = key.split(".")
            branch: Any = tree
            for name in parents:
                branch = branch.get(name) if isinstance(branch, dict) else None
            if not isinstance(branch, dict) or leaf not in branch:
                raise ValueError(_unknown(key, _keys(self.model_dump())))
            branch[leaf] = value
        return parse(tree)

    def differences(self, other: RunConfig) -> dict[str, tuple[Any, Any]]:
        """Dotted keys whose values differ: ours, theirs. The device is no part of a result."""
        mine, theirs = flat(self.model_dump()), flat(other.model_dump())
        return {
            key: (mine[key], theirs[key])
            for key in mine
            if mine[key] != theirs[key] and key != "device"
        }


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as dotted keys; of a model all that it has."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, BaseModel):
            value = value.model_dump()
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values


def _keys(tree: Mapping[str, Any]) -> list[str]:
    return list(flat(tree))


def _unknown(key: str, known: Sequence[str]) -> str:
    near = get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "see `handful train --help`"
    return f"unknown setting {key}; {hint}"


def parse(tree: Mapping[str, Any]) -> RunConfig:
    """A configuration from nested values. Raises ValueError naming the first key that is off."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ValueError(_unknown(key, _keys(RunConfig().model_dump()))) from None
        message = first["msg"].removeprefix("Value error, ")
        if not key:
            raise ValueError(message) from None
        raise ValueError(f"{key} = {first['input']!r}: {message}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The nested values in a TOML file. Raises ValueError naming the file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None


def load(path: Path) -> RunConfig:
    """The configuration in a TOML file. Raises ValueError naming the file."""
    tree = read_toml(path)
    try:
        return parse(tree)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def assignment(text: str) -> tuple[str, Any]:
    """`key=value` as given to --set; the value is read as TOML, else as plain text."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set {text}: expected key=value, for example pretext.steps=100")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()

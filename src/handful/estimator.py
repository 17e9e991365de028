"""Estimators for scikit-learn: X, y becomes a fitted classifier or a fitted encoder."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.metrics import accuracy_score
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from handful import devices, stages
from handful.checkpoints import Packed
from handful.config import RunConfig, flat
from handful.datasets import Dataset
from handful.images import UNLABELLED, ImageSet
from handful.layouts import Array, Layout, Shape, framed
from handful.optim import OnRow
from handful.pictures import Preparation, is_prepared_digit
from handful.predictor import Predictor
from handful.pretext import pretext_task
from handful.recipes import laid_over, recipe_for
from handful.session import Row, Session, members_of, plan

ELSEWHERE = {
    "recipe": "the parameter recipe says that",
    "seed": "the parameter random_state says that",
    "device": "the parameter device says that",
    "control": "a fit trains no control",
    "tsne": "a fit draws no maps",
    "data.source": "the images are X",
    "data.per_class": "y says which images are labelled",
    "data.draw": "y says which images are labelled",
    "data.unlabelled": "y says which images are labelled",
    "data.pool": "images without a label are those with y == -1",
    "data.dev": "a fit opens no test images",
    "data.holdout": "a fit holds out no test images",
    "data.size": "the images keep the size that they have in X",
    "data.prepare": "the images are X as they are",
    "data.strict": "nothing is read from files",
}
"""Settings that an estimator has no use for, and why."""
WITHOUT_LABELS = {
    "downstream": "an encoder has no classifier",
    "pretext.loss": "without labels it always is nt_xent",
    "data.validation": "without labels nothing is held out",
    "data.copies": "copies are made of images with a label",
    "test_views": "an encoder has no classifier",
}
LEAST_COLOUR = 8
"""Pixels a side from which rows of 3 · side² numbers look like pictures in colour."""


class _Estimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """What both estimators share: how X becomes images, and what was fitted to them."""

    _refused: ClassVar[Mapping[str, str]] = ELSEWHERE
    """Settings that are not taken, and why; one without a dot stands for all that begin with it."""
    _fixed: ClassVar[Mapping[str, Any]] = {}
    """Settings that overrule the recipe."""

    n_features_in_: int
    layout_: Layout
    predictor_: Predictor

    def __init__(
        self,
        recipe: str = "standard",
        *,
        pretext_steps: int | None = None,
        width: int | None = None,
        preset: str | None = None,
        settings: Mapping[str, Any] | None = None,
        image_shape: Shape | None = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: bool = False,
    ) -> None:
        self.recipe = recipe
        self.pretext_steps = pretext_steps
        self.width = width
        self.preset = preset
        self.settings = settings
        self.image_shape = image_shape
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Representations h of images, float32 (N, D)."""
        h: NDArray[np.float32] = self.predictor_.embed(self._known(X))
        return h

    @property
    def _n_features_out(self) -> int:
        return self.predictor_.encoder.dim

    def _options(self) -> dict[str, Any]:
        """What parameters of the constructor say, by dotted key; None leaves it to the recipe."""
        return {
            "pretext.steps": self.pretext_steps,
            "network.width": self.width,
            "preset": self.preset,
        }

    def _config(self) -> tuple[RunConfig, frozenset[str]]:
        """What to train, and the dotted keys that somebody set."""
        options = {key: value for key, value in self._options().items() if value is not None}
        if not isinstance(self.settings, Mapping | None):
            raise ValueError(
                f"settings = {self.settings!r}: expected a dictionary of dotted keys, such as "
                '{"downstream.learning_rate": 1e-3}'
            )
        settings = flat(self.settings or {})
        for key in settings:
            reason = self._refused.get(key) or self._refused.get(key.split(".")[0])
            if reason:
                raise ValueError(f"settings has {key}, which a fit does not take: {reason}")
            if key in options:
                raise ValueError(f"settings has {key}, for which a parameter is set too: drop one")
        changes = {key: _plain(value) for key, value in {**options, **settings}.items()}
        own = {"seed": self._seed(), "device": self.device, "data.holdout": 0.0}
        # a grid of fits would fill the disk with what none takes again
        own["pretext.cache"] = False
        recipe = recipe_for("arrays", str(self.recipe))
        config = laid_over(recipe, {**self._fixed, **own, **changes})
        return config, frozenset(changes)

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _session(self, dataset: Dataset, on_row: OnRow | None) -> Session:
        config, chosen = self._config()
        device = devices.choose(config.device)
        config, parts = plan(config, dataset, chosen)
        return Session(config, device, dataset, parts, None, on_row or self._show, self._say)

    def _say(self, line: str) -> None:
        if self.verbose:
            print(f"[{type(self).__name__}] {line}")  # noqa: T201 (what verbose means there)

    def _show(self, row: Row) -> None:
        self._say(f"{row['stage']} {row['step']}/{row['steps']}, loss {row['loss']:.4f}")

    def _rows(self, X: Any, y: Any = "no_validation", *, fit: bool) -> tuple[Any, Shape | None]:
        """X as scikit-learn wants it, (N, F), with y if it is given; and the shape of an image."""
        shape = None
        if not _is_a_table(X) and (array := np.asarray(X)).ndim > 2:
            shape, X = array.shape[1:], array.reshape(len(array), math.prod(array.shape[1:]))
            frame = framed(shape)
            if not fit and frame != self.layout_.frame:
                raise ValueError(
                    f"images of {frame} (C, H, W) came to an estimator that was fitted to "
                    f"{self.layout_.frame}"
                )
        # one image alone has nothing to be contrasted with
        found = validate_data(self, X, y, reset=fit, ensure_min_samples=2 if fit else 1)
        return found, shape

    def _layout(self, rows: Array, shape: Shape | None) -> Layout:
        """What fit learns of the layout of numbers (N, F). shape: of images that came as such."""
        if shape is None and self.image_shape is not None:
            shape = tuple(np.atleast_1d(self.image_shape).tolist())
            if math.prod(framed(shape)) != rows.shape[1]:
                raise ValueError(
                    f"image_shape = {shape} makes {math.prod(shape)} numbers an image, and X has "
                    f"{rows.shape[1]}"
                )
        elif shape is None:
            _suspect_colour(rows.shape[1])
        return Layout.of(rows, shape)

    def _known(self, X: Any) -> torch.Tensor:
        """Images to answer, uint8 (N, C, S, S), laid out as those of fit."""
        check_is_fitted(self, "predictor_")
        rows, shape = self._rows(X, fit=False)
        return torch.from_numpy(self.layout_.pixels(rows, shape))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = []  # h is float32, whatever X is
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """The network as the bytes that a model folder holds: no tensor is ever pickled."""
        state = dict(super().__getstate__())
        if "predictor_" in state:
            state["predictor_"] = tuple(state["predictor_"].packed())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed = state.get("predictor_")
        super().__setstate__({k: v for k, v in state.items() if k != "predictor_"})
        if packed is not None:
            self.predictor_ = Predictor.unpacked(Packed(*packed), _here(self.device))


class SimCLRClassifier(ClassifierMixin, _Estimator):  # type: ignore[misc]
    """A classifier of images from few labels, as a scikit-learn estimator.

    X may be images (N, H, W), (N, C, H, W) or (N, H, W, C), or rows (N, F) of any length, laid out
    as `image_shape` says or else as a grey square, black at its end where F is no square number.
    Bytes and numbers from 0 to 255 or 0 to 1 are taken as such; of others the smallest that fit saw
    is black and the largest white. Images that are no squares get black borders, and those below 20
    pixels a side are enlarged. Rows of a table pass as images as well, but views that turn and
    shift these make little sense then.

    y may be numbers or strings. -1, also as text, marks an image without a label: such images join
    the pretext task where the recipe has one.

    recipe: what `handful recipes` lists; lengths that it leaves open are fitted to the data.
    pretext_steps, downstream_steps: optimiser steps; None leaves them to the recipe.
    width: channels of the encoder; None leaves it to the recipe.
    preset: the kind of views, such as `digits`, `letters` or `natural`; None looks at the
        images.
    settings: any other setting of a run by its dotted key, `{"downstream.learning_rate": 1e-3}`.
    image_shape: of the image in a row of X: (28, 28), (3, 32, 32) or (32, 32, 3).
    random_state: None, an int (the seed of a run) or a RandomState.
    device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
    verbose: whether to print how far training is.

    Fitted, it has `classes_`, `n_features_in_` (numbers in an image), `feature_names_in_` (of a
    data frame), `config_` (all settings), `validation_accuracy_` (None where no image was held out
    to choose the length) and `predictor_`, whose `save` writes a folder that `handful predict`
    reads; pictures in files are brought to the model's size as `train` does it, not as X was.

    fit raises ValueError for anything that a user can mend.
    """

    classes_: Array
    config_: RunConfig
    validation_accuracy_: float | None

    def __init__(
        self,
        recipe: str = "standard",
        *,
        pretext_steps: int | None = None,
        downstream_steps: int | None = None,
        width: int | None = None,
        preset: str | None = None,
        settings: Mapping[str, Any] | None = None,
        image_shape: Shape | None = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: bool = False,
    ) -> None:
        super().__init__(
            recipe,
            pretext_steps=pretext_steps,
            width=width,
            preset=preset,
            settings=settings,
            image_shape=image_shape,
            random_state=random_state,
            device=device,
            verbose=verbose,
        )
        self.downstream_steps = downstream_steps

    def fit(self, X: Any, y: Any, *, on_row: OnRow | None = None) -> Self:
        """Train on images X and their labels y (N,), -1 for none. See the class for both.

        on_row: called with a dictionary of figures, now and then while it trains.
        """
        (rows, y), shape = self._rows(X, y, fit=True)
        classes, labels = _numbered(y)
        layout = self._layout(rows, shape)
        pixels = torch.from_numpy(layout.pixels(rows))
        images = ImageSet.of(pixels, torch.from_numpy(labels), [str(name) for name in classes])
        session = self._session(_dataset(images), on_row)
        self._say(f"to learn from: {images.describe()}")
        if session.parts.unlabelled and not session.config.pretext.steps:
            warnings.warn(
                f"{session.parts.unlabelled:,} images without a label stay unused: they are for "
                f"the pretext task, and recipe {self.recipe} has none",
                stacklevel=2,
            )
        members = members_of(session)
        for member in members:
            pretext_task(member)
        trained = stages.train_classifier(members)
        self.classes_, self.layout_, self.config_ = classes, layout, session.config
        self.validation_accuracy_ = trained.validation.accuracy if trained.validation else None
        self.predictor_ = stages.acquainted(session, trained)
        return self

    def predict(self, X: Any) -> Array:
        """The most probable class of each image, (N,)."""
        best = self.predict_proba(X).argmax(1)
        answers: Array = self.classes_[best]
        return answers

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Calibrated probabilities, (N, Y), columns in the order of `classes_`."""
        images = self._known(X)
        probabilities: NDArray[np.float64] = self.predictor_.predict_proba(images)
        return probabilities

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy on images X; those with y == -1 do not count.

        Raises ValueError where none has a label.
        """
        answers, y = self.predict(X), column_or_1d(y)
        known = _labelled(y)
        if not known.any():
            raise ValueError(f"none of {len(y)} images has a label to score against")
        weights = None if sample_weight is None else np.asarray(sample_weight)[known]
        return float(accuracy_score(y[known], answers[known], sample_weight=weights))

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"downstream.steps": self.downstream_steps}


class SimCLREncoder(_Estimator):
    """Representations of images, learned without any label, as a scikit-learn transformer.

    X, the parameters and the other attributes are as `SimCLRClassifier` has them; y is ignored. The
    pretext task is that of the recipe, always with NT-Xent, which sees no label.

    fit raises ValueError for anything that a user can mend, such as a recipe without pretext task.
    """

    _refused = ELSEWHERE | WITHOUT_LABELS
    _fixed: ClassVar[Mapping[str, Any]] = {
        "pretext.loss": "nt_xent",
        "data.validation": 0.0,
        "data.copies": 0,
        "downstream.steps": 1,
        "downstream.folds": 0,
    }

    config_: RunConfig

    def fit(self, X: Any, y: Any = None, *, on_row: OnRow | None = None) -> Self:
        """Learn from images X what they have in common; y is ignored. on_row: as the other's."""
        rows, shape = self._rows(X, fit=True)
        layout = self._layout(rows, shape)
        pixels = torch.from_numpy(layout.pixels(rows))
        images = ImageSet.of(pixels, class_names=["unknown"])  # its classifier answers nothing
        session = self._session(_dataset(images), on_row)
        if not session.config.pretext.steps:
            raise ValueError(
                f"recipe {self.recipe} has no pretext task, and an encoder learns from nothing "
                "else: take another recipe or set pretext_steps"
            )
        self._say(f"to learn from: {images.describe()}")
        members = members_of(session)
        for member in members:
            pretext_task(member)
        self.layout_, self.config_ = layout, session.config
        self.predictor_ = stages.predictor_of(session, stages.representation(members))
        return self


def _dataset(images: ImageSet) -> Dataset:
    """All of them are there to train."""
    grey = images.images[:: -(-len(images) // 100), 0].numpy()
    digits = images.channels == 1 and all(map(is_prepared_digit, grey))
    channels: Literal[1, 3] = 1 if images.channels == 1 else 3
    preparation = Preparation("digits" if digits else "letterbox", images.size[0], channels)
    return Dataset(images.joined(), None, "", preparation, ())


def _numbered(y: Array) -> tuple[Array, NDArray[np.int64]]:
    """The classes of y (N,), and the number of each label among them, int64 (N,), -1 for none."""
    known = _labelled(y)
    try:
        classes, numbers = np.unique(y[known], return_inverse=True)
    except TypeError:
        kinds = sorted({type(label).__name__ for label in y[known]})
        raise ValueError(f"y mixes labels of type {' and '.join(kinds)}: take one") from None
    if len(classes) < 2:
        raise ValueError(
            f"y labels images of {len(classes) or 'no'} class: a classifier needs 2, and -1 means "
            "that an image has no label"
        )
    check_classification_targets(y[known])
    labels = np.full(len(y), UNLABELLED, np.int64)
    labels[known] = numbers
    return classes, labels


def _labelled(y: Array) -> NDArray[np.bool_]:
    """Where y is no -1, bool (N,); numpy makes text of it in a list of names."""
    if y.dtype.kind in "OU":
        return np.array([label not in (UNLABELLED, str(UNLABELLED)) for label in y], bool)
    return np.asarray(y != UNLABELLED)


def _plain(value: Any) -> Any:
    """A number as Python has it; others as they are. A grid of np.arange holds numpy's."""
    return value.item() if isinstance(value, np.generic) else value


def _is_a_table(X: Any) -> bool:
    """Data frames and sparse matrices, which scikit-learn reads (or refuses) itself."""
    return hasattr(X, "iloc") or hasattr(X, "toarray") or hasattr(X, "__dataframe__")


def _suspect_colour(features: int) -> None:
    """Warn of rows that are read as grey, the last of it black, and have a length of colour."""
    side = math.isqrt(features // 3)
    if features == 3 * side * side and side >= LEAST_COLOUR:
        warnings.warn(
            f"rows of {features} numbers are read as one grey square, which is wrong if they are "
            f"in colour: set image_shape=({side}, {side}, 3) or (3, {side}, {side})",
            stacklevel=4,
        )


def _here(device: str) -> str:
    """That device, or what this machine has instead of it."""
    try:
        devices.choose(device)
    except ValueError:  # a model that was fitted on a GPU opens without one
        return "auto"
    return device

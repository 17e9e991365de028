"""The estimators keep scikit-learn's contract, and learn."""

from __future__ import annotations

import os
import pickle
import pickletools
import warnings
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator, parametrize_with_checks

from handful import SimCLRClassifier, SimCLREncoder, datasets, estimator, pretext, stages
from handful.config import ViewsConfig
from handful.datasets import Dataset
from handful.predictor import Predictor
from handful.recipes import RECIPES

Array = np.ndarray[Any, Any]

SMALL: dict[str, Any] = {
    "network.head_hidden": 8,
    "network.head_dim": 8,
    "pretext.batch_size": 64,
}
PLAIN = {name: 0.0 for name, value in ViewsConfig() if isinstance(value, float)} | {
    "keep_ink": False
}
# rows of a table mean something else when they are turned or shifted
TABLE: dict[str, Any] = SMALL | {f"pretext.views.{name}": value for name, value in PLAIN.items()}
CHECKED = SimCLRClassifier(
    pretext_steps=2,
    downstream_steps=36,
    width=8,
    preset="general",
    settings=TABLE
    | {f"downstream.views.{name}": value for name, value in PLAIN.items()}
    | {
        "pretext.views.flip": False,
        "downstream.views.flip": False,
        "downstream.batch_size": 48,
        "downstream.learning_rate": 0.02,
        "downstream.encoder_rate": 1.0,
        "downstream.ema": 0.0,
        "data.validation": 0.0,
    },
    random_state=0,
)
CHECKED_ENCODER = SimCLREncoder(
    pretext_steps=2, width=4, preset="general", settings=TABLE, random_state=0
)
ROUNDING = "how float32 sums are rounded may depend on how many images are computed together"
EXPECTED = {
    "check_classifiers_classes": "its last labels are -1 and 1, and -1 means unlabelled here",
    "check_methods_subset_invariance": ROUNDING,
}
EXPECTED_OF_ENCODER = {"check_methods_subset_invariance": ROUNDING}


def expected(estimator: Any) -> dict[str, str]:
    return EXPECTED if isinstance(estimator, SimCLRClassifier) else EXPECTED_OF_ENCODER


# not strict: rounding differs from machine to machine; the other one has a test of its own below
@parametrize_with_checks(
    [CHECKED, CHECKED_ENCODER], expected_failed_checks=expected, xfail_strict=False
)
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("method", ["transform", "predict_proba"])
def test_an_answer_does_not_depend_on_its_neighbours(
    method: str, fitted: SimCLRClassifier, digits: tuple[Array, Array, Array, Array]
) -> None:
    # what the check above asks for, but for the rounding
    images = digits[2][:40]
    together = getattr(fitted, method)(images)
    alone = np.concatenate([getattr(fitted, method)(images[i : i + 1]) for i in range(40)])
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-5)


def test_those_checks_are_many_and_of_two_dimensions() -> None:
    for one, least in ((CHECKED, 50), (CHECKED_ENCODER, 40)):
        tags = one.__sklearn_tags__()
        assert tags.input_tags.two_d_array
        assert not tags.no_validation
        assert not tags.non_deterministic
        assert tags.classifier_tags is None or not tags.classifier_tags.poor_score
        checks = [check for _, check in estimator_checks_generator(one)]
        names = Counter(getattr(check, "func", check).__name__ for check in checks)
        declared = expected(one)
        assert declared.keys() <= names.keys()
        assert len(declared) <= 5
        assert sum(names.values()) - len(declared) >= least


@pytest.fixture(scope="module")
def digits(bundled: Dataset) -> tuple[Array, Array, Array, Array]:
    """All 500 digits and their labels, 400 test digits and theirs."""
    assert bundled.test is not None
    images, labels = bundled.train.images[:, 0].numpy(), bundled.train.labels.numpy()
    test = bundled.test.select(torch.arange(400))
    return images, labels, test.images[:, 0].numpy(), test.labels.numpy()


def learner(**changes: Any) -> SimCLRClassifier:
    """Small enough for a test, large enough to learn digits."""
    given: dict[str, Any] = {
        "recipe": "fast",
        "pretext_steps": 8,
        "downstream_steps": 60,
        "width": 8,
        "settings": SMALL | {"downstream.batch_size": 64, "downstream.learning_rate": 0.01},
        "random_state": 0,
        "device": "cpu",
    }
    return SimCLRClassifier(**(given | changes))


def quick(**changes: Any) -> SimCLRClassifier:
    """Where what was learned does not matter."""
    return learner(**({"pretext_steps": 2, "downstream_steps": 4, "width": 4} | changes))


@pytest.fixture(scope="module")
def fitted(digits: tuple[Array, Array, Array, Array]) -> SimCLRClassifier:
    return learner().fit(digits[0], digits[1])


def test_it_learns_digits(
    fitted: SimCLRClassifier, digits: tuple[Array, Array, Array, Array]
) -> None:
    _, _, images, labels = digits
    assert fitted.score(images, labels) > 0.8
    probabilities = fitted.predict_proba(images)
    assert probabilities.shape == (400, 10)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    np.testing.assert_array_equal(fitted.classes_[probabilities.argmax(1)], fitted.predict(images))
    assert fitted.n_features_in_ == 784
    assert fitted.config_.preset == "digits"
    assert fitted.validation_accuracy_ is None


def test_its_representation_is_named_and_useful(
    fitted: SimCLRClassifier, digits: tuple[Array, Array, Array, Array]
) -> None:
    images, labels, test, truth = digits
    h = fitted.transform(images)
    assert h.dtype == np.float32
    names = fitted.get_feature_names_out()
    assert list(names[:2]) == ["simclrclassifier0", "simclrclassifier1"]
    assert h.shape == (500, len(names))
    probe = LogisticRegression(max_iter=2000).fit(h, labels)
    assert probe.score(fitted.transform(test), truth) > 0.8


def test_every_layout_gives_the_same_answers(
    fitted: SimCLRClassifier, digits: tuple[Array, Array, Array, Array]
) -> None:
    test = digits[2][:20]
    expected = fitted.predict_proba(test)
    for same in (
        test[:, None],
        test[..., None],
        test.reshape(20, -1),
        test.reshape(20, -1).astype(np.float64),
        test.tolist(),
        torch.from_numpy(test),
        pd.DataFrame(test.reshape(20, -1)),
    ):
        np.testing.assert_array_equal(fitted.predict_proba(same), expected)


@pytest.mark.parametrize(
    "laid_out",
    [
        lambda x: x[:, None],
        lambda x: x[..., None],
        lambda x: x.reshape(len(x), -1),
        lambda x: x / 255,
        lambda x: x.astype(np.float32).reshape(len(x), -1),
    ],
)
def test_every_layout_trains_the_same(
    laid_out: Any, digits: tuple[Array, Array, Array, Array]
) -> None:
    images, labels, test, _ = digits
    images, labels, test = images[:60], labels[:60], test[:20]
    expected = quick().fit(images, labels).predict_proba(test)
    model = quick().fit(laid_out(images), labels)
    np.testing.assert_allclose(model.predict_proba(laid_out(test)), expected, atol=1e-5)


def test_colour_comes_in_both_orders_and_in_rows() -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 3, 20, 26), np.uint8)
    labels = np.arange(12) % 3
    last = images.transpose(0, 2, 3, 1)
    expected = quick().fit(images, labels).predict_proba(images)
    model = quick().fit(last, labels)
    assert model.n_features_in_ == 3 * 20 * 26
    np.testing.assert_array_equal(model.predict_proba(last), expected)
    np.testing.assert_array_equal(model.predict_proba(images), expected)
    np.testing.assert_array_equal(model.predict_proba(last.reshape(12, -1)), expected)
    rows = quick(image_shape=(20, 26, 3)).fit(last.reshape(12, -1), labels)
    np.testing.assert_array_equal(rows.predict_proba(images), expected)


def test_rows_that_look_like_colour_are_asked_about() -> None:
    rows = np.random.default_rng(0).integers(0, 256, (8, 300), np.uint8)
    with pytest.warns(UserWarning, match=r"set image_shape=\(10, 10, 3\) or \(3, 10, 10\)"):
        quick().fit(rows, np.arange(8) % 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick(image_shape=(3, 10, 10)).fit(rows, np.arange(8) % 2)


def test_images_without_a_label_join_the_pretext_task_alone(
    digits: tuple[Array, Array, Array, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = digits[0][:80], digits[1][:80].copy()
    labels[40:] = -1

    seen: dict[str, list[int]] = {}
    for module, name in ((pretext, "pretrain"), (stages, "finetune")):
        function = getattr(module, name)

        def watched(*args: Any, name: str = name, function: Any = function, **more: Any) -> Any:
            (given,) = (one for one in args if isinstance(one, datasets.ImageSet))
            seen[name] = [len(given), int((given.labels < 0).sum())]
            return function(*args, **more)

        monkeypatch.setattr(module, name, watched)
    model = quick().fit(images, labels)
    assert seen == {"pretrain": [80, 40], "finetune": [40, 0]}
    assert -1 not in model.classes_
    assert -1 not in model.predict(images)


def test_images_without_a_label_do_not_score(
    fitted: SimCLRClassifier, digits: tuple[Array, Array, Array, Array]
) -> None:
    _, _, images, labels = digits
    some = labels.copy()
    some[::2] = -1
    assert fitted.score(images, some) == fitted.score(images[1::2], labels[1::2])
    weights = np.where(labels == labels[1], 1.0, 0.0)
    only = labels == labels[1]
    weighted = fitted.score(images, some, sample_weight=weights)
    odd = np.arange(400) % 2 == 1
    assert weighted == pytest.approx(fitted.score(images[only & odd], labels[only & odd]))
    with pytest.raises(ValueError, match="none of 400 images has a label"):
        fitted.score(images, np.full(400, -1))


def test_fit_tells_how_far_it_is(digits: tuple[Array, Array, Array, Array]) -> None:
    rows: list[dict[str, Any]] = []
    quick().fit(digits[0][:60], digits[1][:60], on_row=rows.append)
    assert rows[0]["stage"] == "pretext"
    assert {"downstream", "selection"} & {row["stage"] for row in rows}


def test_strings_are_labels_and_minus_one_among_them_is_none(
    digits: tuple[Array, Array, Array, Array],
) -> None:
    images = digits[0][:60]
    names = np.array(["zero", "odd", "even"])[digits[1][:60] % 3]
    model = quick().fit(images, names)
    assert model.classes_.tolist() == ["even", "odd", "zero"]
    assert set(model.predict(images)) <= {"even", "odd", "zero"}
    mixed = names.astype(object)
    mixed[:10] = -1
    model = quick().fit(images, mixed)
    assert model.classes_.tolist() == ["even", "odd", "zero"]
    assert 0 <= model.score(images, mixed) <= 1
    of_text = quick().fit(images, list(map(str, mixed)))  # as numpy reads a list of both
    np.testing.assert_array_equal(of_text.predict_proba(images), model.predict_proba(images))
    assert quick().fit(images, pd.Series(names, dtype="category")).classes_.tolist() == [
        "even", "odd", "zero"
    ]  # fmt: skip


def test_minus_one_and_one_are_one_class() -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 20, 20), np.uint8)
    with pytest.raises(ValueError, match="of 1 class: a classifier needs 2, and -1 means that"):
        quick().fit(images, [-1, 1] * 4)
    with pytest.raises(ValueError, match="of no class"):
        quick().fit(images, [-1] * 8)


def test_unlabelled_images_that_a_recipe_cannot_use_are_said(
    digits: tuple[Array, Array, Array, Array],
) -> None:
    labels = np.where(np.arange(60) < 40, digits[1][:60], -1)
    with pytest.warns(UserWarning, match="20 images without a label stay unused"):
        quick(recipe="best", pretext_steps=None).fit(digits[0][:60], labels)


def test_a_pickle_answers_the_same_and_holds_no_tensor(
    fitted: SimCLRClassifier, digits: tuple[Array, Array, Array, Array]
) -> None:
    test = digits[2][:30]
    data = pickle.dumps(fitted)
    named = {str(arg) for op, arg, _ in pickletools.genops(data) if isinstance(arg, str)}
    assert not any(name.split(".")[0] == "torch" for name in named)
    again = pickle.loads(data)
    np.testing.assert_array_equal(again.predict_proba(test), fitted.predict_proba(test))
    np.testing.assert_array_equal(again.transform(test), fitted.transform(test))
    assert again.get_params() == fitted.get_params()
    assert pickle.loads(pickle.dumps(quick())).get_params() == quick().get_params()


def test_a_pickle_opens_without_the_device_it_was_made_on(
    fitted: SimCLRClassifier, digits: tuple[Array, Array, Array, Array]
) -> None:
    data = pickle.dumps(fitted).replace(b"\x8c\x03cpu", b"\x8c\x06cuda:9")
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    again = pickle.loads(data)
    assert again.device == "cuda:9"
    assert again.predictor_.device.type == "cpu"


def test_parameters_are_kept_and_cloned(fitted: SimCLRClassifier) -> None:
    fresh = clone(fitted)
    assert not hasattr(fresh, "classes_")
    assert fresh.get_params() == fitted.get_params()
    assert fresh.set_params(width=6, recipe="demo").get_params()["width"] == 6
    assert SimCLREncoder().get_params().keys() == SimCLRClassifier().get_params().keys() - {
        "downstream_steps"
    }


def test_the_seed_decides(digits: tuple[Array, Array, Array, Array]) -> None:
    images, labels = digits[0][:40], digits[1][:40]

    def answers(state: Any) -> Array:
        return quick(random_state=state).fit(images, labels).predict_proba(images)

    np.testing.assert_array_equal(answers(3), answers(np.int64(3)))
    assert (answers(3) != answers(4)).any()
    first = answers(np.random.RandomState(1))
    np.testing.assert_array_equal(first, answers(np.random.RandomState(1)))
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    answers(0)
    assert torch.equal(torch.get_rng_state(), state[0])
    np.testing.assert_array_equal(np.random.get_state()[1], state[1])  # noqa: NPY002


def test_it_works_in_pipelines_and_searches(digits: tuple[Array, Array, Array, Array]) -> None:
    images, labels = digits[0][:60].reshape(60, -1), digits[1][:60] % 2
    pipeline = make_pipeline(StandardScaler(), quick())
    assert set(pipeline.fit(images, labels).predict(images)) <= {0, 1}
    assert cross_val_score(quick(), images, labels, cv=2).shape == (2,)
    search = GridSearchCV(
        quick(),
        {
            "downstream_steps": np.array([2, 3]),
            "settings": [{}, {"downstream.learning_rate": 1e-3}],
        },
        cv=2,
        error_score="raise",
    )
    search.fit(images, labels)
    assert len(search.cv_results_["params"]) == 4
    assert search.best_estimator_.config_.downstream.steps in (2, 3)


def test_the_encoder_learns_without_labels(digits: tuple[Array, Array, Array, Array]) -> None:
    images, labels, test, truth = digits
    encoder = SimCLREncoder(pretext_steps=40, width=8, settings=SMALL, random_state=0, device="cpu")
    pipeline = make_pipeline(encoder, StandardScaler(), LogisticRegression(max_iter=2000))
    assert pipeline.fit(images, labels).score(test, truth) > 0.7
    assert encoder.config_.pretext.loss == "nt_xent"
    h = encoder.transform(test)
    np.testing.assert_array_equal(h, encoder.fit(images, labels[::-1]).transform(test))
    np.testing.assert_array_equal(h, pickle.loads(pickle.dumps(encoder)).transform(test))
    assert list(encoder.get_feature_names_out()[:1]) == ["simclrencoder0"]
    frame = encoder.set_output(transform="pandas").transform(test)
    assert list(frame.columns) == list(encoder.get_feature_names_out())


def test_names_of_features_are_those_of_a_frame() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(12, 5)), columns=list("abcde"))
    model = quick().fit(frame, np.arange(12) % 2)
    assert model.feature_names_in_.tolist() == list("abcde")
    assert model.n_features_in_ == 5
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame[list("edcba")])


def test_nothing_is_written_and_no_test_image_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: tuple[Array, Array, Array, Array]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "load", lambda *_: pytest.fail("a source was opened"))
    quick(recipe="demo").fit(digits[0][:60], digits[1][:60]).predict(digits[0])
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_validation_chooses_the_length_where_the_recipe_has_it(
    digits: tuple[Array, Array, Array, Array],
) -> None:
    model = quick(recipe="standard", downstream_steps=6).fit(digits[0][:100], digits[1][:100])
    assert model.validation_accuracy_ is not None
    assert 0 <= model.validation_accuracy_ <= 1
    assert model.predictor_.evidence is not None


def test_a_fitted_model_is_one_that_the_commands_read(
    fitted: SimCLRClassifier, tmp_path: Path, digits: tuple[Array, Array, Array, Array]
) -> None:
    fitted.predictor_.save(tmp_path / "model")
    loaded = Predictor.load(tmp_path / "model", "cpu")
    assert loaded.preparation.kind == "digits"
    test = digits[2][:20]
    assert loaded.predict(test) == [str(label) for label in fitted.predict(test)]


def test_progress_is_printed_when_asked_for(
    digits: tuple[Array, Array, Array, Array], capsys: pytest.CaptureFixture[str]
) -> None:
    quick().fit(digits[0][:40], digits[1][:40])
    assert capsys.readouterr().out == ""
    quick(verbose=True).fit(digits[0][:40], digits[1][:40])
    printed = capsys.readouterr().out
    assert "[SimCLRClassifier] to learn from: 40 images" in printed
    assert "downstream 4/4, loss " in printed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "fats"}, "unknown recipe fats: did you mean fast?"),
        ({"pretext_steps": -1}, "pretext.steps = -1: "),
        ({"preset": "digit"}, "preset = 'digit': "),
        ({"device": "gpu"}, "unknown device gpu: use auto"),
        ({"random_state": -1}, "seed = -1: "),
        ({"image_shape": (28, 27)}, "image_shape = (28, 27) makes 756 numbers an image"),
        ({"image_shape": 784}, "images of shape (784,) have no layout that is known"),
        ({"settings": "width=3"}, "settings = 'width=3': expected a dictionary of dotted keys"),
        ({"settings": {"network.widht": 3}}, "unknown setting network.widht; did you mean"),
        ({"settings": {"seed": 3}}, "settings has seed, which a fit does not take: the param"),
        ({"settings": {"data": {"holdout": 0.5}}}, "settings has data.holdout, which a fit doe"),
        ({"settings": {"network.width": 3}}, "settings has network.width, for which a parameter"),
    ],
)  # fmt: skip
def test_bad_parameters_are_one_line(
    changes: dict[str, Any], message: str, digits: tuple[Array, Array, Array, Array]
) -> None:
    model = quick(**changes)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole text is compared below)
        model.fit(digits[0][:40].reshape(40, -1), digits[1][:40])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not hasattr(model, "predictor_")


def test_bad_images_and_labels_are_one_line(
    fitted: SimCLRClassifier, digits: tuple[Array, Array, Array, Array]
) -> None:
    images, labels, test, _ = digits
    for given, message in (
        (test[:, :20], r"images of \(1, 20, 28\) \(C, H, W\) came to an estimator that was fitted"),
        (np.zeros((2, 4, 28, 28)), r"images of shape \(4, 28, 28\) have no layout"),
        (test / 255, "fit saw pixels from 0 to 255 and these reach 1: bring"),
    ):
        with pytest.raises(ValueError, match=message):
            fitted.predict(given)
    with pytest.raises(ValueError, match="y mixes labels of type int and str: take one"):
        quick().fit(images[:4], np.array(["a", 1, "b", -1], object))
    with pytest.raises(ValueError, match="Unknown label type"):
        quick().fit(images[:4], [0.5, 1.5, 2.5, -1])
    assert fitted.score(images, labels) > 0.8  # it still is what it was


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "best"}, "recipe best has no pretext task, and an encoder learns from nothing"),
        ({"settings": {"downstream.steps": 5}}, "an encoder has no classifier"),
        ({"settings": {"pretext.loss": "sup_con"}}, "without labels it always is nt_xent"),
    ],
)
def test_an_encoder_without_anything_to_learn_from_says_so(
    changes: dict[str, Any], message: str
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 20, 20), np.uint8)
    with pytest.raises(ValueError, match=message):
        SimCLREncoder(**changes).fit(images)


def test_an_encoder_of_several_networks_has_all_their_features() -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 20, 20), np.uint8)
    given: dict[str, Any] = {"pretext_steps": 1, "width": 4, "settings": SMALL, "random_state": 0}
    one = SimCLREncoder("demo", **given).fit(images)
    several = SimCLREncoder("ensemble", **given).fit(images)
    members = RECIPES["ensemble"].config.members
    assert several.transform(images).shape[1] == members * one.transform(images).shape[1]
    assert len(several.get_feature_names_out()) == members * len(one.get_feature_names_out())


def test_a_length_that_is_left_open_is_fitted_to_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 20, 20), np.uint8)
    monkeypatch.setattr(estimator, "pretext_task", lambda _: 0)  # only how long it would be
    encoder = SimCLREncoder(width=4, random_state=0).fit(images)
    assert encoder.config_.pretext.steps == 60_000 // 2 // 8


def test_copies_of_images_that_train_do_not_judge(bundled: Dataset) -> None:
    some = torch.cat([torch.arange(40), torch.arange(40)])
    X, y = bundled.train.images[some].numpy(), bundled.train.labels[some].numpy()
    parts: list[Any] = []
    true = stages.train_classifier

    def watched(members: Any) -> Any:
        parts.append(members[0].session.parts)
        return true(members)

    with mock.patch.object(stages, "train_classifier", watched):
        SimCLRClassifier("demo", pretext_steps=1, downstream_steps=1, width=4).fit(X, y)
    fit, validation = parts[0].fit.fingerprints, parts[0].validation.fingerprints
    assert len(validation)
    assert not np.isin(validation, fit).any()


def test_no_fit_leaves_a_pretext_task_on_the_disk(
    bundled: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path))
    X, y = bundled.train.images[:40].numpy(), bundled.train.labels[:40].numpy().copy()
    y[20:] = -1
    quick = {"pretext_steps": 1, "downstream_steps": 1, "width": 4}
    SimCLRClassifier("pool", **quick).fit(X, y)
    assert not list(tmp_path.iterdir())
    SimCLRClassifier("pool", **quick, settings={"pretext.cache": True}).fit(X, y)
    assert list(tmp_path.iterdir())


def test_images_that_may_not_be_written_are_copied(bundled: Dataset) -> None:
    """As joblib hands them to other processes."""
    X, y = bundled.train.images[:40].numpy().copy(), bundled.train.labels[:40].numpy()
    X.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = SimCLRClassifier("best", downstream_steps=1, width=4, preset="general").fit(X, y)
        answers = fitted.predict_proba(X)
    assert fitted.predictor_.mirrored
    again = pickle.loads(pickle.dumps(fitted))
    assert again.predictor_.mirrored
    np.testing.assert_allclose(again.predict_proba(X), answers, atol=1e-6)

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from handful import checkpoints, pictures, predictor
from handful.confidence import Evidence
from handful.config import NetworkConfig
from handful.images import ImageSet
from handful.networks import INFERENCE_BATCH, ConvNet, classifier_head, joined
from handful.pictures import Preparation
from handful.predictor import Predictor

NETWORK = NetworkConfig(width=4)
NAMES = ("nine", "one", "five")


def made(
    channels: Any = 1,
    size: int = 28,
    views: int = 1,
    temperature: float = 1.7,
    network: NetworkConfig = NETWORK,
    number: int = 0,
) -> Predictor:
    """An untrained predictor whose batch norms have seen something, as after training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = ConvNet(channels, size, network, number=number)
        head = classifier_head(encoder.dim, len(NAMES))
        encoder.normalise_to(pixels(16, channels, size))
        encoder.train()
        encoder(pixels(16, channels, size).float() / 255)
    kind = "digits" if channels == 1 else "letterbox"
    return Predictor(
        encoder.eval(),
        head.eval(),
        NAMES,
        Preparation(kind, size, channels),
        network,
        temperature,
        views,
    )


def pixels(n: int, channels: int = 1, size: int = 28, seed: int = 0) -> torch.Tensor:
    """Light blobs on black, uint8 (n, channels, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(n, channels, size, size, dtype=torch.uint8)
    inner = torch.randint(0, 256, (n, channels, size // 2, size // 2), generator=generator)
    images[:, :, size // 4 : size // 4 + size // 2, size // 4 : size // 4 + size // 2] = inner.to(
        torch.uint8
    )
    return images


def test_a_model_knows_what_was_white(tmp_path: Path) -> None:
    model = made()
    model.preparation = Preparation("letterbox", 28, 1, white=4095)
    model.save(tmp_path / "model")
    eight = pixels(1)[0, 0].numpy()
    twelve = tmp_path / "12.png"
    Image.fromarray(np.rint(eight / 255.0 * 4095).astype(np.uint16)).save(twelve)
    loaded = Predictor.load(tmp_path / "model", "cpu")
    assert torch.equal(loaded.logits([twelve]), loaded.logits([Image.fromarray(eight)]))


@pytest.mark.parametrize(
    "network",
    [NETWORK, NETWORK.model_copy(update={"columns": ("harmonic", "upright")})],
    ids=["alike", "columns"],
)
def test_an_ensemble_is_read_as_it_was_written(tmp_path: Path, network: NetworkConfig) -> None:
    members = [made(network=network), made(temperature=2.0, network=network, number=1)]
    images = pixels(9)
    with torch.no_grad():
        members[1].head.weight.mul_(-3)
    encoder, head = joined([one.encoder for one in members], [one.head for one in members])
    ensemble = replace(members[0], encoder=encoder, head=head, temperature=1.0)
    ensemble.save(tmp_path / "model")
    again = Predictor.load(tmp_path / "model", "cpu")
    assert (ensemble.members, again.members, members[0].members) == (2, 2, 1)
    torch.testing.assert_close(again.logits(images), ensemble.logits(images))
    torch.testing.assert_close(
        torch.from_numpy(again.embed(images)), again.encoder.eval()(images / 255)
    )


def test_what_a_model_knows_of_its_labels_is_read_as_it_was_written(tmp_path: Path) -> None:
    images = ImageSet.of(pixels(9), torch.arange(9) % 3, NAMES)
    evidence = Evidence(torch.tensor([0.9, 0.7], dtype=torch.float64), torch.tensor([True, False]))
    model = replace(made(), evidence=evidence).acquainted_with(images)
    model.save(tmp_path)
    again = Predictor.load(tmp_path, "cpu")
    assert again.abstention(0.3) == model.abstention(0.3)
    others = pixels(5, seed=3)
    np.testing.assert_allclose(again.distance(others), model.distance(others), rtol=1e-5)
    assert model.distance(images).max() < 0.05 < model.distance(255 - others).min()


def test_files_are_told_their_distance(tmp_path: Path) -> None:
    images = ImageSet.of(pixels(4), torch.arange(4) % 3, NAMES)
    model = made().acquainted_with(images)
    path = tmp_path / "one.png"
    Image.fromarray(images.images[0, 0].numpy()).save(path)
    (answer,) = model.predict_files([path])
    assert answer.distance == pytest.approx(float(model.distance([path])[0]), abs=1e-5)
    (unknown,) = made().predict_files([path])
    assert unknown.distance is None


def test_a_gpu_computes_while_its_turn_lasts(tmp_path: Path) -> None:
    """All that is computed is computed inside the lock, and none of it later."""
    model, path = made(), tmp_path / "one.png"
    Image.fromarray(pixels(1)[0, 0].numpy()).save(path)
    held: list[bool] = []
    turns = threading.Lock()
    assert isinstance(model.encoder, ConvNet)
    model.encoder.layers[0].register_forward_hook(lambda *_: held.append(turns.locked()))
    assert len(model._answers([path, path], turns)) == 2
    assert held
    assert all(held)


def test_known_images_of_another_encoder_are_damage(tmp_path: Path) -> None:
    made().acquainted_with(ImageSet.of(pixels(4), torch.zeros(4), NAMES)).save(tmp_path)
    tensors, meta = checkpoints.load(tmp_path)
    for name in ("h", "style"):
        checkpoints.save(tmp_path, tensors | {f"known.{name}": torch.ones(4, 3)}, meta)
        with pytest.raises(ValueError, match=rf"is damaged: .*known.{name} is \(4, 3\)"):
            Predictor.load(tmp_path, "cpu")


def test_a_model_that_knows_nothing_of_its_labels_says_so(tmp_path: Path) -> None:
    made().save(tmp_path)
    model = Predictor.load(tmp_path, "cpu")
    assert np.isnan(model.distance(pixels(2))).all()
    with pytest.raises(ValueError, match="nothing says how far"):
        model.abstention(0.01)


@pytest.mark.parametrize("views", [1, 4])
def test_a_prediction_does_not_depend_on_the_batch(views: int) -> None:
    model, images = made(views=views), pixels(9)
    together = model.logits(images)
    alone = torch.cat([model.logits(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    turned = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.logits(images[turned]), together[turned], atol=1e-5, rtol=0)


def test_it_does_not_depend_on_the_mode_that_training_left_behind() -> None:
    model, images = made(), pixels(5)
    expected = model.logits(images)
    model.encoder.train()
    statistics = {name: t.clone() for name, t in model.encoder.named_buffers()}
    torch.testing.assert_close(model.logits(images), expected, atol=1e-5, rtol=0)
    for name, tensor in model.encoder.named_buffers():
        torch.testing.assert_close(tensor, statistics[name], rtol=0, atol=0)


@pytest.mark.parametrize("views", [1, 3])
def test_no_forward_pass_is_larger_than_the_bound(
    views: int,
) -> None:
    model, seen = made(size=8, views=views), []
    assert isinstance(model.encoder, ConvNet)
    model.encoder.layers[0].register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    n = INFERENCE_BATCH + 5
    assert model.logits(pixels(n, size=8)).shape == (n, 3)
    assert max(seen) <= INFERENCE_BATCH
    assert sum(seen) == n * views


@pytest.mark.parametrize("mirrored", [False, True])
def test_logits_are_the_mean_over_views_divided_by_the_temperature(mirrored: bool) -> None:
    from handful import views

    model, images = replace(made(views=3, temperature=2.5), mirrored=mirrored), pixels(4)
    x = images.float() / 255
    with torch.inference_mode():
        looks = views.test_views(x, 3, mirrored=mirrored)
        expected = torch.stack([model.head(model.encoder(look)) for look in looks])
    torch.testing.assert_close(model.logits(images), expected.mean(0) / 2.5)


def test_an_image_that_leaves_no_doubt_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does gets the mean over its views, whatever its neighbours get."""
    model, images = made(views=3), pixels(9)
    single, mean = made(views=1).logits(images), model.logits(images)
    confidence = single.softmax(1).amax(1)
    assert confidence.max() < predictor.SURE  # so that `mean` is over all views
    sure = confidence >= confidence.median()
    monkeypatch.setattr(predictor, "SURE", float(confidence.median()))
    expected = torch.where(sure[:, None], single, mean)
    torch.testing.assert_close(model.logits(images), expected, atol=1e-5, rtol=0)
    monkeypatch.setattr(predictor, "SURE", 0.0)
    torch.testing.assert_close(model.logits(images), single, atol=1e-5, rtol=0)


@given(seed=st.integers(0, 1000), temperature=st.floats(0.05, 20))
@settings(max_examples=15, deadline=None)
def test_probabilities_are_probabilities_and_agree_with_predict(
    seed: int, temperature: float
) -> None:
    model, images = made(size=8, temperature=temperature), pixels(6, size=8, seed=seed)
    probabilities = model.predict_proba(images)
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-12)
    assert model.predict(images) == [NAMES[i] for i in probabilities.argmax(1)]


def test_every_way_to_give_images_gives_the_same_answer(tmp_path: Path) -> None:
    model, images = made(), pixels(3)
    array = images[:, 0].numpy()  # (N, H, W)
    frozen = array.copy()
    frozen.setflags(write=False)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for image, path in zip(array, paths, strict=True):
        Image.fromarray(image).save(path)
    expected = model.logits(images)
    for other in (
        ImageSet.of(images),
        images.numpy(),
        images[:, 0],
        array,
        frozen,
        array[..., None],
        array[:, ::-1][:, ::-1],
        paths,
        [str(path) for path in paths],
        tuple(Image.fromarray(image) for image in array),
    ):
        torch.testing.assert_close(model.logits(other), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", ["(N, 3, H, W)", "(N, H, W, 3)", "(N, H, W, 4)", "larger"])
def test_other_sizes_and_channels_pass_through_the_preparation(layout: str) -> None:
    model, images = made(), pixels(3)
    colour = images.expand(-1, 3, -1, -1)
    opaque = torch.full_like(images, 255)
    other = {
        "(N, 3, H, W)": colour,
        "(N, H, W, 3)": colour.permute(0, 2, 3, 1),
        "(N, H, W, 4)": torch.cat([colour, opaque], 1).permute(0, 2, 3, 1),
        "larger": images.repeat_interleave(2, 2).repeat_interleave(2, 3),
    }[layout]
    found = model.logits(other)
    assert found.shape == (3, 3)
    if layout != "larger":
        torch.testing.assert_close(found, model.logits(images), atol=1e-5, rtol=0)


def test_grey_pictures_for_a_model_of_colour() -> None:
    model, grey = made(channels=3, size=16), pixels(2, 1, 16)
    torch.testing.assert_close(
        model.logits(grey), model.logits(grey.expand(-1, 3, -1, -1)), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (np.zeros((2, 28, 28)), "uint8, 0 to 255, got float64"),
        (torch.zeros(2, 28, 28), "uint8, 0 to 255, got float32"),
        (np.zeros((28, 28), np.uint8), r"got \(28, 28\)"),
        (np.zeros((2, 5, 28, 28), np.uint8), r"got \(2, 5, 28, 28\)"),
        ("digit.png", "one str: put it into a list"),
        (Path("digit.png"), "put it into a list"),
        (Image.new("L", (28, 28)), "put it into a list"),
        ([np.zeros((28, 28), np.uint8)], "paths or PIL images, not ndarray"),
        (["/no/such/file.png"], "file.png"),
        (7, "one int"),
    ],
)
def test_what_is_no_image_is_one_clear_line(images: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        made().predict(images)
    assert "\n" not in str(caught.value)


def test_no_images_give_no_answers() -> None:
    model = made()
    assert model.predict([]) == []
    assert model.predict_proba(pixels(0)).shape == (0, 3)
    assert model.embed(pixels(0)).shape == (0, model.encoder.dim)


def test_embeddings_are_what_the_encoder_says_of_the_image_itself() -> None:
    model, images = made(views=4), pixels(3)
    with torch.inference_mode():
        expected = model.encoder(images.float() / 255)
    found = model.embed(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_results_are_ordinary_tensors_that_gradients_may_follow() -> None:
    logits = made().logits(pixels(2))
    scale = torch.ones((), requires_grad=True)
    (logits * scale).sum().backward()
    assert scale.grad is not None


@pytest.mark.parametrize("inside", ["", "model"])
def test_load_gives_back_the_same_predictor(tmp_path: Path, inside: str) -> None:
    model, images = replace(made(views=2), mirrored=True), pixels(5)
    model.save(tmp_path / inside)
    again = Predictor.load(tmp_path, device="cpu")
    torch.testing.assert_close(again.logits(images), model.logits(images), atol=1e-6, rtol=0)
    assert again.class_names == NAMES
    assert again.preparation == model.preparation
    assert again.network == NETWORK
    assert (again.temperature, again.test_views, again.mirrored) == (1.7, 2, True)
    assert not any(path.suffix in (".pkl", ".pt", ".pth") for path in tmp_path.rglob("*"))


def test_a_model_from_before_test_views_mirrored_answers_as_it_did(tmp_path: Path) -> None:
    made(views=2).save(tmp_path)
    changed(tmp_path, mirrored=None)
    assert not Predictor.load(tmp_path, device="cpu").mirrored


def test_loading_leaves_global_randomness_alone(tmp_path: Path) -> None:
    made().save(tmp_path)
    before = torch.get_rng_state()
    Predictor.load(tmp_path, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


def changed(folder: Path, **meta: Any) -> None:
    tensors, old = checkpoints.load(folder)
    kept = {key: value for key, value in (old | meta).items() if value is not None}
    checkpoints.save(folder, tensors, kept)


@pytest.mark.parametrize(
    "meta",
    [
        {"class_names": ["a", "b"]},
        {"class_names": None},
        {"network": {"width": 8}},
        {"network": {"breadth": 8}},
        {"preparation": {"kind": "sepia", "size": 28, "channels": 1}},
        {"preparation": {"kind": "digits"}},
        {"temperature": None},
        {"evidence": {"probability": [0.5]}},
        {"evidence": {"probability": [0.5], "right": [True, False]}},
    ],
)
def test_a_model_that_does_not_fit_together_is_one_clear_line(
    tmp_path: Path, meta: dict[str, Any]
) -> None:
    made().save(tmp_path)
    changed(tmp_path, **meta)
    with pytest.raises(ValueError, match="is damaged") as caught:
        Predictor.load(tmp_path, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        Predictor.load(tmp_path / "none")
    with pytest.raises(ValueError, match="expected the run folder of a finished"):
        Predictor.load(tmp_path)


def test_files_are_answered_in_order_and_the_unreadable_with_a_reason(tmp_path: Path) -> None:
    model, images = made(), pixels(2)
    paths = [tmp_path / name for name in ("z.png", "broken.png", "a.png", "missing.png")]
    Image.fromarray(images[0, 0].numpy()).save(paths[0])
    paths[1].write_bytes(b"not a picture")
    Image.fromarray(images[1, 0].numpy()).save(paths[2])
    answers = list(model.predict_files(paths))
    assert [answer.path for answer in answers] == paths
    assert [answer.error is None for answer in answers] == [True, False, True, False]
    expected = model.predict_proba(images)
    for answer, row in zip((answers[0], answers[2]), expected, strict=True):
        assert [name for name, _ in answer.ranking] == [NAMES[i] for i in np.argsort(-row)]
        np.testing.assert_allclose([p for _, p in answer.ranking], np.sort(row)[::-1], atol=1e-6)
    assert answers[1].ranking == ()


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """64 files in parts of eight for two threads; every seventh and a whole part are unreadable."""
    monkeypatch.setattr(predictor, "FILES_TOGETHER", 8)
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    paths = [tmp_path / f"{i}.png" for i in range(64)]
    for i, (path, image) in enumerate(zip(paths, pixels(64), strict=True)):
        if i in UNREADABLE:
            path.write_bytes(b"not a picture")
        else:
            image[:, : i % 3 * 7] = 0  # unlike in more than noise
            Image.fromarray(image[0].numpy()).save(path)
    yield paths
    torch.set_num_threads(usual)


UNREADABLE = {*range(0, 64, 7), *range(16, 24)}


def test_many_files_are_answered_as_each_alone(many: list[Path]) -> None:
    model = made(views=2)
    shown = model.embed(pixels(2)).mean(0)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    model.head.bias.data = -model.head.weight.data @ torch.from_numpy(shown)
    model.encoder.train()
    answers = list(model.predict_files(many))
    assert [answer.path for answer in answers] == many
    assert {i for i, answer in enumerate(answers) if answer.error} == UNREADABLE
    assert len({answer.ranking[0][0] for answer in answers if answer.ranking}) > 1
    for answer in answers:
        (alone,) = model.predict_files([answer.path])
        assert alone.error == answer.error
        assert dict(alone.ranking) == pytest.approx(dict(answer.ranking), abs=1e-6)
        assert [name for name, _ in alone.ranking] == [name for name, _ in answer.ranking]


def test_few_files_are_shared_among_the_threads(
    many: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = threading.Barrier(2, timeout=20)  # breaks unless two threads read at a time

    def met(path: Path) -> Image.Image:
        meeting.wait()
        return drawn()

    monkeypatch.setattr(pictures, "open_image", met)
    assert not any(answer.error for answer in made().predict_files(many[:2]))


def drawn() -> Image.Image:
    return Image.fromarray(pixels(1)[0, 0].numpy())


def test_no_files_give_no_answers() -> None:
    assert list(made().predict_files([])) == []


def test_equally_probable_classes_keep_the_order_of_the_classes(many: list[Path]) -> None:
    model = made()
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    (answer,) = model.predict_files(many[1:2])
    assert tuple(name for name, _ in answer.ranking) == NAMES


def test_only_a_little_is_read_ahead(many: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    opened: list[Path] = []
    open_image = pictures.open_image

    def noted(path: Path) -> Image.Image:
        opened.append(path)
        return open_image(path)

    monkeypatch.setattr(pictures, "open_image", noted)
    for i, _ in enumerate(made().predict_files(many)):
        if i % 24 == 0:
            time.sleep(0.2)  # time enough to read everything, were it handed out
        assert len(opened) <= 8 * (i // 8 + 3)
    assert opened == many


def test_who_stops_early_leaves_no_threads_and_no_work(
    many: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    opened: list[Path] = []

    def slow(path: Path) -> Image.Image:
        opened.append(path)
        time.sleep(0.05 if len(opened) > 8 else 0)
        return drawn()

    monkeypatch.setattr(pictures, "open_image", slow)
    before = threading.active_count()
    answers = made().predict_files(many)
    assert next(answers).path == many[0]
    assert threading.active_count() == before + 1
    del answers
    assert threading.active_count() == before
    assert len(opened) <= 16  # the part that the thread had in hand, not the one after it


def test_the_number_of_threads_is_left_as_it_was(many: list[Path]) -> None:
    for _ in made().predict_files(many):
        assert torch.get_num_threads() == 2
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2


def test_loaded_weights_are_laid_out_as_convolutions_compute(tmp_path: Path) -> None:
    made().save(tmp_path)
    model = Predictor.load(tmp_path, device="cpu")
    with torch.inference_mode():
        seen = model.encoder.layers[0](pixels(2).float())
    assert seen.is_contiguous(memory_format=torch.channels_last)
    assert not seen.is_contiguous()

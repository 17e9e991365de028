from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from handful import backbones, cli, experiment, export, stages
from handful.backbones import Backbone, NotHere, encoder_of
from handful.config import NetworkConfig, RunConfig
from handful.datasets import Dataset
from handful.estimator import SimCLRClassifier
from handful.images import ImageSet
from handful.networks import ConvNet, represent
from handful.pictures import Preparation
from handful.predictor import Predictor
from handful.pretext import place_of_pretext
from handful.recipes import compose
from handful.session import Session, members_of, plan
from handful.stages import from_the_start

Answered = Callable[..., str]


pytestmark = pytest.mark.usefixtures("timm")


def network(name: str = "test_resnet", **others: Any) -> NetworkConfig:
    return NetworkConfig(encoder=f"timm:{name}", head_hidden=16, head_dim=8, **others)


def built(config: NetworkConfig, channels: int = 3, size: int = 32) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = encoder_of(channels, size, config)
    assert isinstance(encoder, Backbone)
    return encoder


def noise(n: int, channels: int = 3, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, channels, size, size), generator=generator, dtype=torch.uint8)


def test_handfuls_own_encoder_is_the_usual_one() -> None:
    assert isinstance(encoder_of(1, 28, NetworkConfig()), ConvNet)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "size"), [("test_resnet", 28), ("test_vit", 64), ("mobilenetv3_small_050", 32)]
)
def test_any_architecture_becomes_an_encoder(name: str, size: int, channels: int) -> None:
    encoder = built(network(name), channels, size)
    images = noise(5, channels, size)
    encoder.normalise_to(images)
    h = represent(encoder, images)
    assert h.shape == (5, encoder.dim)
    assert torch.isfinite(h).all()
    x = images.float() / 255
    with torch.no_grad():
        seen, style = encoder.eval().looked(x)
    torch.testing.assert_close(seen, h)
    assert style.shape == (5, encoder.style_dim)


def test_an_image_is_normalised_before_the_architecture_sees_it(timm: Any) -> None:
    encoder, images = built(network()).eval(), noise(4)
    encoder.normalise_to(images)
    x = images.float() / 255
    with torch.no_grad():
        direct = encoder.model(
            (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)
        )
    torch.testing.assert_close(represent(encoder, images), direct, rtol=1e-3, atol=1e-4)


def test_first_weights_depend_on_the_seed_alone() -> None:
    one, other = built(network()), built(network())
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


@pytest.fixture
def weights(timm: Any, tmp_path: Path) -> tuple[Path, nn.Module]:
    """A file of weights as others publish them: with a classifier, for images in colour."""
    torch.manual_seed(5)
    model = timm.create_model("test_resnet", num_classes=7)
    save_file(model.state_dict(), tmp_path / "theirs.safetensors")
    return tmp_path / "theirs.safetensors", model


def test_weights_of_a_file_are_taken_with_their_normalisation(
    weights: tuple[Path, nn.Module],
) -> None:
    file, model = weights
    encoder = built(network())
    encoder.normalise_to(noise(4) // 2)
    encoder.begin_with(file)
    told = model.pretrained_cfg
    assert encoder.mean.flatten().tolist() == pytest.approx(told["mean"])
    x = (noise(3).float() / 255 - encoder.mean) / encoder.std
    with torch.no_grad():
        theirs = model.eval().forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(represent(encoder, noise(3)), theirs, rtol=1e-3, atol=1e-4)


def test_weights_for_colour_serve_grey_images(weights: tuple[Path, nn.Module]) -> None:
    encoder = built(network(), channels=1)
    encoder.begin_with(weights[0])
    assert encoder.mean.flatten().tolist() == pytest.approx(
        [float(np.mean(weights[1].pretrained_cfg["mean"]))]
    )
    assert torch.isfinite(represent(encoder, noise(2, 1))).all()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.write_bytes(b"\x80\x04 a pickle"), "is no .safetensors file"),
        (lambda path: save_file({}, path), "holds no tensors"),
        (lambda path: save_file({"a.weight": torch.zeros(3, 3)}, path), "does not fit timm:test"),
        (
            lambda path: save_file({"conv1.0.weight": torch.zeros(5, 5)}, path),
            "does not fit timm:test_resnet",
        ),
    ],
)
def test_a_file_that_gives_no_weights_is_refused(
    tmp_path: Path, make: Callable[[Path], object], told: str
) -> None:
    file = tmp_path / "w.safetensors"
    make(file)
    with pytest.raises(ValueError, match=told) as caught:
        built(network()).begin_with(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_timm_does_not_know_gets_the_nearest() -> None:
    with pytest.raises(ValueError, match="no such model; did you mean timm:resnet18"):
        encoder_of(3, 32, network("resnet81"))


def test_images_that_an_architecture_cannot_take_are_refused_in_one_line() -> None:
    with pytest.raises(
        ValueError, match=r"test_vit cannot take images of 40 pixels: .*data\.size"
    ) as e:
        encoder_of(3, 40, network("test_vit"))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("name", "size", "told"),
    [
        ("resnet18.bogus", 32, r"no such weights, but .*resnet18\.a1_in1k"),
        ("nest_tiny_jx", 40, "cannot take images of 40 pixels"),
        ("maxvit_tiny_tf_224", 28, "cannot take images of 28 pixels"),
    ],
)
def test_whatever_an_architecture_fails_with_is_one_line(name: str, size: int, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        encoder_of(3, size, network(name))
    assert "\n" not in str(caught.value)


def test_weights_of_a_larger_relative_are_of_another_architecture(
    weights: tuple[Path, nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    file, model = weights
    more = model.state_dict()
    block = {name: w for name, w in more.items() if name.startswith("layer4.0.")}
    more |= {name.replace("layer4.0.", "layer4.1."): w.clone() for name, w in block.items()}
    save_file(more, file)
    with pytest.raises(
        ValueError, match=rf"{len(block)} tensors are of no layer, such as layer4.1"
    ):
        built(network()).begin_with(file)
    assert not caplog.records


def test_a_larger_relative_is_told_also_where_reading_it_fails(timm: Any, tmp_path: Path) -> None:
    name = "swin_tiny_patch4_window7_224"
    with torch.random.fork_rng(devices=[]):
        larger = timm.create_model(name, depths=(2, 2, 7, 2)).state_dict()
    save_file(
        {key: weights.contiguous() for key, weights in larger.items()}, tmp_path / "w.safetensors"
    )
    with pytest.raises(ValueError, match=f"does not fit timm:{name}"):
        built(network(name), size=64).begin_with(tmp_path / "w.safetensors")


def test_left_overs_are_told_also_where_timm_is_silenced() -> None:
    said: list[str] = []
    logger = logging.getLogger("timm.models._builder")
    logger.setLevel(logging.ERROR)
    try:
        with backbones._what_timm_says() as said:
            logger.warning("Unexpected keys (AuxLogits.a, b.w, b.x, c.w, c.x, d.w) found while ...")
        assert logger.level == logging.ERROR
    finally:
        logger.setLevel(logging.NOTSET)
    assert backbones._left_over(said) == "5 tensors are of no layer, such as b.w"


def test_only_a_file_that_holds_no_code_is_opened(
    weights: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    other = weights[0].rename(tmp_path / "theirs.bin")
    with pytest.raises(ValueError, match=r"theirs\.bin: expected a \.safetensors file"):
        built(network()).begin_with(other)


def test_without_timm_people_hear_what_to_install() -> None:
    with (
        mock.patch.dict(sys.modules, {"timm": None}),
        pytest.raises(NotHere, match=r"need timm, .* pip install 'handful\[timm\]'"),
    ):
        encoder_of(3, 32, network())


def test_a_torchvision_of_another_torch_is_named() -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    with (
        mock.patch.dict(sys.modules),
        mock.patch("builtins.__import__", broken),
        pytest.raises(NotHere, match=r"nms does not exist.*torchvision that belongs to torch"),
    ):
        backbones._timm()


GIVEN = {"network.encoder": "timm:resnet18", "network.weights": "w.safetensors"}


def configured(way: str, **more: Any) -> RunConfig:
    """What is to be trained, asked for at the command line, from Python or of an estimator."""
    if way == "compose":
        return compose("photos", None, None, GIVEN | more, [])[0]
    if way == "estimator":
        return SimCLRClassifier(settings=GIVEN | more)._config()[0]
    with mock.patch.object(experiment, "run") as run:
        changes = {key.replace(".", "__"): value for key, value in (GIVEN | more).items()}
        experiment.train("photos", out="nowhere", **changes)
    config = run.call_args.args[0]
    assert isinstance(config, RunConfig)
    return config


@pytest.mark.parametrize("way", ["compose", "train", "estimator"])
def test_given_weights_are_trained_gently_unless_somebody_says_otherwise(way: str) -> None:
    config = configured(way)
    assert config.downstream.encoder_rate == 0.1
    assert config.pretext.learning_rate == 3e-4
    if way == "train":  # a whole branch of settings says nothing of this one
        config = configured(way, downstream={"steps": 7})
        assert (config.downstream.encoder_rate, config.downstream.steps) == (0.1, 7)
    said = configured(way, **{"downstream.encoder_rate": 0.7})
    assert said.downstream.encoder_rate == 0.7
    assert said.pretext.learning_rate == 3e-4
    drawn = compose("photos", None, None, {"network.encoder": "timm:resnet18"}, [])[0]
    assert drawn.pretext == compose("photos", None, None, {}, [])[0].pretext


@pytest.mark.parametrize(("weights", "rate"), [("w.safetensors", 0.1), (None, 1.0)])
def test_a_control_and_a_trial_spare_given_weights_too(weights: str | None, rate: float) -> None:
    changes = {"network.encoder": "timm:resnet18", "network.weights": weights}
    config = RunConfig().updated({"downstream.encoder_rate": 0.1, **changes})
    assert from_the_start(config).encoder_rate == rate


def test_an_ensemble_of_timms_looks_in_ways_that_these_can() -> None:
    config, _ = compose("photos", "ensemble", None, {"network.encoder": "timm:resnet18"}, [])
    assert config.network.columns == ("upright", "plain", "upright")


def test_a_seed_decides_what_an_architecture_drops() -> None:
    config = network("ghostnet_050")  # drops a fifth of h by itself
    images = ImageSet.of(noise(12), torch.arange(12) % 2, ("a", "b"))
    settings = RunConfig().updated(
        {"network": config.model_dump(), "pretext.steps": 0, "data.validation": 0.0,
         "downstream.steps": 2, "downstream.batch_size": 12, "preset": "general", "device": "cpu"}
    )  # fmt: skip

    def trained(seed: int) -> Tensor:
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        dataset = Dataset(images, None, "", Preparation("letterbox", 32, 3), ())
        asked, parts = plan(settings, dataset)
        quiet: Any = lambda *_: None  # noqa: E731
        session = Session(asked, torch.device("cpu"), dataset, parts, None, quiet, quiet)
        found = stages.train_classifier(members_of(session))
        assert torch.equal(torch.get_rng_state(), before)
        return found.classifier.weight.detach()

    assert torch.equal(trained(1), trained(2))


def test_a_kept_pretext_task_is_of_the_weights_that_it_began_with(
    weights: tuple[Path, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "cache"))
    images = ImageSet.of(noise(8), torch.arange(8) % 2, ("a", "b"))
    dataset = Dataset(images, None, "", Preparation("letterbox", 32, 3), ())
    quiet: Any = lambda *_: None  # noqa: E731

    def place(file: Path | None = None, seed: int = 0) -> Path:
        config = RunConfig().updated(
            {"network.encoder": "timm:test_resnet", "pretext.cache": True, "pretext.steps": 2,
             "preset": "general", "seed": seed, "data.validation": 0.0, "downstream.steps": 2,
             "network.weights": None if file is None else str(file)}
        )  # fmt: skip
        asked, parts = plan(config, dataset)
        session = Session(asked, torch.device("cpu"), dataset, parts, None, quiet, quiet)
        (member,) = members_of(session)
        found = place_of_pretext(member)
        assert found is not None
        with torch.no_grad():
            next(member.encoder.parameters()).add_(1.0)  # as training does
        assert place_of_pretext(member) == found
        return found

    file, model = weights
    same, other = tmp_path / "same.safetensors", tmp_path / "other.safetensors"
    same.write_bytes(file.read_bytes())
    save_file({name: torch.ones_like(value) for name, value in model.state_dict().items()}, other)
    assert place(file) == place(same)
    assert len({place(), place(seed=1), place(file), place(other)}) == 4


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of pictures: red ones and blue ones."""
    rng = np.random.default_rng(0)
    for name, channel in (("red", 0), ("blue", 2)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(15):
            pixels = rng.integers(0, 60, (32, 32, 3), np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def test_a_run_from_the_command_line_with_weights(
    photos: Path, weights: tuple[Path, nn.Module], tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "run"
    short = [
        "--set=pretext.steps=3", "--set=downstream.steps=12", "--set=pretext.batch_size=16",
        "--set=downstream.batch_size=16", "--set=tsne=false", "--set=preset=general",
        "--set=downstream.learning_rate=0.02",
    ]  # fmt: skip
    words = ["train", str(photos), "--out", str(out), "--encoder", "timm:test_resnet"]
    code = cli.main([*words, "--weights", str(weights[0]), *short, "--device=cpu", "-q"])
    assert code == 0, capsys.readouterr().err
    model = Predictor.load(out)
    assert isinstance(model.encoder, Backbone)
    weights[0].unlink()  # a model is whole without it
    answers = Predictor.load(out).predict([photos / "red" / "0.png", photos / "blue" / "0.png"])
    assert answers == ["red", "blue"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["multiply_adds"] is None
    again = [*words, "--weights", str(weights[0].parent / "." / weights[0].name)]
    assert cli.main([*again, *short, "--device=cpu"]) == 0  # needs no weights: it is complete
    assert "nothing to do" in capsys.readouterr().err
    assert export.export(out).difference < 1e-4


@pytest.mark.parametrize("name", ["convit_tiny", "test_vit", "swin_tiny_patch4_window7_224"])
def test_a_model_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    encoder = built(network(name), size=64)
    encoder.normalise_to(noise(4, size=64))
    preparation = Preparation("letterbox", 64, 3)
    head = nn.Linear(encoder.dim, 2)
    model = Predictor(encoder, head, ("a", "b"), preparation, network(name))
    model.save(tmp_path / "model")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    read = Predictor.load(tmp_path / "model", device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    images = noise(3, size=64)
    np.testing.assert_array_equal(read.predict_proba(images), model.predict_proba(images))


def test_a_transformer_is_exported(tmp_path: Path) -> None:
    config = network("test_vit")
    encoder = built(config, size=64)
    preparation = Preparation("letterbox", 64, 3)
    model = Predictor(encoder, nn.Linear(encoder.dim, 2), ("a", "b"), preparation, config)
    model.save(tmp_path / "model")
    assert export.export(tmp_path / "model").difference < 1e-4


def test_what_the_exporter_cannot_write_is_one_line(tmp_path: Path) -> None:
    config = network()
    encoder = built(config)
    preparation = Preparation("letterbox", 32, 3)
    model = Predictor(encoder, nn.Linear(encoder.dim, 2), ("a", "b"), preparation, config)
    model.save(tmp_path / "model")
    failing = mock.patch.object(export, "graph", side_effect=RuntimeError("no such\noperator"))
    with (
        failing,
        pytest.raises(ValueError, match="write timm:test_resnet as ONNX: no such operator"),
    ):
        export.export(tmp_path / "model")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--encoder", "resnet18"], "network.encoder = resnet18: expected convnet, or timm:"),
        (["--weights", "w.safetensors"], "network.weights = w.safetensors needs an encoder"),
        (
            ["--encoder", "timm:resnet18", "--set", 'network.columns=["harmonic"]'],
            "leave harmonic ones out",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(
    photos: Path, tmp_path: Path, words: list[str], told: str, capsys: Any
) -> None:
    assert cli.main(["train", str(photos), "--out", str(tmp_path / "run"), *words]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()

from __future__ import annotations

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

from handful import backbones, cli, export
from handful.backbones import Backbone, NotHere, encoder_of
from handful.config import NetworkConfig
from handful.networks import ConvNet, represent
from handful.predictor import Predictor
from handful.recipes import compose

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


def test_given_weights_are_trained_gently_unless_somebody_says_otherwise() -> None:
    given = {"network.encoder": "timm:resnet18", "network.weights": "w.safetensors"}
    config, _ = compose("photos", None, None, given, [])
    assert config.downstream.encoder_rate == 0.1
    assert config.pretext.learning_rate == 3e-4
    said, _ = compose("photos", None, None, given, ["downstream.encoder_rate=1.0"])
    assert said.downstream.encoder_rate == 1.0
    usual, _ = compose("photos", None, None, {"network.encoder": "timm:resnet18"}, [])
    assert (
        usual.pretext.learning_rate
        == compose("photos", None, None, {}, [])[0].pretext.learning_rate
    )


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
    assert export.export(out).difference < 1e-4


def test_reading_a_model_leaves_global_randomness_alone(
    photos: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "run"
    short = ["--set=pretext.steps=0", "--set=downstream.steps=1", "--set=tsne=false"]
    words = ["train", str(photos), "--out", str(out), "--encoder", "timm:test_resnet"]
    assert cli.main([*words, *short, "--set=preset=general", "--device=cpu", "-q"]) == 0
    torch.manual_seed(3)
    before = torch.get_rng_state()
    Predictor.load(out)
    assert torch.equal(torch.get_rng_state(), before)


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

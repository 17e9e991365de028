from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from handful import checkpoints, cli, export, screen
from handful.config import SURE, NetworkConfig
from handful.export import KEY, Exported
from handful.images import to_float
from handful.networks import ConvNet, Ensemble, classifier_head, joined
from handful.pictures import Preparation
from handful.predictor import Predictor

NETWORK = NetworkConfig(width=4)
NAMES = ("neun", "eins", "fünf")
EXAMPLE = Path(__file__).parents[1] / "examples" / "onnx_predict.py"
# No handful and no torch: what tries to import them fails.
WITHOUT_TORCH = (
    "import runpy, sys; sys.modules.update(torch=None, handful=None); "
    "runpy.run_path(sys.argv.pop(1))"
)


def made(
    channels: Any = 1, size: int = 28, views: int = 1, members: int = 1, kind: Any = "letterbox"
) -> Predictor:
    """Untrained networks that are sure of half of the images that exports are checked on."""
    kind = "digits" if (channels, size) == (1, 28) else kind
    preparation = Preparation(kind, size, channels)
    columns = ("upright", "harmonic") if members > 1 else ("plain",)
    network = NETWORK.model_copy(update={"columns": columns})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoders = [ConvNet(channels, size, network, number=i) for i in range(members)]
        heads = [classifier_head(one.dim, len(NAMES)) for one in encoders]
    encoder, head = joined(encoders, heads)
    model = Predictor(encoder, head, NAMES, preparation, network, 1.0, views)
    images = export.trial_images(model)[0][:100]
    with torch.no_grad():
        for one in encoders:
            one.normalise_to(images)
            one.train()(to_float(images))  # batch norms have seen something, as after training
        h = encoder.eval()(to_float(images))
        head.bias.copy_(-(h @ head.weight.T).mean(0))
        logits = head(h)
    colder = np.geomspace(1, 1e-4, 200)
    surest = [(logits / t).softmax(1).amax(1).median() for t in colder]
    model.temperature = float(next(t for t, p in zip(colder, surest, strict=True) if p > SURE))
    return model


def images_for(model: Predictor, n: int = 57) -> torch.Tensor:
    return export.trial_images(model)[0][:n]


MODELS: dict[str, Callable[[], Predictor]] = {
    "single, 1 channel": lambda: made(),
    "two members, views": lambda: made(views=3, members=2),
    "3 channels, views": lambda: made(channels=3, size=17, views=3),
    "3 channels, mirrored views": lambda: replace(
        made(channels=3, size=17, views=3), mirrored=True
    ),
    "3 channels, crop": lambda: made(channels=3, size=17, kind="crop"),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Predictor, Path]]:
    """Each model with the run folder that it was exported in: once, for that takes seconds."""
    done: dict[str, tuple[Predictor, Path]] = {}

    def get(name: str) -> tuple[Predictor, Path]:
        if name not in done:
            run = tmp_path_factory.mktemp("run")
            MODELS[name]().save(run / "model")
            export.export(run)
            done[name] = Predictor.load(run, "cpu"), run
        return done[name]

    return get


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", MODELS)
def test_it_answers_as_the_predictor_does(
    name: str, exported: Callable[[str], tuple[Predictor, Path]]
) -> None:
    model, run = exported(name)
    runtime = session(run / "model" / "model.onnx")
    images = images_for(model)
    first = replace(model, test_views=1).predict_proba(images).max(1)
    assert (first < SURE).any()  # some are looked at again,
    assert (first > SURE).any()  # others are not
    for n in (1, 2, 7, 57):
        probabilities, h = runtime.run(None, {"images": images[:n].numpy()})
        np.testing.assert_allclose(probabilities, model.predict_proba(images[:n]), atol=1e-5)
        np.testing.assert_allclose(h, model.embed(images[:n]), atol=1e-5, rtol=1e-5)
        assert probabilities.dtype == h.dtype == np.float32


def test_views_count_and_only_where_there_is_doubt(
    exported: Callable[[str], tuple[Predictor, Path]],
) -> None:
    model, run = exported("two members, views")
    images = images_for(model)
    once = replace(model, test_views=1).predict_proba(images)
    sure = once.max(1) > SURE
    runtime = session(run / "model" / "model.onnx")
    (probabilities, _) = runtime.run(None, {"images": images.numpy()})
    assert np.abs(probabilities - once)[~sure].max() > 0.01
    np.testing.assert_allclose(probabilities[sure], once[sure], atol=1e-5)
    # a batch of which no image is looked at again, and one without images
    (probabilities, _) = runtime.run(None, {"images": images[sure].numpy()})
    np.testing.assert_allclose(probabilities, once[sure], atol=1e-5)
    (probabilities, _) = runtime.run(None, {"images": images[:0].numpy()})
    assert probabilities.shape == (0, 3)


def test_it_is_one_file_with_all_that_belongs_to_it(
    exported: Callable[[str], tuple[Predictor, Path]],
) -> None:
    model, run = exported("3 channels, views")
    assert sorted(path.name for path in run.rglob("*")) == [
        "model", "model.json", "model.onnx", "weights.safetensors",
    ]  # fmt: skip
    file = run / "model" / "model.onnx"
    onnx.checker.check_model(onnx.load(file), full_check=True)
    about = json.loads(session(file).get_modelmeta().custom_metadata_map[KEY])
    assert about["class_names"] == list(NAMES)
    assert about["temperature"] == model.temperature
    assert (about["members"], about["test_views"], about["doubt_below"]) == (1, 3, SURE)
    assert about["format"] == checkpoints.FORMAT
    assert {"handful", "torch", "onnx", "onnxruntime"} <= set(about["versions"])
    assert Preparation.from_dict(about["preparation"]) == model.preparation
    assert "median colour" in about["preparation"]["meaning"]
    assert "white: in pictures of 16 bits" in about["preparation"]["meaning"]


def test_it_says_nothing_of_where_it_was_made(
    exported: Callable[[str], tuple[Predictor, Path]],
) -> None:
    _, run = exported("3 channels, views")
    data = (run / "model" / "model.onnx").read_bytes()
    for place in (Path(export.__file__).parent, Path(torch.__file__).parent, run):
        assert str(place).encode() not in data
    assert b"stack_trace" not in data


def test_sizes_of_its_input_and_outputs(
    exported: Callable[[str], tuple[Predictor, Path]],
) -> None:
    _, run = exported("3 channels, views")
    runtime = session(run / "model" / "model.onnx")
    (images,), (probabilities, h) = runtime.get_inputs(), runtime.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["N", 3, 17, 17])
    assert (probabilities.name, probabilities.shape) == ("probabilities", ["N", 3])
    assert (h.name, h.shape[0]) == ("h", "N")


@pytest.mark.parametrize("name", ["single, 1 channel", "3 channels, views", "3 channels, crop"])
def test_the_example_answers_as_predict_does_without_torch(
    name: str, exported: Callable[[str], tuple[Predictor, Path]], tmp_path: Path
) -> None:
    model, run = exported(name)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image, wide in zip(paths, images_for(model, 3), (28, 41, 20), strict=True):
        if model.preparation.kind == "digits":  # as the model has them already
            Image.fromarray(image[0].numpy()).save(path)
        else:
            Image.fromarray(image.permute(1, 2, 0).numpy()).resize((wide, 30)).save(path)
    done = example(run / "model" / "model.onnx", *paths)
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    for row, answer in zip(rows, model.predict_files(paths), strict=True):
        best, probability = answer.ranking[0]
        assert row[:2] == [str(answer.path), best]
        assert float(row[2]) == pytest.approx(probability, abs=1e-4)


@pytest.mark.parametrize(("size", "colour"), [((90, 60), "black"), ((28, 28), "white")])
def test_the_example_refuses_what_it_cannot_prepare(
    size: tuple[int, int],
    colour: str,
    exported: Callable[[str], tuple[Predictor, Path]],
    tmp_path: Path,
) -> None:
    _, run = exported("single, 1 channel")
    photo = tmp_path / "photo.png"
    image = Image.new("L", size, colour)
    image.putpixel((14, 14), 200)
    image.save(photo)
    done = example(run / "model" / "model.onnx", photo)
    assert done.returncode == 1
    assert "photo.png: make it 28 × 28 first, light ink on black" in done.stderr
    assert done.stdout == ""


def example(*arguments: Path) -> subprocess.CompletedProcess[str]:
    """The example in a process of its own that has neither torch nor handful."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, EXAMPLE, *arguments],
        capture_output=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"},
    )


def test_the_example_is_short() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    body = [
        line for line in text.splitlines()[1:] if line and not line.startswith(("import", "from"))
    ]
    assert len(body) <= 20


# What is refused, and what then is left.


@pytest.fixture(scope="module")
def small() -> tuple[Predictor, onnx.ModelProto, onnx.ModelProto]:
    """A small model, its graph, and one that is twice as doubtful: made once, that takes time."""
    model = made(size=8)
    other = replace(model, temperature=2 * model.temperature)
    return model, export.graph(model), export.graph(other)


@pytest.fixture
def run(tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with the small model."""
    model, right, _ = small
    model.save(tmp_path / "run" / "model")
    monkeypatch.setattr(export, "graph", lambda _model: right)
    return tmp_path / "run"


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line with which a command is refused."""

    def command(*arguments: object) -> str:
        assert cli.main(list(map(str, arguments))) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("handful: ")
        assert err.count("\n") == 1
        return err

    return command


def test_a_format_that_there_is_not(run: Path, refused: Callable[..., str]) -> None:
    assert "unknown format tflite: handful exports to onnx" in refused(
        "export", run, "--format", "tflite"
    )


@pytest.mark.parametrize("missing", export.NEEDED)
def test_without_the_extra(
    missing: str, run: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    line = refused("export", run)
    assert f"no {missing} here: pip install 'handful[onnx]'" in line
    assert files(run) == ["model", "model.json", "weights.safetensors"]


def test_a_file_that_answers_otherwise_is_not_written(
    run: Path,
    refused: Callable[..., str],
    small: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file, (_, right, wrong) = run / "model" / "model.onnx", small
    before = files(run)
    monkeypatch.setattr(export, "graph", lambda _model: wrong)
    line = refused("export", run, "--format", "onnx")
    assert f"{file} was not written: on 1,000 images (random patches, seed 0)" in line
    assert "probabilities differ from PyTorch's by up to 0." in line
    assert files(run) == before

    monkeypatch.setattr(export, "graph", lambda _model: right)
    assert cli.main(["export", str(run)]) == 0
    out, err = capsys.readouterr()
    path, checked = out.splitlines()
    assert path == str(file)
    assert checked.startswith("checked on 1,000 random patches, seed 0: same classes as PyTorch")
    assert err == ""
    assert files(run) == sorted([*before, "model.onnx"])

    written = file.read_bytes()
    assert f"{file} exists: --overwrite replaces it" in refused("export", run)
    monkeypatch.setattr(export, "graph", lambda _model: wrong)
    assert "was not written" in refused("export", run, "--overwrite")
    assert file.read_bytes() == written


def test_what_the_check_looks_at(exported: Callable[[str], tuple[Predictor, Path]]) -> None:
    model, run = exported("two members, views")
    file = run / "model" / "model.onnx"
    found = export._checked(model, file, file)
    assert (found.images, found.of) == (1000, "test images of mnist50")
    assert found.edge < 10
    assert (found.again > 0) == (model.test_views > 1)
    assert 0 < found.difference < 1e-5
    turned = replace(model, class_names=NAMES[::-1], head=reversed_head(model))
    with pytest.raises(
        ValueError, match=r"differ from PyTorch's by up to [01].*classes are others"
    ):
        export._checked(turned, file, file)
    shifted = Predictor.load(run, "cpu")
    with torch.no_grad():  # the same probabilities from another h
        shifted.head.weight.mul_(0.5)
    assert isinstance(shifted.encoder, Ensemble)
    for member in shifted.encoder.members:
        assert isinstance(member, ConvNet)
        member.layers[-1].register_forward_hook(lambda _module, _x, maps: 2 * maps)
    with pytest.raises(ValueError, match=r"its h by 0\..*and 0 classes are others"):
        export._checked(shifted, file, file)


def test_a_hundredth_more_doubt_is_seen(
    exported: Callable[[str], tuple[Predictor, Path]],
) -> None:
    model, run = exported("single, 1 channel")
    nudged = replace(model, temperature=model.temperature * 1.01)
    with pytest.raises(ValueError, match=r"by up to 0\.00.*\(at most 0\.0001\), and 0 classes"):
        export._checked(nudged, run / "model" / "model.onnx", run)


def reversed_head(model: Predictor) -> torch.nn.Linear:
    head = classifier_head(model.encoder.dim, len(NAMES))
    head.load_state_dict({name: t.flip(0) for name, t in model.head.state_dict().items()})
    return head


def test_images_that_rounding_decides_are_left_out_and_counted(
    exported: Callable[[str], tuple[Predictor, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, run = exported("two members, views")
    file = run / "model" / "model.onnx"
    images, _ = export.trial_images(model)
    first = replace(model, test_views=1).predict_proba(images).max(1)
    monkeypatch.setattr(export, "EDGE", 0.01)
    near = int((np.abs(first - SURE) < 0.01).sum())
    found = export._checked(model, file, file)
    assert found.edge == near > 0
    assert f", {near} left out where rounding decides that)" in screen.exported(found)
    assert not export._first_looks(replace(model, test_views=1), images)[1].any()


def test_another_file_and_where_there_is_no_place_for_one(
    run: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    assert f"{tmp_path} is a folder: name a file" in refused("export", run, "--out", tmp_path)
    nowhere = tmp_path / "none" / "m.onnx"
    assert f"there is no folder {nowhere.parent}" in refused("export", run, "--out", nowhere)
    assert "no run in" in refused("export", tmp_path / "other")
    found = export.export(run / "model", out=tmp_path / "m.onnx")
    assert isinstance(found, Exported)
    assert found.path == tmp_path / "m.onnx"
    assert files(tmp_path) == ["m.onnx", "model", "model.json", "run", "weights.safetensors"]
    runtime = session(tmp_path / "m.onnx")
    model = Predictor.load(run, "cpu")
    (probabilities,) = runtime.run(["probabilities"], {"images": images_for(model).numpy()})
    np.testing.assert_allclose(probabilities, model.predict_proba(images_for(model)), atol=1e-5)


def test_exporting_leaves_the_model_and_randomness_alone(small: Any) -> None:
    model, graph, _ = small
    images, state = images_for(model), torch.get_rng_state()
    before = model.predict_proba(images)
    assert export.graph(model) == graph  # which says that it is repeatable, too
    assert np.array_equal(model.predict_proba(images), before)
    assert torch.equal(torch.get_rng_state(), state)

"""The README tells the truth: its commands run, its links lead somewhere, its Python works."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file

from handful.cli import main
from handful.datasets import Dataset
from handful.recipes import RECIPES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# The commands as they stand, but for the length of training and the size of the network.
SHORTENED = (
    "network.width=4", "pretext.steps=2", "pretext.batch_size=32", "downstream.steps=3",
    "downstream.checks=2", "test_views=1",
)  # fmt: skip


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    lines = "\n".join(blocks("sh", text)).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("handful ")]


@pytest.fixture
def workplace(bundled: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the README takes for granted: photos of two classes, more, and a digit."""
    images = bundled.train
    for i in range(45):
        folder = tmp_path / "photos" / images.class_names[int(images.labels[i]) % 2]
        folder = folder if i < 40 else tmp_path / "more"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.images[i, 0].numpy()).save(folder / f"{i}.png")
    shutil.copy(next((tmp_path / "photos").rglob("*.png")), tmp_path / "digit.png")
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_all(text: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Run every command in a text; the names of them all."""
    found = commands(text)
    for words in found:
        trains = words[1] in ("train", "bench", "learn-curve")
        extra = [f"--set={one}" for one in SHORTENED] if trains else []
        if words[1] == "audit":  # has no pretext task
            extra = [f"--set={one}" for one in SHORTENED if not one.startswith("pretext")]
        extra += ["--draws=0-1"] if words[1] == "learn-curve" else []
        assert main(words[1:] + extra) == 0, capsys.readouterr().err
    return {words[1] for words in found}


def test_every_command_runs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_all(README, capsys)
    expected = "train predict evaluate embed plot export bench learn-curve suggest audit"
    assert found >= set(expected.split())
    assert (workplace / "runs" / "mnist50-demo" / "report.html").exists()
    assert (workplace / "h.npz").exists()


def test_the_tour_of_ones_own_images_runs(
    workplace: Path, timm: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "your-images.md").read_text(encoding="utf-8")
    save_file(timm.create_model("resnet18").state_dict(), workplace / "resnet18.safetensors")
    assert run_all(text, capsys) >= {"audit", "train", "predict", "suggest", "export", "embed"}
    for made in ("photos-audit/audit.html", "photos/report.html", "photos/model/model.onnx"):
        assert (workplace / "runs" / made).exists()


def test_its_python_works(workplace: Path) -> None:
    code, _ = blocks("python")
    settings = ", ".join(one.replace(".", "__") for one in SHORTENED)
    shortened = code.replace('recipe="fast")', f'recipe="fast", {settings})')
    assert shortened != code
    exec(compile(shortened, "README.md", "exec"), {})
    assert (workplace / "runs" / "mine" / "summary.json").exists()


def test_its_scikit_learn_works() -> None:
    _, code = blocks("python")
    settings = dict(one.split("=") for one in SHORTENED)
    shortened = code.replace('recipe="fast"', f'recipe="fast", settings={settings}')
    assert shortened != code
    names: dict[str, Any] = {}
    exec(compile(shortened, "README.md", "exec"), names)
    assert names["classifier"].predict(names["X_test"]).shape == names["y_test"].shape


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_it_names_make_targets_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^    make ([a-z-]+)", README, re.MULTILINE))
    assert targets >= {"demo", "test"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_it_names_recipes_and_commands_that_exist() -> None:
    for recipe in re.findall(r"--recipe (\w+)", README):
        assert recipe in RECIPES

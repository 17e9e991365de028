"""Every example runs as it stands, but for its length; tests/test_export.py has the one in ONNX."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SHORT: dict[str, Any] = {
    "network__width": 4, "pretext__steps": 2, "pretext__batch_size": 32, "downstream__steps": 3,
    "downstream__checks": 2, "test_views": 1, "tsne": False,
}  # fmt: skip


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_of_them_are_tested() -> None:
    tested = {"digits", "glyphs", "scikit_learn", "onnx_predict"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested


def test_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = example("digits").main(tmp_path / "run", **SHORT)
    lines = capsys.readouterr().out.splitlines()
    assert f"{1 - wrong / 10_000:.2%} of the test images" in lines[0]
    assert (tmp_path / "run" / "report.html").exists()
    assert len(lines) == 7


def test_glyphs(tmp_path: Path) -> None:
    answers = example("glyphs").main(tmp_path, **SHORT)
    folders = [path for path in (tmp_path / "letters").iterdir() if path.is_dir()]
    assert len(folders) == 10
    counts = {len(list(folder.iterdir())) for folder in folders}
    assert counts == {21}
    assert not list((tmp_path / "letters").rglob("DejaVuSerif-Italic.png"))
    assert set(answers) <= {folder.name for folder in folders}


def test_scikit_learn() -> None:
    found = example("scikit_learn").main(width=4, pretext_steps=2, downstream_steps=3)
    assert len(found) == 3
    assert all(0 <= accuracy <= 1 for accuracy in found.values())

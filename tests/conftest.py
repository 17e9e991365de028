"""Fixtures that more than one test module needs."""

from __future__ import annotations

from pathlib import Path

import pytest

MNIST = Path(__file__).parents[1].parent / "shared" / "data" / "mnist"


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The folder of MNIST's four official idx files."""
    if not (MNIST / "train-images-idx3-ubyte.gz").exists():
        pytest.skip(f"needs the official MNIST files in {MNIST}")
    return MNIST

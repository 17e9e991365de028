"""Fixtures that more than one test module needs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import peers
from hypothesis import settings

from handful import datasets
from handful.config import DataConfig
from handful.datasets import Dataset
from handful.idx import write_idx
from handful.images import ImageSet

# The tests' networks are so small that a second thread costs more than it computes.
torch.set_num_threads(1)
# How long an example takes says nothing on a machine that is busy with other tests.
settings.register_profile("handful", deadline=None)
settings.load_profile("handful")

MNIST = Path(__file__).parents[1].parent / "shared" / "data" / "mnist"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", action="store_true", help="write the golden files anew")


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The folder of MNIST's four official idx files."""
    if not (MNIST / "train-images-idx3-ubyte.gz").exists():
        pytest.skip(f"needs the official MNIST files in {MNIST}")
    return MNIST


@pytest.fixture(scope="session")
def bundled() -> Dataset:
    """mnist50 as it is shipped: 500 training images, 50 a class, and 10,000 test images."""
    return datasets.load(DataConfig())


@pytest.fixture(scope="session")
def few(bundled: Dataset) -> ImageSet:
    """40 digits, the first four of each class, in no order of class."""
    index = _first(bundled.train.labels, 4)
    return bundled.train.select(index)


@pytest.fixture(scope="session")
def idx_folder(
    bundled: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int, int], Path]:
    """Makes a new directory of idx files: the first bundled digits of each class, and test images.

    Without test images it has no test files.
    """

    def make(per_class: int, test: int = 0) -> Path:
        folder = tmp_path_factory.mktemp("idx")
        train = bundled.train.select(_first(bundled.train.labels, per_class))
        assert bundled.test is not None
        parts = {"train": train, "t10k": bundled.test.select(torch.arange(test))}
        for part, images in parts.items():
            if len(images):
                pixels, labels = images.images[:, 0].numpy(), images.labels.to(torch.uint8).numpy()
                write_idx(folder / f"{part}-images-idx3-ubyte", pixels)
                write_idx(folder / f"{part}-labels-idx1-ubyte", labels)
        return folder

    return make


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    return torch.device("cuda")


@pytest.fixture(scope="session")
def timm() -> Any:
    """timm, also beside a torchvision that was built for another torch than the one here."""
    peers.prepare()
    return importlib.import_module("timm")


def _first(labels: torch.Tensor, per_class: int) -> torch.Tensor:
    """Positions of the first images of each class, ascending."""
    chosen = [(labels == label).nonzero()[:per_class, 0] for label in labels.unique()]
    return torch.cat(chosen).sort().values

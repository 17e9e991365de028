"""Accurate image classifiers from a handful of labelled images per class, with SimCLR.

    run = handful.train("mnist50", out="runs/demo")
    model = handful.load("runs/demo")
    model.predict(["digit.png"])

Names are imported when they are first used (PEP 562): `handful --help` costs no import of torch.
"""

from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from handful.config import RunConfig
    from handful.estimator import SimCLRClassifier, SimCLREncoder
    from handful.experiment import train
    from handful.images import ImageSet
    from handful.predictor import Predictor

    load = Predictor.load
    __version__: str

__all__ = [
    "ImageSet",
    "Predictor",
    "RunConfig",
    "SimCLRClassifier",
    "SimCLREncoder",
    "__version__",
    "load",
    "train",
]

_HOME = {
    "ImageSet": ("handful.images", "ImageSet"),
    "Predictor": ("handful.predictor", "Predictor"),
    "RunConfig": ("handful.config", "RunConfig"),
    "SimCLRClassifier": ("handful.estimator", "SimCLRClassifier"),
    "SimCLREncoder": ("handful.estimator", "SimCLREncoder"),
    "load": ("handful.predictor", "Predictor.load"),
    "train": ("handful.experiment", "train"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = _version()
    elif name in _HOME:
        module, attribute = _HOME[name]
        value = attrgetter(attribute)(import_module(module))
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("handful")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0+source"

"""A trained model as one ONNX file with the probabilities of `handful predict`, without torch.

What the file cannot do is open a picture and prepare it; its metadata say how that is done.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from handful import checkpoints, datasets, devices, views
from handful.config import SURE, DataConfig
from handful.images import to_float
from handful.networks import INFERENCE_BATCH
from handful.predictor import Predictor
from handful.wording import one_line

if TYPE_CHECKING:
    import onnx
    import onnxruntime

Array = np.ndarray[Any, Any]

FORMATS = ("onnx",)
NEEDED = ("onnx", "onnxruntime", "onnxscript")
OPSET = 20
"""The exporter's own; ONNX Runtime reads it from 1.17 on."""
KEY = "handful"
"""Where the metadata are: one JSON object."""
IMAGES = 1000
"""On so many a file is compared with PyTorch before it counts as written."""
TOLERANCE = 1e-4
"""Largest difference of a probability; of h, as a share of its largest number if above one."""
EDGE = 1e-5
"""So near to the limit of doubt, rounding decides whether an image is looked at again."""
PATCHES = 8
PREPARED = {
    "digits": (
        "light ink on black, scaled so that the longer side of its box is 20/28 of the frame, its "
        "centre of mass in the middle; an image that is so already is taken as it is"
    ),
    "letterbox": (
        "the whole picture, upright as its EXIF data ask, shrunk or enlarged (bicubic) until it "
        "fits and centred on the median colour of its border"
    ),
    "crop": (
        "the largest square in the middle of the picture, upright as its EXIF data ask, shrunk or "
        "enlarged (bicubic) to the frame"
    ),
}
"""What the file leaves to who calls it, for each kind of `Preparation`."""
WHITE = "white: in pictures of 16 bits the grey that becomes 255, null being 65535"


@dataclass(frozen=True)
class Exported:
    """What was written, and how it compared with PyTorch."""

    path: Path
    images: int
    of: str
    """Which images those were."""
    again: int
    """Of these, how many were looked at again, in further test views."""
    edge: int
    """Of these, how many were left out: rounding decides whether they are looked at again."""
    difference: float
    """Largest one of all probabilities."""


class Answers(nn.Module):
    """What the file computes: uint8 (N, C, S, S) to probabilities (N, Y) and h (N, D).

    `Predictor.predict_proba` and `embed`, in a form that can be traced. Images that leave no doubt
    are not looked at again here either: there is no computation for images that are not there.
    """

    grids: Tensor

    def __init__(self, model: Predictor) -> None:
        super().__init__()
        self.encoder, self.head, self.temperature = model.encoder, model.head, model.temperature
        self.mirrored = model.mirrored
        size = model.preparation.size
        # buffers: the random numbers behind them are PyTorch's own
        self.register_buffer("grids", views.test_grids(model.test_views, size, size, model.device))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = to_float(images)
        h = self.encoder(x)
        logits = self.head(h) / self.temperature
        if len(self.grids):
            logits = self._looked_at_again(x, logits)
        return logits.softmax(1), h

    def _looked_at_again(self, x: Tensor, logits: Tensor) -> Tensor:
        doubt = (logits.softmax(1).amax(1) < SURE).nonzero().squeeze(1)  # (M,)
        # said to the tracer alone, which must know; the graph that it makes takes M = 0 as well
        torch._check(doubt.shape[0] > 0)
        seen = views.through(self.grids, x[doubt], mirrored=self.mirrored)  # V of (M, C, S, S)
        others = len(self.grids)
        more = self.head(self.encoder(torch.cat(seen))) / self.temperature  # (V · M, Y)
        total = more.unflatten(0, (others, doubt.shape[0])).sum(0)  # (M, Y)
        return logits.index_put((doubt,), (logits[doubt] + total) / (others + 1))


def export(
    run: Path, form: str = "onnx", out: Path | None = None, *, overwrite: bool = False
) -> Exported:
    """Write the model of a run as one file, once ONNX Runtime answers from it as PyTorch does.

    out: default `model.onnx` beside the weights. A file that is there is kept unless `overwrite`.
    Raises ValueError for an unknown format, where packages are missing, for what `Predictor.load`
    refuses, where it cannot write, and where answers differ; then nothing is left behind.
    """
    if form not in FORMATS:
        raise ValueError(f"unknown format {form}: handful exports to {', '.join(FORMATS)}")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"no {', '.join(missing)} here: pip install 'handful[onnx]'")
    model = Predictor.load(run, device="cpu")
    path = out or _beside_the_weights(run)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file, such as {path / 'model.onnx'}")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists: --overwrite replaces it, or choose another --out")
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    try:
        data = graph(model).SerializeToString()
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
        name, reason = model.network.encoder, one_line(error)
        raise ValueError(
            f"PyTorch's exporter cannot write {name} as ONNX: {reason:.300}"
        ) from error
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as aside:
            fresh = Path(aside) / path.name
            fresh.write_bytes(data)
            found = _checked(model, fresh, path)
            fresh.replace(path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from None
    return found


def _beside_the_weights(run: Path) -> Path:
    inner = run / "model"  # gone with the weights where `train --overwrite` replaces a run
    return (inner if inner.is_dir() else run) / "model.onnx"


def graph(model: Predictor) -> onnx.ModelProto:
    """The model with its weights and metadata, not checked yet. It is put into eval mode."""
    answers = Answers(model).eval()
    side, channels = model.preparation.size, model.preparation.channels
    example = torch.zeros(2, channels, side, side, dtype=torch.uint8)
    with _silence(), torch.no_grad():
        program = torch.onnx.export(
            answers,
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=["probabilities", "h"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    _forget_where_it_was_made(proto)
    entry = proto.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(metadata(model), ensure_ascii=False)
    return proto


def metadata(model: Predictor) -> dict[str, Any]:
    """All that goes with the graph, ready for JSON."""
    kind = model.preparation.kind
    return {
        "format": checkpoints.FORMAT,
        "class_names": list(model.class_names),
        "temperature": model.temperature,
        "test_views": model.test_views,
        "doubt_below": SURE,
        "members": model.members,
        "preparation": {**model.preparation.as_dict(), "meaning": f"{PREPARED[kind]}; {WHITE}"},
        "versions": devices.versions() | {name: version(name) for name in NEEDED},
    }


@contextmanager
def _silence() -> Iterator[None]:
    """What the exporter says of packages that are not needed and of its own future is no news."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _forget_where_it_was_made(proto: onnx.ModelProto) -> None:
    """Take out what the exporter notes at every node: paths of this machine and lines of code."""
    part = proto.graph
    for things in (part.node, part.input, part.output, part.initializer, part.value_info):
        for thing in things:
            thing.ClearField("metadata_props")
            thing.ClearField("doc_string")
    part.ClearField("metadata_props")


def _checked(model: Predictor, file: Path, path: Path) -> Exported:
    """How the file's answers compare with the model's. Raises ValueError where they differ."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    images, of = trial_images(model)
    probabilities, h = _run(session, images, max(1, INFERENCE_BATCH // model.test_views))
    expected, expected_h = model.predict_proba(images), model.embed(images)
    doubted, edge = _first_looks(model, images)
    settled = ~edge
    found, expected = probabilities[settled], expected[settled]
    difference = float(np.abs(found - expected).max(initial=0))
    difference_h = float(np.abs(h - expected_h).max() / max(1.0, float(np.abs(expected_h).max())))
    others = int((found.argmax(1) != expected.argmax(1)).sum())
    # so that NaN fails
    if not (difference <= TOLERANCE and difference_h <= TOLERANCE and others == 0):
        raise ValueError(
            f"{path} was not written: on {len(found):,} images ({of}) ONNX Runtime's "
            f"probabilities differ from PyTorch's by up to {difference:.2g}, its h by "
            f"{difference_h:.2g} (at most {TOLERANCE:g}), and {others:,} classes are others; "
            "update torch, onnxscript and onnxruntime, or report it"
        )
    return Exported(path, len(images), of, int(doubted.sum()), int(edge.sum()), difference)


def trial_images(model: Predictor) -> tuple[Tensor, str]:
    """`IMAGES` images as the model takes them, uint8 (N, C, S, S), and what they are.

    No label is looked at: two computations are compared, none is scored.
    """
    size, channels = model.preparation.size, model.preparation.channels
    if (size, channels) == (28, 1):
        test = datasets.load(DataConfig()).test
        assert test is not None
        return test.images[:IMAGES], "test images of mnist50"
    generator = torch.Generator().manual_seed(0)
    patches = torch.randint(0, 256, (IMAGES, channels, PATCHES, PATCHES), generator=generator)
    place = torch.arange(size) * PATCHES // size
    return patches.to(torch.uint8)[:, :, place][..., place], "random patches, seed 0"


def _run(session: onnxruntime.InferenceSession, images: Tensor, step: int) -> tuple[Array, Array]:
    """Probabilities and h of all images: one alone, then `step` at a time."""
    parts = [images[:1], *images[1:].split(step)]
    found = [session.run(["probabilities", "h"], {"images": part.numpy()}) for part in parts]
    probabilities, h = (np.concatenate(column) for column in zip(*found, strict=True))
    return probabilities, h


def _first_looks(model: Predictor, images: Tensor) -> tuple[Array, Array]:
    """Which images are looked at again, and for which rounding decides that: bool (N,) each."""
    if model.test_views == 1:
        none = np.zeros(len(images), bool)
        return none, none
    first = replace(model, test_views=1).predict_proba(images).max(1)
    return first < SURE, np.abs(first - SURE) < EDGE

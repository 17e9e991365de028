"""The fitted thing: load → prepare → forward → calibrate → answer."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from handful import backbones, checkpoints, devices, pictures, views
from handful.confidence import Abstention, Evidence, Familiar, abstention
from handful.config import SURE, NetworkConfig
from handful.images import ImageSet
from handful.networks import (
    INFERENCE_BATCH,
    AnyEncoder,
    Ensemble,
    channels_last,
    classifier_head,
    in_parts,
    joined,
)
from handful.pictures import Bytes, Preparation
from handful.wording import one_line

Array = np.ndarray[Any, Any]
Ranking = tuple[tuple[str, float], ...]
Images = ImageSet | Tensor | Array | Sequence[str | Path | Image.Image]

FILES_TOGETHER = 32
"""Most files that one thread reads and answers at a time: more is larger, not faster."""
MOST_THREADS = 16
"""More would wait for each other's Python, and each holds the maps of its images in memory."""


@dataclass(frozen=True)
class Answer:
    """What is known about one file: its classes with probabilities, best first, or an error."""

    path: Path
    ranking: Ranking = ()
    distance: float | None = None
    """From the images that taught, as a multiple of what is usual among them; None: not known."""
    error: str | None = None


@dataclass(eq=False)
class Predictor:
    """A trained classifier with all that a prediction depends on.

    `images` below may be an ImageSet; uint8 arrays or tensors (N, H, W), (N, C, H, W) or
    (N, H, W, C); or a list of paths and PIL images. Arrays of the model's own size and channels are
    taken as they are; everything else passes through `preparation`, as training images did. Wrong
    types and unreadable files raise ValueError. What an image gets never depends on the others.
    """

    encoder: AnyEncoder
    head: nn.Linear
    class_names: tuple[str, ...]
    preparation: Preparation
    network: NetworkConfig
    temperature: float = 1.0
    test_views: int = 1
    evidence: Evidence | None = None
    familiar: Familiar | None = None
    mirrored: bool = False
    """Whether test views mirror in what turns out of the frame, as training did."""

    @property
    def members(self) -> int:
        """How many networks its logits are the mean of."""
        return len(self.encoder.members) if isinstance(self.encoder, Ensemble) else 1

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def logits(self, images: Images) -> Tensor:
        """Calibrated logits, float32 (N, Y) on the CPU.

        Of the image itself, where that leaves no doubt; else of the mean over its test views.
        """
        return self.answers(images)[0]

    def answers(self, images: Images) -> tuple[Tensor, Tensor]:
        """Logits as above, and how far each image is from what taught it, float32 (N,)."""
        found = self._each_batch(images, self._batch_answers, len(self.class_names) + 1)
        return found[:, :-1], found[:, -1]

    def predict_proba(self, images: Images) -> Array:
        """Calibrated probabilities, float64 (N, Y), columns in the order of `class_names`."""
        return _probabilities(self.logits(images))

    def predict(self, images: Images) -> list[str]:
        """The most probable class of each image."""
        return [self.class_names[i] for i in self.logits(images).argmax(1).tolist()]

    def embed(self, images: Images) -> Array:
        """Representations h of the images themselves, float32 (N, D)."""
        h: Array = self._each_batch(images, self.encoder, self.encoder.dim).numpy()
        return h

    def distance(self, images: Images) -> Array:
        """How far images are from those that the classifier learned from, float32 (N,).

        In what they show and in how it is drawn (`confidence.Familiar`), as multiples of what is
        usual: above 1 is further than 99 of 100 of those are from the others. NaN where the model
        does not know.
        """
        found: Array = self._each_batch(images, self._batch_distance, 1)[:, 0].numpy()
        return found

    def abstention(self, error: float) -> Abstention:
        """From which probability on answers are expected to be wrong in at most a share `error`.

        Raises ValueError where nothing was held out that could tell, and unless 0 < error < 1.
        """
        if self.evidence is None:
            raise ValueError(
                "nothing says how far this model's probabilities can be trusted: train one network "
                "with validation images, or with --set downstream.folds=4; it takes two labelled "
                "images of a class"
            )
        return abstention(self.evidence, error)

    def acquainted_with(self, images: ImageSet) -> Predictor:
        """The same, with these images as the ones that others are compared with."""
        # in half precision, as it is kept: a model that was saved and read says the same
        both = in_parts(lambda x: torch.cat(self.encoder.looked(x), 1), images.images, self.encoder)
        return replace(
            self, familiar=Familiar(*both.half().float().tensor_split([self.encoder.dim], 1))
        )

    def predict_files(self, paths: Sequence[Path]) -> Iterator[Answer]:
        """One answer a file, in order; a file that cannot be read has its reason instead.

        Each thread reads some files and computes their answers by itself, alone on one core: they
        never wait for each other. A little work ahead of the reader bounds memory.
        """
        for module in (self.encoder, self.head):
            module.eval()  # here, once: of two threads one could undo it under the other
        # a GPU computes for one caller at a time, while the others read
        turns = nullcontext() if self.device.type == "cpu" else Lock()
        usual = torch.get_num_threads()
        threads = min(usual, MOST_THREADS)
        step = max(1, min(FILES_TOGETHER, -(-len(paths) // threads)))
        pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        ahead: deque[Future[list[Answer]]] = deque()
        try:
            for start in range(0, len(paths), step):
                ahead.append(pool.submit(self._answers, paths[start : start + step], turns))
                if len(ahead) > 2 * threads:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()
        finally:  # also when nobody asks for the rest
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(usual)  # what threads to come start with

    def _answers(
        self, paths: Sequence[Path], turns: AbstractContextManager[object]
    ) -> list[Answer]:
        opened = [self._try(path) for path in paths]
        readable = [pixels for pixels in opened if not isinstance(pixels, str)]
        with turns:
            found = iter(self._found(_stacked(readable)) if readable else [])
        return [
            Answer(path, error=pixels) if isinstance(pixels, str) else Answer(path, *next(found))
            for path, pixels in zip(paths, opened, strict=True)
        ]

    def _try(self, path: Path) -> Bytes | str:
        try:
            return self._prepared(path)
        except ValueError as error:
            return str(error).removeprefix(f"cannot read {path}: ")

    def _found(self, images: Tensor) -> list[tuple[Ranking, float | None]]:
        """Of each image its classes with their probabilities, best first, and its distance."""
        logits, distances = self.answers(images)
        away = [None if math.isnan(distance) else distance for distance in distances.tolist()]
        return list(zip(self.rankings(_probabilities(logits)), away, strict=True))

    def rankings(self, probabilities: Array) -> list[Ranking]:
        """Classes with their probabilities (N, Y), best first, for each image."""
        order = np.argsort(-probabilities, axis=1, kind="stable")
        best = np.take_along_axis(probabilities, order, axis=1)
        return [
            tuple(zip([self.class_names[i] for i in classes], row, strict=True))
            for classes, row in zip(order.tolist(), best.tolist(), strict=True)
        ]

    def _each_batch(
        self, images: Images, forward: Callable[[Tensor], Tensor], columns: int
    ) -> Tensor:
        """`forward` of floats in 0-1 on the device, gathered as an ordinary tensor on the CPU."""
        devices.keep_freed_memory()
        parts = [torch.empty(0, columns)]
        for pixels in self._batches(images):
            parts.append(in_parts(forward, pixels, self.encoder, self.head).cpu())
        return torch.cat(parts)

    def _batch_answers(self, x: Tensor) -> Tensor:
        """Float (N, C, H, W) to logits and, last, the distance: (N, Y + 1)."""
        h, style = self.encoder.looked(x)
        return torch.cat([self._batch_logits(x, h), self._distances(h, style)[:, None]], 1)

    def _batch_distance(self, x: Tensor) -> Tensor:
        return self._distances(*self.encoder.looked(x))[:, None]

    def _distances(self, h: Tensor, style: Tensor) -> Tensor:
        if self.familiar is None:
            return torch.full((len(h),), torch.nan, device=h.device)
        return self.familiar.distance(h, style)

    def _batch_logits(self, x: Tensor, h: Tensor) -> Tensor:
        """Float (N, C, H, W) and their h (N, D) to (N, Y)."""
        logits, others = self._judge(h), self.test_views - 1
        doubt = (logits.softmax(1).amax(1) < SURE).nonzero().squeeze(1) if others else ()
        if len(doubt):
            seen = views.test_views(x[doubt], self.test_views, mirrored=self.mirrored)
            looks = seen[1:].flatten(0, 1)  # ((V - 1) · M, C, H, W)
            more = self._judge(self.encoder(looks)).unflatten(0, (others, len(doubt)))
            logits[doubt] = (logits[doubt] + more.sum(0)) / self.test_views
        return logits

    def _judge(self, h: Tensor) -> Tensor:
        logits: Tensor = self.head(h) / self.temperature
        return logits

    def _batches(self, images: Images) -> Iterator[Tensor]:
        """uint8 (n, C, H, W) as the encoder takes them; n · test_views bounds memory."""
        if isinstance(images, ImageSet):
            images = images.images
        items: Tensor | Sequence[str | Path | Image.Image]
        if isinstance(images, Tensor | np.ndarray):
            items = _channels_first(images)
        elif isinstance(images, str | Path | Image.Image) or not isinstance(images, Sequence):
            raise ValueError(
                f"expected images as an array or a list, got one {type(images).__name__}: "
                "put it into a list"
            )
        else:
            items = images
        step = max(1, INFERENCE_BATCH // self.test_views)
        for start in range(0, len(items), step):
            yield self._fit(items[start : start + step])

    def _fit(self, items: Tensor | Sequence[str | Path | Image.Image]) -> Tensor:
        size, channels = self.preparation.size, self.preparation.channels
        if not isinstance(items, Tensor):
            return _stacked(map(self._prepared, items))
        if items.shape[1:] == (channels, size, size):
            return items
        return _stacked(self._prepared(_picture(image)) for image in items)

    def _prepared(self, item: str | Path | Image.Image) -> Bytes:
        """One file or picture as uint8 (C, H, W)."""
        if not isinstance(item, str | Path | Image.Image):
            kind = type(item).__name__
            raise ValueError(f"a list of images holds paths or PIL images, not {kind}")
        picture = item if isinstance(item, Image.Image) else pictures.open_image(Path(item))
        return pictures.to_pixels(picture, self.preparation)

    def save(self, folder: Path | str) -> None:
        """Write `weights.safetensors` and `model.json`, which `load` reads."""
        checkpoints.save(Path(folder), *self._contents())

    def packed(self) -> checkpoints.Packed:
        """What `save` writes, in memory: `unpacked` reads it."""
        return checkpoints.pack(*self._contents())

    def _contents(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"encoder.{name}": t for name, t in self.encoder.state_dict().items()}
        tensors |= {f"head.{name}": t for name, t in self.head.state_dict().items()}
        if self.familiar is not None:
            tensors["known.h"] = self.familiar.h.half()
            tensors["known.style"] = self.familiar.style.half()
        meta = {
            "class_names": list(self.class_names),
            "preparation": self.preparation.as_dict(),
            "network": self.network.model_dump(),
            "members": self.members,
            "temperature": self.temperature,
            "test_views": self.test_views,
            "mirrored": self.mirrored,
            "evidence": self.evidence and self.evidence.as_dict(),
            "versions": devices.versions(),
        }
        return tensors, meta

    @classmethod
    def load(cls, folder: Path | str, device: str = "auto") -> Predictor:
        """The predictor in a run folder or in a model folder.

        Raises ValueError where there is none, where it is damaged and where `device` is not here.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ValueError(f"no run in {folder}: there is no such folder")
        inner = folder / "model"
        place = inner if inner.is_dir() else folder
        if not (place / checkpoints.META).exists():
            raise ValueError(
                f"no model in {folder}: expected the run folder of a finished `handful train`"
            )
        return cls._on(device, *checkpoints.load(place), place)

    @classmethod
    def unpacked(cls, packed: checkpoints.Packed, device: str = "auto") -> Predictor:
        """The inverse of `packed`. Raises ValueError as `load` does."""
        place = Path("the packed model")
        return cls._on(device, *checkpoints.unpack(packed, place), place)

    @classmethod
    def _on(
        cls, device: str, tensors: dict[str, Tensor], meta: dict[str, Any], place: Path
    ) -> Predictor:
        target = devices.choose(device)
        try:
            predictor = cls._built(tensors, meta)
        except backbones.NotHere:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = one_line(error)
            raise ValueError(f"{place} is damaged: {type(error).__name__}: {reason}") from error
        predictor.encoder.to(target)
        predictor.head.to(target)
        if predictor.familiar is not None:
            known = predictor.familiar
            predictor.familiar = Familiar(known.h.to(target), known.style.to(target))
        return predictor

    @classmethod
    def _built(cls, tensors: dict[str, Tensor], meta: dict[str, Any]) -> Predictor:
        preparation = Preparation.from_dict(meta["preparation"])
        network = NetworkConfig.model_validate(meta["network"])
        names = tuple(meta["class_names"])
        # no first weights: they would draw on global randomness, as those of timm do
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            encoders = [
                backbones.encoder_of(preparation.channels, preparation.size, network, number=number)
                for number in range(meta.get("members", 1))
            ]
            heads = [classifier_head(one.dim, len(names)) for one in encoders]
            encoder, head = joined(encoders, heads)
        for prefix, module in (("encoder.", encoder), ("head.", head)):
            own = {
                name.removeprefix(prefix): channels_last(t)
                for name, t in tensors.items()
                if name.startswith(prefix)
            }
            module.load_state_dict(own, strict=True, assign=True)
        evidence = meta.get("evidence")
        return cls(
            encoder,
            head,
            names,
            preparation,
            network,
            meta["temperature"],
            meta["test_views"],
            evidence and Evidence.from_dict(evidence),
            _familiar(tensors, encoder) if "known.h" in tensors else None,
            meta.get("mirrored", False),
        )


def _familiar(tensors: dict[str, Tensor], encoder: AnyEncoder) -> Familiar:
    """Raises KeyError or ValueError for what is not of this encoder."""
    h, style = tensors["known.h"], tensors["known.style"]
    for name, known, dim in (("h", h, encoder.dim), ("style", style, encoder.style_dim)):
        if not len(h) or known.shape != (len(h), dim):
            raise ValueError(f"known.{name} is {tuple(known.shape)}, the encoder gives {dim}")
    return Familiar(h.float(), style.float())


def _probabilities(logits: Tensor) -> Array:
    """float64 (N, Y)."""
    probabilities: Array = logits.double().softmax(1).numpy()
    return probabilities


def _stacked(images: Iterable[Bytes]) -> Tensor:
    """uint8 (C, H, W) each to (N, C, H, W)."""
    return torch.from_numpy(np.stack(list(images)))


def _channels_first(images: Tensor | Array) -> Tensor:
    """uint8 (N, H, W), (N, C, H, W) or (N, H, W, C) to (N, C, H, W); ValueError for others."""
    dtype = str(images.dtype).removeprefix("torch.")
    if dtype != "uint8":
        raise ValueError(f"images must be uint8, 0 to 255, got {dtype}")
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    if images.ndim == 3:
        return images.unsqueeze(1)
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    if images.ndim == 4 and images.shape[3] in (1, 3, 4):
        return images.permute(0, 3, 1, 2)
    raise ValueError(
        "images must be (N, H, W), (N, C, H, W) or (N, H, W, C) with 1 or 3 channels, "
        f"got {tuple(images.shape)}"
    )


def _picture(image: Tensor) -> Image.Image:
    """uint8 (C, H, W) with C = 1, 3 or 4 as a picture."""
    pixels = image.permute(1, 2, 0).contiguous().cpu().numpy()  # (H, W, C)
    return Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)

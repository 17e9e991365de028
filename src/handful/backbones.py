"""Encoders of other people: any architecture of the library timm, with weights or without."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from handful import devices
from handful.config import TIMM, NetworkConfig
from handful.networks import ConvNet, Cosines, Encoder, channels_last, style_of
from handful.wording import one_line

STYLE = 3
"""Side of the filters whose mean and spread are the style of an image."""
AUXILIARY = "AuxLogits."
"""Of Inception's second classifier, which only its training needed."""
MOST_LEFT_OVER = 4
"""Tensors in a file of weights that may be of no layer: what only its training needed. One layer
more of a larger relative has more."""


class NotHere(ValueError):
    """An encoder needs a package that cannot be imported."""


def encoder_of(channels: int, size: int, config: NetworkConfig, *, number: int = 0) -> Encoder:
    """The encoder that `config` names, with first weights, for square images of `size` pixels.

    Raises ValueError where it cannot take such images, or where there is none of that name.
    """
    kind = Backbone if config.encoder.startswith(TIMM) else ConvNet
    return kind(channels, size, config, number=number)


class Backbone(Encoder):
    """A model of timm without its classifier: h is what that would have been given.

    Its style is that of the image itself, seen through fixed filters: what its own first layer
    makes has another form in every architecture.
    """

    def __init__(self, channels: int, size: int, config: NetworkConfig, *, number: int = 0) -> None:
        column = config.columns[number % len(config.columns)]
        super().__init__(channels, upright="upright" in column)
        self.name, self.size = config.encoder.removeprefix(TIMM), size
        self.filters = Cosines(channels, STYLE, 0)
        self.style_dim = 2 * channels * STYLE**2
        options = _options(self.name, size)
        try:
            self._becomes(_made(self.name, channels, options))
            self.dim = _outputs(self.model, channels, size)
        except Exception as error:  # 1,300 architectures fail in as many ways
            raise ValueError(
                f"network.encoder = {TIMM}{self.name} cannot take images of {size} pixels: "
                f"{one_line(error):.200}; choose another one, or another data.size"
            ) from error

    def forward(self, x: Tensor) -> Tensor:
        return self._of(self.normalised(x))

    def looked(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.normalised(x)
        return self._of(x), style_of(self.filters(x))

    def begin_with(self, file: Path) -> None:
        """Take weights that somebody trained, and the normalisation that timm knows of its name.

        file: `.safetensors` as timm and the Hugging Face hub have them; a classifier in it is left
        out, and the first layer is fitted to the number of channels.
        Raises ValueError where it cannot be read and where its weights are of another architecture.
        """
        _check(file)
        # some weights of timm are of a form of their own, which a file of tensors never is
        overlay = {"file": str(file), "hf_hub_id": None, "url": None, "custom_load": False}
        drawn = self._drawn_alike()
        with _what_timm_says() as said:
            try:
                model = self._drawn_alike(pretrained=True, pretrained_cfg_overlay=overlay)
            except Exception as error:  # each architecture reads its weights in its own way
                raise self._misfit(file, f"{one_line(error):.200}") from error
        if reason := _left(drawn, model) or _left_over(said):
            raise self._misfit(file, reason)
        self._becomes(model)
        told = model.pretrained_cfg
        for own, theirs in ((self.mean, told["mean"]), (self.std, told["std"])):
            each = torch.tensor(theirs)
            own.copy_((each if len(each) == len(own) else each.mean()).view(-1, 1, 1))

    def _misfit(self, file: Path, reason: str) -> ValueError:
        return ValueError(f"{file} does not fit {TIMM}{self.name}: {reason}")

    def _drawn_alike(self, **options: Any) -> Any:
        """A model whose weights are the same each time, where they are drawn and not read."""
        with devices.seeded(0, torch.device("cpu")):
            return _made(self.name, self.channels, _options(self.name, self.size) | options)

    def _becomes(self, model: Any) -> None:
        for parameter in model.parameters():
            parameter.data = channels_last(parameter.data)
        self.model: nn.Module = model

    def _of(self, x: Tensor) -> Tensor:
        h: Tensor = self.model(x)
        return h


def _options(name: str, size: int) -> dict[str, Any]:
    """What a model must be told to take such images. Raises ValueError for an unknown name."""
    timm = _timm()
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), n=1, cutoff=0.5)
        hint = f"did you mean {TIMM}{near[0]}?" if near else "timm.list_models() has all names"
        raise ValueError(f"network.encoder = {TIMM}{name}: timm has no such model; {hint}")
    tags = timm.list_pretrained(f"{architecture}.*") if tag else []
    if tag and name not in tags:
        there = ", ".join(tags) or "none"
        raise ValueError(f"network.encoder = {TIMM}{name}: timm knows no such weights, but {there}")
    known = timm.get_pretrained_cfg(name)
    return {"img_size": size} if known is not None and known.fixed_input_size else {}


def _made(name: str, channels: int, options: Mapping[str, Any]) -> Any:
    # on the CPU also where all else is built without memory: buffers are in no file of weights
    with torch.device("cpu"):
        return _timm().create_model(name, in_chans=channels, num_classes=0, **options)


def _outputs(model: Any, channels: int, size: int) -> int:
    """Length of h, which some models say wrongly of themselves."""
    was_training = model.training
    with torch.device("cpu"), torch.no_grad():
        h: Tensor = model.eval()(torch.zeros(1, channels, size, size))
    model.train(was_training)
    if h.ndim != 2:
        raise ValueError(f"it gives {tuple(h.shape[1:])} for one, not a row of numbers")
    return h.shape[1]


@contextmanager
def _what_timm_says() -> Iterator[list[str]]:
    """What timm would tell people about weights that it reads."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("timm.models._builder")
    before = logger.propagate, logger.level
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.WARNING)  # also where somebody silenced timm
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.propagate = before[0]
        logger.setLevel(before[1])


def _left(drawn: nn.Module, model: nn.Module) -> str:
    """Which layers are still as they were drawn, of which timm says nothing; empty for none."""
    layers = {name: w for name, w in drawn.named_parameters() if w.ndim > 1}
    left = [name for name, w in layers.items() if torch.equal(w, model.get_parameter(name))]
    if not left:
        return ""
    return f"it has no weights for {len(left)} of its {len(layers)} layers, such as {left[0]}"


def _left_over(said: Sequence[str]) -> str:
    """Which tensors timm says it could not use; empty for few."""
    found = [re.match(r"Unexpected keys \((.*)\) found", line) for line in said]
    names = [name for match in found if match for name in match[1].split(", ")]
    names = [name for name in names if not name.startswith(AUXILIARY)]
    if len(names) <= MOST_LEFT_OVER:
        return ""
    return f"{len(names)} tensors are of no layer, such as {names[0]}"


def _timm() -> Any:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise NotHere(
            f"encoders of timm need {error.name}, which is not here: pip install 'handful[timm]'"
        ) from None
    except (ImportError, RuntimeError, OSError) as error:
        raise NotHere(
            f"timm cannot be imported ({error}): install the torchvision that belongs to torch "
            f"{torch.__version__}, from where that came"
        ) from None
    return timm


def _check(file: Path) -> None:
    """Raises ValueError for what is no file of tensors."""
    if file.suffix != ".safetensors":  # by which timm, too, knows them
        raise ValueError(
            f"network.weights = {file}: expected a .safetensors file; others may hold code, and "
            "are not opened"
        )
    if not file.is_file():
        raise ValueError(f"network.weights = {file}: there is no such file")
    try:
        with safe_open(file, "pt") as tensors:
            count = len(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"network.weights = {file} is no .safetensors file: {error}") from None
    if not count:
        raise ValueError(f"network.weights = {file} holds no tensors")

"""Encoders of other people: any architecture of the library timm, with weights or without."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from handful.config import TIMM, NetworkConfig
from handful.networks import ConvNet, Cosines, Encoder, channels_last, style_of

STYLE = 3
"""Side of the filters whose mean and spread are the style of an image."""


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
        self._becomes(_made(self.name, channels, size))

    def forward(self, x: Tensor) -> Tensor:
        return self._of(self.normalised(x))

    def looked(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.normalised(x)
        return self._of(x), style_of(self.filters(x))

    def begin_with(self, file: Path) -> None:
        """Take weights that somebody trained, and the normalisation that they expect.

        file: `.safetensors` as timm and the Hugging Face hub have them; a classifier in it is left
        out, and the first layer is fitted to the number of channels.
        Raises ValueError where it cannot be read and where its weights are of another architecture.
        """
        _check(file)
        overlay = {"file": str(file), "hf_hub_id": None, "url": None}
        drawn = self._drawn_alike()
        try:
            model = self._drawn_alike(pretrained=True, pretrained_cfg_overlay=overlay)
        except (RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{file} does not fit {TIMM}{self.name}: {reason:.200}") from None
        # timm says nothing of weights that it did not find
        layers = {name: w for name, w in drawn.named_parameters() if w.ndim > 1}
        left = [name for name, w in layers.items() if torch.equal(w, model.get_parameter(name))]
        if left:
            raise ValueError(
                f"{file} does not fit {TIMM}{self.name}: it has no weights for {len(left)} of its "
                f"{len(layers)} layers, such as {left[0]}"
            )
        self._becomes(model)
        told = model.pretrained_cfg
        for own, theirs in ((self.mean, told["mean"]), (self.std, told["std"])):
            each = torch.tensor(theirs)
            own.copy_((each if len(each) == len(own) else each.mean()).view(-1, 1, 1))

    def _drawn_alike(self, **options: Any) -> Any:
        """A model whose weights are the same each time, where they are drawn and not read."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _made(self.name, self.channels, self.size, **options)

    def _becomes(self, model: Any) -> None:
        for parameter in model.parameters():
            parameter.data = channels_last(parameter.data)
        self.model: nn.Module = model
        self.dim = self._outputs()

    def _outputs(self) -> int:
        """Length of h, which some models say wrongly of themselves."""
        was_training, side = self.training, self.size
        image = torch.zeros(1, self.channels, side, side, device="cpu")
        try:
            with torch.no_grad():
                h: Tensor = self.model.eval()(image)
        except (RuntimeError, AssertionError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"network.encoder = {TIMM}{self.name} cannot take images of {self.size} pixels: "
                f"{reason:.200}; set data.size"
            ) from None
        finally:
            self.model.train(was_training)
        if h.ndim != 2:
            raise ValueError(
                f"network.encoder = {TIMM}{self.name} gives {tuple(h.shape[1:])} for an image, not "
                "one row of numbers: choose another"
            )
        return h.shape[1]

    def _of(self, x: Tensor) -> Tensor:
        h: Tensor = self.model(x)
        return h


def _made(name: str, channels: int, size: int, **options: Any) -> Any:
    """A model of timm that takes such images."""
    timm = _timm()
    known = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=1, cutoff=0.5)
        hint = f"did you mean {TIMM}{near[0]}?" if near else "see timm.list_models()"
        raise ValueError(f"network.encoder = {TIMM}{name}: timm has no such model; {hint}")
    if known is not None and known.fixed_input_size:
        options["img_size"] = size
    # on the CPU also where all else is built without memory: buffers are in no file of weights
    with torch.device("cpu"):
        return timm.create_model(name, in_chans=channels, num_classes=0, **options)


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
    if not file.is_file():
        raise ValueError(f"network.weights = {file}: there is no such file")
    try:
        with safe_open(file, "pt") as tensors:
            count = len(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"network.weights = {file} is no .safetensors file: {error}; others may hold "
            "code, and are not opened"
        ) from None
    if not count:
        raise ValueError(f"network.weights = {file} holds no tensors")

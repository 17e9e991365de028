"""The pretext task of a run: done, or taken from where another run has kept it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from handful import checkpoints, devices, storage
from handful.backbones import Backbone
from handful.pretrain import pretrain
from handful.session import Member, Session
from handful.wording import duration


def pretext_task(member: Member) -> int:
    """Images that passed the encoder in the pretext task."""
    session, _, encoder, head = member
    config = session.config.pretext
    if not config.steps:
        return 0
    network = nn.ModuleDict({"encoder": encoder, "head": head})
    place = place_of_pretext(member)
    meta = _taken(place, network, session)
    if meta is None:
        began = time.perf_counter()
        with session.stage("pretext"), session.seeded("pretext"):
            encoded = pretrain(
                encoder,
                head,
                session.parts.pretext,
                config,
                generator=session.generator("pretext"),
                validation=session.parts.validation,
                dtype=session.dtype,
                on_row=session.on_row,
            )
        meta = {
            "holds": "encoder and projection head after the pretext task",
            "encoded": encoded,
            "seconds": time.perf_counter() - began,
        }
        _keep(place, network, meta, session)
    if session.folder is not None:
        kept = session.folder.checkpoints / f"pretext{session.suffix}"
        checkpoints.save(kept, network.state_dict(), meta)
    return int(meta["encoded"])


def _taken(place: Path | None, network: nn.Module, session: Session) -> dict[str, Any] | None:
    """What is known of the weights at `place`, which `network` has then; None where none are."""
    if place is None or not place.is_dir():
        return None
    try:
        weights, meta = checkpoints.load(place)
        seconds, _ = float(meta["seconds"]), int(meta["encoded"])
        network.load_state_dict(weights)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        session.say(f"pretext task: not taken from {place}, done anew ({error})")
        return None
    session.taken += seconds
    session.say(f"pretext task: taken from {place}, it took {duration(seconds)} there")
    return meta


def _keep(place: Path | None, network: nn.Module, meta: dict[str, Any], session: Session) -> None:
    """Put the weights there; where that fails, the run goes on with what it has."""
    if place is None:
        return
    try:
        checkpoints.save(place, network.state_dict(), meta)
    except OSError as error:
        session.say(f"pretext task: cannot be kept in {place}: {error.strerror}")


MADE_BY = (
    "backbones",
    "devices",
    "geometry",
    "images",
    "losses",
    "networks",
    "optim",
    "pretext",
    "pretrain",
    "session",
    "splits",
    "views",
)
"""Modules that decide what a pretext task learns."""


def place_of_pretext(member: Member) -> Path | None:
    """Where what this pretext task trains is kept: a folder named by all that it depends on.

    None where nothing is to be kept. Mean and spread of the pixels, which follow from the images,
    are no part of the name: their last bits depend on the number of threads.
    """
    session, untrained = member.session, member.untrained
    images, config = session.parts.pretext, session.config
    if not config.pretext.steps or not config.pretext.cache:
        return None
    network = config.network.model_dump(exclude={"weights"})  # what they are counts, not where
    parts = [
        json.dumps([config.pretext.model_dump(), network]).encode(),
        f"{config.seed}{session.suffix} {session.dtype} {session.device.type}".encode(),
        torch.__version__.encode(),
        images.fingerprints.tobytes(),
        images.sources.unique(return_inverse=True)[1].numpy().tobytes(),
    ]
    if isinstance(untrained, Backbone):
        parts.append(devices.versions()["timm"].encode())
        if config.network.weights is not None:
            parts += [value.cpu().numpy().tobytes() for value in untrained.state_dict().values()]
    if config.pretext.loss == "sup_con":
        parts.append(images.labels.numpy().tobytes())
    parts += [(Path(__file__).parent / f"{name}.py").read_bytes() for name in MADE_BY]
    return storage.place("pretext", parts)

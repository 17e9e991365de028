"""Weights and what belongs to them, as two files that any language can read. Never pickle."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as pack_tensors
from torch import Tensor

FORMAT = 2
"""Version of the pair of files and of what their weights mean; a reader refuses others. 2: the
encoder's first convolution has no border."""
WEIGHTS = "weights.safetensors"
META = "model.json"


class Packed(NamedTuple):
    """The contents of the two files."""

    weights: bytes
    meta: bytes


def pack(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Packed:
    """What `save` writes, in memory.

    tensors: any shapes, dtypes, devices and memory formats; they come back contiguous on the CPU.
    meta: plain values that JSON holds. `format` and `weights_sha256` are added.
    """
    # clone: safetensors refuses tensors that share memory, such as views of one buffer
    weights = pack_tensors({k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()})
    document = {
        **meta,
        "format": FORMAT,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return Packed(weights, text.encode())


def save(folder: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write `weights.safetensors` and `model.json`, as `pack` makes them, both or neither.

    An earlier checkpoint in the same place is replaced whole. Raises OSError where it cannot write.
    """
    packed = pack(tensors, meta)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as aside:
        fresh = Path(aside) / "fresh"
        fresh.mkdir()
        (fresh / WEIGHTS).write_bytes(packed.weights)
        (fresh / META).write_bytes(packed.meta)
        _swap(fresh, folder, Path(aside) / "old")


def _swap(fresh: Path, folder: Path, old: Path) -> None:
    """Put `fresh` where `folder` is; what was there is put back should that fail."""
    if not folder.exists():
        fresh.replace(folder)
        return
    folder.replace(old)
    try:
        fresh.replace(folder)
    except OSError:
        old.replace(folder)
        raise
    for other in old.iterdir():
        if other.name not in (WEIGHTS, META):
            shutil.move(other, folder / other.name)


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the meta that `save` wrote.

    Raises ValueError naming the folder where a file is missing or damaged, where the two do not
    belong together, or where a newer version of handful wrote them.
    """
    try:
        meta = (folder / META).read_bytes()
        packed = Packed((folder / WEIGHTS).read_bytes(), meta)
    except FileNotFoundError as error:
        missing = Path(str(error.filename)).name
        raise ValueError(f"no model in {folder}: {missing} is missing") from None
    except OSError as error:
        raise ValueError(f"cannot read the model in {folder}: {error.strerror}") from None
    return unpack(packed, folder)


def unpack(packed: Packed, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of `pack`. Raises ValueError as `load` does; folder: where messages say it is."""
    try:
        meta = json.loads(packed.meta.decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / META} is damaged: {error}") from None
    if not isinstance(meta, dict) or "format" not in meta:
        raise ValueError(f"{folder / META} was not written by handful")
    if meta["format"] != FORMAT:
        raise ValueError(
            f"{folder} has model format {meta['format']}, this handful reads {FORMAT}: "
            "install the version of handful that wrote it"
        )
    if hashlib.sha256(packed.weights).hexdigest() != meta.get("weights_sha256"):
        raise ValueError(
            f"{folder / WEIGHTS} is damaged or belongs to another {META}: "
            "copy the whole folder again"
        )
    try:
        return parse_tensors(packed.weights), meta
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged: {error}") from None

"""Where tensors live and where randomness comes from."""

from __future__ import annotations

import ctypes
import hashlib
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

KNOWN = "auto, cpu, cuda, cuda:0, … or mps"


def choose(name: str = "auto") -> torch.device:
    """The device called `name`; `auto` takes CUDA, else Apple's MPS, else the CPU.

    Raises ValueError where there is no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name}: use {KNOWN}") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"unknown device {name}: use {KNOWN}")
    count = _count(device.type)
    if count == 0:
        raise ValueError(f"device {name} is not available here: use auto or cpu")
    if (device.index or 0) >= count:
        raise ValueError(
            f"device {name} is not available here: the last one is {device.type}:{count - 1}"
        )
    return device


def precision(name: str, device: torch.device) -> torch.dtype:
    """The type that networks train in on `device`; weights, losses and statistics stay float32."""
    if name == "auto":
        return torch.bfloat16 if _computes_bfloat16(device) else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def _computes_bfloat16(device: torch.device) -> bool:
    """In hardware: older GPUs emulate it, slower than float32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`, where CUDA is not waited for, as PyTorch otherwise would.

    Safe from pageable memory, which CUDA copies before this returns; not from pinned memory that
    is changed afterwards.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """A context in which layers compute in `dtype` where that is safe."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Names of glibc's settings, from its malloc.h."""
MOST_KEPT = 2**31 - 1


def keep_freed_memory() -> None:
    """Let the whole process keep what it frees, from now on, for what it will want next.

    glibc gives large blocks back to the system at once, and having their pages again costs time in
    every step, in large batches most of all. Elsewhere this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # other C libraries of Linux have none
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, MOST_KEPT)


OUT_OF_MEMORY = "out of memory", "can't allocate memory", "not enough memory"


def out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch ran out of memory, on whichever device."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)
    )


def _count(kind: str) -> int:
    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    return int(torch.backends.mps.is_available()) if kind == "mps" else 1


def generator(seed: int, stage: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Random numbers for one stage of a run, seeded from the SHA-256 of "seed:stage".

    Stages are therefore independent: one that draws more or fewer numbers moves no other.
    """
    digest = hashlib.sha256(f"{seed}:{stage}".encode()).digest()
    # 63 bits: every backend takes them as a non-negative seed
    number = int.from_bytes(digest[:8], "big") >> 1
    return torch.Generator(device).manual_seed(number)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Lend PyTorch's global randomness to what draws from no other, and give it back as it was.

    Layers draw their first weights from it, and what they drop in training. Of `device` and the CPU
    alone; not for several threads at once, which share what is lent.
    """
    mps = torch.mps.get_rng_state() if device.type == "mps" else None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        elif device.type == "mps":
            torch.mps.manual_seed(seed)
        try:
            yield
        finally:
            if mps is not None:
                torch.mps.set_rng_state(mps)


def describe(device: torch.device) -> str:
    """One phrase for reports: the name of the GPU, or the CPU and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"mps, {platform.processor() or platform.machine()}"
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' if threads > 1 else ''}"


def versions() -> dict[str, str]:
    """What computed a result: name to version, for summaries and models."""
    packages = {name: _installed(name) for name in ("handful", "torch", "numpy", "timm")}
    return {**packages, "python": platform.python_version(), "platform": platform.platform()}


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed" + ", run from its source" * (package == "handful")

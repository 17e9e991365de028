import platform
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from handful import devices


def test_auto_takes_the_fastest_device_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, expected in [
        (True, True, "cuda"),
        (True, False, "cuda"),
        (False, True, "mps"),
        (False, False, "cpu"),
    ]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert devices.choose("auto").type == expected


def test_the_cpu_is_always_there() -> None:
    assert devices.choose("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["tpu", "meta", "xla", "", "cuda:x", "cpu cpu"])
def test_a_name_that_is_no_device(name: str) -> None:
    with pytest.raises(ValueError, match="unknown device") as caught:
        devices.choose(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_here(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"device {name} is not available here: use auto or cpu"):
        devices.choose(name)


def test_a_gpu_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.choose("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="the last one is cuda:1"):
        devices.choose("cuda:2")


def numbers(seed: int, stage: str) -> list[float]:
    return torch.rand(4, generator=devices.generator(seed, stage)).tolist()


@given(seed=st.integers(0, 2**31 - 1), stage=st.text(max_size=20))
def test_seed_and_stage_decide_the_numbers(seed: int, stage: str) -> None:
    assert numbers(seed, stage) == numbers(seed, stage)
    assert numbers(seed, stage) != numbers(seed, stage + "'")
    assert numbers(seed, stage) != numbers(seed + 1, stage)


def test_the_numbers_are_the_same_on_every_machine_and_version() -> None:
    # printf 0:pretext | sha256sum: the first 16 digits, halved
    assert devices.generator(0, "pretext").initial_seed() == 0x8886868EB57ADA13 // 2


def test_a_generator_leaves_global_randomness_alone() -> None:
    before = torch.get_rng_state()
    devices.generator(3, "views")
    assert torch.equal(torch.get_rng_state(), before)


def test_describe_and_versions_are_plain_text() -> None:
    assert devices.describe(torch.device("cpu")).startswith("cpu, ")
    versions = devices.versions()
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert versions.keys() == {"handful", "python", "torch", "numpy", "timm", "platform"}
    assert all(isinstance(text, str) and text for text in versions.values())


def test_half_precision_is_for_gpus_and_for_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert devices.precision("auto", cpu) == torch.float32
    assert devices.precision("bfloat16", cpu) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert devices.precision("auto", gpu) == torch.bfloat16
    assert devices.precision("float32", gpu) == torch.float32
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert devices.precision("auto", gpu) == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_what_it_was_given(dtype: torch.dtype) -> None:
    with devices.autocast(torch.device("cpu"), dtype):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype


def test_running_out_of_memory_is_told_from_other_faults() -> None:
    assert devices.out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert devices.out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 B"))
    assert devices.out_of_memory(MemoryError())
    assert not devices.out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not devices.out_of_memory(ValueError("out of memory"))


FAULTS = """
import resource, sys, torch
from handful import devices
if "keep" in sys.argv:
    devices.keep_freed_memory()
def faults(megabytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(megabytes << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(200)
print(faults(100))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is asked to keep memory")
def test_freed_memory_is_used_again_and_not_fetched_from_the_system() -> None:
    def faults(*arguments: str) -> int:
        command = [sys.executable, "-c", FAULTS, *arguments]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert faults() > 20  # pages of 4 KB, or of 2 MB where the system hands out those
    assert faults("keep") < 10

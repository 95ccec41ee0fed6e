"""Devices and processes are chosen from what the machine and the launcher state, and wrong ones are named."""

from __future__ import annotations

import pytest
import torch

from epmvg.core.distributed import rank_and_world_size
from epmvg.core.hardware import cpu_has_bf16, cpu_threads, is_out_of_memory, select_device, use_bf16
from epmvg.core.types import InputError

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", ["banana", "gpu", "cuda:x", ""])
def test_an_unknown_device_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"no device '{name}'"):
        select_device(name)


def test_an_absent_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("cuda", "cuda:0", "mps", "xpu"):
        with pytest.raises(InputError, match="not available"):
            select_device(name)
    assert select_device("auto") == select_device("cpu") == torch.device("cpu")


def test_each_launched_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert select_device("auto") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert select_device("auto") == select_device("cuda") == torch.device("cuda", 1)
    assert select_device("cuda:0") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match=r"cuda:2 is not available \(2 CUDA devices\)"):
        select_device("auto")


def test_precision_follows_the_device_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr("epmvg.core.hardware.cpu_has_bf16", lambda: True)
    assert use_bf16("auto", "cpu") and not use_bf16("auto", torch.device("cuda", 1)) and not use_bf16("auto", "mps")
    assert use_bf16("bf16", "mps") and not use_bf16("fp32", "cpu")


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "1"},
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "two", "RANK": "0"},
        {"WORLD_SIZE": "2", "RANK": "0"},
        {"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
    ],
)
def test_incomplete_variables_of_a_launcher_are_rejected(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    name, value = next(iter(variables.items()))
    with pytest.raises(InputError, match=rf"{name}={value}.* are not the variables of a launcher"):
        rank_and_world_size()


def test_one_process_needs_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank_and_world_size() == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert rank_and_world_size() == (0, 1)
    monkeypatch.setenv("RANK", "0")
    assert rank_and_world_size() == (0, 1)


def test_threads_are_those_of_the_environment_or_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cpu_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert cpu_threads() >= 1 and isinstance(cpu_has_bf16(), bool)


def test_out_of_memory_is_recognised_on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError())
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert select_device("mps").type == "mps"

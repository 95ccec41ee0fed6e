"""Weights are read back bit for bit, or the file is rejected, whichever bit is flipped."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import safetensors.torch
import torch

import epmvg
from epmvg.core.types import InputError
from epmvg.models.factory import save
from epmvg.models.grounder import Grounder
from epmvg.models.weights_file import read_weights, weights_digest, write_weights

STATE = {"a.weight": torch.arange(600.0).view(30, 20), "b": torch.tensor([True, False]), "c": torch.tensor(7)}


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def test_any_bit_of_the_values_is_noticed_and_any_other_changes_none(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    write_weights(file, STATE)
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    rng = random.Random(0)
    for bit in rng.sample(range(8 * start), 150) + rng.sample(range(8 * start, 8 * len(content)), 50):
        flip(file, bit)
        if bit >= 8 * start:
            with pytest.raises(InputError, match=r"weights\.safetensors is damaged.*Copy or train it again"):
                read_weights(file)
        else:  # in the header: an invalid file, another digest, another name, or no effect
            try:
                found = read_weights(file)
            except (InputError, safetensors.SafetensorError):
                pass
            else:
                assert found.keys() != STATE.keys() or all(torch.equal(found[name], STATE[name]) for name in STATE)
        file.write_bytes(content)


def test_the_file_is_plain_safetensors_and_one_without_a_digest_is_read(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    write_weights(file, STATE)
    found = safetensors.torch.load_file(file)
    assert all(torch.equal(found[name], STATE[name]) for name in STATE) and found.keys() == STATE.keys()
    safetensors.torch.save_file(STATE, file)
    assert all(torch.equal(value, STATE[name]) for name, value in read_weights(file).items())


def test_a_damaged_model_is_rejected_in_one_sentence(tiny: Grounder, tmp_path: Path) -> None:
    save(tiny, tmp_path)
    weights = tmp_path / "model.safetensors"
    flip(weights, 8 * (weights.stat().st_size - 1000))
    with pytest.raises(InputError, match=r"model\.safetensors is damaged") as error:
        epmvg.load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_umask_decides_who_can_read_weights(tiny: Grounder, tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        save(tiny, tmp_path / "run")
    finally:
        os.umask(before)
    files = [tmp_path / "run" / name for name in ("model.safetensors", "model.yaml")]
    assert [file.stat().st_mode & 0o777 for file in files] == [mode, mode]


def test_a_digest_is_of_the_values(tmp_path: Path) -> None:
    """Equal for equal values, also without a written digest; different for others."""
    ours, theirs, other = (tmp_path / name for name in ("ours", "theirs", "other"))
    write_weights(ours, STATE)
    safetensors.torch.save_file(STATE, theirs)
    write_weights(other, STATE | {"b": torch.tensor([False, False])})
    assert weights_digest(ours) == weights_digest(theirs) != weights_digest(other)


def test_int8_weights_are_a_quarter_of_the_size_and_close(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {"linear": torch.randn(64, 128), "kernel": torch.randn(8, 4, 3, 3) * 100, "bias": torch.randn(64)}
    state |= {"zeros": torch.zeros(3, 5), "count": torch.tensor([2**40])}
    for name, int8 in (("float", False), ("int8", True)):
        write_weights(tmp_path / name, state, int8=int8)
    read = read_weights(tmp_path / "int8")
    assert read.keys() == state.keys() and all(read[name].dtype == state[name].dtype for name in state)
    for name in ("bias", "zeros", "count"):
        assert torch.equal(read[name], state[name])
    for name in ("linear", "kernel"):
        largest = state[name].flatten(1).abs().amax(1)
        error = (read[name] - state[name]).flatten(1).abs().amax(1)
        assert (error <= largest / 127 / 2 * 1.001).all()
    write_weights(tmp_path / "again", read, int8=True)
    for name, tensor in read_weights(tmp_path / "again").items():
        torch.testing.assert_close(tensor, read[name], rtol=1e-6, atol=0)
    assert (tmp_path / "int8").stat().st_size < 0.3 * (tmp_path / "float").stat().st_size

"""What the backward pass of the paper's students keeps in memory, by pairs in a batch (640 px, float32).

    nice -n 10 python benchmarks/activations.py [PRESET ...]

Counts the tensors that autograd saves in a training step's forward pass on the CPU, each storage once and without
parameters, for one and two pairs of square images (nothing is padding) and whole phrases: what the second adds is a
pair's. Writes it in GiB, for phrases of 20 and 40 word pieces, to src/epmvg/experiments/activations.json, which
`epmvg train --dry-run` reads. A GPU that fuses attention keeps less.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch.autograd.graph import saved_tensors_hooks

import epmvg
from epmvg.models.grounder import Grounder

FILE = Path(__file__).parents[1] / "src" / "epmvg" / "experiments" / "activations.json"
LENGTHS = (20, 40)
"""Word pieces of a phrase; those of RefCOCOg are the long ones."""

STUDENTS = ("transvg-r50", "transvg-r101", "transvg-swin-s", "qrnet-swin-s")


def saved_bytes(model: Grounder, pairs: int) -> int:
    """Return the bytes that a forward pass of so many image-phrase pairs saves for the backward pass."""
    own = {parameter.untyped_storage().data_ptr() for parameter in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    size, length = model.image_size, model.max_length
    tokens = torch.randint(1000, 20_000, (pairs, length))
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(
            torch.rand(pairs, 3, size, size),
            torch.zeros(pairs, size, size, dtype=torch.bool),
            tokens,
            torch.zeros_like(tokens, dtype=torch.bool),
        )
    assert output.box.requires_grad  # else nothing would have been saved
    return sum(kept.values())


def main() -> None:
    measured = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    for name in sys.argv[1:] or STUDENTS:
        measured[name] = {}
        for length in LENGTHS:
            model = epmvg.create_model(name, max_length=length).train()
            one, two = (saved_bytes(model, pairs) / 2**30 for pairs in (1, 2))
            assert abs(two - 2 * one) < 0.001, "activations are not proportional to pairs"
            measured[name][str(length)] = round(two - one, 3)
        print(name, measured[name], "GiB")
        FILE.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

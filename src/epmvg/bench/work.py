"""The work that is timed: pictures and phrases of the same shape for everybody, and the engines that do it.

`ENGINES` is the one place where a backend is added: a function that yields an `Engine` for each precision it offers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from epmvg.bench import PHRASES
from epmvg.bench.plain import PlainGrounder
from epmvg.hardware import use_bf16
from epmvg.models.factory import create_model
from epmvg.models.grounder import Grounder


class Work:
    """A preset with random weights, noise on a 4:3 letterbox, and `PHRASES`."""

    def __init__(self, preset: str) -> None:
        torch.manual_seed(0)
        self.preset = preset
        self.student = create_model(preset).eval()
        side = self.student.canvas
        self.pad = torch.ones(1, side, side, dtype=torch.bool)
        self.pad[:, side // 8 : -side // 8] = False
        self.image = torch.rand(1, 3, side, side).masked_fill(self.pad[:, None], 0.45)

    def pictures(self, images: int) -> tuple[Tensor, Tensor]:
        """Return image [I, 3, S, S] and pad [I, S, S]."""
        return self.image.repeat(images, 1, 1, 1), self.pad.repeat(images, 1, 1)

    def full_length(self, phrases: list[str]) -> tuple[Tensor, Tensor]:
        """Return tokens and their pad, of the full length that the published code pads to."""
        tokens, token_pad = self.student.tokenize(phrases)
        room = self.student.length - tokens.shape[1]
        return torch.nn.functional.pad(tokens, (0, room)), torch.nn.functional.pad(token_pad, (0, room), value=True)

    def plain(self) -> PlainGrounder:
        return PlainGrounder(self.student).eval()

    def ask_plainly(self, plain: PlainGrounder, phrases: int) -> Tensor:
        """Answer boxes [P, 4] of one image, one call a phrase: what the published evaluation does at batch size 1."""
        asked = PHRASES[:phrases]
        return torch.cat([plain(self.image, self.pad, *self.full_length([phrase])) for phrase in asked])


@dataclass(frozen=True, slots=True)
class Engine:
    """One way of answering."""

    backend: str  # torch, onnx or openvino
    precision: str  # fp32, bf16 or int8
    answer: Callable[[int, int], Tensor]  # images, phrases of each -> boxes [I * P, 4] cxcywh of the canvas
    size_mb: float  # of what is loaded


def torch_engines(work: Work) -> Iterator[Engine]:
    """The student in float32, and under bfloat16 where the processor has it."""
    student = work.student
    size = round(sum(p.numel() * p.element_size() for p in student.state_dict().values()) / 1e6, 1)
    for precision in ("fp32", "bf16") if use_bf16("auto") else ("fp32",):
        yield Engine("torch", precision, _torch_answer(work, student, precision == "bf16"), size)


def _torch_answer(work: Work, student: Grounder, bf16: bool) -> Callable[[int, int], Tensor]:
    def answer(images: int, phrases: int) -> Tensor:
        words = student.tokenize(PHRASES[:phrases] * images)
        owner = torch.arange(images).repeat_interleave(phrases)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            box: Tensor = student(*work.pictures(images), *words, owner).box
        return box.float()

    return answer


ENGINES: dict[str, Callable[[Work], Iterator[Engine]]] = {"torch": torch_engines}


def engines(work: Work) -> list[Engine]:
    """Return every engine that this installation has for a preset."""
    return [engine for offered in ENGINES.values() for engine in offered(work)]

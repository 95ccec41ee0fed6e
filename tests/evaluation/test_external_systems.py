"""Outputs of published systems, and the coordinate convention of docs/evaluate.md for each.

`decode` converts numbers as the system's own code does; comments name the sources.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.image_transforms import center_to_corners_format

import epmvg
from epmvg.core.types import Box
from epmvg.evaluation.external_formats import Coordinates, parse_boxes

Numbers = tuple[float, float, float, float]
Size = tuple[int, int]
SIZES: list[Size] = [(640, 427), (333, 500), (512, 512)]
INPUT: Size = (1008, 756)
"""The size that a system with pixels of its own resizes images to."""


def fractions(numbers: Numbers, size: Size, of: float) -> Box:
    """Numbers as fractions of the sides, in pixels."""
    x0, y0, x1, y1 = numbers
    width, height = size
    return x0 / of * width, y0 / of * height, x1 / of * width, y1 / of * height


def rows_first(numbers: Numbers, size: Size, of: float) -> Box:
    y0, x0, y1, x1 = numbers
    return fractions((x0, y0, x1, y1), size, of)


def bin_middles(numbers: Numbers, size: Size) -> Box:
    x0, y0, x1, y1 = (number + 0.5 for number in numbers)
    return fractions((x0, y0, x1, y1), size, 1000)


def resized(numbers: Numbers, size: Size) -> Box:
    x0, y0, x1, y1 = numbers
    return x0 / INPUT[0] * size[0], y0 / INPUT[1] * size[1], x1 / INPUT[0] * size[0], y1 / INPUT[1] * size[1]


def padded(numbers: Numbers, size: Size) -> Box:
    """The image is pasted into the middle of a square, in whole pixels."""
    width, height = size
    x0, y0, x1, y1 = (number * max(size) for number in numbers)
    if width > height:
        above = (width - height) // 2
        return x0, y0 - above, x1, y1 - above
    before = (height - width) // 2
    return x0 - before, y0, x1 - before, y1


@dataclass(frozen=True)
class System:
    coordinates: str
    most: float  # that a number can be
    text: Callable[[list[str]], str]
    decode: Callable[[Numbers, Size], Box]
    form: str = "d"


SYSTEMS = {
    # v / 1000 of the side, https://github.com/zai-org/CogVLM/issues/165
    "CogVLM": System("0-1000:xyxy", 999, lambda n: f"[[{','.join(n)}]]", lambda n, s: fractions(n, s, 1000), "03d"),
    # v / 999, https://github.com/deepseek-ai/DeepSeek-VL2/issues/100
    "DeepSeek-VL2": System(
        "0-999:xyxy",
        999,
        lambda n: f"<|ref|>the cup<|/ref|><|det|>[[{', '.join(n)}]]<|/det|>",
        lambda n, s: fractions(n, s, 999),
    ),
    # transformers, florence2/processing_florence2.py: the middle of a bin
    "Florence-2": System(
        "1000-bins:xyxy", 999, lambda n: "the cup" + "".join(f"<loc_{value}>" for value in n), bin_middles
    ),
    # documentation, quoted, https://huggingface.co/google/gemma-3-4b-it/discussions/38
    "Gemini": System(
        "0-1000:yxyx",
        1000,
        lambda n: f'```json\n[\n  {{"box_2d": [{", ".join(n)}], "label": "the cup"}}\n]\n```',
        lambda n, s: rows_first(n, s, 1000),
    ),
    # thousandths, https://github.com/zai-org/GLM-V/issues/114
    "GLM-4.5V": System(
        "0-1000:xyxy",
        999,
        lambda n: f"It is at <|begin_of_box|>[[{','.join(n)}]]<|end_of_box|>.",
        lambda n, s: fractions(n, s, 1000),
    ),
    # v / 1000, https://github.com/OpenGVLab/InternVL/issues/285
    "InternVL": System(
        "0-1000:xyxy",
        1000,
        lambda n: f"<ref>the cup</ref><box>[[{', '.join(n)}]]</box>",
        lambda n, s: fractions(n, s, 1000),
    ),
    # its users, https://github.com/haotian-liu/LLaVA/issues/606
    "LLaVA-1.5": System("0-1-square:xyxy", 1, lambda n: f"[{', '.join(n)}]", padded, ".2f"),
    # up to 1000, https://github.com/OpenBMB/MiniCPM-V/issues/982
    "MiniCPM-V": System(
        "0-1000:xyxy",
        999,
        lambda n: f"<ref>the cup</ref><box>{' '.join(n)}</box>",
        lambda n, s: fractions(n, s, 1000),
    ),
    # its eval_scripts/eval_ref.py
    "MiniGPT-v2": System(
        "0-100:xyxy",
        100,
        lambda n: "<p>the cup</p> {" + "".join(f"<{value}>" for value in n) + "}",
        lambda n, s: fractions(n, s, 100),
    ),
    # its data/mm_data/refcoco_dataset.py
    "OFA": System(
        "0-999:xyxy", 999, lambda n: " ".join(f"<bin_{value}>" for value in n), lambda n, s: fractions(n, s, 999)
    ),
    # transformers, paligemma/processing_paligemma.py for the tokens;
    # order and bins, https://notes.haroldbenoit.com/notes/ml/llms/multi-modality/paligemma
    "PaliGemma": System(
        "1024-bins:yxyx",
        1023,
        lambda n: "".join(f"<loc{value}>" for value in n) + " the cup",
        lambda n, s: rows_first(n, s, 1024),
        "04d",
    ),
    # README, quoted, https://github.com/QwenLM/Qwen3-VL/issues/663
    "Qwen-VL": System(
        "0-1000:xyxy",
        999,
        lambda n: f"<ref>the cup</ref><box>({n[0]},{n[1]}),({n[2]},{n[3]})</box>",
        lambda n, s: fractions(n, s, 1000),
    ),
    # unlike 2.5, https://github.com/QwenLM/Qwen3-VL/issues/866
    "Qwen2-VL": System(
        "0-1000:xyxy",
        999,
        lambda n: (
            f"<|object_ref_start|>the cup<|object_ref_end|><|box_start|>({n[0]},{n[1]}),({n[2]},{n[3]})<|box_end|>"
        ),
        lambda n, s: fractions(n, s, 1000),
    ),
    # resized pixels, https://github.com/QwenLM/Qwen3-VL/issues/676
    "Qwen2.5-VL": System(
        "input-pixels:xyxy",
        756,
        lambda n: f'```json\n[\n\t{{"bbox_2d": [{", ".join(n)}], "label": "the cup"}}\n]\n```',
        resized,
    ),
    # as Qwen2-VL, https://github.com/QwenLM/Qwen3-VL/issues/1486
    "Qwen3-VL": System(
        "0-1000:xyxy",
        1000,
        lambda n: f'```json\n[\n\t{{"bbox_2d": [{", ".join(n)}], "label": "the cup"}}\n]\n```',
        lambda n, s: fractions(n, s, 1000),
    ),
    # its box_process_function.py (three digits) and webdemo.py (Expand2square)
    "Shikra": System("0-1-square:xyxy", 1, lambda n: f"It is at [{','.join(n)}].", padded, ".3f"),
}
CONVENTIONS = sorted({system.coordinates for system in SYSTEMS.values()})


def outputs(system: System) -> list[tuple[str, Size, Box]]:
    """Outputs with random boxes, the size of the image, and the box that the system's own code decodes."""
    rng = random.Random(7)
    made = []
    for number in range(12):
        drawn: list[str] = []
        for low in (0.1, 0.2, 0.6, 0.65):  # two corners, the second beyond the first
            value = (low + 0.3 * rng.random()) * system.most
            drawn.append(format(value if "f" in system.form else int(value), system.form))
        size = SIZES[number % len(SIZES)]
        a, b, c, d = map(float, drawn)
        made.append((system.text(drawn), size, system.decode((a, b, c, d), size)))
    return made


def read(text: str, size: Size, coordinates: str) -> Box | None:
    convention = Coordinates.named(coordinates)
    found = parse_boxes(text, convention)
    return convention.to_pixels(found[0], size, INPUT) if found else None


@pytest.mark.parametrize("name", SYSTEMS)
def test_each_system_needs_its_own_convention(name: str) -> None:
    system = SYSTEMS[name]
    for coordinates in CONVENTIONS:
        for text, size, box in outputs(system):
            found = read(text, size, coordinates)
            alike = size[0] == size[1] and system.coordinates.startswith("0-1")  # a square has nothing padded
            if coordinates == system.coordinates:
                assert found == pytest.approx(box)
            elif not alike:
                assert found is None or found != pytest.approx(box, abs=0.05), coordinates


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_file_of_each_system_scores_one(name: str, tmp_path: Path) -> None:
    system = SYSTEMS[name]
    rows, predictions = [], []
    for number, (text, (width, height), box) in enumerate(outputs(system)):
        x0, x1 = (min(max(edge, 0.0), width) for edge in box[::2])  # some padded boxes are drawn beyond the image
        y0, y1 = (min(max(edge, 0.0), height) for edge in box[1::2])
        row = {"image": f"{number}.jpg", "phrase": "the cup", "id": str(number)}
        rows.append(row | {"bbox": [x0, y0, x1 - x0, y1 - y0], "width": width, "height": height})
        predictions.append(row | {"answer": text, "input_width": INPUT[0], "input_height": INPUT[1]})
    for file, content in (("data.jsonl", rows), ("predictions.jsonl", predictions)):
        (tmp_path / file).write_text("".join(json.dumps(one) + "\n" for one in content))
    score = epmvg.score(
        tmp_path / "predictions.jsonl", data=str(tmp_path / "data.jsonl"), form="text", coordinates=system.coordinates
    )
    assert score["miou"] == pytest.approx(1) and score["acc90"] == 1 and not score["unreadable"]


@pytest.mark.parametrize(
    "text",
    [
        '<point x="61.5" y="40.4" alt="the cup">the cup</point>',
        '<points x1="10.0" y1="20.0" x2="30.0" y2="40.0" alt="cups">cups</points>',
        '{"point_2d": [346, 328], "label": "the cup"}',
    ],
)
def test_points_are_no_boxes(text: str) -> None:
    """Molmo and Qwen3-VL can output points."""
    assert all(parse_boxes(text, Coordinates.named(one)) == [] for one in ("0-1000:xyxy", "0-100:xyxy"))


to_corners: Any = center_to_corners_format
TENSORS: dict[str, tuple[str, Callable[[torch.Tensor, Size], Any]]] = {  # boxes, and the library's way to pixels
    "DETR, MDETR": ("0-1:cxcywh", lambda box, size: to_corners(box) * torch.tensor(size * 2)),
    "Grounding DINO, MM-Grounding-DINO": ("0-1:cxcywh", lambda box, size: to_corners(box) * torch.tensor(size * 2)),
    "OWL-ViT": ("0-1:cxcywh", lambda box, size: to_corners(box) * torch.tensor(size * 2)),
}


@pytest.mark.parametrize("name", TENSORS)
def test_boxes_of_detectors_are_read_as_their_library_reads_them(name: str) -> None:
    convention, decode = TENSORS[name]
    for size in SIZES:
        box = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
        a, b, c, d = box[0].tolist()
        named = Coordinates.named(convention)
        found = named.to_pixels(named.corners((a, b, c, d)), size)
        assert found == pytest.approx(decode(box, size)[0].tolist(), abs=1e-3)


def test_docs_list_these_detectors() -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text("utf-8")
    listed = dict(re.findall(r"^\| ([^|`]+) \| `pred_boxes` \| `([\w-]+:\w+)` \|", page, re.MULTILINE))
    assert listed == {name: convention for name, (convention, _) in TENSORS.items()}


def test_docs_list_these_systems() -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text("utf-8")
    listed = dict(re.findall(r"^\| ([\w.-]+) \| `(?!pred_boxes).+?` \| `([\w-]+:\w+)` \|", page, re.MULTILINE))
    assert listed == {name: system.coordinates for name, system in SYSTEMS.items()}

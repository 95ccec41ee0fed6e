"""Runtimes: any grounder behind `Predictor`, exported folders in ONNX Runtime and OpenVINO, maps over the image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from epmvg.core.calibration import Calibration
from epmvg.core.geometry import Letterbox
from epmvg.core.types import InputError
from epmvg.inference import predictor as predictor_module
from epmvg.inference.draw import concatenate_images, draw_heatmap
from epmvg.inference.predictor import Predictor
from epmvg.inference.runtimes.exported import ExportedRuntime
from epmvg.inference.runtimes.protocol import RuntimeOutput, Size
from epmvg.models.factory import create_model
from epmvg.models.grounder import Grounder


@dataclass
class EncodedColor:
    color: NDArray[np.float64]
    size: Size
    nbytes: int = 24


class ColorRuntime:
    """A grounder with its own preprocessing: the box depends on the mean color and the length of the phrase."""

    image_size, max_length, calibration, domain = 32, 3, None, "colors"

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, images: Sequence[Image.Image], sizes: Sequence[Size]) -> list[EncodedColor]:
        self.encoded += len(images)
        return [EncodedColor(np.asarray(image).mean((0, 1)), size) for image, size in zip(images, sizes, strict=True)]

    def query(
        self, encoded: Sequence[EncodedColor], phrases: Sequence[str], image_index: NDArray[np.int64], *, top_k: int = 1
    ) -> RuntimeOutput:
        boxes = np.array([[0, 0, encoded[i].color[0], len(p)] for i, p in zip(image_index, phrases, strict=True)])
        truncated = np.array([len(phrase.split()) > self.max_length for phrase in phrases])
        return RuntimeOutput(boxes.astype(np.float64), np.full(len(phrases), 0.5), truncated, ~truncated & False)

    def maps(self, kind: str, encoded: EncodedColor, phrases: Sequence[str]) -> list[NDArray[np.float32]]:
        raise InputError(f"no {kind}")


def test_any_grounder_of_images_and_phrases_is_a_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = ColorRuntime()
    monkeypatch.setattr(predictor_module, "open_runtime", lambda run, **_: runtime)
    predictor = Predictor("colors")
    red, blue = Image.new("RGB", (40, 30), (200, 0, 0)), Image.new("RGB", (20, 30), (10, 0, 90))
    first, second = predictor([red, blue], [["dog"], ["a cat", "one two three four"]])
    assert [one.box for one in [*first, *second]] == [(0, 0, 200, 3), (0, 0, 10, 5), (0, 0, 10, 18)]
    assert [one.truncated for one in second] == [False, True] and first.size == (40, 30)
    predictor(red, "it")
    assert runtime.encoded == 2 and predictor.domain == "colors" and predictor.threshold is None
    with pytest.raises(InputError, match="no attention"):
        predictor.maps("attention", red, "it")


@pytest.fixture
def exported(tiny: Grounder, tmp_path: Path) -> Path:
    """A folder with two small graphs: features are the mean color, and the box is (r, g, b, r)."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    def write(name: str, nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], extra: list[Any]) -> None:
        info = helper.make_tensor_value_info
        given = [info(key, kind, shape) for key, (kind, shape) in inputs.items()]
        made = [info(key, TensorProto.FLOAT, shape) for key, shape in outputs.items()]
        graph = helper.make_graph(nodes, name, given, made, extra)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, tmp_path / f"{name}.onnx")

    mask = {"image_mask": (TensorProto.BOOL, ["I", 64, 64])}
    pool = [helper.make_node("GlobalAveragePool", ["image"], ["features"])]
    write("image", pool, {"image": (TensorProto.FLOAT, ["I", 3, 64, 64]), **mask}, {"features": ["I", 3, 1, 1]}, [])
    inputs = {"features": (TensorProto.FLOAT, ["I", 3, 1, 1]), **mask, "tokens": (TensorProto.INT64, ["P", "L"])}
    inputs |= {"token_mask": (TensorProto.BOOL, ["P", "L"]), "image_index": (TensorProto.INT64, ["P"])}
    nodes = [
        helper.make_node("Gather", ["features", "image_index"], ["own"], axis=0),
        helper.make_node("Reshape", ["own", "shape"], ["rgb"]),
        helper.make_node("Gather", ["rgb", "columns"], ["box"], axis=1),
        helper.make_node("ReduceMean", ["rgb"], ["score"], axes=[1], keepdims=0),
    ]
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 3])
    columns = helper.make_tensor("columns", TensorProto.INT64, [4], [0, 1, 2, 0])
    write("phrases", nodes, inputs, {"box": ["P", 4], "score": ["P"]}, [shape, columns])
    tiny.tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    settings = {"format": "onnx", "image_size": 64, "max_length": 20, "domain": "colors"}
    (tmp_path / "export.json").write_text(json.dumps(settings))
    return tmp_path


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_an_exported_folder_is_run_without_the_model(exported: Path, kind: str) -> None:
    if kind == "openvino":
        openvino = pytest.importorskip("openvino")
        for name in ("image", "phrases"):
            graph = openvino.Core().read_model(str(exported / f"{name}.onnx"))
            openvino.save_model(graph, str(exported / f"{name}.xml"), compress_to_fp16=False)
        settings = json.loads((exported / "export.json").read_text())
        (exported / "export.json").write_text(json.dumps(settings | {"format": "openvino"}))
    (exported / "confidence.json").write_text(Calibration("none", 1.0, 1.0, 0.0, 0.25).dump())
    predictor = Predictor(exported)
    assert predictor.domain == "colors" and predictor.threshold == 0.25
    images = [Image.new("RGB", (64, 64), (128, 128, 64)), Image.new("RGB", (64, 32), (255, 128, 128))]
    first, second = predictor(images, [["dog", "cat"], ["it"]])
    assert first[0].box == first[1].box != second[0].box
    letterbox = Letterbox.fit(64, 32, 64)
    pixels, _ = letterbox.pad(letterbox.resize(images[1]))
    r, g, b = pixels.mean((1, 2)).astype(np.float64)
    assert second[0].box == pytest.approx(letterbox.to_image(np.array([r, g, b, r])), abs=0.02)
    assert second[0].score == pytest.approx(np.mean([r, g, b]), abs=1e-4)
    with pytest.raises(InputError, match="has no heatmap"):
        predictor.maps("heatmap", images[0], "dog")


def test_no_prediction_of_int8_graphs_depends_on_other_phrases_and_images() -> None:
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (48, width, 3), np.uint8)) for width in (40, 64)]
    phrases = [["a dog", "the second man from the left in a red shirt"], ["sky"]]
    predictor = Predictor("default")
    together = predictor(images, phrases, top_k=3)
    for image, own, found in zip(images, phrases, together, strict=True):
        alone = [predictor(image, phrase, top_k=3)[0] for phrase in own]
        assert [(one.box, [each.box for each in one.candidates]) for one in alone] == [
            (one.box, [each.box for each in one.candidates]) for one in found
        ]
        assert [one.score for one in alone] == pytest.approx([one.score for one in found], abs=1e-12)


def test_flip_averaging_finds_in_a_mirrored_image_what_it_finds_in_the_image(tiny: Grounder) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 40, 3), np.uint8)
    phrases = ["the cup on the left", "a dog"]
    mirrored_phrases = ["the cup on the right", "a dog"]
    for top_k in (1, 4):
        predictor = Predictor(tiny, flip=True)
        found, mirrored = predictor(pixels, phrases, top_k=top_k), predictor(pixels[:, ::-1], mirrored_phrases)
        for one, other in zip(found, mirrored, strict=True):
            x0, y0, x1, y1 = other.box
            assert one.box == pytest.approx((40 - x1, y0, 40 - x0, y1), abs=0.02)
            assert one.score == pytest.approx(other.score, abs=1e-5)
            assert not one.candidates or one.candidates[0].box == one.box
    alone = Predictor(tiny)
    assert alone(pixels, phrases)[0].box != found[0].box  # a random model is not symmetric
    maps = zip(predictor.maps("heatmap", pixels, phrases), alone.maps("heatmap", pixels, phrases), strict=True)
    assert all(np.array_equal(one, other) for one, other in maps)


def test_flip_averaging_of_an_exported_folder_without_a_dense_head(exported: Path) -> None:
    image = Image.new("RGB", (64, 64), (102, 128, 153))
    (alone,), (averaged,) = Predictor(exported)(image, "dog"), Predictor(exported, flip=True)(image, "dog")
    x0, y0, x1, y1 = alone.box  # a plain color: the mirror image gives the same box, mirrored back
    assert averaged.box == pytest.approx(((x0 + 64 - x1) / 2, y0, (x1 + 64 - x0) / 2, y1), abs=0.02)
    assert averaged.score == pytest.approx(alone.score)


def test_unusable_folders_and_options_are_named(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="runs on the CPU"):
        Predictor(exported, device="cuda")
    with pytest.raises(InputError, match="does not compute in bf16"):
        Predictor(exported, precision="bf16")
    (exported / "phrases.onnx").write_bytes(b"torn")
    with pytest.raises(InputError, match="cannot be loaded"):
        ExportedRuntime(exported)
    for settings, words in (('{"format": "onnx"}', "cannot be read"), ('{"format": "tflite"}', "does not run")):
        (exported / "export.json").write_text(settings)
        with pytest.raises(InputError, match=words):
            ExportedRuntime(exported)


def test_maps_have_the_size_of_the_image(tiny: Grounder) -> None:
    predictor, image = Predictor(tiny, threads=1), Image.effect_noise((90, 60), 60).convert("RGB")
    for kind in ("heatmap", "attention"):
        for values in predictor.maps(kind, image, ["dog", "it"]):
            assert values.shape == (60, 90) and values.min() >= 0 and values.max() == pytest.approx(1)
    drawn = draw_heatmap(image, values)
    assert drawn.size == (90, 60) and drawn.tobytes() != image.tobytes()
    assert concatenate_images([image, drawn]).size == (182, 60)
    with pytest.raises(InputError, match=r"model\.dense_head=true"):
        Predictor(create_model("tiny-resnet")).maps("heatmap", image, "dog")

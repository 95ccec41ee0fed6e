"""Grounders of the transformers library behind `Predictor`: their boxes, caching, phrases, names and files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from detectors import DETECTORS, save_detector
from PIL import Image
from torchvision.ops import clip_boxes_to_image

from epmvg.cli import main
from epmvg.core.boxes import box_iou
from epmvg.core.calibration import Calibration
from epmvg.core.extras import EXTRAS, MissingExtraError
from epmvg.core.types import InputError
from epmvg.inference.predictor import Predictor
from epmvg.inference.runtimes.transformers_runtime import TransformersRuntime
from epmvg.models.factory import load

PHRASES = ["a red cube", "Man, left", "two-tone ball", "it", "the dog's"]
SIZES = [(120, 80), (50, 90), (3, 50)]
TOWERS = {
    "grounding-dino": "model.backbone.conv_encoder.model",
    "mm-grounding-dino": "model.backbone.conv_encoder.model",
    "omdet-turbo": "encoder.fpn_blocks",
    "owlvit": "owlvit.vision_model.encoder",
    "owlv2": "owlv2.vision_model.encoder",
}
"""A module of each that computes what needs no phrase."""


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: save_detector(kind, tmp_path_factory.mktemp("detectors") / kind) for kind in DETECTORS}


@pytest.fixture(params=DETECTORS)
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


def runtime_of(predictor: Predictor) -> TransformersRuntime:
    assert isinstance(predictor.runtime, TransformersRuntime)
    return predictor.runtime


def of_the_library(runtime: TransformersRuntime, image: Image.Image, phrase: str) -> tuple[torch.Tensor, float]:
    """Return the best box and score, from the processor's call, an ordinary forward pass and post-processing."""
    processor = runtime._processor
    with torch.inference_mode():
        outputs = runtime._family.model(**processor(images=[image], text=[[phrase]], return_tensors="pt"))
    (found,) = processor.post_process_grounded_object_detection(
        outputs, threshold=-1.0, target_sizes=[image.size[::-1]], text_labels=[[phrase]]
    )
    best = found["scores"].argmax()
    return clip_boxes_to_image(found["boxes"][best][None], image.size[::-1])[0], float(found["scores"][best])


def test_boxes_are_those_of_the_librarys_post_processing(folder: Path) -> None:
    predictor = Predictor(folder)
    answers = []
    for seed, size in enumerate(SIZES):
        image = noise(size, seed)
        output = predictor.predict_boxes(image, PHRASES)
        for phrase, box, score in zip(PHRASES, output.boxes, output.scores, strict=True):
            expected, confidence = of_the_library(runtime_of(predictor), image, phrase)
            assert box == pytest.approx(expected.double().numpy(), abs=1e-3)
            assert score == pytest.approx(confidence, abs=1e-5)
            answers.append((*box, score))
    assert len({answer[4] for answer in answers}) == len(answers)  # of each image and phrase its own


def test_images_and_phrases_of_one_call_do_not_affect_each_other(folder: Path) -> None:
    predictor, images = Predictor(folder), [noise((90, 70)), noise((40, 60), 1)]
    single = Predictor(folder, cache_mb=0)
    together = predictor(images, [PHRASES, PHRASES[1:2]])
    for image, found in zip(images, together, strict=True):
        for one in found:
            (alone,) = single(image, one.phrase)
            assert one.box == pytest.approx(alone.box, abs=0.02) and one.score == pytest.approx(alone.score, abs=1e-5)
    half = predictor.predict_batch([(images[0], ["it"])], [b"reduced"], [(45, 35)])[0][0]
    assert half.box == pytest.approx(np.array(predictor(images[0], "it")[0].box) / 2, abs=0.02)


def test_a_further_phrase_does_not_encode_the_image_again(folder: Path) -> None:
    predictor, image = Predictor(folder), noise((90, 70))
    tower = runtime_of(predictor)._family.model.get_submodule(TOWERS[folder.name])
    passes: list[object] = []
    for module in (tower, *tower.children()):
        module.register_forward_hook(lambda *_: passes.append(None))
    first = predictor(image, "it")[0]
    once = len(passes)
    assert once > 0 and predictor(image, ["a dog", "it"])[1].box == first.box and len(passes) == once
    predictor(noise((90, 70), 1), "it")
    assert len(passes) == 2 * once
    (encoded,) = predictor.runtime.encode([image], [image.size])
    assert encoded.nbytes == sum(tensor.nbytes for tensor in encoded.tensors) > 0


def test_candidates_fall_in_score_and_do_not_overlap(folder: Path) -> None:
    predictor, image = Predictor(folder), noise((90, 70))
    for one in predictor(image, PHRASES, top_k=4):
        (alone,) = predictor(image, one.phrase)
        scores = [candidate.score for candidate in one.candidates]
        assert one.candidates[0].box == alone.box and scores == sorted(scores, reverse=True)
        assert 1 < len(one.candidates) <= 4
    encoded = predictor.runtime.encode([image], [image.size])
    output = predictor.runtime.query(encoded, ["it"], np.zeros(1, np.int64), top_k=12)
    assert output.candidates is not None
    inside = [box for box in output.candidates[0].boxes if box[0] > 0 and box[1] > 0 and box[2] < 90 and box[3] < 70]
    overlaps = box_iou(np.array(inside), np.array(inside))
    assert (overlaps[~np.eye(len(inside), dtype=bool)] <= 0.5).all()


def test_phrases_of_any_length_and_punctuation(folder: Path) -> None:
    predictor, image = Predictor(folder), noise((90, 70))
    length = predictor.runtime.max_length
    long = "a" + " b" * 95
    found = predictor(image, [long, "...", "  spaces \n between  ", "?!", "…", "Mr. X. no. 5", "日本"])
    assert [one.truncated for one in found] == [True] + [False] * 6 and np.isfinite([one.box for one in found]).all()
    kept = {"grounding-dino": length - 3, "mm-grounding-dino": length - 3}.get(folder.name, length - 2)
    (cut,) = predictor(image, " ".join(long.split()[:kept]))
    assert not cut.truncated
    if folder.name != "omdet-turbo":  # whose task is a second text
        assert cut.box == found[0].box
    assert predictor(image, "spaces between")[0].box == found[2].box
    assert [one.unknown for one in found[:2]] == [False, "dino" in folder.name]


def test_grounding_dino_reads_a_phrase_as_one_sentence(folders: dict[str, Path]) -> None:
    predictor, image = Predictor(folders["grounding-dino"]), noise((90, 70))
    with_dots, without = predictor(image, ["the man at no. 5?", "the man at no 5"])
    assert with_dots.box == without.box


def test_a_text_without_known_words_is_not_found(folders: dict[str, Path]) -> None:
    (one,) = Predictor(folders["mm-grounding-dino"])(noise((90, 70)), "\N{SNOWMAN}\N{SNOWMAN}")
    assert one.unknown and not one.found


def test_bfloat16_is_close_and_other_settings_are_rejected(folder: Path) -> None:
    image = noise((90, 70))
    (exact,), (rounded,) = (Predictor(folder, precision=each, threads=1)(image, "a dog") for each in ("fp32", "bf16"))
    assert rounded.score == pytest.approx(exact.score, abs=0.1)
    with pytest.raises(InputError, match="is not compiled"):
        Predictor(folder, compile=True)
    with pytest.raises(InputError, match="Omit flip"):
        Predictor(folder, flip=True)
    with pytest.raises(InputError, match="no heatmap"):
        Predictor(folder).maps("heatmap", image, "a dog")
    with pytest.raises(InputError, match="no device"):
        Predictor(folder, device="gpu")


def test_a_predictor_pickles_and_says_what_it_is(folders: dict[str, Path]) -> None:
    predictor = Predictor(folders["owlvit"])
    assert predictor.image_size is None and predictor.domain is None and "owlvit" in repr(predictor)


def test_weights_that_are_missing_are_not_replaced_by_random_ones(folders: dict[str, Path], tmp_path: Path) -> None:
    broken = shutil.copytree(folders["owlvit"], tmp_path / "broken")
    weights = safetensors.torch.load_file(broken / "model.safetensors")
    name = next(name for name in weights if name.startswith("class_head."))
    del weights[name]
    safetensors.torch.save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=f"lacks 1 weights .first: {name}"):
        Predictor(broken)
    (broken / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="cannot be loaded"):
        Predictor(broken)
    (broken / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        Predictor(broken)


def test_a_calibration_is_found_and_belongs_to_its_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["owlv2"], tmp_path / "owlv2")
    raw = Predictor(folder)(noise((90, 70)), "a dog")[0].score
    (folder / "confidence.json").write_text(Calibration("beta", 0.5, 0.5, 0.0, 0.25).dump())
    predictor = Predictor(folder)
    mapped = 1 / (1 + np.sqrt((1 - raw) / raw))
    assert predictor.threshold == 0.25
    assert predictor(noise((90, 70)), "a dog", top_k=2)[0].candidates[0].score == pytest.approx(mapped, abs=1e-6)
    (folder / "confidence.json").write_text(Calibration("none", 1.0, 1.0, 0.0, weights="of another").dump())
    with pytest.raises(InputError, match="belongs to other weights"):
        Predictor(folder)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("hf:owl", "is not a name on the hub"),
        ("hf:google/owl/vit", "is not a name on the hub"),
        ("hf:somebody/no-such-grounder", "cannot be downloaded"),
        ("bert", "is bert, which cannot be run. Give one of grounding-dino"),
    ],
)
def test_other_names_and_folders_are_one_sentence(
    run: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    Image.new("RGB", (4, 4)).save("a.png")
    for command in (["predict", run, "a.png", "it"], ["evaluate", run, "--data", "x.jsonl"], ["serve", run]):
        with pytest.raises(SystemExit) as stop:
            main(command)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and words in error and error.count("\n") == 1, error
    with pytest.raises(InputError, match=words):
        Predictor(run)


def test_a_grounder_of_transformers_is_no_run(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="is an export or another grounder"):
        load(folders["owlvit"])


def test_the_extra_is_named(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "epmvg.inference.runtimes.transformers_runtime", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"needs transformers. Run pip install 'epmvg\[zoo\]'"):
        Predictor(folders["owlvit"])


def test_the_extra_suffices(folders: dict[str, Path]) -> None:
    others = set(EXTRAS["train"].split()) - set(EXTRAS["zoo"].split())
    code = f"import sys\nsys.modules |= dict.fromkeys({sorted(others)!r})\n"
    code += "from PIL import Image\nfrom epmvg import Predictor\n"
    code += f"Predictor({str(folders['grounding-dino'])!r})(Image.new('RGB', (90, 70)), 'a dog')"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_older_checkpoints_have_pickled_weights(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = shutil.copytree(folders["owlvit"], tmp_path / "old")
    torch.save(safetensors.torch.load_file(old / "model.safetensors"), old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    asked: list[list[str]] = []

    def download(name: str, *, allow_patterns: list[str], **_: Any) -> str:
        asked.append(allow_patterns)
        return str(old)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    image = noise((90, 70))
    assert Predictor("hf:somebody/old")(image, "it")[0].box == Predictor(folders["owlvit"])(image, "it")[0].box
    assert len(asked) == 2 and asked[1] == ["pytorch_model*.bin*"]

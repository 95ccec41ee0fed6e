"""Prediction: what is remembered changes no answer, many phrases are one call, and memory is bounded."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from epmvg.core.boxes import paired_iou
from epmvg.core.geometry import Letterbox
from epmvg.core.images import open_image
from epmvg.core.types import InputError, Prediction
from epmvg.inference.predictor import Predictor
from epmvg.inference.results import Predictions
from epmvg.models.factory import create_model, save
from epmvg.models.grounder import Grounder

PHRASES = ["dog", "the woman in the tan jacket", "a red car behind the second tree from the right", "it", "sky"]


def photo(seed: int, size: tuple[int, int] = (90, 60)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def agree(one: list[Prediction], other: list[Prediction], pixels: float = 0.011) -> None:
    """The same but for the rounding of boxes to 0.01 px."""
    assert [found.phrase for found in one] == [found.phrase for found in other]
    for a, b in zip(one, other, strict=True):
        assert a.box == pytest.approx(b.box, abs=pixels)
        assert a.score == pytest.approx(b.score, abs=1e-4)


def count_encodings(predictor: Predictor) -> list[int]:
    """Replace the image encoder by one that appends the number of images of each call to the returned list."""
    encode, calls = predictor.runtime.encode, []

    def counted(images: Any, sizes: Any) -> Any:
        calls.append(len(images))
        return encode(images, sizes)

    predictor.runtime.encode = counted  # type: ignore[method-assign]
    return calls


def test_cached_images_change_no_prediction(tiny: Grounder) -> None:
    predictor, uncached = Predictor(tiny), Predictor(tiny, cache_mb=0)
    calls, always = count_encodings(predictor), count_encodings(uncached)
    for seed in (0, 1, 0, 1):
        agree(predictor(photo(seed), PHRASES), uncached(photo(seed), PHRASES))
    assert (len(calls), len(always)) == (2, 4)


def test_a_batch_of_images_equals_single_images(tiny: Grounder) -> None:
    """Also one queries twice, one queries before, and more of them than are remembered."""
    predictor, uncached = Predictor(tiny), Predictor(tiny, cache_mb=0)
    queries = [(photo(seed, size), PHRASES[: 1 + seed]) for seed, size in ((0, (90, 60)), (1, (50, 80)), (0, (90, 60)))]
    for again in (predictor, uncached):
        again(photo(1, (50, 80)), "dog")
        calls = count_encodings(again)
        for together, (image, phrases) in zip(again.predict_batch(queries), queries, strict=True):
            agree(together, Predictor(tiny)(image, phrases))
        assert calls == ([1] if again is predictor else [2])
    with pytest.raises(InputError, match="empty"):
        predictor.predict_batch([*queries, (photo(2), [" "])])


def test_a_given_cache_key_identifies_the_image(tiny: Grounder) -> None:
    predictor = Predictor(tiny)
    calls = count_encodings(predictor)
    (first,) = predictor.predict_batch([(photo(0), PHRASES)], [b"one"])
    again, other = predictor.predict_batch([(photo(1), PHRASES), (photo(1), PHRASES)], [b"one", b"other"])
    agree(first, Predictor(tiny)(photo(0), PHRASES))
    agree(again, first)
    agree(other, Predictor(tiny)(photo(1), PHRASES))
    assert calls == [1, 1]


def test_a_batch_of_phrases_equals_single_phrases(tiny: Grounder) -> None:
    predictor = Predictor(tiny)
    alone = [Predictor(tiny)(photo(0), phrase)[0] for phrase in PHRASES]
    agree(predictor(photo(0), PHRASES), alone)
    agree(predictor(photo(0), PHRASES[::-1]), alone[::-1])


def test_images_are_cached_by_content(tiny: Grounder, tmp_path: Path) -> None:
    """By a file's bytes, whatever its name; by a image's pixels, whatever holds them."""
    predictor = Predictor(tiny)
    calls = count_encodings(predictor)
    for name in ("a.png", "b.png"):
        photo(0).save(tmp_path / name)
        predictor(tmp_path / name, "dog")
    predictor((tmp_path / "a.png").read_bytes(), "dog")
    assert len(calls) == 1
    agree(predictor(photo(0), "dog"), predictor(np.asarray(photo(0)), "dog"))
    assert len(calls) == 2
    before = predictor(tmp_path / "a.png", "dog")
    photo(1).save(tmp_path / "a.png")
    after = predictor(tmp_path / "a.png", "dog")
    assert len(calls) == 3
    assert before[0].box != after[0].box
    wide = photo(0).resize((180, 120))
    small = wide.resize((90, 60))
    assert predictor(wide, "dog")[0].box[2] <= 180
    assert predictor(small, "dog")[0].box[2] <= 90


def test_the_cache_is_bounded(tiny: Grounder) -> None:
    predictor = Predictor(tiny, cache_mb=0.03)  # an image of 64 px takes 6 KB
    calls = count_encodings(predictor)
    for seed in range(20):
        predictor(photo(seed), "dog")
        predictor(photo(0), "dog")  # always wanted, so it stays
        assert predictor._encoded.nbytes <= 30_000
    assert len(calls) == 20
    assert 1 < len(predictor._encoded) < 10
    predictor(photo(1), "dog")  # long unused
    assert len(calls) == 21


def test_a_model_in_memory_is_copied(tiny: Grounder) -> None:
    """Later training neither spoils the predictor nor is spoilt by it."""
    predictor = Predictor(tiny)
    before = predictor(photo(0), PHRASES)
    with torch.no_grad():
        for parameter in tiny.parameters():
            parameter.add_(0.05)
    agree(predictor(photo(0), PHRASES), before, pixels=0)
    assert Predictor(tiny)(photo(0), PHRASES) != before
    assert any(parameter.requires_grad for parameter in tiny.parameters())


@pytest.mark.parametrize("name", ["tiny-resnet", "tiny-swin"])
def test_the_torch_runtime_equals_the_model(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name).eval()
    letterbox = Letterbox.fit(90, 60, model.image_size)
    image_size, image_mask = letterbox.pad(letterbox.resize(photo(0)))
    tokens, token_mask = model.tokenize(PHRASES)
    image_index = torch.zeros(len(PHRASES), dtype=torch.int64)
    with torch.no_grad():
        output = model(
            torch.from_numpy(image_size)[None], torch.from_numpy(image_mask)[None], tokens, token_mask, image_index
        )
    expected = letterbox.to_image(output.box.double())
    boxes = Predictor(model).predict_boxes(photo(0), PHRASES).boxes
    torch.testing.assert_close(torch.tensor(boxes, dtype=torch.float64), expected, atol=1e-3, rtol=0)


def test_tokens_equal_those_of_the_model(tiny: Grounder) -> None:
    queries = ["  Dog ", "a café's Straße", "word " * 40, "日本", "x" * 300]
    ours = tiny.phrase_tokenizer()(queries)
    tokens, token_mask = tiny.tokenize(queries)
    assert np.array_equal(ours.padding, token_mask.numpy())
    assert np.array_equal(ours.ids[~ours.padding], tokens.numpy()[~ours.padding])
    assert ours.ids.shape == tokens.shape


def test_half_precision_is_close(tiny: Grounder) -> None:
    exact = Predictor(tiny).predict_boxes(photo(0), PHRASES).boxes
    half = Predictor(tiny, precision="bf16").predict_boxes(photo(0), PHRASES).boxes
    assert not np.array_equal(half, exact)
    assert paired_iou(torch.from_numpy(half), torch.from_numpy(exact)).min() > 0.9


def test_unusable_queries_are_rejected(tiny: Grounder, tmp_path: Path) -> None:
    predictor = Predictor(tiny)
    with pytest.raises(InputError, match=r"none\.jpg does not exist"):
        predictor(tmp_path / "none.jpg", "dog")
    with pytest.raises(InputError, match="at least one"):
        predictor(photo(0), [])


def test_every_form_of_an_image_has_the_same_predictions(tiny: Grounder, tmp_path: Path) -> None:
    """Turned, half transparent: path, bytes, open file, PIL image, and the upright pixels, drawn on alike."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = photo(0).transpose(Image.Transpose.ROTATE_90).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    file = tmp_path / "x.png"
    image.save(file, exif=exif)
    expected = Predictor(tiny)(file, PHRASES)
    assert expected.size == expected.image.size == (90, 60)
    with Image.open(file) as opened, file.open("rb") as binary:
        upright = np.asarray(open_image(file))
        for given in (str(file), file.read_bytes(), bytearray(file.read_bytes()), binary, opened, upright):
            found = Predictor(tiny)(given, PHRASES)
            assert list(found) == list(expected)
            assert found.draw().tobytes() == expected.draw().tobytes()


def test_many_phrases_are_queried_in_several_passes(tiny: Grounder, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [Predictor(tiny)(photo(seed), PHRASES, top_k=2) for seed in range(2)]
    monkeypatch.setattr("epmvg.inference.predictor.PHRASES_PER_PASS", 2)
    predictor, counts = Predictor(tiny), list[int]()
    real = predictor.runtime.query

    def counted(encoded: Any, phrases: Sequence[str], *arguments: Any, **options: Any) -> Any:
        counts.append(len(phrases))
        return real(encoded, phrases, *arguments, **options)

    monkeypatch.setattr(predictor.runtime, "query", counted)
    for found, same in zip(predictor([photo(0), photo(1)], PHRASES, top_k=2), expected, strict=True):
        agree(found, same)
        assert [len(one.candidates) for one in found] == [len(one.candidates) for one in same]
    assert max(counts) == 2 and sum(counts) == 2 * len(PHRASES)


def test_a_list_of_images_equals_single_images(tiny: Grounder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epmvg.inference.predictor.IMAGES_PER_PASS", 2)  # encoded two by two
    predictor = Predictor(tiny, cache_mb=0)
    calls = count_encodings(predictor)
    images = [photo(seed, (90 - 10 * seed, 60)) for seed in range(3)]
    alike = predictor(images, PHRASES, min_score=0.5)
    own = predictor(images, [["dog"], PHRASES, ("sky", "it")])
    assert calls == [2, 1, 2, 1]
    for image, one in zip(images, alike, strict=True):
        agree(one, Predictor(tiny)(image, PHRASES))
        assert one.image.tobytes() == image.tobytes()
        assert [each.found for each in one] == [each.score >= 0.5 for each in one]
    assert [len(one) for one in own] == [1, 5, 2]
    agree(own[2], Predictor(tiny)(images[2], ["sky", "it"]))
    assert predictor([], "dog") == []
    with pytest.raises(InputError, match="3 images and 2 lists"):
        predictor(images, [["dog"], ["sky"]])


@pytest.mark.parametrize("phrases", [None, b"dog", {"dog": 1}, {"dog"}, 3, ["dog", None], [["dog"]], iter(["dog"])])
def test_phrases_of_another_type_are_rejected(tiny: Grounder, phrases: Any) -> None:
    with pytest.raises(TypeError, match=r"^Phrases must be a string or a sequence of strings, not \w+\.$"):
        Predictor(tiny)(photo(0), phrases)


def test_arguments_out_of_range_are_rejected(tiny: Grounder) -> None:
    predictor = Predictor(tiny)
    for wrong in (2, -0.1, float("nan"), "0.3", True):
        with pytest.raises(InputError, match="from 0 to 1"):
            predictor(photo(0), "dog", min_score=wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="stored threshold"):
        predictor(photo(0), "dog", min_score="auto")
    with pytest.raises(InputError, match=r"'fp16' is unknown\. Use one of auto, fp32, bf16"):
        Predictor(tiny, precision="fp16")  # type: ignore[arg-type]
    wrong_arguments: list[tuple[dict[str, Any], str]] = [
        *(({"cache_mb": value}, "cache_mb is") for value in (float("inf"), float("nan"), -1, "64", None, True)),
        *(({"threads": value}, "threads is") for value in (1.5, 0, -3, "2", True)),
        *(({"device": value}, f"There is no device {value!r}") for value in (None, 1.5, "gpu")),
    ]
    for arguments, words in wrong_arguments:
        with pytest.raises(InputError, match=words):
            Predictor(tiny, **arguments)
    with pytest.raises(InputError, match=r"There is no map 'gradient'\. Use one of heatmap, attention"):
        predictor.maps("gradient", photo(0), "dog")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not NoneType"):
        Predictor(None)  # type: ignore[arg-type]


def test_long_phrases_are_truncated_and_unknown_ones_not_found(
    tiny: Grounder, caplog: pytest.LogCaptureFixture
) -> None:
    """The same box as for what is left of it; what is written of special tokens is text."""
    predictor = Predictor(tiny)
    whole, long, emoji, mask = predictor(photo(0), ["word " * 18, "word " * 30, "\N{DOG FACE}", "[MASK]"])
    assert long.box == whole.box and (whole.truncated, long.truncated) == (False, True)
    assert (emoji.unknown, emoji.found) == (True, False) and long.found and mask.found and not mask.unknown
    assert "is truncated to 20 word pieces" in caplog.text and "No word of" in caplog.text
    assert long.to_dict()["truncated"] is True and "truncated" not in whole.to_dict()
    (same,) = predictor.predict_batch([(photo(0), ["\N{DOG FACE}"])])
    assert same[0].unknown and not same[0].found
    tokens = tiny.phrase_tokenizer()(["[MASK] [SEP] dog"])
    assert tiny.tokenizer.mask_token_id not in tokens.ids and (tokens.ids == tiny.tokenizer.sep_token_id).sum() == 1


def test_predictions_pickle_with_their_image(tiny: Grounder, tmp_path: Path) -> None:
    photo(0).save(tmp_path / "x.png")
    for given in (tmp_path / "x.png", (tmp_path / "x.png").read_bytes(), photo(0), np.asarray(photo(0))):
        found = Predictor(tiny)(given, PHRASES)
        for copied in (pickle.loads(pickle.dumps(found)), copy.copy(found)):
            assert isinstance(copied, Predictions) and list(copied) == list(found)
            assert copied.draw().tobytes() == found.draw().tobytes()
            assert copied.to_dict() == found.to_dict()
    before = Predictor(tiny)(tmp_path / "x.png", PHRASES)
    photo(1).save(tmp_path / "x.png")
    with pytest.raises(InputError, match=r"x\.png has changed"):
        before.draw()


def test_a_given_array_may_be_changed_afterwards(tiny: Grounder) -> None:
    """A camera's buffer is filled again and again."""
    frame = np.array(photo(0))
    found = Predictor(tiny)(frame, "dog")
    frame[:] = 0
    assert found.image.tobytes() == photo(0).tobytes()


def test_a_predictor_pickles_by_its_folder(tiny: Grounder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tiny, tmp_path / "run")
    predictor = Predictor(tmp_path / "run", cache_mb=1)
    other = pickle.loads(pickle.dumps(predictor))
    assert (
        list(other(photo(0), PHRASES)) == list(predictor(photo(0), PHRASES)) and other._encoded.max_bytes == 1_000_000
    )
    with pytest.raises(TypeError, match="Save the model and open its folder"):
        pickle.dumps(Predictor(tiny))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "image_size=64, max_length=20" in repr(Predictor("~/run"))


def test_a_forked_predictor_raises(tiny: Grounder) -> None:
    predictor = Predictor(tiny)
    predictor(photo(0), "dog")
    receive, send = multiprocessing.Pipe(duplex=False)

    def child() -> None:
        try:
            predictor(photo(1), "dog")
        except RuntimeError as error:
            send.send(str(error))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(20)
    alive = process.is_alive()
    process.kill()
    assert not alive and "made before its process was forked" in receive.recv()


def test_a_reduced_copy_has_the_predictions_of_its_original(tiny: Grounder) -> None:
    """What a server keeps of a photo, the pixels on the canvas, is all the model needs of it."""
    image = Image.effect_noise((403, 151), 90).convert("RGB")
    predictor, fresh = Predictor(tiny), Predictor(tiny)
    assert predictor.image_size is not None
    laid = Letterbox.fit(*image.size, predictor.image_size).resize(image)
    assert max(laid.shape) == predictor.image_size < 403
    (reduced,) = fresh.predict_batch([(Image.fromarray(laid), ["it"])], sizes=[image.size])
    assert reduced == list(predictor(image, "it"))


def test_candidates_begin_with_the_predicted_box(tiny: Grounder) -> None:
    predictor, image = Predictor(tiny, threads=1), photo(3)
    alone, several = predictor(image, PHRASES), predictor(image, PHRASES, top_k=4)
    assert all(one.candidates == () and "candidates" not in one.to_dict() for one in alone)
    for one, other in zip(several, alone, strict=True):
        assert (one.box, one.score) == (other.box, other.score) == (one.candidates[0].box, one.candidates[0].score)
        scores = [each.score for each in one.candidates]
        assert 1 <= len(scores) <= 4 and scores == sorted(scores, reverse=True)
        assert one.to_dict()["candidates"][0] == {"box": list(one.box), "score": one.score}
        assert all(
            0 <= each.box[0] <= each.box[2] <= 90 and 0 <= each.box[1] <= each.box[3] <= 60 for each in one.candidates
        )
    assert max(len(one.candidates) for one in several) > 1
    together = predictor.predict_batch([(image, PHRASES), (photo(4), ["it"])], top_k=4)
    agree(together[0], list(several))
    assert [len(one.candidates) for one in together[0]] == [len(one.candidates) for one in several]


def test_a_model_without_a_dense_head_has_one_candidate() -> None:
    (one,) = Predictor(create_model("tiny-resnet"))(photo(0), "it", top_k=3)
    assert [candidate.box for candidate in one.candidates] == [one.box]


@pytest.mark.parametrize("score", [np.float32(0.5), np.float64(0.5), np.int64(1)])
def test_numbers_of_numpy_are_numbers(tiny: Grounder, score: Any) -> None:
    counts: dict[str, Any] = {"threads": np.int64(1), "top_k": np.int64(2)}
    predictor = Predictor(tiny, cache_mb=score, threads=counts["threads"])
    found = predictor(photo(0), "it", min_score=score, top_k=counts["top_k"])
    assert found == predictor(photo(0), "it", min_score=float(score), top_k=2)


@pytest.mark.parametrize("top_k", [0, -1, 1.5, True, "3", np.bool_(True), np.float64(2)])
def test_top_k_is_a_positive_integer(tiny: Grounder, top_k: Any) -> None:
    with pytest.raises(InputError, match="Give a whole number from 1 on"):
        Predictor(tiny)(photo(0), "it", top_k=top_k)

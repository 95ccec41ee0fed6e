"""Synthetic scenes: phrases are true of one object, also when flipped; the same seed draws the same bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from epmvg.core.types import InputError
from epmvg.data.readers.texts import read_texts
from epmvg.data.registry import open_samples
from epmvg.data.side_words import swap_sides
from epmvg.data.synthetic.phrases import SceneObject, phrases_of
from epmvg.data.synthetic.scenes import draw_scene, held_out_names, write_scenes
from epmvg.data.synthetic.sprite_library import load_sprites, sprite_image

SMALL = {"train": 12, "val": 4, "test": 4, "open": 6, "captions": 8}


def referents(text: str, objects: list[SceneObject]) -> list[int]:
    """Read a phrase without knowing how it was made, and return every object it could mean (no margins)."""
    names = sorted({item.name for item in objects}, key=len, reverse=True)
    name = next(n for n in names if re.search(rf"\b{re.escape(n)}\b", text))
    relation = re.fullmatch(r"the (.+?) (?:to the )?(left of|right of|above|below) the (.+)", text)
    if relation:
        name, word, anchor = relation.groups()
        (other,) = [item for item in objects if item.name == anchor]
        axis, side = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}[word]
        return [i for i, t in enumerate(objects) if t.name == name and side * (t.center[axis] - other.center[axis]) > 0]
    same = [i for i, item in enumerate(objects) if item.name == name]
    words = text.replace(name, "").split()
    extremes: dict[tuple[str, str], Callable[[SceneObject], float]] = {
        ("smaller", "smallest"): lambda t: t.length,
        ("bigger", "biggest"): lambda t: -t.length,
        ("left", "leftmost"): lambda t: t.center[0],
        ("right", "rightmost"): lambda t: -t.center[0],
        ("upper", "topmost"): lambda t: t.center[1],
        ("lower", "bottommost"): lambda t: -t.center[1],
    }
    for spoken, measure in extremes.items():
        if set(spoken) & set(words):
            return [min(same, key=lambda i: measure(objects[i]))]
    colors = [word for word in words if word not in ("the", "on")]
    return [i for i in same if not colors or objects[i].color == colors[0]]


def flip(objects: list[SceneObject], width: int) -> list[SceneObject]:
    return [SceneObject(t.name, t.color, (width - t.box[2], t.box[1], width - t.box[0], t.box[3])) for t in objects]


@pytest.mark.parametrize("split", ["train", "open"])
def test_phrases_are_true_of_exactly_one_object(split: str) -> None:
    kinds = set()
    for number in range(150):
        scene = draw_scene(split, number, seed=3)
        for phrase in phrases_of(scene.objects, scene.image.size):
            assert referents(phrase.text, scene.objects) == [phrase.target], phrase.text
            kinds.add(phrase.kind)
    assert kinds == {"name", "color", "size", "place", "relation"}


def test_phrases_stay_true_when_flipped_with_sides_swapped() -> None:
    for number in range(60):
        scene = draw_scene("train", number)
        flipped = flip(scene.objects, scene.image.width)
        for phrase in scene.phrases:
            assert referents(swap_sides(phrase.text), flipped) == [phrase.target], phrase.text


def test_boxes_are_tight_and_inside() -> None:
    """Every object's pixels differ from the empty background inside its box, up to its edges."""
    for name in ("banana", "airplane", "bell"):
        alpha = np.asarray(sprite_image(name).getchannel("A"))
        assert (alpha.max(0) > 0)[[0, -1]].all() and (alpha.max(1) > 0)[[0, -1]].all()
    for number in range(40):
        scene = draw_scene("val", number)
        for item in scene.objects:
            x0, y0, x1, y1 = item.box
            assert 0 <= x0 < x1 <= scene.image.width and 0 <= y0 < y1 <= scene.image.height


def test_held_out_names_are_grounded_in_open_only_and_known_from_captions() -> None:
    held_out = held_out_names()
    assert 30 < len(held_out) < 60 and held_out < load_sprites().keys()
    for split in ("train", "val", "test"):
        shown = {item.name for number in range(80) for item in draw_scene(split, number).objects}
        assert not shown & held_out
    open_phrases = [
        (scene.objects[phrase.target].name, phrase)
        for number in range(60)
        for scene in [draw_scene("open", number)]
        for phrase in scene.phrases
    ]
    assert open_phrases and all(name in held_out for name, _ in open_phrases)
    captions = " ".join(text for number in range(400) for text in draw_scene("captions", number).captions)
    assert sum(name in captions for name in held_out) > 0.9 * len(held_out)


def test_the_same_seed_draws_the_same_bytes_and_more_scenes_change_none(tmp_path: Path) -> None:
    first = write_scenes(tmp_path / "first", sizes=SMALL)
    second = write_scenes(tmp_path / "second", sizes=SMALL | {"train": 15})
    for file in (first / "images").iterdir():
        assert file.read_bytes() == (second / "images" / file.name).read_bytes()
    other = write_scenes(tmp_path / "other", sizes=SMALL, seed=1)
    name = "images/train-00000.jpg"
    assert (first / name).read_bytes() != (other / name).read_bytes()


def test_several_processes_draw_the_same_bytes(tmp_path: Path) -> None:
    sizes = {"train": 3, "captions": 2}
    alone, together = (write_scenes(tmp_path / str(n), sizes=sizes, side=96, workers=n) for n in (0, 2))
    files = sorted(file.relative_to(alone) for file in alone.rglob("*") if file.is_file())
    assert len(files) == 9
    for file in files:
        assert (alone / file).read_bytes() == (together / file).read_bytes(), file


def test_written_scenes_are_a_data_set_like_any_other(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "scenes", sizes=SMALL)
    samples = open_samples(str(folder / "annotations.jsonl"), split=None)
    assert {sample.split for sample in samples} == {"train", "val", "test", "open"}
    assert all(sample.image.is_file() and sample.extra["kind"] for sample in samples)
    captions = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    assert {row["split"] for row in captions} == {"train", "val"}
    assert not any("test" in row["image"] or "open" in row["image"] for row in captions)
    unlabeled = read_texts(folder / "unlabeled.jsonl", "phrase", folder)
    assert len(unlabeled) == SMALL["captions"] and not {sample.image for sample in samples} & set(unlabeled)
    drawn = [[phrase.text for phrase in draw_scene("captions", number).phrases] for number in range(SMALL["captions"])]
    assert list(unlabeled.values()) == drawn
    assert write_scenes(folder, sizes=SMALL) == folder


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match="contains something other"):
        write_scenes(tmp_path, sizes=SMALL)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_two_that_draw_at_once_get_one_set_and_leave_nothing_else(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: write_scenes(tmp_path / "scenes", sizes=SMALL, side=64), range(2)))
    assert folders[0] == folders[1] and (folders[0] / "annotations.jsonl").is_file()
    assert {file.name for file in tmp_path.iterdir()} <= {"scenes", ".scenes.lock"}


def test_drawing_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "scenes", sizes=SMALL, side=64, progress=stop)
    assert {file.name for file in tmp_path.iterdir()} <= {".scenes.lock"}


def test_a_mistyped_root_is_not_drawn_in(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        open_samples("scenes", split="val", root=tmp_path / "scnees")
    assert list(tmp_path.iterdir()) == []

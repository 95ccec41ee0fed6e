"""External predictions: equal metrics in every format, each sample once, our own rows to the last digit."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import epmvg
from epmvg.cli import main
from epmvg.core.types import InputError
from epmvg.evaluation.external_formats import ORDERS, UNITS
from epmvg.evaluation.metrics import IOU_THRESHOLDS, METRICS
from epmvg.models.factory import save
from epmvg.models.grounder import Grounder

Rows = list[dict[str, Any]]


def write(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def make(folder: Path, size: tuple[int, int] = (8000, 4000), n: int = 30) -> tuple[Path, Rows]:
    """A data set of images that are not opened, and predictions of which some are correct."""
    rng = random.Random(4)
    data, predictions = [], []
    width, height = size
    for number in range(n):
        x, y = rng.randrange(0, width // 2, 8), rng.randrange(0, height // 2, 8)
        w, h = rng.randrange(width // 8, width // 2, 8), rng.randrange(height // 8, height // 2, 8)
        row = {
            "image": f"{number // 3}.jpg",
            "phrase": f"the {'left ' * (number % 2)}thing {number}",
            "id": f"r{number}",
        }
        data.append(row | {"bbox": [x, y, w, h], "width": width, "height": height})
        reach = rng.choice([0, 0, 8, w // 8, w // 3, 3 * w // 4, w])
        predictions.append(row | {"box": [x + reach, y, x + w, y + h] if reach < w else [0, 0, 16, 8], "score": 0.5})
    folder.mkdir(parents=True, exist_ok=True)
    return write(folder / "data.jsonl", data), predictions


COMPARED = (*METRICS, "intervals", "slices", "metadata", "n")


def metrics_of(result: dict[str, Any]) -> dict[str, Any]:
    return {name: result[name] for name in COMPARED}


@pytest.fixture
def known(tmp_path: Path) -> tuple[Path, Rows]:
    return make(tmp_path)


def as_numbers(box: Sequence[float], unit: str, order: str, size: tuple[int, int], seen: tuple[int, int]) -> list[Any]:
    """A box in pixels as a convention writes it; where the convention has whole numbers, so has this."""
    span, offset = UNITS[unit].span, UNITS[unit].offset
    scale = [(span or 1) / (size[axis] if span else size[axis] / seen[axis]) for axis in (0, 1)]
    if unit == "pixels":
        scale = [1.0, 1.0]
    before = [0, 0]
    if UNITS[unit].square:
        before = [(max(size) - side) // 2 for side in size]
        scale = [1 / max(size)] * 2
    a, b, c, d = ((edge + before[place % 2]) * scale[place % 2] - offset for place, edge in enumerate(box))
    width, height = c - a, d - b
    numbers = {
        "xyxy": (a, b, c, d),
        "yxyx": (b, a, d, c),
        "xywh": (a, b, width, height),
        "cxcywh": (a + width / 2, b + height / 2, width, height),
    }[order]
    return [int(value) if value == int(value) else value for value in numbers]


WRITTEN: list[Callable[[list[Any]], str]] = [
    lambda b: f"It is at [[{b[0]}, {b[1]}, {b[2]}, {b[3]}]].",
    lambda b: f"<ref>it</ref><box>({b[0]},{b[1]}),({b[2]},{b[3]})</box>",
    lambda b: json.dumps([{"bbox_2d": b, "label": "it"}]),
]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("unit", UNITS)
def test_formats_agree(unit: str, order: str, tmp_path: Path) -> None:
    """The same boxes as rows, as COCO results and as text of each convention: the same figures to the last digit."""
    exact = {"0-999": (999 * 8, 999 * 16), "0-100": (6400, 3200)}  # sizes whose fractions are exact in binary
    size = exact.get(unit, (8192, 4096) if unit in ("0-1", "0-1-square", "1024-bins") else (8000, 4000))
    data, predictions = make(tmp_path, size)
    if unit == "1000-bins":  # whose numbers are middles of bins
        steps = (size[0] // 1000, size[1] // 1000)
        for row in predictions:
            row["box"] = [(v // steps[i % 2] + 0.5) * steps[i % 2] for i, v in enumerate(row["box"])]
    expected = metrics_of(epmvg.score(write(tmp_path / "own.jsonl", predictions), data=str(data)))
    assert 0 < expected["acc90"] < expected["acc25"] < 1
    x0y0wh = [row | {"bbox": as_numbers(row["box"], "pixels", "xywh", size, size)} for row in predictions]
    coco = [{key: row[key] for key in ("id", "bbox", "score")} for row in x0y0wh]
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    assert metrics_of(epmvg.score(tmp_path / "coco.json", data=str(data), form="coco")) == expected
    seen = (size[0] // 4, size[1] // 2)
    outputs = [
        {
            "image": row["image"],
            "phrase": row["phrase"],
            "answer": WRITTEN[number % 3](as_numbers(row["box"], unit, order, size, seen)),
            "input_width": seen[0],
            "input_height": seen[1],
        }
        for number, row in enumerate(predictions)
    ]
    text = write(tmp_path / "text.jsonl", outputs)
    got = epmvg.score(text, data=str(data), form="text", coordinates=f"{unit}:{order}")
    assert metrics_of(got) == expected


@pytest.mark.parametrize(
    ("unit", "token", "bins"), [("1000-bins", "<loc_{}>", 1000), ("1024-bins", "<loc{:04d}>", 1024)]
)
def test_location_tokens_are_boxes(unit: str, token: str, bins: int, tmp_path: Path) -> None:
    order = "xyxy" if bins == 1000 else "yxyx"
    size = (bins * 8, bins * 4)
    data, predictions = make(tmp_path, size)
    half = 0.5 if bins == 1000 else 0.0
    for row in predictions:
        row["box"] = [(v // (8, 4)[i % 2] + half) * (8, 4)[i % 2] for i, v in enumerate(row["box"])]
        numbers = as_numbers(row["box"], unit, order, size, size)
        row["answer"] = "".join(token.format(number) for number in numbers) + " it"
    file = write(tmp_path / "predictions.jsonl", predictions)
    rows = epmvg.score(file, data=str(data))
    assert metrics_of(epmvg.score(file, data=str(data), form="text", coordinates=f"{unit}:{order}")) == metrics_of(rows)


def test_order_and_scale_change_nothing(known: tuple[Path, Rows], tmp_path: Path) -> None:
    data, predictions = known
    whole = epmvg.score(write(tmp_path / "a.jsonl", predictions), data=str(data))
    rng = random.Random(0)
    lines = data.read_text().splitlines()
    (tmp_path / "shuffled.jsonl").write_text("\n".join(rng.sample(lines, len(lines))))
    mixed = write(tmp_path / "b.jsonl", rng.sample(predictions, len(predictions)))
    assert metrics_of(epmvg.score(mixed, data=str(tmp_path / "shuffled.jsonl"))) == metrics_of(whole)
    bigger = [row | {"bbox": [4 * v for v in row["bbox"]]} for row in map(json.loads, lines)]
    bigger = [row | {key: 4 * row[key] for key in ("width", "height")} for row in bigger]
    outputs = write(tmp_path / "c.jsonl", [row | {"box": [4 * v for v in row["box"]]} for row in predictions])
    scaled = epmvg.score(outputs, data=str(write(tmp_path / "large.jsonl", bigger)))
    assert {name: scaled[name] for name in METRICS} == {name: whole[name] for name in METRICS}
    assert scaled["metadata"]["data_sha256"] != whole["metadata"]["data_sha256"]


def test_accuracy_falls_with_the_threshold(known: tuple[Path, Rows], tmp_path: Path) -> None:
    data, predictions = known
    result = epmvg.score(write(tmp_path / "a.jsonl", predictions), data=str(data))
    accuracies = [result[name] for name in IOU_THRESHOLDS]
    assert sorted(accuracies, reverse=True) == accuracies
    assert result["macc"] == pytest.approx(sum(accuracies) / 4)
    assert all(low <= result[name] <= high for name, (low, high) in result["intervals"].items())


def test_our_own_evaluation_has_equal_metrics(tiny: Grounder, squares: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    save(tiny, run)
    (run / "config.yaml").write_text(epmvg.Recipe.load("scenes", f"data.name={squares}", "model=tiny-resnet").dump())
    evaluated = epmvg.evaluate(run, split="val")
    scored = epmvg.score(run / "predictions-annotations-val.jsonl", data=str(squares), split="val")
    assert metrics_of(scored) == metrics_of(evaluated)
    rows = [json.loads(line) for line in (run / "predictions-annotations-val.jsonl").read_text().splitlines()]
    assert (
        epmvg.score(
            write(tmp_path / "moved.jsonl", [row | {"image": "/elsewhere/" + Path(row["image"]).name} for row in rows]),
            data=str(squares),
            split="val",
            out=tmp_path / "again.jsonl",
        )
        == scored
    )
    again = [json.loads(line) for line in (tmp_path / "again.jsonl").read_text().splitlines()]
    assert sorted(again, key=str) == sorted(rows, key=str)


def test_boxes_are_clipped_to_the_image_as_those_of_a_run(squares: Path, tmp_path: Path) -> None:
    """With the size that the annotations state, or that of the file."""
    data = squares.with_name("one.jsonl")
    sample = {"image": "1.png", "phrase": "it", "bbox": [10, 10, 70, 50]}
    prediction = {"image": "1.png", "phrase": "it", "box": [10, 10, 200, 100]}
    sizes: list[dict[str, int]] = [{}, {"width": 80, "height": 60}]
    for size in sizes:
        write(data, [{**sample, **size}])
        result = epmvg.score(write(tmp_path / "p.jsonl", [prediction]), data=str(data), out=tmp_path / "out.jsonl")
        assert json.loads((tmp_path / "out.jsonl").read_text())["box"] == [10, 10, 80, 60]
        assert result["miou"] == 1 and "clipped to the image" in result["protocol"]


# Several boxes a phrase


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Ten phrases: five with two boxes, kept beside their union as `flickr30k` keeps them."""
    rows: Rows = []
    for number in range(10):
        boxes = [[10, 10, 20, 20], [50, 10, 20, 30]][: 1 + number % 2]
        union = [10, 10, 60, 30] if len(boxes) == 2 else boxes[0]
        size = {"width": 90, "height": 60}
        row = {"image": f"{number}.jpg", "phrase": "dogs", "id": f"{number}#0/EN#1", "bbox": union, **size}
        rows.append(row | {"n_boxes": len(boxes)} | ({"boxes": boxes} if len(boxes) == 2 else {}))
    return write(tmp_path / "union.jsonl", rows)


def test_any_box_of_a_phrase_counts(several: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in several.read_text().splitlines()]
    rng = random.Random(2)
    predictions = [
        {
            "id": row["id"],
            "box": rng.choice([[10, 10, 30, 30], [50, 10, 70, 40], [10, 10, 70, 40], [12, 8, 33, 29]]),
        }
        for row in rows
    ]
    file = write(tmp_path / "predictions.jsonl", predictions)
    union, best = (epmvg.score(file, data=str(several), targets=kind) for kind in ("own", "any"))
    assert union["metadata"] != best["metadata"]
    for place in (0, -1):
        one = [row | {"bbox": (row.get("boxes") or [row["bbox"]])[place]} for row in rows]
        single = epmvg.score(file, data=str(write(tmp_path / "one.jsonl", one)))
        assert all(best[name] >= single[name] for name in METRICS)
    found = [row for row in rows if "boxes" in row]
    exact = [{"id": row["id"], "box": [50, 10, 70, 40]} for row in found]  # the second box of each
    data = write(tmp_path / "found.jsonl", found)
    assert epmvg.score(write(tmp_path / "exact.jsonl", exact), data=str(data), targets="any")["miou"] == 1


def test_two_systems_are_compared_on_the_same_samples(known: tuple[Path, Rows], tmp_path: Path) -> None:
    data, predictions = known
    own = write(tmp_path / "own.jsonl", predictions)
    worse = write(
        tmp_path / "worse.jsonl", [row | ({"box": [0, 0, 1, 1]} if i % 2 else {}) for i, row in enumerate(predictions)]
    )
    result = epmvg.score(own, data=str(data), against=worse)
    alone = epmvg.score(worse, data=str(data))
    for name in METRICS:
        gap = result["against"]["metrics"][name]
        assert gap["points"] == pytest.approx(100 * (result[name] - alone[name]))
        assert gap["low"] <= gap["points"] <= gap["high"] and 0 < gap["p"] <= 1
    assert result["against"]["metrics"]["miou"]["p"] < 0.05
    same = epmvg.score(own, data=str(data), against=own)["against"]["metrics"]
    assert all((gap["points"], gap["low"], gap["high"], gap["p"]) == (0, 0, 0, 1) for gap in same.values())


# Misses and refusals


def test_unreadable_predictions_are_misses_and_listed(known: tuple[Path, Rows], tmp_path: Path) -> None:
    data, predictions = known
    texts = [{"id": row["id"], "answer": str(row["box"])} for row in predictions]
    texts[0]["answer"], texts[1]["answer"], texts[2]["answer"] = (
        "I cannot see it.",
        None,
        texts[2]["answer"] + "[1,2,3,4]",
    )
    got = epmvg.score(write(tmp_path / "t.jsonl", texts), data=str(data), form="text", coordinates="pixels:xyxy")
    assert [re.findall(r"t\.jsonl.*? (\d+)", one) for one in got["unreadable"]] == [["1"], ["2"]]
    gone = [row | ({"box": None, "error": "gone"} if i < 2 else {}) for i, row in enumerate(predictions)]
    gone[1]["box"] = [-1e300, 5, 1e300, float("nan")]
    rows = epmvg.score(write(tmp_path / "r.jsonl", gone), data=str(data))
    assert metrics_of(rows) == metrics_of(got) and rows["n"] == 30


def test_the_first_of_several_boxes_counts(known: tuple[Path, Rows], tmp_path: Path) -> None:
    data, predictions = known
    texts = [{"id": row["id"], "answer": f"{row['box']} or [1, 2, 3, 4]"} for row in predictions]
    rows = epmvg.score(write(tmp_path / "rows.jsonl", predictions), data=str(data))
    file = write(tmp_path / "t.jsonl", texts)
    scored = epmvg.score(file, data=str(data), form="text", coordinates="pixels:xyxy")
    assert metrics_of(scored) == metrics_of(rows)


def test_letter_case_and_an_id_of_zero_match(tmp_path: Path) -> None:
    size = {"width": 20, "height": 20}
    sample = {"image": "a.jpg", "phrase": "The Dog"} | size
    data = [sample | {"id": str(number), "bbox": [2 * number, 0, 9, 9]} for number in (0, 1)]
    outputs = [{"id": number, "phrase": "the  dog ", "bbox": [2 * number, 0, 9, 9]} for number in (0, 1)]
    (tmp_path / "a.json").write_text(json.dumps(outputs))
    file = write(tmp_path / "data.jsonl", data)
    assert epmvg.score(tmp_path / "a.json", data=str(file), form="coco")["miou"] == 1
    alone = write(tmp_path / "alone.jsonl", [sample | {"bbox": [0, 0, 9, 9]}])
    own = write(tmp_path / "own.jsonl", [{"image": "a.jpg", "phrase": "the dog", "box": [0, 0, 9, 9]}])
    assert epmvg.score(own, data=str(alone))["miou"] == 1


def read_as(data: Path, predictions: Rows, made: str, named: str, folder: Path) -> dict[str, Any]:
    """Score predictions made in one convention and predictions to be of another."""
    (unit, order), size = made.split(":"), (8000, 4000)
    rows = [row | {"box": as_numbers(row["box"], unit, order, size, size)} for row in predictions]
    return epmvg.score(write(folder / "made.jsonl", rows), data=str(data), coordinates=named)


def test_implausible_boxes_are_a_warning(known: tuple[Path, Rows], tmp_path: Path) -> None:
    data, predictions = known
    right, wrong = (
        read_as(data, predictions, "pixels:xyxy", f"pixels:{order}", tmp_path) for order in ("xyxy", "xywh")
    )
    assert right["warnings"] == [] and "reach beyond their image" in wrong["warnings"][0]
    inverted = [row | ({"box": [600, 500, 90, 80]} if i < 4 else {}) for i, row in enumerate(predictions)]
    some = epmvg.score(write(tmp_path / "inverted.jsonl", inverted), data=str(data))
    assert "4 of 30 boxes end before they begin" in some["warnings"][0]


def test_inverted_boxes_are_rejected(known: tuple[Path, Rows], tmp_path: Path) -> None:
    data, predictions = known
    right = [row | {"box": [600, 500, 90, 80]} for row in predictions]
    with pytest.raises(InputError, match="30 of 30 boxes end before they begin"):
        epmvg.score(write(tmp_path / "a.jsonl", right), data=str(data))


def test_outputs_replace_no_inputs(known: tuple[Path, Rows], tmp_path: Path) -> None:
    data, predictions = known
    own, other = write(tmp_path / "own.jsonl", predictions), write(tmp_path / "other.jsonl", predictions)
    for file in (data, own, other):
        before = file.read_bytes()
        with pytest.raises(InputError, match="overwrite"):
            epmvg.score(own, data=str(data), against=other, out=file)
        assert file.read_bytes() == before


def refusals(data: Path, predictions: Rows, folder: Path) -> dict[str, tuple[list[object], str]]:
    """Mistakes by name: arguments of the command line, and words of the refusal."""

    def rows(name: str, changed: Sequence[dict[str, Any]]) -> Path:
        return write(folder / f"{name}.jsonl", changed)

    def text(name: str, answer: str, **more: Any) -> Path:
        return rows(name, [{"id": row["id"], "answer": answer} | more for row in predictions])

    own, first = rows("own", predictions), predictions[0]
    listed = folder / "results.json"
    listed.write_text(json.dumps([{"image_id": 77, "caption": "it", "bbox": [1, 2, 3, 4]}]))
    no_size = [{"image": "gone.jpg", "phrase": "it", "bbox": [1, 2, 3, 4]}]
    fractions = rows("fractions", [{"image": "gone.jpg", "phrase": "it", "answer": "[0,0,1,1]"}])
    twice = write(folder / "twice.jsonl", [no_size[0], no_size[0] | {"bbox": [5, 5, 9, 9]}])
    lost = write(folder / "lost.jsonl", [no_size[0] | {"id": "a/0", "n_boxes": 3, "width": 9, "height": 9}])
    other = rows("single", [{"id": "a/0", "box": [1, 2, 3, 4]}])
    unlike = [{"image": "gone.jpg", "phrase": "it", "box": [1, 2, 3, edge]} for edge in (4, 5)]
    name = ["--format", "text", "--coordinates"]
    return {
        "given twice": (
            [rows("double", [*predictions, first]), "--data", data],
            "predicts id 'r0', 'the thing 0' of 0.jpg again",
        ),
        "missing": ([rows("few", predictions[1:]), "--data", data], "has no prediction for 1 of the 30 samples"),
        "of other data": ([rows("other", [first | {"id": "x"}]), "--data", data], "no sample with this id 'x'"),
        "of other words": ([rows("words", [first | {"phrase": "a cat"}]), "--data", data], "('a cat')"),
        "of no row": (
            [rows("void", [{"image": "9.jpg", "phrase": "a cat", "box": [1, 2, 3, 4]}]), "--data", data],
            "'a cat'",
        ),
        "names no sample": ([rows("blank", [{"box": [1, 2, 3, 4]}]), "--data", data], "names no sample"),
        "no convention": ([text("t", "[1,2,3,4]"), "--data", data, "--format", "text"], "needs --coordinates"),
        "unknown convention": ([folder / "t.jsonl", "--data", data, *name, "percent"], "percent is not known"),
        "wrong convention": (
            [text("w", "[9,20,30,40]"), "--data", data, *name, "0-1:xyxy"],
            "30 of 30 boxes are outside 0 to 1",
        ),
        "fractions": (
            [text("s", "[0,0,1,.5]"), "--data", data, *name, "pixels:xyxy"],
            "have no number above 1",
        ),
        "no input size": ([folder / "t.jsonl", "--data", data, *name, "input-pixels:xyxy"], '"input_width"'),
        "no size at all": ([fractions, "--data", write(folder / "one.jsonl", no_size), *name, "0-1:xyxy"], "gone.jpg"),
        "no box": ([folder / "t.jsonl", "--data", data], 'has no "box". Name the format of the file with --format'),
        "three numbers": ([rows("three", [first | {"box": [1, 2, 3]}]), "--data", data], "must be four numbers"),
        "no answer": ([own, "--data", data, *name, "pixels:xyxy"], '"answer" is None'),
        "JSONL as results": ([own, "--data", data, "--format", "coco"], "is not JSON"),
        "a number as image": ([listed, "--data", data, "--format", "coco"], "names no sample"),
        "ambiguous": ([rows("unlike", unlike), "--data", twice], 'Give each prediction its "id"'),
        "boxes lost": ([other, "--data", lost, "--targets", "any"], "has 3 boxes, of which the data holds 1"),
        "other system partial": (
            [own, "--data", data, "--against", folder / "few.jsonl"],
            "few.jsonl has no prediction for 1",
        ),
        "nothing readable": (
            [text("u", "I see no dog."), "--data", data, *name, "pixels:xyxy"],
            "None of the 30 outputs",
        ),
        "nothing there": ([write(folder / "no.jsonl", []), "--data", data], "holds no predictions"),
    }


def test_mistakes_are_rejected_by_name(
    known: tuple[Path, Rows], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for case, (arguments, words) in refusals(*known, tmp_path).items():
        with pytest.raises(SystemExit) as ended:
            main(["score", *map(str, arguments), "--out", str(tmp_path / "out.jsonl")])
        predictions = capsys.readouterr().err
        assert ended.value.code == 2 and words in predictions, f"{case}: {predictions}"
        assert predictions.count("\n") == 1 and not (tmp_path / "out.jsonl").exists(), case


def test_the_command_prints_a_table_or_json(
    known: tuple[Path, Rows], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, predictions = known
    file = write(tmp_path / "own.jsonl", predictions)
    arguments = ["score", str(file), "--data", str(data), "--against", str(file)]
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments + more)
        assert not ended.value.code
    out = capsys.readouterr().out
    assert all(name in out for name in METRICS) and "IoU >= 0.5" in out
    assert json.loads(out.splitlines()[-1])["against"]["metrics"]["acc50"]["p"] == 1


def test_a_file_of_nonsense_is_one_sentence(known: tuple[Path, Rows], tmp_path: Path) -> None:
    data, predictions = known
    rng = random.Random(1)
    values: list[Any] = [None, True, -1, 10**400, 1e308, "", "x", [], [1, 2, 3, 4], {}, [[1]], "[1,2,3,4]"]
    for _ in range(60):
        rows = [dict(row) for row in predictions[: rng.randrange(1, 4)]]
        for row in rows:
            for key in rng.sample(["image", "phrase", "id", "box", "score", "answer", "target", "input_width"], 3):
                row[key] = rng.choice(values)
        file = write(tmp_path / "bad.jsonl", rows)
        for form in ("jsonl", "text"):
            try:
                epmvg.score(file, data=str(data), form=form, coordinates="pixels:xyxy")
            except InputError:
                continue

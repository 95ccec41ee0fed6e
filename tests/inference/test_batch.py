"""Bulk prediction: one row per sample, the same file however often it was stopped, and no file of the user's lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from epmvg.core.images import open_image
from epmvg.core.locate import locate
from epmvg.core.types import InputError
from epmvg.data.convert import convert_data
from epmvg.data.registry import open_samples
from epmvg.inference import batch
from epmvg.inference.batch import predict_many
from epmvg.inference.predictor import Predictor
from epmvg.inference.sources import Sources
from epmvg.models.factory import save
from epmvg.models.grounder import Grounder

Row = dict[str, Any]


@pytest.fixture
def run(tiny: Grounder, tmp_path: Path) -> Path:
    save(tiny, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def photos(squares: Path, tmp_path: Path) -> Path:
    """A folder of six images."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        (squares.parent / f"{number}.png").rename(folder / f"{number}.png")
    return folder


class KilledError(Exception):
    pass


def lines(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None, type[BaseException]], list[tuple[bytes, str]]]:
    """Call it to log what is predicted from now on as (image digest, phrase), and to stop after so many batches."""
    real = Predictor.predict_batch

    def start(stop: int | None = None, error: type[BaseException] = KilledError) -> list[tuple[bytes, str]]:
        log: list[tuple[bytes, str]] = []
        batches = [0]

        def logged(self: Predictor, queries: Any, keys: Any, **options: Any) -> Any:
            if batches[0] == stop:
                raise error
            batches[0] += 1
            log.extend((key, phrase) for (_, phrases), key in zip(queries, keys, strict=True) for phrase in phrases)
            return real(self, queries, keys, **options)

        monkeypatch.setattr(Predictor, "predict_batch", logged)
        return log

    return start


def test_rows_are_those_of_the_predictor_in_order(run: Path, squares: Path, tmp_path: Path) -> None:
    done = predict_many(run, squares, tmp_path / "out.jsonl", batch_size=3)
    queries, found = lines(squares), lines(tmp_path / "out.jsonl")
    assert (done["rows"], done["errors"], done["kept"]) == (48, 0, 0)
    assert [(row["id"], row["phrase"]) for row in found] == [(row["id"], row["phrase"]) for row in queries]
    predictor = Predictor(run)
    for row in found[::5]:
        (alone,) = predictor(str(row["image"]), str(row["phrase"]))
        assert row["box"] == pytest.approx(alone.box, abs=0.02) and row["score"] == pytest.approx(alone.score, abs=1e-3)
    assert not (tmp_path / "out.jsonl.part").exists()


def test_an_interrupted_run_is_resumed_and_writes_the_same_file(
    run: Path, squares: Path, tmp_path: Path, predicted: Any
) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    predict_many(run, squares, whole, batch_size=2)
    count = 0
    for stop in (2, 1, 2):
        log = predicted(stop)
        with pytest.raises(KilledError):
            predict_many(run, squares, cut, batch_size=2)
        count += len(log)
        assert not cut.exists()
        with (tmp_path / "cut.jsonl.part").open("a") as torn:
            torn.write('{"key": "0123456789abcdef')
    log = predicted()
    assert predict_many(run, squares, cut, batch_size=2)["kept"] == count == 40
    assert len(log) == 8 and cut.read_bytes() == whole.read_bytes()
    predicted(1)
    with pytest.raises(KilledError):
        predict_many(run, squares, tmp_path / "other.jsonl", batch_size=2)
    predicted()
    other = predict_many(run, squares, tmp_path / "other.jsonl", phrases=["it"], batch_size=2)
    assert other["kept"] == 0  # its lines answer no phrase of the second command


def insert_in_front(folder: Path) -> None:
    Image.new("RGB", (80, 60), "white").save(folder / "-first.png")


def replace_one(folder: Path) -> None:
    Image.new("RGB", (80, 60), "black").save(folder / "0.png")


def remove_one(folder: Path) -> None:
    (folder / "1.png").unlink()


def spoil_one(folder: Path) -> None:
    (folder / "0.png").write_bytes(b"\xff\xd8\xff")


@pytest.mark.parametrize(
    ("change", "queries"),
    [(None, 4), (insert_in_front, 6), (replace_one, 6), (remove_one, 4), (spoil_one, 4)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_only_changed_images_are_predicted_again(
    run: Path, photos: Path, tmp_path: Path, predicted: Any, change: Callable[[Path], None] | None, queries: int
) -> None:
    phrases = ["the red square", "the blue square"]
    predicted(2)
    with pytest.raises(KilledError):
        predict_many(run, photos, tmp_path / "out.jsonl", phrases=phrases, batch_size=2)
    if change:
        change(photos)
    log = predicted()
    predict_many(run, photos, tmp_path / "out.jsonl", phrases=phrases, batch_size=2)
    assert len(log) == queries
    predict_many(run, photos, tmp_path / "fresh.jsonl", phrases=phrases, batch_size=2)
    assert lines(tmp_path / "out.jsonl") == lines(tmp_path / "fresh.jsonl")


def test_a_line_inserted_before_resuming_is_predicted(run: Path, squares: Path, tmp_path: Path, predicted: Any) -> None:
    predicted(3)
    with pytest.raises(KilledError):
        predict_many(run, squares, tmp_path / "out.jsonl", batch_size=2)
    squares.write_text('{"image": "5.png", "phrase": "new"}\n' + squares.read_text())
    log = predicted()
    predict_many(run, squares, tmp_path / "out.jsonl", batch_size=2)
    found = lines(tmp_path / "out.jsonl")
    assert [row["phrase"] for row in found] == [row["phrase"] for row in lines(squares)]
    assert len(log) == 48 - 6 * 4 + 1


def test_with_another_model_everything_is_predicted_again(
    run: Path, photos: Path, tmp_path: Path, predicted: Any
) -> None:
    predicted(2)
    with pytest.raises(KilledError):
        predict_many(run, photos, tmp_path / "out.jsonl", phrases=["it"], batch_size=2)
    with (run / "model.yaml").open("a") as changed:
        changed.write("\n")
    log = predicted()
    assert predict_many(run, photos, tmp_path / "out.jsonl", phrases=["it"], batch_size=2)["rows"] == 6 == len(log)


def test_the_digest_of_a_model_covers_all_its_files(run: Path) -> None:
    keys = [batch.digest_of(run, None, 1)]
    for name in ("model.safetensors", "model.yaml", "tokenizer/tokenizer_config.json", "confidence.json"):
        with (run / name).open("ab") as changed:
            changed.write(b"\n")
        keys.append(batch.digest_of(run, None, 1))
    assert len(set(keys)) == 5
    (run / "metrics.jsonl").write_text("{}\n")
    assert batch.digest_of(run, None, 1) == keys[-1]
    graphs = Path(shutil.copytree(str(locate("default")), run / "graphs"))
    keys = [batch.digest_of(graphs, None, 1)]
    for file in sorted(file for file in graphs.rglob("*") if file.suffix in (".onnx", ".json")):
        with file.open("ab") as changed:
            changed.write(b"\n")
        keys.append(batch.digest_of(graphs, None, 1))
    assert len(set(keys)) == 6  # graphs, settings, calibration and tokenizer, not the tokenizer of the run beside them
    (graphs / "evaluation-flickr30k-val.json").write_text("{}")
    assert batch.digest_of(graphs, None, 1) == keys[-1]


def test_rows_have_candidates_on_request(run: Path, photos: Path, tmp_path: Path) -> None:
    for top_k in (1, 3):
        predict_many(run, photos, tmp_path / f"{top_k}.jsonl", phrases=["it", "a dog"], top_k=top_k)
    one, three = (
        [json.loads(line) for line in (tmp_path / f"{top_k}.jsonl").read_text().splitlines()] for top_k in (1, 3)
    )
    for row, other in zip(one, three, strict=True):
        candidates = other.pop("candidates")
        assert row == other and candidates[0] == {"box": row["box"], "score": row["score"]} and len(candidates) <= 3


def test_a_bad_line_is_an_error_row(run: Path, squares: Path, tmp_path: Path) -> None:
    bad = [
        ("{oops", "line 2 is not JSON"),
        ("[1]", "line 3 is not a JSON object"),
        ('{"image": "0.png", "phrase": null}', '"phrase" is None'),
        ('{"image": 7, "phrase": "it", "id": "seven"}', '"image" is 7'),
        ('{"image": "0.png", "phrase": "it", "id": [1]}', '"id" is [1]'),
        ('{"image": "../0.png", "phrase": "it"}', "Move the JSONL file to a folder that holds its images"),
        ('{"image": "none.png", "phrase": "it"}', "does not exist"),
        ('{"image": "0.png", "phrase": " "}', "empty"),
        ('{"image": "0.png", "phrase": "%s"}' % ("word " * 500), "500 words"),
    ]
    good = '{"image": "0.png", "phrase": "it", "id": 1}'
    file = tmp_path / "bad.jsonl"
    file.write_text("\n".join([good, *(line for line, _ in bad), good]) + "\n")
    done = predict_many(run, file, tmp_path / "out.jsonl")
    found = lines(tmp_path / "out.jsonl")
    assert (done["rows"], done["errors"]) == (11, 9) == (len(found), sum("error" in row for row in found))
    assert found[0] == found[-1] and found[0]["id"] == "1" and "box" in found[0]
    for row, (_, words) in zip(found[1:-1], bad, strict=True):
        assert words in row["error"], row
    assert found[4]["id"] == "seven" and found[4]["phrase"] == "it"
    assert len(done["messages"]) == 5 and done["messages"][0] == found[1]["error"]


def test_phrases_for_the_images_of_a_file_are_asked_once_per_image(photos: Path) -> None:
    names = ("0.png", "1.png", "0.png", "0.png")
    (photos / "rows.jsonl").write_text("".join(f'{{"image": "{name}", "phrase": "it"}}\n' for name in names))
    queries = Sources([photos / "rows.jsonl"], ["a", "b"]).queries()
    assert [(query.image and query.image.name, query.phrase) for query in queries] == [
        *(("0.png", "a"), ("0.png", "b"), ("1.png", "a"), ("1.png", "b"))
    ]


def test_truncated_and_unknown_phrases_are_marked_and_counted(run: Path, photos: Path, tmp_path: Path) -> None:
    phrases = ["it", "word " * 30, "\N{DOG FACE}"]
    done = predict_many(run, photos / "0.png", tmp_path / "out.jsonl", phrases=phrases)
    known, long, unknown = lines(tmp_path / "out.jsonl")
    assert (done["errors"], done["truncated"], done["unknown"]) == (0, 1, 1)
    assert "found" not in known and long["truncated"] is unknown["unknown"] is True and unknown["found"] is False


def test_folders_are_searched_and_other_files_counted(run: Path, photos: Path, tmp_path: Path) -> None:
    for name in ("._1.jpg", "@eaDir/1.jpg", "__MACOSX/1.jpg", ".hidden/1.jpg", "a.jfif", "b.JPEG", "more/c.avif"):
        (photos / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), "red").save(photos / name, format="AVIF" if "avif" in name else "JPEG")
    (photos / "noext").write_text("?")
    (photos / "n.TXT").write_text("?")
    (photos / "loop").symlink_to(photos)
    (photos / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    sources = Sources([photos], ["it"])
    names = [query.image.relative_to(photos).as_posix() for query in sources.queries() if query.image]
    assert names == [*(f"{number}.png" for number in range(6)), "a.jfif", "b.JPEG", "more/c.avif", "torn.jpg"]
    assert sources.describe_skipped() == "1 .txt, 1 linked folder, 1 without a suffix"
    many = [f"thing {number}" for number in range(70)]
    done = predict_many(run, photos, tmp_path / "out.jsonl", phrases=[*many, " "])
    found = lines(tmp_path / "out.jsonl")
    assert done["rows"] == 10 * 71 and done["errors"] == 71 + 9
    assert [row["phrase"] for row in found[:71]] == [*many, " "]
    assert all(("box" in row) != ("error" in row) for row in found)


def test_a_folder_without_readable_images_is_rejected_with_counts(run: Path, tmp_path: Path) -> None:
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "notes.xyz").write_text("?")
    with pytest.raises(InputError, match=r"skipped: 1 \.xyz"):
        predict_many(run, tmp_path / "phone", tmp_path / "out.jsonl", phrases=["it"])
    assert not (tmp_path / "out.jsonl.part").exists()


def test_shards_are_disjoint_and_complete(squares: Path) -> None:
    def images(shard: tuple[int, int]) -> list[tuple[str, str]]:
        queries = Sources([squares], shard=shard).queries()
        return [(str(query.image), query.phrase) for query in queries]

    whole = images((0, 1))
    parts = [images((number, 4)) for number in range(4)]
    assert sorted(row for part in parts for row in part) == sorted(whole) and len(whole) == 48
    assert [len({image for image, _ in part}) for part in parts] == [3] * 4


def test_several_sources_and_patterns(run: Path, photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "more" / "0.png"
    other.parent.mkdir()
    Image.new("RGB", (40, 30), "red").save(other)
    given: list[Path | str] = [str(photos / "[0-2].png"), photos / "5.png", other]
    drawn = tmp_path / "drawn"
    done = predict_many(run, given, tmp_path / "out.jsonl", phrases=["it"], draw=drawn, min_score=1.0)
    found = lines(tmp_path / "out.jsonl")
    assert done["rows"] == 5 and [row["found"] for row in found] == [False] * 5
    names = sorted(file.relative_to(drawn).as_posix() for file in drawn.rglob("*.png"))
    assert names == ["more/0.png", *(f"photos/{number}.png" for number in (0, 1, 2, 5))]
    with pytest.raises(InputError, match="No readable file matches"):
        predict_many(run, str(photos / "*.gif"), tmp_path / "new.jsonl", phrases=["it"])


def test_other_formats_are_read_by_other_tools(run: Path, squares: Path, tmp_path: Path) -> None:
    predict_many(run, squares, tmp_path / "out.jsonl", min_score=0.0)
    predict_many(run, squares, tmp_path / "coco.json", form="coco", min_score=0.0)
    predict_many(run, squares, tmp_path / "tasks.json", form="label-studio", min_score=1.0)
    rows = lines(tmp_path / "out.jsonl")
    records = open_samples(str(tmp_path / "coco.json"), split=None)
    assert [(record.image.name, record.phrase) for record in records] == [
        (Path(row["image"]).name, row["phrase"]) for row in rows
    ]
    assert [record.box for record in records] == [pytest.approx(row["box"], abs=0.02) for row in rows]
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert len(tasks) == 12 and all(task["predictions"][0]["result"] == [] for task in tasks)
    predict_many(run, squares, tmp_path / "yolo", form="yolo", min_score=0.0)
    labels = sorted(file.relative_to(tmp_path / "yolo").as_posix() for file in (tmp_path / "yolo").rglob("*.txt"))
    assert labels == sorted(f"labels/{number}.txt" for number in range(12))
    assert not [file for file in tmp_path.iterdir() if "part" in file.name or file.name.startswith(".")]


def test_existing_files_are_never_replaced(run: Path, squares: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("kept")
    link = tmp_path / "link.jsonl"
    os.link(squares, link)
    folder = tmp_path / "q.jsonl.part"
    folder.mkdir()
    (folder / "precious.txt").write_text("kept")
    (tmp_path / "r.jsonl.part").write_text("kept\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("kept")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    calls: list[tuple[Any, Path, dict[str, Any], str]] = [
        (squares, out, {}, "or delete it"),
        (squares, squares, {}, "overwrite the input"),
        (squares, link, {}, "overwrite the input"),
        (squares, tmp_path / "q.jsonl", {}, "in the way"),
        (squares, tmp_path / "r.jsonl", {}, "not an unfinished output"),
        (squares, tmp_path / "o.csv", {}, r"\.jsonl"),
        (squares, tmp_path / "o.jsonl", {"form": "coco"}, r"\.json"),
        (squares, tmp_path / "o.json", {"form": "coco", "top_k": 2}, "one box per phrase"),
        ("https://example.org/a.jpg", tmp_path / "o.jsonl", {"phrases": ["it"]}, "URLs are not fetched"),
        ("", tmp_path / "o.jsonl", {"phrases": ["it"]}, "empty string"),
        (squares, tmp_path / "o.jsonl", {"form": "yolo"}, "name of a folder"),
        (squares, tmp_path / "full", {"form": "yolo"}, "folder that exists"),
        (squares, tmp_path / "none" / "o.jsonl", {}, "folder that exists"),
        (photos, tmp_path / "o.jsonl", {"phrases": ["it"], "draw": photos}, "searched for images"),
        (photos, tmp_path / "o.jsonl", {"phrases": ["it"], "draw": photos / "drawn"}, "searched for images"),
        (photos / "0.png", tmp_path / "o.jsonl", {"phrases": ["it"], "draw": photos}, "not empty"),
        (photos, tmp_path / "o.jsonl", {"phrases": ["it"], "draw": tmp_path / "full"}, "not empty"),
        (photos, tmp_path / "o.jsonl", {}, "Give the phrases"),
        (tmp_path / "none.jsonl", tmp_path / "o.jsonl", {}, "does not exist"),
        (photos, tmp_path / "o.jsonl", {"phrases": ["it"], "shard": (6, 7)}, "has no image"),
        *((squares, tmp_path / "o.jsonl", {"shard": one}, "shard is") for one in ((5, 2), (0, 0), (-1, 2), (0, 1.5))),
        (squares, tmp_path / "o.jsonl", {"batch_size": 0}, "batch_size is 0"),
        (squares, tmp_path / "o.jsonl", {"min_score": "auto"}, "no stored threshold"),
    ]
    for source, target, options, words in calls:
        with pytest.raises(InputError, match=words):
            predict_many(run, source, target, **options)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_two_processes_do_not_write_one_file(run: Path, squares: Path, tmp_path: Path) -> None:
    first_calls: list[int] = []

    def start_second(done: int, total: int) -> None:
        if not first_calls:
            first_calls.append(done)
            with pytest.raises(InputError, match="Another process"):
                predict_many(run, squares, tmp_path / "out.jsonl")

    assert predict_many(run, squares, tmp_path / "out.jsonl", progress=start_second)["rows"] == 48
    assert first_calls


def test_launched_processes_are_rejected(
    run: Path, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="--shard K/N"):
        predict_many(run, squares, tmp_path / "out.jsonl")


def test_mistakes_are_reported_before_torch_is_imported(photos: Path, tmp_path: Path) -> None:
    image = photos / "0.png"
    wrong = [
        ["predict", "nope", image, "it"],
        ["predict", "default", image, "it", "--min-score", "nan"],
        ["predict", "default", image, " "],
        ["predict", "default", image, "it", "--draw", image],
        ["predict", "default", image, "it", "--draw", tmp_path / "none" / "a.png"],
        ["predict", "default", photos, "it", "--out", tmp_path / "none" / "a.jsonl"],
        ["predict", "nope", photos, "it", "--out", tmp_path / "a.jsonl"],
    ]
    script = (
        "import sys, json\nfrom epmvg.cli import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    try:\n        main(words)\n"
        "    except SystemExit as ended:\n        assert ended.code == 2, words\n"
        "assert 'torch' not in sys.modules\n"
    )
    words = json.dumps([[str(word) for word in line] for line in wrong])
    done = subprocess.run([sys.executable, "-c", script, words], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and len(done.stderr.splitlines()) == len(wrong), done.stderr


def test_phrases_replace_those_of_a_file_and_progress_is_reported(run: Path, squares: Path, tmp_path: Path) -> None:
    squares.write_text(squares.read_text() + "{oops\n")
    counts: list[int] = []
    predict_many(run, squares, tmp_path / "out.jsonl", phrases=["it"], progress=lambda done, _: counts.append(done))
    found = lines(tmp_path / "out.jsonl")
    assert len(found) == 13 == counts[-1] and "is not JSON" in found[-1]["error"]
    assert all(row["phrase"] == "it" for row in found[:-1])


def test_an_interrupted_prediction_names_what_is_kept(run: Path, squares: Path, tmp_path: Path, predicted: Any) -> None:
    out = tmp_path / "out.jsonl"
    for stop, words in ((0, "before the first row"), (2, "16 finished rows are kept")):
        predicted(stop, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt, match=words):
            predict_many(run, squares, out, batch_size=2)
        assert (tmp_path / "out.jsonl.part").exists() == (stop > 0)


@pytest.mark.parametrize("form", ["coco", "label-studio"])
@pytest.mark.parametrize("out", ["out.json", "elsewhere/out.json", "photos/out.json"])
def test_image_names_are_relative_to_the_file_or_the_stated_root(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, form: Any
) -> None:
    """Images were given relative to the current folder, which is another one."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(photos)
    target = tmp_path / out
    done = predict_many(run, [Path("0.png"), Path("1.png")], target, phrases=["it"], form=form)
    assert Path(done["root"]) == (photos if out.startswith("else") else target.parent)
    converted = convert_data(str(target), tmp_path / "again.jsonl", root=done["root"])
    assert converted["samples"] == 2
    samples = open_samples(str(tmp_path / "again.jsonl"), split=None)
    assert [sample.image.resolve() for sample in samples] == [photos / "0.png", photos / "1.png"]


def test_each_image_has_its_own_drawing(run: Path, tmp_path: Path) -> None:
    names = ["a.bmp", "a.bmp.png", "a.bmp.png.png", "a.gif"]
    (tmp_path / "photos").mkdir()
    for number, name in enumerate(names):
        Image.new("RGB", (40 + number, 30), "red").save(tmp_path / "photos" / name)
    drawn = tmp_path / "drawn"
    predict_many(run, tmp_path / "photos", tmp_path / "out.jsonl", phrases=["it"], draw=drawn)
    sizes = {file.name: open_image(file).width for file in drawn.iterdir()}
    assert sizes == {"a.bmp.png.png.png": 40, "a.bmp.png": 41, "a.bmp.png.png": 42, "a.gif.png": 43}


@pytest.mark.parametrize("form", ["jsonl", "coco", "label-studio", "yolo"])
def test_file_names_need_not_be_utf_8(run: Path, tmp_path: Path, form: Any) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photos" / name)
    out = tmp_path / ("out" + {"jsonl": ".jsonl", "yolo": ""}.get(form, ".json"))
    predict_many(run, tmp_path / "photos", out, phrases=["it"], form=form, draw=tmp_path / "drawn")
    assert [file.name for file in (tmp_path / "drawn").iterdir()] == [name]
    if form == "yolo":
        assert [file.name for file in (out / "labels").iterdir()] == [name.replace("jpg", "txt")]
    else:
        assert repr(name)[1:-1] in repr(json.loads(out.read_text(encoding="utf-8").strip()))


def test_images_that_vanish_and_other_suffixes_are_drawn_or_skipped(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (40, 30), "red").save(photos / "0.bmp")

    def vanish(done: int, total: int) -> None:
        (photos / "1.png").unlink(missing_ok=True)

    drawn = tmp_path / "drawn"
    predict_many(run, photos, tmp_path / "out.jsonl", phrases=["it"], draw=drawn, progress=vanish)
    assert sorted(file.name for file in drawn.iterdir()) == ["0.bmp.png", *(f"{n}.png" for n in (0, 2, 3, 4, 5))]
    monkeypatch.setattr(Path, "iterdir", lambda self: (_ for _ in ()).throw(PermissionError(13, "denied")))
    with pytest.raises(InputError, match="cannot be listed"):
        list(Sources([photos], ["it"]).queries())

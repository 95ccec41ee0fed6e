"""Robustness: changes are pure, swaps can be undone, boxes follow the picture, and every phrase is counted."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import epmvg
from epmvg.cli import main
from epmvg.data.photos import open_image
from epmvg.data.scene_sprites import CLOSE_COLOURS
from epmvg.models.factory import default_tokenizer, save
from epmvg.models.grounder import Grounder
from epmvg.stress import stress_test
from epmvg.stress.ask import ABSENT, CLEAN, _size, ask
from epmvg.stress.figures import absent_figures, worst
from epmvg.stress.kind import generator
from epmvg.stress.languages import LANGUAGES, _table, translate
from epmvg.stress.page import render
from epmvg.stress.phrases import DEPTHS, HEIGHTS, PHRASE_STRESSES, SIZES, swap_colours, swap_opposites
from epmvg.stress.pictures import PICTURE_STRESSES, turn
from epmvg.tokenizer import PhraseTokenizer
from epmvg.types import Record

PHRASES = (
    "the Red cat to the LEFT of the small, gray dog",
    "Topmost bottle in front of a bright window, above the upper shelf",
    "the tallest man behind the front row on top of the stairs",
    "a café's straße",
    "it",
)
BY_NAME = {stress.name: stress for stress in PHRASE_STRESSES}


def photo(size: tuple[int, int] = (90, 60)) -> Image.Image:
    coarse = np.random.default_rng(3).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def made(name: str, phrase: str, seed: int = 0) -> str | None:
    return BY_NAME[name].change(phrase, generator(seed, name, phrase))


def test_a_change_depends_on_its_arguments_alone() -> None:
    for stress in PHRASE_STRESSES:
        assert [made(stress.name, phrase) for phrase in PHRASES] == [made(stress.name, p) for p in PHRASES]
    seeds = {made("one typo", PHRASES[0], seed) for seed in range(20)}
    assert len(seeds) > 5
    for change in PICTURE_STRESSES:
        one, other = (change.change(photo(), generator(1, change.name, "a")) for _ in range(2))
        assert one is not None
        same = one == other if isinstance(one, bytes) else np.array_equal(np.asarray(one), np.asarray(other))
        assert same, change.name


@pytest.mark.parametrize("phrase", PHRASES)
def test_swapping_twice_changes_nothing(phrase: str) -> None:
    random = np.random.default_rng(0)
    for pairs in (HEIGHTS, DEPTHS, SIZES):
        once = swap_opposites(phrase, random, pairs=pairs)
        assert swap_opposites(once, random, pairs=pairs) == phrase
    other = made("sides swapped", phrase)
    assert other is not None and made("sides swapped", other) == phrase
    assert "bright" in other or "bright" not in phrase
    assert swap_opposites("Behind it, ABOVE", random, pairs=DEPTHS | HEIGHTS) == "In front of it, BELOW"


@pytest.mark.parametrize(
    "phrase", ["man in short sleeves", "the black tank top", "the back of the chair", "short hair"]
)
def test_words_that_name_parts_and_clothes_have_no_opposite(phrase: str) -> None:
    for pairs in (HEIGHTS, DEPTHS, SIZES):
        assert swap_opposites(phrase, np.random.default_rng(0), pairs=pairs) == phrase


def test_a_swapped_colour_is_plainly_another() -> None:
    for seed in range(50):
        words = swap_colours("the Red cat and a gray dog", np.random.default_rng(seed)).split()
        assert [words[i] for i in (0, 2, 3, 4, 6)] == ["the", "cat", "and", "a", "dog"]
        assert words[1][0].isupper()
        for before, after in (("red", words[1].lower()), ("grey", words[5])):
            assert before != after and frozenset((before, after)) not in CLOSE_COLOURS


@pytest.mark.parametrize(
    ("colour", "also"),
    [
        ("navy", {"blue", "black"}),
        ("violet", {"purple", "blue"}),
        ("teal", {"green", "blue"}),
        ("maroon", {"red", "brown"}),
        ("golden", {"yellow", "orange"}),
        ("blonde", {"yellow", "white"}),
    ],
)
def test_a_colour_outside_the_palette_is_not_swapped_for_what_it_may_be_called(colour: str, also: set[str]) -> None:
    made = {swap_colours(colour, np.random.default_rng(seed)) for seed in range(60)}
    assert len(made) > 2 and not made & (also | {colour})


def test_a_title_keeps_its_apostrophe() -> None:
    assert made("title case", "the man's hat") == "The Man's Hat"


@pytest.mark.parametrize("seed", range(10))
def test_typos_are_single_slips_and_shuffling_keeps_the_words(seed: int) -> None:
    for phrase in PHRASES:
        words = phrase.split()
        for name in ("one typo", "a typo in every word"):
            slipped = made(name, phrase, seed)
            if slipped is None:
                assert phrase == "it"
                continue
            pairs = list(zip(words, slipped.split(), strict=True))
            assert all(abs(len(a) - len(b)) <= 1 for a, b in pairs)
            assert sum(a != b for a, b in pairs) <= (1 if name == "one typo" else len(words))
        shuffled = made("words shuffled", phrase, seed) or ""
        assert shuffled != phrase
        assert sorted(shuffled.split()) == (sorted(words) if len(words) > 1 else [])


def test_every_orientation_is_read_as_the_upright_picture() -> None:
    seen = set()
    for seed in range(60):
        turned = turn(photo(), np.random.default_rng(seed))
        seen.add(Image.open(io.BytesIO(turned)).getexif()[0x0112])
        assert np.array_equal(np.asarray(open_image(io.BytesIO(turned))), np.asarray(photo()))
    assert seen == set(range(2, 9))


@pytest.mark.parametrize(
    ("phrase", "said"),
    [
        ("a red dog", ("ein roter Hund", "un chien rouge", "un perro rojo")),
        ("the smaller cow", ("die kleinere Kuh", "la plus petite vache", "la vaca más pequeña")),
        (
            "The elephant to the left of the bear",
            ("der Elefant links von dem Bären", "l'éléphant à gauche de l'ours", "el elefante a la izquierda del oso"),
        ),
        (
            "the house above the lion",
            ("das Haus über dem Löwen", "la maison au-dessus du lion", "la casa encima del león"),
        ),
        ("a smaller cow", (None, None, None)),
        ("the owl", ("die Eule", None, "el búho")),
        ("the dog that barks", (None, None, None)),
    ],
)
def test_translations_are_grammatical_or_none(phrase: str, said: tuple[str | None, ...]) -> None:
    random = np.random.default_rng(0)
    assert tuple(translate(phrase, random, language=language) for language in LANGUAGES) == said


def test_the_table_of_words_leaves_no_mark_in_a_translation() -> None:
    random, table = np.random.default_rng(0), _table()
    for language in LANGUAGES:
        said = [
            translate(f"the {adjective} {noun} below the {noun}", random, language=language)
            for noun in table["nouns"]
            for adjective in table["adjectives"]
        ]
        assert not set("".join(filter(None, said))) & set("~/|_")
        assert sum(phrase is None for phrase in said) <= 10 * len(table["adjectives"])


class Painter:
    """Stands in for a run: answers every phrase with the same part of the picture, surer of short phrases."""

    def __init__(self) -> None:
        self.backend = self
        self.tokenizer = PhraseTokenizer.of(default_tokenizer(), 20)

    def find(self, image: Image.Image | bytes, phrases: list[str]) -> tuple[list[list[float]], list[float]]:
        width, height = _size(image)
        return [[0.2 * width, 0.3 * height, 0.6 * width, 0.9 * height]] * len(phrases), [1 / len(p) for p in phrases]


def test_boxes_follow_the_picture_and_every_question_has_its_row(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    photo((120, 90)).save(file)
    records = [Record(file, phrase, (24.0, 27.0, 72.0, 81.0)) for phrase in PHRASES]
    painter: Any = Painter()
    rows = list(ask(painter, records, [Record(file, "a whale", (0, 0, 1, 1))], seed=0))
    assert rows == list(ask(painter, records, [Record(file, "a whale", (0, 0, 1, 1))], seed=0))
    assert all(row["iou"] == pytest.approx(1, abs=1e-3) == row["agreement"] for row in rows if row["stress"] != ABSENT)
    counts = {name: sum(row["stress"] == name for row in rows) for name in {row["stress"] for row in rows}}
    assert counts[CLEAN] == counts["huge"] == counts["tiny"] == counts["polite"] == len(PHRASES)
    assert counts["colours swapped"] == counts["sides swapped"] == 1
    assert counts[ABSENT] == 1
    assert {row["asked"] for row in rows if row["stress"] == "huge"} == set(PHRASES)
    assert all(row["cut"] for row in rows if row["stress"].startswith("too long"))
    assert not any(row["cut"] for row in rows if row["stress"] == CLEAN)


def rows_of(stress: str, iou: list[float], agreement: list[float]) -> list[dict[str, Any]]:
    pairs = enumerate(zip(iou, agreement, strict=True))
    return [
        {
            "stress": stress,
            "image": f"{i}",
            "phrase": f"p{i}",
            "target": [0, 0, 1, 1],
            "iou": a,
            "agreement": b,
            "id": "",
        }
        for i, (a, b) in pairs
    ]


def test_the_worst_are_right_before_and_wrong_now_by_what_was_lost() -> None:
    clean = rows_of(CLEAN, [0.9, 0.6, 0.4, 0.8, 0.7], [1] * 5)
    now = rows_of("blur", [0.3, 0.1, 0.0, 0.6, 0.0], [0.3, 0.1, 0.0, 0.6, 0.8])
    blur = next(stress for stress in PICTURE_STRESSES if stress.name == "blur")
    assert [one["phrase"] for one, _ in worst(blur, now, clean, 9)] == ["p4", "p0", "p1"]
    assert [one["phrase"] for one, _ in worst(BY_NAME["negated"], now, clean, 9)] == ["p4", "p3"]
    assert len(worst(blur, now, clean, 1)) == 1


def test_absence_is_judged_by_the_score_or_not_at_all() -> None:
    clean: list[dict[str, Any]] = [{"image": f"{i}", "score": 0.5 + i / 100} for i in range(20)]
    absent: list[dict[str, Any]] = [{"image": f"{i}", "score": i / 100} for i in range(10)]
    said = absent_figures(clean, absent, None)
    assert said["auroc"] == said["refused"] == 1
    assert said["clean_refused"] <= 0.1
    assert absent_figures(absent, clean[:10], None)["auroc"] == 0
    assert (
        "same score"
        in absent_figures([row | {"score": 1.0} for row in clean], [absent[0] | {"score": 1.0}], None)["why"]
    )
    assert "why" in absent_figures(clean, [], None)


@pytest.fixture
def run(tiny: Grounder, tmp_path: Path, squares: Path) -> Path:
    """A run on squares, whose phrases and file names are HTML."""
    for file in squares.parent.glob("*.png"):
        file.rename(file.with_name(f"<i>{file.name}"))
    text = squares.read_text(encoding="utf-8").replace('"image": "', '"image": "<i>')
    squares.write_text(text.replace('"the ', '"the <script>'), encoding="utf-8")
    folder = tmp_path / "run"
    save(tiny, folder)
    recipe = epmvg.Recipe.load("scenes", f"data.name={squares}", "model=tiny-resnet")
    (folder / "config.yaml").write_text(recipe.dump())
    return folder


def test_a_run_is_stressed_whole(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(run), "--stress", "--limit", "8", "--json"])
    assert ended.value.code == 0
    said = json.loads(capsys.readouterr().out)
    stem = "stress-annotations-val"
    assert said == json.loads((run / f"{stem}.json").read_text(encoding="utf-8"))
    assert said["clean"]["n"] == 8 and said["clean"]["images"] == 2
    assert [row["name"] for row in said["stresses"]] == [
        *(one.name for one in PHRASE_STRESSES),
        *(one.name for one in PICTURE_STRESSES),
    ]
    for row in said["stresses"]:
        assert row["n"] + row["left_out"] == 8
        assert row["n"] or row["why"]
        assert not row["n"] or row["acc50_interval"][0] <= row["acc50"] <= row["acc50_interval"][1]
    stresses = {row["name"]: row for row in said["stresses"]}
    assert stresses["turned by EXIF"]["changed"] == 0 and stresses["turned by EXIF"]["agreement"] == 1
    assert stresses["huge"]["agreement"] > 0.9
    assert stresses["colours swapped"]["n"] == 8 and stresses["depths swapped"]["n"] == 0
    assert said["absent"]["n"] == 0 and said["absent"]["why"]  # everything is a square

    epmvg.evaluate(run)  # scores the same boxes
    lines = (run / "predictions-annotations-val.jsonl").read_text(encoding="utf-8").splitlines()
    scored = {row["id"]: row["iou"] for row in map(json.loads, lines)}

    rows: dict[str, list[dict[str, Any]]] = {}
    for line in (run / f"{stem}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        right = row["stress"] == CLEAN
        assert not right or row["iou"] == pytest.approx(scored[row["id"]], abs=1e-4)
        shown = row | {"iou": 0.9 if right else 0.1, "agreement": 1.0 if right else 0.5}
        rows.setdefault(row["stress"], []).append(shown)
    assert sum(map(len, rows.values())) == 8 + sum(row["n"] for row in said["stresses"])
    page = render("<em>run", said, rows | {ABSENT: rows[CLEAN]})
    for html in (page, (run / f"{stem}.html").read_text(encoding="utf-8")):
        assert "<script" not in html and "<i>" not in html and "<em>run" not in html
    assert "&lt;script&gt;" in page and "&lt;i&gt;" in page
    assert page.count("<h3>") == 1 + sum(row["n"] > 0 for row in said["stresses"])


def test_unusable_bounds_are_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", str(run), "--limit", "3"])
    assert "--limit is for --stress" in capsys.readouterr().err
    with pytest.raises(epmvg.InputError, match="limit=0"):
        stress_test(run, limit=0)
    assert not list(run.glob("stress-*"))

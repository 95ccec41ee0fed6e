"""Reproducing tables: reported values are the paper's, killed trainings are resumed, and missing data is stated."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from epmvg.cli import main
from epmvg.config.flat import flatten
from epmvg.config.published import published_start
from epmvg.config.settings import Recipe
from epmvg.core.files import write_json
from epmvg.core.types import InputError
from epmvg.data.synthetic.scenes import write_scenes
from epmvg.experiments import runner
from epmvg.experiments.plan import SCALES, Job, count_steps, own_teacher_captions, own_teacher_name, plan_row
from epmvg.experiments.reproduce import reproduce
from epmvg.experiments.tables import Row, read_table, read_tables
from epmvg.models.presets import preset
from epmvg.training import errors, loop

FIGURE = r"\d\d\.\d\d"


@pytest.fixture(scope="module")
def paper(request: pytest.FixtureRequest) -> str:
    shared: Path = request.getfixturevalue("shared")
    return (shared / "paper" / "epmvg.txt").read_text(encoding="utf-8")


def reported(row: Row) -> list[str]:
    return [f"{figure:.2f}" for figure in row.reported if figure is not None]


def lines_of(paper: str, start: str, stop: str) -> list[str]:
    part = paper[paper.index(start) :]
    return [line for line in part[: part.index(stop)].splitlines() if re.search(FIGURE, line)]


ABLATIONS = {
    "3": ("Table 3. Ablation", "Next, we validated"),
    "4": ("Table 4. Ablation", "Table 5."),
    "7": ("Table 7. Effects", "assistance of"),
}
SYSTEMS = {"5": ("Table 5. The performance", "designed effectively"), "6": ("Table 6. The performance", "Table 7.")}


@pytest.mark.parametrize("number", [*ABLATIONS, *SYSTEMS])
def test_every_reported_value_is_the_paper_s(paper: str, number: str) -> None:
    """Row by row, in order, with names and dashes."""
    lines = lines_of(paper, *(ABLATIONS | SYSTEMS)[number])
    rows = [row for row in read_table(number).rows if row.reported]
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert re.findall(FIGURE, line) == reported(row), line
        if number in SYSTEMS:
            name, backbone = row.name.split(" (")[0], row.backbone
            assert line.startswith(name) and backbone in line
            bracket = row.source.strip("[]")
            assert not bracket or re.search(rf"\[{bracket.replace('1', '[1I]')}[\])]", line), line
            cells = re.findall(rf"{FIGURE}|(?<=\s)-(?=\s|$)", line.replace("|", " "))
            if len(cells) == len(row.reported):
                assert [None if cell == "-" else float(cell) for cell in cells] == list(row.reported), line
            else:  # one dash was lost by whoever read the page
                assert row.name == "HFRN"


def test_the_differences_in_the_text_follow_from_the_values(paper: str) -> None:
    """Sec. 4.3 states the decrease of each ablation."""
    rows = read_table("3").rows + read_table("4").rows[1:]
    best = rows[0].reported
    for row in rows[1:]:
        drops = [f"{a - b:.2f}%" for a, b in zip(best, row.reported, strict=True) if a is not None and b is not None]
        assert all(drop in paper for drop in drops), (row.name, drops)


def test_equal_settings_have_equal_values_in_all_tables() -> None:
    seen: dict[tuple[Any, ...], float] = {}
    for table in read_tables().values():
        for row in table.rows:
            if row.student is None or not row.reported:
                continue
            for column, figure in zip(table.columns, row.reported, strict=True):
                if figure is not None:
                    key = (row.student, json.dumps(row.distill), row.giou, column)
                    assert seen.setdefault(key, figure) == figure, (row.name, column)
    assert len(seen) > 40


def test_the_paper_s_scale_is_the_paper_s_recipe() -> None:
    """Sec. 4.2, for every row and data set that can be trained."""
    planned = 0
    for table in (table for name, table in read_tables().items() if name.isdigit()):
        for row in table.rows:
            settings = plan_row(row, table, SCALES["paper"], seeds=1, out=Path("out"), root=None, overrides=())
            for setting in settings:
                recipe = setting.jobs[0].recipe
                planned += 1
                assert (recipe.data.name, recipe.model.name) == (setting.data, row.student)
                assert recipe.model.overrides["max_length"] == (40 if setting.data.startswith("refcocog") else 20)
                assert "image_size" not in recipe.model.overrides and recipe.data.image_size is None  # 640 px
                assert (
                    recipe.data.batch_size * recipe.train.gradient_accumulation_steps == 64
                    and recipe.data.phrases_per_image == 1
                )
                assert recipe.data.augment is not None and recipe.data.augment.recipe == "transvg"
                start = published_start(recipe.model.name, setting.data)
                assert start is not None and recipe.model.init_from == start.folder
                assert "gates" not in recipe.model.overrides.get("visual_encoder", {})
                epochs = (180, 120) if setting.data == "refcoco+" else (90, 60)
                assert (recipe.train.epochs, recipe.train.lr_drop, recipe.train.lr_schedule) == (*epochs, "step")
                rates = (
                    recipe.train.lr,
                    recipe.train.lr_backbone,
                    recipe.train.lr_visual_encoder,
                    recipe.train.lr_text_encoder,
                )
                assert rates == (1e-4, 1e-5, 1e-5, 1e-5) and recipe.train.weight_decay == 1e-4
                assert recipe.train.warmup_steps == 0 and recipe.train.max_grad_norm is None
                assert recipe.train.lr_teacher == 1e-6
                own = preset(recipe.model.name, **recipe.model.overrides)
                assert (own["dropout"], own["vls"], own["position"]) == (0.1, "first", "learned")
                assert (recipe.loss.box, recipe.loss.box_weight, recipe.loss.giou_weight) == ("smooth_l1", 1, row.giou)
                if row.distill is not None:
                    assert recipe.distill is not None
                    expected = {"image_weight": 1.5, "text_weight": 2.0, "dense_weight": 0.0, "loss": "cosine"}
                    expected |= {"frozen": True, "input": "letterboxed", "pretrained": "openai"} | row.distill
                    assert recipe.distill.teacher == "ViT-B-32-quickgelu"
                    assert expected == {key: getattr(recipe.distill, key) for key in expected}
    assert planned == 2 * 4 + 4 * 4 + 4 + 2 + 2 * 8 + 4 * 8 + 5
    assert preset("qrnet-swin-s")["visual_encoder"]["gates"] == "zero_init"


# Running a table, on a handful of scenes


TINY = [
    "model={name: tiny-resnet, pretrained: false, image_size: 64}",
    "data.batch_size=20",
    "train.cache_features=false",
    "train.epochs=1",
    "train.warmup_steps=0",
    "train.save_interval=1",
    "train.log_interval=1",
]


@pytest.fixture
def scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "scenes"
    write_scenes(root, sizes={"train": 12, "val": 2, "test": 2, "open": 2, "captions": 4})
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    (tmp_path / "teacher.json").write_text(json.dumps(config))
    return root


@pytest.fixture
def run(scenes: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run a table on the scenes with a teacher that is there."""
    teacher = f"distill.teacher={tmp_path / 'teacher.json'}"

    def go(name: str, **options: Any) -> dict[str, Any]:
        return reproduce(
            name, [*TINY, teacher, "distill.pretrained=random"], out=tmp_path / "out", root=scenes, **options
        )

    return go


class KilledError(Exception):
    pass


def test_a_table_is_killed_shared_and_resumed_and_nothing_is_run_twice(
    run: Callable[..., dict[str, Any]], scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows with two seeds: killed in the first training, then beside another start that holds it, then alone."""
    real = errors.check_finite
    steps: list[int] = []

    def dies_at_three(*arguments: Any) -> Any:
        steps.append(len(steps))
        if len(steps) == 3:
            raise KilledError
        return real(*arguments)

    monkeypatch.setattr(loop, "check_finite", dies_at_three)
    with pytest.raises(KilledError):
        run("4", seeds=2)
    (begun,) = [file.parent for file in tmp_path.glob("out/scenes/*/seed-13/config.yaml")]
    with FileLock(f"{begun}.lock"):
        first, second = (row["trainings"][0] for row in run("4", seeds=2)["rows"])
    assert (first["seeds"], first["state"]) == (1, "running elsewhere")
    assert (second["seeds"], second["state"]) == (2, "")

    result = run("4", seeds=2)
    folders = sorted(tmp_path.glob("out/scenes/*/seed-*/result.json"))
    assert len(folders) == 4
    taken = len(steps)
    assert taken % 4 == 1  # equally many steps per training: only the killed one ran again
    assert run("4", seeds=2) == result and len(steps) == taken

    first, second = result["rows"]
    assert [cell["reported"] for cell in first["cells"]] == [83.39, 86.20, 78.98] + [None] * (len(first["cells"]) - 3)
    assert result["columns"][3:6] == ["scenes val", "scenes test", "scenes open"]
    assert len(result["columns"]) == 6
    for row in (first, second):
        (made,) = row["trainings"]
        assert (made["seeds"], made["state"]) == (2, "") and made["samples"] and made["seconds"] > 0
        for cell in row["cells"][3:6]:
            ours = cell["reproduced"]
            assert 0 <= ours["low"] <= ours["mean"] <= ours["high"] <= 100 and ours["deviation"] is not None
    assert "no features are cached" in second["trainings"][0]["remark"]
    assert first["trainings"][0]["settings"] != second["trainings"][0]["settings"]

    scores = [json.loads(file.read_text())["metrics"]["test"]["acc50"] for file in folders]
    shown = sorted(row["cells"][4]["reproduced"]["mean"] for row in (first, second))
    assert shown == pytest.approx(sorted([50 * (scores[0] + scores[1]), 50 * (scores[2] + scores[3])]))
    gains = [cell["difference"] for cell in second["cells"][3:6]]
    assert all(cell["difference"] is None for cell in first["cells"]) and second["cells"][0]["difference"] is None
    for gain, low, high in zip(gains, first["cells"][3:6], second["cells"][3:6], strict=True):
        assert gain["points"] == pytest.approx(high["reproduced"]["mean"] - low["reproduced"]["mean"])
        assert gain["low"] <= gain["points"] <= gain["high"]
    for ending in ("md", "json"):
        page = (tmp_path / "out" / "scenes" / f"table-4.{ending}").read_text(encoding="utf-8")
        assert "83.39" in page and str(first["cells"][4]["reproduced"]["seeds"]) in page
    # Lambda 1 of Table 7 is Table 3's first row, and has the same trainings; the teacher of Table 4 has another input.
    plain, same = run("3", dry_run=True)["rows"][0], run("7", dry_run=True)["rows"][2]
    assert same["trainings"][0]["settings"] == plain["trainings"][0]["settings"]
    assert same["trainings"][0]["settings"] != first["trainings"][0]["settings"]

    # A finished training is evaluated on a further split, and keeps the metrics of the others.
    job = Job(Recipe.load(str(folders[0].parent / "config.yaml")), ("val", "open"), folders[0].parent, 13, "")
    write_json(folders[0], json.loads(folders[0].read_text()) | {"metrics": {"test": "as it was"}})
    added = runner.run_job(job, lambda row: None).result
    assert added is not None and added["metrics"].keys() == {"test", "val", "open"}

    rows = (scenes / "annotations.jsonl").read_text().splitlines(keepends=True)
    (scenes / "annotations.jsonl").write_text("".join(rows[:-1]))
    assert "other samples" in run("4")["rows"][0]["trainings"][0]["state"]


def test_what_cannot_run_is_shown_with_its_reason(scenes: Path, tmp_path: Path) -> None:
    lost = reproduce("5", scale="paper", out=tmp_path / "out", root=tmp_path)
    states = {each["data"]: each["state"] for each in lost["rows"][-1]["trainings"]}
    assert "referit_bbox.json" in states["referit"] and "Sentences" in states["flickr30k"]
    assert "cannot run" in (tmp_path / "out" / "paper" / "table-5.md").read_text(encoding="utf-8")
    small = reproduce("5", TINY, out=tmp_path / "out", root=scenes, dry_run=True)
    assert "no counterpart" in small["rows"][-1]["trainings"][0]["remark"]
    no_teacher = reproduce("4", [*TINY, "distill.teacher=RN5O"], out=tmp_path / "out", root=scenes)
    assert "'RN5O'" in no_teacher["rows"][0]["trainings"][0]["state"]


def test_a_scale_makes_its_own_teacher_once(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def fake(captions: Path, folder: Path, **settings: Any) -> None:
        assert captions == scenes / "captions.jsonl" and settings["image_size"] == 160
        made.append(folder)
        folder.mkdir(parents=True)

    monkeypatch.setattr(runner, "train_teacher", fake)
    result = reproduce("4", TINY, out=tmp_path / "out", root=scenes)
    assert len(made) == 1
    assert "is not a teacher" in result["rows"][0]["trainings"][0]["state"]  # the fake left an empty folder


def test_a_dry_run_trains_nothing_and_counts(
    run: Callable[..., dict[str, Any]], scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = run("3", seeds=3, dry_run=True)["plan"]
    assert plan["to_run"] == 12 == len(plan["runs"]) and not (tmp_path / "out").exists()
    train = [line for line in (scenes / "annotations.jsonl").read_text().splitlines() if '"split": "train"' in line]
    assert {each["phrases"] for each in plan["runs"]} == {len(train)} and plan["runs"][0]["steps"] > 0
    with pytest.raises(SystemExit):
        main(["reproduce", "7", "--scale", "paper", "--dry-run", "--out", str(tmp_path / "out")])
    assert "5 trainings to run" in capsys.readouterr().out
    planned = reproduce("7", scale="paper", dry_run=True, out=tmp_path / "out")["plan"]
    assert planned["to_run"] == 5 and planned["runs"][0]["steps"] == 169_650
    giou = {one["settings"]["loss.giou_weight"] for one in planned["runs"]}
    assert len(giou) == 5 and "loss.giou_weight" not in planned["settings"]
    whole = flatten(Recipe.load("refcoco").model_dump(exclude={"name", "about"})).keys()
    assert all((planned["settings"] | one["settings"]).keys() == whole for one in planned["runs"])
    weights, *_, data = planned["runs"][0]["missing"]
    assert "epmvg convert" in weights and "data.root" in data


def test_a_launcher_of_several_processes_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="once per GPU without a launcher"):
        reproduce("3", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_training_time_is_read_from_torn_metrics(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"seconds": 3.5}\n{"event": "message", "text": "a\u2028b"}\n{"seconds": 9')
    assert runner._seconds(tmp_path) == 3.5


def test_a_teacher_of_other_settings_is_another_one() -> None:
    names = {own_teacher_name(0, {"epochs": epochs}) for epochs in (1, 2)} | {own_teacher_name(9, {"epochs": 1})}
    assert len(names) == 3 and {own_teacher_captions(f"out/{name}") for name in names} == {0, 9}
    assert own_teacher_captions("teachers/own-teacher") is None


def test_a_longer_training_drops_its_rate_later() -> None:
    settings = Recipe.load("refcoco").train
    longer = settings.lengthened(4)
    assert (longer.epochs, longer.lr_drop, longer.eval_interval) == (360, 240, 4)
    assert Recipe.load("scenes").train.lengthened(4).lr_drop == Recipe.load("scenes").train.lr_drop  # has no drop


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("data: {name: refcoco}")
    for words, arguments in {
        "no table '8'": {"name": "8"},
        "no scale 'huge'": {"name": "3", "scale": "huge"},
        "seeds=0": {"name": "3", "seeds": 0},
        "is set by the table": {"name": "3", "overrides": ["data.name=refcoco"]},
        "of all recipes on top": {"name": "3", "overrides": [str(tmp_path / "other.yaml")]},
        "Did you mean 'train.epochs'": {"name": "3", "overrides": ["train.epoch=2"]},
    }.items():
        with pytest.raises(InputError, match=words):
            reproduce(**arguments, out=tmp_path)  # type: ignore[arg-type]


def test_recipes_of_the_paper_load() -> None:
    for name in ("refcoco", "refcoco+", "refcocog-umd", "refcocog-google", "referit", "flickr30k"):
        recipe = Recipe.load(name)
        assert recipe.data.name == name and recipe.distill is not None and recipe.distill.pretrained == "openai"


@pytest.mark.parametrize("number", ["5", "6"])
def test_every_model_of_ours_is_trained_with_and_without_distillation(number: str) -> None:
    """Beside the systems of tables 5 and 6, and each distilled row is compared with its plain one."""
    table = read_table(number)
    plain = {row.student: row for row in table.rows if row.student and row.distill is None}
    distilled = {row.student: row for row in table.rows if row.distill is not None}
    assert plain.keys() == distilled.keys() == {"transvg-r50", "transvg-r101", "transvg-swin-s", "qrnet-swin-s"}
    assert all(student and row.against == plain[student].name for student, row in distilled.items())


def test_rows_of_studies_differ_from_the_row_they_are_compared_with() -> None:
    """The row exists, and differs in what the names state alone."""
    studies = {name: table for name, table in read_tables().items() if not name.isdigit()}
    assert studies
    for table in studies.values():
        rows = {row.name: row for row in table.rows}
        for row in table.rows:
            base = rows[row.against] if row.against else table.rows[0]
            ours, theirs = (
                plan_row(each, table, SCALES["scenes"], seeds=1, out=Path("out"), root=None, overrides=())[0].jobs[0]
                for each in (row, base)
            )
            assert (ours.settings != theirs.settings) == (row is not base)
            if row.against:
                assert ours.recipe.data == theirs.recipe.data
                length = {key: getattr(theirs.recipe.train, key) for key in ("epochs", "eval_interval")}
                assert ours.recipe.train.model_copy(update=length) == theirs.recipe.train
                if row.distill is not None:  # the lengths differ, the steps do not
                    first, second = (count_steps(each.recipe, 4000) for each in (ours, theirs))
                    assert first == pytest.approx(second, rel=0.03)

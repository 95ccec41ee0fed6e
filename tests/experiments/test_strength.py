"""The study of teachers of rising knowledge: its plan, a tiny run of it, its figure, and the measurements of why."""

from __future__ import annotations

import inspect
import json
import runpy
import sys
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import safetensors.torch
import torch
from filelock import FileLock

from epmvg.cli import main
from epmvg.core.types import InputError, Sample
from epmvg.data.registry import fraction_of, open_samples
from epmvg.data.synthetic.scenes import write_scenes
from epmvg.distill.clip_checkpoints import CONFIG, WEIGHTS, build_clip
from epmvg.distill.contrastive import train_end_to_end
from epmvg.experiments import reproduce as module
from epmvg.experiments import runner
from epmvg.experiments.plan import SCALES, Job, own_teacher_captions, plan_row
from epmvg.experiments.reproduce import reproduce
from epmvg.experiments.results import gain_figure
from epmvg.experiments.runner import Outcome, make_teacher
from epmvg.experiments.tables import Table, read_table

CLIP = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
SMALL: dict[str, Any] = {
    "model": "{name: tiny-resnet, pretrained: false, image_size: 64}",
    "data.batch_size": 20,
    "train.epochs": 1,
    "train.warmup_steps": 0,
}
TINY: dict[str, Any] = {
    "title": "Tiny",
    "columns": [["scenes", "val"], ["scenes", "test"], ["scenes", "open"]],
    "grid": {
        "recipe": "few-boxes",
        "boxes": {6: SMALL | {"data.fraction": 0.5}, 12: SMALL},
        "captions": {4: {"epochs": 1}, 8: {"epochs": 2}},
        "arms": {"paper": {}, "unlabeled": {"unlabeled": 3, "unlabeled_ratio": 0.5}},
        "first": [[6, 8], [12, 4]],
        "milliseconds": {"phrase": 10, "unfrozen": 20, "pair": 30, "evaluation": 1000},
        "phrases_per_image": 5,
    },
    "rows": [{"name": "L1", "group": "Table 3", "boxes": 6, "captions": 8, "distill": {"loss": "l1"}}],
}


def fake_teacher(pairs: Any, val: Any, folder: Path, **settings: Any) -> None:
    """Write a random teacher whose recall rises with its captions."""
    inspect.signature(train_end_to_end).bind(pairs, val, folder, **settings)
    assert len(val) > 1
    torch.manual_seed(len(pairs))
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": {}}))
    safetensors.torch.save_file(build_clip(CLIP).state_dict(), folder / WEIGHTS[0])
    (folder / "teacher.json").write_text(json.dumps({"metrics": {"r1": len(pairs) / 10}}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, and a tiny study of them in `out`."""
    folder = tmp_path_factory.mktemp("strength")
    write_scenes(folder / "scenes", sizes={"train": 12, "val": 3, "test": 8, "open": 3, "captions": 4})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EPMVG_CACHE", str(folder / "cache"))
        patch.setattr(module, "read_table", lambda name: Table.model_validate(TINY))
        patch.setattr(runner, "train_end_to_end", fake_teacher)
        reproduce("strength", out=folder / "out", root=folder / "scenes")
    return folder


def result_of(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "out" / "scenes" / "table-strength.json").read_text())
    return result


def test_every_row_is_trained_and_its_teacher_named(folder: Path) -> None:
    result = result_of(folder)
    assert [row["name"] for row in result["rows"]] == [
        *("6 boxes, plain", "6 boxes, plain, longer", "6 boxes, 4 captions, paper", "6 boxes, 4 captions, unlabeled"),
        *("6 boxes, 8 captions, paper", "6 boxes, 8 captions, unlabeled"),
        *(
            "12 boxes, plain",
            "12 boxes, plain, longer",
            "12 boxes, 4 captions, paper",
            "12 boxes, 4 captions, unlabeled",
        ),
        *("12 boxes, 8 captions, paper", "12 boxes, 8 captions, unlabeled", "L1"),
    ]
    trainings = [row["trainings"][0] for row in result["rows"]]
    assert all((each["seeds"], each["state"]) == (1, "") for each in trainings)
    assert [each["recall"] for each in trainings] == [*[None, None, 0.4, 0.4, 0.8, 0.8] * 2, 0.8]
    is_plain = [row["name"].endswith(" plain") for row in result["rows"]]
    assert [row["cells"][1]["difference"] is None for row in result["rows"]] == is_plain
    assert "teacher's R@1 80.0" in (folder / "out" / "scenes" / "table-strength.md").read_text(encoding="utf-8")
    assert not list(folder.glob("out/scenes/*/seed-*/checkpoint"))


def test_scenes_without_boxes_are_drawn_for_their_rows(folder: Path, tmp_path: Path) -> None:
    """They are those of a data set's captions, in the folder of the grid, and where that lies changes no hash."""
    lines = (folder / "out" / "scenes" / "unlabeled-3" / "unlabeled.jsonl").read_text().splitlines()
    assert lines == (folder / "scenes" / "unlabeled.jsonl").read_text().splitlines()[:3]
    table, hashes = Table.model_validate(TINY), []
    for out in (folder / "out", tmp_path):
        jobs = [
            plan_row(row, table, SCALES["scenes"], seeds=1, out=out, root=folder / "scenes", overrides=())[0].jobs[0]
            for row in table.rows
        ]
        hashes.append([job.settings for job in jobs])
        files = {job.recipe.distill.unlabeled for job in jobs if job.recipe.distill}
        assert files == {None, str(out / "scenes" / "unlabeled-3" / "unlabeled.jsonl")}
    assert hashes[0] == hashes[1] and len(set(hashes[0])) == len(table.rows)


def test_the_figure_is_drawn_from_a_results_file(folder: Path) -> None:
    """A panel per split and arm, a curve per number of boxes, and the same bytes each time."""
    drawn = gain_figure(result_of(folder))
    assert drawn == (folder / "out" / "scenes" / "table-strength.svg").read_text(encoding="utf-8")
    texts = [
        "".join(each.itertext()) for each in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")
    ]
    for words in ("6 images with boxes", "12 images with boxes", "scenes test, paper", "scenes open, paper"):
        assert texts.count(words) == 1, texts
    assert any("recall at 1" in text for text in texts) and any("gain" in text for text in texts)
    empty = result_of(folder)
    for row in empty["rows"]:
        row["cells"] = [cell | {"difference": None} for cell in row["cells"]]
    assert "<svg" in gain_figure(empty)  # before the first pair of trainings is complete


def test_the_corners_of_the_plan_come_first(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The strongest teacher with the fewest boxes with all seeds, the weakest with the most, then seed by seed."""
    jobs: list[Job] = []

    def refuses(job: Job, report: Any) -> Outcome:
        jobs.append(job)
        return Outcome("cannot run")

    monkeypatch.setattr(module, "run_job", refuses)
    monkeypatch.setattr(module, "make_teacher", lambda *arguments, **options: None)
    monkeypatch.setattr(module, "_write", lambda *arguments: None)
    reproduce("strength", seeds=3, out=tmp_path, root=folder / "scenes")
    cells = [
        (job.recipe.data.fraction, job.recipe.distill and own_teacher_captions(job.recipe.distill.teacher), job.seed)
        for job in jobs
    ]
    few, strongest, weakest = cells[0][0], 200_000, 1000
    assert {(fraction, teacher) for fraction, teacher, _ in cells[:18]} == {(few, None), (few, strongest)}
    assert {(fraction, teacher) for fraction, teacher, _ in cells[18:36]} == {(1.0, None), (1.0, weakest)}
    assert [seed for seed, _ in groupby(seed for _, _, seed in cells[36:])] == [13, 14, 15]
    assert len(cells) == len({job.folder for job in jobs}) == 3 * (3 * (2 + 4 * 4) + 1)


def test_the_grid_has_exactly_as_many_images_with_boxes_as_it_says() -> None:
    grid = read_table("strength").grid
    assert grid is not None
    samples = [sample_of(number) for number in range(4000)]
    for boxes, settings in grid.boxes.items():
        assert len(fraction_of(samples, settings["data.fraction"])) == boxes


def sample_of(number: int) -> Sample:
    return Sample(Path(f"/scenes/images/train-{number:05d}.jpg"), "a cup", (0, 0, 5, 5))


def test_a_dry_run_prints_hours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", "strength", "--seeds", "3", "--dry-run", "--root", str(tmp_path), "--out", str(tmp_path)])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "165 trainings to run" in printed and "Hours of one core" in printed
    plan = reproduce("strength", seeds=3, dry_run=True, root=tmp_path, out=tmp_path)["plan"]
    assert [each["captions"] for each in plan["teachers"]] == [200_000, 1000, 10_000, 50_000]
    hours = [each["hours"] for each in (*plan["runs"], *plan["teachers"])]
    assert plan["hours"] == pytest.approx(sum(hours)) and 12 < plan["hours"] < 70
    assert all(0 < each < 4 for each in hours)
    with pytest.raises(InputError, match="--scale scenes"):
        reproduce("strength", scale="paper", out=tmp_path)


def test_a_teacher_that_another_process_trains_is_waited_for_last(folder: Path, tmp_path: Path) -> None:
    table = Table.model_validate(TINY)
    plan = plan_row(table.rows[2], table, SCALES["scenes"], seeds=1, out=tmp_path, root=folder / "scenes", overrides=())
    job = plan[0].jobs[0]
    assert job.recipe.distill is not None
    teacher = Path(job.recipe.distill.teacher)
    teacher.parent.mkdir(parents=True)
    with FileLock(f"{teacher}.lock"):
        busy = make_teacher(SCALES["scenes"], table.grid, job, lambda row: None, wait=False)
    assert busy == Outcome("running elsewhere")


def test_why_is_measured_for_two_runs(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EPMVG_CACHE", str(folder / "cache"))
    runs = {each.parent.name.split("-")[3]: each for each in sorted(folder.glob("out/scenes/*/seed-13"))}
    script = Path(__file__).parents[2] / "benchmarks" / "why.py"
    arguments = [str(runs["baseline"]), str(runs["distilled"]), "--out", str(tmp_path / "why.json"), "--steps", "2"]
    arguments += ["--every", "1", "--fit", "40"]
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    runpy.run_path(str(script), run_name="__main__")
    why = json.loads((tmp_path / "why.json").read_text())
    first = why["gradients"][0]
    assert set(first) == {"step", "image", "text"} and -1 <= first["image"]["all"]["cosine"] <= 1
    assert first["text"]["fusion"]["ratio"] > 0
    assert why["distances"].keys() == {"plain", "distilled"}
    assert why["probes"].keys() == {
        *("VLS plain", "VLS distilled", "CLS plain", "CLS distilled", "DIE", "DTE", "DIE pooled", "DTE pooled")
    }
    assert all(0 <= value <= 100 for each in why["probes"].values() for value in each.values())


def test_labels_and_probes_are_right(folder: Path) -> None:
    why = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "why.py"))
    samples = list(open_samples("scenes", split="test", root=folder / "scenes"))
    labels = why["labels"](samples, folder / "scenes")
    assert [sample.extra["name"] for sample in samples] == labels["name"]
    for sample, color in zip(samples, labels["color"], strict=True):
        assert sample.extra["kind"] != "color" or color in sample.phrase.split()
    torch.manual_seed(0)
    names = ["a", "b", "c"] * 20
    x = torch.eye(3)[[0, 1, 2] * 20] + 0.1 * torch.randn(60, 3)
    assert why["probe"](x, names, x, [*names[:-1], "never fitted"]) == 100
    assert why["probe"](torch.zeros(60, 3), names, x, names) < 50
    assert torch.equal(why["pooled"](torch.tensor([[1.0, 3.0, 5.0, 7.0]]), 2), torch.tensor([[2.0, 6.0]]))

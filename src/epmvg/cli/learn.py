"""Verbs that train: the demo, a student, a teacher, the paper's tables."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from epmvg.cli.screen import DEVICE, console, errors, is_first, table, told


class Scaled(StrEnum):
    scenes = "scenes"
    mini = "mini"
    paper = "paper"


class Listed(StrEnum):
    models = "models"
    ready = "ready"
    datasets = "datasets"
    recipes = "recipes"
    teachers = "teachers"


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo leaves.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option(help="A minute's version that shows the way, not the result.")] = False,
) -> None:
    """Run the main job on drawn scenes: teacher, plain and distilled student, scores, a picture, a report."""
    from epmvg.core.progress import TrainingProgress
    from epmvg.experiments.demo import run_demo

    with TrainingProgress(told) as narrator:
        summary = run_demo(out, quick=quick, report=narrator)
    table(
        "Held-out drawn scenes",
        [
            {
                "student": name,
                "Acc@0.5": f"{summary[name]['acc50']:.3f}",
                "mean IoU": f"{summary[name]['miou']:.3f}",
                "open-vocabulary Acc@0.5": f"{summary[name]['open_vocabulary_acc50']:.3f}",
                "seconds": f"{summary[name]['seconds']:.0f}",
            }
            for name in ("plain", "distilled")
        ],
    )
    for name in ("summary.json", "prediction.png", "report.html"):
        console.print(f"  {out / name}")


def train(
    recipe: Annotated[str, typer.Argument(help="A name from `epmvg list recipes`, or a YAML file.")],
    settings: Annotated[list[str] | None, typer.Argument(help="key=value, for example train.epochs=3.")] = None,
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/run"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last saved step of --out.")] = False,
    device: Annotated[str, typer.Option(help=DEVICE)] = "auto",
) -> None:
    """Train a student, with its teacher unless distill=null.

    Ctrl-C and SIGTERM end it after the step that is being taken, and --resume goes on; a second one ends it at once.
    """
    from epmvg.config.settings import Recipe
    from epmvg.core.progress import TrainingProgress
    from epmvg.training import train as run

    loaded = Recipe.load(recipe, *(settings or []))
    again = ["epmvg", "train", recipe, *(settings or []), "--out", str(out), "--resume"]
    again += [] if device == "auto" else ["--device", device]
    with _stoppable(again), TrainingProgress(told) as narrator:
        folder = run(loaded, out, resume=resume, device=device, report=narrator)
    if is_first():
        place = shlex.quote(str(folder))
        console.print(f"The run is in {folder}. Next:", soft_wrap=True)
        console.print(f"  epmvg evaluate {place}\n  epmvg predict {place} PHOTO.jpg 'a phrase'", soft_wrap=True)


@contextmanager
def _stoppable(again: list[str] | None) -> Iterator[None]:
    """Where a signal ends a training, say so and how to go on, and end with the signal's status.

    Args:
        again: the command that goes on; None where it is the same command once more.
    """
    from epmvg.training import Stopped

    try:
        yield
    except Stopped as stop:
        if is_first():
            how = "the same command" if again is None else shlex.join(again)
            print(f"epmvg: {stop}; go on with: {how}", file=sys.stderr)
        raise typer.Exit(stop.status) from stop


def teacher_train(
    captions: Annotated[Path, typer.Argument(help='JSONL rows {"image", "split", "captions": [...]}.')],
    out: Annotated[Path, typer.Option(help="The teacher's folder.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder that image paths are relative to; the file's by default.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Most epochs; the best on val is kept.")] = 10,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
) -> None:
    """Train a small CLIP-style teacher from image-caption pairs."""
    from epmvg.core.progress import progress_bar
    from epmvg.distill.pretrain import train_teacher

    with progress_bar(console, "Teacher") as progress:
        metrics = train_teacher(captions, out, images=images, epochs=epochs, device=device, progress=progress)
    console.print(f"The teacher is in {out}: {metrics}", soft_wrap=True)
    if metrics.skipped:
        errors.print(
            f"warning: {metrics.skipped} images were left out; {out / 'teacher.json'} names them.", soft_wrap=True
        )


def teacher_cache(
    recipe: Annotated[str, typer.Argument(help="A recipe that distils, or give distill=TEACHER.")],
    settings: Annotated[list[str] | None, typer.Argument(help="key=value, as for `epmvg train`.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Ask a frozen teacher beforehand all that a training will ask it."""
    from epmvg.config.settings import Recipe
    from epmvg.core.progress import progress_bar
    from epmvg.training import cache_teacher

    with progress_bar(errors, "Asking the teacher") as progress:
        built = cache_teacher(Recipe.load(recipe, *(settings or [])), progress, device)
    for fault in built["skipped"]:
        errors.print(f"warning: left out: {fault}", soft_wrap=True)
    if as_json:
        print(json.dumps(built))
        return
    console.print(
        f"{built['answers']:,} answers, {built['megabytes']} MB, after {built['seconds']} s: {built['file']}",
        soft_wrap=True,
    )


def reproduce(
    table: Annotated[
        str, typer.Argument(help="The paper's table, 1 to 7, or a study of our own: data, targets, teacher, vls.")
    ],
    settings: Annotated[list[str] | None, typer.Argument(help="key=value, for every training of the table.")] = None,
    scale: Annotated[Scaled, typer.Option(help="scenes and mini fit a laptop; paper is the paper's.")] = Scaled.scenes,
    seeds: Annotated[int, typer.Option(help="Trainings of each setting.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for everything; go on by giving it again.")] = Path(
        "runs/reproduce"
    ),
    root: Annotated[Path | None, typer.Option(help="Where the data lies.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, and train nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Reproduce a table of the paper: train what is missing, and print reported and reproduced values."""
    from epmvg.core.progress import TrainingProgress
    from epmvg.experiments.reproduce import reproduce as run

    with _stoppable(None), TrainingProgress(errors) as narrator:
        result = run(
            table, settings or [], scale=scale.value, seeds=seeds, out=out, root=root, dry_run=dry_run, report=narrator
        )
    if as_json:
        print(json.dumps(result))
        return
    if dry_run:
        _say_plan(result["plan"])
    else:
        _say_reproduced(result)
        console.print(f"The table is in {out / scale.value / f'table-{table}'}.md and .json", soft_wrap=True)


def _say_plan(plan: dict[str, Any]) -> None:
    rows = [
        {
            "training": "/".join(Path(run["folder"]).parts[-2:]),
            "state": run["state"],
            "phrases": "?"
            if run["phrases"] is None
            else f"{run['phrases']:,}" + ("" if run["counted"] else " (published)"),
            "epochs": f"{run['epochs']:g}",
            "steps": "?" if run["steps"] is None else f"{run['steps']:,}",
        }
        for run in plan["runs"]
    ]
    table(f"{plan['to_run']} trainings to run", rows)
    for missing in dict.fromkeys(run["missing"] for run in plan["runs"] if run["missing"]):
        console.print(f"Missing: {missing}", soft_wrap=True)


def _say_reproduced(result: dict[str, Any]) -> None:
    from epmvg.experiments.results import cell_text, remark

    table(
        f"{result['heading']}: {result['title']} (reported, then **ours**)",
        [
            {"row": row["name"]}
            | {column: cell_text(cell) for column, cell in zip(result["columns"], row["cells"], strict=True)}
            | {"remark": "; ".join(dict.fromkeys(remark(each) for each in row["trainings"] if remark(each)))}
            for row in result["rows"]
        ],
    )


def list_(
    what: Annotated[
        Listed | None, typer.Argument(help="models, ready, datasets, recipes or teachers; all of them by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List what this installation knows by name."""
    from epmvg.cli.listing import known

    chosen = {name: rows for name, rows in known().items() if what is None or name == what.value}
    if as_json:
        print(json.dumps(chosen))
        return
    for name, rows in chosen.items():
        table(name, rows)

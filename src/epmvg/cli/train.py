"""Commands that train: `demo`, `train`, `reproduce`, `teacher train` and `teacher cache`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from epmvg.cli.console import (
    Device,
    Recipe,
    Settings,
    console,
    error_console,
    format_points,
    is_first,
    log_console,
    print_table,
    warn,
)


class Scale(StrEnum):
    scenes = "scenes"
    mini = "mini"
    paper = "paper"


def demo(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Run in a minute; the scores mean nothing then.")] = False,
) -> None:
    """Train a student on the boxes of few drawn scenes, without and with a teacher; write scores, an image, a report.

    The teacher learns from the captions of many scenes. The distilled student trains on these without their boxes too.
    """
    from epmvg.core.progress import TrainingProgress
    from epmvg.experiments.demo import run_demo

    with TrainingProgress(log_console) as progress:
        summary = run_demo(out, quick=quick, report=progress)
    columns = ("acc50", "miou", "open_vocabulary_acc50", "seconds")
    rows = [{"student": name} | {key: summary[name][key] for key in columns} for name in ("plain", "distilled")]
    points = {key: format_points(difference) for key, difference in summary["difference"].items()}
    rows.append({"student": "difference (95 %)"} | {key: points.get(key) for key in columns})
    print_table("Held-out drawn scenes", rows)
    scenes = summary["scenes"]
    console.print(
        f"Both students have the boxes of {scenes['train']:,} scenes; the distilled one also learned from "
        f"{scenes['captions']:,} scenes without boxes, by a teacher that has only their captions. That changes "
        f"Acc@0.5 by {points['acc50']} points, and by {points['open_vocabulary_acc50']} on names without any box."
    )
    for name in ("summary.json", "prediction.png", "report.html"):
        console.print(f"  {out / name}")


def train(
    recipe: Recipe,
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/run"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint in --out.")] = False,
    device: Device = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print settings, files, memory and time only.")] = False,
) -> None:
    """Train a student, with its teacher unless distill=null.

    --dry-run reads local files only, and exits with status 1 where one is missing.
    Ctrl-C and SIGTERM end it after the current step, and --resume continues it; a second signal ends it at once.
    """
    from epmvg.config.settings import Recipe as RunRecipe
    from epmvg.core.progress import TrainingProgress
    from epmvg.training import train as run_training

    loaded = RunRecipe.load(recipe, *(settings or []))
    if dry_run:
        _print_requirements(loaded)
        return
    command = ["epmvg", "train", recipe, *(settings or []), "--out", str(out), "--resume"]
    command += [] if device == "auto" else ["--device", device]
    with _stoppable(shlex.join(command)), TrainingProgress(log_console) as progress:
        folder = run_training(loaded, out, resume=resume, device=device, report=progress)
    if is_first():
        name = shlex.quote(str(folder))
        console.print(f"The run is in {folder}. Next:")
        console.print(f"  epmvg evaluate {name}\n  epmvg predict {name} IMAGE 'a phrase'")


def _print_requirements(recipe: Any) -> None:
    """Print the complete recipe and what its training needs; exit with status 1 where a file is missing."""
    from epmvg.experiments.requirements import ASSUMPTION, costs, pretrained_parts

    parts, cost = pretrained_parts(recipe), costs(recipe)
    console.print(recipe.dump())
    files = [{"part": part.name, "source": part.source, "state": part.state} for part in parts]
    source = f"{recipe.data.name} in {recipe.data.root or 'its default folder'}"
    source += f", and {recipe.unlabeled}" if recipe.unlabeled else ""
    files.append({"part": "data", "source": source, "state": "missing" if cost["missing"] else "there"})
    missing = [*(part.fix for part in parts if part.state == "missing"), *filter(None, [cost["missing"]])]
    print_table("Files", files)
    names = ("parameters", "trainable", "teacher", "phrases", "steps", "hours")
    print_table("Size", [{name: cost[name] for name in names}])
    if cost["hours"] is not None:
        console.print(f"Hours: {ASSUMPTION}.")
    memory = [
        {"pairs per GPU": pairs, "GiB": gib, "of it weights": cost["weights"]} for pairs, gib in cost["memory"].items()
    ]
    print_table("Memory of a GPU, float32, square images: parameters, gradients, AdamW, activations", memory)
    for each in missing:
        console.print(f"Missing: {each}")
    if missing:
        raise typer.Exit(1)


def reproduce(
    table: Annotated[str, typer.Argument(help="1 to 7, or a study: data, improved, strength, targets, teacher, vls.")],
    settings: Settings = None,
    scale: Annotated[Scale, typer.Option(help="scenes and mini fit a laptop; paper is the paper's.")] = Scale.scenes,
    seeds: Annotated[int, typer.Option(help="Trainings of each setting.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder to write; give it again to continue.")] = Path("runs/reproduce"),
    root: Annotated[Path | None, typer.Option(help="Folder of the data sets.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost, and train nothing.")] = False,
) -> None:
    """Reproduce a table of the paper: train what is missing, and print reported beside reproduced results."""
    from epmvg.core.progress import TrainingProgress
    from epmvg.experiments.reproduce import reproduce as run_table

    options: dict[str, Any] = {"scale": scale.value, "seeds": seeds, "out": out, "root": root, "dry_run": dry_run}
    with _stoppable("the same command"), TrainingProgress(error_console) as progress:
        result = run_table(table, settings or [], **options, report=progress)
    if not dry_run:
        file = out / scale.value / f"table-{table}.md"
        console.print(f"{file.read_text(encoding='utf-8')}\nThe table is in {file} and .json")
        return
    _print_plan(result["plan"])


def _print_plan(plan: dict[str, Any]) -> None:
    """Print the settings, files and cost of a table's trainings; exit with status 1 where a file is missing."""
    from epmvg.config.flat import as_override

    console.print("Settings of all trainings:")
    console.print("\n".join(f"  {as_override(key, value)}" for key, value in plan["settings"].items()))
    for run in plan["runs"]:
        console.print(f"{run['folder']}:")
        console.print(" ".join(["  and", *(as_override(key, value) for key, value in run["settings"].items())]))
        for part in run["parts"]:
            console.print(f"  {part['part']}: {part['source']}, {part['state']}")
    columns = ("folder", "state", "phrases", "epochs", "steps", "hours", "parameters")
    sizes = dict.fromkeys(pairs for run in plan["runs"] for pairs in run["memory"])
    rows = [
        {key: run[key] for key in columns}
        | {f"GiB, {pairs} pairs": run["memory"].get(pairs) for pairs in sizes}
        | {"files": "missing" if run["missing"] else "there"}
        for run in plan["runs"]
    ]
    print_table(f"{plan['to_run']} trainings to run", rows)
    if "teachers" in plan:
        print_table("Teachers", plan["teachers"])
        console.print(
            f"Hours of one core, as measured: {plan['hours']:.1f}. Two processes on two cores take half of it."
        )
    missing = dict.fromkeys(each for run in plan["runs"] for each in run["missing"])
    for each in missing:
        console.print(f"Missing: {each}")
    if missing:
        raise typer.Exit(1)


@contextmanager
def _stoppable(command: str) -> Iterator[None]:
    """Where a signal ends a training, print the command that continues it and exit with the signal's status."""
    from epmvg.training import TrainingStopped

    try:
        yield
    except TrainingStopped as stop:
        if is_first():
            print(f"{stop}. Continue with: {command}", file=sys.stderr)
        raise typer.Exit(stop.status) from stop


def train_teacher(
    captions: Annotated[Path, typer.Argument(help='JSONL file of {"image", "split", "captions": [...]}.')],
    out: Annotated[Path, typer.Option(help="Folder of the teacher.")],
    regions: Annotated[
        str | None,
        typer.Option(help="Data set or file with boxes in the same images: the encoders learn too, in hours."),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the images; the file's by default.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Maximum number of epochs; the best on val is saved.")] = 10,
) -> None:
    """Train a small CLIP-style teacher from image-caption pairs.

    With --regions its encoders learn too, also from the crops of training boxes with their phrases; the same command
    continues it after a kill.
    """
    from epmvg.core.progress import progress_bar
    from epmvg.distill.contrastive import train_on_photos
    from epmvg.distill.pretrain import train_teacher as run_training

    options: dict[str, Any] = {"images": images, "epochs": epochs}
    with progress_bar(error_console, "Teacher") as progress:
        if regions is None:
            metrics = run_training(captions, out, **options, progress=progress)
        else:
            metrics = train_on_photos(captions, regions, out, **options, progress=progress)
    console.print(
        f"The teacher is in {out}. Text-to-image recall on val: R@1 {metrics.r1:.1%}, R@5 {metrics.r5:.1%} "
        f"(epoch {metrics.epoch}), from {metrics.captions:,} image-text pairs."
    )
    if metrics.skipped:
        warn(f"{metrics.skipped} images were skipped. See {out / 'teacher.json'}.")


def cache_teacher(recipe: Recipe, settings: Settings = None) -> None:
    """Compute the embeddings of a frozen teacher that a training with this recipe will use."""
    from epmvg.config.settings import Recipe as RunRecipe
    from epmvg.core.progress import progress_bar
    from epmvg.training import cache_teacher as run_caching

    with progress_bar(error_console, "Teacher") as progress:
        cached = run_caching(RunRecipe.load(recipe, *(settings or [])), progress)
    for image in cached["skipped"]:
        warn(f"skipped {image}")
    console.print(f"{cached['embeddings']:,} embeddings, {cached['megabytes']} MB, are in {cached['file']}")

"""Commands that evaluate: `evaluate`, `score`, `calibrate` and `report`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from epmvg.cli.console import (
    Device,
    Json,
    Root,
    Run,
    RunData,
    Split,
    console,
    error_console,
    format_points,
    is_first,
    print_table,
    warn,
)
from epmvg.core.files import check_not_input
from epmvg.core.locate import locate, own_folder
from epmvg.core.progress import progress_bar
from epmvg.core.types import InputError


class Format(StrEnum):
    jsonl = "jsonl"
    coco = "coco"
    text = "text"


class Clip(StrEnum):
    image = "image"
    canvas = "canvas"


class Targets(StrEnum):
    own = "own"
    any = "any"


def evaluate(
    run: Run,
    data: RunData = None,
    split: Split = None,
    root: Root = None,
    clip: Annotated[
        Clip, typer.Option(help="Clip boxes to the image, or to the square network input (canvas), as TransVG does.")
    ] = Clip.image,
    device: Device = "auto",
    as_json: Json = False,
    robustness: Annotated[bool, typer.Option("--robustness", help="Evaluate on perturbed phrases and images.")] = False,
) -> None:
    """Evaluate a run: Acc@0.5, mean IoU and one prediction per phrase; or its robustness to perturbations.

    Without --split it is the validation split of the run's own data, and every sample of other data.
    """
    locate(run)  # a wrong name is rejected before torch is imported
    source: dict[str, Any] = {"data": data, "split": split, "root": root, "device": device}
    if robustness:
        if clip is Clip.canvas:
            raise InputError("--robustness clips boxes to the image. Omit --clip canvas.")
        if is_first():  # runs in a single process
            _evaluate_robustness(run, source, as_json)
        return
    from epmvg.evaluation.evaluate import evaluate as run_evaluation
    from epmvg.evaluation.samples import results_folder

    with progress_bar(error_console, "Evaluating") as progress:
        result = run_evaluation(run, **source, clip=clip.value, progress=progress)
    if not is_first():
        return
    if as_json:
        print(json.dumps(result))
        return
    parts = {f"{result['data']} {result['split']}": result} | result["slices"].get("Data set", {})
    low, high = result["intervals"]["acc50"]
    interval = f"{low:.4f} to {high:.4f}"
    rows = [
        {"data": name, "n": part["n"], "acc50": part["acc50"]}
        | {"95 %": interval if part is result else None, "miou": part["miou"]}
        for name, part in parts.items()
    ]
    print_table(str(run), rows)
    print_table("Confidence", [{name: result["confidence"][name] for name in CONFIDENCE}])
    console.print(result["protocol"])
    console.print(f"Predictions: {results_folder(run) / result['predictions']}")


CONFIDENCE = ("ece", "aurc", "auroc_correct", "auroc_negative")


def _evaluate_robustness(run: Path, source: dict[str, Any], as_json: bool) -> None:
    from epmvg.evaluation.robustness import measure_robustness

    with progress_bar(error_console, "Perturbing") as progress:
        result = measure_robustness(run, **source, progress=progress)
    if as_json:
        print(json.dumps(result))
        return
    clean = result["clean"]
    title = f"{run} on {result['data']} {result['split']}: Acc@0.5 {clean['acc50']:.4f} of {clean['n']:,} phrases"
    columns = ("name", "n", "clean_acc50", "acc50", "moved")
    rows = [
        {key: row.get(key) for key in columns} | {"points (95 %)": format_points(row.get("difference"))}
        for row in result["perturbations"]
    ]
    print_table(title, rows)
    for image in result["skipped"][:1]:
        console.print(f"Skipped images: {len(result['skipped'])}; the first: {image}")


def score(
    predictions: Annotated[Path, typer.Argument(help="File of any system's predictions.")],
    data: Annotated[str, typer.Option(help="Name of the data set, or an annotation file.")],
    split: Split = None,
    root: Root = None,
    form: Annotated[
        Format, typer.Option("--format", help="Our JSONL, COCO results, or generated text.")
    ] = Format.jsonl,
    coordinates: Annotated[
        str | None, typer.Option(help="UNIT:ORDER of the boxes, for example 0-1000:xyxy; required for text.")
    ] = None,
    targets: Annotated[
        Targets,
        typer.Option(
            help="Box that is correct if a phrase has several in an image: that of the sample (own), or any of them."
        ),
    ] = Targets.own,
    against: Annotated[Path | None, typer.Option(help="Predictions of another system to compare with.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSONL file to write the scored predictions to.")] = None,
    as_json: Json = False,
) -> None:
    """Score any system's predictions as `evaluate` scores a run."""
    from epmvg.evaluation.external import score as run_score

    result = run_score(
        predictions,
        data=data,
        split=split,
        root=root,
        form=form.value,
        coordinates=coordinates,
        targets=targets.value,
        against=against,
        out=out,
    )
    parts = {"": result} | ({f" of {result['against']['file']}": result["against"]} if result.get("against") else {})
    for name, part in parts.items():
        for warning in part.get("warnings", ()):
            warn(f"predictions{name}: {warning}")
    if as_json:
        print(json.dumps(result))
        return
    metrics = [
        {"metric": name, "value": result[name], "low": low, "high": high}
        for name, (low, high) in result["intervals"].items()
    ]
    if result.get("against"):
        for row in metrics:
            difference = result["against"]["metrics"][row["metric"]]
            row |= {"points (95 %)": format_points(difference), "p": difference["p"]}
    print_table(f"{result['data']} {result['split']}, {result['n']:,} phrases", metrics)
    for name, part in parts.items():
        if part["unreadable"]:
            console.print(f"Predictions{name} without a box, counted as misses: {len(part['unreadable']):,}")
        for line in part["unreadable"][:10]:
            console.print(f"  {line}")
    console.print(f"{result['protocol']}; data {result['metadata']['data_sha256'][:16]}")


def calibrate(
    run: Run,
    data: RunData = None,
    split: Split = None,
    fit_head: Annotated[bool, typer.Option("--fit-head", help="First fit an IoU head on the training split.")] = False,
    false_positive_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Fraction of negative phrases that may reach the threshold.")
    ] = 0.1,
    device: Device = "auto",
) -> None:
    """Calibrate a run's scores to probabilities, and store the threshold from which a phrase counts as found.

    Without --split it is the validation split of the run's own data.
    """
    locate(run)
    from epmvg.evaluation.calibration import calibrate as run_calibration

    options: dict[str, Any] = {"fit_head": fit_head, "false_positive_rate": false_positive_rate, "device": device}
    with progress_bar(error_console, "Calibrating") as progress:
        done = run_calibration(run, data=data, split=split, **options, progress=progress)
    if done["method"] == "none":
        phrases = f"{done['fitted']['n']:,} phrases"
        warn(f"no mapping predicts better than the raw scores on {phrases}. They stay raw.")
    shown = done["fitted"] | {"method": done["method"], "threshold": done["threshold"]}
    print_table(str(run), [{"": key, "value": value} for key, value in shown.items()])


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Evaluated runs, folders or names; the others are compared with the first."),
    ],
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    phrase: Annotated[
        list[str] | None, typer.Option(help="Phrase to compare across runs, repeatable; by default the most improved.")
    ] = None,
) -> None:
    """Write one self-contained HTML page about one run, or several side by side."""
    from epmvg.report import write_report

    check_not_input(out, *(file for run in map(own_folder, runs) if run.is_dir() for file in run.iterdir()))
    console.print(f"The report is {write_report(runs, out, phrases=phrase or ())}")

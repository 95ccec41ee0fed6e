"""Verbs that judge: scores of a run or of any system, what they are worth, a page of it all."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from epmvg.cli.screen import DEVICE, RUN, console, errors, is_first, table
from epmvg.core.files import check_not_input
from epmvg.core.locate import locate
from epmvg.core.progress import progress_bar
from epmvg.core.types import InputError


class Told(StrEnum):
    jsonl = "jsonl"
    coco = "coco"
    text = "text"


class Asked(StrEnum):
    rows = "rows"
    any = "any"


def evaluate(
    run: Annotated[Path, typer.Argument(help=RUN)],
    data: Annotated[str | None, typer.Option(help="A data set's name or a file; the run's own by default.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Of that data; its validation split if it is the run's own.")
    ] = None,
    root: Annotated[str | None, typer.Option(help="Where the data lies.")] = None,
    split_key: Annotated[str | None, typer.Option(help="The row key that names the split.")] = None,
    device: Annotated[str, typer.Option(help=DEVICE)] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Score perturbed phrases and images instead (docs/robustness.md).")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Most phrases, with --robustness, of images drawn at random; 1,000 by default."),
    ] = None,
) -> None:
    """Score a run: Acc@0.5, mean IoU, and a row of predictions a phrase; or its robustness to perturbations."""
    if limit is not None and not robustness:
        raise InputError("--limit is for --robustness: an evaluation counts every phrase of its split.")
    locate(run)  # a wrong name is named before torch is imported
    chosen: dict[str, Any] = {"data": data, "split": split, "root": root, "split_key": split_key, "device": device}
    if robustness:
        if not is_first():  # one process does this alone
            return
        from epmvg.evaluation.robustness import LIMIT, measure_robustness

        with progress_bar(errors, "Perturbing") as progress:
            result = measure_robustness(run, **chosen, limit=LIMIT if limit is None else limit, progress=progress)
    else:
        from epmvg.evaluation.evaluate import evaluate as score

        with progress_bar(errors, "Scoring") as progress:
            result = score(run, **chosen, progress=progress)
        if not is_first():
            return
    if as_json:
        print(json.dumps(result))
    elif robustness:
        _print_robustness(run, result)
    else:
        _say_evaluation(run, result)


def _say_evaluation(run: Path, result: dict[str, Any]) -> None:
    from epmvg.evaluation.samples import results_folder

    parts = {f"{result['data']} {result['split']}": result} | result["slices"].get("Data set", {})
    table(
        f"{run}",
        [
            {
                "data": name,
                "phrases": f"{scores['n']:,}",
                "Acc@0.5": f"{scores['acc50']:.4f}",
                "mean IoU": f"{scores['miou']:.4f}",
            }
            for name, scores in parts.items()
        ],
    )
    table("Confidence", [_confidence_row(result["confidence"])])
    console.print(f"A row a phrase: {results_folder(run) / result['rows']}", soft_wrap=True)


def _print_robustness(run: Path, result: dict[str, Any]) -> None:
    clean = result["clean"]
    title = f"{run} on {result['data']} {result['split']}: Acc@0.5 {clean['acc50']:.4f} of {clean['n']:,} phrases"
    table(title, [_perturbation_row(row) for row in result["perturbations"]])
    if result["skipped"]:
        console.print(f"Skipped images: {len(result['skipped'])}; the first: {result['skipped'][0]}", soft_wrap=True)


def _perturbation_row(row: dict[str, Any]) -> dict[str, str]:
    named = {"perturbation": row["name"], "phrases": f"{row['n']:,}"}
    if not row["n"]:
        return named | {"clean": "-", "Acc@0.5": "-", "difference": "-", "moved": "-"}
    gap = row["difference"]
    return named | {
        "clean": f"{row['clean_acc50']:.3f}",
        "Acc@0.5": f"{row['acc50']:.3f}",
        "difference": f"{gap['points']:+.1f} ({gap['low']:+.1f} to {gap['high']:+.1f})",
        "moved": f"{row['moved']:.1%}",
    }


def _confidence_row(confidence: dict[str, Any]) -> dict[str, str]:
    metrics = {
        "ECE": confidence["ece"],
        "AURC": confidence["aurc"],
        "AUROC, correct boxes": confidence["auroc_correct"],
        "AUROC, negative phrases": confidence["auroc_negative"],
    }
    return {name: "-" if value is None else f"{value:.3f}" for name, value in metrics.items()}


def score(
    predictions: Annotated[Path, typer.Argument(help="A file of any system's predictions.")],
    data: Annotated[str, typer.Option(help="What they answer: a data set's name or a file.")],
    split: Annotated[str | None, typer.Option(help="Of that data; all rows by default.")] = None,
    root: Annotated[str | None, typer.Option(help="Where the data lies.")] = None,
    form: Annotated[Told, typer.Option("--format", help="Our rows, COCO results, or a model's words.")] = Told.jsonl,
    coordinates: Annotated[
        str | None, typer.Option(help="UNIT:ORDER of the numbers, for example 0-1000:xyxy; text needs it.")
    ] = None,
    targets: Annotated[Asked, typer.Option(help="Of a phrase with several boxes: the row's own, or any.")] = Asked.rows,
    strict: Annotated[bool, typer.Option("--strict", help="Count IoU > bound instead of >=.")] = False,
    against: Annotated[Path | None, typer.Option(help="Rows of another system, to compare with.")] = None,
    allow_partial: Annotated[bool, typer.Option("--allow-partial", help="Count missing rows as misses.")] = False,
    rows: Annotated[Path | None, typer.Option(help="Write what was scored to this JSONL file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
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
        strict=strict,
        allow_partial=allow_partial,
        against=against,
        rows=rows,
    )
    for part in (result, result.get("against") or {}):
        for warning in part.get("warnings", ()):
            whose = f"{part['file']}: " if "file" in part else ""
            errors.print(f"Warning: {whose}{warning}", soft_wrap=True)
    if as_json:
        print(json.dumps(result))
        return
    _say_scores(result)


def _say_scores(result: dict[str, Any]) -> None:
    from epmvg.evaluation.metrics import METRICS

    against = result.get("against")
    shown = []
    for name in METRICS:
        low, high = result["intervals"][name]
        row = {"metric": name, "value": f"{result[name]:.4f}", "95 % interval": f"{low:.4f} to {high:.4f}"}
        if against:
            gap = against["metrics"][name]
            row["points"] = f"{gap['points']:+.2f}"
            row["of which 95 %"] = f"{gap['low']:+.2f} to {gap['high']:+.2f}"
            row["p"] = f"{gap['p']:.4f}"
        shown.append(row)
    table(f"{result['data']} {result['split']}, {result['n']:,} phrases", shown)
    said = [(result, "")] + ([(against, f" of {against['file']}")] if against else [])
    for part, whose in said:
        if part["missing"]:
            console.print(f"Misses{whose}, rows without an answer: {len(part['missing']):,}", soft_wrap=True)
        if part["unreadable"]:
            first = [f"  {one['where']}: {one['why']}" for one in part["unreadable"][:10]]
            console.print(f"Misses{whose}, answers without a box: {len(part['unreadable']):,}", soft_wrap=True)
            console.print("\n".join(first), soft_wrap=True)
        if part["multiple_boxes"]:
            console.print(
                f"Outputs{whose} with several boxes, of which one counts: {part['multiple_boxes']:,}", soft_wrap=True
            )
    console.print(f"{result['protocol']}; data {result['metadata']['data_sha256'][:16]}", soft_wrap=True)


def calibrate(
    run: Annotated[Path, typer.Argument(help=RUN)],
    data: Annotated[str | None, typer.Option(help="A data set's name or a file; the run's own by default.")] = None,
    split: Annotated[str | None, typer.Option(help="To calibrate on; the run's validation split by default.")] = None,
    root: Annotated[str | None, typer.Option(help="Where the data lies.")] = None,
    fit_head: Annotated[bool, typer.Option("--fit-head", help="First fit a score head on the training split.")] = False,
    false_positive_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Fraction of negative phrases that may pass the stored threshold.")
    ] = 0.1,
    device: Annotated[str, typer.Option(help=DEVICE)] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make a run's scores probabilities, and choose the threshold of "nothing found"."""
    locate(run)
    from epmvg.evaluation.calibration import calibrate as run_calibration
    from epmvg.evaluation.calibration import remark

    with progress_bar(errors, "Asking") as progress:
        done = run_calibration(
            run,
            data=data,
            split=split,
            root=root,
            fit_head=fit_head,
            false_positive_rate=false_positive_rate,
            device=device,
            progress=progress,
        )
    if (sentence := remark(done)) is not None:
        errors.print(f"warning: {sentence}", soft_wrap=True)
    if as_json:
        print(json.dumps(done))
        return
    fitted = done["fitted"]
    shown = fitted | {"method": done["method"], "threshold": done["threshold"]}
    table(
        f"{run}",
        [{"": key, "value": f"{said:.4f}" if isinstance(said, float) else str(said)} for key, said in shown.items()],
    )


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs; the first is what the others are compared with.")
    ],
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    phrase: Annotated[
        list[str] | None,
        typer.Option(help="Show this phrase run beside run, repeatable; the most improved by default."),
    ] = None,
) -> None:
    """Write one self-contained HTML page about one run or several side by side."""
    from epmvg.report import write_report

    check_not_input(out, *(file for run in runs if run.is_dir() for file in run.iterdir()))
    page = write_report(runs, out, phrases=phrase or ())
    console.print(f"The report is {page}", soft_wrap=True)

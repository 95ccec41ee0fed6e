"""The command line: verbs, each a few lines that call the library; what a verb needs is imported inside it."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections import Counter
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from epmvg import __version__
from epmvg.types import InputError

if TYPE_CHECKING:
    from epmvg.doctor import Diagnosis

app = typer.Typer(
    help="Visual grounding: an image and a phrase go in, the box of that thing comes out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
teacher_app = typer.Typer(help="Make a teacher of your own.", no_args_is_help=True)
app.add_typer(teacher_app, name="teacher")
data_app = typer.Typer(
    help="Look into data sets, examine them, and turn one format into another.", no_args_is_help=True
)
app.add_typer(data_app, name="data")
console = Console()

RUN = "A folder that training wrote, `default` for the model that ships in this package, or OWNER/NAME on the hub."


class Form(StrEnum):
    json = "json"
    coco = "coco"
    label_studio = "label-studio"


class Told(StrEnum):
    jsonl = "jsonl"
    coco = "coco"
    text = "text"


class Asked(StrEnum):
    rows = "rows"
    merged = "merged"
    any = "any"


class Scaled(StrEnum):
    scenes = "scenes"
    mini = "mini"
    paper = "paper"


class Runtime(StrEnum):
    onnx = "onnx"
    openvino = "openvino"


class Listed(StrEnum):
    models = "models"
    datasets = "datasets"
    recipes = "recipes"
    teachers = "teachers"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; unusable input is one sentence and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a phrase may hold letters that the terminal's locale lacks
    warnings.formatwarning = lambda message, *_, **__: f"epmvg: {message}\n"
    try:
        app(arguments)
    except InputError as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"{error.filename or 'a file'}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        from epmvg.hardware import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        _refuse("Memory ran out: ask about fewer phrases or smaller pictures at once, or use a smaller model.")


def _refuse(sentence: str) -> NoReturn:
    print(f"epmvg: {sentence}", file=sys.stderr)
    sys.exit(2)


def _version(asked: bool) -> None:
    if asked:
        print(f"epmvg {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo leaves.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option(help="A minute's version that shows the way, not the result.")] = False,
) -> None:
    """Run the main job on drawn scenes: teacher, plain and distilled student, scores, a picture, a report."""
    from epmvg.demo import run_demo
    from epmvg.terminal import Narrator

    with Narrator(console) as narrator:
        summary = run_demo(out, quick=quick, report=narrator)
    _table(
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


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A name from `epmvg list recipes`, or a YAML file.")],
    settings: Annotated[list[str] | None, typer.Argument(help="key=value, for example train.epochs=3.")] = None,
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/run"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last saved step of --out.")] = False,
) -> None:
    """Train a student, with its teacher unless distill=null."""
    from epmvg.config import Recipe
    from epmvg.terminal import Narrator
    from epmvg.training import train as run

    loaded = Recipe.load(recipe, *(settings or []))
    with Narrator(console) as narrator:
        folder = run(loaded, out, resume=resume, report=narrator)
    console.print(f"The run is in {folder}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help=RUN)],
    data: Annotated[str | None, typer.Option(help="A data set's name or a file; the run's own by default.")] = None,
    split: Annotated[str | None, typer.Option(help="Of that data; the run's validation split by default.")] = None,
    root: Annotated[str | None, typer.Option(help="Where the data lies.")] = None,
    split_key: Annotated[str | None, typer.Option(help="The row key that names the split.")] = None,
    absent: Annotated[float, typer.Option(help="Phrases asked of other images, a phrase of the split.")] = 0.25,
    device: Annotated[str, typer.Option(help="Where the model computes, for example cuda.")] = "cpu",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result as JSON; - prints it.")] = None,
    stress: Annotated[
        bool, typer.Option("--stress", help="Score phrases and pictures made harder instead (docs/robustness.md).")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(help="Most phrases, with --stress, of images drawn at random; 1,000 by default.")
    ] = None,
) -> None:
    """Score a run: Acc@0.5, mean IoU, and a row of predictions a phrase; or what it bears."""
    if stress:
        _stress(run, data, split, root, split_key, absent, limit, json_file)
        return
    if limit is not None:
        raise InputError("--limit is for --stress: a score counts every phrase of its split.")
    from epmvg.evaluation import evaluate as score
    from epmvg.evaluation import results_folder, write_json
    from epmvg.terminal import counting

    with counting(Console(stderr=True), "Scoring") as progress:
        result = score(
            run,
            data=data,
            split=split,
            root=root,
            split_key=split_key,
            absent=absent,
            device=device,
            progress=progress,
        )
    if not _is_first():
        return
    if str(json_file) == "-":
        print(json.dumps(result))
        return
    if json_file is not None:
        write_json(json_file, result)
    parts = {f"{result['data']} {result['split']}": result} | result.get("parts", {})
    _table(
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
    _table("How far the score can be trusted", [_trust_row(result["confidence"])])
    rows = results_folder(run) / f"predictions-{result['data']}-{result['split']}.jsonl"
    console.print(f"A row a phrase: {rows}", soft_wrap=True)


def _stress(
    run: Path,
    data: str | None,
    split: str | None,
    root: str | None,
    split_key: str | None,
    absent: float,
    limit: int | None,
    json_file: Path | None,
) -> None:
    if not _is_first():  # one process does this alone
        return
    from epmvg.evaluation import results_folder, write_json
    from epmvg.stress import LIMIT, stress_test
    from epmvg.terminal import counting

    with counting(Console(stderr=True), "Stressing") as progress:
        result = stress_test(
            run,
            data=data,
            split=split,
            root=root,
            split_key=split_key,
            limit=LIMIT if limit is None else limit,
            absent=absent,
            progress=progress,
        )
    if str(json_file) == "-":
        print(json.dumps(result))
        return
    if json_file is not None:
        write_json(json_file, result)
    clean = result["clean"]
    title = f"{run} on {result['data']} {result['split']}: Acc@0.5 {clean['acc50']:.4f} of {clean['n']:,} phrases"
    _table(title, [_stress_row(row) for row in result["stresses"]])
    nothing, stem = result["absent"], f"{result['data']}-{result['split']}"
    if "why" in nothing:
        console.print(f"Absent phrases: {nothing['why']}.", soft_wrap=True)
    else:
        console.print(
            f"Absent phrases: {nothing['refused']:.1%} of {nothing['n']:,} refused below {nothing['threshold']:.3f}, "
            f"and {nothing['clean_refused']:.1%} of the clean ones; AUROC {nothing['auroc']:.3f}",
            soft_wrap=True,
        )
    console.print(f"Pictures of the worst: {results_folder(run) / f'stress-{stem}.html'}", soft_wrap=True)


def _stress_row(row: dict[str, Any]) -> dict[str, str]:
    said = {"stress": row["name"], "phrases": f"{row['n']:,}"}
    if not row["n"]:
        return said | {"clean": "-", "Acc@0.5": "-", "difference": row["why"], "changed": "-"}
    gap = row["difference"]
    return said | {
        "clean": f"{row['clean_acc50']:.3f}",
        "Acc@0.5": f"{row['acc50']:.3f}",
        "difference": f"{gap['points']:+.1f} ({gap['low']:+.1f} to {gap['high']:+.1f})",
        "changed": f"{row['changed']:.1%}",
    }


def _trust_row(said: dict[str, Any]) -> dict[str, str]:
    figures = {
        "calibration error": said["ece"],
        "AURC": said["aurc"],
        "AUROC, correct box": said["auroc_correct"],
        "AUROC, phrase belongs": said["auroc_belongs"],
    }
    return {
        name: "-" if one is None else f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})"
        for name, one in figures.items()
    }


@app.command()
def score(
    predictions: Annotated[Path, typer.Argument(help="A file of any system's predictions.")],
    data: Annotated[str, typer.Option(help="What they answer: a data set's name or a file.")],
    split: Annotated[str | None, typer.Option(help="Of that data; all rows by default.")] = None,
    root: Annotated[str | None, typer.Option(help="Where the data lies.")] = None,
    split_key: Annotated[str, typer.Option(help="The row key that names the split.")] = "split",
    form: Annotated[Told, typer.Option("--format", help="Our rows, COCO results, or a model's words.")] = Told.jsonl,
    coordinates: Annotated[
        str | None, typer.Option(help="UNIT:ORDER of the numbers, for example 0-1000:xyxy; text needs it.")
    ] = None,
    answer_key: Annotated[str, typer.Option(help="Where the text of an answer stands.")] = "answer",
    targets: Annotated[
        Asked, typer.Option(help="Of a phrase with several boxes: each row's own, their union, or any.")
    ] = Asked.rows,
    strict: Annotated[bool, typer.Option("--strict", help="Count IoU > bound instead of >=.")] = False,
    against: Annotated[Path | None, typer.Option(help="Rows of another system, to compare with.")] = None,
    allow_partial: Annotated[bool, typer.Option("--allow-partial", help="Count missing rows as misses.")] = False,
    rows: Annotated[Path | None, typer.Option(help="Write what was scored to this JSONL file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Score any system's predictions as `evaluate` scores a run."""
    from epmvg.scoring import score as run_score

    result = run_score(
        predictions,
        data=data,
        split=split,
        root=root,
        split_key=split_key,
        form=form.value,
        coordinates=coordinates,
        targets=targets.value,
        strict=strict,
        allow_partial=allow_partial,
        answer_key=answer_key,
        against=against,
        rows=rows,
    )
    if as_json:
        print(json.dumps(result))
        return
    _say_scores(result)


def _say_scores(result: dict[str, Any]) -> None:
    from epmvg.metrics import FIGURES

    against = result.get("against")
    shown = []
    for name in FIGURES:
        low, high = result["intervals"][name]
        row = {"figure": name, "value": f"{result[name]:.4f}", "95 % interval": f"{low:.4f} to {high:.4f}"}
        if against:
            gap = against["figures"][name]
            row["points"] = f"{gap['points']:+.2f}"
            row["of which 95 %"] = f"{gap['low']:+.2f} to {gap['high']:+.2f}"
            row["p"] = f"{gap['p']:.4f}"
        shown.append(row)
    _table(f"{result['data']} {result['split']}, {result['n']:,} phrases", shown)
    said = [(result, "")] + ([(against, f" of {against['file']}")] if against else [])
    for part, whose in said:
        if part["missing"]:
            console.print(f"Misses{whose}, rows without an answer: {len(part['missing']):,}", soft_wrap=True)
        if part["unreadable"]:
            first = [f"  {one['where']}: {one['why']}" for one in part["unreadable"][:10]]
            console.print(f"Misses{whose}, answers without a box: {len(part['unreadable']):,}", soft_wrap=True)
            console.print("\n".join(first), soft_wrap=True, markup=False)
        if part["several"]:
            console.print(
                f"Answers{whose} with several boxes, of which the first counts: {part['several']:,}", soft_wrap=True
            )
    console.print(f"{result['protocol']}; data {result['stamp']['data_sha256'][:16]}", soft_wrap=True, markup=False)


@app.command()
def calibrate(
    run: Annotated[Path, typer.Argument(help=RUN)],
    data: Annotated[str | None, typer.Option(help="A data set's name or a file; the run's own by default.")] = None,
    split: Annotated[str | None, typer.Option(help="To calibrate on; the run's validation split by default.")] = None,
    root: Annotated[str | None, typer.Option(help="Where the data lies.")] = None,
    split_key: Annotated[str | None, typer.Option(help="The row key that names the split.")] = None,
    fit_head: Annotated[bool, typer.Option("--fit-head", help="First fit a score head on the training split.")] = False,
    limit: Annotated[int, typer.Option(help="Most phrases to fit the head on.")] = 20_000,
    false_alarms: Annotated[
        float, typer.Option(help="Share of absent phrases that may pass the stored threshold.")
    ] = 0.1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make a run's scores probabilities, and choose the threshold of "nothing found"."""
    from epmvg.calibration import calibrate as run_calibration
    from epmvg.terminal import counting

    with counting(Console(stderr=True), "Asking") as progress:
        done = run_calibration(
            run,
            data=data,
            split=split,
            root=root,
            split_key=split_key,
            fit_head=fit_head,
            limit=limit,
            false_alarms=false_alarms,
            progress=progress,
        )
    if as_json:
        print(json.dumps(done))
        return
    fitted = done["fitted"]
    shown = fitted | {"method": done["method"], "threshold": done["threshold"]}
    _table(
        f"{run}",
        [{"": key, "value": f"{said:.4f}" if isinstance(said, float) else str(said)} for key, said in shown.items()],
    )


@app.command()
def publish(
    run: Annotated[Path, typer.Argument(help=RUN)],
    to: Annotated[Path | None, typer.Option(help="Write the hub's folder here.")] = None,
    hub: Annotated[str | None, typer.Option(help="Publish it as OWNER/NAME on the Hugging Face hub.")] = None,
    licence: Annotated[str | None, typer.Option(help="Of the weights, for example apache-2.0.")] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="In float16, without parts that are still those of an installed wheel.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Only its owner sees a new one.")] = False,
    latency: Annotated[bool, typer.Option("--latency", help="Time the model on this machine for its card.")] = False,
) -> None:
    """Write a run as a folder for the Hugging Face hub with a model card, or publish it there."""
    from epmvg.hub import push_to_hub, save_pretrained

    if (to is None) == (hub is None):
        raise InputError("Say where: give either --to FOLDER or --hub OWNER/NAME.")
    how: dict[str, Any] = {"licence": licence, "compact": compact, "measure_latency": latency}
    if to is not None:
        console.print(f"The model is in {save_pretrained(run, to, **how)}")
    if hub is not None:
        address = push_to_hub(run, hub, private=private, **how)
        console.print(f"The model is at {address}")


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help=RUN)],
    image: Annotated[Path, typer.Argument(help="A photo; with --out a folder of photos or a JSONL file of rows.")],
    phrases: Annotated[
        list[str] | None, typer.Argument(help="What to find, one or several; a file's own phrases by default.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write a row a phrase to this JSONL file; resumable.")] = None,
    root: Annotated[Path | None, typer.Option(help="What a JSONL file's image paths are relative to.")] = None,
    device: Annotated[str, typer.Option(help="Where the model computes, with --out: for example cuda.")] = "cpu",
    draw: Annotated[Path | None, typer.Option(help="Save the photo with the boxes drawn.")] = None,
    where: Annotated[Path | None, typer.Option(help="Save where the model looks, a photo a phrase.")] = None,
    attention: Annotated[Path | None, typer.Option(help="Save what [REG] attends to, a photo a phrase.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    form: Annotated[Form | None, typer.Option("--format", help="Print JSON of this kind.")] = None,
    min_score: Annotated[
        str | None, typer.Option(help="Below it nothing counts as found; auto takes the calibrated threshold.")
    ] = None,
) -> None:
    """Find phrases in a photo, or in many."""
    if out is not None:
        _predict_many(run, image, phrases or [], out, root, device, as_json)
        return
    if image.is_dir() or image.suffix == ".jsonl":
        raise InputError(f"{image} holds many photos: give --out predictions.jsonl.")
    if not phrases:
        raise InputError(f"There is nothing to find in {image}: give one phrase or several.")
    from epmvg.data.photos import open_image
    from epmvg.draw import draw_boxes, draw_map, side_by_side
    from epmvg.predict import Predictor
    from epmvg.results import to_coco, to_label_studio

    picture = open_image(image)  # a wrong name is said before a model is loaded
    predictor = Predictor(run)
    found = predictor(picture, phrases, min_score=_score_bound(min_score))
    found.image = str(image)
    if draw is not None:
        _save_picture(found.draw(), draw)
    for file, look in ((where, predictor.where), (attention, predictor.attention)):
        if file is not None:
            maps = [draw_map(picture, values) for values in look(picture, phrases)]
            panels = [draw_boxes(each, [one.box], [one.phrase]) for each, one in zip(maps, found, strict=True)]
            _save_picture(side_by_side(panels), file)
    if form is not None or as_json:
        if form is Form.coco:
            print(json.dumps(to_coco([found])))
        elif form is Form.label_studio:
            print(json.dumps(to_label_studio([found])))
        else:
            print(json.dumps(found.to_dict()))
        return
    _table(
        f"{image} ({picture.width} x {picture.height})",
        [
            {
                "phrase": one.phrase,
                "box (x0, y0, x1, y1)": ", ".join(f"{v:.1f}" for v in one.box) if one.found else "nothing found",
                "score": f"{one.score:.2f}",
            }
            for one in found
        ],
    )


def _score_bound(text: str | None) -> float | Literal["auto"] | None:
    if text is None or text == "auto":
        return text  # type: ignore[return-value]  # mypy does not narrow str to a literal
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--min-score {text} is no number: give one between 0 and 1, or auto.") from None


def _predict_many(
    run: Path, source: Path, phrases: list[str], out: Path, root: Path | None, device: str, as_json: bool
) -> None:
    from epmvg.bulk import predict_many
    from epmvg.terminal import counting

    with counting(Console(stderr=True), "Finding") as progress:
        counts = predict_many(run, source, out, phrases=phrases, root=root, device=device, progress=progress)
    if not _is_first():
        return
    if as_json:
        print(json.dumps(counts))
        return
    console.print(f"{counts['rows']:,} rows ({counts['errors']:,} of them errors) in {out}", soft_wrap=True)


def _save_picture(picture: Any, file: Path) -> None:
    temporary = file.with_name(f".{file.name}")
    try:
        picture.save(temporary, format=picture.format or _format(file))
    except (OSError, KeyError, ValueError) as error:
        temporary.unlink(missing_ok=True)
        raise InputError(
            f"{file} cannot be written ({error}): check the folder, and end the name in .png or .jpg."
        ) from error
    temporary.replace(file)


def _format(file: Path) -> str:
    from PIL import Image

    known = Image.registered_extensions()
    if file.suffix.lower() not in known:
        raise ValueError(f"{file.suffix or 'no ending'} is not a picture format")
    return known[file.suffix.lower()]


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs; the first is what the others are compared with.")
    ],
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    phrase: Annotated[
        list[str] | None,
        typer.Option(help="Show this phrase run beside run, repeatable; the most improved by default."),
    ] = None,
    image_root: Annotated[Path | None, typer.Option(help="Where the photos are, if not where they were.")] = None,
    gallery: Annotated[int, typer.Option(help="Pictures in each group; 0 for none.")] = 12,
) -> None:
    """Write one self-contained HTML page about one run or several side by side."""
    from epmvg.reporting import report as write

    page = write(runs, out, image_root=image_root, gallery=gallery, phrases=phrase or ())
    console.print(f"The report is {page}")


@app.command()
def reproduce(
    table: Annotated[
        str, typer.Argument(help="The paper's table, 1 to 7, or a study of our own: data, mends, teacher, vls.")
    ],
    settings: Annotated[list[str] | None, typer.Argument(help="key=value, for every training of the table.")] = None,
    scale: Annotated[Scaled, typer.Option(help="scenes and mini fit a laptop; paper is the paper's.")] = Scaled.scenes,
    seeds: Annotated[int, typer.Option(help="Trainings of each setting.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for everything; go on by giving it again.")] = Path(
        "runs/reproduce"
    ),
    root: Annotated[Path | None, typer.Option(help="Where the data lies.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost, and train nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run a table of the paper again: what is missing is trained, and printed figures stand beside ours."""
    from epmvg.reproduce import reproduce as run
    from epmvg.terminal import Narrator

    with Narrator(Console(stderr=True)) as narrator:
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
        console.print(f"The table is in {out / scale.value / f'table-{table}'}.md, .html and .json", soft_wrap=True)


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
            "GPU-hours": "?" if run["gpu_hours"] is None else f"{run['gpu_hours']:.2f}",
        }
        for run in plan["runs"]
    ]
    _table(f"{plan['to_run']} trainings to run, about {plan['gpu_hours']:g} GPU-hours ({plan['assumes']})", rows)
    for missing in dict.fromkeys(run["missing"] for run in plan["runs"] if run["missing"]):
        console.print(f"Missing: {missing}", soft_wrap=True)


def _say_reproduced(result: dict[str, Any]) -> None:
    from epmvg.reproduce.page import cell_text, remark

    _table(
        f"{result['heading']}: {result['title']} (printed, then **ours**)",
        [
            {"row": row["name"]}
            | {column: cell_text(cell) for column, cell in zip(result["columns"], row["cells"], strict=True)}
            | {"remark": "; ".join(dict.fromkeys(remark(each) for each in row["trainings"] if remark(each)))}
            for row in result["rows"]
        ],
    )


@app.command("list")
def list_(
    what: Annotated[
        Listed | None, typer.Argument(help="models, datasets, recipes or teachers; all of them by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List what this installation knows by name."""
    from epmvg.listing import known

    chosen = {name: rows for name, rows in known().items() if what is None or name == what.value}
    if as_json:
        print(json.dumps(chosen))
        return
    for name, rows in chosen.items():
        _table(name, rows)


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="Published weights: .pth or .safetensors.")],
    kind: Annotated[str, typer.Option("--as", help="transvg, qrnet, detr, swin or imagenet.")],
    out: Annotated[Path, typer.Option(help="The student's folder.")],
    model: Annotated[str | None, typer.Option(help="A model's name; told from the weights by default.")] = None,
    canvas: Annotated[int | None, typer.Option(help="Side of the input in pixels; the file's own by default.")] = None,
    length: Annotated[int | None, typer.Option(help="Most word pieces; the file's own by default.")] = None,
    resample: Annotated[bool, typer.Option("--resample", help="Fit positions to another canvas or length.")] = False,
    bert: Annotated[str | None, typer.Option(help="A BERT to start from: hub name or folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Turn published weights into a folder that every other command reads."""
    from epmvg.convert import convert as turn
    from epmvg.convert import write

    done = turn(file, kind, model=model, canvas=canvas, length=length, resample=resample, bert=bert)
    write(done, out)
    if as_json:
        account = {"model": done.preset, "converted": done.converted, "ignored": done.ignored, "new": done.new}
        print(json.dumps(account | {"out": str(out)}))
        return
    reasons = Counter(done.ignored.values())
    rows = [{"parameters": "converted", "number": str(len(done.converted)), "why": ""}]
    rows += [{"parameters": "ignored", "number": str(count), "why": why} for why, count in reasons.items()]
    if done.new:
        rooms = ", ".join(sorted({name.split(".")[0] for name in done.new}))
        rows.append({"parameters": "new", "number": str(len(done.new)), "why": f"not in the file: {rooms}"})
    _table(f"{done.preset} in {out}", rows)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help=RUN)],
    out: Annotated[Path, typer.Option(help="The folder to write; it needs neither torch nor the run.")],
    kind: Annotated[Runtime, typer.Option("--format", help="What will run it.")] = Runtime.onnx,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise; needs --calibrate.")] = False,
    calibrate: Annotated[str | None, typer.Option(help="Photos for --int8: a data set's name or file.")] = None,
    split: Annotated[str | None, typer.Option(help="Of those, to score on; all rows by default.")] = None,
    calibration_split: Annotated[
        str | None, typer.Option(help="Of those, to calibrate on; by default the one to score on.")
    ] = None,
    root: Annotated[str | None, typer.Option(help="Where they lie.")] = None,
    split_key: Annotated[str, typer.Option(help="The row key that names the split.")] = "split",
    photos: Annotated[int, typer.Option(min=1, help="To calibrate on, at most.")] = 64,
    phrases: Annotated[int, typer.Option(min=1, help="To score on other photos, at most.")] = 1000,
    accept_loss: Annotated[bool, typer.Option("--accept-loss", help="Write int8 even if it loses accuracy.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Export a run for ONNX Runtime or OpenVINO, after checking that it answers as the run does."""
    from epmvg.export import Photos, export_run

    if int8 != (calibrate is not None):
        raise InputError("--int8 and --calibrate go together: name photos like those the model will meet.")
    chosen = (
        None if calibrate is None else Photos(calibrate, split, root, split_key, photos, phrases, calibration_split)
    )
    errors = Console(stderr=True)
    done = export_run(
        run,
        out,
        kind=kind.value,
        photos=chosen,
        accept_loss=accept_loss,
        say=lambda line: errors.print(line, soft_wrap=True),
    )
    if as_json:
        print(json.dumps(done | {"out": str(out)}))
    else:
        console.print(f"The export is in {out}", soft_wrap=True)


@app.command()
def serve(
    run: Annotated[Path, typer.Argument(help=RUN)],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    token: Annotated[
        str | None, typer.Option(envvar="EPMVG_TOKEN", help="Bearer token to ask for; better set as a variable.")
    ] = None,
    queue: Annotated[int, typer.Option(help="Pictures in the house at once; more are told to come back.")] = 64,
    upload_mb: Annotated[int, typer.Option(help="Largest request, MB.")] = 20,
    megapixels: Annotated[int, typer.Option(help="Largest picture, million pixels.")] = 50,
    seconds: Annotated[int, typer.Option(help="Longest wait for an answer.")] = 30,
    device: Annotated[str, typer.Option(help="Where the model computes, for example cuda.")] = "cpu",
) -> None:
    """Serve a run: an HTTP API, and a page to try it on."""
    try:
        from epmvg.serve.limits import Limits
        from epmvg.serve.server import serve as run_server
    except ModuleNotFoundError as error:
        raise InputError(f"`epmvg serve` needs {error.name}: pip install 'epmvg[serve]'.") from error

    limits = Limits(queue=queue, upload=upload_mb * 10**6, pixels=megapixels * 10**6, seconds=seconds)
    run_server(run, host=host, port=port, limits=limits, token=token, device=device)


@app.command()
def bench(
    preset: Annotated[
        list[str] | None, typer.Option(help="A model's name; again for several. All of paper size by default.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few rounds.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for bench.json, tables and a plot.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure speed and memory of presets against a plain re-creation of the published computation."""
    from epmvg.bench.page import tables, write_figures
    from epmvg.bench.suite import PRESETS
    from epmvg.bench.suite import bench as measure
    from epmvg.terminal import counting

    with counting(Console(stderr=True), "Measuring") as progress:
        found = measure(preset or PRESETS, quick=quick, progress=progress)
    if out is not None:
        write_figures(found, out)
    print(json.dumps(found) if as_json else tables(found))


@teacher_app.command("train")
def teacher_train(
    captions: Annotated[Path, typer.Argument(help='JSONL rows {"image", "split", "captions": [...]}.')],
    out: Annotated[Path, typer.Option(help="The teacher's folder.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder that image paths are relative to; the file's by default.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Most epochs; the best on val is kept.")] = 10,
    side: Annotated[int, typer.Option(help="Side of the teacher's input, pixels.")] = 224,
    seed: Annotated[int, typer.Option(help="Of order and weights.")] = 0,
) -> None:
    """Train a small CLIP-style teacher from image-caption pairs."""
    from epmvg.distill.pretrain import train_teacher
    from epmvg.terminal import counting

    with counting(console, "Teacher") as progress:
        metrics = train_teacher(captions, out, images=images, epochs=epochs, side=side, seed=seed, progress=progress)
    console.print(f"The teacher is in {out}: {metrics}")


@teacher_app.command("cache")
def teacher_cache(
    recipe: Annotated[str, typer.Argument(help="A recipe that distils, or give distill=TEACHER.")],
    settings: Annotated[list[str] | None, typer.Argument(help="key=value, as for `epmvg train`.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Ask a frozen teacher beforehand all that a training will ask it."""
    from epmvg.config import Recipe
    from epmvg.terminal import counting
    from epmvg.training import cache_teacher

    with counting(Console(stderr=True), "Asking the teacher") as progress:
        built = cache_teacher(Recipe.load(recipe, *(settings or [])), progress)
    if as_json:
        print(json.dumps(built))
        return
    console.print(
        f"{built['answers']:,} answers, {built['megabytes']} MB, after {built['seconds']} s: {built['file']}",
        soft_wrap=True,
    )


@data_app.command("stats")
def data_stats(
    name: Annotated[str, typer.Argument(help="A data set's name, or a file or folder of rows.")],
    root: Annotated[str | None, typer.Option(help="Where the data lies.")] = None,
    split_key: Annotated[str, typer.Option(help="The row key that names the split.")] = "split",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Count images, phrases and boxes by split, from the annotations alone."""
    from epmvg.data.stats import count_records

    counts = count_records(name, root=root, split_key=split_key)
    if as_json:
        print(json.dumps(counts))
        return
    rows = [
        {
            "split": split or "(none)",
            "images": f"{part['images']:,}",
            "phrases": f"{part['phrases']:,}",
            "boxes": f"{part['boxes']:,}",
            "words a phrase": f"{part['words']:.1f}",
            "longest": str(part["longest"]),
            "median box": "" if part["box_share"] is None else f"{part['box_share']:.1%} of its image",
        }
        for split, part in counts["splits"].items()
    ]
    _table(name, rows)
    _say_skipped(counts["skipped"])


@data_app.command("convert")
def data_convert(
    name: Annotated[str, typer.Argument(help="A data set's name, or a file or folder of rows.")],
    to: Annotated[
        Path, typer.Option(help=".jsonl, .json (COCO), .odvg.jsonl, .parquet, .tar (shards: x-%05d.tar) or a folder.")
    ],
    kind: Annotated[str | None, typer.Option("--as", help="jsonl, coco, odvg, parquet, tar or folder.")] = None,
    split: Annotated[str | None, typer.Option(help="Only this one.")] = None,
    root: Annotated[str | None, typer.Option(help="Where the data lies.")] = None,
    split_key: Annotated[str, typer.Option(help="The row key that names the split.")] = "split",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Turn any data set into JSONL, or into another format that can hold it."""
    from epmvg.data.exchange import convert_data

    done = convert_data(name, to, kind=kind, split=split, root=root, split_key=split_key)
    if as_json:
        print(json.dumps(done))
        return
    console.print(f"{done['rows']:,} rows about {done['images']:,} images are in {to}", soft_wrap=True)
    if Path(done["root"]) not in (to, to.parent):
        console.print(f"Image paths are relative to {done['root']}: read it with --root {done['root']}", soft_wrap=True)
    _say_skipped(done["skipped"])


@data_app.command("check")
def data_check(
    name: Annotated[str, typer.Argument(help="A data set's name, or a file or folder of rows.")],
    root: Annotated[str | None, typer.Option(help="Where the data lies.")] = None,
    split_key: Annotated[
        str | None, typer.Option(help="The row key that names the split; the set's own by default.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Text file of image names, ids or paths that evaluation must not hold.")
    ] = None,
    length: Annotated[int, typer.Option(help="Word pieces a model reads.")] = 20,
    html: Annotated[Path | None, typer.Option(help="Write a page with pictures of what was found.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what is missing, broken, duplicated or leaked in a data set; exit status 1 if anything is."""
    from epmvg.doctor import check, write_page
    from epmvg.terminal import counting

    with counting(Console(stderr=True), "Examining") as progress:
        diagnosis = check(name, root=root, split_key=split_key, against=against, longest=length, progress=progress)
    if html is not None:
        write_page(diagnosis, html)
    if as_json:
        print(json.dumps(diagnosis.as_dict()))
    else:
        _say_diagnosis(diagnosis)
    raise typer.Exit(0 if diagnosis.clean else 1)


def _say_diagnosis(diagnosis: Diagnosis) -> None:
    seen = f"{diagnosis.rows:,} rows about {diagnosis.images:,} images, {diagnosis.seconds:.0f} s"
    if diagnosis.clean:
        console.print(f"{diagnosis.data}: nothing found in {seen}", soft_wrap=True)
    else:
        _table(f"{diagnosis.data}: {seen}", diagnosis.table())
    if diagnosis.note:
        console.print(diagnosis.note, soft_wrap=True)


def _is_first() -> bool:
    """Say whether this is the process that speaks, of those a launcher started together."""
    return os.environ.get("RANK", "0") == "0"


def _say_skipped(skipped: dict[str, int]) -> None:
    for reason, count in skipped.items():
        console.print(f"{count:,} row{'s' * (count > 1)} skipped: {reason}", soft_wrap=True)


def _table(title: str, rows: list[dict[str, str]]) -> None:
    """Print rows that share their keys; never cut a value when piped."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, name in enumerate(rows[0] if rows else []):
        table.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    console.print(table, soft_wrap=not console.is_terminal)

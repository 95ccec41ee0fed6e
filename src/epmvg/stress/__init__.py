"""How a run bears what people and cameras do to phrases and pictures: a table, a page with the worst, every row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from epmvg.data.absent import absent_records
from epmvg.evaluation import (
    PROTOCOL,
    Row,
    make_results_folder,
    of_some_images,
    results_folder,
    rows_to_ask,
    short_name,
    stem_of,
    write_json,
    write_rows,
)
from epmvg.predict import Predictor
from epmvg.reporting.template import write
from epmvg.stress.ask import ABSENT, CLEAN, ask
from epmvg.stress.figures import absent_figures, clean_figures, stress_figures
from epmvg.stress.page import render
from epmvg.stress.phrases import PHRASE_STRESSES
from epmvg.stress.pictures import PICTURE_STRESSES
from epmvg.types import InputError, Progress, Record

LIMIT = 1000  # phrases: minutes on a CPU, intervals of a few points


def stress_test(
    run: Path | str,
    *,
    data: str | None = None,
    split: str | None = None,
    root: str | None = None,
    split_key: str | None = None,
    limit: int = LIMIT,
    absent: float = 0.25,
    seed: int = 0,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a run on phrases and pictures made harder, beside the same ones as they are.

    Leaves `stress-<data>-<split>.json`, `.html` (with pictures of the worst) and `.jsonl` (every answer) in its folder.

    Args:
        run: a folder that training wrote.
        data, split, root, split_key: as for `evaluate`.
        limit: most phrases, of images drawn at random.
        absent: so many phrases asked of another image, a phrase at most; 0 asks none.
        seed: of the images and of everything that a stress draws.
        device: where to compute (`hardware.select_device`).
        progress: called with (images done, all of them).

    Returns:
        data, split, protocol, seed, `skipped` (why images were left out), `clean` (n, images, acc50), `stresses` (a row
        each: docs/robustness.md), `absent`, and `page`, the name of the HTML file.

    Raises:
        InputError: the run, the data or a picture cannot be read, or `limit` is below 1.
    """
    if limit < 1:
        raise InputError(f"limit={limit} leaves no phrase to ask: give 1 or more.")
    settings, split, every = rows_to_ask(run, data, split, root, split_key)
    results_folder(run)  # whether it can be had is said before an hour's work
    records = of_some_images(every, limit, seed)
    predictor = Predictor(run, device=device)
    skipped: list[str] = []
    rows = _ask_all(predictor, records, absent_records(records, absent, seed=seed), seed, progress, skipped)
    if CLEAN not in rows:
        raise InputError(f"None of the images can be opened; the first: {skipped[0]}")
    clean = rows[CLEAN]
    stem = f"stress-{stem_of(run, settings, split)}"
    result: dict[str, Any] = {
        "page": f"{stem}.html",
        "data": short_name(settings.name),
        "split": split or "all",
        "protocol": PROTOCOL,
        "seed": seed,
        "skipped": skipped,
        "clean": clean_figures(clean),
        "stresses": [
            stress_figures(stress, kind, rows.get(stress.name, []), clean)
            for kind, stresses in (("phrase", PHRASE_STRESSES), ("picture", PICTURE_STRESSES))
            for stress in stresses
        ],
        "absent": absent_figures(clean, rows.get(ABSENT, []), predictor.backend.calibration),
    }
    folder = make_results_folder(run)
    write_rows(folder / f"{stem}.jsonl", [row for part in rows.values() for row in part])
    write_json(folder / f"{stem}.json", result)
    write(render(Path(run).resolve().name, result, rows), folder / result["page"])
    return result


def _ask_all(
    predictor: Predictor,
    records: list[Record],
    absent: list[Record],
    seed: int,
    progress: Progress | None,
    skipped: list[str],
) -> dict[str, list[Row]]:
    """Ask everything of every photo -> rows by the name of the stress; `skipped` gets why images are unreadable."""
    asked: dict[Path, tuple[list[Record], list[Record]]] = {record.image: ([], []) for record in records}
    for kind, some in enumerate((records, absent)):
        for record in some:
            asked[record.image][kind].append(record)
    rows: dict[str, list[Row]] = {}
    for done, (own, foreign) in enumerate(asked.values(), 1):
        try:
            for row in ask(predictor, own, foreign, seed):
                rows.setdefault(row["stress"], []).append(row)
        except InputError as error:
            skipped.append(str(error))
        if progress:
            progress(done, len(asked))
    return rows

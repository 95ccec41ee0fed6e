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
        progress: called with (images done, all of them).

    Returns:
        data, split, protocol, seed, `clean` (n, images, acc50), `stresses` (a row each: docs/robustness.md) and
        `absent`.

    Raises:
        InputError: the run, the data or a picture cannot be read, or `limit` is below 1.
    """
    if limit < 1:
        raise InputError(f"limit={limit} leaves no phrase to ask: give 1 or more.")
    settings, split, every = rows_to_ask(run, data, split, root, split_key)
    results_folder(run)  # whether it can be had is said before an hour's work
    records = of_some_images(every, limit, seed)
    predictor = Predictor(run)
    rows = _ask_all(predictor, records, absent_records(records, absent, seed=seed), seed, progress)
    clean = rows[CLEAN]
    result = {
        "data": short_name(settings.name),
        "split": split or "all",
        "protocol": PROTOCOL,
        "seed": seed,
        "clean": clean_figures(clean),
        "stresses": [
            stress_figures(stress, kind, rows.get(stress.name, []), clean)
            for kind, stresses in (("phrase", PHRASE_STRESSES), ("picture", PICTURE_STRESSES))
            for stress in stresses
        ],
        "absent": absent_figures(clean, rows.get(ABSENT, []), predictor.backend.calibration),
    }
    stem = make_results_folder(run) / f"stress-{result['data']}-{result['split']}"
    write_rows(stem.with_name(stem.name + ".jsonl"), [row for part in rows.values() for row in part])
    write_json(stem.with_name(stem.name + ".json"), result)
    write(render(Path(run).resolve().name, result, rows), stem.with_name(stem.name + ".html"))
    return result


def _ask_all(
    predictor: Predictor, records: list[Record], absent: list[Record], seed: int, progress: Progress | None
) -> dict[str, list[Row]]:
    """Ask everything of every photo -> rows by the name of the stress."""
    asked: dict[Path, tuple[list[Record], list[Record]]] = {record.image: ([], []) for record in records}
    for kind, some in enumerate((records, absent)):
        for record in some:
            asked[record.image][kind].append(record)
    rows: dict[str, list[Row]] = {}
    for done, (own, foreign) in enumerate(asked.values(), 1):
        for row in ask(predictor, own, foreign, seed):
            rows.setdefault(row["stress"], []).append(row)
        if progress:
            progress(done, len(asked))
    return rows

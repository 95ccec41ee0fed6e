"""Scores: Acc@0.5 and its companions, one row of predictions a phrase, every row exactly once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from epmvg.boxes import paired_iou, to_xyxy
from epmvg.config import Recipe
from epmvg.data.catalog import open_records
from epmvg.data.loader import GroundingLoader
from epmvg.models.factory import load
from epmvg.models.grounder import Grounder
from epmvg.models.memory import TextMemory
from epmvg.types import Batch, InputError, Output, Progress, Record

PROTOCOL = "IoU >= 0.5 in pixels of the original image, target not clipped, prediction clipped to the image"


@dataclass(frozen=True, slots=True)
class Scores:
    """Figures over n phrases; shares in 0..1."""

    n: int
    acc50: float
    acc25: float
    acc75: float
    miou: float

    @classmethod
    def of(cls, iou: Tensor) -> Scores:
        """Score IoUs [n]."""
        share = {bound: (iou >= bound).double().mean().item() for bound in (0.25, 0.5, 0.75)}
        return cls(len(iou), share[0.5], share[0.25], share[0.75], iou.double().mean().item())


@torch.no_grad()
def predict_rows(
    model: Grounder,
    batches: Iterable[Batch],
    *,
    autocast: bool = False,
    progress: Progress | None = None,
    total: int = 0,
) -> list[dict[str, Any]]:
    """Answer every phrase of some batches and return a row of predictions for each."""
    model.eval()
    device = next(model.parameters()).device
    memory = TextMemory(model.linguistic) if model.linguistic.frozen else None
    rows: list[dict[str, Any]] = []
    for batch in (each.to(device) for each in batches):
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            states = memory(batch.tokens, batch.token_pad) if memory else None
            output = model(*batch.inputs, features=batch.stored.get("maps"), states=states)
        rows += _rows(output, batch)
        if progress:
            progress(len(rows), total)
    return rows


def _rows(output: Output, batch: Batch) -> list[dict[str, Any]]:
    boxes, scores = output.box.float().cpu(), box_scores(output).cpu().tolist()
    rows = []
    for i, record in enumerate(batch.records):
        box = batch.letterbox[int(batch.owner[i])].to_source(boxes[i].double())
        target = torch.tensor(record.box, dtype=torch.float64)
        rows.append(
            {
                "image": str(record.image),
                "phrase": record.phrase,
                "box": [round(value, 3) for value in box.tolist()],
                "target": list(record.box),
                "iou": paired_iou(box, target).item(),
                "score": round(scores[i], 4),
                "id": record.id,
            }
            | {
                key: record.extra[key]
                for key in ("kind", "types", "dataset", "split", "category")
                if key in record.extra
            }
        )
    return rows


def box_scores(output: Output) -> Tensor:
    """Share of the where-map inside each predicted box, [P] in 0..1; 1 for a model without a map."""
    if output.where is None or output.grid is None:
        return torch.ones(output.box.shape[0])
    rows, columns = output.grid
    share = output.where.float().softmax(-1).unflatten(1, (rows, columns))  # [P, H, W]
    x0, y0, x1, y1 = (edge[:, None] for edge in to_xyxy(output.box.float()).unbind(-1))
    left = torch.arange(columns, device=share.device) / columns
    top = torch.arange(rows, device=share.device) / rows
    across = ((x1 - left).clamp(max=1 / columns) - (x0 - left).clamp(min=0)).clamp(min=0) * columns  # [P, W], 0..1
    down = ((y1 - top).clamp(max=1 / rows) - (y0 - top).clamp(min=0)).clamp(min=0) * rows  # [P, H], 0..1
    return torch.einsum("phw,ph,pw->p", share, down, across).clamp(0, 1)


def evaluate(
    run: Path | str,
    *,
    data: str | None = None,
    split: str | None = None,
    root: str | None = None,
    split_key: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a run on a split and leave `predictions-<data>-<split>.jsonl` and `evaluation-...json` in its folder.

    Args:
        run: a folder that training wrote.
        data: a data set's name or JSONL file; the run's own by default.
        split: of that data; the run's validation split by default.
        root: where the data lies; the run's own by default.
        split_key: the row key that names the split; the run's own by default.

    Returns:
        data, split, protocol, n, acc50, acc25, acc75, miou, and `parts` by data set where rows name several.

    Raises:
        InputError: the run, the data or a picture cannot be read.
    """
    run = Path(run)
    model = load(run)
    settings = Recipe.load(run / "config.yaml").data
    name = data or settings.name
    split = split or (settings.val if data is None else None)
    records = open_records(
        name,
        split=split,
        root=root or (settings.root if data in (None, settings.name) else None),
        split_key=split_key or settings.split_key,
    )
    loader = evaluation_loader(model, records, images=settings.images)
    rows = predict_rows(model, loader.batches(0), progress=progress, total=len(records))
    if len(rows) != len(records):
        raise InputError(f"{name} has {len(records)} rows but {len(rows)} were answered.")
    stem = f"{Path(name).stem}-{split or 'all'}"
    write_rows(run / f"predictions-{stem}.jsonl", rows)
    result = {"data": Path(name).stem, "split": split or "all", "protocol": PROTOCOL} | asdict(summarise(rows))
    parts = _parts(rows)
    if parts:
        result["parts"] = parts
    write_json(run / f"evaluation-{stem}.json", result)
    return result


def evaluation_loader(
    model: Grounder, records: Sequence[Record], *, images: int = 16, stored: dict[str, Tensor] | None = None
) -> GroundingLoader:
    """Make the loader of an evaluation: evaluation views, rows in order, nothing left out."""
    return GroundingLoader(records, model.tokenize, canvas=model.canvas, images=images, phrases=16, stored=stored)


def summarise(rows: Sequence[dict[str, Any]]) -> Scores:
    """Score rows of predictions."""
    return Scores.of(torch.tensor([row["iou"] for row in rows], dtype=torch.float64))


def _parts(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Scores by the rows' own data set and split, or by their kind, where they name several."""
    named: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        name = f"{row['dataset']} {row.get('split', '')}".strip() if "dataset" in row else row.get("kind", "other")
        named.setdefault(name, []).append(row)
    return {name: asdict(summarise(part)) for name, part in sorted(named.items())} if len(named) > 1 else {}


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write JSONL so that no reader ever sees half of it."""
    temporary = file.with_name(file.name + ".part")
    with temporary.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    temporary.replace(file)


def write_json(file: Path, value: Any) -> None:
    """Write JSON so that no reader ever sees half of it."""
    temporary = file.with_name(file.name + ".part")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(file)

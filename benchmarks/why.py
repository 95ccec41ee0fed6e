"""Why distillation helps or does not: gradients, distances and linear probes of runs on drawn scenes.

OMP_WAIT_POLICY=passive python benchmarks/why.py PLAIN DISTILLED --out why.json [--steps 400] [--every 20] [--fit 4000]

Both are run folders of `epmvg reproduce strength`. Written are
`gradients`: cosine of the gradient of each distillation term with that of the box terms, and the ratio of their norms,
    along a training by the recipe of DISTILLED (of its first steps, where --steps is given), by part of the student;
`distances`: mean cosine of [VLS] and [CLS] with the pooled [DIE] and [DTE] on test, of both runs;
`probes`: accuracy on test of logistic regressions from one vector to the name or the color of the target, fitted on
    training phrases: [VLS] and [CLS] of both runs, [DIE] and [DTE] whole and as eq. 5 and 6 pool them. [DIE] sees no
    phrase, so that it cannot tell which of several objects is the target.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

from epmvg.config.settings import Recipe
from epmvg.core.files import write_json
from epmvg.core.types import Sample
from epmvg.data.loader import GroundingLoader
from epmvg.data.readers.files import cache_folder
from epmvg.data.registry import open_samples
from epmvg.data.synthetic.scenes import Scene, draw_scene
from epmvg.distill.losses import Losses
from epmvg.distill.target_cache import CachedTeacher
from epmvg.distill.targets import DistillationTargets
from epmvg.distill.teacher import ClipTeacher
from epmvg.models.factory import load
from epmvg.models.grounder import Grounder
from epmvg.training.processes import join_processes
from epmvg.training.setup import prepare_run

TERMS = ("image", "text", "dense")
PARTS = ("visual_encoder", "text_encoder", "fusion")


def gradient_cosines(recipe: Recipe, folder: Path, *, steps: int | None, every: int) -> list[dict[str, Any]]:
    """Train by a recipe without validation, and compare gradients every few steps."""
    run = prepare_run(recipe, folder, join_processes("auto"), lambda row: None)
    rows: list[dict[str, Any]] = []
    run.model.train()
    for micro_batches in run.steps():
        for batch, fractions in micro_batches:
            with run.autocast():
                output = run.model(*batch.inputs, **run.frozen_inputs(batch))
                targets = run.targets(batch)
            losses = run.criterion(output, batch.boxes, targets, batch.weights)
            if run.state.step % every == 0:
                rows.append({"step": run.state.step} | compare_gradients(run.model, losses))
            losses.scaled(*fractions).backward()
        run.clip_gradients()
        run.optimizer.step()
        run.scheduler.step()
        run.optimizer.zero_grad(set_to_none=True)
        run.state.step += 1
        if run.state.step == steps:
            break
    return rows


def compare_gradients(model: Grounder, losses: Losses) -> dict[str, dict[str, dict[str, float]]]:
    """Return by distillation term and part of the student the cosine with the other terms' gradient, and norm ratio."""
    others = torch.stack([loss for name, loss in losses.terms.items() if name not in TERMS]).sum()
    parts = {"all": list(model.parameters())}
    parts |= {name: list(getattr(model, name).parameters()) for name in PARTS}
    trained = {name: [each for each in parameters if each.requires_grad] for name, parameters in parts.items()}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for term in (name for name in TERMS if name in losses.terms):
        found[term] = {}
        for part, parameters in trained.items():
            if parameters:
                ours, theirs = (_gradient(loss, parameters) for loss in (losses.terms[term], others))
                cosine = F.cosine_similarity(ours, theirs, dim=0).item()
                found[term][part] = {"cosine": cosine, "ratio": (ours.norm() / theirs.norm().clamp(min=1e-12)).item()}
    return found


def _gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    grads = torch.autograd.grad(loss, list(parameters), retain_graph=True, allow_unused=True)
    pairs = zip(parameters, grads, strict=True)
    return torch.cat([torch.zeros(each.numel()) if grad is None else grad.flatten() for each, grad in pairs])


@torch.no_grad()
def student_vectors(model: Grounder, samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Return [VLS] and [CLS], [P, D] each."""
    outputs = [model(*batch.inputs) for batch in _batches(model, samples)]
    return {"VLS": torch.cat([each.visual for each in outputs]), "CLS": torch.cat([each.text for each in outputs])}


@torch.no_grad()
def teacher_vectors(teacher: ClipTeacher, model: Grounder, samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Return [DIE] of each phrase's image and [DTE], [P, E] each; `model` is used for its batches only."""
    targets = DistillationTargets(CachedTeacher(teacher, cache_folder() / "teachers"), from_files=True)
    image, text = [], []
    for batch in _batches(model, samples):
        found = targets(batch)
        assert found.image is not None and found.text is not None  # both were requested
        image.append(found.image[batch.image_index])
        text.append(found.text)
    return {"DIE": torch.cat(image), "DTE": torch.cat(text)}


def _batches(model: Grounder, samples: Sequence[Sample]) -> Any:
    return GroundingLoader(samples, model.tokenize, image_size=model.image_size, batch_size=64).batches(0)


def pooled(vectors: Tensor, width: int) -> Tensor:
    """Pool [P, E] to [P, width] as the loss does (eq. 5, 6)."""
    return F.adaptive_avg_pool1d(vectors, width)


def labels(samples: Sequence[Sample], root: Path) -> dict[str, list[str]]:
    """Return the name and the color ("" where it has none) of each sample's target, from the scene drawn again."""
    settings = json.loads((root / "scenes.json").read_text(encoding="utf-8"))
    scenes: dict[tuple[str, int], Scene] = {}
    found: dict[str, list[str]] = {"name": [], "color": []}
    for sample in samples:
        split, number, phrase = sample.id.split("-")
        key = (split, int(number))
        if key not in scenes:
            scenes[key] = draw_scene(*key, seed=settings["seed"], side=settings["side"])
        target = scenes[key].objects[scenes[key].phrases[int(phrase)].target]
        found["name"].append(target.name)
        found["color"].append(target.color or "")
    return found


def probe(fit: Tensor, fit_labels: Sequence[str], test: Tensor, test_labels: Sequence[str]) -> float:
    """Return the accuracy of a logistic regression in percent, without rows that have no label or one never fitted."""
    (x, y), (test_x, test_y) = (
        (vectors.float().numpy(), np.array(names)) for vectors, names in ((fit, fit_labels), (test, test_labels))
    )
    kept: NDArray[np.bool_] = np.isin(test_y, y) & (test_y != "")
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200, tol=1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 200 iterations for all alike
        classifier.fit(x[y != ""], y[y != ""])
    return 100 * float(classifier.score(test_x[kept], test_y[kept]))


def probes(
    vectors: Mapping[str, tuple[Tensor, Tensor]], fit_labels: dict[str, list[str]], test_labels: dict[str, list[str]]
) -> dict[str, dict[str, float]]:
    """Return the accuracy by vector and label; vectors are of (training phrases, test phrases)."""
    return {
        name: {kind: round(probe(fit, fit_labels[kind], test, test_labels[kind]), 1) for kind in fit_labels}
        for name, (fit, test) in vectors.items()
    }


def measure(plain: Path, distilled: Path, *, fit: int) -> dict[str, Any]:
    """Return distances and probes of two runs."""
    recipe = Recipe.load(distilled / "config.yaml")
    assert recipe.distill is not None and recipe.data.root is not None
    root, test = Path(recipe.data.root), list(open_samples("scenes", split="test", root=recipe.data.root))
    train = list(open_samples("scenes", split="train", root=root))
    train = train[:: max(1, len(train) // fit)]
    runs = {name: load(folder) for name, folder in (("plain", plain), ("distilled", distilled))}
    teacher = ClipTeacher(recipe.distill.teacher, recipe.distill.pretrained)
    whole = [teacher_vectors(teacher, runs["plain"], samples) for samples in (train, test)]
    width = runs["distilled"].width
    vectors = {key: (whole[0][key], whole[1][key]) for key in ("DIE", "DTE")}
    vectors |= {f"{key} pooled": (pooled(a, width), pooled(b, width)) for key, (a, b) in vectors.items()}
    distances: dict[str, dict[str, float]] = {}
    for name, model in runs.items():
        of_train, of_test = (student_vectors(model, samples) for samples in (train, test))
        vectors |= {f"{key} {name}": (of_train[key], of_test[key]) for key in of_test}
        targets = {"VLS": pooled(whole[1]["DIE"], model.width), "CLS": pooled(whole[1]["DTE"], model.width)}
        distances[name] = {
            key: round(F.cosine_similarity(of_test[key], target, dim=-1).mean().item(), 3)
            for key, target in targets.items()
        }
    return {"distances": distances, "probes": probes(vectors, labels(train, root), labels(test, root))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plain", type=Path)
    parser.add_argument("distilled", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="of the training whose gradients are compared; all by default")
    parser.add_argument("--every", type=int, default=20, help="steps between two comparisons")
    parser.add_argument("--fit", type=int, default=4000, help="training phrases that probes are fitted on")
    arguments = parser.parse_args()
    result = measure(arguments.plain, arguments.distilled, fit=arguments.fit)
    for name in ("distances", "probes"):
        print(name, json.dumps(result[name], indent=1))
    recipe = Recipe.load(arguments.distilled / "config.yaml")
    result["gradients"] = gradient_cosines(recipe, arguments.out.parent, steps=arguments.steps, every=arguments.every)
    write_json(arguments.out, result)
    for row in result["gradients"]:
        terms = {name: row[name]["all"] for name in TERMS if name in row}
        print(row["step"], *(f"{name} {each['cosine']:+.3f} (x{each['ratio']:.2f})" for name, each in terms.items()))


if __name__ == "__main__":
    main()

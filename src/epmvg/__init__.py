"""Visual grounding: an image and a phrase go in, the box of that thing comes out.

The public names are loaded when first used, so that `import epmvg` and the command line start at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epmvg.calibration import calibrate
    from epmvg.config import Recipe
    from epmvg.data.loader import make_loader
    from epmvg.distill.losses import GroundingLoss
    from epmvg.distill.teacher import ClipTeacher
    from epmvg.evaluation import evaluate
    from epmvg.hub import from_pretrained, push_to_hub, save_pretrained
    from epmvg.models.factory import create_model, load, save
    from epmvg.models.presets import list_models
    from epmvg.predict import Predictor
    from epmvg.reporting import report
    from epmvg.results import Predictions, to_coco, to_label_studio
    from epmvg.scoring import score
    from epmvg.training import train
    from epmvg.types import Batch, Embeddings, InputError, Output, Prediction, Record

__all__ = [
    "Batch",
    "ClipTeacher",
    "Embeddings",
    "GroundingLoss",
    "InputError",
    "Output",
    "Prediction",
    "Predictions",
    "Predictor",
    "Recipe",
    "Record",
    "calibrate",
    "create_model",
    "evaluate",
    "from_pretrained",
    "list_models",
    "load",
    "make_loader",
    "push_to_hub",
    "report",
    "save",
    "save_pretrained",
    "score",
    "to_coco",
    "to_label_studio",
    "train",
]

__version__ = "0.1.0"

_HOME = {
    "Batch": "types",
    "ClipTeacher": "distill.teacher",
    "Embeddings": "types",
    "GroundingLoss": "distill.losses",
    "InputError": "types",
    "Output": "types",
    "Prediction": "types",
    "Predictions": "results",
    "Predictor": "predict",
    "Recipe": "config",
    "Record": "types",
    "calibrate": "calibration",
    "create_model": "models.factory",
    "evaluate": "evaluation",
    "from_pretrained": "hub",
    "list_models": "models.presets",
    "load": "models.factory",
    "make_loader": "data.loader",
    "push_to_hub": "hub",
    "report": "reporting",
    "save": "models.factory",
    "save_pretrained": "hub",
    "score": "scoring",
    "to_coco": "results",
    "to_label_studio": "results",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'epmvg' has no attribute {name!r}")
    return getattr(import_module(f"epmvg.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

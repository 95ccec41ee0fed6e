"""Visual grounding: an image and a phrase go in, the box of that object comes out.

The public names are loaded when first used, so that `import epmvg` and the command line start at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from epmvg.core.extras import optional_imports
from epmvg.core.version import __version__ as __version__

if TYPE_CHECKING:
    from epmvg.config.settings import Recipe
    from epmvg.core.types import Batch, GroundingOutput, InputError, Prediction, Sample, TeacherEmbeddings
    from epmvg.data.loader import make_loader
    from epmvg.distill.losses import GroundingLoss
    from epmvg.distill.teacher import ClipTeacher
    from epmvg.evaluation.calibration import calibrate
    from epmvg.evaluation.evaluate import evaluate
    from epmvg.evaluation.external import score
    from epmvg.hub import from_pretrained, push_to_hub, save_pretrained
    from epmvg.inference.predictor import Predictor
    from epmvg.inference.results import Predictions, to_coco, to_label_studio
    from epmvg.models.factory import create_model, load, save
    from epmvg.models.presets import list_models
    from epmvg.report import write_report
    from epmvg.training import train

__all__ = [
    "Batch",
    "ClipTeacher",
    "GroundingLoss",
    "GroundingOutput",
    "InputError",
    "Prediction",
    "Predictions",
    "Predictor",
    "Recipe",
    "Sample",
    "TeacherEmbeddings",
    "calibrate",
    "create_model",
    "evaluate",
    "from_pretrained",
    "list_models",
    "load",
    "make_loader",
    "push_to_hub",
    "save",
    "save_pretrained",
    "score",
    "to_coco",
    "to_label_studio",
    "train",
    "write_report",
]


_HOME = {
    "Batch": "core.types",
    "ClipTeacher": "distill.teacher",
    "TeacherEmbeddings": "core.types",
    "GroundingLoss": "distill.losses",
    "InputError": "core.types",
    "GroundingOutput": "core.types",
    "Prediction": "core.types",
    "Predictions": "inference.results",
    "Predictor": "inference.predictor",
    "Recipe": "config.settings",
    "Sample": "core.types",
    "calibrate": "evaluation.calibration",
    "create_model": "models.factory",
    "evaluate": "evaluation.evaluate",
    "from_pretrained": "hub",
    "list_models": "models.presets",
    "load": "models.factory",
    "make_loader": "data.loader",
    "push_to_hub": "hub",
    "save": "models.factory",
    "save_pretrained": "hub",
    "score": "evaluation.external",
    "to_coco": "inference.results",
    "to_label_studio": "inference.results",
    "train": "training",
    "write_report": "report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'epmvg' has no attribute {name!r}")
    with optional_imports(f"epmvg.{name}"):
        return getattr(import_module(f"epmvg.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

"""Optional dependencies: the extra of this package that installs a missing one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from epmvg.core.types import InputError

EXTRAS = {
    "train": "accelerate jinja2 matplotlib onnx onnxscript open_clip psutil safetensors scipy simplemma sklearn timm "
    "torch torchvision transformers",
    "serve": "fastapi h11 multipart prometheus_client python_multipart starlette uvicorn",
    "openvino": "openvino",
    "parquet": "pyarrow",
    "supervision": "supervision",
}
"""The modules that each extra installs."""


class MissingExtraError(InputError, ImportError):
    """An optional dependency is not installed; the message names the extra to install."""


@contextmanager
def optional_imports(purpose: str = "This") -> Iterator[None]:
    """Raise `MissingExtraError` in place of a ModuleNotFoundError of an optional dependency.

    Args:
        purpose: subject of the message, what needs the dependency.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        extra = next((extra for extra, modules in EXTRAS.items() if module in modules.split()), None)
        if extra is None:
            raise
        raise MissingExtraError(f"{purpose} needs {module}. Run pip install 'epmvg[{extra}]'.") from error

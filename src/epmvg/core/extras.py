"""Optional dependencies: the extra of this package that installs a missing one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from epmvg.core.types import InputError

EXTRAS = {
    "train": "accelerate jinja2 matplotlib onnx onnxscript open_clip psutil safetensors scipy simplemma sklearn timm "
    "torch torchvision transformers",
    "zoo": "safetensors timm torch torchvision transformers",
    "serve": "fastapi h11 multipart prometheus_client python_multipart starlette uvicorn",
    "openvino": "openvino",
    "parquet": "pyarrow",
    "captions": "textblob",
    "supervision": "supervision",
}
"""The modules that each extra installs."""


class MissingExtraError(InputError, ImportError):
    """An optional dependency is not installed; the message names the extra to install."""


@contextmanager
def optional_imports(purpose: str = "This", extra: str | None = None) -> Iterator[None]:
    """Raise `MissingExtraError` in place of a ModuleNotFoundError of an optional dependency.

    Args:
        purpose: subject of the message, what needs the dependency.
        extra: the extra to name, if it installs the dependency; by default the first that does.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        names = [name for name in (extra, *EXTRAS) if name and module in EXTRAS[name].split()]
        if not names:
            raise
        raise MissingExtraError(f"{purpose} needs {module}. Run pip install 'epmvg[{names[0]}]'.") from error

"""Settings by dotted key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(settings: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Turn {"train": {"lr": 1}} into {"train.lr": 1}; empty groups are left out."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def as_override(key: str, value: Any) -> str:
    """Return key=value as a command line takes it."""
    return f"{key}={override_text(value)}"


def override_text(value: Any) -> str:
    """Return a value as a command line takes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

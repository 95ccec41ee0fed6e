"""Fills a page that is one file: escaped by default, in the house's style, with nothing to fetch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined

from epmvg.core.files import write_text

MINUS = "\N{MINUS SIGN}"


def fill(template: str, filters: Mapping[str, Callable[..., str]] | None = None, **values: Any) -> str:
    """Return a template as HTML, every value escaped; it extends `frame.html`, in the style that the pages share."""
    own = resources.files("epmvg.report")
    frame, style = ((own / name).read_text(encoding="utf-8") for name in ("frame.html", "style.css"))
    environment = Environment(
        loader=DictLoader({"frame.html": frame}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "percent": percent, "points": points, "px": _px, **(filters or {})}
    return environment.from_string(template).render(style=style, **values).strip() + "\n"


def write(html: str, out: Path) -> None:
    """Write a page whole or not at all; an existing one is replaced."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, html)


def count(number: float) -> str:
    """1,234,567"""
    return f"{number:,.0f}"


def percent(share: float) -> str:
    """12.3%"""
    return f"{100 * share:.1f}%"


def points(difference: float) -> str:
    """+1.2, or 0.0 without a sign."""
    text = f"{abs(difference):.1f}"
    return text if text == "0.0" else f"{MINUS if difference < 0 else '+'}{text}"


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")

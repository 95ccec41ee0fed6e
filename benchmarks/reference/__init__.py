"""Speed and memory of every preset and runtime against a plain re-creation of the published computation."""

from __future__ import annotations

PHRASES = [
    "the woman in the tan jacket",
    "a small dog on the left",
    "the man with the red hat",
    "a blue car behind the tree",
    "the second bike from right",
    "an old wooden table",
    "the child holding a ball",
]
"""As many as RefCOCO has an image."""

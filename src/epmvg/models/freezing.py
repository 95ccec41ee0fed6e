"""Parts of a network that never train, by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from torch import nn

from epmvg.core.types import InputError


def freeze(network: nn.Module, frozen: Sequence[str] | str, setting: str) -> bool:
    """Stop parts of a network from training, in place.

    Args:
        network: the backbone or the text encoder.
        frozen: names of its modules or parameters, for example "layer1" or "encoder.layer.0"; a text is one name, and
            "all" is the whole network.
        setting: what messages call `frozen`.

    Returns:
        Whether nothing of the network trains any more.

    Raises:
        InputError: the network has no part of a name.
    """
    names = [frozen] if isinstance(frozen, str) else list(frozen)
    parts = [name for name, _ in network.named_modules() if name] + [name for name, _ in network.named_parameters()]
    for name in names:
        if name != "all" and name not in parts:
            close = difflib.get_close_matches(name, parts, n=3) or [part for part, _ in network.named_children()]
            raise InputError(
                f"{setting} names {name!r}, which is no part of the network: give all, {', '.join(close)}."
            )
    everything = "all" in names
    for name, parameter in network.named_parameters():
        if everything or f"{name}.".startswith(tuple(f"{part}." for part in names)):
            parameter.requires_grad_(False)
    return everything

"""Modules and parameters that never train, by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from torch import nn

from epmvg.core.types import InputError


def freeze(network: nn.Module, frozen: Sequence[str], setting: str) -> bool:
    """Stop parts of a network from training, in place.

    Args:
        network: the backbone or the text encoder.
        frozen: names of its modules or parameters, for example "layer1" or "encoder.layer.0"; "all" is all of them.
        setting: the key that messages name.

    Returns:
        Whether the whole network is frozen.

    Raises:
        InputError: the network has no module or parameter of a name.
    """
    known = [name for name, _ in network.named_modules() if name] + [name for name, _ in network.named_parameters()]
    for name in frozen:
        if name != "all" and name not in known:
            close = difflib.get_close_matches(name, known, n=3) or [child for child, _ in network.named_children()]
            raise InputError(
                f"{setting} names {name!r}, which is not a part of the network. Use all, {', '.join(close)}."
            )
    prefixes = tuple(f"{name}." for name in frozen)
    for name, parameter in network.named_parameters():
        if "all" in frozen or f"{name}.".startswith(prefixes):
            parameter.requires_grad_(False)
    return "all" in frozen

"""Names of a model's tensors, and the names that a signature can carry.

Contract names are the source's own. A TensorFlow signature takes Python identifiers for inputs only; whatever cannot
stand in one gets a plain name there, and the contract keeps both.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence

_OUTPUT = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def unique(names: Sequence[str]) -> list[str]:
    """Gives the names with `_1`, `_2`, … added where one is taken already."""
    taken: set[str] = set()
    result = []
    for name in names:
        candidate, count = name, 0
        while candidate in taken:
            count += 1
            candidate = f"{name}_{count}"
        taken.add(candidate)
        result.append(candidate)
    return result


def signature_inputs(names: Sequence[str]) -> dict[str, str]:
    """Maps contract names of inputs to names that a tf.function can carry as arguments."""
    fits = all(name.isascii() and name.isidentifier() and not keyword.iskeyword(name) for name in names)
    return {name: name if fits else f"input_{index}" for index, name in enumerate(names)}


def signature_outputs(names: Sequence[str]) -> dict[str, str]:
    """Maps contract names of outputs to names that a signature can carry as keys."""
    fits = all(_OUTPUT.fullmatch(name) for name in names)
    return {name: name if fits else f"output_{index}" for index, name in enumerate(names)}

"""Numbers as people write them: `1/255`, and lists of them, one a channel."""

from __future__ import annotations

import math

from squeezeflow.cli.exits import UsageError


def number_list(option: str, text: str) -> tuple[float, ...]:
    """Gives the numbers of an option: fractions and decimals, separated by commas; empty text gives none."""
    return tuple(_number(option, item.strip()) for item in text.split(",")) if text.strip() else ()


def _number(option: str, text: str) -> float:
    above, slash, below = text.partition("/")
    try:
        value = float(above) / float(below) if slash else float(text)
        if not math.isfinite(value):
            raise ValueError(text)
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError(
            "INVALID_PARAMETER", f"{option}: {text!r} is not a number: write 0.5, 1/255, or a list like 1/255,1/128"
        ) from error
    return value

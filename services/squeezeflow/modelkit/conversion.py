"""Runs the TFLite converter, and says what it could not convert in our words.

A model that needs TensorFlow operators (the Flex delegate) is refused: such a file runs in no interpreter that the
wheels contain.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from pathlib import Path
from typing import Any

from squeezeflow.core.errors import SqueezeflowError

# What the converter's messages call an operator that the target has no kernel for.
_OPS = (
    re.compile(r"^\s*(?:TF Select|Custom) ops:\s*([\w, .]+)$", re.MULTILINE),
    re.compile(r"'tf\.(\w+)' op (?:is neither|requires)"),
    re.compile(r"error: 'tfl?\.(\w+)' op "),
    re.compile(r"not yet supported for op: '(\w+)'"),
    re.compile(r"Op type not registered '(\w+)'"),
)


def convert(converter: Any, target: Path) -> None:
    """Converts and writes the TFLite file.

    Errors: UNSUPPORTED_OP naming the operators (metadata `ops`), also where the converter says nothing more precise.
    """
    try:
        # The converter and Keras print; the log of a step is for what went wrong.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            data = converter.convert()
    except SqueezeflowError:
        raise
    except Exception as error:
        raise refusal(str(error)) from error
    target.write_bytes(data)


def unsupported_ops(message: str) -> list[str]:
    """Gives the operators that a converter's message complains about, each once."""
    found: dict[str, None] = {}
    for pattern in _OPS:
        for match in pattern.findall(message):
            for name in match.split(","):
                found.setdefault(name.strip().rsplit(".", 1)[-1], None)
    return [name for name in found if name]


def refusal(message: str) -> SqueezeflowError:
    """Gives the typed error for a converter's message."""
    ops = unsupported_ops(message)
    first = next((line.strip() for line in message.splitlines() if line.strip()), "the converter gives no reason")
    if "ListReserve" in message and "static" in message:
        return SqueezeflowError(
            "UNSUPPORTED_OP",
            "a recurrent layer does not convert with a free batch axis (TensorListReserve): fix the batch, or unroll",
            metadata={"ops": "TensorListReserve"},
        )
    if ops:
        return SqueezeflowError(
            "UNSUPPORTED_OP",
            f"TFLite has no kernel for {', '.join(ops)}: replace the layers that use it, or cut the model before them",
            metadata={"ops": ", ".join(ops)},
        )
    return SqueezeflowError(
        "UNSUPPORTED_OP",
        f"the converter does not take the model ({first[:300]}): replace the operation it names",
        metadata={"ops": ""},
    )

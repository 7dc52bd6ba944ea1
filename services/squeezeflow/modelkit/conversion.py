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

import tensorflow as tf

from squeezeflow.core import contracts
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.litert import Runner
from squeezeflow.core.litert.interpreter import XNNPACK
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.core.tflite.compaction import compact

# What the converter's messages call an operator that the target has no kernel for.
_OPS = (
    re.compile(r"^\s*(?:TF Select|Custom) ops:\s*([\w, .]+)$", re.MULTILINE),
    re.compile(r"'tf\.(\w+)' op (?:is neither|requires)"),
    re.compile(r"error: 'tfl?\.(\w+)' op "),
    re.compile(r"not yet supported for op: '(\w+)'"),
    re.compile(r"Op type not registered '(\w+)'"),
    re.compile(r"Node number \d+ \((\w+)\) failed to (?:prepare|invoke)"),
)


_SPARSE = tf.lite.Optimize.EXPERIMENTAL_SPARSITY


def convert(converter: Any, target: Path) -> None:
    """Converts and writes the TFLite file, without what the converter adds that is no part of the model.

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
    target.write_bytes(compact(data))


def convert_sparse(converter: Any, target: Path) -> tuple[str, ...]:
    """Converts as `convert` does, pruned kernels stored sparse where that makes the file smaller; tells the outcome.

    The converter stores every kernel sparse that has enough zeros (about 0.3), also where the places of the others take
    more room than the zeros did; and XNNPACK refuses some graphs with sparse kernels. The file is dense then.

    Args:
        converter: of a float mode; integer kernels are not for it.
    Errors: as `convert`.
    """
    dense_settings = [setting for setting in converter.optimizations or [] if setting != _SPARSE]
    converter.optimizations = [*dense_settings, _SPARSE]
    convert(converter, target)
    sparse = target.read_bytes()
    count = sum(weight.tensor.sparse for weight in TfliteFile.read(target).weights)
    runs = not count or Runner(target, contracts.foreign(target)).delegate == XNNPACK
    converter.optimizations = dense_settings
    convert(converter, target)
    dense = target.stat().st_size
    if not count:
        return ("no kernel has zeros enough to be stored sparse: the file is as without sparse_encoding",)
    if not runs:
        return ("kernels stay dense: LiteRT runs this model with sparse ones only without XNNPACK",)
    if len(sparse) >= dense:
        return (f"kernels stay dense: sparse ones would make the file {len(sparse):,} bytes instead of {dense:,}",)
    target.write_bytes(sparse)
    # Published and measured alike: the raw file shrinks, the deflated one hardly, x86 has no sparse kernels.
    return (
        f"{count} kernels are stored sparse: {len(sparse):,} bytes instead of {dense:,}; the latency need not change",
    )


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
    if "ListReserve" in message:
        return SqueezeflowError(
            "UNSUPPORTED_OP",
            "a loop keeps a list of tensors whose shape is not known (TensorListReserve): give tf.TensorArray an "
            "element_shape, fix the batch, or unroll the layer",
            metadata={"ops": "TensorListReserve"},
        )
    if "16x8" in message and ops:
        return SqueezeflowError(
            "UNSUPPORTED_OP",
            f"int16x8 has no kernel for {', '.join(ops)}: use mode INT8, or replace the layers that use it",
            metadata={"ops": ", ".join(ops)},
        )
    if "Quantized dimension for tensor property" in message:
        # Seen: int16x8 with a depthwise convolution, whose scales run along another axis than those of others.
        field = "the converter gives a depthwise convolution no single scale in mode INT16X8: leave per_channel out"
        return SqueezeflowError("INVALID_PARAMETER", field, fields=[("params.per_channel", field)])
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

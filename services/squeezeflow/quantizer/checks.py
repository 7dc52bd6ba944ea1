"""What a quantized file must be, read from its bytes: integers where the mode says so, float16 weights, kernels that
LiteRT has."""

from __future__ import annotations

from pathlib import Path

from squeezeflow.core import invariants
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.v1 import step_pb2

# The converter makes them int16, LiteRT has no such kernel (seen: "only supports FLOAT32 and INT32 now").
WITHOUT_INT16 = frozenset({"SQUARED_DIFFERENCE"})
# They look at the shape of a value, or hand it on: its scale does not matter to them.
SCALE_FREE = frozenset({"SHAPE", "FILL", "RESHAPE", "RANK"})


def integers(file: TfliteFile, mode: str) -> tuple[tuple[step_pb2.Invariant, ...], tuple[str, ...]]:
    """Gives the `integer` invariant of a mode, and notes that name what stayed float; float16 has notes only.

    An operator without an int8 kernel may stay float; a file in which no weight became int8 was not quantized at all.

    Errors: INVARIANT_BROKEN where no weight became float16 in mode `float16`.
    """
    if mode == "float16":
        return (), (float16_weights(file),)
    if mode == "dynamic":
        return (invariants.dynamic_range(file),), ()
    left = invariants.float_operators(file)
    quantized = not file.weights or any(weight.tensor.dtype == "int8" for weight in file.weights)
    allowed = [name.split(" ×")[0] for name in left] if quantized else []
    kernel = "int16" if mode == "int16x8" else "int8"
    notes = (f"left float, for want of an {kernel} kernel: {', '.join(left)}",) if left else ()
    return (invariants.integer(file, mode, allowed=allowed),), notes


def float16_weights(file: TfliteFile) -> str:
    """Tells how many weights are float16 in the file. Errors: INVARIANT_BROKEN where none of the large ones is."""
    large = [weight for weight in file.weights if weight.tensor.size >= invariants.DYNAMIC_MINIMUM]
    looked_at = large or file.weights
    halved = [weight for weight in looked_at if weight.tensor.dtype == "float16"]
    if looked_at and not halved:
        raise SqueezeflowError(
            "INVARIANT_BROKEN",
            f"none of {len(looked_at)} weights is float16 in the file: the model was not quantized, use Convert",
            metadata={"float16": f"0 of {len(looked_at)}"},
        )
    size = f" of {invariants.DYNAMIC_MINIMUM} elements or more" if large else ""
    others = [f"{w.tensor.name} ({w.tensor.dtype})" for w in looked_at if w.tensor.dtype != "float16"]
    left = f"; others: {', '.join(others)}" if others else ""
    return f"{len(halved)} of {len(looked_at)} weights{size} are float16{left}"


def read_int16(path: Path) -> TfliteFile:
    """Reads an int16x8 file, and refuses by name what LiteRT would end the process for, before it runs.

    LiteRT aborts where it divides by the scale of an int16 tensor that the converter saw only zeros in.

    Errors: UNSUPPORTED_OP naming the operator.
    """
    try:
        file = TfliteFile.read(path)
    except SqueezeflowError as error:
        if "scale that is not finite" not in error.message:
            raise
        # The bias after such a tensor is divided by its scale: the file itself holds an infinity.
        raise _no_scale("a layer with a bias") from error
    for graph in file.subgraphs:
        for operator in graph.operators:
            inputs = [graph.tensors[index] for index in operator.inputs if index >= 0]
            if operator.name in WITHOUT_INT16 and any(tensor.dtype == "int16" for tensor in inputs):
                raise SqueezeflowError(
                    "UNSUPPORTED_OP",
                    f"LiteRT has no int16 kernel for {operator.name} (LayerNormalization and whatever takes a variance "
                    "use it): use mode INT8",
                    metadata={"op": operator.name},
                )
    for graph in file.subgraphs:
        for operator in graph.operators:
            inputs = [graph.tensors[index] for index in operator.inputs if index >= 0]
            if operator.name not in SCALE_FREE and any(t.dtype == "int16" and 0.0 in t.scales for t in inputs):
                raise _no_scale(operator.name)
    return file


def _no_scale(operator: str) -> SqueezeflowError:
    return SqueezeflowError(
        "UNSUPPORTED_OP",
        f"{operator} takes values that are 0 on every calibration sample, for which int16 has no scale: calibrate on "
        "other samples, remove the dead layer, or use mode INT8",
        metadata={"op": operator},
    )

"""What every weight is to become: decided from the parameters and the float file alone, before anything is quantized.

ai-edge-quantizer leaves out, without a word, whatever its recipe cannot do to an operator. So the recipe is never a
pattern that may or may not apply: each operator with a weight gets its own rule, and what cannot be had is listed with
the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.invariants import DYNAMIC_MINIMUM
from squeezeflow.core.invariants.weights import WeightTarget
from squeezeflow.core.tflite import TfliteFile, Weight
from squeezeflow.core.tflite.weights import WEIGHTS
from squeezeflow.modelkit import selection
from squeezeflow.quantizer.ai_edge_layers import Key, Layer, key
from squeezeflow.v1 import technique_pb2

Quantize = technique_pb2.Quantize
MODES = {
    Quantize.MODE_DYNAMIC: "dynamic",
    Quantize.MODE_INT8: "int8",
    Quantize.MODE_FLOAT16: "float16",
    Quantize.MODE_INT4: "int4",
}
# What weights become where no pattern says otherwise.
DEFAULTS = {"dynamic": "int8", "int8": "int8", "float16": "float16", "int4": "int4"}
PRECISIONS = {
    Quantize.PRECISION_FLOAT32: "float32",
    Quantize.PRECISION_INT8: "int8",
    Quantize.PRECISION_INT4: "int4",
}
# Operators by what the library (its default policy) and LiteRT's kernels take.
INT8_OPERATORS = frozenset(
    {"BATCH_MATMUL", "CONV_2D", "TRANSPOSE_CONV", "DEPTHWISE_CONV_2D", "EMBEDDING_LOOKUP", "FULLY_CONNECTED"}
)
STATIC_INT8_OPERATORS = INT8_OPERATORS - {"EMBEDDING_LOOKUP"}
INT4_OPERATORS = frozenset({"CONV_2D", "EMBEDDING_LOOKUP", "FULLY_CONNECTED"})
STATIC_INT4_OPERATORS = INT4_OPERATORS - {"EMBEDDING_LOOKUP"}
WEIGHT_ONLY_INT4_OPERATORS = INT4_OPERATORS | {"BATCH_MATMUL"}
BLOCK_OPERATORS = frozenset({"EMBEDDING_LOOKUP", "FULLY_CONNECTED"})
FLOAT16_OPERATORS = INT8_OPERATORS - {"BATCH_MATMUL"}


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        mode: `dynamic`, `int8`, `float16` or `int4`.
        weight_only: weights are dequantized before they are used.
        targets: one for every weight of the float file.
    """

    mode: str
    weight_only: bool
    targets: tuple[WeightTarget, ...]

    @property
    def dtypes(self) -> frozenset[str]:
        """The types that weights are to have."""
        return frozenset(target.dtype for target in self.targets)


def check(params: technique_pb2.Quantize) -> str:
    """Refuses parameters that this back end cannot make work together; gives the mode's name.

    Errors: INVALID_PARAMETER naming the field.
    """
    if params.mode not in MODES:
        name = Quantize.Mode.Name(params.mode).removeprefix("MODE_")
        raise _refused(
            "mode",
            f"ai-edge-quantizer has no mode {name}: choose {', '.join(m.upper() for m in MODES.values())}, or the "
            "converter back end with a Keras model or a SavedModel",
        )
    mode = MODES[params.mode]
    int4 = mode == "int4" or any(rule.precision == Quantize.PRECISION_INT4 for rule in params.layer_precisions)
    if params.sparse_encoding:
        raise _refused("sparse_encoding", "ai-edge-quantizer stores no sparse kernels: use the converter back end")
    if params.weight_only and mode not in ("dynamic", "int4"):
        raise _refused("weight_only", f"weight_only goes with DYNAMIC and INT4, not with {mode.upper()}: leave it out")
    if params.block_size and not int4:
        raise _refused("block_size", "blocks are for int4 weights: use mode INT4, or leave block_size out")
    if params.block_size and mode == "int8":
        raise _refused("block_size", "blocks go with float activations: use mode INT4 or DYNAMIC, or leave it out")
    if params.block_size and params.weight_only:
        # Seen: LiteRT's DEQUANTIZE reads such a weight wrongly, the outputs are noise.
        raise _refused("block_size", "LiteRT cannot dequantize blocks alone: leave out block_size or weight_only")
    if params.block_size and not params.per_channel:
        raise _refused("block_size", "blocks have scales of their own, per_channel = false asks for one: leave one out")
    return mode


def plan(params: technique_pb2.Quantize, file: TfliteFile, layers: Sequence[Layer], owners: dict[Key, str]) -> Plan:
    """Decides for every weight of a float file.

    Args:
        layers, owners: as `layers_of` gives them.

    Errors: INVALID_PARAMETER (parameters that do not go together, a pattern that names no layer with weights).
    """
    mode = check(params)
    named = {owners[key(weight)] for weight in file.weights}
    paths = [layer.path for layer in layers if layer.path in named]
    patterns = [(f"layer_precisions[{i}].pattern", rule.pattern) for i, rule in enumerate(params.layer_precisions)]
    selection.require_matches(patterns, paths)
    rules = [(rule.pattern, PRECISIONS[rule.precision]) for rule in params.layer_precisions]
    targets = []
    for weight in file.weights:
        asked = selection.setting_of(rules, owners[key(weight)], "")
        targets.append(_target(params, mode, file, weight, asked))
    return Plan(mode, params.weight_only, tuple(targets))


def _target(params: technique_pb2.Quantize, mode: str, file: TfliteFile, weight: Weight, asked: str) -> WeightTarget:
    """Decides for one weight; `asked` is what a pattern says, empty where none does."""
    if asked == "float32":
        return WeightTarget(weight, "float32", reason="by layer_precisions")
    unsuited = _unsuited(file, weight)
    if unsuited:
        return WeightTarget(weight, "float32", reason=unsuited)
    wanted = asked or DEFAULTS[mode]
    small = weight.tensor.size < DYNAMIC_MINIMUM
    if small and not asked and mode in ("dynamic", "int4"):
        return WeightTarget(weight, "float32", reason=f"it has fewer than {DYNAMIC_MINIMUM:,} elements")
    reasons = []
    for dtype in _choices(wanted):
        if weight.operator in _operators(dtype, mode, weight_only=params.weight_only):
            block, told = _block(params, weight) if dtype == "int4" else (0, "")
            # Seen: LiteRT's integer kernel takes the first scale for all channels, without an error.
            one_scale = mode == "int8" and weight.operator == "BATCH_MATMUL" and params.per_channel
            reasons += [told] if told else []
            reasons += ["BATCH_MATMUL on integers takes one scale"] if one_scale else []
            return WeightTarget(weight, dtype, params.per_channel and not one_scale, block, "; ".join(reasons))
        reasons.append(f"{weight.operator} has no {dtype} kernel")
    return WeightTarget(weight, "float32", reason="; ".join(reasons))


def _choices(wanted: str) -> tuple[str, ...]:
    return ("int4", "int8") if wanted == "int4" else (wanted,)


def _operators(dtype: str, mode: str, *, weight_only: bool) -> frozenset[str]:
    if dtype == "float16":
        return FLOAT16_OPERATORS
    if mode == "int8":
        return STATIC_INT4_OPERATORS if dtype == "int4" else STATIC_INT8_OPERATORS
    if dtype == "int4":
        return WEIGHT_ONLY_INT4_OPERATORS if weight_only else INT4_OPERATORS
    return INT8_OPERATORS


def _block(params: technique_pb2.Quantize, weight: Weight) -> tuple[int, str]:
    """Gives the block size of an int4 weight, and why it is 0 where blocks were asked for."""
    if not params.block_size:
        return 0, ""
    if weight.operator not in BLOCK_OPERATORS:
        return 0, f"{weight.operator} has no kernel for blocks"
    length = weight.tensor.stored_shape[-1]
    if length % params.block_size:
        return 0, f"its input axis of {length} is not divisible by {params.block_size}"
    return params.block_size, ""


def _unsuited(file: TfliteFile, weight: Weight) -> str:
    """Says why no precision but float32 is possible for a weight, whatever is asked; empty where one is."""
    for name, places in _uses(file, weight):
        if name == "BATCH_MATMUL" and 0 in places:
            return "a constant on the left of BATCH_MATMUL has no integer kernel"
        if name != weight.operator:
            return f"{name} uses it too"
    return ""


def _uses(file: TfliteFile, weight: Weight) -> Iterator[tuple[str, list[int]]]:
    """Yields the operators that take a weight, and at which of their inputs."""
    for operator in file.subgraphs[weight.subgraph].operators:
        places = [place for place, index in enumerate(operator.inputs) if index == weight.tensor.index]
        if places:
            yield operator.name, places


def users(file: TfliteFile, target: WeightTarget) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields, for every operator that multiplies with a weight, its name and the names of its outputs."""
    graph = file.subgraphs[target.weight.subgraph]
    for operator in graph.operators:
        if target.weight.tensor.index in operator.inputs and operator.name in WEIGHTS:
            yield operator.name, tuple(graph.tensors[index].name for index in operator.outputs)


def _refused(field: str, message: str) -> SqueezeflowError:
    return SqueezeflowError("INVALID_PARAMETER", message, fields=[(f"params.{field}", message)])

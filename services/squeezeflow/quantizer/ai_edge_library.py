"""Calls of ai-edge-quantizer: a plan as its recipe, its calibration, its errors in our words.

It works on the flatbuffer and needs no TensorFlow.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_quantizer import qtyping, quantizer, recipe_manager
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from ai_edge_quantizer.calibrator import Calibrator
from ai_edge_quantizer.utils import tfl_interpreter_utils
from ai_edge_quantizer.utils.qsv_utils import min_max_update

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.invariants.weights import WeightTarget
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.quantizer.ai_edge_plan import Plan, users

BITS = {"int4": 4, "int8": 8}
# Our names are the schema's; the library has one of its own.
OPERATORS = {"TRANSPOSE_CONV": "CONV_2D_TRANSPOSE"}
# Bodies of loops and branches run in graphs of their own, whose tensors the library cannot read while it calibrates.
CONTROL_FLOW = frozenset({"WHILE", "IF", "CALL_ONCE"})
EVERYTHING = ".*"

Sample = dict[str, np.ndarray]


def quantize(
    source: Path, file: TfliteFile, plan: Plan, samples: Sequence[Sample], target: Path, *, threads: int
) -> None:
    """Quantizes a float file as planned.

    Args:
        source, file: the float file.
        samples: by input name of its signature; for mode `int8`.
        target: where the result is written.
        threads: of the interpreter that calibrates.

    Errors: UNSUPPORTED_OP, UNSUPPORTED_INPUT (calibration without a signature).
    """
    if plan.mode == "int8" and file.signature is None:
        raise SqueezeflowError(
            "UNSUPPORTED_INPUT",
            f"{source.name} has no signature, by which calibration samples are bound: use mode DYNAMIC, or convert the "
            "model again with a current converter",
        )
    rules = recipe_manager.RecipeManager()
    for regex, operation, config, algorithm in recipe(file, plan):
        rules.add_quantization_config(regex, operation, config, algorithm)
    try:
        # It prints bars and warnings; the log of a step is for what went wrong.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), _allocated_for(samples[:1], file):
            warnings.simplefilter("ignore")
            ranges = _ranges(source, file, rules, samples, threads) if plan.mode == "int8" else None
            library = quantizer.Quantizer(str(source), rules.get_quantization_recipe())
            result = library.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    except Exception as error:
        raise refusal(str(error), file) from error
    target.write_bytes(bytes(result.quantized_model))


@contextlib.contextmanager
def _allocated_for(samples: Sequence[Sample], file: TfliteFile) -> Iterator[None]:
    """Lets the library prepare its interpreters of the float file for a sample, where there is one.

    It takes the shapes of the file otherwise, where a free axis is 1: few convolutions can be prepared for that.
    """
    create = tfl_interpreter_utils.create_tfl_interpreter

    def resized(model: Any, **options: Any) -> Any:
        interpreter = create(model, **{**options, "allocate_tensors": False})
        for name, index in file.input_names.items():
            for sample in samples:
                interpreter.resize_tensor_input(index, sample[name].shape)
        interpreter.allocate_tensors()
        return interpreter

    tfl_interpreter_utils.create_tfl_interpreter = resized
    try:
        yield
    finally:
        tfl_interpreter_utils.create_tfl_interpreter = create


def _ranges(source: Path, file: TfliteFile, rules: Any, samples: Sequence[Sample], threads: int) -> Any:
    """Gives the range of every activation over all samples.

    The library's own calibration takes a moving average of the samples' ranges, which cuts off what lies outside of it
    (seen: 7 dB in place of 30), and depends on the order of the samples.
    """
    assert file.signature is not None
    calibrator = Calibrator(source.read_bytes(), num_threads=threads, qsv_update_func=min_max_update)
    calibrator.calibrate({file.signature.key: list(samples)}, rules)
    return calibrator.get_model_qsvs()


def recipe(file: TfliteFile, plan: Plan) -> Iterator[tuple[str, Any, Any, str]]:
    """Yields rules (regex over the scopes of operators, operator, configuration, algorithm); a later one counts."""
    names = qtyping.TFLOperationName
    if plan.mode == "int8":
        yield EVERYTHING, names.ALL_SUPPORTED, _static(8, per_channel=True), AlgorithmName.MIN_MAX_UNIFORM_QUANT
        # The file takes and gives floats.
        for border in (names.INPUT, names.OUTPUT):
            yield EVERYTHING, border, None, AlgorithmName.NO_QUANTIZE
    for target in plan.targets:
        for operator, outputs in users(file, target):
            scope = "^" + re.escape("".join(f"{name};" for name in outputs)) + "$"
            name = OPERATORS.get(operator, operator)
            if name in names.__members__:
                config, algorithm = _configuration(plan, target)
                yield scope, names[name], config, algorithm


def _configuration(plan: Plan, target: WeightTarget) -> tuple[Any, str]:
    precision = qtyping.ComputePrecision
    if target.dtype == "float32":
        return None, AlgorithmName.NO_QUANTIZE
    if target.dtype == "float16":
        weight = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
        config = qtyping.OpQuantizationConfig(
            weight_tensor_config=weight, compute_precision=precision.FLOAT, explicit_dequantize=True
        )
        return config, AlgorithmName.FLOAT_CASTING
    bits = BITS[target.dtype]
    if plan.mode == "int8":
        return _static(bits, per_channel=target.per_channel), AlgorithmName.MIN_MAX_UNIFORM_QUANT
    config = qtyping.OpQuantizationConfig(
        weight_tensor_config=_weight(bits, per_channel=target.per_channel, block_size=target.block_size),
        compute_precision=precision.FLOAT if plan.weight_only else precision.INTEGER,
        explicit_dequantize=plan.weight_only,
    )
    return config, AlgorithmName.MIN_MAX_UNIFORM_QUANT


def _static(bits: int, *, per_channel: bool) -> Any:
    activation = qtyping.TensorQuantizationConfig(
        num_bits=8, symmetric=False, granularity=qtyping.QuantGranularity.TENSORWISE
    )
    return qtyping.OpQuantizationConfig(
        activation_tensor_config=activation,
        weight_tensor_config=_weight(bits, per_channel=per_channel),
        compute_precision=qtyping.ComputePrecision.INTEGER,
    )


def _weight(bits: int, *, per_channel: bool, block_size: int = 0) -> Any:
    granularity = f"BLOCKWISE_{block_size}" if block_size else "CHANNELWISE" if per_channel else "TENSORWISE"
    return qtyping.TensorQuantizationConfig(
        num_bits=bits, symmetric=True, granularity=qtyping.QuantGranularity[granularity]
    )


def refusal(message: str, file: TfliteFile) -> SqueezeflowError:
    """Gives the typed error for a message of the library."""
    loops = sorted({operator.name for operator in file.main.operators if operator.name in CONTROL_FLOW})
    if loops and "Tensor data is null" in message:
        return SqueezeflowError(
            "UNSUPPORTED_OP",
            f"ai-edge-quantizer cannot calibrate the graphs inside {', '.join(loops)}: use mode DYNAMIC, or unroll the "
            "loop",
            metadata={"op": ", ".join(loops)},
        )
    if "QSVs" in message:
        return SqueezeflowError(
            "UNSUPPORTED_OP",
            f"ai-edge-quantizer found no operator to compute in integers among "
            f"{', '.join(sorted({operator.name for operator in file.main.operators}))}: use another mode, or the "
            "converter back end",
            metadata={"op": ", ".join(sorted({operator.name for operator in file.main.operators}))},
        )
    first = next((line.strip() for line in message.splitlines() if line.strip()), "it gives no reason")
    operators = [operator for operator in file.main.operators if operator.name in message]
    named = operators or [
        operator
        for operator in file.main.operators
        if any(file.main.tensors[index].name in message for index in operator.inputs if index >= 0)
    ]
    ops = ", ".join(sorted({operator.name for operator in named}))
    return SqueezeflowError(
        "UNSUPPORTED_OP",
        f"ai-edge-quantizer does not take the model{f' at {ops}' if ops else ''} ({first[:300]}): leave the layer "
        "FLOAT32 by layer_precisions, or use the converter back end",
        metadata={"op": ops},
    )

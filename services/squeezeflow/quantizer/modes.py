"""The modes of the TFLite converter, and which back end and parameters go together.

Refused are combinations that a back end would ignore, or answer with a file that LiteRT cannot run: an ignored
parameter would look like a result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.v1 import artifact_pb2
from squeezeflow.v1.technique_pb2 import Quantize

CONVERTER, AI_EDGE = "converter", "ai_edge"


@dataclass(frozen=True)
class Mode:
    """What a mode makes of a model.

    Attributes:
        name: the word that proofs, invariants and messages have for it.
        calibrated: whether it needs samples to find the range of every activation.
        input_output: what the file takes and gives where the model has real values.
    """

    name: str
    calibrated: bool = False
    input_output: str = "float32"


MODES = {
    Quantize.MODE_DYNAMIC: Mode("dynamic"),
    Quantize.MODE_FLOAT16: Mode("float16"),
    Quantize.MODE_INT8: Mode("int8", calibrated=True),
    Quantize.MODE_INT8_IO: Mode("int8_io", calibrated=True, input_output="int8"),
    Quantize.MODE_UINT8_IO: Mode("uint8_io", calibrated=True, input_output="uint8"),
    Quantize.MODE_INT16X8: Mode("int16x8", calibrated=True),
}


def backend(params: Quantize, kind: int) -> str:
    """Chooses what quantizes a model of an artifact kind: `converter` or `ai_edge`.

    Errors: INVALID_PARAMETER naming the field that the back end asked for, or the model's format, does not go with.
    """
    needs = _needs_ai_edge(params)
    tflite = kind == artifact_pb2.ARTIFACT_KIND_TFLITE
    if params.backend == Quantize.BACKEND_CONVERTER:
        if needs:
            raise refused(needs, f"the converter back end has no {needs}: set backend to AI_EDGE, or leave it out")
        if tflite:
            raise refused("backend", "the converter takes Keras models and SavedModels: set backend to AI_EDGE")
    chosen = AI_EDGE if needs or tflite or params.backend == Quantize.BACKEND_AI_EDGE else CONVERTER
    check(params)
    if chosen == AI_EDGE and params.sparse_encoding:
        raise refused("sparse_encoding", "ai-edge-quantizer stores no sparse kernels: use the converter back end")
    return chosen


def _needs_ai_edge(params: Quantize) -> str:
    """Names the field that only ai-edge-quantizer has; empty where there is none."""
    if params.mode == Quantize.MODE_INT4:
        return "mode INT4"
    fields = ("block_size", "weight_only", "layer_precisions")
    return next((field for field in fields if getattr(params, field)), "")


def check(params: Quantize) -> None:
    """Refuses what no back end takes. Errors: INVALID_PARAMETER naming the field."""
    mode = Quantize.Mode.Name(params.mode).removeprefix("MODE_")
    if params.sparse_encoding and params.mode != Quantize.MODE_FLOAT16:
        raise refused(
            "sparse_encoding",
            f"sparse kernels of mode {mode} run in LiteRT only without XNNPACK: use mode FLOAT16, or Convert with "
            "sparse_encoding",
        )
    if not params.per_channel and params.mode == Quantize.MODE_FLOAT16:
        raise refused("per_channel", "float16 weights have no scales: leave per_channel out, or use another mode")


def configure(converter: Any, params: Quantize) -> None:
    """Sets a converter to the mode; samples for calibration are given to it elsewhere."""
    mode = MODES[params.mode]
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if params.sparse_encoding:
        converter.optimizations.append(tf.lite.Optimize.EXPERIMENTAL_SPARSITY)
    if mode.name == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if mode.name == "int16x8":
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        ]
    # A private name, but what the converter offers for it: seen to give one scale a weight in every mode.
    converter._experimental_disable_per_channel = not params.per_channel
    converter.inference_input_type = converter.inference_output_type = tf.dtypes.as_dtype(mode.input_output)


def refused(field: str, message: str) -> SqueezeflowError:
    """Gives the INVALID_PARAMETER for a field of the request, or a value of it (`mode INT4`)."""
    return SqueezeflowError("INVALID_PARAMETER", message, fields=[(f"params.{field.split()[0]}", message)])

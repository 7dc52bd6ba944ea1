"""Contract names to tensors of a file, and whether arrays fit them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.litert.quantization import is_quantized, quantize
from squeezeflow.core.tflite import Tensor, TfliteFile
from squeezeflow.v1 import contract_pb2

Array = npt.NDArray[Any]


def bind(
    file: TfliteFile,
    tensors: Iterable[contract_pb2.TensorContract],
    names: Mapping[str, int],
    required: tuple[int, ...],
    what: str,
) -> dict[str, Tensor]:
    """Gives the file's tensors by contract name.

    Args:
        names: the file's tensor indices by signature name.
        required: tensor indices that must be bound.
        what: `input` or `output`, for the refusal.
    Errors: MALFORMED_MODEL where the contract is not of this file, UNSUPPORTED_INPUT for strings and handles.
    """
    bound: dict[str, Tensor] = {}
    for tensor in tensors:
        name = tensor.signature_name or tensor.name
        if name not in names:
            raise SqueezeflowError(
                "MALFORMED_MODEL",
                f"the contract names {what} {tensor.name} ({name}) and {file.path.name} has {', '.join(names)}: "
                "give the contract of this file",
                metadata={what: tensor.name},
            )
        bound[tensor.name] = file.main.tensors[names[name]]
        if bound[tensor.name].dtype in ("string", "resource", "variant"):
            raise SqueezeflowError(
                "UNSUPPORTED_INPUT",
                f"{what} {tensor.name} is {bound[tensor.name].dtype}: export the model with numeric inputs and outputs",
                metadata={what: tensor.name},
            )
    missing = [file.main.tensors[index].name for index in required if index not in {t.index for t in bound.values()}]
    if missing:
        raise SqueezeflowError(
            "MALFORMED_MODEL",
            f"the contract leaves out {what} {', '.join(missing)} of {file.path.name}: give the contract of this file",
        )
    return bound


def flex_refusal(file: TfliteFile) -> SqueezeflowError:
    """Gives the UNSUPPORTED_OP of a file that needs TensorFlow's own kernels."""
    ops = ", ".join(file.flex_ops)
    return SqueezeflowError(
        "UNSUPPORTED_OP",
        f"{file.path.name} needs TensorFlow's own kernels for {ops}, which LiteRT does not have: convert with builtin "
        "operators only",
        metadata={"op": ops},
    )


def to_file(values: Array, tensor: Tensor, name: str) -> Array:
    """Gives real values in the file's element type; what is in it already stays. Errors: DATA_MISMATCH."""
    if values.dtype == tensor.dtype:
        return values
    if is_quantized(tensor) and values.dtype.kind in "fiub":
        return quantize(values, tensor)
    if not np.can_cast(values.dtype, tensor.dtype, casting="same_kind"):
        raise SqueezeflowError("DATA_MISMATCH", f"input {name} takes {tensor.dtype} and was given {values.dtype}")
    return values.astype(tensor.dtype)


def require_fit(values: Array, tensor: Tensor, name: str) -> None:
    """Refuses arrays of another type or shape than the file's; axis 0 takes any number. Errors: DATA_MISMATCH."""
    if values.dtype != tensor.dtype:
        raise SqueezeflowError(
            "DATA_MISMATCH", f"input {name} takes {tensor.dtype} and was given {values.dtype}", metadata={"input": name}
        )
    fits = len(values.shape) == len(tensor.shape) and all(
        want in (-1, have) for want, have in zip(tensor.shape[1:], values.shape[1:], strict=True)
    )
    if not fits or (values.ndim and not values.shape[0]):
        raise SqueezeflowError(
            "DATA_MISMATCH",
            f"input {name} takes {list(tensor.shape)}, any number along axis 0, and was given {list(values.shape)}",
            metadata={"input": name},
        )

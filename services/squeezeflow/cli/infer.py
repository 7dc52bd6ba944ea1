"""`squeezeflow infer`: the arrays of a file through a served model, in the model's own input space.

The service applies nothing to what it is sent: affine, quantization and dequantization are done here, from the contract
of the model that answers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from squeezeflow.cli import exits
from squeezeflow.cli.output import Output
from squeezeflow.cli.session import open_session
from squeezeflow.cli.settings import Settings
from squeezeflow.core import contracts, datasets
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.oip import open_inference_pb2 as oip
from squeezeflow.v1 import contract_pb2

if TYPE_CHECKING:
    from squeezeflow.client import Client

Arrays = dict[str, np.ndarray[Any, Any]]
# Bytes of inputs in one call; a file with more samples is sent in several.
_CALL_BYTES = 4 << 20
_SHOWN_SAMPLES = 20


def run(
    settings: Settings, output: Output, name: str, data: Path, *, scale: Sequence[float], offset: Sequence[float]
) -> int:
    """Writes what a model gives for every sample of a file."""
    with open_session(settings, output, frozenset({"orchestrator", "inference"})) as session:
        session.wait_for("inference")
        contract = contract_of(session.client, name, datasets.shapes(data))
        inputs = datasets.plain_inputs(data, contract, scale=scale, offset=offset)
        raw = _infer(
            session.client, name, {key: quantized(contract, key, value) for key, value in inputs.items()}, contract
        )
    output.message(response_of(name, raw))
    output.show(*lines(contract, {key: dequantized(contract, key, value) for key, value in raw.items()}))
    return exits.DONE


def contract_of(client: Client, name: str, shapes: Mapping[str, Sequence[int]]) -> contract_pb2.Contract:
    """Gives the contract of what answers to a name: every answer says it, so one sample of zeros is asked.

    Args:
        shapes: of the arrays that are to be sent, by their names: not every model takes every size along a free axis.
    """
    from squeezeflow.client import tensors

    metadata = client.model_metadata(name)
    zeros = {
        t.name: np.zeros(one_sample(t.shape, shapes.get(t.name) or shapes.get("x") or ()), _dtype(t.datatype))
        for t in metadata.inputs
    }

    digest = client.infer_raw(tensors.infer_request(name, zeros)).parameters["contract"].string_param
    if not digest:
        raise SqueezeflowError("INTERNAL", f"inference did not say what contract {name} has: use a newer server")
    with tempfile.TemporaryDirectory() as folder:
        return contracts.decode(client.download(digest, Path(folder) / "contract.json"))


def one_sample(wanted: Sequence[int], given: Sequence[int]) -> list[int]:
    """Gives the shape of one sample for a model's shape, with the free axes of what is given."""
    sizes = [*given[1:], *[1] * len(wanted)]
    return [axis if axis > 0 else max(1, size) for axis, size in zip(wanted, [1, *sizes], strict=False)]


def quantized(contract: contract_pb2.Contract, name: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Gives an input in the file's element type, from the model's."""
    tensor = next(tensor for tensor in contract.inputs if tensor.name == name)
    if not tensor.HasField("quantization"):
        return values.astype(tensor.dtype, copy=False)
    limits = np.iinfo(tensor.dtype)
    steps = values.astype(np.float64) / tensor.quantization.scale
    # Half away from zero, as LiteRT's QUANTIZE does and Evaluate with it.
    rounded = np.trunc(steps + np.copysign(0.5, steps)) + tensor.quantization.zero_point
    return np.clip(rounded, limits.min, limits.max).astype(tensor.dtype)


def dequantized(contract: contract_pb2.Contract, name: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Gives an output as real values, from the file's element type."""
    tensor = next((tensor for tensor in contract.outputs if tensor.name == name), None)
    if tensor is None or not tensor.HasField("quantization"):
        return values
    real = (values.astype(np.float64) - tensor.quantization.zero_point) * tensor.quantization.scale
    return real.astype(np.float32)


def lines(contract: contract_pb2.Contract, outputs: Mapping[str, np.ndarray[Any, Any]]) -> Iterator[str]:
    """Gives a line a sample: the label and its value where the model tells classes apart, else the values."""
    for name, values in outputs.items():
        labels = _labels(contract, name, values)
        for index, row in enumerate(values[:_SHOWN_SAMPLES]):
            if labels is not None:
                best = int(np.argmax(row))
                yield f"{name}[{index}]  {labels[best]}  {float(row[best]):.4f}"
            else:
                shown = np.array2string(np.asarray(row), precision=5, threshold=16, max_line_width=10_000)
                yield f"{name}[{index}]  {' '.join(shown.split())}"
        if len(values) > _SHOWN_SAMPLES:
            yield f"{name}: … {len(values) - _SHOWN_SAMPLES} more; --json gives all"


def response_of(name: str, raw: Mapping[str, np.ndarray[Any, Any]]) -> oip.ModelInferResponse:
    """Gives all outputs as one protocol message with typed contents, in the file's element types."""
    from squeezeflow.client import tensors

    response = oip.ModelInferResponse(model_name=name, model_version="1")
    for key, values in raw.items():
        tensors.add_output(response, key, values)
    return response


def _infer(client: Client, name: str, inputs: Arrays, contract: contract_pb2.Contract) -> Arrays:
    total = len(next(iter(inputs.values())))
    batch = batch_size(inputs, contract)
    parts = [
        client.infer(name, {key: value[start : start + batch] for key, value in inputs.items()})
        for start in range(0, total, batch)
    ]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def batch_size(inputs: Arrays, contract: contract_pb2.Contract) -> int:
    """Gives how many samples go into one call: as the file fixes it, else as many as fit."""
    fixed = [tensor.shape[0] for tensor in contract.inputs if tensor.shape and tensor.shape[0] > 0]
    if fixed:
        return fixed[0]
    sample = sum(value.nbytes // len(value) for value in inputs.values())
    return max(1, _CALL_BYTES // max(1, sample))


def _labels(contract: contract_pb2.Contract, name: str, values: np.ndarray[Any, Any]) -> list[str] | None:
    """Gives what the last axis stands for, where it is classes; their numbers where the data named none."""
    meaning = next((tensor.meaning for tensor in contract.outputs if tensor.name == name), "")
    if values.ndim != 2 or values.shape[1] < 2 or meaning not in ("probabilities", "logits"):
        return None
    if len(contract.labels) == values.shape[1]:
        return list(contract.labels)
    return [f"class {index}" for index in range(values.shape[1])]


def _dtype(datatype: str) -> np.dtype[Any]:
    from squeezeflow.client import tensors

    return tensors.dtype_of(datatype)

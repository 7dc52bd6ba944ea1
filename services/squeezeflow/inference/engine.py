"""What runs in the child process of a served model: one TFLite file, one interpreter, one call at a time.

The service itself never opens a model. It sends arrays as a JSON header (names, element types, shapes) and raw buffers;
`pack` and `unpack` are both ends of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from squeezeflow.core import contracts
from squeezeflow.core.datasets import synthetic_inputs
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.litert import Runner
from squeezeflow.v1 import contract_pb2

Handler = Callable[[dict[str, Any], list[bytes]], tuple[dict[str, Any], list[bytes]]]


def open_model(payload: dict[str, Any]) -> Handler:
    """Loads a model and gives what answers its calls.

    The model is invoked once before: a file that dies at its first call dies here, and the first caller does not pay
    for what only a first call costs.

    Args:
        payload: `model` and `contract` (paths), `threads`.

    Raises:
        SqueezeflowError: MALFORMED_MODEL, UNSUPPORTED_OP.
    """
    contract = contracts.decode(Path(payload["contract"]))
    runner = Runner(Path(payload["model"]), contract, threads=payload["threads"])
    _require_same_types(contract, runner)
    _invoke_once(contract, runner)

    def handle(header: dict[str, Any], buffers: list[bytes]) -> tuple[dict[str, Any], list[bytes]]:
        outputs = runner.invoke_raw(unpack(header["tensors"], buffers))
        tensors, data = pack({name: outputs[name] for name in header["outputs"]})
        return {"tensors": tensors}, data

    return handle


def _require_same_types(contract: contract_pb2.Contract, runner: Runner) -> None:
    """Refuses a contract whose shapes or element types are not those of the file: callers send what it says."""
    of_file = contracts.contract_of(runner.file)
    known = {tensor.signature_name: tensor for tensor in [*of_file.inputs, *of_file.outputs]}
    for tensor in [*contract.inputs, *contract.outputs]:
        there = known[tensor.signature_name or tensor.name]
        said, found = (f"{t.dtype} {list(t.shape)}" for t in (tensor, there))
        if said != found:
            raise SqueezeflowError(
                "MALFORMED_MODEL",
                f"the contract says {said} for {tensor.name} and the file has {found}: give the contract of this file",
                metadata={"tensor": tensor.name},
            )


def _invoke_once(contract: contract_pb2.Contract, runner: Runner) -> None:
    golden = contract.golden_samples
    sample = {name: contracts.array(value) for name, value in golden[0].inputs.items()} if golden else None
    try:
        runner.invoke(sample or synthetic_inputs(contract, 1, 0))
    except SqueezeflowError as error:
        # Made-up sizes and values need not suit the model; what callers send is judged when they send it.
        if error.reason != "DATA_MISMATCH":
            raise


def pack(arrays: Mapping[str, np.ndarray]) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Gives arrays as a header that JSON can hold, and their bytes."""
    tensors = [{"name": name, "dtype": a.dtype.name, "shape": list(a.shape)} for name, a in arrays.items()]
    return tensors, [np.ascontiguousarray(a).tobytes() for a in arrays.values()]


def unpack(tensors: Iterable[Mapping[str, Any]], buffers: Sequence[bytes]) -> dict[str, np.ndarray]:
    """Gives the arrays back.

    Raises:
        SqueezeflowError: INTERNAL when header and bytes do not fit: the other side is not trusted.
    """
    arrays = {}
    for tensor, data in zip(tensors, buffers, strict=True):
        dtype, shape = np.dtype(tensor["dtype"]), tuple(tensor["shape"])
        if len(data) != dtype.itemsize * math.prod(shape):
            raise SqueezeflowError(
                "INTERNAL", f"tensor {tensor['name']} came as {len(data)} bytes for {dtype.name} of {list(shape)}"
            )
        arrays[tensor["name"]] = np.frombuffer(data, dtype).reshape(shape)
    return arrays


def foreign_contract(payload: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Writes the contract that a TFLite file itself gives; run in a child of its own.

    Args:
        payload: `model` (path of the file) and `contract` (path to write).
    """
    del report
    Path(payload["contract"]).write_bytes(contracts.encode(contracts.foreign(Path(payload["model"]))))
    return {}

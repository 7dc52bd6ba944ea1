"""A float TFLite file as the source of a technique: LiteRT computes what the result is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from squeezeflow.core import contracts
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.litert import Runner
from squeezeflow.core.litert.tracing import Trace
from squeezeflow.core.step import StepInputs
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.core.tflite.values import FLOATS
from squeezeflow.modelkit.compile_config import CompileConfig
from squeezeflow.v1 import contract_pb2

Arrays = Mapping[str, np.ndarray]


class TfliteSource:
    """A float TFLite file and its contract; the `Source` of proofs."""

    format = "tflite"
    written_by = ""
    keras = None
    model = None

    def __init__(self, path: Path, contract: contract_pb2.Contract, *, threads: int = 1) -> None:
        """Binds the contract's names to the file. Errors: MALFORMED_MODEL, UNSUPPORTED_OP, UNSUPPORTED_INPUT."""
        self.path = path
        self.contract = contract_pb2.Contract()
        self.contract.CopyFrom(contract)
        # A proof adds the samples that it used.
        del self.contract.golden_samples[:]
        self.notes: tuple[str, ...] = ()
        self.compile_config = CompileConfig()
        self.signature_inputs = {tensor.name: tensor.signature_name or tensor.name for tensor in contract.inputs}
        self.signature_outputs = {tensor.name: tensor.signature_name or tensor.name for tensor in contract.outputs}
        self._runner = Runner(path, self.contract, threads=threads)

    def predict(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Gives the outputs by contract name for a batch of samples by contract name."""
        return self._runner.invoke(inputs)

    def inside(self, sample: Arrays) -> Trace:
        """Looks into the file while it computes one sample, given by contract name. Errors: UntraceableError."""
        return Trace(self._runner.file, self.contract, sample)

    def converter(self) -> Any:
        """Refuses: what is converted has another format. Errors: UNSUPPORTED_INPUT."""
        raise SqueezeflowError("UNSUPPORTED_INPUT", "a TFLite file is converted already: give what it was made from")

    def export(self, folder: Path) -> None:
        """Refuses, as `converter`. Errors: UNSUPPORTED_INPUT."""
        self.converter()

    def kernels(self) -> dict[str, np.ndarray]:
        """Gives the weights by tensor name, in the file's layout."""
        return {weight.tensor.name: weight.values for weight in self._runner.file.weights if weight.values is not None}


def open_tflite(inputs: StepInputs) -> TfliteSource:
    """Opens the step's float TFLite file, under the contract of the step where it has one.

    Errors: UNSUPPORTED_INPUT (not a float file), MALFORMED_MODEL, UNSUPPORTED_OP, INVALID_PARAMETER (a signature).
    """
    if inputs.signature:
        raise SqueezeflowError(
            "INVALID_PARAMETER",
            f"signature {inputs.signature} was asked for, but the model is a TFLite file: leave signature empty",
            fields=(("model.signature", "only a SavedModel has signatures to choose from"),),
        )
    path = inputs.model.path
    require_float(TfliteFile.read(path))
    given = inputs.artifacts.get("contract")
    contract = contracts.decode(given.path) if given else contracts.foreign(path)
    return TfliteSource(path, contract, threads=inputs.threads)


def require_float(file: TfliteFile) -> None:
    """Refuses a file that is quantized or compressed already. Errors: UNSUPPORTED_INPUT naming the tensor."""
    weights = {(weight.subgraph, weight.tensor.index) for weight in file.weights}
    for number, graph in enumerate(file.subgraphs):
        for tensor in graph.tensors:
            weight = (number, tensor.index) in weights
            if tensor.scales and tensor.dtype not in FLOATS:
                what = f"{tensor.name} is quantized to {tensor.dtype}"
            elif weight and tensor.sparse:
                what = f"weight {tensor.name} is stored sparse"
            elif weight and tensor.dtype != "float32":
                what = f"weight {tensor.name} is {tensor.dtype}"
            else:
                continue
            raise SqueezeflowError(
                "UNSUPPORTED_INPUT",
                f"ai-edge-quantizer takes float32 TFLite, and in {file.path.name} {what}: give the float32 file, or "
                "the model that it was made from",
                metadata={"tensor": tensor.name, "dtype": tensor.dtype},
            )

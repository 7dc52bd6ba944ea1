"""What the children of this service have imported, and what takes the cost of first use away from them.

Only names stand here at import: the service itself loads neither LiteRT nor a model.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from squeezeflow.core.engine import Engine


def warm() -> None:
    """Serves a model of one tiny operator once, in a spare child.

    Delegate, memory planner, flatbuffer and proto code are then in use: a small model opens in 4 ms instead of 30.
    """
    from squeezeflow.core import contracts
    from squeezeflow.inference.engine import open_model

    with tempfile.TemporaryDirectory() as folder:
        model, contract = Path(folder) / "tiny.tflite", Path(folder) / "tiny.json"
        model.write_bytes(_tiny_model())
        contract.write_bytes(contracts.encode(contracts.foreign(model)))
        open_model({"model": str(model), "contract": str(contract), "threads": 1})


def _tiny_model() -> bytes:
    """Gives a TFLite file that multiplies four numbers with a matrix of zeros, built here: no TensorFlow is near."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def tensor(name: str, shape: list[int], buffer: int) -> schema.TensorT:
        made = schema.TensorT()
        made.name, made.shape, made.buffer, made.type = name, shape, buffer, schema.TensorType.FLOAT32
        return made

    weights = schema.BufferT()
    weights.data = bytes(4 * 4 * 4)
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 1
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1, -1], [2]
    operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = schema.FullyConnectedOptionsT()
    graph = schema.SubGraphT()
    graph.tensors = [tensor("x", [1, 4], 0), tensor("weights", [4, 4], 1), tensor("y", [1, 4], 0)]
    graph.inputs, graph.outputs, graph.operators = [0], [2], [operator]
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers = [schema.BufferT(), weights]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


ENGINE = Engine(
    preload=(
        "ai_edge_litert.interpreter",
        "ai_edge_litert.schema_py_generated",
        "flatbuffers",
        "numpy",
        "squeezeflow.core.step",
        "squeezeflow.v1.evaluator_pb2",
        "squeezeflow.inference.engine",
        "squeezeflow.inference.evaluate",
        "squeezeflow.inference.benchmark",
        "squeezeflow.inference.preload",
    ),
    warm="squeezeflow.inference.preload:warm",
    packages=("ai-edge-litert", "numpy"),
)

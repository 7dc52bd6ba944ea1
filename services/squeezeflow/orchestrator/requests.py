"""What a step asks for: the request of its rpc, made from the job's inputs and what the steps before it gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from squeezeflow.orchestrator.plan import BENCHMARK, EVALUATE, Node
from squeezeflow.v1 import (
    artifact_pb2,
    converter_pb2,
    evaluator_pb2,
    jobs_pb2,
    pruner_pb2,
    quantizer_pb2,
    step_pb2,
)


@dataclass(frozen=True)
class Rpc:
    """Where a technique is served.

    Attributes:
        worker: the service's name in addresses: `quantizer`.
        service: full gRPC name.
    """

    worker: str
    service: str
    method: str
    request: type[Message]


_CONVERTER = ("converter", "squeezeflow.v1.Converter")
_EVALUATOR = ("inference", "squeezeflow.v1.Evaluator")
RPCS: Mapping[str, Rpc] = {
    "convert": Rpc(*_CONVERTER, "Convert", converter_pb2.ConvertRequest),
    "export": Rpc(*_CONVERTER, "Export", converter_pb2.ExportRequest),
    "quantize": Rpc("quantizer", "squeezeflow.v1.Quantizer", "Quantize", quantizer_pb2.QuantizeRequest),
    "prune": Rpc("pruner", "squeezeflow.v1.Pruner", "Prune", pruner_pb2.PruneRequest),
    "train_quantized": Rpc(
        "quantizer", "squeezeflow.v1.Quantizer", "TrainQuantized", quantizer_pb2.TrainQuantizedRequest
    ),
    "cluster": Rpc("pruner", "squeezeflow.v1.Pruner", "Cluster", pruner_pb2.ClusterRequest),
    EVALUATE: Rpc(*_EVALUATOR, "Evaluate", evaluator_pb2.EvaluateRequest),
    BENCHMARK: Rpc(*_EVALUATOR, "Benchmark", evaluator_pb2.BenchmarkRequest),
}


def request_for(node: Node, spec: jobs_pb2.JobSpec, results: Mapping[str, step_pb2.StepResult]) -> Message:
    """Gives the request of a node.

    Args:
        results: of the nodes it needs, by node.
    """
    request: Any = RPCS[node.technique].request()
    if node.technique in (EVALUATE, BENCHMARK):
        request.model.CopyFrom(_servable(results[node.parent]))
        if node.baseline:
            request.baseline.CopyFrom(_servable(results[node.baseline]))
    else:
        request.model.CopyFrom(_model(node, spec, results))
        json_format.ParseDict(dict(node.params), request.params)
        request.params.SetInParent()
    if node.technique != BENCHMARK and spec.data.artifact:
        request.data.CopyFrom(spec.data)
    message: Message = request
    return message


def _model(node: Node, spec: jobs_pb2.JobSpec, results: Mapping[str, step_pb2.StepResult]) -> step_pb2.ModelInput:
    if not node.parent:
        return spec.model
    made = results[node.parent].artifact
    # Of the steps that others follow, those that give a SavedModel back keep its signatures.
    signature = spec.model.signature if made.kind == artifact_pb2.ARTIFACT_KIND_SAVED_MODEL else ""
    return step_pb2.ModelInput(artifact=made.digest, signature=signature)


def _servable(result: step_pb2.StepResult) -> evaluator_pb2.Servable:
    return evaluator_pb2.Servable(artifact=result.artifact.digest, contract=result.contract)

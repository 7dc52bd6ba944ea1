"""A step that follows another takes what that one made, by the signature that the job chose where there are several."""

from __future__ import annotations

import pytest

from squeezeflow.orchestrator.plan import Node
from squeezeflow.orchestrator.requests import request_for
from squeezeflow.v1 import artifact_pb2, jobs_pb2, step_pb2


@pytest.mark.parametrize(
    ("kind", "signature"),
    [
        (artifact_pb2.ARTIFACT_KIND_SAVED_MODEL, "first"),
        (artifact_pb2.ARTIFACT_KIND_KERAS, ""),
        (artifact_pb2.ARTIFACT_KIND_TFLITE, ""),
    ],
)
def test_the_signature_goes_along_as_long_as_the_model_has_signatures(kind: int, signature: str) -> None:
    spec = jobs_pb2.JobSpec(model=step_pb2.ModelInput(artifact="a" * 64, signature="first"))
    made = step_pb2.StepResult(artifact=artifact_pb2.Artifact(digest="b" * 64, kind=kind))
    first = request_for(Node("prune-1", "prune", {}), spec, {})
    after = request_for(Node("quantize-1", "quantize", {}, parent="prune-1"), spec, {"prune-1": made})
    assert (first.model.artifact, first.model.signature) == ("a" * 64, "first")
    assert (after.model.artifact, after.model.signature) == ("b" * 64, signature)

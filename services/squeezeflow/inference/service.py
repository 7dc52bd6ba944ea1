"""The gRPC skin: the Open Inference Protocol over the registry, `Evaluator` over the step runner."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from importlib import metadata
from typing import Any, TypeVar

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.inference import tensors
from squeezeflow.inference.registry import Registry
from squeezeflow.inference.servable import Resolver, is_digest
from squeezeflow.oip import open_inference_pb2 as oip
from squeezeflow.oip import open_inference_pb2_grpc as oip_grpc
from squeezeflow.rpc.server import SEND_LIMIT
from squeezeflow.rpc.steps import StepCall, StepRunner
from squeezeflow.rpc.tenant import current_tenant
from squeezeflow.v1 import evaluator_pb2, evaluator_pb2_grpc, step_pb2

OPEN_INFERENCE = "inference.GRPCInferenceService"
# Tensors come in whole: 64 MiB of them, and what stands around them.
RECEIVE_LIMIT = (64 << 20) + (1 << 20)
PLATFORM = "tflite_litert"
EXTENSIONS = ("model_repository",)
VERSION = "1"
T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


class OpenInference(oip_grpc.GRPCInferenceServiceServicer):
    """Serves the models of a registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def ServerLive(self, request: oip.ServerLiveRequest, context: Any) -> oip.ServerLiveResponse:
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: oip.ServerReadyRequest, context: Any) -> oip.ServerReadyResponse:
        return oip.ServerReadyResponse(ready=self._registry.ready)

    async def ServerMetadata(self, request: oip.ServerMetadataRequest, context: Any) -> oip.ServerMetadataResponse:
        version = metadata.version("squeezeflow")
        return oip.ServerMetadataResponse(name="squeezeflow", version=version, extensions=EXTENSIONS)

    async def ModelReady(self, request: oip.ModelReadyRequest, context: Any) -> oip.ModelReadyResponse:
        model = self._registry.find(current_tenant(), request.name)
        ready = model is not None and model.ready and request.version in ("", VERSION)
        return oip.ModelReadyResponse(ready=ready)

    async def ModelMetadata(self, request: oip.ModelMetadataRequest, context: Any) -> oip.ModelMetadataResponse:
        _check_version(request.name, request.version)
        async with self._registry.use(current_tenant(), request.name) as model:
            return oip.ModelMetadataResponse(
                name=request.name,
                versions=[VERSION],
                platform=PLATFORM,
                inputs=tensors.describe(model.contract.inputs),
                outputs=tensors.describe(model.contract.outputs),
            )

    async def ModelInfer(self, request: oip.ModelInferRequest, context: Any) -> oip.ModelInferResponse:
        _check_version(request.model_name, request.model_version)
        raw = bool(request.raw_input_contents)
        async with self._registry.use(current_tenant(), request.model_name) as model:
            inputs = await _apart(not raw, tensors.read_inputs, request, model.contract)
            names = tensors.requested_outputs(request, model.contract)
            outputs = await model.infer(inputs, names)
            response = oip.ModelInferResponse(model_name=request.model_name, model_version=VERSION, id=request.id)
            response.parameters["artifact"].string_param = model.digests.artifact
            response.parameters["contract"].string_param = model.digests.contract
        await _apart(not raw, tensors.write_outputs, response, outputs, raw)
        _check_size(response)
        return response

    async def RepositoryIndex(self, request: oip.RepositoryIndexRequest, context: Any) -> oip.RepositoryIndexResponse:
        _check_repository(request.repository_name)
        response = oip.RepositoryIndexResponse()
        for name, model in self._registry.index(current_tenant()):
            if model.ready:
                response.models.add(name=name, version=VERSION, state="READY")
            elif not request.ready:
                reason = model.fault or "its process has ended; the next call starts another"
                response.models.add(name=name, version=VERSION, state="UNAVAILABLE", reason=reason)
        return response

    async def RepositoryModelLoad(
        self, request: oip.RepositoryModelLoadRequest, context: Any
    ) -> oip.RepositoryModelLoadResponse:
        _check_repository(request.repository_name)
        _check_name(request.model_name)
        digests = _digests(request.parameters)
        tenant, artifact, contract = current_tenant(), digests["artifact"], digests.get("contract", "")
        await self._registry.load(tenant, request.model_name, artifact, contract)
        return oip.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: oip.RepositoryModelUnloadRequest, context: Any
    ) -> oip.RepositoryModelUnloadResponse:
        _check_repository(request.repository_name)
        await self._registry.unload(current_tenant(), request.model_name)
        return oip.RepositoryModelUnloadResponse()


class Evaluator(evaluator_pb2_grpc.EvaluatorServicer):
    """Serves `Evaluator`: both rpcs are steps."""

    def __init__(self, runner: StepRunner, resolver: Resolver) -> None:
        self._runner = runner
        self._resolver = resolver

    async def Evaluate(self, request: evaluator_pb2.EvaluateRequest, context: Any) -> AsyncIterator[step_pb2.StepEvent]:
        if not request.data.artifact:
            raise SqueezeflowError("DATA_MISSING", "data.artifact is empty: give a dataset with test arrays and labels")
        call = StepCall(
            technique="evaluate",
            entry="squeezeflow.inference.evaluate:run",
            params=evaluator_pb2.EvaluateRequest(max_samples=request.max_samples),
            inputs={**await self._servables(request), "data": request.data.artifact},
            scale=request.data.scale,
            offset=request.data.offset,
        )
        async for event in self._runner.stream(call):
            yield event

    async def Benchmark(
        self, request: evaluator_pb2.BenchmarkRequest, context: Any
    ) -> AsyncIterator[step_pb2.StepEvent]:
        call = StepCall(
            technique="benchmark",
            entry="squeezeflow.inference.benchmark:run",
            params=evaluator_pb2.BenchmarkRequest(runs=request.runs, threads=request.threads),
            inputs=await self._servables(request),
            cacheable=False,
        )
        async for event in self._runner.stream(call):
            yield event

    async def _servables(
        self, request: evaluator_pb2.EvaluateRequest | evaluator_pb2.BenchmarkRequest
    ) -> Mapping[str, str]:
        """Gives the digests of a request by role; contracts that it leaves out are found."""
        tenant = current_tenant()
        model = await self._resolver.resolve(tenant, request.model.artifact, request.model.contract)
        roles = {"model": model.artifact, "contract": model.contract}
        if request.HasField("baseline"):
            baseline = await self._resolver.resolve(tenant, request.baseline.artifact, request.baseline.contract)
            roles |= {"baseline": baseline.artifact, "baseline_contract": baseline.contract}
        return roles


async def _apart(slow: bool, function: Callable[..., T], *args: Any) -> T:
    """Calls a function, in a thread where it is slow: typed lists are, and other calls must not wait for them."""
    return await asyncio.to_thread(function, *args) if slow else function(*args)


def _check_version(name: str, version: str) -> None:
    if version not in ("", VERSION):
        text = f"model {name} has no version {version!r}: leave the version out"
        raise SqueezeflowError("NOT_FOUND", text, metadata={"model": name, "version": version})


def _check_repository(name: str) -> None:
    if name:
        raise _invalid("repository_name", f"is {name!r}: leave it out, the tenant's artifacts are the one repository")


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or is_digest(name):
        raise _invalid("model_name", f"is {name!r}: give 1 to 128 letters, digits, '.', '_', '-', and no digest")


def _digests(parameters: Mapping[str, oip.ModelRepositoryParameter]) -> dict[str, str]:
    """Gives the digests of a load request by parameter name; `artifact` is among them."""
    digests = {}
    for name, parameter in parameters.items():
        if name not in ("artifact", "contract"):
            raise _invalid(f"parameters[{name!r}]", "is not known: give artifact and, where wanted, contract")
        if not is_digest(parameter.string_param):
            raise _invalid(f"parameters[{name!r}]", "must be a string_param of 64 lowercase hex digits")
        digests[name] = parameter.string_param
    if "artifact" not in digests:
        raise _invalid("parameters['artifact']", "is missing: give the digest of a TFLite artifact as string_param")
    return digests


def _check_size(response: oip.ModelInferResponse) -> None:
    if response.ByteSize() > SEND_LIMIT:
        raise _invalid(
            "inputs",
            f"give an answer of {response.ByteSize() >> 20} MiB, above {SEND_LIMIT >> 20}: send a smaller batch, "
            "ask for fewer outputs, or send raw contents",
        )


def _invalid(field: str, text: str) -> SqueezeflowError:
    return SqueezeflowError("INVALID_PARAMETER", f"{field} {text}", fields=[(field, text)])

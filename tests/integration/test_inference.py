"""The inference service over a real server, a real store and real children."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import psutil
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.tflite_models import DATA, remainder, tflite_models

from squeezeflow.core import contracts
from squeezeflow.core.actions import Action, ActionCache
from squeezeflow.core.artifacts import Artifacts
from squeezeflow.core.config import load
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.sandbox import Sandbox
from squeezeflow.core.store import Store, open_store
from squeezeflow.core.toolchain import toolchain
from squeezeflow.inference.__main__ import mounts
from squeezeflow.inference.preload import ENGINE
from squeezeflow.inference.registry import Registry
from squeezeflow.inference.servable import Resolver
from squeezeflow.inference.service import OPEN_INFERENCE, RECEIVE_LIMIT
from squeezeflow.oip import open_inference_pb2 as oip
from squeezeflow.oip import open_inference_pb2_grpc as oip_grpc
from squeezeflow.rpc.channels import open_channel
from squeezeflow.rpc.errors import from_rpc_error
from squeezeflow.rpc.server import Server
from squeezeflow.rpc.steps import StepRunner
from squeezeflow.rpc.steps_service import steps_mount
from squeezeflow.rpc.tenant import tenant_metadata
from squeezeflow.rpc.worker import Worker
from squeezeflow.v1 import artifact_pb2, contract_pb2, evaluator_pb2, evaluator_pb2_grpc, step_pb2, technique_pb2

SMALLEST = np.iinfo("int32").min


class Bench:
    """A running service and what tests do with it."""

    def __init__(self, store: Store, worker: Worker, address: str, folder: Path) -> None:
        self.store = store
        self.worker = worker
        self.folder = folder
        self.channel = open_channel(address)
        self.models: Any = oip_grpc.GRPCInferenceServiceStub(self.channel)
        self.evaluator: Any = evaluator_pb2_grpc.EvaluatorStub(self.channel)

    def put(self, path: Path, kind: int = artifact_pb2.ARTIFACT_KIND_TFLITE, tenant: str = "default") -> str:
        return Artifacts(self.store, tenant).write(kind, path).digest

    def model(self, name: str) -> str:
        return self.put(tflite_models() / name)

    def contract(self, contract: contract_pb2.Contract) -> str:
        path = self.folder / "contract.json"
        path.write_bytes(contracts.encode(contract))
        return self.put(path, artifact_pb2.ARTIFACT_KIND_CONTRACT)

    async def call(self, rpc: Any, request: Any, tenant: str = "default") -> Any:
        try:
            return await rpc(request, metadata=tenant_metadata(tenant), timeout=60)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, "inference") from error

    async def load(self, name: str, artifact: str, contract: str = "", tenant: str = "default") -> None:
        request = oip.RepositoryModelLoadRequest(model_name=name)
        request.parameters["artifact"].string_param = artifact
        if contract:
            request.parameters["contract"].string_param = contract
        await self.call(self.models.RepositoryModelLoad, request, tenant)

    async def infer(self, name: str, tenant: str = "default", **arrays: np.ndarray) -> dict[str, np.ndarray]:
        response = await self.call(self.models.ModelInfer, raw_request(name, **arrays), tenant)
        return raw_outputs(response)

    async def ready(self, name: str, tenant: str = "default") -> bool:
        return bool((await self.call(self.models.ModelReady, oip.ModelReadyRequest(name=name), tenant)).ready)

    async def events(self, rpc: Any, request: Any, tenant: str = "default") -> list[step_pb2.StepEvent]:
        try:
            return [event async for event in rpc(request, metadata=tenant_metadata(tenant), timeout=120)]
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, "inference") from error

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.worker.sandbox.server_pid).children()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    environ = {
        "SQUEEZEFLOW_STORE": f"dir:{tmp_path / 'store'}",
        "SQUEEZEFLOW_LISTEN": "127.0.0.1:0",
        "SQUEEZEFLOW_WORKDIR": str(tmp_path / "work"),
        "SQUEEZEFLOW_SHUTDOWN_SECONDS": "1",
    }
    config = load("inference", environ)
    store = open_store(config.store_url)
    async with Sandbox(preload=ENGINE.preload, warm=ENGINE.warm) as sandbox:
        runner = StepRunner(config, store, sandbox, toolchain(*ENGINE.packages))
        worker = Worker(config, sandbox, runner)
        served = [*mounts(worker), steps_mount(runner)]
        async with Server(config, served, foreign={OPEN_INFERENCE}, receive_limit=RECEIVE_LIMIT) as server:
            runner.bound(server.address)
            await server.set_serving(True)
            bench = Bench(store, worker, server.address, tmp_path)
            yield bench
            await bench.channel.close()
        await runner.close()


def raw_request(name: str, **arrays: np.ndarray) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name=name, id="call-7")
    names = {"float32": "FP32", "int8": "INT8", "int32": "INT32"}
    for key, array in arrays.items():
        request.inputs.add(name=key, datatype=names[array.dtype.name], shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request


def raw_outputs(response: oip.ModelInferResponse) -> dict[str, np.ndarray]:
    dtypes = {"FP32": "float32", "INT8": "int8", "INT32": "int32"}
    return {
        output.name: np.frombuffer(data, dtypes[output.datatype]).reshape(tuple(output.shape))
        for output, data in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def images(count: int) -> np.ndarray:
    with np.load(DATA / "fashion_mnist.npz", allow_pickle=False) as arrays:
        return (arrays["x_test"][:count, ..., None] / np.float32(255)).astype("float32")


def reason(caught: pytest.ExceptionInfo[SqueezeflowError]) -> str:
    return caught.value.reason


async def test_a_model_is_served_by_name_raw_and_typed(bench: Bench) -> None:
    await bench.load("fashion", bench.model("cnn.tflite"))
    batch = images(3)
    response = await bench.call(bench.models.ModelInfer, raw_request("fashion", image=batch))
    assert (response.model_name, response.model_version, response.id) == ("fashion", "1", "call-7")
    assert response.parameters["artifact"].string_param == bench.model("cnn.tflite")
    raw = raw_outputs(response)["answer"]
    assert raw.shape == (3, 10)
    np.testing.assert_allclose(raw.sum(axis=1), 1, rtol=1e-5)

    typed = oip.ModelInferRequest(model_name="fashion", outputs=[{"name": "answer"}])
    tensor = typed.inputs.add(name="image", datatype="FP32", shape=batch.shape)
    tensor.contents.fp32_contents.extend(batch.ravel())
    response = await bench.call(bench.models.ModelInfer, typed)
    assert not response.raw_output_contents
    np.testing.assert_allclose(np.reshape(response.outputs[0].contents.fp32_contents, (3, 10)), raw, rtol=1e-6)


async def test_a_digest_is_served_without_a_name_and_loaded_at_its_first_use(bench: Bench) -> None:
    digest = bench.model("cnn_int8_io.tflite")
    assert not await bench.ready(digest)
    answer = (await bench.infer(digest, image=np.zeros((1, 28, 28, 1), "int8")))["answer"]
    assert answer.dtype == "int8"
    assert await bench.ready(digest)
    index = await bench.call(bench.models.RepositoryIndex, oip.RepositoryIndexRequest())
    assert [(model.name, model.state) for model in index.models] == [(digest, "READY")]


async def test_metadata_tells_the_contracts_names_and_the_files_types(bench: Bench) -> None:
    contract = contracts.foreign(tflite_models() / "cnn_int8_io.tflite")
    contract.inputs[0].name, contract.outputs[0].name = "picture", "classes"
    await bench.load("fashion", bench.model("cnn_int8_io.tflite"), bench.contract(contract))
    told = await bench.call(bench.models.ModelMetadata, oip.ModelMetadataRequest(name="fashion"))
    assert (told.name, list(told.versions), told.platform) == ("fashion", ["1"], "tflite_litert")
    (given,), (got,) = told.inputs, told.outputs
    assert (given.name, given.datatype, list(given.shape)) == ("picture", "INT8", [-1, 28, 28, 1])
    assert (got.name, got.datatype, list(got.shape)) == ("classes", "INT8", [-1, 10])
    assert set(await bench.infer("fashion", picture=np.zeros((2, 28, 28, 1), "int8"))) == {"classes"}


async def test_without_a_contract_that_of_the_newest_record_is_taken(bench: Bench) -> None:
    model, cache = bench.model("cnn.tflite"), ActionCache(bench.store, "default")
    for age, name in ((2, "old"), (1, "new")):
        contract = contracts.foreign(tflite_models() / "cnn.tflite")
        contract.inputs[0].name = name
        digest = bench.contract(contract)
        action = Action("convert", technique_pb2.Convert(), {"model": f"{age}" * 64}, {}, {})
        result = step_pb2.StepResult(artifact={"digest": model}, contract=digest)
        cache.put(action, result, datetime.now(UTC))
        await asyncio.sleep(0.01)
    told = await bench.call(bench.models.ModelMetadata, oip.ModelMetadataRequest(name=model))
    assert [tensor.name for tensor in told.inputs] == ["new"]


async def test_the_server_tells_what_it_is(bench: Bench) -> None:
    assert (await bench.call(bench.models.ServerLive, oip.ServerLiveRequest())).live
    assert (await bench.call(bench.models.ServerReady, oip.ServerReadyRequest())).ready
    told = await bench.call(bench.models.ServerMetadata, oip.ServerMetadataRequest())
    assert (told.name, list(told.extensions)) == ("squeezeflow", ["model_repository"])
    await bench.worker.sandbox.close()
    assert not (await bench.call(bench.models.ServerReady, oip.ServerReadyRequest())).ready


async def test_what_does_not_fit_the_model_is_refused_and_the_model_lives_on(bench: Bench) -> None:
    await bench.load("fashion", bench.model("cnn.tflite"))
    pid = bench_model_pid(bench)
    for wrong in ({"image": images(1).astype("int8")}, {"image": images(1)[:, :27]}, {"picture": images(1)}):
        with pytest.raises(SqueezeflowError) as caught:
            await bench.infer("fashion", **wrong)
        assert reason(caught) == "DATA_MISMATCH"
    request = raw_request("fashion", image=images(1))
    request.inputs[0].datatype = "BYTES"
    with pytest.raises(SqueezeflowError) as caught:
        await bench.call(bench.models.ModelInfer, request)
    assert reason(caught) == "UNSUPPORTED_INPUT"
    await bench.infer("fashion", image=images(1))
    assert bench_model_pid(bench) == pid


async def test_names_digests_and_versions_that_are_not_there_are_not_found(bench: Bench) -> None:
    for name in ("nothing", "0" * 64):
        with pytest.raises(SqueezeflowError) as caught:
            await bench.infer(name, image=images(1))
        assert reason(caught) == "NOT_FOUND"
        assert not await bench.ready(name)
    digest = bench.model("cnn.tflite")
    request = raw_request(digest, image=images(1))
    request.model_version = "2"
    with pytest.raises(SqueezeflowError) as caught:
        await bench.call(bench.models.ModelInfer, request)
    assert reason(caught) == "NOT_FOUND"
    with pytest.raises(grpc.aio.AioRpcError) as foreign:
        await bench.models.ModelInfer(raw_request("nothing", image=images(1)))
    assert foreign.value.code() is grpc.StatusCode.NOT_FOUND


async def test_another_tenants_models_are_not_found(bench: Bench) -> None:
    digest = bench.model("cnn.tflite")
    await bench.load("fashion", digest)
    for name in ("fashion", digest):
        with pytest.raises(SqueezeflowError) as caught:
            await bench.infer(name, tenant="other", image=images(1))
        assert reason(caught) == "NOT_FOUND"
        assert not await bench.ready(name, tenant="other")
    with pytest.raises(SqueezeflowError) as caught:
        await bench.load("fashion", digest, tenant="other")
    assert reason(caught) == "NOT_FOUND"
    index = await bench.call(bench.models.RepositoryIndex, oip.RepositoryIndexRequest(), tenant="other")
    assert not index.models
    request = evaluator_pb2.BenchmarkRequest(model={"artifact": digest})
    with pytest.raises(SqueezeflowError) as caught:
        await bench.events(bench.evaluator.Benchmark, request, tenant="other")
    assert reason(caught) == "NOT_FOUND"


async def test_loading_refuses_what_it_cannot_serve_and_keeps_the_old_binding(bench: Bench) -> None:
    model = bench.model("cnn.tflite")
    await bench.load("fashion", model)
    text = bench.folder / "model.keras"
    text.write_bytes(b"PK")
    keras = bench.put(text, artifact_pb2.ARTIFACT_KIND_KERAS)
    two = bench.contract(contracts.foreign(tflite_models() / "two.tflite"))
    cases: list[tuple[dict[str, str], str]] = [
        ({}, "INVALID_PARAMETER"),
        ({"artifact": "short"}, "INVALID_PARAMETER"),
        ({"artifact": model, "config": "{}"}, "INVALID_PARAMETER"),
        ({"artifact": "0" * 64}, "NOT_FOUND"),
        ({"artifact": keras}, "UNSUPPORTED_INPUT"),
        ({"artifact": model, "contract": model}, "INVALID_PARAMETER"),
        ({"artifact": model, "contract": two}, "MALFORMED_MODEL"),
    ]
    for parameters, expected in cases:
        request = oip.RepositoryModelLoadRequest(model_name="fashion")
        for key, value in parameters.items():
            request.parameters[key].string_param = value
        with pytest.raises(SqueezeflowError) as caught:
            await bench.call(bench.models.RepositoryModelLoad, request)
        assert (parameters, reason(caught)) == (parameters, expected)
    for name in ("", "a/b", "0" * 64):
        with pytest.raises(SqueezeflowError) as caught:
            await bench.load(name, model)
        assert reason(caught) == "INVALID_PARAMETER"
    await bench.infer("fashion", image=images(1))
    assert len(list((bench.folder / "work").iterdir())) == 1, "a refused model left files"


async def test_a_name_is_bound_anew_and_unloaded(bench: Bench) -> None:
    await bench.load("net", bench.model("cnn.tflite"))
    await bench.load("net", bench.model("values.tflite"))
    assert (await bench.infer("net", image=images(1)))["answer"].shape == (1, 2)
    request = oip.RepositoryModelUnloadRequest(model_name="net")
    await bench.call(bench.models.RepositoryModelUnload, request)
    assert not await bench.ready("net")
    with pytest.raises(SqueezeflowError) as caught:
        await bench.call(bench.models.RepositoryModelUnload, request)
    assert reason(caught) == "NOT_FOUND"
    await until(lambda: not list((bench.folder / "work").iterdir()), "unloaded models left files")


async def test_calls_under_way_end_on_the_model_they_began_with(bench: Bench) -> None:
    slow = DATA / "models/basic_pitch/nmp.tflite"
    await bench.load("net", bench.put(slow))
    child = psutil.Process(bench_model_pid(bench))
    idle = child.cpu_times().user
    call = asyncio.create_task(bench.infer("net", input_2=np.zeros((20, 43844, 1), "float32")))
    await until(lambda: child.cpu_times().user > idle + 0.1, "the call does not run")
    await bench.load("net", bench.model("cnn.tflite"))
    assert not call.done()
    assert (await bench.infer("net", image=images(1)))["answer"].shape == (1, 10)
    assert (await call)["note"].shape == (20, 172, 88)


async def test_many_calls_of_one_model_all_get_their_own_answer(bench: Bench) -> None:
    await bench.load("fashion", bench.model("cnn.tflite"))
    batch = images(20)
    together = (await bench.infer("fashion", image=batch))["answer"]
    answers = await asyncio.gather(*(bench.infer("fashion", image=batch[i : i + 1]) for i in range(20)))
    np.testing.assert_allclose(np.concatenate([answer["answer"] for answer in answers]), together, atol=1e-5)


async def test_an_input_that_kills_the_child_is_a_typed_error_and_the_next_call_runs(bench: Bench) -> None:
    await bench.load("net", bench.put(remainder(bench.folder / "remainder.tflite")))
    assert (await bench.infer("net", x=np.array([[5]], "int32")))["remainder"].tolist() == [[0]]
    with pytest.raises(SqueezeflowError) as caught:
        await bench.infer("net", x=np.array([[SMALLEST]], "int32"))
    assert (reason(caught), caught.value.metadata["signal"]) == ("CHILD_CRASHED", "SIGFPE")
    index = await bench.call(bench.models.RepositoryIndex, oip.RepositoryIndexRequest())
    assert index.models[0].state == "UNAVAILABLE"
    assert "CHILD_CRASHED" in index.models[0].reason
    assert not (await bench.call(bench.models.RepositoryIndex, oip.RepositoryIndexRequest(ready=True))).models
    assert (await bench.infer("net", x=np.array([[7]], "int32")))["remainder"].tolist() == [[0]]
    assert await bench.ready("net")


async def test_a_file_that_kills_every_child_is_never_bound(bench: Bench) -> None:
    deadly = bench.put(remainder(bench.folder / "deadly.tflite", dividend=SMALLEST))
    with pytest.raises(SqueezeflowError) as caught:
        await bench.load("net", deadly)
    assert reason(caught) == "CHILD_CRASHED"
    assert not await bench.ready("net")


async def test_a_killed_child_is_replaced_at_the_next_call(bench: Bench) -> None:
    await bench.load("fashion", bench.model("cnn.tflite"))
    os.kill(bench_model_pid(bench), signal.SIGKILL)
    async with asyncio.timeout(20):
        while await bench.ready("fashion"):
            await asyncio.sleep(0.02)
    assert (await bench.infer("fashion", image=images(1)))["answer"].shape == (1, 10)


async def test_the_longest_unused_digest_makes_room_and_names_stay(bench: Bench) -> None:
    runner, sandbox = bench.worker.runner, bench.worker.sandbox
    resolver = Resolver(runner.artifacts, runner.cache, sandbox, bench.folder / "registry")
    registry = Registry(resolver, sandbox, workdir=bench.folder / "registry", threads=1, memory_mib=1024, max_models=3)
    first, second, third = (bench.model(name) for name in ("cnn.tflite", "values.tflite", "binary.tflite"))
    await registry.load("default", "kept", first)
    for digest in (first, second, first, third):
        async with registry.use("default", digest) as model:
            assert model.digests.artifact == digest
    assert [name for name, _ in registry.index("default")] == sorted([first, third, "kept"])
    async with registry.use("default", first), registry.use("default", third):
        with pytest.raises(SqueezeflowError) as caught:
            await registry.load("default", "more", second)
    assert reason(caught) == "OVERLOADED"
    await registry.load("default", "more", second)
    assert [name for name, _ in registry.index("default")] == sorted([third, "kept", "more"])
    await registry.close()
    assert not list((bench.folder / "registry").iterdir())


async def test_one_first_use_loads_a_digest_for_all_who_wait(bench: Bench) -> None:
    digest = bench.model("cnn.tflite")
    await asyncio.gather(*(bench.infer(digest, image=images(1)) for _ in range(6)))
    assert len(list((bench.folder / "work").iterdir())) == 1


async def test_evaluate_measures_against_the_baseline_and_is_cached(bench: Bench) -> None:
    request = evaluator_pb2.EvaluateRequest(
        model={"artifact": bench.model("cnn_int8.tflite")},
        baseline={"artifact": bench.model("cnn.tflite")},
        data={"artifact": dataset(bench), "scale": [1 / 255]},
    )
    events = await bench.events(bench.evaluator.Evaluate, request)
    result = events[-1].result
    assert set(result.metrics) == {"accuracy", "accuracy_drop", "label_flips"}
    assert result.metrics["accuracy"].samples == 10000
    assert 0.6 < result.metrics["accuracy"].low < result.metrics["accuracy"].high < 1
    assert not result.HasField("artifact")
    assert "evaluating" in {event.progress.stage for event in events}
    again = await bench.events(bench.evaluator.Evaluate, request)
    assert again[0].accepted.cached
    assert again[-1].result.metrics["accuracy"] == result.metrics["accuracy"]
    request.max_samples = 500
    fewer = await bench.events(bench.evaluator.Evaluate, request)
    assert not fewer[0].accepted.cached
    assert fewer[-1].result.metrics["accuracy"].samples == 500


async def test_evaluate_says_what_it_lacks(bench: Bench) -> None:
    model = {"artifact": bench.model("cnn.tflite")}
    for data, expected in (({}, "DATA_MISSING"), ({"artifact": dataset(bench)}, "DATA_MISMATCH")):
        request = evaluator_pb2.EvaluateRequest(model=model, data=data)
        with pytest.raises(SqueezeflowError) as caught:
            await bench.events(bench.evaluator.Evaluate, request)
        assert reason(caught) == expected
    not_tflite = evaluator_pb2.EvaluateRequest(model={"artifact": dataset(bench)}, data={"artifact": dataset(bench)})
    with pytest.raises(SqueezeflowError) as caught:
        await bench.events(bench.evaluator.Evaluate, not_tflite)
    assert reason(caught) == "UNSUPPORTED_INPUT"


async def test_benchmark_gives_a_ratio_and_is_never_cached(bench: Bench) -> None:
    request = evaluator_pb2.BenchmarkRequest(
        model={"artifact": bench.model("cnn_int8_io.tflite")}, baseline={"artifact": bench.model("cnn.tflite")}, runs=20
    )
    first, second = [await bench.events(bench.evaluator.Benchmark, request) for _ in range(2)]
    assert first[0].accepted.action != second[0].accepted.action
    assert not second[0].accepted.cached
    assert set(second[-1].result.metrics) == {"latency_p50_ms", "latency_p95_ms", "latency_ratio"}
    request.runs = 3
    with pytest.raises(SqueezeflowError) as caught:
        await bench.events(bench.evaluator.Benchmark, request)
    assert reason(caught) == "INVALID_PARAMETER"


async def test_a_client_made_from_reflection_calls_the_service(bench: Bench) -> None:
    pool = descriptor_pool.DescriptorPool()
    services = await reflect(bench, reflection_pb2.ServerReflectionRequest(list_services=""))
    names = {service.name for service in services.list_services_response.service}
    assert {"inference.GRPCInferenceService", "squeezeflow.v1.Evaluator", "squeezeflow.v1.Steps"} <= names
    answer = await reflect(bench, reflection_pb2.ServerReflectionRequest(file_containing_symbol=OPEN_INFERENCE))
    for data in answer.file_descriptor_response.file_descriptor_proto:
        pool.Add(descriptor_pb2.FileDescriptorProto.FromString(data))
    method = pool.FindServiceByName(OPEN_INFERENCE).FindMethodByName("ServerMetadata")
    request, response = (message_factory.GetMessageClass(m) for m in (method.input_type, method.output_type))
    rpc = bench.channel.unary_unary(f"/{OPEN_INFERENCE}/ServerMetadata", request.SerializeToString, response.FromString)
    assert (await rpc(request())).name == "squeezeflow"


async def test_clients_of_the_protocol_may_send_fields_that_are_not_known(bench: Bench) -> None:
    await bench.load("fashion", bench.model("cnn.tflite"))
    request = raw_request("fashion", image=images(1))
    request.MergeFromString(b"\xd2\x3e\x03new")
    response = await bench.call(bench.models.ModelInfer, request)
    assert len(response.outputs) == 1


async def reflect(bench: Bench, request: reflection_pb2.ServerReflectionRequest) -> Any:
    call = reflection_pb2_grpc.ServerReflectionStub(bench.channel).ServerReflectionInfo(iter([request]))
    return await call.read()


def dataset(bench: Bench) -> str:
    return bench.put(DATA / "fashion_mnist.npz", artifact_pb2.ARTIFACT_KIND_DATASET)


def bench_model_pid(bench: Bench) -> int:
    """Gives the child of the one loaded model: the one that has its file in memory."""
    for process in bench.children():
        if any(area.path.endswith("model.tflite") for area in process.memory_maps()):
            return process.pid
    pytest.fail("no child has a model loaded")


async def until(condition: Callable[[], bool], otherwise: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise
        await asyncio.sleep(0.02)

"""The client: one object that speaks to the orchestrator, and where a call needs them to converter and inference."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from squeezeflow.client import transfer
from squeezeflow.core import recipes as shipped
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.oip import open_inference_pb2 as oip
from squeezeflow.oip import open_inference_pb2_grpc as oip_grpc
from squeezeflow.rpc.channels import open_sync_channel
from squeezeflow.rpc.errors import from_rpc_error
from squeezeflow.rpc.tenant import DEFAULT_TENANT, tenant_metadata
from squeezeflow.v1 import (
    artifact_pb2,
    artifacts_pb2,
    artifacts_pb2_grpc,
    converter_pb2,
    converter_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    model_pb2,
    step_pb2,
    technique_pb2,
)

if TYPE_CHECKING:
    import numpy as np

FINAL_STATES = frozenset({jobs_pb2.JOB_STATE_SUCCEEDED, jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_CANCELLED})
# Describing and planning wait for a converter that is still starting, or for a large model to be read.
_SLOW_CALL = 300.0


class Client:
    """Compresses models through a running Squeezeflow.

    Every failure is a `squeezeflow.core.errors.SqueezeflowError` with a reason and a message that says what to change.

    Args:
        server: HOST:PORT or gRPC target of the orchestrator.
        tenant: whose artifacts and jobs these are.
        converter: HOST:PORT of the converter; only `describe` needs it.
        inference: HOST:PORT of inference; only `load` and `infer` need it.
        timeout: seconds that a short call may take.
    """

    def __init__(
        self,
        server: str,
        *,
        tenant: str = DEFAULT_TENANT,
        converter: str = "",
        inference: str = "",
        timeout: float = 30.0,
    ) -> None:
        self._targets = {"orchestrator": server, "converter": converter, "inference": inference}
        self._channels: dict[str, grpc.Channel] = {}
        self._metadata = tenant_metadata(tenant)
        self._timeout = timeout

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; calls that run end as CANCELLED."""
        for channel in self._channels.values():
            channel.close()

    # --- artifacts -----------------------------------------------------------------------------------------------

    def upload(
        self,
        path: str | Path,
        kind: int | None = None,
        *,
        role: transfer.Role | None = None,
        on_bytes: transfer.OnBytes | None = None,
    ) -> artifact_pb2.Artifact:
        """Stores a model or a dataset and gives its artifact; what is stored already is not sent again.

        Args:
            path: a file, or a folder (SavedModel, `.npy` files).
            kind: an `ArtifactKind`; told from name and leading bytes where None.
            role: `model` or `data`, to tell the kind by; told from the name where None.
            on_bytes: called with the number of bytes of every chunk that was sent.
        """
        source = Path(path)
        header = transfer.describe(source, kind, role)
        try:
            return self.get_artifact(header.digest)
        except SqueezeflowError as error:
            if error.reason != "NOT_FOUND":
                raise
        stub = self._artifacts()
        messages = transfer.upload_messages(header, source, on_bytes)
        stored: artifact_pb2.Artifact = self._call(
            "orchestrator", stub.WriteArtifact, messages, timeout=transfer.patience(header.size_bytes)
        )
        return stored

    def download(self, digest: str, dest: str | Path, *, replace: bool = False) -> Path:
        """Writes an artifact to `dest`, a file or (SavedModel, dataset folder) a folder, verified before it appears.

        Args:
            replace: whether a folder that is there already may be replaced.
        """
        artifact, target = self.get_artifact(digest), Path(dest)
        call = self._artifacts().ReadArtifact(
            artifacts_pb2.ReadArtifactRequest(digest=digest),
            timeout=transfer.patience(artifact.size_bytes),
            metadata=self._metadata,
        )
        try:
            transfer.receive(artifact, self._chunks(call), target, replace=replace)
        finally:
            call.cancel()
        return target

    def get_artifact(self, digest: str) -> artifact_pb2.Artifact:
        """Gives an artifact's kind and size."""
        request = artifacts_pb2.GetArtifactRequest(digest=digest)
        artifact: artifact_pb2.Artifact = self._call("orchestrator", self._artifacts().GetArtifact, request)
        return artifact

    def list_artifacts(self, *, page_size: int = 0, page_token: str = "") -> artifacts_pb2.ListArtifactsResponse:
        """Gives a page of the tenant's artifacts, ordered by digest."""
        request = artifacts_pb2.ListArtifactsRequest(page_size=page_size, page_token=page_token)
        page: artifacts_pb2.ListArtifactsResponse = self._call("orchestrator", self._artifacts().ListArtifacts, request)
        return page

    def lineage(self, digest: str) -> Sequence[artifact_pb2.ActionRecord]:
        """Gives the action records an artifact came from, nearest first."""
        request = artifacts_pb2.GetLineageRequest(digest=digest)
        response: artifacts_pb2.GetLineageResponse = self._call("orchestrator", self._artifacts().GetLineage, request)
        return response.actions

    # --- jobs ----------------------------------------------------------------------------------------------------

    def create_job(self, spec: jobs_pb2.JobSpec, *, request_id: str = "", validate_only: bool = False) -> jobs_pb2.Job:
        """Starts a job, or with `validate_only` gives it as it would run."""
        request = jobs_pb2.CreateJobRequest(
            spec=spec, request_id=request_id or uuid.uuid4().hex, validate_only=validate_only
        )
        return self._job(self._jobs().CreateJob, request, timeout=_SLOW_CALL)

    def get_job(self, job_id: str) -> jobs_pb2.Job:
        """Gives a job as it stands."""
        return self._job(self._jobs().GetJob, jobs_pb2.GetJobRequest(id=job_id))

    def list_jobs(self, *, page_size: int = 0, page_token: str = "") -> jobs_pb2.ListJobsResponse:
        """Gives a page of the tenant's jobs, newest first."""
        request = jobs_pb2.ListJobsRequest(page_size=page_size, page_token=page_token)
        page: jobs_pb2.ListJobsResponse = self._call("orchestrator", self._jobs().ListJobs, request)
        return page

    def watch_job(self, job_id: str, *, patience: float = 60.0) -> Iterator[jobs_pb2.Job]:
        """Gives a job as it stands, then again whenever it changes, until it has ended.

        Args:
            patience: seconds to wait for an orchestrator that went away: a restarted one goes on with the job.
        """
        lost_at: float | None = None
        while True:
            call = self._jobs().WatchJob(jobs_pb2.WatchJobRequest(id=job_id), metadata=self._metadata)
            try:
                for response in call:
                    lost_at = None
                    yield response.job
                    if response.job.state in FINAL_STATES:
                        return
            except grpc.RpcError as error:
                failure = from_rpc_error(error, self._what("orchestrator"))
                lost_at = lost_at or time.monotonic()
                waited = time.monotonic() - lost_at
                if failure.reason not in ("WORKER_UNAVAILABLE", "CANCELLED") or waited > patience:
                    raise failure from error
            finally:
                call.cancel()
            time.sleep(0.2)

    def cancel_job(self, job_id: str) -> jobs_pb2.Job:
        """Ends a job and its running steps."""
        return self._job(self._jobs().CancelJob, jobs_pb2.CancelJobRequest(id=job_id))

    def compress(
        self,
        model: str | Path,
        data: str | Path | None = None,
        recipes: Sequence[str | jobs_pb2.Recipe] = (),
        *,
        signature: str = "",
        scale: Sequence[float] = (),
        offset: Sequence[float] = (),
        fine_tune: technique_pb2.FineTune | None = None,
        exports: Sequence[technique_pb2.Export] = (),
        on_update: Callable[[jobs_pb2.Job], None] | None = None,
    ) -> jobs_pb2.Job:
        """Uploads a model and its data, runs a job over them and gives the job when it has ended.

        A recipe that fails is told in its candidate's `error`; a job that fails is given back, not raised.

        Args:
            model: `.keras`, `.h5`, or the folder of a SavedModel.
            data: `.npz`, or a folder of `.npy` files.
            recipes: shipped names (`int8`) or messages; none: `dynamic`, and `int8` where there is data.
            scale, offset: how stored values become the model's: `value · scale + offset`; one number, or one a channel.
            fine_tune: what trained techniques take where their recipe says nothing.
            on_update: called with the job whenever it changes.
        """
        spec = jobs_pb2.JobSpec(
            model=step_pb2.ModelInput(artifact=self.upload(model, role="model").digest, signature=signature),
            recipes=[shipped.named(recipe) if isinstance(recipe, str) else recipe for recipe in recipes],
            fine_tune=fine_tune,
            exports=exports,
        )
        if data is not None:
            digest = self.upload(data, role="data").digest
            spec.data.CopyFrom(step_pb2.DataInput(artifact=digest, scale=scale, offset=offset))
        job = self.create_job(spec)
        try:
            for update in self.watch_job(job.id):
                job = update
                if on_update is not None:
                    on_update(job)
        except KeyboardInterrupt:
            self.cancel_job(job.id)
            raise
        return job

    # --- models --------------------------------------------------------------------------------------------------

    def describe(self, model: str | Path, *, signature: str = "") -> model_pb2.ModelDescription:
        """Gives what a model is and what each technique would do with it.

        Args:
            model: a path, which is uploaded first, or an artifact's digest.
        """
        path = Path(model)
        digest = self.upload(path, role="model").digest if path.exists() else str(model)
        stub = self._stub("converter", converter_pb2_grpc.ConverterStub)
        request = converter_pb2.DescribeModelRequest(model=step_pb2.ModelInput(artifact=digest, signature=signature))
        description: model_pb2.ModelDescription = self._call(
            "converter", stub.DescribeModel, request, timeout=_SLOW_CALL
        )
        return description

    def load(self, name: str, artifact: str, *, contract: str = "") -> None:
        """Binds a name to a TFLite artifact, so that `infer` takes it."""
        request = oip.RepositoryModelLoadRequest(model_name=name)
        request.parameters["artifact"].string_param = artifact
        if contract:
            request.parameters["contract"].string_param = contract
        self._call("inference", self._inference().RepositoryModelLoad, request, timeout=_SLOW_CALL)

    def infer_raw(self, request: oip.ModelInferRequest) -> oip.ModelInferResponse:
        """Sends one request of the Open Inference Protocol as it is."""
        response: oip.ModelInferResponse = self._call(
            "inference", self._inference().ModelInfer, request, timeout=_SLOW_CALL
        )
        return response

    def infer(self, model_name: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs a served model once and gives its outputs by contract name.

        Arrays are in the file's own element types: nothing is scaled, quantized or dequantized.

        Args:
            model_name: a loaded name, or an artifact's digest.
            inputs: by contract name; batch axis first.
        """
        # numpy is not needed before the first tensor.
        from squeezeflow.client import tensors

        return tensors.outputs_of(self.infer_raw(tensors.infer_request(model_name, inputs)))

    def model_metadata(self, model_name: str) -> oip.ModelMetadataResponse:
        """Gives a served model's tensors."""
        request = oip.ModelMetadataRequest(name=model_name)
        metadata: oip.ModelMetadataResponse = self._call(
            "inference", self._inference().ModelMetadata, request, timeout=_SLOW_CALL
        )
        return metadata

    def model_ready(self, model_name: str) -> bool:
        """Gives whether a served model would answer at once."""
        request = oip.ModelReadyRequest(name=model_name)
        answer: oip.ModelReadyResponse = self._call("inference", self._inference().ModelReady, request)
        return answer.ready

    # --- calls ---------------------------------------------------------------------------------------------------

    def _jobs(self) -> Any:
        return self._stub("orchestrator", jobs_pb2_grpc.JobsStub)

    def _artifacts(self) -> Any:
        return self._stub("orchestrator", artifacts_pb2_grpc.ArtifactsStub)

    def _inference(self) -> Any:
        return self._stub("inference", oip_grpc.GRPCInferenceServiceStub)

    def _stub(self, service: str, stub: Any) -> Any:
        return stub(self._channel(service))

    def _job(self, method: Any, request: Any, *, timeout: float | None = None) -> jobs_pb2.Job:
        job: jobs_pb2.Job = self._call("orchestrator", method, request, timeout=timeout)
        return job

    def _call(self, service: str, method: Any, request: Any, *, timeout: float | None = None) -> Any:
        try:
            return method(request, timeout=timeout or self._timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._what(service)) from error

    def _chunks(self, call: Any) -> Iterator[bytes]:
        try:
            for response in call:
                if response.chunk:
                    yield response.chunk
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._what("orchestrator")) from error

    def _channel(self, service: str) -> grpc.Channel:
        target = self._targets[service]
        if not target:
            raise SqueezeflowError(
                "INVALID_PARAMETER",
                f"the address of {service} is not known: give {service}=HOST:PORT (command line: --{service}, or "
                f"SQUEEZEFLOW_{service.upper()})",
            )
        if service not in self._channels:
            self._channels[service] = open_sync_channel(target)
        return self._channels[service]

    def _what(self, service: str) -> str:
        return f"{service} at {self._targets[service]}"

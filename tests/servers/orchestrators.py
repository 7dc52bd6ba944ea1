"""The orchestrator as a process of its own, to be killed, and what tests say to it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.servers.processes import bound_to_parent, stop

from squeezeflow.rpc.channels import open_sync_channel
from squeezeflow.rpc.errors import from_rpc_error
from squeezeflow.rpc.tenant import tenant_metadata
from squeezeflow.v1 import artifacts_pb2_grpc, jobs_pb2, jobs_pb2_grpc


class OrchestratorProcess:
    """An orchestrator; a second one with the same folder goes on where the first was killed.

    Args:
        folder: database, scratch and log.
        port: where it listens.
        workers: address of all workers.
    """

    def __init__(self, folder: Path, store_url: str, port: int, workers: str, **environ: str) -> None:
        self.address = f"127.0.0.1:{port}"
        self._log = folder / "orchestrator.log"
        names = ("CONVERTER", "QUANTIZER", "PRUNER", "INFERENCE")
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SQUEEZEFLOW_")},
            "SQUEEZEFLOW_STORE": store_url,
            "SQUEEZEFLOW_LISTEN": self.address,
            "SQUEEZEFLOW_WORKDIR": str(folder / "orchestrator"),
            "SQUEEZEFLOW_SHUTDOWN_SECONDS": "5",
            **{f"SQUEEZEFLOW_{name}": workers for name in names},
            **environ,
        }
        with self._log.open("ab") as log:
            command = bound_to_parent([sys.executable, "-m", "squeezeflow.orchestrator"])
            self.process = subprocess.Popen(command, env=self._environ, stdout=log, stderr=log)

    def log(self) -> str:
        """Gives what it has said."""
        return self._log.read_text()

    def kill(self) -> None:
        """Ends it at once."""
        stop(self.process)

    def terminate(self) -> int:
        """Asks it to stop and gives its exit code."""
        self.process.terminate()
        return self.process.wait(20)

    def wait_serving(self, seconds: float = 120) -> None:
        """Waits until it is SERVING."""
        deadline = time.monotonic() + seconds
        with open_sync_channel(self.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while True:
                try:
                    status = stub.Check(health_pb2.HealthCheckRequest(), timeout=5).status
                    if status == health_pb2.HealthCheckResponse.SERVING:
                        return
                except grpc.RpcError:
                    if self.process.poll() is not None:
                        raise RuntimeError(f"it ended with {self.process.returncode}: {self.log()}") from None
                if time.monotonic() > deadline:
                    raise RuntimeError(f"it is not serving after {seconds:g} s: {self.log()}")
                time.sleep(0.05)


class JobsClient:
    """Calls `Jobs` and `Artifacts` of one tenant; failures come as SqueezeflowError."""

    def __init__(self, address: str, tenant: str = "default") -> None:
        self._channel = open_sync_channel(address)
        self._jobs = jobs_pb2_grpc.JobsStub(self._channel)
        self.artifacts = artifacts_pb2_grpc.ArtifactsStub(self._channel)
        self.metadata = tenant_metadata(tenant)

    def create(self, spec: jobs_pb2.JobSpec, *, request_id: str = "", validate_only: bool = False) -> jobs_pb2.Job:
        """Creates a job."""
        request = jobs_pb2.CreateJobRequest(spec=spec, request_id=request_id, validate_only=validate_only)
        return self.ask(self._jobs.CreateJob, request)

    def get(self, job: str) -> jobs_pb2.Job:
        """Gets a job."""
        return self.ask(self._jobs.GetJob, jobs_pb2.GetJobRequest(id=job))

    def list(self, *, page_size: int = 0, page_token: str = "") -> jobs_pb2.ListJobsResponse:
        """Lists jobs."""
        return self.ask(self._jobs.ListJobs, jobs_pb2.ListJobsRequest(page_size=page_size, page_token=page_token))

    def cancel(self, job: str) -> jobs_pb2.Job:
        """Cancels a job."""
        return self.ask(self._jobs.CancelJob, jobs_pb2.CancelJobRequest(id=job))

    def watch(self, job: str, seconds: float = 60) -> list[jobs_pb2.Job]:
        """Gives every state of a job until it has ended."""
        try:
            stream = self._jobs.WatchJob(jobs_pb2.WatchJobRequest(id=job), metadata=self.metadata, timeout=seconds)
            return [response.job for response in stream]
        except grpc.RpcError as error:
            raise from_rpc_error(error, "orchestrator") from error

    def ask(self, method: object, request: object, *, timeout: float = 60) -> object:
        """Calls any unary rpc."""
        try:
            return method(request, metadata=self.metadata, timeout=timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error, "orchestrator") from error

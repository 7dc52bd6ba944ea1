"""Serves the orchestrator: `python -m squeezeflow.orchestrator`."""

from __future__ import annotations

import asyncio
import os
import sys

from squeezeflow.core.config import ServiceConfig
from squeezeflow.core.config import load as load_config
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.store import open_store
from squeezeflow.orchestrator.artifacts_service import ArtifactsService
from squeezeflow.orchestrator.calls import Caller, Patience
from squeezeflow.orchestrator.checks import Checks
from squeezeflow.orchestrator.dbos_engine import DbosEngine
from squeezeflow.orchestrator.documents import JobDocuments
from squeezeflow.orchestrator.jobs import Jobs
from squeezeflow.orchestrator.leftovers import Leftovers
from squeezeflow.orchestrator.service import JobsService
from squeezeflow.orchestrator.settings import Settings
from squeezeflow.orchestrator.settings import load as load_settings
from squeezeflow.rpc.server import Mount, configure_logging, serve
from squeezeflow.rpc.worker_calls import WorkerCalls
from squeezeflow.v1.artifacts_pb2_grpc import add_ArtifactsServicer_to_server
from squeezeflow.v1.jobs_pb2_grpc import add_JobsServicer_to_server


async def run(config: ServiceConfig, settings: Settings) -> None:
    """Builds the orchestrator and serves it until it is told to stop."""
    store = open_store(config.store_url, access_key=config.store_access_key, secret_key=config.store_secret_key)
    scratch = config.workdir / "scratch"
    workers = WorkerCalls()
    engine = DbosEngine(settings.database, settings.executor)
    gone = settings.worker_gone_seconds
    checks = Checks(store, workers, settings.workers["converter"], scratch, wait_seconds=min(30.0, gone))
    caller = Caller(workers, settings.workers, Patience(unavailable_seconds=gone))
    jobs = Jobs(engine, caller, checks, JobDocuments(store), Leftovers(store))
    mounts = [
        Mount("squeezeflow.v1.Jobs", add_JobsServicer_to_server, JobsService(jobs)),
        Mount("squeezeflow.v1.Artifacts", add_ArtifactsServicer_to_server, ArtifactsService(store, scratch)),
    ]
    engine.take()
    await serve(config, mounts, ready=jobs.start(), close=[jobs.close, workers.close])


def main() -> int:
    """Gives the exit code of the process."""
    try:
        config = load_config("orchestrator", os.environ)
        settings = load_settings(config, os.environ)
        configure_logging(config.service, config.log_level)
        asyncio.run(run(config, settings))
    except SqueezeflowError as error:
        print(error, file=sys.stderr)
        return 2 if error.reason == "INVALID_PARAMETER" else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

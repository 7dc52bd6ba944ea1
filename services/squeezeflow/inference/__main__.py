"""Serves inference: `python -m squeezeflow.inference`."""

from __future__ import annotations

import os
import sys

from squeezeflow.core.config import load
from squeezeflow.inference.preload import ENGINE
from squeezeflow.inference.registry import Registry
from squeezeflow.inference.servable import Resolver
from squeezeflow.inference.service import OPEN_INFERENCE, RECEIVE_LIMIT, Evaluator, OpenInference
from squeezeflow.oip.open_inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from squeezeflow.rpc.server import Mount
from squeezeflow.rpc.worker import Worker, run_worker
from squeezeflow.v1.evaluator_pb2_grpc import add_EvaluatorServicer_to_server


def mounts(worker: Worker) -> list[Mount]:
    """Gives what this service serves besides `Steps`."""
    config, runner, sandbox = worker.config, worker.runner, worker.sandbox
    resolver = Resolver(runner.artifacts, runner.cache, sandbox, config.workdir)
    registry = Registry(
        resolver, sandbox, workdir=config.workdir, threads=config.step_threads, memory_mib=config.step_memory_mib
    )
    return [
        Mount(OPEN_INFERENCE, add_GRPCInferenceServiceServicer_to_server, OpenInference(registry)),
        Mount("squeezeflow.v1.Evaluator", add_EvaluatorServicer_to_server, Evaluator(runner, resolver)),
    ]


if __name__ == "__main__":
    sys.exit(
        run_worker(
            lambda: load("inference", os.environ),
            ENGINE,
            mounts,
            foreign={OPEN_INFERENCE},
            receive_limit=RECEIVE_LIMIT,
        )
    )

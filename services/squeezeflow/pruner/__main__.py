"""Serves the pruner: `python -m squeezeflow.pruner`."""

from __future__ import annotations

import os
import sys

from squeezeflow.core.config import load
from squeezeflow.modelkit.engine import tensorflow_engine
from squeezeflow.pruner.service import PrunerService
from squeezeflow.rpc.server import Mount
from squeezeflow.rpc.worker import Worker, run_worker
from squeezeflow.v1.pruner_pb2_grpc import add_PrunerServicer_to_server


def mounts(worker: Worker) -> list[Mount]:
    """Gives what this service serves besides `Steps`."""
    service = PrunerService(worker.runner)
    return [Mount("squeezeflow.v1.Pruner", add_PrunerServicer_to_server, service)]


if __name__ == "__main__":
    techniques = ("squeezeflow.pruner.prune", "squeezeflow.pruner.cluster")
    engine = tensorflow_engine(*techniques, packages=("tensorflow-model-optimization",))
    sys.exit(run_worker(lambda: load("pruner", os.environ), engine, mounts))

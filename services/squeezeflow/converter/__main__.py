"""Serves the converter: `python -m squeezeflow.converter`."""

from __future__ import annotations

import os
import sys

from squeezeflow.converter.description import Describer
from squeezeflow.converter.service import ConverterService
from squeezeflow.core.config import load
from squeezeflow.modelkit.engine import tensorflow_engine
from squeezeflow.rpc.server import Mount
from squeezeflow.rpc.worker import Worker, run_worker
from squeezeflow.v1.converter_pb2_grpc import add_ConverterServicer_to_server


def mounts(worker: Worker) -> list[Mount]:
    """Gives what this service serves besides `Steps`."""
    service = ConverterService(worker.runner, Describer(worker.config, worker.runner, worker.sandbox))
    return [Mount("squeezeflow.v1.Converter", add_ConverterServicer_to_server, service)]


if __name__ == "__main__":
    engine = tensorflow_engine(
        "squeezeflow.converter.convert", "squeezeflow.converter.export", "squeezeflow.converter.describe"
    )
    sys.exit(run_worker(lambda: load("converter", os.environ), engine, mounts))

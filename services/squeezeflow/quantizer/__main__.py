"""Serves the quantizer: `python -m squeezeflow.quantizer`."""

from __future__ import annotations

import os
import sys

from squeezeflow.core.config import load
from squeezeflow.modelkit.engine import tensorflow_engine
from squeezeflow.quantizer.service import QuantizerService
from squeezeflow.rpc.server import Mount
from squeezeflow.rpc.worker import Worker, run_worker
from squeezeflow.v1.quantizer_pb2_grpc import add_QuantizerServicer_to_server


def mounts(worker: Worker) -> list[Mount]:
    """Gives what this service serves besides `Steps`."""
    service = QuantizerService(worker.runner)
    return [Mount("squeezeflow.v1.Quantizer", add_QuantizerServicer_to_server, service)]


if __name__ == "__main__":
    engine = tensorflow_engine(
        "squeezeflow.quantizer.quantize",
        "squeezeflow.quantizer.ai_edge",
        "squeezeflow.quantizer.train_quantized",
        packages=("ai-edge-quantizer", "tensorflow-model-optimization"),
    )
    sys.exit(run_worker(lambda: load("quantizer", os.environ), engine, mounts))

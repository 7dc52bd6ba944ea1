"""The fork server only imports; a warmed process has done its first conversion and keeps to its threads."""

from __future__ import annotations

import subprocess
import sys

# One process for both: importing TensorFlow is what costs here.
CODE = """
import os
os.environ["SQUEEZEFLOW_STEP_THREADS"] = "1"
import squeezeflow.modelkit.preload
from tensorflow.python.eager import context
assert context.context()._context_handle is None, "preload ran a TensorFlow operation"

from squeezeflow.modelkit import threads, warm
warm.warm()
assert context.context()._context_handle is not None
import tensorflow as tf
assert tf.config.threading.get_intra_op_parallelism_threads() == 1
assert tf.config.threading.get_inter_op_parallelism_threads() == 1
threads.limit(1)
threads.limit(2)
assert tf.config.threading.get_intra_op_parallelism_threads() == 1
"""


def test_preloading_runs_no_operation_and_warming_limits_the_threads() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]

"""How many threads TensorFlow uses in a step's process."""

from __future__ import annotations

import os

import tensorflow as tf

# Set by the service for its children: a spare child warms up before it knows its step.
VARIABLE = "SQUEEZEFLOW_STEP_THREADS"


def limit(count: int | None = None) -> None:
    """Limits TensorFlow to `count` threads, by default to what the environment says.

    Must come before the first operation; later it changes nothing, which is right only where the number is the same: a
    warmed spare was limited by the environment.
    """
    threads = count or int(os.environ.get(VARIABLE, "0"))
    if not threads or tf.config.threading.get_intra_op_parallelism_threads() == threads:
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError:
        return

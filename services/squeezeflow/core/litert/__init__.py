"""Running TFLite files with LiteRT, by contract names and in batches.

interpreter  one LiteRT interpreter: shapes, delegate, state, and what its errors mean
binding      contract names to tensors, arrays against them
quantization real values to the file's integers and back
tracing      every tensor of one invocation, for explaining failures
runner       samples in, samples out: names, batches, state between samples
"""

from squeezeflow.core.litert.runner import Runner

__all__ = ["Runner"]

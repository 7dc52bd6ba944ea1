"""TFLite files, read as what they are: flatbuffers. No interpreter, no TensorFlow; LiteRT's schema is imported on use.

Reading is safe on any bytes: what is not a whole, consistent TFLite file is MALFORMED_MODEL.

layout      tensors, operators and signatures as values
flatbuffer  bounded reading of the bytes into the layout
values      constants as arrays: packed integers, short floats
weights     which constants are weights of which operator, and along which axis their output channels run
arithmetic  whether an operator computes in integers, in floats, or in both
macs        multiply-accumulates of operators
arena       memory that activations take at their peak
explain     why an operator is float, and which layer it came from
file        all of it for one file, and the descriptions that are sent
compaction  the same model in fewer bytes
naming      short names for tensors, which tell the same layers
packing     writing the bytes
"""

from squeezeflow.core.tflite.file import TfliteFile
from squeezeflow.core.tflite.layout import Operator, Signature, Subgraph, Tensor
from squeezeflow.core.tflite.weights import Weight

__all__ = ["Operator", "Signature", "Subgraph", "Tensor", "TfliteFile", "Weight"]

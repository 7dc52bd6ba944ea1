"""The Python SDK: `from squeezeflow.client import Client`. Needs no TensorFlow, no LiteRT and no object store."""

from squeezeflow.client.client import Client

__all__ = ["Client"]

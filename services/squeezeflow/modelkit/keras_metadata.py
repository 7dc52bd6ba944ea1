"""What tf_keras writes beside the graph of a SavedModel: its models and layers as JSON, in `keras_metadata.pb`.

TensorFlow 2.0 to 2.4 kept the same texts in the nodes of the object graph. They are read here and nothing is made of
them. A model that was exported (`model.export`, `tf.saved_model.save`) has none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.modelkit.scan_archive import MAX_CONFIG

FILE = "keras_metadata.pb"
# One a model, layer, loss or metric; the largest published models have some thousands.
MAX_NODES = 100_000


@dataclass(frozen=True)
class KerasRoot:
    """The object that was saved, where that is a Keras one.

    Attributes:
        config: its `class_name` and `config`, as plain JSON.
        training: how it was compiled; anything.
        version: of the library that wrote it, as far as the file tells.
    """

    config: dict[str, Any]
    training: Any
    version: str


def nodes(folder: Path) -> list[tuple[int, str]]:
    """Gives (node in the object graph, JSON) of every Keras object that `keras_metadata.pb` describes.

    Errors: MALFORMED_MODEL, also beyond what a model can have.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    from google.protobuf.message import DecodeError
    from tf_keras.protobuf import saved_metadata_pb2

    if path.stat().st_size > MAX_CONFIG:
        raise _malformed(f"has more than {MAX_CONFIG} bytes")
    metadata = saved_metadata_pb2.SavedMetadata()
    try:
        metadata.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise _malformed("cannot be read") from error
    if len(metadata.nodes) > MAX_NODES:
        raise _malformed(f"describes {len(metadata.nodes)} objects; at most {MAX_NODES} are taken")
    return [(node.node_id, node.metadata) for node in metadata.nodes]


def root_of(folder: Path, graph: Any) -> KerasRoot | None:
    """Gives the Keras object that a SavedModel was saved from; None where it was none, or does not say.

    Args:
        graph: the SavedModel's meta graph.

    Errors: MALFORMED_MODEL.
    """
    found = dict(nodes(folder))
    objects = graph.object_graph_def.nodes
    text = found.get(0, "") if found else objects[0].user_object.metadata if objects else ""
    try:
        node = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(node, dict) or "class_name" not in node or not isinstance(node.get("config"), dict):
        return None
    config = {"class_name": node["class_name"], "config": node["config"]}
    return KerasRoot(config, node.get("training_config"), str(node.get("keras_version", "")))


def decoded(value: Any) -> Any:
    """Gives a scanned configuration with the tuples and shapes that JSON cannot hold."""
    if isinstance(value, list):
        return [decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("class_name") in ("__tuple__", "TensorShape") and "config" not in value:
        items = value.get("items")
        return tuple(decoded(item) for item in items) if isinstance(items, list) else None
    if value.get("class_name") == "__ellipsis__":
        return Ellipsis
    return {key: decoded(item) for key, item in value.items()}


def _malformed(what: str) -> SqueezeflowError:
    return SqueezeflowError(
        "MALFORMED_MODEL", f"{FILE} {what}: save the model again and check that the upload is complete"
    )

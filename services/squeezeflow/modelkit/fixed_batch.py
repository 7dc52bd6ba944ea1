"""SavedModels with a loop over time: found in their graph, and written again with batch 1.

A TensorList whose elements have a free batch axis does not convert ("requires element_shape to be static"). Keras
models are traced anew with batch 1; in a SavedModel the free axis stands as a constant in the traced functions, where a
narrower call does not reach it. So `saved_model.pb` is written again with 1 in those constants and in the signature;
the variables stay where they are. What the copy computes is compared with the original like any other file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

# Operator → which of its inputs is the shape of an element.
_ELEMENT_SHAPES = {
    **dict.fromkeys(["TensorListReserve", "EmptyTensorList"], 0),
    **dict.fromkeys(["TensorListStack", "TensorListFromTensor"], 1),
    "TensorListGetItem": 2,
}


def needs_batch(graph: Any, signature: str) -> bool:
    """Tells whether a signature with a free batch axis holds a list of tensors with a free first axis."""
    inputs = graph.signature_def[signature].inputs.values()
    if not any(_free(info) for info in inputs):
        return False
    return any(_is_free(shape) for nodes in _reachable(graph, signature) for shape in _element_shapes(nodes))


def fix(graph: Any, signature: str) -> None:
    """Sets the batch of a signature to 1, in its definition and in the lists of its loops."""
    for nodes in _reachable(graph, signature):
        for unknown, known in _filled_in_loops(nodes):
            unknown.attr["value"].tensor.CopyFrom(known.attr["value"].tensor)
            # It says that the constant is a scalar, which it was.
            unknown.attr.pop("_output_shapes", None)
        for shape in _element_shapes(nodes):
            if _is_free(shape):
                values = tf.make_ndarray(shape.attr["value"].tensor).copy()
                values[0] = 1
                shape.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(values))
    definition = graph.signature_def[signature]
    placeholders = {info.name.split(":")[0] for info in definition.inputs.values() if _free(info)}
    for node in graph.graph_def.node:
        if node.name in placeholders:
            for shape in (node.attr["shape"].shape, *node.attr["_output_shapes"].list.shape):
                if shape.dim:
                    shape.dim[0].size = 1
    for info in (*definition.inputs.values(), *definition.outputs.values()):
        if _free(info):
            info.tensor_shape.dim[0].size = 1


def write(folder: Path, message: saved_model_pb2.SavedModel) -> Path:
    """Writes a changed saved_model.pb into a folder that it gives, with links to another's variables and assets."""
    target = Path(tempfile.mkdtemp(prefix="squeezeflow-"))
    for entry in folder.iterdir():
        if entry.is_dir():
            (target / entry.name).symlink_to(entry.resolve(), target_is_directory=True)
    (target / "saved_model.pb").write_bytes(message.SerializeToString())
    return target


def _free(info: Any) -> bool:
    return bool(info.tensor_shape.dim) and info.tensor_shape.dim[0].size == -1


def _is_free(shape: Any) -> bool:
    values = tf.make_ndarray(shape.attr["value"].tensor)
    return bool(values.ndim == 1 and values.size and values[0] == -1)


def _element_shapes(nodes: Any) -> Iterator[Any]:
    """Yields the constants that say what shape the elements of a list have."""
    by_name = {node.name: node for node in nodes}
    for node in nodes:
        place = _ELEMENT_SHAPES.get(node.op)
        if place is None or place >= len(node.input):
            continue
        constant = by_name.get(node.input[place].split(":")[0])
        if constant is not None and constant.op == "Const":
            yield constant


def _filled_in_loops(nodes: Any) -> Iterator[tuple[Any, Any]]:
    """Yields (constant of a shape that is not known, constant of the shape) of lists that a loop fills.

    `tf.TensorArray` without an element shape makes a list of anything; where the loop's result is stacked, its shape is
    known.
    """
    by_name = {node.name: node for node in nodes}
    stacks = {node.input[0]: by_name.get(node.input[1].split(":")[0]) for node in nodes if node.op == "TensorListStack"}
    for loop in nodes:
        if loop.op not in ("While", "StatelessWhile"):
            continue
        for place, given in enumerate(loop.input):
            made = by_name.get(given.split(":")[0])
            if made is None or made.op != "TensorListReserve":
                continue
            unknown = by_name.get(made.input[0].split(":")[0])
            names = (f"{loop.name}:output:{place}", f"{loop.name}:{place}" if place else loop.name)
            known = next((stacks[name] for name in names if stacks.get(name) is not None), None)
            if unknown is None or known is None or {unknown.op, known.op} != {"Const"}:
                continue
            if not tf.make_ndarray(unknown.attr["value"].tensor).shape:
                yield unknown, known


def _reachable(graph: Any, signature: str) -> Iterator[Any]:
    """Yields the nodes that a signature needs: of the graph, and of every function that is called from there."""
    own = {node.name: node for node in graph.graph_def.node}
    names = {info.name for info in graph.signature_def[signature].outputs.values()}
    start = _upstream(own, names)
    functions = {function.signature.name: function.node_def for function in graph.graph_def.library.function}
    waiting, seen = [start], set()
    while waiting:
        nodes = waiting.pop()
        yield nodes
        for called in {name for node in nodes for name in _calls(node)} - seen:
            seen.add(called)
            if called in functions:
                waiting.append(functions[called])


def _upstream(nodes: dict[str, Any], outputs: set[str]) -> list[Any]:
    waiting, seen = [name.split(":")[0] for name in outputs], set()
    while waiting:
        name = waiting.pop().lstrip("^")
        if name not in seen and name in nodes:
            seen.add(name)
            waiting += [given.split(":")[0] for given in nodes[name].input]
    return [nodes[name] for name in sorted(seen)]


def _calls(node: Any) -> Iterator[str]:
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        yield from (function.name for function in value.list.func)

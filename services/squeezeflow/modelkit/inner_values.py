"""What a model computes inside: every tensor of its traced function, by the paths of operations.

The converter names the tensors of a file by those paths, so they are what a file can be compared with below its
outputs. The function is frozen first: then all that it calls lies in one graph, whose tensors can be asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from squeezeflow.core.invariants.origins import Key, Node

_CALL = re.compile(r"(Stateful)?PartitionedCall(_\d+)?")
# What hands a constant on as it is.
_SAME = frozenset({"Identity", "ReadVariableOp"})
_STORED = frozenset({"Const", "Placeholder"})


class InnerValues:
    """A function with one sample in it.

    Args:
        function: a concrete function over tensors.
        arrays: the sample, in the order of the function's arguments.
    """

    def __init__(self, function: Any, arrays: Sequence[np.ndarray]) -> None:
        self._frozen = convert_variables_to_constants_v2(function, lower_control_flow=False)
        self._inputs = [tensor for tensor in self._frozen.inputs if tensor.dtype != tf.resource]
        self._arrays = [tf.constant(a, t.dtype) for a, t in zip(arrays, self._inputs, strict=True)]
        self._by_path: dict[str, list[Any]] = {}
        self._by_scope: dict[str, list[Any]] = {}
        for operation in self._frozen.graph.get_operations():
            if operation.outputs and operation.outputs[0].dtype.is_floating and operation.type not in _STORED:
                self._by_path.setdefault(_path(operation.name), []).append(operation.outputs[0])
                for scope in _scopes(_path(operation.name)):
                    self._by_scope.setdefault(scope, []).append(operation.outputs[0])

    def like(self, nodes: Sequence[Node]) -> dict[Key, list[np.ndarray]]:
        """Gives, by node of another graph, what it may be: the operation of its name, else all in its layers.

        Names in files tell the layers of what was fused, and not always its last operation.
        """
        found = {node.key: list(self._operations(node)) for node in nodes}
        wanted = {tensor.name: tensor for tensors in found.values() for tensor in tensors}
        values = dict(zip(wanted, self._run(list(wanted.values())), strict=True))
        return {key: [values[tensor.name] for tensor in tensors] for key, tensors in found.items() if tensors}

    def nodes(self) -> tuple[list[Node], dict[Key, np.ndarray]]:
        """Gives all computed floats, in an order of execution, and their values by key."""
        ordered = [o for o in _in_order(self._frozen.outputs) if o.outputs[0].dtype.is_floating]
        values = self._run([operation.outputs[0] for operation in ordered])
        root = _root([_path(operation.name).split("/") for operation in ordered])
        nodes = [
            Node(path, o.type, path, _layer(path, root), tuple(_path(tensor.op.name) for tensor in o.inputs))
            for path, o in ((_path(operation.name), operation) for operation in ordered)
        ]
        return nodes, dict(zip([node.key for node in nodes], values, strict=True))

    def constants(self, node: Node) -> str:
        """Names the weights that are not finite among what a node takes; empty where there are none."""
        found = []
        for tensor in self._by_path[str(node.key)][0].op.inputs:
            source = tensor.op
            while source.type in _SAME:
                source = source.inputs[0].op
            if source.type == "Const" and source.outputs[0].dtype.is_floating:
                values = tf.make_ndarray(source.get_attr("value"))
                if not np.isfinite(values).all():
                    kind = "NaN" if np.isnan(values).any() else "infinity"
                    found.append(f"a weight of shape {list(values.shape)} that holds {kind}")
        return " and ".join(found)

    def _operations(self, node: Node) -> Iterator[Any]:
        if node.tensor == node.key and node.tensor in self._by_path:
            # A graph of TensorFlow's, too.
            yield from self._by_path[node.tensor]
            return
        for layer in filter(None, node.layer.split(", ")):
            yield from self._by_scope.get(layer, ())

    def _run(self, tensors: list[Any]) -> list[np.ndarray]:
        if not tensors:
            return []
        results = self._frozen.prune(self._inputs, tensors)(*self._arrays)
        return [result.numpy() for result in results]


def _path(name: str) -> str:
    """Gives the path of an operation without the calls that it lies in."""
    return "/".join(part for part in name.split("/") if part and not _CALL.fullmatch(part))


def _scopes(path: str) -> Iterator[str]:
    """Yields the scopes that an operation lies in, as layers are called: with the model's name and without."""
    parts = path.split("/")[:-1]
    for start in range(min(len(parts), 2)):
        for end in range(start + 1, len(parts) + 1):
            yield "/".join(parts[start:end])


def _root(paths: Sequence[Sequence[str]]) -> str:
    first = {path[0] for path in paths if len(path) > 1}
    return first.pop() if len(first) == 1 else ""


def _layer(path: str, root: str) -> str:
    parts = path.split("/")[:-1]
    return "/".join(parts[1:] if root and parts and parts[0] == root else parts)


def _in_order(outputs: Sequence[Any]) -> list[Any]:
    """Gives the computing operations that outputs need, each after those it needs."""
    done: dict[str, Any] = {}
    pending = [(tensor.op, False) for tensor in outputs]
    seen: set[str] = set()
    while pending:
        operation, expanded = pending.pop()
        if expanded:
            done[operation.name] = operation
        elif operation.name not in seen:
            seen.add(operation.name)
            pending.append((operation, True))
            pending += [(tensor.op, False) for tensor in operation.inputs]
    skipped = ("Const", "Placeholder", "NoOp")
    unpacked = {o.name for o in done.values() if o.type in _SAME and o.inputs[0].op.type == "Const"}
    return [o for o in done.values() if o.outputs and o.type not in skipped and o.name not in unpacked]

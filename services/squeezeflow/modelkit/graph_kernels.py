"""Which variables of a SavedModel are kernels, read from its graph without layers to ask.

A signature's graph is followed from its outputs through every function that it calls: what a matrix product or a
convolution takes from a variable is a kernel. Where a variable's values lie in the checkpoint is read from the
operations that restore it, the same ones that every loader runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

# Operations that take kernels, and which of their inputs may be one.
_KERNEL_INPUTS = {
    **dict.fromkeys(["MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum"], (0, 1)),
    **dict.fromkeys(["Conv2D", "Conv3D", "Conv2DBackpropInput", "Conv3DBackpropInputV2"], (1,)),
}
_HANDLES = frozenset({"VarHandleOp", "VariableV2", "Variable"})
# What hands a tensor on as it is, and what only arranges its values in another way.
_SAME = frozenset({"ReadVariableOp", "Identity", "Cast", "StopGradient", "Enter", "RefEnter", "Snapshot"})
_REARRANGED = frozenset({"Reshape", "Transpose", "Squeeze", "ExpandDims"})
_BRANCHES = frozenset({"If", "StatelessIf", "Case", "StatelessCase"})
_ASSIGNS = frozenset({"AssignVariableOp", "Assign"})


@dataclass(frozen=True)
class GraphVariable:
    """A variable that a signature reads.

    Attributes:
        name: as the graph calls it, `dense/kernel`.
        key: where the checkpoint holds its values; empty where it holds none under a name of its own.
        kernel_of: operations that take it as a kernel: `MatMul`; empty where none does.
        read_by: other operations that read it: `AddV2`, `DepthwiseConv2dNative`.
        input_axis: the axis that those operations sum over, from the end: −1 or −2; None where there is no such axis.
    """

    name: str
    key: str
    kernel_of: tuple[str, ...]
    read_by: tuple[str, ...]
    input_axis: int | None


def variables_of(graph: Any, signature: str) -> list[GraphVariable]:
    """Gives the variables that a signature of a MetaGraphDef reads, by name."""
    walk = _Walk({function.signature.name: function for function in graph.graph_def.library.function})
    nodes = {node.name: node for node in graph.graph_def.node}
    outputs = [info.name for info in graph.signature_def[signature].outputs.values()]
    walk.visit(_Scope(_ancestors(nodes, outputs), {}))
    restored = _Walk(walk.functions)
    if graph.saver_def.restore_op_name:
        restored.visit(_Scope(_ancestors(nodes, [graph.saver_def.restore_op_name]), {}))
    handles = {node.name for node in nodes.values() if node.op in _HANDLES}
    found = []
    for variable, uses in sorted(walk.uses.items()):
        axes = {axis for _, axis in uses}
        found.append(
            GraphVariable(
                _plain_name(variable, handles - set(walk.uses) - set(walk.reads)),
                restored.keys.get(variable, ""),
                tuple(dict.fromkeys(operation for operation, _ in uses)),
                tuple(dict.fromkeys(walk.reads.get(variable, ()))),
                axes.pop() if len(axes) == 1 else None,
            )
        )
    for variable in sorted(set(walk.reads) - set(walk.uses)):
        name = _plain_name(variable, handles - set(walk.uses) - set(walk.reads))
        key, readers = restored.keys.get(variable, ""), tuple(dict.fromkeys(walk.reads[variable]))
        found.append(GraphVariable(name, key, (), readers, None))
    return sorted(found, key=lambda variable: variable.name)


@dataclass(frozen=True)
class _Scope:
    """The nodes of a graph or a function by name, and the variables that the function's arguments are."""

    nodes: Mapping[str, Any]
    arguments: Mapping[str, str]


@dataclass
class _Walk:
    """What was found in a graph and in the functions that it calls.

    Attributes:
        uses: by variable: (operation that takes it as a kernel, axis that it sums over).
        reads: by variable: operations that read it otherwise.
        keys: by variable: the name under which it is restored.
    """

    functions: Mapping[str, Any]
    uses: dict[str, list[tuple[str, int | None]]] = field(default_factory=dict)
    reads: dict[str, list[str]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    seen: set[tuple[str, tuple[tuple[str, str], ...]]] = field(default_factory=set)

    def visit(self, scope: _Scope) -> None:
        """Looks at every node of a scope, and at the functions that it calls."""
        for node in scope.nodes.values():
            inputs = [reference for reference in node.input if not reference.startswith("^")]
            if node.op in _ASSIGNS:
                self._assign(scope, inputs)
                continue
            called = list(_called(node, inputs))
            for name, given in called:
                self._call(scope, name, given)
            if called or node.op in _SAME | _REARRANGED | _HANDLES:
                continue
            kernel_inputs = _KERNEL_INPUTS.get(node.op, ())
            for index, reference in enumerate(inputs):
                variable, direct = _variable(scope, reference)
                if variable and index in kernel_inputs:
                    axis = _summed_axis(node, index) if direct else None
                    self.uses.setdefault(variable, []).append((node.op, axis))
                elif variable:
                    self.reads.setdefault(variable, []).append(node.op)

    def _call(self, scope: _Scope, name: str, given: Sequence[str]) -> None:
        function = self.functions.get(name)
        if function is None:
            return
        names = [argument.name for argument in function.signature.input_arg]
        arguments = {
            argument: variable
            for argument, reference in zip(names, given, strict=False)
            if (variable := _variable(scope, reference)[0])
        }
        key = (name, tuple(sorted(arguments.items())))
        if key not in self.seen:
            self.seen.add(key)
            self.visit(_Scope({node.name: node for node in function.node_def}, arguments))

    def _assign(self, scope: _Scope, inputs: Sequence[str]) -> None:
        variable, _ = _variable(scope, inputs[0])
        key = _restored(scope, inputs[1])
        if variable and key:
            self.keys[variable] = key


def _ancestors(nodes: Mapping[str, Any], references: Sequence[str]) -> dict[str, Any]:
    pending, found = [_node_name(reference) for reference in references], {}
    while pending:
        name = pending.pop()
        if name in nodes and name not in found:
            found[name] = nodes[name]
            pending += [_node_name(reference) for reference in nodes[name].input]
    return found


def _node_name(reference: str) -> str:
    return reference.lstrip("^").split(":")[0]


def _called(node: Any, inputs: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    """Gives the functions that a node calls, with what it hands them."""
    given = inputs[1:] if node.op in _BRANCHES else inputs
    for attribute in node.attr.values():
        for name in [attribute.func.name, *(function.name for function in attribute.list.func)]:
            if name:
                yield name, given


def _variable(scope: _Scope, reference: str) -> tuple[str, bool]:
    """Gives the variable that a tensor is, empty where it is none; and whether its axes are the variable's."""
    direct = True
    name = _node_name(reference)
    while name not in scope.arguments:
        node = scope.nodes.get(name)
        if node is None:
            return "", direct
        if node.op in _HANDLES:
            return str(node.name), direct
        if node.op not in _SAME | _REARRANGED:
            return "", direct
        direct = direct and node.op not in _REARRANGED
        name = _node_name(node.input[0])
    return scope.arguments[name], direct


def _summed_axis(node: Any, index: int) -> int | None:
    """Gives the axis of a kernel that an operation sums over: rows of x · K, columns where K is transposed."""
    if node.op == "Conv2D":
        return -2
    if node.op == "MatMul":
        if index == 1:
            return -1 if node.attr["transpose_b"].b else -2
        return -2 if node.attr["transpose_a"].b else -1
    return None


def _restored(scope: _Scope, reference: str) -> str:
    """Gives the checkpoint's name of a tensor that is restored; empty where it is none, or only a slice of one."""
    node = scope.nodes.get(_node_name(reference))
    while node is not None and node.op in _SAME:
        reference = node.input[0]
        node = scope.nodes.get(_node_name(reference))
    if node is None or node.op != "RestoreV2":
        return ""
    last = reference.split(":")[-1]
    index = int(last) if last.isdigit() else 0
    names, slices = (_strings(scope, node.input[position]) for position in (1, 2))
    return names[index] if index < len(names) and not any(slices[index : index + 1]) else ""


def _strings(scope: _Scope, reference: str) -> list[str]:
    node = scope.nodes.get(_node_name(reference))
    if node is None or node.op != "Const":
        return []
    return [value.decode() for value in tf.make_ndarray(node.attr["value"].tensor).reshape(-1)]


def _plain_name(variable: str, unread: set[str]) -> str:
    """Gives the name without the number that a second copy of a variable, which nothing reads, has forced on it."""
    plain = re.sub(r"_\d+$", "", variable)
    return plain if plain in unread else variable

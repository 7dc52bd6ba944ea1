"""Short names for the tensors of a file, which tell the same Keras layers as the long ones.

`cnn/dense/MatMul;cnn/dense/Relu;cnn/dense/BiasAdd` becomes `dense/MatMul`, a name without a layer the tensor's number.
Names of inputs, outputs and signatures are for callers and stay whole; names are unique in the file, since tools find
tensors by them.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace

from squeezeflow.core.tflite.explain import Explainer
from squeezeflow.core.tflite.layout import Signature, Subgraph

# Stands for the model's name: where all layers lie in one scope, that would be taken for it.
_ROOT = "m/"


def short_names(subgraphs: Sequence[Subgraph], signatures: Sequence[Signature]) -> list[list[str]]:
    """Gives, by graph, a name for each of its tensors; those of a graph stay long where short ones would tell less."""
    kept = [_kept(number, graph, signatures) for number, graph in enumerate(subgraphs)]
    taken = {graph.tensors[index].name for graph, indices in zip(subgraphs, kept, strict=True) for index in indices}
    names: list[list[str]] = []
    for graph, indices in zip(subgraphs, kept, strict=True):
        names.append(_names_of(graph, indices, taken))
        taken.update(names[-1])
    return names


def _kept(number: int, graph: Subgraph, signatures: Sequence[Signature]) -> set[int]:
    """Gives the tensors whose names are for callers."""
    own = [signature for signature in signatures if signature.subgraph == number]
    named = {index for signature in own for index in (*signature.inputs.values(), *signature.outputs.values())}
    return {*graph.inputs, *graph.outputs, *named}


def _names_of(graph: Subgraph, kept: Set[int], taken: Set[str]) -> list[str]:
    before = Explainer(graph)
    # Where names that stay begin with the model's own, the others have to as well.
    for root in ("", _ROOT, *([f"{before.root}/"] if before.root else [])):
        names = _shortened(graph, before, kept, taken, root)
        renamed = [replace(tensor, name=name) for tensor, name in zip(graph.tensors, names, strict=True)]
        if _tells_the_same(before, graph, replace(graph, tensors=tuple(renamed))):
            return names
    return [tensor.name for tensor in graph.tensors]


def _shortened(graph: Subgraph, explainer: Explainer, kept: Set[int], taken: Set[str], root: str) -> list[str]:
    used = set(taken)
    names: list[str] = []
    for tensor in graph.tensors:
        if tensor.index in kept:
            names.append(tensor.name)
            continue
        layers = explainer.operations(tensor)
        found = ";".join(f"{root}{layer}/{operation}" for layer, operation in layers.items())
        wanted = found or f"t{tensor.index}"
        name, number = wanted, 0
        while name in used:
            number += 1
            name = f"{wanted}{number}" if found else f"{wanted}_{number}"
        used.add(name)
        names.append(name)
    return names


def _tells_the_same(before: Explainer, graph: Subgraph, renamed: Subgraph) -> bool:
    after = Explainer(renamed)
    return all(before.layer(operator) == after.layer(operator) for operator in graph.operators) and all(
        before.layer_of_tensor(tensor) == after.layer_of_tensor(other)
        for tensor, other in zip(graph.tensors, renamed.tensors, strict=True)
    )

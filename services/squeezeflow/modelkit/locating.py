"""Names the tensor and the layer in which a broken output begins; only when one is broken, and on one sample of it.

A file is run once more with all its tensors kept, the source with all that the names in the file tell of it. What
cannot be told is said to be so: the refusal itself must never fail for want of an explanation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from squeezeflow.core import invariants
from squeezeflow.core.invariants import origins
from squeezeflow.core.invariants.origins import Node
from squeezeflow.core.invariants.outputs import TOLERANCES
from squeezeflow.core.litert.tracing import Trace, filled
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.modelkit.source import Source
from squeezeflow.v1 import contract_pb2, step_pb2

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Compared:
    """What was compared: samples, the source's outputs for them, and those of the result, by contract name."""

    samples: Arrays
    expected: Arrays
    outputs: Arrays


def in_file(
    checked: Collection[step_pb2.Invariant],
    source: Source,
    file: TfliteFile,
    contract: contract_pb2.Contract,
    compared: Compared,
    *,
    mode: str,
    min_sqnr_db: float,
    threads: int = 1,
) -> list[step_pb2.Invariant]:
    """Gives the invariants with, for `finite` and `close` where they do not hold, the tensor and layer in the file.

    Args:
        contract: the file's, with signature names.
        mode, min_sqnr_db: by which `close` judged.
    """

    def traced(row: int) -> Trace:
        return Trace(file, contract, _row(compared.samples, row, compared.outputs), threads=threads)

    def tell(name: str) -> str:
        if name == "alive":
            output, rows = _still(compared)
            if not output:
                # Then it is a kernel that has become zero, which is named.
                return ""
            one, other = traced(rows[0]), traced(rows[1])
            nodes = _as_keras(origins.file_nodes(file), source)
            return origins.where_still(nodes, one.value, other.value, one.outputs[output])
        broken, row = _broken(name, compared, mode, min_sqnr_db)
        if not broken:
            return "only samples of other sizes are off: the layer is not looked for"
        sample = _row(compared.samples, row, compared.outputs)
        trace = traced(row)
        keys = {trace.outputs[output] for output in broken}
        nodes = origins.ancestors(origins.file_nodes(file), keys)
        if name == "finite":
            return _not_finite(nodes, trace.value, origins.file_constants(file), source, compared, broken)
        given: dict[origins.Key, np.ndarray | None] = {
            trace.outputs[name]: compared.expected[name][row : row + 1] for name in broken
        }
        known: dict[origins.Key, np.ndarray | None] = {
            node.key: trace.value(node.inputs[0])
            for node in nodes
            if node.operator == "QUANTIZE" and set(node.inputs) <= set(file.inputs)
        }
        return _off(nodes, trace.value, source, sample, {**known, **given}, keys)

    return _located(checked, tell)


def in_model(
    checked: Collection[step_pb2.Invariant], result: Source, compared: Compared, source: Source | None = None
) -> list[step_pb2.Invariant]:
    """Gives the same for a result that is a Keras model or a SavedModel.

    Args:
        result: the model, read back.
        source: what its operations are compared with, under the same names; None: `close` is left as it is.
    """

    def tell(name: str) -> str:
        if name == "alive" or (name == "close" and source is None):
            return ""
        broken, row = _broken(name, compared, "float32", 0.0)
        if not broken:
            return ""
        sample = _row(compared.samples, row, compared.outputs)
        inside = result.inside(sample)
        nodes, values = inside.nodes()
        if name == "finite":
            return _not_finite(nodes, values.get, inside.constants, result, compared, broken)
        assert source is not None
        last = {node.key for node in nodes} - {key for node in nodes for key in node.inputs}
        return _off(nodes, values.get, source, sample, {}, last)

    return _located(checked, tell)


def _located(checked: Collection[step_pb2.Invariant], tell: Callable[[str], str]) -> list[step_pb2.Invariant]:
    # A NaN is also far from its source: it is looked for once.
    wanted = {"finite", "close", "alive"}
    if any(invariant.name == "finite" and not invariant.passed for invariant in checked):
        wanted = {"finite"}
    return [
        invariant if invariant.passed or invariant.name not in wanted else _with(invariant, _told(invariant.name, tell))
        for invariant in checked
    ]


def _with(invariant: step_pb2.Invariant, told: str) -> step_pb2.Invariant:
    detail = "; ".join(filter(None, [invariant.detail, told]))
    return step_pb2.Invariant(name=invariant.name, passed=invariant.passed, detail=detail)


def _told(name: str, tell: Callable[[str], str]) -> str:
    try:
        return tell(name)
    except Exception as error:
        # Whatever it is: the invariant does not hold, and that is the news.
        return f"the layer cannot be told ({' '.join(str(error).split())[:200] or type(error).__name__})"


def _still(compared: Compared) -> tuple[str, tuple[int, int]]:
    """Gives an output that is the same for all samples, and the two between which the source's differs most."""
    for name, values in compared.outputs.items():
        expected = compared.expected[name].astype(np.float64)
        if len(values) > 1 and not np.ptp(values, axis=0).any() and np.ptp(expected, axis=0).any():
            rows = expected.reshape(len(expected), -1)
            element = rows[:, np.ptp(rows, axis=0).argmax()]
            return name, (int(element.argmin()), int(element.argmax()))
    return "", (0, 0)


def _broken(name: str, compared: Compared, mode: str, min_sqnr_db: float) -> tuple[list[str], int]:
    """Gives the outputs that break an invariant, and the sample in which the first of them is worst."""
    outputs = compared.outputs
    if name == "finite":
        broken = [output for output, values in outputs.items() if not invariants.finite({output: values}).passed]
    else:
        broken = [
            output
            for output, values in compared.expected.items()
            if not invariants.close(
                {output: values}, {output: outputs[output]}, mode=mode, min_sqnr_db=min_sqnr_db
            ).passed
        ]
    if not broken:
        return broken, 0
    found = outputs[broken[0]].astype(np.float64)
    off = found - compared.expected[broken[0]] if name == "close" else np.where(np.isfinite(found), 0.0, 1.0)
    worst = np.nan_to_num(np.abs(off), nan=np.inf)
    rows = worst.reshape(len(worst), -1) if worst.ndim else worst.reshape(1, 1)
    by_row = rows.max(axis=1) if mode in TOLERANCES else np.square(rows.astype(np.float64)).sum(axis=1)
    return broken, int(by_row.argmax())


def _row(samples: Arrays, row: int, outputs: Arrays) -> dict[str, np.ndarray]:
    """Gives one sample; all where the samples have no axis for it."""
    counts = {len(array) if array.ndim else 0 for array in [*samples.values(), *outputs.values()]}
    return {name: array[row : row + 1] if len(counts) == 1 else array for name, array in samples.items()}


def _not_finite(
    nodes: list[Node],
    value: origins.Value,
    constants: Callable[[Node], str],
    source: Source,
    compared: Compared,
    broken: list[str],
) -> str:
    told = origins.first_not_finite(_as_keras(nodes, source), value, constants)
    if not told:
        told = "the layer cannot be told, run alone and without XNNPACK the sample gives finite values"
    if any(output in compared.expected and not np.isfinite(compared.expected[output]).all() for output in broken):
        told += "; the source's output is not finite either"
    return told


def _off(
    nodes: list[Node],
    value: origins.Value,
    source: Source,
    sample: Arrays,
    known: Mapping[origins.Key, np.ndarray | None],
    outputs: Collection[origins.Key],
) -> str:
    """Tells where values begin to be off; some of the source's are known without looking for names."""
    # A signature that cannot carry the source's names has its own, in the same order.
    pairs = zip(source.contract.inputs, sample.items(), strict=True)
    fixed = {t.name: filled(sample.get(t.name, given), tuple(t.shape)) for t, (_, given) in pairs}
    found = source.inside(fixed).like(nodes)
    found.update((key, [values]) for key, values in known.items() if values is not None)
    return origins.where_off(_as_keras(nodes, source), value, lambda node: found.get(node.key, ()), outputs)


def _as_keras(nodes: Sequence[Node], source: Source) -> list[Node]:
    """Gives nodes with their layers' own names: Keras 3 numbers those of a model that was called before."""
    if source.model is None or source.keras is not None:
        return list(nodes)
    from squeezeflow.modelkit.layers import walk

    known = {path for path, _ in walk(source.model)}

    def called(layer: str) -> str:
        plain = "/".join(re.sub(r"_\d+$", "", part) for part in layer.split("/"))
        return plain if plain in known else layer

    return [replace(node, layer=", ".join(map(called, node.layer.split(", ")))) for node in nodes]

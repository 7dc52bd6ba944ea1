"""A model's description as tables for a person, each readable in a terminal of 100 columns.

Reasons are long and shared by many: they stand in a table of their own, each once, with what it holds for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.table import Table

from squeezeflow.cli.tables import shape, size, table
from squeezeflow.v1 import model_pb2

Description = model_pb2.ModelDescription
_YES, _NO = "yes", "no"


def model_tables(description: Description) -> Iterator[Table]:
    """Yields the tables of a description that have rows."""
    tables = (
        techniques_table(description),
        layers_table(description),
        layer_reasons_table(description),
        constants_table(description),
        values_table(description),
        operators_table(description),
        operator_reasons_table(description),
    )
    yield from (each for each in tables if each.row_count)


def techniques_table(description: Description) -> Table:
    """Gives one row a technique: whether it takes this model, and why not."""
    rows = table(("technique", "left"), ("takes this model", "left"))
    for technique in description.techniques:
        rows.add_row(technique.technique, _YES if technique.supported else f"{_NO}: {technique.reason}")
    return rows


def layers_table(description: Description) -> Table:
    """Gives one row a layer, and for each technique whether it takes it."""
    techniques = _techniques(description)
    rows = table(("layer", "left"), ("class", "left"), ("output", "left"), ("parameters", "right"))
    for technique in techniques:
        rows.add_column(technique)
    for layer in description.layers:
        support = {t.technique: t.supported for t in layer.techniques}
        cells = ["" if name not in support else _YES if support[name] else _NO for name in techniques]
        rows.add_row(layer.name, layer.class_name, shape(layer.output_shape), f"{layer.parameters:,}", *cells)
    return rows


def layer_reasons_table(description: Description) -> Table:
    """Gives one row a technique and a reason: the layers that it does not take because of it."""
    found: dict[tuple[str, str], list[str]] = {}
    for layer in description.layers:
        for technique in layer.techniques:
            if not technique.supported:
                found.setdefault((technique.technique, technique.reason), []).append(layer.name)
    rows = table(("technique", "left"), ("why not", "left"), ("layers", "left"))
    for (technique, reason), layers in sorted(found.items()):
        rows.add_row(technique, reason, ", ".join(layers))
    return rows


def constants_table(description: Description) -> Table:
    """Gives one row a constant of a TFLite file: what it takes, its zeros, and its distinct values."""
    rows = table(
        *(("#", "right"), ("constant", "left"), ("dtype", "left"), ("shape", "left")),
        *(
            ("raw", "right"),
            ("deflated", "right"),
            ("sparsity", "right"),
            ("distinct", "right"),
            ("a channel", "right"),
        ),
    )
    for tensor in description.tensors:
        if tensor.constant:
            rows.add_row(
                *(str(tensor.index), _name(tensor), tensor.dtype, shape(tensor.shape)),
                *(size(tensor.raw_bytes), size(tensor.deflated_bytes), f"{tensor.sparsity:.3f}"),
                *(str(tensor.unique_values), str(tensor.unique_values_per_channel)),
            )
    return rows


def values_table(description: Description) -> Table:
    """Gives one row a tensor of a TFLite file that is computed or quantized: how it is quantized."""
    rows = table(
        *(("#", "right"), ("tensor", "left"), ("dtype", "left"), ("shape", "left")),
        *(("scale", "left"), ("zero point", "left")),
    )
    for tensor in description.tensors:
        if not tensor.constant or tensor.scales:
            rows.add_row(
                *(str(tensor.index), _name(tensor), tensor.dtype, shape(tensor.shape)),
                _per_axis(tensor.scales, tensor),
                _per_axis(tensor.zero_points, tensor),
            )
    return rows


def operators_table(description: Description) -> Table:
    """Gives one row an operator of a TFLite file, in execution order."""
    rows = table(
        *(("#", "right"), ("operator", "left"), ("arithmetic", "left"), ("layer", "left")),
        *(("MACs", "right"), ("inputs", "left"), ("outputs", "left")),
    )
    for operator in description.operators:
        rows.add_row(
            *(str(operator.index), operator.name, operator.arithmetic, operator.layer),
            *(f"{operator.macs:,}" if operator.macs else "", _numbers(operator.inputs), _numbers(operator.outputs)),
        )
    return rows


def operator_reasons_table(description: Description) -> Table:
    """Gives one row a reason: the operators of a TFLite file that are not integer because of it."""
    found: dict[str, list[str]] = {}
    for operator in description.operators:
        if operator.reason:
            found.setdefault(operator.reason, []).append(f"{operator.index} {operator.name}")
    rows = table(("why not integer", "left"), ("operators", "left"))
    for reason, operators in found.items():
        rows.add_row(reason, ", ".join(operators))
    return rows


def _techniques(description: Description) -> list[str]:
    return sorted({t.technique for layer in description.layers for t in layer.techniques})


def _name(tensor: model_pb2.TensorDescription) -> str:
    """Gives a tensor's name; of several fused operations the first, and how many more: `--json` has them all."""
    first, *more = tensor.name.split(";")
    return f"{first}; +{len(more)}" if more else first


def _numbers(indices: Iterable[int]) -> str:
    return " ".join(str(index) for index in indices)


def _per_axis(values: Sequence[float], tensor: model_pb2.TensorDescription) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.6g}"
    low, high = min(values), max(values)
    spread = f"{low:.4g}" if low == high else f"{low:.4g}…{high:.4g}"
    along = f"blocks of {tensor.block_size}" if tensor.block_size else f"axis {tensor.quantized_dimension}"
    return f"{spread} ({along}, {len(values)})"

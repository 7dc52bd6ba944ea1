"""Distinct values of clustered kernels, found again in the final file.

BatchNormalization folds another factor into every output channel, and int8 has a scale for each: a tensor then holds
more values than its kernel had clusters, but an output channel never does. So channels are what is judged, and the
count over the whole tensor is reported. A tensor of the file is taken for a kernel when sizes agree, best where its
channels are the kernel's times a factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from squeezeflow.core.invariants.matching import Fit, find_kernels, layouts
from squeezeflow.core.invariants.places import tensor_names
from squeezeflow.core.tflite import Tensor, TfliteFile
from squeezeflow.core.tflite.values import FLOATS, constant_values, stored_values
from squeezeflow.v1 import step_pb2

Array = npt.NDArray[Any]

# Trained weights are practically all different. Where values are shared by this many weights on average, a kernel was
# clustered; the most clusters that clustering can be asked for is 1,024.
SHARED_BY = 2
MOST_CLUSTERS = 1024
# A kernel this small can share values by chance, or because somebody wrote it by hand.
LEAST_WEIGHTS = 16
# Channels that were clustered each for itself have this share of their values for themselves.
UNSHARED = 0.9
# Correlations this close are the same: then names decide.
SAME_FIT = 3


@dataclass(frozen=True)
class ClusterTarget:
    """One clustered kernel.

    Attributes:
        layer: name of its layer.
        values: the kernel after clustering, in Keras' layout.
        number_of_clusters: how many distinct values were promised; 0 is one of them where there are zeros.
        per_channel: the promise is for every output channel of a convolution, not for the whole kernel.
    """

    layer: str
    values: Array
    number_of_clusters: int
    per_channel: bool = False


@dataclass(frozen=True)
class _Count:
    """Distinct values: the most in one output channel (None where channels cannot be told), and in all; and where."""

    channel: int | None
    tensor: int
    place: str = ""


def cluster_targets(kernels: Mapping[str, Array]) -> tuple[ClusterTarget, ...]:
    """Gives as targets the kernels, by layer name, that are clustered already: later steps must keep them.

    Clustered is what holds far fewer distinct values than weights, zeros not counted: a pruned kernel alone is not.
    """
    found = (_recognised(layer, values) for layer, values in kernels.items())
    return tuple(target for target in found if target is not None)


def clusters(final: TfliteFile | Mapping[str, Array], targets: Sequence[ClusterTarget]) -> step_pb2.Invariant:
    """Holds when no output channel of a clustered kernel has more distinct values than were promised.

    Args:
        final: the file, or the final Keras kernels by layer name, which are judged as they were promised: whole, or by
            channel.
        targets: the clustered kernels. Those that the file does not hold (a branch without use) are told.
    """
    found = _found_in_file(final, targets) if isinstance(final, TfliteFile) else _found_by_name(final, targets)
    broken: list[str] = []
    reached: list[str] = []
    untold: list[str] = []
    for target in targets:
        if target.layer not in found:
            continue
        count, most = found[target.layer], target.number_of_clusters
        if count.channel is None and count.tensor > most:
            place = "stored in blocks: those of a channel cannot be told"
            untold.append(f"{target.layer} {count.tensor} values in the tensor ({place})")
            continue
        channel = count.tensor if count.channel is None else count.channel
        text = f"{target.layer} {channel} values a channel, {count.tensor} in the tensor, most {most} a channel"
        if channel <= most:
            reached.append(text)
        else:
            broken.append(f"{text} {count.place}".rstrip())
    missing = [target.layer for target in targets if target.layer not in found]
    notes = [f"not in the file: {', '.join(missing)}"] if missing else []
    passed = not broken and (bool(reached or untold) or not targets)
    detail = "; ".join([*broken, *reached, *untold, *notes]) or "nothing was clustered"
    return step_pb2.Invariant(name="clusters", passed=passed, detail=detail)


def distinct(values: Array, channel_axis: int | None = None) -> int:
    """Gives the number of distinct values, or the most of them in one slice along an axis; −0 and 0 are one."""
    rows = values.reshape(1, -1) if channel_axis is None else _channels(values, channel_axis)
    if not rows.size:
        return 0
    ordered = np.sort(_sortable(rows), axis=1)
    return int((ordered[:, 1:] != ordered[:, :-1]).sum(axis=1).max(initial=0)) + 1


def _sortable(values: Array) -> Array:
    """Gives 16-bit floats as float32, which holds all of them: numpy 2.4 sorts float16 wrong where values repeat."""
    return values.astype(np.float32) if values.dtype.itemsize == 2 and values.dtype.kind in "fV" else values


def _channels(values: Array, axis: int) -> Array:
    rows: Array = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    return rows


def _recognised(layer: str, values: Array) -> ClusterTarget | None:
    if values.ndim < 2 or np.count_nonzero(values) < LEAST_WEIGHTS:
        return None
    whole = _distinct_weights(values.reshape(1, -1))
    # Centroids of their own for every channel: convolutions over images only; no two channels share a value.
    channels = _distinct_weights(_channels(values, -1)) if values.ndim == 4 else whole
    per_channel = len(channels) > 1 and sum(whole) > UNSHARED * sum(channels)
    counts = channels if per_channel else whole
    if max(counts) > MOST_CLUSTERS or np.count_nonzero(values) < SHARED_BY * sum(counts):
        return None
    return ClusterTarget(layer, values, distinct(values, -1 if per_channel else None), per_channel)


def _distinct_weights(rows: Array) -> list[int]:
    """Gives the number of distinct values other than 0 of every row."""
    return [np.unique(row[row != 0]).size for row in _sortable(rows)]


def _found_by_name(final: Mapping[str, Array], targets: Sequence[ClusterTarget]) -> dict[str, _Count]:
    return {
        target.layer: _Count(
            distinct(final[target.layer], -1 if target.per_channel else None), distinct(final[target.layer])
        )
        for target in targets
        if target.layer in final
    }


def _found_in_file(file: TfliteFile, targets: Sequence[ClusterTarget]) -> dict[str, _Count]:
    axes = {id(weight.tensor): weight.channel_axis for weight in file.weights}

    def fit_of(kernel: Array) -> Fit:
        return _likeness(kernel, axes)

    found = find_kernels(file, [(target.layer, target.values) for target in targets], fit_of)
    return {layer: _count(parts, axes) for layer, parts in found.items()}


def _count(parts: Sequence[Tensor], axes: Mapping[int, int | None]) -> _Count:
    """Counts the values of a kernel that is stored as one tensor or more."""
    channel: int | None = 0
    most = 0
    for tensor in parts:
        values, stored = constant_values(tensor), stored_values(tensor)
        if stored is None:
            continue
        if values is None:
            # Stored sparse: only the blocks that are kept, and zeros.
            most = max(most, distinct(np.append(stored, np.zeros(1, stored.dtype))))
            channel = None
            continue
        most = max(most, distinct(values))
        if tensor.block_size or (tensor.dtype not in FLOATS and not tensor.scales):
            # A channel has several scales: equal weights of different blocks are stored as different integers.
            channel = None
        elif channel is not None:
            channel = max(channel, distinct(values, _axis(tensor, axes)))
    return _Count(channel, most, tensor_names(parts))


def _axis(tensor: Tensor, axes: Mapping[int, int | None]) -> int | None:
    """Gives the axis of the output channels: that of the operator, else that of the scales, else none."""
    axis = axes.get(id(tensor))
    return tensor.quantized_dimension if axis is None and tensor.quantized_dimension >= 0 else axis


def _likeness(kernel: Array, axes: Mapping[int, int | None]) -> Fit:
    """Scores by how well the channels of a tensor are a kernel's times a factor, over its possible layouts: 0 to 1."""
    orders = [np.asarray(order, np.float64) for order in layouts(kernel)]

    def fit(tensor: Tensor) -> float:
        values = constant_values(tensor)
        if values is None:
            return 0.0
        axis = _axis(tensor, axes)
        held = _directions(np.asarray(values, np.float64), axis)
        expected = (_directions(order.reshape(tensor.stored_shape), axis) for order in orders)
        return round(max(_agreement(held, directions) for directions in expected), SAME_FIT)

    return fit


def _directions(values: Array, axis: int | None) -> Array:
    """Gives every channel as a vector of length 1, or 0 where all is zero."""
    rows = values.reshape(1, -1) if axis is None else _channels(values, axis)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    directions: Array = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return directions


def _agreement(held: Array, expected: Array) -> float:
    told = np.any(held, axis=1) | np.any(expected, axis=1)
    return float(np.abs((held * expected).sum(axis=1))[told].mean()) if told.any() else 0.0

"""The job's train and validation arrays as batches in the structure that a tf_keras model is fitted with.

Arrays that fit in memory are converted once and gathered by TensorFlow; larger ones are read batch by batch. Both give
the same batches in the same order for the same seed, so the size of the data never changes a result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, count, repeat
from typing import Any

import numpy as np
import tensorflow as tf

from squeezeflow.core.datasets import BoundData
from squeezeflow.modelkit import data
from squeezeflow.v1 import contract_pb2

# Above this, converted arrays are not held in memory.
MEMORY_BYTES = 512 << 20


def fit_batches(
    model: Any,
    bound: BoundData,
    contract: contract_pb2.Contract,
    *,
    split: str,
    batch_size: int,
    rows: data.Rows | None = None,
    whole: bool = False,
    shuffle_seed: int | None = None,
    first_epoch: int = 0,
    first_batch: int = 0,
    memory_bytes: int = MEMORY_BYTES,
) -> tf.data.Dataset:
    """Gives batches of (inputs, labels) of a split; the last one of an epoch may be shorter.

    Shuffled ones go on for ever, epoch after epoch: `fit` then keeps one iterator, where a new one for every epoch
    costs as much as many a small model's epoch.

    Args:
        model: the tf_keras model to fit; its inputs and outputs are those of the contract, in order.
        rows: which rows of the split, rising; None: all.
        whole: leave out the samples that do not fill a batch.
        shuffle_seed: another order every epoch, the same ones for the same seed; None keeps the order.
        first_epoch: with which epoch shuffled ones begin, from 0.
        first_batch: with which batch of it.
        memory_bytes: converted arrays up to this size are held in memory.
    """
    every = rows is None
    rows = np.arange(bound.count(split)) if rows is None else rows
    first = {**bound.inputs(split, rows[:1]), **bound.targets(split, rows[:1])}
    pack = _packer(model, contract)
    if len(rows) * sum(array.nbytes for array in first.values()) > memory_bytes:
        read = data.tf_dataset(
            bound,
            contract,
            split=split,
            rows=rows,
            batch_size=batch_size,
            whole=whole,
            shuffle_seed=shuffle_seed,
            first_epoch=first_epoch,
            first_batch=first_batch,
        )
        return read.map(lambda x, y: pack(_named(x, contract.inputs), _named(y, contract.outputs)))
    held = slice(None) if every else rows
    inputs, labels = _tensors(bound.inputs(split, held)), _tensors(bound.targets(split, held))

    def gather(chosen: tf.Tensor) -> Any:
        x = {name: tf.gather(array, chosen) for name, array in inputs.items()}
        y = {name: tf.gather(array, chosen) for name, array in labels.items()}
        return pack(x, y)

    def cut(order: tf.Tensor) -> tf.data.Dataset:
        starts = tf.data.Dataset.range(0, tf.size(order, tf.int64), batch_size)
        size = batch_size if whole else None
        return starts.map(lambda start: tf.ensure_shape(order[start : start + batch_size], (size,)))

    used = len(rows) // batch_size * batch_size if whole else len(rows)
    orders = _orders(len(rows), used, shuffle_seed, first_epoch, first_batch * batch_size)
    return data.counted(orders.flat_map(cut).map(gather).prefetch(2), used, batch_size, shuffle_seed)


def output_keys(model: Any) -> list[str]:
    """Gives the names that a tf_keras model has for its outputs in `compile` and `fit`, in the order of its outputs."""
    return sorted(model.output) if isinstance(model.output, dict) else list(model.output_names)


def first_labels(model: Any, bound: BoundData, contract: contract_pb2.Contract, split: str) -> Any:
    """Gives the labels of one sample in the structure that `fit` takes."""
    first = slice(0, 1)
    _, labels = _packer(model, contract)(_tensors(bound.inputs(split, first)), _tensors(bound.targets(split, first)))
    return labels


def _orders(rows: int, used: int, seed: int | None, first_epoch: int, first_row: int) -> tf.data.Dataset:
    """Gives the row order of epoch after epoch, the ones that `data.tf_dataset` takes; of one where nothing shuffles.

    Args:
        used: how many of an epoch's rows are taken.
    """
    if seed is None:
        return tf.data.Dataset.from_tensors(tf.range(used, dtype=tf.int64))

    def generate() -> Iterator[np.ndarray]:
        for epoch, start in zip(count(first_epoch), chain([first_row], repeat(0))):
            yield np.random.default_rng([seed, epoch]).permutation(rows)[start:used]

    return tf.data.Dataset.from_generator(generate, output_signature=tf.TensorSpec((None,), tf.int64))


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, tf.Tensor]:
    return {name: tf.constant(array) for name, array in arrays.items()}


def _named(given: Any, tensors: Sequence[contract_pb2.TensorContract]) -> dict[str, Any]:
    return given if isinstance(given, dict) else {tensors[0].name: given}


def _packer(
    model: Any, contract: contract_pb2.Contract
) -> Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[Any, Any]]:
    """Gives the function that puts tensors by contract name into the structures that `fit` takes for this model."""
    keys = dict(zip([output.name for output in contract.outputs], output_keys(model), strict=True))
    columns = {output.name: len(output.shape) for output in contract.outputs if list(output.shape[-1:]) == [1]}

    def label(name: str, values: Any) -> Any:
        # Class ids of one unit stand in a column, as the output does: Keras would broadcast (n,) against (n, 1).
        return values[..., tf.newaxis] if values.shape.rank < columns.get(name, 0) else values

    def pack(inputs: Mapping[str, Any], labels: Mapping[str, Any]) -> tuple[Any, Any]:
        x: Any = tuple(inputs[tensor.name] for tensor in contract.inputs)
        if isinstance(model.input, dict):
            x = tf.nest.pack_sequence_as(model.input, list(x))
        elif len(x) == 1:
            (x,) = x
        if len(keys) == 1 and not isinstance(model.output, dict):
            ((name, values),) = labels.items()
            return x, label(name, values)
        return x, {keys[name]: label(name, values) for name, values in labels.items()}

    return pack

"""The job's data as TensorFlow takes it: calibration samples for the converter, batches for `fit`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, count, repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from squeezeflow.core.datasets import BoundData, Dataset
from squeezeflow.core.step import StepInputs
from squeezeflow.modelkit.source import Source
from squeezeflow.v1 import contract_pb2

Rows = npt.NDArray[Any]


def bind(inputs: StepInputs, contract: contract_pb2.Contract) -> BoundData | None:
    """Binds the step's dataset to a contract; None where the step has no data.

    Errors: DATA_MISMATCH, INVALID_PARAMETER (an affine that does not fit).
    """
    if inputs.data is None:
        return None
    return Dataset.open(inputs.data.path).bind(contract, scale=inputs.scale, offset=inputs.offset)


def representative(
    bound: BoundData, source: Source, *, count: int, seed: int
) -> Callable[[], Iterator[dict[str, np.ndarray]]]:
    """Gives the converter's `representative_dataset`: one sample a call, by the input names of its signature.

    Bound by name, since the converter's order of inputs is not the model's. A model with a fixed batch gets every
    sample repeated over it.

    Errors: DATA_MISSING.
    """
    samples = bound.calibration(count, seed)
    batch = {tensor.name: tensor.shape[0] if tensor.shape else 1 for tensor in source.contract.inputs}

    def generate() -> Iterator[dict[str, np.ndarray]]:
        for sample in samples:
            yield {
                source.signature_inputs[name]: np.repeat(rows, batch[name], axis=0) if batch[name] > 1 else rows
                for name, rows in sample.items()
            }

    return generate


def tf_dataset(
    bound: BoundData,
    contract: contract_pb2.Contract,
    *,
    split: str,
    rows: Rows,
    batch_size: int,
    whole: bool = False,
    shuffle_seed: int | None = None,
    first_epoch: int = 0,
    first_batch: int = 0,
) -> tf.data.Dataset:
    """Gives batches of (inputs, targets) for `fit`, read as they are needed; shuffled ones epoch after epoch, for ever.

    Inputs are a dict by name where the model has several, else one tensor; targets likewise.

    Args:
        bound: checked data.
        contract: of the model that is fitted; says how many inputs and outputs there are.
        split, rows: which samples, as `BoundData.fit_rows` gives them.
        batch_size: the last batch of an epoch may be shorter.
        whole: leave out the samples that do not fill a batch.
        shuffle_seed: another order every epoch, the same ones for the same seed; None keeps the order.
        first_epoch: with which epoch shuffled ones begin, from 0.
        first_batch: with which batch of it.
    """
    several_in, several_out = len(contract.inputs) > 1, len(contract.outputs) > 1

    def plain(arrays: dict[str, np.ndarray], several: bool) -> Any:
        return arrays if several else next(iter(arrays.values()))

    def read(chosen: Rows) -> Any:
        return plain(bound.inputs(split, chosen), several_in), plain(bound.targets(split, chosen), several_out)

    used = len(rows) // batch_size * batch_size if whole else len(rows)

    def orders() -> Iterator[tuple[Rows, int]]:
        if shuffle_seed is None:
            yield rows, 0
            return
        for epoch, start in zip(count(first_epoch), chain([first_batch * batch_size], repeat(0))):
            yield np.random.default_rng([shuffle_seed, epoch]).permutation(rows), start

    def generate() -> Iterator[Any]:
        for order, first in orders():
            for start in range(first, used, batch_size):
                yield read(order[start : min(start + batch_size, used)])

    signature = tf.nest.map_structure(lambda a: tf.TensorSpec((None, *a.shape[1:]), a.dtype), read(rows[:1]))
    batches = tf.data.Dataset.from_generator(generate, output_signature=signature)
    return counted(batches.prefetch(2), used, batch_size, shuffle_seed)


def counted(batches: tf.data.Dataset, rows: int, batch_size: int, shuffle_seed: int | None) -> tf.data.Dataset:
    """Tells a dataset how many batches it has: shuffled ones go on for ever."""
    there = tf.data.INFINITE_CARDINALITY if shuffle_seed is not None else -(-rows // batch_size)
    return batches.apply(tf.data.experimental.assert_cardinality(there))

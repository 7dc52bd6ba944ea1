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
    shuffle_seed: int | None = None,
    first_epoch: int = 0,
    first_batch: int = 0,
) -> tf.data.Dataset:
    """Gives batches of (inputs, targets) for `fit`, read as they are needed.

    Inputs are a dict by name where the model has several, else one tensor; targets likewise.

    Args:
        bound: checked data.
        contract: of the model that is fitted; says how many inputs and outputs there are.
        split, rows: which samples, as `BoundData.fit_rows` gives them.
        batch_size: the last batch may be shorter.
        shuffle_seed: another order every epoch, the same ones for the same seed; None keeps the order.
        first_epoch: which epoch the first iteration is, from 0.
        first_batch: where in it the first iteration begins; it is told as long as the others, for so `fit` counts.
    """
    several_in, several_out = len(contract.inputs) > 1, len(contract.outputs) > 1

    def plain(arrays: dict[str, np.ndarray], several: bool) -> Any:
        return arrays if several else next(iter(arrays.values()))

    def read(chosen: Rows) -> Any:
        return plain(bound.inputs(split, chosen), several_in), plain(bound.targets(split, chosen), several_out)

    epochs, starts = count(first_epoch), chain([first_batch * batch_size], repeat(0))

    def generate() -> Iterator[Any]:
        order = rows
        if shuffle_seed is not None:
            order = np.random.default_rng([shuffle_seed, next(epochs)]).permutation(rows)
        for start in range(next(starts), len(order), batch_size):
            yield read(order[start : start + batch_size])

    signature = tf.nest.map_structure(lambda a: tf.TensorSpec((None, *a.shape[1:]), a.dtype), read(rows[:1]))
    batches = tf.data.Dataset.from_generator(generate, output_signature=signature)
    return batches.prefetch(2).apply(tf.data.experimental.assert_cardinality(-(-len(rows) // batch_size)))

"""Which tensor of a TFLite file is which tensor of its source.

Names of a signature are a first guess, or its order where they say nothing. The values decide: among outputs of one
shape, and inputs of one shape and type, the assignment is taken under which both models agree.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.tflite import Tensor, TfliteFile
from squeezeflow.modelkit.source import Source
from squeezeflow.v1 import contract_pb2

Arrays = Mapping[str, np.ndarray]
# Orders that are tried at most; beyond this a signature's names have to be right.
MAX_ORDERS = 120
# Relative squared error beyond which the inputs, too, may be in another order.
SUSPICIOUS = 0.1


def by_signature(source: Source, file: TfliteFile) -> contract_pb2.Contract:
    """Gives the source's contract with the names, types and quantization of the file's tensors.

    Errors: OUTPUT_MISMATCH where the file has other numbers of inputs or outputs.
    """
    contract = contract_pb2.Contract()
    contract.CopyFrom(source.contract)
    for tensors, given, wanted in (
        (contract.inputs, file.input_names, source.signature_inputs),
        (contract.outputs, file.output_names, source.signature_outputs),
    ):
        if len(tensors) != len(given):
            raise SqueezeflowError(
                "OUTPUT_MISMATCH",
                f"the source has {len(tensors)} tensors ({', '.join(t.name for t in tensors)}), the produced file has "
                f"{len(given)}: an input that nothing reads has to be removed from the model",
            )
        same_names = set(wanted.values()) == set(given)
        for tensor, position in zip(tensors, given, strict=True):
            name = wanted[tensor.name] if same_names else position
            tensor.signature_name = name
            _describe(tensor, file.main.tensors[given[name]])
    return contract


def _describe(tensor: contract_pb2.TensorContract, found: Tensor) -> None:
    tensor.dtype = found.dtype
    tensor.shape[:] = found.shape
    if found.scales:
        tensor.quantization.scale = found.scales[0]
        tensor.quantization.zero_point = found.zero_points[0]


def by_value(
    contract: contract_pb2.Contract, invoke: Callable[[Arrays], Arrays], samples: Arrays, expected: Arrays
) -> tuple[contract_pb2.Contract, dict[str, np.ndarray]]:
    """Gives the contract with signature names in the order under which the values agree, and the file's outputs.

    Args:
        contract: with signature names as first guessed.
        invoke: runs the file on inputs by contract name.
        samples, expected: inputs and the source's outputs, by contract name.
    """
    outputs = invoke(samples)
    best = _best_outputs(contract, expected, outputs)
    chosen, order_of_inputs = (best, outputs), list(samples)
    if best[0] > SUSPICIOUS:
        for order in _orders(contract.inputs, list(samples)):
            # Under another order of names, the tensor called `name` is fed what belongs to the other.
            tried = invoke({name: samples[other] for name, other in zip(samples, order, strict=True)})
            found = _best_outputs(contract, expected, tried)
            if found[0] < chosen[0][0] * SUSPICIOUS:
                chosen, order_of_inputs = (found, tried), list(order)
    (_, order_of_outputs), outputs = chosen
    result = contract_pb2.Contract()
    result.CopyFrom(contract)
    # `name` was fed with `other`'s samples: so the file's tensor that was called `name` is `other`.
    _rename(result.inputs, contract.inputs, dict(zip(order_of_inputs, samples, strict=True)))
    _rename(result.outputs, contract.outputs, dict(zip(expected, order_of_outputs, strict=True)))
    return result, {name: outputs[other] for name, other in zip(expected, order_of_outputs, strict=True)}


def _rename(
    target: Sequence[contract_pb2.TensorContract],
    source: Sequence[contract_pb2.TensorContract],
    taken: Mapping[str, str],
) -> None:
    """Gives every tensor of `target` the file's side of the tensor that it is taken from."""
    by_name = {tensor.name: tensor for tensor in source}
    for tensor in target:
        other = by_name[taken[tensor.name]]
        tensor.signature_name, tensor.dtype = other.signature_name, other.dtype
        tensor.shape[:] = other.shape
        tensor.ClearField("quantization")
        if other.HasField("quantization"):
            tensor.quantization.CopyFrom(other.quantization)


def _best_outputs(contract: contract_pb2.Contract, expected: Arrays, outputs: Arrays) -> tuple[float, tuple[str, ...]]:
    """Gives the smallest relative squared error over orders of the outputs, and that order; the given one first."""
    errors = {
        (name, other): _error(expected[name], outputs[other])
        for name in expected
        for other in expected
        if expected[name].shape == outputs[other].shape
    }
    given = tuple(expected)
    best = (max((errors.get((name, name), np.inf) for name in given), default=0.0), given)
    if best[0] <= SUSPICIOUS:
        return best
    for order in _orders(contract.outputs, list(given)):
        worst = max(errors.get(pair, np.inf) for pair in zip(given, order, strict=True))
        # An order that is only a little better is chance.
        if worst < best[0] * SUSPICIOUS:
            best = (worst, tuple(order))
    return best


def _orders(tensors: Sequence[contract_pb2.TensorContract], names: list[str]) -> Iterator[tuple[str, ...]]:
    """Gives the orders of names that exchange tensors of one shape and type only, other than the given one."""
    form = {tensor.name: (tuple(tensor.shape), tensor.dtype) for tensor in tensors}
    groups: dict[object, list[str]] = {}
    for name in names:
        groups.setdefault(form[name], []).append(name)
    choices = itertools.product(*(itertools.permutations(group) for group in groups.values()))
    for choice in itertools.islice(choices, MAX_ORDERS):
        exchanged = {
            name: other
            for group, order in zip(groups.values(), choice, strict=True)
            for name, other in zip(group, order, strict=True)
        }
        order = tuple(exchanged[name] for name in names)
        if list(order) != names:
            yield order


def _error(expected: np.ndarray, value: np.ndarray) -> float:
    reference = np.asarray(expected, np.float64)
    scale = float(np.sum(np.square(reference)))
    error = float(np.sum(np.square(reference - np.asarray(value, np.float64))))
    return error / scale if scale > 0 else error

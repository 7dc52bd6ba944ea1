"""Which array is which input or label of which split; every check is made here, once, before any work.

`x_<split>` or `<input>_<split>`, `y_<split>` or `y.<output>_<split>`, and `classes`. Each may be several arrays with a
number at the end, `x_test_0`, `x_test_1`, which may differ in size. What matches nothing is reported as unused, never
guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from squeezeflow.core.datasets.bound import SPLITS, BoundData, BoundInput
from squeezeflow.core.datasets.conversion import check_values, conversion_for, invalid, request_affine, require_numeric
from squeezeflow.core.datasets.parts import Parts, parts_of
from squeezeflow.core.datasets.reading import Array, StoredArray, mismatch, read_arrays
from squeezeflow.core.datasets.targets import Targets, bind_targets
from squeezeflow.v1 import contract_pb2

CLASSES = "classes"
SUFFIXES = ", ".join(f"_{split}" for split in SPLITS)
_NAME = re.compile(rf"(?P<base>.+)_(?P<split>{'|'.join(SPLITS)})(?:_(?P<number>\d+))?")

Found = dict[str, dict[str, dict[int | None, StoredArray]]]


@dataclass
class Matches:
    """Arrays by split, contract name and number, while they are sorted out."""

    found_inputs: Found = field(default_factory=dict)
    found_targets: Found = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> dict[str, dict[str, Parts]]:
        """The inputs by split and contract name."""
        return _joined(self.found_inputs)

    @property
    def targets(self) -> dict[str, dict[str, Parts]]:
        """The labels by split and contract name."""
        return _joined(self.found_targets)


@dataclass(frozen=True)
class Dataset:
    """The arrays of a dataset file or folder; values are read when they are needed."""

    arrays: Mapping[str, StoredArray]
    labels: tuple[str, ...]

    @classmethod
    def open(cls, path: Path) -> Dataset:
        """Reads the headers of an `.npz` file or a folder of `.npy` files. Errors: DATA_MISMATCH."""
        arrays = read_arrays(path)
        return cls(arrays, _label_names(arrays[CLASSES]) if CLASSES in arrays else ())

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all arrays."""
        return tuple(self.arrays)

    def bind(
        self, contract: contract_pb2.Contract, *, scale: Sequence[float] = (), offset: Sequence[float] = ()
    ) -> BoundData:
        """Matches arrays with the contract's inputs and outputs and checks all of them.

        Args:
            scale, offset: one number, or one a channel; empty: those that the contract holds, if any.
        Errors: DATA_MISMATCH naming array and index, INVALID_PARAMETER, UNSUPPORTED_INPUT.
        """
        for tensor in contract.inputs:
            require_numeric(tensor)
        matches = _match(self.arrays, contract)
        _require_whole_splits(matches, contract)
        splits, affine, notes = _bind_inputs(matches.inputs, contract, scale, offset)
        targets = _bind_targets(matches.targets, contract)
        _require_label_count(self.labels, contract)
        if matches.unused:
            notes.append(f"arrays not used: {', '.join(sorted(matches.unused))}")
        return BoundData(tuple(notes), self.labels, affine, splits, targets)


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Gives the shapes of all arrays of a dataset by name. Errors: DATA_MISMATCH."""
    return {name: stored.shape for name, stored in read_arrays(path).items()}


def plain_inputs(
    path: Path, contract: contract_pb2.Contract, *, scale: Sequence[float] = (), offset: Sequence[float] = ()
) -> dict[str, Array]:
    """Gives the arrays without a suffix, `x` or the input names, as the model takes them.

    Errors: as `Dataset.bind`.
    """
    arrays = read_arrays(path)
    found: dict[str, Parts] = {}
    for tensor in contract.inputs:
        require_numeric(tensor)
        candidates = [tensor.name, "x"] if len(contract.inputs) == 1 else [tensor.name]
        name = next((name for name in candidates if name in arrays), None)
        if name is None:
            raise mismatch(
                f"no array for input {tensor.name}: name one {' or '.join(candidates)}, without a suffix; there are "
                f"{', '.join(arrays)}",
                input=tensor.name,
            )
        found[tensor.name] = Parts(name, (arrays[name],))
    _require_equal_counts(found.values())
    splits, _, _ = _bind_inputs({"": found}, contract, scale, offset)
    return {name: bound.rows(slice(None)) for name, bound in splits[""].items()}


def _match(arrays: Mapping[str, StoredArray], contract: contract_pb2.Contract) -> Matches:
    inputs = _aliases([tensor.name for tensor in contract.inputs], "x", "")
    outputs = _aliases([tensor.name for tensor in contract.outputs], "y", "y.")
    matches = Matches()
    for name, stored in arrays.items():
        if name == CLASSES:
            continue
        base, split, number = _read_name(name)
        if base in ("x", "y") or base in inputs or base in outputs:
            if split is None:
                raise mismatch(f"array {name} has no split: name it {name} with one of {SUFFIXES}", array=name)
            _place(matches, contract, base, split, number, stored, inputs, outputs)
        else:
            matches.unused.append(name)
    return matches


def _read_name(name: str) -> tuple[str, str | None, int | None]:
    """Takes the name of an array apart: what it is, of which split, and its number."""
    read = _NAME.fullmatch(name)
    if read is None:
        return name, None, None
    return read["base"], read["split"], None if read["number"] is None else int(read["number"])


def _joined(found: Found) -> dict[str, dict[str, Parts]]:
    return {split: {name: parts_of(arrays) for name, arrays in names.items()} for split, names in found.items()}


def _aliases(names: Sequence[str], short: str, prefix: str) -> dict[str, str]:
    """Gives contract names by the array names that stand for them."""
    aliases = {short: names[0]} if len(names) == 1 else {}
    return aliases | {f"{prefix}{name}": name for name in names}


def _place(
    matches: Matches,
    contract: contract_pb2.Contract,
    base: str,
    split: str,
    number: int | None,
    stored: StoredArray,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
) -> None:
    if base not in inputs and base not in outputs:
        what, tensors, prefix = ("inputs", contract.inputs, "") if base == "x" else ("outputs", contract.outputs, "y.")
        wanted = ", ".join(f"{prefix}{tensor.name}_{split}" for tensor in tensors)
        raise mismatch(f"array {stored.name} is not clear, the model has {len(tensors)} {what}: name them {wanted}")
    # A model's input may be called y: inputs come first, its labels are then `y.<output>`.
    side, name = (matches.found_inputs, inputs[base]) if base in inputs else (matches.found_targets, outputs[base])
    there = side.setdefault(split, {}).setdefault(name, {})
    # Either all of them have a number of their own, or there is one.
    taken = there.get(number) or (next(iter(there.values()), None) if None in (number, *there) else None)
    there[number] = stored
    if taken is not None:
        raise mismatch(
            f"arrays {taken.name} and {stored.name} are both {name} of {split}: leave one out", array=stored.name
        )


def _require_whole_splits(matches: Matches, contract: contract_pb2.Contract) -> None:
    names = [tensor.name for tensor in contract.inputs]
    all_inputs, all_targets = matches.inputs, matches.targets
    if not all_inputs:
        wanted = "x_train" if len(names) == 1 else ", ".join(f"{name}_train" for name in names)
        there = ", ".join(sorted(matches.unused)) or "none of them"
        raise mismatch(
            f"no array matches the model's inputs {', '.join(names)} (there: {there}): name them {wanted}, …"
        )
    for split in {**all_inputs, **all_targets}:
        inputs, targets = all_inputs.get(split, {}), all_targets.get(split, {})
        for name in names:
            if name not in inputs:
                have = next(iter([*inputs.values(), *targets.values()])).name
                raise mismatch(f"array {name}_{split} is missing while {have} is there: add it, or leave out the split")
        _require_equal_counts([*inputs.values(), *targets.values()])


def _require_equal_counts(several: Iterable[Parts]) -> None:
    first: Parts | None = None
    for parts in several:
        for stored in parts.arrays:
            if not stored.shape or not stored.shape[0]:
                raise mismatch(
                    f"array {stored.name} of shape {stored.shape} holds no samples: samples run along axis 0"
                )
        first = first or parts
        if parts.count != first.count:
            raise mismatch(
                f"array {first.name} has {first.count} samples, {parts.name} {parts.count}: make them equal",
                array=parts.name,
            )
        if parts.numbers and parts.numbers == first.numbers:
            # Numbered alike, they belong together one by one.
            for one, other in zip(first.arrays, parts.arrays, strict=True):
                if one.shape[0] != other.shape[0]:
                    raise mismatch(
                        f"array {one.name} has {one.shape[0]} samples, {other.name} {other.shape[0]}: make them equal",
                        array=other.name,
                    )


def _bind_inputs(
    found: Mapping[str, Mapping[str, Parts]],
    contract: contract_pb2.Contract,
    scale: Sequence[float],
    offset: Sequence[float],
) -> tuple[dict[str, dict[str, BoundInput]], contract_pb2.Affine | None, list[str]]:
    requested = request_affine(scale, offset)
    used: contract_pb2.Affine | None = None
    splits: dict[str, dict[str, BoundInput]] = {}
    told: dict[str, set[str]] = {}
    for split, arrays in found.items():
        splits[split] = {}
        for tensor in contract.inputs:
            parts = arrays[tensor.name]
            affine, scaled = requested, bool(len(scale))
            if requested is None and tensor.HasField("affine"):
                affine, scaled = tensor.affine, True
            if affine is not None and require_numeric(tensor).kind == "f":
                used = affine
            conversions = []
            for stored in parts.arrays:
                conversion, notes = conversion_for(stored, tensor, affine, scaled=scaled)
                check_values(stored, conversion)
                conversions.append(conversion)
                for note in notes:
                    told.setdefault(note, set()).add(parts.name)
            splits[split][tensor.name] = BoundInput(parts, tuple(conversions))
    if requested is not None and used is None:
        raise invalid("scale", "scale and offset are for float inputs and this model has none: leave them out")
    return splits, used, [f"{', '.join(sorted(names))}: {note}" for note, names in told.items()]


def _bind_targets(found: Mapping[str, Mapping[str, Parts]], contract: contract_pb2.Contract) -> dict[str, Targets]:
    bound: dict[str, Targets] = {}
    for output in contract.outputs:
        arrays = {split: targets[output.name] for split, targets in found.items() if output.name in targets}
        if arrays:
            bound[output.name] = bind_targets(output, arrays)
    return bound


def _label_names(stored: StoredArray) -> tuple[str, ...]:
    if len(stored.shape) != 1 or stored.dtype.kind not in "USiu":
        raise mismatch(
            f"array {CLASSES} is {stored.dtype} of shape {stored.shape}: store one name a class id, dtype str",
            array=CLASSES,
        )
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in stored.values.tolist())


def _require_label_count(labels: Sequence[str], contract: contract_pb2.Contract) -> None:
    if not labels or not contract.outputs:
        return
    units = [output.shape[-1] if len(output.shape) > 1 else 1 for output in contract.outputs]
    # One unit tells two classes apart; a free axis takes any number.
    if not any(unit in (-1, len(labels)) or (unit == 1 and len(labels) == 2) for unit in units):
        raise mismatch(
            f"array {CLASSES} has {len(labels)} names, the model's outputs have {', '.join(map(str, units))} units: "
            "give one name a unit",
            array=CLASSES,
        )

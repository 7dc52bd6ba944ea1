"""What the test labels ask of an output: which class, or which value.

Targets come as `class_ids`, `one_hot` or `values`. An output of one unit with class ids decides by a threshold: 0.5 on
probabilities, 0 on logits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from squeezeflow.core.datasets import BoundData
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.v1 import contract_pb2


@dataclass(frozen=True)
class Task:
    """How one output is judged.

    Attributes:
        output: its contract name.
        kind: `class_ids`, `one_hot` or `values`.
        one_unit: whether the output is one number a sample, so that a threshold decides.
        threshold: above it is class 1; None until outputs have told whether they are probabilities.
        guessed: whether outputs told it, and not the contract.
        notes: what the caller should know.
    """

    output: str
    kind: str
    one_unit: bool = False
    threshold: float | None = None
    guessed: bool = False
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> bool:
        """Whether the figure is accuracy; else it is the mean absolute error."""
        return self.kind != "values"

    def settle(self, outputs: np.ndarray) -> Task:
        """Gives the task with its threshold, told from first values where the contract does not say what they mean."""
        if self.threshold is not None or not (self.one_unit and self.classes):
            return self
        probabilities = bool((outputs >= 0).all() and (outputs <= 1).all())
        threshold, meaning = (0.5, "probabilities") if probabilities else (0.0, "logits")
        note = f"output {self.output} was taken for {meaning} by its values: class 1 is above {threshold}"
        return replace(self, threshold=threshold, guessed=True, notes=(*self.notes, note))

    def follow(self, baseline: Task) -> Task:
        """Gives the task with what the baseline's outputs settled, so that both are judged alike.

        Raises:
            SqueezeflowError: DATA_MISMATCH when the labels mean classes to one and values to the other.
        """
        if self.kind != baseline.kind:
            raise SqueezeflowError(
                "DATA_MISMATCH",
                f"the labels are {self.kind} of output {self.output} and {baseline.kind} of the baseline's "
                f"{baseline.output}: compare models with the same outputs",
                metadata={"output": self.output, "baseline_output": baseline.output},
            )
        guess = self.threshold is None and baseline.guessed
        return replace(self, threshold=baseline.threshold) if guess else self

    def judge(self, outputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gives chosen class ids and whether each is right; for values nothing chosen, and each sample's mean error.

        Args:
            outputs: (samples, …, units) or (samples,), real-valued.
            targets: class ids without the units' axis, or of the outputs' shape.
        """
        if not self.classes:
            errors = np.abs(outputs.astype(np.float64) - targets.reshape(outputs.shape))
            return np.zeros(0), errors.reshape(len(errors), -1).mean(axis=1)
        if self.one_unit:
            labels = (outputs > self.threshold).astype(np.int64).reshape(targets.shape)
        else:
            labels = outputs.argmax(axis=-1)
        wanted = targets.argmax(axis=-1) if self.kind == "one_hot" else targets
        return labels.reshape(-1), (labels == wanted.reshape(labels.shape)).reshape(-1)


def task_of(contract: contract_pb2.Contract, data: BoundData, split: str) -> Task:
    """Gives the task of the first output that has labels in a split.

    Raises:
        SqueezeflowError: DATA_MISSING without samples or labels.
    """
    if not data.count(split) or not data.has_targets(split):
        missing = f"y_{split}" if data.count(split) else f"x_{split} and y_{split}"
        raise SqueezeflowError(
            "DATA_MISSING", f"evaluating needs {missing}: add to the dataset", metadata={"split": split}
        )
    labelled = data.targets(split, slice(0, 1))
    output = next(tensor for tensor in contract.outputs if tensor.name in labelled)
    others = [tensor.name for tensor in contract.outputs if tensor.name != output.name]
    note = f"the figures are those of output {output.name}; not measured: {', '.join(others)}"
    return Task(
        output=output.name,
        kind=data.target_kind(output.name) or "values",
        one_unit=len(output.shape) < 2 or output.shape[-1] == 1,
        threshold={"probabilities": 0.5, "logits": 0.0}.get(output.meaning),
        notes=(note,) if others else (),
    )

"""What a technique that changes kernels has to say, for the frame that loads, fits, writes and proves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from squeezeflow.modelkit.finetune import Training
from squeezeflow.modelkit.source import Source
from squeezeflow.v1 import step_pb2

Plan = TypeVar("Plan")
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Wrapped:
    """A model that is fitted in the place of another, with wrappers around layers.

    Attributes:
        model: the same inputs and outputs.
        take_off: once it is fitted, puts what was trained into the other one.
        callbacks: go with the fit.
        done_at: the training step before which the technique is not done yet with the model.
        logs: a folder of event files, if there is one.
    """

    model: Any
    take_off: Callable[[], None]
    callbacks: Sequence[Any] = ()
    done_at: int = 0
    logs: Path | None = None


class Method(Protocol[Plan]):
    """A technique, as one request asks for it. A plan says what happens to one layer."""

    @property
    def technique(self) -> str:
        """Its name: `prune`, `cluster`."""

    @property
    def params(self) -> Any:
        """The request, with `fine_tune` and `one_shot` among its fields."""

    def plan(self, model: Any) -> list[Plan]:
        """Decides for every layer of a tf_keras model. Errors: INVALID_PARAMETER, UNSUPPORTED_LAYER."""

    def plan_variables(self, source: Source) -> list[Plan]:
        """Decides for every variable with two axes or more that the signature of a SavedModel reads. Errors: the same.

        Variables are named as the graph names them: `dense/kernel`.
        """

    def changed(self, plans: Sequence[Plan], seed: int) -> dict[str, np.ndarray]:
        """Gives the kernels, by name, as they are once they are changed without training."""

    def wrap(self, model: Any, plans: Sequence[Plan], training: Training, workdir: Path) -> Wrapped:
        """Wraps the layers whose kernels are to be changed while they are trained."""

    def promises(self, kernels: Arrays, plans: Sequence[Plan]) -> list[step_pb2.Invariant]:
        """Gives what has to hold for the final kernels, by name."""

    def reached(self, plan: Plan, kernels: Arrays) -> str:
        """Says what became of a layer whose kernels were changed."""

"""Which loss fits an output: from the request, the model's compile configuration, or the output and its labels.

An output that ends in softmax or sigmoid holds probabilities; one that ends in nothing may hold logits or values, and
with class labels only the caller can tell which. A loss that does not fit the labels trains without an error and ruins
the model, so every choice is checked against them and told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from squeezeflow.core.datasets.targets import CLASS_IDS, ONE_HOT
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.modelkit.compile_config import CompileConfig
from squeezeflow.v1 import technique_pb2

SPARSE, CATEGORICAL, BINARY = "sparse_categorical_crossentropy", "categorical_crossentropy", "binary_crossentropy"
CROSSENTROPIES = frozenset({SPARSE, CATEGORICAL, BINARY})
REGRESSIONS = frozenset({"mean_squared_error", "mean_absolute_error", "huber"})
PROBABILITIES = frozenset({"softmax", "sigmoid"})
# Functions of TensorFlow that stand in a functional model as layers of their own.
_OP_ACTIVATIONS = {"nn.softmax": "softmax", "nn.sigmoid": "sigmoid", "math.sigmoid": "sigmoid"}


@dataclass(frozen=True)
class LabelledOutput:
    """An output of the model and what its labels look like.

    Attributes:
        name: contract name.
        units: size of its last axis; None where it is free.
        activation: Keras name of its last activation, `linear`; empty where it cannot be told.
        kind: `class_ids`, `one_hot` or `values`, as in core.datasets.
        binary_values: whether every label is 0 or 1.
        unit_values: whether every label is within 0 and 1.
    """

    name: str
    units: int | None
    activation: str
    kind: str
    binary_values: bool = False
    unit_values: bool = False


@dataclass(frozen=True)
class OutputLoss:
    """The loss of one output, and where it is from.

    Attributes:
        output: contract name.
        loss: one of the names of `FineTune.loss`.
        from_logits: False where the loss does not ask.
        kind: what the labels are.
        why: `the request`, `the compile configuration`, or what it was inferred from.
    """

    output: str
    loss: str
    from_logits: bool
    kind: str
    why: str

    def describe(self) -> str:
        """Gives the note about it."""
        logits = f", from_logits {str(self.from_logits).lower()}" if self.loss in CROSSENTROPIES else ""
        return f"fine-tuning output {self.output} with {self.loss}{logits} ({self.why})"

    def keras_loss(self) -> Any:
        """Gives the tf_keras loss."""
        loss = keras_class(self.loss)
        return loss(from_logits=self.from_logits) if self.loss in CROSSENTROPIES else loss()

    def keras_metric(self) -> Any:
        """Gives the metric that is reported while training: accuracy of classes, mean absolute error of values."""
        from tf_keras import metrics

        if self.loss == SPARSE:
            return metrics.SparseCategoricalAccuracy(name="accuracy")
        if self.loss == CATEGORICAL:
            return metrics.CategoricalAccuracy(name="accuracy")
        if self.loss == BINARY:
            return metrics.BinaryAccuracy(name="accuracy", threshold=0.0 if self.from_logits else 0.5)
        return metrics.MeanAbsoluteError(name="mae")


def keras_class(loss: str) -> Any:
    """Gives the tf_keras class of a loss by the name that `FineTune.loss` has for it."""
    from tf_keras import losses

    return getattr(losses, "".join(word.capitalize() for word in loss.split("_")))


def op_activation(layer: Any) -> str:
    """Gives the activation that a TensorFlow function used as a layer stands for; empty for every other one."""
    function = layer.get_config().get("function") if type(layer).__name__ == "TFOpLambda" else None
    return _OP_ACTIVATIONS.get(str(function), "")


def choose(
    outputs: Sequence[LabelledOutput], request: technique_pb2.FineTune, compiled: CompileConfig
) -> tuple[OutputLoss, ...]:
    """Decides the loss of every output that has labels.

    Errors: INVALID_PARAMETER naming `fine_tune.loss` or `fine_tune.from_logits`.
    """
    chosen = []
    for output in outputs:
        if request.loss:
            loss, why = request.loss, "the request"
            _require_fit(output, loss, why)
        elif compiled.loss in CROSSENTROPIES | REGRESSIONS:
            loss, why = _compiled_loss(output, compiled.loss)
        else:
            loss, why = _inferred(output)
        from_logits = loss in CROSSENTROPIES and _from_logits(output, request, compiled)
        chosen.append(OutputLoss(output.name, loss, from_logits, output.kind, why))
    classes = [output for output, choice in zip(outputs, chosen, strict=True) if choice.loss in CROSSENTROPIES]
    # One output of several may hold probabilities; where all do, the request contradicts the model.
    if request.from_logits and classes and all(output.activation in PROBABILITIES for output in classes):
        raise _refused(
            "from_logits",
            f"output {classes[0].name} ends in {classes[0].activation}, so its values are probabilities: leave out "
            "fine_tune.from_logits (--from-logits)",
            classes[0],
        )
    return tuple(chosen)


def _compiled_loss(output: LabelledOutput, loss: str) -> tuple[str, str]:
    # Class ids and one-hot rows are two spellings of the same labels: the data may use the other one.
    if loss in CROSSENTROPIES and _misfit(output, loss):
        spelling, _ = _inferred(output)
        if spelling in CROSSENTROPIES:
            return spelling, f"the compile configuration says {loss}, the labels are {output.kind}"
    _require_fit(output, loss, "the compile configuration")
    return loss, "the compile configuration"


def _inferred(output: LabelledOutput) -> tuple[str, str]:
    why = f"inferred from {output.activation or 'unknown'} output and {output.kind} labels"
    if output.kind == CLASS_IDS:
        return (BINARY if output.units == 1 else SPARSE), why
    if output.activation == "sigmoid" and output.binary_values:
        return BINARY, why  # several labels may hold at once
    if output.kind == ONE_HOT:
        return CATEGORICAL, why
    return "mean_squared_error", why


def _from_logits(output: LabelledOutput, request: technique_pb2.FineTune, compiled: CompileConfig) -> bool:
    if output.activation in PROBABILITIES:
        return False
    if request.HasField("from_logits"):
        return request.from_logits
    if compiled.from_logits:
        return True
    # A linear output with `from_logits` false is a forgotten argument far more often than probabilities.
    if compiled.from_logits is False and output.activation not in ("linear", ""):
        return False
    raise _refused(
        "from_logits",
        f"output {output.name} ends in {output.activation or 'an operation that says nothing'} and its labels are "
        "classes: say whether its values are logits with fine_tune.from_logits (--from-logits)",
        output,
    )


def _require_fit(output: LabelledOutput, loss: str, why: str) -> None:
    misfit = _misfit(output, loss)
    if misfit:
        raise _refused(
            "loss", f"{loss} ({why}) does not fit output {output.name}: {misfit}: set fine_tune.loss (--loss)", output
        )


def _misfit(output: LabelledOutput, loss: str) -> str:
    """Says why a loss cannot take the labels; empty where it can."""
    if loss == SPARSE:
        if output.kind != CLASS_IDS:
            return f"it takes class ids, the labels are {output.kind}"
        return "the output has one unit, which tells two classes apart" if output.units == 1 else ""
    if output.kind == CLASS_IDS and output.units != 1:
        return f"it takes one number a unit ({output.units}), the labels are class ids"
    if loss == CATEGORICAL and output.units == 1:
        return "the output has one unit, which tells two classes apart"
    if loss in (CATEGORICAL, BINARY) and output.kind not in (CLASS_IDS, ONE_HOT) and not output.unit_values:
        return "labels lie outside 0 to 1"
    return ""


def _refused(field: str, message: str, output: LabelledOutput) -> SqueezeflowError:
    return SqueezeflowError(
        "INVALID_PARAMETER",
        message,
        metadata={"output": output.name, "field": f"fine_tune.{field}"},
        fields=[(f"params.fine_tune.{field}", message)],
    )

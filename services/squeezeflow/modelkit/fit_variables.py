"""The variables that a fit changes, by group: together they are what a batch leaves to the next one.

What Keras lists as weights is not all of it. The optimizer, the figures of the epoch so far, the generators of random
layers and the states of stateful recurrent layers have variables of their own; and a model may hold state that nothing
lists, which the traced train function gives away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from squeezeflow.modelkit.fit_state import Arrays

WEIGHTS = "weights"
# Every epoch begins with figures of zero and generators set by the seed.
WITHIN_EPOCH = ("figures", "generators")
# Operations that count their draws inside the process, where nothing can read or set the count.
_DRAWS = frozenset({"TruncatedNormal", "ParameterizedTruncatedNormal", "Multinomial"})


class FitVariables:
    """All variables of a compiled model, its optimizer and figures built.

    Args:
        generators: those of its random layers.
    """

    def __init__(self, model: tf_keras.Model, generators: Sequence[tf.random.Generator]) -> None:
        self._model = model
        # Neither is listed: the second one is Nadam's.
        hidden = [getattr(model.optimizer, name, None) for name in ("learning_rate", "_u_product")]
        self._groups: dict[str, list[tf.Variable]] = {
            WEIGHTS: list(model.weights),
            "optimizer variables": [*model.optimizer.variables, *(each for each in hidden if hasattr(each, "handle"))],
            "recurrent states": list(_recurrent_states(model)),
            "figures": [variable for metric in model.metrics for variable in metric.variables],
            "generators": [generator.state for generator in generators],
        }

    def values(self) -> dict[str, Arrays]:
        """Gives all values; waits for the batch that computes them."""
        return {group: [variable.numpy() for variable in each] for group, each in self._groups.items()}

    def check(self, values: Mapping[str, Arrays], best: Arrays = ()) -> None:
        """Makes sure that values, and the best weights so far, are of these variables.

        Errors: ValueError that says what differs.
        """
        places = [(group, values.get(group, ()), variables) for group, variables in self._groups.items()]
        if best:
            places.append(("best weights", best, self._groups[WEIGHTS]))
        for what, arrays, variables in places:
            found = [(array.shape, str(array.dtype)) for array in arrays]
            wanted = [(tuple(variable.shape), variable.dtype.name) for variable in variables]
            if found != wanted:
                raise ValueError(f"its {what} are not those of the model")

    def restore(self, values: Mapping[str, Arrays], *, within_epoch: bool = False) -> None:
        """Sets the variables that every epoch takes over from the one before, or those that it begins anew."""
        for group, variables in self._groups.items():
            if (group in WITHIN_EPOCH) == within_epoch:
                for variable, array in zip(variables, values[group], strict=True):
                    variable.assign(array)

    def unkept(self) -> tuple[str, ...]:
        """Names the state of a traced train function that is in no group: variables, and operations that draw."""
        known = {id(variable.handle) for each in self._groups.values() for variable in each}
        known.add(id(self._model._train_counter.handle))  # counts batches, for TensorBoard
        names: dict[str, None] = {}
        for function in _traced(self._model):
            by_handle = {id(variable.handle): variable.name for variable in function.graph.variables}
            for captured in function.captured_inputs:
                if captured.dtype == tf.resource and id(captured) not in known:
                    names[f"the variable {by_handle.get(id(captured), '?')}"] = None
            for kind in _drawing(function.graph):
                names[f"the operation {kind}"] = None
        return tuple(names)


def build_figures(model: tf_keras.Model, labels: Any) -> None:
    """Makes the variables of a compiled model's figures, which Keras else makes when it traces.

    Args:
        labels: of one or more samples, as `fit` takes them.
    """
    model.compiled_loss.build(model.output)
    model.compiled_metrics.build(model.output, model.compiled_metrics._conform_to_outputs(model.output, labels))


def _recurrent_states(model: tf_keras.Model) -> Iterator[tf.Variable]:
    for layer in model._flatten_layers():
        if getattr(layer, "stateful", False):
            yield from (state for state in tf.nest.flatten(getattr(layer, "states", ())) if hasattr(state, "handle"))


def _traced(model: tf_keras.Model) -> list[Any]:
    function = model.train_function
    return list(function._list_all_concrete_functions()) if hasattr(function, "_list_all_concrete_functions") else []


def _drawing(graph: Any) -> set[str]:
    """Gives the kinds of operations, in functions that are called too, that draw by a count in the process."""
    kinds = {operation.type for operation in graph.get_operations() if operation.op_def.is_stateful}
    for function in graph._functions.values():
        kinds.update(node.op for node in function.cached_definition.node_def)
    return {kind for kind in kinds if kind in _DRAWS or kind.startswith("Random")}

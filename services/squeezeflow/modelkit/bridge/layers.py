"""One layer of Keras 3 → a tf_keras layer of the same settings.

Settings go over one by one. What tf_keras does not know is dropped where it is at its default, since then it does
nothing, and refused else. Initializers and seeds are dropped: weights are copied.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import keras
import tf_keras

from squeezeflow.modelkit.bridge import activations
from squeezeflow.modelkit.bridge.refusal import refusal

# They keep tables, take any function, or hold cells of any kind.
NEVER = {
    "Lambda": "it runs code of its own: replace it with layers",
    **dict.fromkeys(
        ["IntegerLookup", "StringLookup", "TextVectorization", "Hashing", "HashedCrossing"],
        "it looks words up: do that before the model, and give the model numbers",
    ),
    **dict.fromkeys(["RNN", "StackedRNNCells"], "use LSTM, GRU or SimpleRNN layers"),
    "SpectralNormalization": "tf_keras does not load it back from a file: save the model without it",
    "RandomCrop": "outside of training tf_keras does not crop: put a CenterCrop in its place",
}
RENAMED = {("LeakyReLU", "negative_slope"): "alpha"}
# They say how training is spread over devices, or draw random numbers: what is computed is the same.
IRRELEVANT = frozenset({"synchronized", "seed"})
# Every tf_keras layer takes these.
COMMON = frozenset({"name", "trainable", "dtype", "activity_regularizer"})
# Recurrent layers take it without naming it.
UNNAMED = {kind: frozenset({"zero_output_for_mask"}) for kind in ("LSTM", "GRU", "SimpleRNN")}
WRAPPERS = frozenset({"TimeDistributed", "Bidirectional"})
# Behind these, an activation may be a layer of its own.
LAST = frozenset(
    {
        *("Activation", "Dense", "EinsumDense", "SeparableConv1D", "SeparableConv2D"),
        *("DepthwiseConv1D", "DepthwiseConv2D", "Conv1D", "Conv2D", "Conv3D"),
        *("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"),
    }
)


@dataclass(frozen=True)
class Twin:
    """What stands for a layer.

    Attributes:
        layer: the tf_keras layer or model; None for an Activation that is built of others.
        activation: one of `activations.BUILT`, applied behind it; empty: none.
        behind: a tf_keras layer that is applied behind it; None: none.
    """

    layer: Any
    activation: str = ""
    behind: Any = None


def twin_of_layer(layer: Any, name: str) -> Twin:
    """Gives the twin of a leaf layer under a name.

    Errors: UNSUPPORTED_LAYER naming the layer and the setting.
    """
    kind = type(layer).__name__
    if kind in NEVER:
        raise refusal(layer, NEVER[kind])
    if not type(layer).__module__.startswith("keras.src."):
        raise refusal(layer, "it is a class of its own: replace it with layers of Keras")
    found = getattr(tf_keras.layers, kind, None)
    if found is None:
        raise refusal(layer, f"tf_keras has no layer {kind}")
    if kind in WRAPPERS:
        return Twin(_wrapper(layer, found, name))
    config = {**_config(layer, found), "name": name}
    built, behind = "", None
    if isinstance(layer, keras.layers.Layer) and isinstance(getattr(layer, "activation", None), keras.layers.Layer):
        inner = layer.activation
        behind = _only_layer(layer, twin_of_layer(inner, f"{layer.name}_{inner.name}"))
        config["activation"] = "linear"
    elif config.get("activation") in activations.BUILT:
        built, config["activation"] = config["activation"], "linear"
    if (built or behind is not None) and kind not in LAST:
        raise refusal(layer, f"tf_keras has no such activation ({built or behind.name}) inside of a {kind}")
    if kind == "Activation" and (built or behind is not None):
        return Twin(None, built, behind)
    return Twin(found(**config), built, behind)


def _wrapper(layer: Any, found: Any, name: str) -> Any:
    """Gives the twin of a layer around another one."""
    if type(layer).__name__ == "Bidirectional":
        forward, backward = layer.forward_layer, layer.backward_layer
        config = {"merge_mode": layer.merge_mode, "name": name, "trainable": layer.trainable, "dtype": _policy(layer)}
        # The wrapper puts `forward_` and `backward_` before the name itself.
        inner = _only_layer(layer, twin_of_layer(forward, forward.name.removeprefix("forward_")))
        other = _only_layer(layer, twin_of_layer(backward, backward.name.removeprefix("backward_")))
        plain = other.name == inner.name and _mirrored(inner.get_config(), other.get_config())
        return found(inner, **config) if plain else found(inner, backward_layer=other, **config)
    config = {key: value for key, value in _config(layer, found).items() if key != "layer"}
    return found(_inner(layer), **{**config, "name": name})


def _mirrored(forward: dict[str, Any], backward: dict[str, Any]) -> bool:
    return {**forward, "go_backwards": not forward["go_backwards"]} == backward


def _inner(layer: Any) -> Any:
    from squeezeflow.modelkit.bridge.replay import is_graph, twin_of_model

    inner = layer.layer
    return twin_of_model(inner) if is_graph(inner) else _only_layer(layer, twin_of_layer(inner, inner.name))


def _only_layer(layer: Any, twin: Twin) -> Any:
    if twin.layer is None or twin.activation or twin.behind is not None:
        raise refusal(layer, "tf_keras has not the activation of its inner layer: use another one, or an own layer")
    return twin.layer


def _config(layer: Any, found: Any) -> dict[str, Any]:
    """Gives a layer's settings as tf_keras takes them.

    Errors: UNSUPPORTED_LAYER for a setting that tf_keras has not and that is not at its default.
    """
    kind = type(layer).__name__
    accepted = COMMON | UNNAMED.get(kind, frozenset()) | set(inspect.signature(found.__init__).parameters)
    result: dict[str, Any] = {}
    for key, value in layer.get_config().items():
        renamed = RENAMED.get((kind, key), key)
        if key.endswith("_initializer") or key in IRRELEVANT:
            continue
        if key == "dtype":
            value = _policy(layer)
        elif "activation" in key and not isinstance(getattr(layer, key, None), keras.layers.Layer):
            value = _activation(layer, key, value)
        elif renamed not in accepted:
            _require_default(layer, key, value)
            continue
        result[renamed] = value
    return result


def _activation(layer: Any, key: str, value: Any) -> Any:
    name = value.get("config") if isinstance(value, dict) else value
    if name in activations.SAME:
        return activations.SAME[name]
    if name in activations.BUILT and key == "activation":
        return name
    if name is None:
        return None
    raise refusal(layer, f"tf_keras has not its {key} {name}: use one of {', '.join(sorted(activations.SAME))}")


def _policy(layer: Any) -> str:
    name = str(layer.dtype_policy.name)
    if "_from_" in name:
        raise refusal(layer, f"it is quantized already ({name}): give the model before it was quantized")
    return name


def _require_default(layer: Any, key: str, value: Any) -> None:
    parameters = [inspect.signature(kind.__init__).parameters for kind in type(layer).__mro__]
    default = next((known[key].default for known in parameters if key in known), None)
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    defaults = list(default) if isinstance(default, (list, tuple)) else [default] * len(values)
    # What no constructor names is a switch that is off.
    off = default is None and value is False
    if values != defaults and not off and not (key == "data_format" and value == "channels_last"):
        raise refusal(layer, f"tf_keras has no setting {key}, which is {value} here: leave it at its default {default}")

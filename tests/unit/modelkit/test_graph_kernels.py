"""Kernels of graphs without layers: what products and convolutions take from variables, however it reaches them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import models

from squeezeflow.core.step import ArtifactPath
from squeezeflow.modelkit import saved_kernels
from squeezeflow.modelkit.saved_kernels import SavedVariable
from squeezeflow.modelkit.source import open_source
from squeezeflow.v1 import artifact_pb2


def variables(folder: Path) -> dict[str, SavedVariable]:
    source = open_source(ArtifactPath(artifact_pb2.ARTIFACT_KIND_SAVED_MODEL, folder), "serving_default")
    return {variable.name: variable for variable in saved_kernels.variables(source)}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SavedVariable]:
    """A graph that takes its kernels through a loop, a branch, a function, a transposition and two names."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    names = ["looped", "branched", "called", "turned", "left", "einsum", "table", "added", "image"]
    shapes = dict.fromkeys(names, (4, 4)) | {"image": (2, 2, 1, 3)}
    state = {n: tf.Variable(rng.normal(size=shape).astype(np.float32), name=n) for n, shape in shapes.items()}
    state["twin"] = tf.Variable(rng.normal(size=(4, 4)).astype(np.float32), name="called")

    @tf.function
    def product(x: Any, kernel: Any) -> Any:
        return tf.matmul(x, kernel)

    @tf.function(input_signature=[tf.TensorSpec((4, 4), tf.float32, name="x")])
    def graph(x: Any) -> Any:
        for _ in tf.range(2):
            x = tf.matmul(x, state["looped"])
        if tf.reduce_sum(x) > 0.0:
            x = tf.matmul(x, state["branched"], transpose_b=True)
        x = product(product(x, state["called"]), state["twin"])
        x = tf.matmul(x, tf.transpose(state["turned"]))
        x = tf.matmul(state["left"], x)
        x = tf.einsum("ab,bc->ac", x, state["einsum"]) + state["added"]
        x = x + tf.gather(state["table"], [0, 1, 2, 3])
        return {"y": tf.nn.conv2d(x[None, :, :, None], state["image"], 1, "SAME")}

    return variables(models._function_model(tmp_path_factory.mktemp("g") / "m", {"serving_default": graph}, **state))


@pytest.mark.parametrize(
    ("name", "operation", "axis"),
    [
        ("looped", "MatMul", -2),
        ("branched", "MatMul", -1),
        ("called", "MatMul", -2),
        ("called_1", "MatMul", -2),
        ("turned", "MatMul", None),
        ("left", "MatMul", -1),
        ("einsum", "Einsum", None),
        ("image", "Conv2D", -2),
    ],
)
def test_kernels_are_found_wherever_they_are_taken(
    found: dict[str, SavedVariable], name: str, operation: str, axis: int | None
) -> None:
    assert found[name].reason == ""
    assert found[name].variable.kernel_of == (operation,)
    assert found[name].variable.input_axis == axis


@pytest.mark.parametrize(("name", "reader"), [("table", "Gather"), ("added", "Add")])
def test_other_variables_are_told_with_what_reads_them(found: dict[str, SavedVariable], name: str, reader: str) -> None:
    assert "no matrix product or convolution takes it" in found[name].reason
    assert reader in found[name].reason


def test_values_are_those_of_the_variable_and_not_of_one_with_the_same_name(found: dict[str, SavedVariable]) -> None:
    keys = {found[name].variable.key for name in ("called", "called_1")}
    assert keys == {"called/.ATTRIBUTES/VARIABLE_VALUE", "twin/.ATTRIBUTES/VARIABLE_VALUE"}
    assert not np.array_equal(found["called"].values, found["called_1"].values)


@pytest.mark.parametrize("resource", [False, True], ids=["reference variables", "resource variables"])
def test_graphs_of_tensorflow_1_are_read_too(tmp_path: Path, resource: bool) -> None:
    import tensorflow.compat.v1 as tf1

    with tf1.Graph().as_default(), tf1.Session() as session:
        x = tf1.placeholder(tf1.float32, (None, 8), name="x")
        kernel = tf1.get_variable("kernel", (8, 4), initializer=tf1.ones_initializer(), use_resource=resource)
        session.run(tf1.global_variables_initializer())
        tf1.saved_model.simple_save(session, str(tmp_path / "m"), {"x": x}, {"y": tf1.matmul(x, kernel)})
    assert variables(tmp_path / "m")["kernel"].variable.key == "kernel"


def test_copies_that_keras_3_exports_do_not_change_the_names(tmp_path: Path) -> None:
    models.keras3_cnn().export(str(tmp_path / "m"), verbose=False)
    assert set(variables(tmp_path / "m")) == {"conv/kernel", "conv_2/kernel", "probabilities/kernel"}

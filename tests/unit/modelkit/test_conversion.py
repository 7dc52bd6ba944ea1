"""The converter's errors become ours, naming operators; what needs Flex is never written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests import models

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.step import ArtifactPath
from squeezeflow.core.tflite.compaction import compact
from squeezeflow.modelkit import conversion
from squeezeflow.modelkit.source import open_source
from squeezeflow.v1 import artifact_pb2


@pytest.mark.parametrize(
    ("message", "ops"),
    [
        (
            "TF Select ops: MatrixInverse, Erf\nDetails:\n\ttf.MatrixInverse(tensor<1x4x4xf32>)",
            ["MatrixInverse", "Erf"],
        ),
        ("error: 'tf.TensorListReserve' op requires element_shape to be static during TF Lite", ["TensorListReserve"]),
        ("Quantization to 16x8-bit not yet supported for op: 'ELU'", ["ELU"]),
        ("<unknown>:0: error: 'tf.MatMul' op is neither a custom op nor a flex op", ["MatMul"]),
        ("Op type not registered 'MyOp' in binary running on host", ["MyOp"]),
        ("something else went wrong", []),
    ],
)
def test_operators_are_read_from_the_converters_messages(message: str, ops: list[str]) -> None:
    assert conversion.unsupported_ops(message) == ops
    error = conversion.refusal(message)
    assert error.reason == "UNSUPPORTED_OP"
    assert error.metadata["ops"] == ", ".join(ops)
    assert "\n" not in error.message
    assert all(op in error.message for op in ops)


def test_a_model_that_needs_flex_is_refused_and_no_file_is_written(tmp_path: Path) -> None:
    source = open_source(ArtifactPath(artifact_pb2.ARTIFACT_KIND_SAVED_MODEL, models.needs_flex(tmp_path)))
    with pytest.raises(SqueezeflowError) as caught:
        conversion.convert(source.converter(), tmp_path / "model.tflite")
    assert caught.value.reason == "UNSUPPORTED_OP"
    assert "MatrixInverse" in caught.value.message
    assert not (tmp_path / "model.tflite").exists()


def test_a_loop_over_tensors_of_unknown_shape_says_what_to_change(tmp_path: Path) -> None:
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((None, 6), tf.float32, name="x")])
    def collect(x: Any) -> Any:
        found = tf.TensorArray(tf.float32, 6, infer_shape=False)
        for step in tf.range(6):
            found = found.write(step, tf.boolean_mask(x[:, step], x[:, step] > 0))
        return {"y": found.concat()}

    module = tf.Module()
    tf.saved_model.save(module, str(tmp_path / "model"), signatures={"serving_default": collect})
    source = open_source(ArtifactPath(artifact_pb2.ARTIFACT_KIND_SAVED_MODEL, tmp_path / "model"))
    with pytest.raises(SqueezeflowError) as caught:
        conversion.convert(source.converter(), tmp_path / "model.tflite")
    assert caught.value.reason == "UNSUPPORTED_OP"
    assert "TensorListReserve" in caught.value.message
    assert "element_shape" in caught.value.message


def test_what_is_written_is_compact_already(tmp_path: Path) -> None:
    path = models.tf_keras_file(tmp_path)
    source = open_source(ArtifactPath(artifact_pb2.ARTIFACT_KIND_KERAS, path))
    plain = source.converter().convert()
    conversion.convert(source.converter(), tmp_path / "model.tflite")
    written = (tmp_path / "model.tflite").read_bytes()
    assert written == compact(written)
    assert written == compact(plain) != plain


def test_the_converted_saved_model_goes_with_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "models").mkdir()
    path = models.tf_keras_file(tmp_path / "models")
    source = open_source(ArtifactPath(artifact_pb2.ARTIFACT_KIND_KERAS, path))
    source.converter()
    assert len(list(tmp_path.glob("squeezeflow-*"))) == 1
    source.converter()
    assert len(list(tmp_path.glob("squeezeflow-*"))) == 1
    del source
    import gc

    gc.collect()
    assert list(tmp_path.glob("squeezeflow-*")) == []

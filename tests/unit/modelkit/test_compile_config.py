"""What a file says about training is read in every form that Keras has written it in."""

from __future__ import annotations

from typing import Any

import pytest

from squeezeflow.modelkit.compile_config import CompileConfig, read

CROSSENTROPY = "sparse_categorical_crossentropy"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, CompileConfig()),
        ("text", CompileConfig()),
        ({}, CompileConfig()),
        ({"loss": CROSSENTROPY, "optimizer": "adam"}, CompileConfig(CROSSENTROPY, False, "adam")),
        ({"loss": [CROSSENTROPY]}, CompileConfig(CROSSENTROPY, False)),
        ({"loss": {"out": "mse"}}, CompileConfig("mean_squared_error")),
        ({"loss": {"a": "mse", "b": "mae"}}, CompileConfig()),
        (
            {"loss": {"class_name": "SparseCategoricalCrossentropy", "config": {"from_logits": True}}},
            CompileConfig(CROSSENTROPY, True),
        ),
        ({"loss": {"class_name": "function", "config": "huber"}}, CompileConfig("huber")),
        (
            {"optimizer": {"class_name": "Custom>AdamW", "config": {"learning_rate": 0.5}}},
            CompileConfig(optimizer="adamw", learning_rate=0.5),
        ),
        (
            {"optimizer_config": {"class_name": "SGD", "config": {"lr": 0.25}}},
            CompileConfig(optimizer="sgd", learning_rate=0.25),
        ),
        (
            {"optimizer": {"class_name": "Adam", "config": {"learning_rate": {"class_name": "CosineDecay"}}}},
            CompileConfig(optimizer="adam"),
        ),
    ],
)
def test_every_form_is_read(config: Any, expected: CompileConfig) -> None:
    assert read(config) == expected

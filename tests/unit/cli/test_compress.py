from __future__ import annotations

import json
from pathlib import Path

import pytest

from squeezeflow.cli.compress import CompressOrder, job_spec, services_for
from squeezeflow.cli.exits import UsageError
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.v1 import technique_pb2

MODEL, DATA = Path("m.keras"), Path("d.npz")


def test_without_recipes_a_job_is_dynamic_and_with_data_int8_too():
    assert [r.name for r in job_spec(CompressOrder(MODEL)).recipes] == ["dynamic"]
    assert [r.name for r in job_spec(CompressOrder(MODEL, DATA)).recipes] == ["dynamic", "int8"]


def test_every_option_has_its_place_in_the_request():
    spec = job_spec(
        CompressOrder(
            MODEL,
            DATA,
            recipes=["prune-int8"],
            settings=["prune.sparsity=0.5"],
            out=Path("o"),
            exports=["keras", "savedmodel"],
            signature="predict",
            loss="mean_squared_error",
            from_logits=False,
            epochs=3,
            seed=7,
            scale=[0.5],
            offset=[-1.0],
        )
    )
    assert spec.model.signature == "predict"
    assert (list(spec.data.scale), list(spec.data.offset)) == ([0.5], [-1.0])
    assert [e.format for e in spec.exports] == [
        technique_pb2.Export.FORMAT_KERAS,
        technique_pb2.Export.FORMAT_SAVED_MODEL,
    ]
    assert (spec.fine_tune.loss, spec.fine_tune.epochs, spec.fine_tune.seed) == ("mean_squared_error", 3, 7)
    assert spec.fine_tune.HasField("from_logits")
    assert spec.recipes[0].techniques[0].prune.sparsity == 0.5
    assert spec.recipes[0].techniques[1].quantize.seed == 7


def test_what_was_not_said_is_not_sent():
    spec = job_spec(CompressOrder(MODEL, DATA, recipes=["int8"]))
    assert not spec.HasField("fine_tune")
    assert not spec.recipes[0].techniques[0].quantize.HasField("seed")
    assert not spec.data.scale


@pytest.mark.parametrize(
    ("recipes", "services"),
    [
        (["float32"], {"orchestrator", "converter", "inference"}),
        (["dynamic"], {"orchestrator", "converter", "inference", "quantizer"}),
        (["prune"], {"orchestrator", "converter", "inference", "pruner"}),
        (["prune-int8"], {"orchestrator", "converter", "inference", "pruner", "quantizer"}),
    ],
)
def test_a_job_starts_only_the_services_that_its_recipes_need(recipes, services):
    assert services_for(job_spec(CompressOrder(MODEL, DATA, recipes=recipes))) == services


@pytest.mark.parametrize(
    ("order", "told"),
    [
        (CompressOrder(MODEL, recipes=["int9"]), "'int8'?"),
        (CompressOrder(MODEL, recipes=["mine.json"]), "mine.json"),
        (CompressOrder(MODEL, exports=["keras"]), "--out"),
        (CompressOrder(MODEL, scale=[1.0]), "--data"),
    ],
)
def test_a_call_that_cannot_be_meant_is_a_usage_error(order, told):
    with pytest.raises(UsageError, match=told.replace("?", r"\?")):
        job_spec(order)


@pytest.mark.parametrize(
    ("order", "told"),
    [
        (CompressOrder(MODEL, DATA, recipes=["prune"], settings=["prune.sparsity=1.5"]), "sparsity"),
        (CompressOrder(MODEL, DATA, epochs=0), "epochs"),
        (CompressOrder(MODEL, DATA, loss="guess"), "loss"),
    ],
)
def test_a_value_out_of_bounds_is_refused_before_anything_is_started(order, told):
    with pytest.raises(SqueezeflowError, match=told) as caught:
        job_spec(order)
    assert caught.value.reason == "INVALID_PARAMETER"


def test_a_recipe_file_is_taken_beside_names(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"name": "mine", "techniques": [{"quantize": {"mode": "MODE_INT8"}}]}))
    spec = job_spec(CompressOrder(MODEL, DATA, recipes=["float32", str(path)]))
    assert [recipe.name for recipe in spec.recipes] == ["float32", "mine"]


def test_a_recipe_file_that_breaks_the_rules_is_refused(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"name": "Mine!", "techniques": []}))
    with pytest.raises(SqueezeflowError, match="INVALID_PARAMETER"):
        job_spec(CompressOrder(MODEL, DATA, recipes=[str(path)]))

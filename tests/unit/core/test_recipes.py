from __future__ import annotations

import json

import pytest

from squeezeflow.core import recipes
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.rpc.checks import check_message
from squeezeflow.v1 import technique_pb2


def refused(function, *arguments, **named) -> SqueezeflowError:
    with pytest.raises(SqueezeflowError) as caught:
        function(*arguments, **named)
    assert caught.value.reason == "INVALID_PARAMETER"
    return caught.value


@pytest.mark.parametrize("name", list(recipes.RECIPES))
def test_every_shipped_recipe_keeps_the_rules_of_its_proto(name):
    recipe = recipes.named(name)
    check_message(recipe)
    assert recipe.name == name
    assert recipe.techniques[-1].WhichOneof("technique") in ("convert", "quantize", "train_quantized")


def test_a_named_recipe_is_a_copy_that_may_be_changed():
    recipes.named("int8").techniques[0].quantize.seed = 9
    assert not recipes.named("int8").techniques[0].quantize.HasField("seed")


def test_an_unknown_name_is_refused_with_the_nearest_one():
    assert "'prune-int8'?" in refused(recipes.named, "prune_int8").message


def test_without_data_the_default_is_dynamic_alone():
    assert [recipe.name for recipe in recipes.default_recipes(with_data=False)] == ["dynamic"]
    assert [recipe.name for recipe in recipes.default_recipes(with_data=True)] == ["dynamic", "int8"]


def test_a_setting_reaches_every_recipe_that_has_the_technique_and_no_other():
    before = [recipes.named(name) for name in ("prune", "dynamic", "prune-int8")]
    after = recipes.override(before, ["prune.sparsity=0.5", "prune.fine_tune.epochs=7", "quantize.min_sqnr_db=2.5"])
    for recipe in (after[0], after[2]):
        assert recipe.techniques[0].prune.sparsity == 0.5
        assert recipe.techniques[0].prune.fine_tune.epochs == 7
    assert after[1].techniques[0].quantize.min_sqnr_db == 2.5
    assert not before[0].techniques[0].prune.HasField("sparsity")


@pytest.mark.parametrize("text", ["INT8", "int8", "MODE_INT8"])
def test_an_enum_is_set_by_its_bare_or_its_full_name(text):
    (recipe,) = recipes.override([recipes.named("dynamic")], [f"quantize.mode={text}"])
    assert recipe.techniques[0].quantize.mode == technique_pb2.Quantize.MODE_INT8


@pytest.mark.parametrize(("text", "value"), [("true", True), ("No", False), ("1", True)])
def test_a_truth_value_is_read_from_words(text, value):
    (recipe,) = recipes.override([recipes.named("prune")], [f"prune.fine_tune.from_logits={text}"])
    assert recipe.techniques[0].prune.fine_tune.from_logits is value
    assert recipe.techniques[0].prune.fine_tune.HasField("from_logits")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("prune.sparsty=0.5", "'sparsity'?"),
        ("prone.sparsity=0.5", "'prune'?"),
        ("prune.sparsity=many", "a number"),
        ("prune.sparsity=nan", "a number"),
        ("prune.fine_tune.epochs=1.5", "a whole number"),
        ("prune.fine_tune.epochs=-1", "a whole number of 0 or more"),
        ("prune.fine_tune.epochs=5000000000", "a whole number of 0 or more"),
        ("prune.fine_tune.from_logits=perhaps", "true or false"),
        ("quantize.mode=INT7", "DYNAMIC, INT8"),
        ("quantize.mode=UNSPECIFIED", "DYNAMIC, INT8"),
        ("prune.fine_tune=3", "fine_tune.epochs"),
        ("prune.sparsity.deep=3", "no fields"),
        ("convert.speed=3", "sparse_encoding"),
        ("prune.layer_sparsities=dense", "PATTERN:VALUE"),
        ("prune.layer_sparsities=dense:most", "a number"),
        ("prune.layers.include.deep=3", "no fields"),
        ("export.format=KERAS", "no recipe of this job has export"),
        ("prune.sparsity", "TECHNIQUE.FIELD=VALUE"),
        ("sparsity=0.5", "TECHNIQUE.FIELD=VALUE"),
    ],
)
def test_a_setting_that_cannot_be_applied_says_what_to_write(setting, told):
    wanted = [recipes.named("prune"), recipes.named("int8")]
    assert told in refused(recipes.override, wanted, [setting]).message


def test_a_list_is_given_with_commas_and_pairs_with_colons():
    settings = ["prune.layers.exclude=conv_1, head*", "prune.layer_sparsities=block_*/conv:0.5,dense:0.9"]
    (recipe,) = recipes.override([recipes.named("prune")], [*settings, "prune.m_by_n.n=8"])
    prune = recipe.techniques[0].prune
    assert list(prune.layers.exclude) == ["conv_1", "head*"]
    assert [(rule.pattern, rule.sparsity) for rule in prune.layer_sparsities] == [("block_*/conv", 0.5), ("dense", 0.9)]
    assert (prune.m_by_n.m, prune.m_by_n.n) == (2, 8)
    (mixed,) = recipes.override([recipes.named("int4")], ["quantize.layer_precisions=conv*:INT8"])
    (rule,) = mixed.techniques[0].quantize.layer_precisions
    assert (rule.pattern, rule.precision) == ("conv*", technique_pb2.Quantize.PRECISION_INT8)


def test_a_recipe_file_is_the_json_of_a_recipe(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"name": "mine", "techniques": [{"prune": {"sparsity": 0.6}}, {"convert": {}}]}))
    recipe = recipes.load_file(path)
    assert recipe.name == "mine"
    assert recipe.techniques[0].prune.sparsity == 0.6
    assert recipes.techniques_of([recipe]) == {"prune", "convert"}


@pytest.mark.parametrize("content", ["", "{", '{"name": "x", "steps": []}', '{"techniques": [{"melt": {}}]}'])
def test_a_recipe_file_that_is_none_is_refused_with_its_path(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_text(content)
    message = refused(recipes.load_file, path).message
    assert str(path) in message
    assert "\n" not in message

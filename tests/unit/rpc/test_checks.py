import pytest

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.rpc.checks import check_message
from squeezeflow.v1 import converter_pb2, jobs_pb2, technique_pb2

DIGEST = "a" * 64


def refused(message: object) -> SqueezeflowError:
    with pytest.raises(SqueezeflowError) as caught:
        check_message(message)
    assert caught.value.reason == "INVALID_PARAMETER"
    return caught.value


def job(**prune: object) -> jobs_pb2.CreateJobRequest:
    request = jobs_pb2.CreateJobRequest()
    request.spec.model.artifact = DIGEST
    recipe = request.spec.recipes.add(name="prune")
    recipe.techniques.add(prune=technique_pb2.Prune(**prune))
    return request


def test_a_valid_request_passes() -> None:
    check_message(job(sparsity=0.5))
    assert check_message(converter_pb2.ConvertRequest(model={"artifact": DIGEST})) is None


def test_a_parameter_out_of_range_is_refused_with_its_path() -> None:
    error = refused(job(sparsity=1.5))
    assert error.fields[0][0] == "spec.recipes[0].techniques[0].prune.sparsity"
    assert "0.99" in error.message


def test_every_broken_rule_is_told_at_once() -> None:
    request = job(sparsity=1.5)
    request.spec.model.artifact = "short"
    assert {path for path, _ in refused(request).fields} == {
        "spec.model.artifact",
        "spec.recipes[0].techniques[0].prune.sparsity",
    }


def test_an_unknown_enum_value_is_refused() -> None:
    request = jobs_pb2.CreateJobRequest()
    request.spec.model.artifact = DIGEST
    request.spec.recipes.add(name="q").techniques.add(quantize=technique_pb2.Quantize(mode=77))  # type: ignore[arg-type]
    assert "mode" in refused(request).message


def test_a_technique_that_is_not_set_is_refused() -> None:
    request = job()
    request.spec.recipes[0].techniques.add()
    assert refused(request).fields[0][0] == "spec.recipes[0].techniques[1].technique"


@pytest.mark.parametrize("path", ["", "spec.", "spec.model.", "spec.recipes[0].techniques[0].prune."])
def test_an_unknown_field_is_refused_at_every_depth(path: str) -> None:
    unknown = b"\xd2\x3e\x03new"  # field 1002, a string that this version does not know
    request = job(sparsity=0.5)
    holder: object = request
    for part in path.rstrip(".").split(".") if path else []:
        name, _, index = part.rstrip("]").partition("[")
        holder = getattr(holder, name)
        holder = holder[int(index)] if index else holder
    holder.MergeFromString(unknown)  # type: ignore[attr-defined]
    assert refused(request).fields[0][0] == f"{path}#1002"

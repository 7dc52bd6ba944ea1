"""The Open Inference Protocol on the wire: what clients that were built elsewhere count on."""

from __future__ import annotations

from squeezeflow.oip import open_inference_pb2 as oip

# `field number` by message, as the public specification and its model repository extension have them.
SPECIFICATION = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live 1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready 1",
    "ModelReadyRequest": "name 1, version 2",
    "ModelReadyResponse": "ready 1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name 1, version 2, extensions 3",
    "ModelMetadataRequest": "name 1, version 2",
    "ModelMetadataResponse": "name 1, versions 2, platform 3, inputs 4, outputs 5",
    "ModelMetadataResponse.TensorMetadata": "name 1, datatype 2, shape 3",
    "ModelInferRequest": "model_name 1, model_version 2, id 3, parameters 4, inputs 5, outputs 6, raw_input_contents 7",
    "ModelInferRequest.InferInputTensor": "name 1, datatype 2, shape 3, parameters 4, contents 5",
    "ModelInferRequest.InferRequestedOutputTensor": "name 1, parameters 2",
    "ModelInferResponse": "model_name 1, model_version 2, id 3, parameters 4, outputs 5, raw_output_contents 6",
    "ModelInferResponse.InferOutputTensor": "name 1, datatype 2, shape 3, parameters 4, contents 5",
    "InferParameter": "bool_param 1, int64_param 2, string_param 3, double_param 4, uint64_param 5",
    "InferTensorContents": "bool_contents 1, int_contents 2, int64_contents 3, uint_contents 4, uint64_contents 5, "
    "fp32_contents 6, fp64_contents 7, bytes_contents 8",
    "ModelRepositoryParameter": "bool_param 1, int64_param 2, string_param 3, bytes_param 4",
    "RepositoryIndexRequest": "repository_name 1, ready 2",
    "RepositoryIndexResponse": "models 1",
    "RepositoryIndexResponse.ModelIndex": "name 1, version 2, state 3, reason 4",
    "RepositoryModelLoadRequest": "repository_name 1, model_name 2, parameters 3",
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": "repository_name 1, model_name 2, parameters 3",
    "RepositoryModelUnloadResponse": "",
}


def fields(messages: object, prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, message in messages.items():  # type: ignore[attr-defined]
        if not message.GetOptions().map_entry:
            found[prefix + name] = ", ".join(f"{field.name} {field.number}" for field in message.fields)
            found |= fields(message.nested_types_by_name, f"{prefix}{name}.")
    return found


def test_every_message_has_the_fields_of_the_specification() -> None:
    assert fields(oip.DESCRIPTOR.message_types_by_name) == SPECIFICATION


def test_the_service_has_the_name_and_the_rpcs_of_the_specification() -> None:
    service = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert service.full_name == "inference.GRPCInferenceService"
    assert [method.name for method in service.methods] == [
        "ServerLive",
        "ServerReady",
        "ModelReady",
        "ServerMetadata",
        "ModelMetadata",
        "ModelInfer",
        "RepositoryIndex",
        "RepositoryModelLoad",
        "RepositoryModelUnload",
    ]
    assert all(method.input_type.name == f"{method.name}Request" for method in service.methods)
    assert all(method.output_type.name == f"{method.name}Response" for method in service.methods)


def test_a_request_has_the_bytes_that_other_clients_send() -> None:
    tensor = oip.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 2])
    request = oip.ModelInferRequest(model_name="m", id="7", inputs=[tensor], raw_input_contents=[b"\0" * 8])
    tensor_bytes = "0a0178" + "120446503332" + "1a020102"
    assert request.SerializeToString().hex() == "0a016d" + "1a0137" + "2a0d" + tensor_bytes + "3a08" + "00" * 8

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tflite_models import remainder, tflite_models

from squeezeflow.core import contracts
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.inference.engine import Handler, foreign_contract, open_model, pack, unpack
from squeezeflow.inference.preload import ENGINE, warm


def opened(folder: Path, name: str, change: Any = None) -> Handler:
    contract = contracts.foreign(tflite_models() / name)
    if change is not None:
        change(contract)
    (folder / "contract.json").write_bytes(contracts.encode(contract))
    return open_model({"model": str(tflite_models() / name), "contract": str(folder / "contract.json"), "threads": 1})


def call(handler: Handler, outputs: list[str], **inputs: np.ndarray) -> dict[str, np.ndarray]:
    tensors, buffers = pack(inputs)
    header, data = handler({"tensors": tensors, "outputs": outputs}, buffers)
    return unpack(header["tensors"], data)


def test_a_session_binds_by_contract_names_and_gives_the_outputs_asked_for(tmp_path: Path) -> None:
    def rename(contract: Any) -> None:
        for tensor in [*contract.inputs, *contract.outputs]:
            tensor.name = f"source_{tensor.name}"

    handler = opened(tmp_path, "two.tflite", rename)
    zeta, alpha = np.ones((3, 6), "float32"), np.zeros((3, 6), "float32")
    both = call(handler, ["source_second", "source_first"], source_alpha=alpha, source_zeta=zeta)
    assert list(both) == ["source_second", "source_first"]
    assert both["source_first"].shape == (3, 4)
    np.testing.assert_array_equal(both["source_first"], 0)
    assert np.abs(both["source_second"]).max() > 0
    assert list(call(handler, ["source_first"], source_alpha=alpha, source_zeta=zeta)) == ["source_first"]


def test_values_stay_in_the_files_own_element_types(tmp_path: Path) -> None:
    answer = call(opened(tmp_path, "cnn_int8_io.tflite"), ["answer"], image=np.zeros((2, 28, 28, 1), "int8"))["answer"]
    assert answer.dtype == "int8"
    assert answer.shape == (2, 10)


@pytest.mark.parametrize(("field", "value"), [("dtype", "int8"), ("shape", [-1, 32, 32, 1])])
def test_a_contract_that_says_something_else_than_the_file_is_refused(field: str, value: Any, tmp_path: Path) -> None:
    def change(contract: Any) -> None:
        if field == "shape":
            del contract.inputs[0].shape[:]
            contract.inputs[0].shape.extend(value)
        else:
            contract.inputs[0].dtype = value

    with pytest.raises(SqueezeflowError, match="MALFORMED_MODEL: the contract says") as caught:
        opened(tmp_path, "cnn.tflite", change)
    assert caught.value.metadata["tensor"] == "image"


def test_a_file_that_is_no_model_is_malformed(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(b"no flatbuffer at all" * 40)
    payload = {"model": str(tmp_path / "model.tflite"), "contract": str(tmp_path / "made.json")}
    with pytest.raises(SqueezeflowError, match="MALFORMED_MODEL"):
        foreign_contract(payload, lambda news: None)


def test_the_contract_of_a_foreign_file_names_its_tensors(tmp_path: Path) -> None:
    model = remainder(tmp_path / "remainder.tflite")
    foreign_contract({"model": str(model), "contract": str(tmp_path / "made.json")}, lambda news: None)
    contract = contracts.decode(tmp_path / "made.json")
    assert [tensor.name for tensor in [*contract.inputs, *contract.outputs]] == ["x", "remainder"]
    assert contract.foreign


def test_arrays_travel_unchanged_and_wrong_lengths_are_seen() -> None:
    arrays = {"a": np.arange(6, dtype="int16").reshape(2, 3), "b": np.array(2.5), "c": np.zeros((1, 0), "float32")}
    tensors, buffers = pack(arrays)
    for name, array in unpack(tensors, buffers).items():
        np.testing.assert_array_equal(array, arrays[name])
        assert array.dtype == arrays[name].dtype
    with pytest.raises(SqueezeflowError, match="INTERNAL"):
        unpack(tensors, [buffers[0][:-1], *buffers[1:]])


def test_the_service_itself_imports_neither_litert_nor_tensorflow() -> None:
    engines = "('ai_edge', 'tensorflow', 'tf_keras', 'keras')"
    code = f"import sys, squeezeflow.inference.__main__; print([m for m in sys.modules if m.startswith({engines})])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_module_that_the_fork_server_preloads_is_there_and_the_warm_up_runs() -> None:
    for module in ENGINE.preload:
        importlib.import_module(module)
    warm()

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.kinds import DATA_KINDS, FOLDER_KINDS, MODEL_KINDS, file_name, kind_named, kind_of_path, kind_word
from squeezeflow.v1 import artifact_pb2

DATA = Path(__file__).parents[2] / "data"
FER = DATA / "models" / "fer"
HDF5 = b"\x89HDF\r\n\x1a\n"


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"1")
    return buffer.getvalue()


def refusal(path: Path, role: str) -> tuple[str, str]:
    with pytest.raises(SqueezeflowError) as caught:
        kind_of_path(path, role=role)
    assert path.name in caught.value.message
    return caught.value.reason, caught.value.message


@pytest.mark.parametrize(
    ("path", "role", "word"),
    [
        (FER / "emotion_model_keras3.keras", "model", "KERAS"),
        (FER / "emotion_model.hdf5", "model", "HDF5"),
        (FER / "emotion_model_quantized.tflite", "model", "TFLITE"),
        (DATA / "models" / "basic_pitch" / "nmp", "model", "SAVED_MODEL"),
        (DATA / "fashion_mnist.npz", "data", "DATASET"),
        (DATA / "japanese_vowels.npz", "data", "DATASET"),
    ],
)
def test_real_files_show_their_kind(path: Path, role: str, word: str) -> None:
    assert kind_word(kind_of_path(path, role=role)) == word


@pytest.mark.parametrize(("name", "word"), [("emotion_model.hdf5", "HDF5"), ("emotion_model_keras3.keras", "KERAS")])
@pytest.mark.parametrize("new_name", ["m.keras", "m.h5", "m", "m.bin"])
def test_leading_bytes_count_more_than_the_name(tmp_path: Path, name: str, word: str, new_name: str) -> None:
    (tmp_path / new_name).write_bytes((FER / name).read_bytes())
    assert kind_word(kind_of_path(tmp_path / new_name, role="model")) == word


def test_a_folder_of_npy_files_is_a_dataset(tmp_path: Path) -> None:
    np.save(tmp_path / "x_train.npy", np.zeros(3))
    assert kind_word(kind_of_path(tmp_path, role="data")) == "DATASET_FOLDER"


@pytest.mark.parametrize("role", ["model", "data"])
def test_a_path_that_does_not_exist_is_not_found(tmp_path: Path, role: str) -> None:
    assert refusal(tmp_path / "none.keras", role)[0] == "NOT_FOUND"


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "m.tflite", "m"])
def test_an_empty_model_is_malformed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    reason, message = refusal(tmp_path / name, "model")
    assert (reason, "it is empty" in message) == ("MALFORMED_MODEL", True)


@pytest.mark.parametrize("kept", [4, 8, 9, 40, 63, 64, 1000, 400_000])
@pytest.mark.parametrize("name", ["emotion_model.hdf5", "emotion_model_keras3.keras"])
def test_a_truncated_model_is_malformed(tmp_path: Path, name: str, kept: int) -> None:
    path = tmp_path / name
    path.write_bytes((FER / name).read_bytes()[:kept])
    reason, message = refusal(path, "model")
    assert (reason, "truncated" in message) == ("MALFORMED_MODEL", True)


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_the_length_in_every_hdf5_superblock_is_held_against_the_file(tmp_path: Path, version: int) -> None:
    path = tmp_path / "m.h5"
    widths = bytes([version, 0, 0, 0, 0, 8, 8, 0]) + bytes(8 if version == 0 else 12)
    head = HDF5 + (widths if version < 2 else bytes([version, 8, 8, 0])) + bytes(16) + (500).to_bytes(8, "little")
    path.write_bytes(head.ljust(500, b"\0"))
    assert kind_word(kind_of_path(path, role="model")) == "HDF5"
    path.write_bytes(head.ljust(499, b"\0"))
    assert "499 bytes of 500" in refusal(path, "model")[1]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("m.keras", b"text that is no archive"),
        ("m.h5", b"PL\x03\x04"),
        ("m.tflite", b"\x1c\0\0\0TFL2" + bytes(100)),
        ("m.keras", zipped("model.weights.h5")),
        ("m.h5", HDF5 + bytes([9]) + bytes(100)),
    ],
)
def test_a_model_that_is_not_what_its_name_says_is_malformed(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert refusal(tmp_path / name, "model")[0] == "MALFORMED_MODEL"


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        ("m.onnx", b"\x08\x07\x12\x07pytorch", ".keras, .h5 or .tflite"),
        ("m.pt", zipped("archive/data.pkl"), ".keras, .h5 or .tflite"),
        ("d.npz", zipped("x_train.npy"), "is a dataset"),
        ("saved_model.pb", b"\x08\x01", "give its folder"),
    ],
)
def test_another_format_is_unsupported_and_told_what_to_give(tmp_path: Path, name: str, data: bytes, part: str) -> None:
    (tmp_path / name).write_bytes(data)
    reason, message = refusal(tmp_path / name, "model")
    assert (reason, part in message) == ("UNSUPPORTED_INPUT", True)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "UNSUPPORTED_INPUT"),
        ({"saved_model.pb": b""}, "MALFORMED_MODEL"),
        ({"saved_model.pbtxt": b"x"}, "UNSUPPORTED_INPUT"),
        ({"config.json": b"{}", "model.weights.h5": HDF5}, "UNSUPPORTED_INPUT"),
    ],
)
def test_a_folder_that_is_no_saved_model_is_refused(tmp_path: Path, files: dict[str, bytes], reason: str) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert refusal(tmp_path, "model")[0] == reason


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("d.npz", b""),
        ("d.csv", b"1,2,3"),
        ("d.npz", zipped()),
        ("d.npz", zipped("x_train.npy", "readme.txt")),
        ("d.npz", (DATA / "japanese_vowels.npz").read_bytes()[:1000]),
        ("d.npy", b"\x93NUMPY\x01\x00"),
        ("m.keras", zipped("config.json")),
    ],
)
def test_data_that_is_no_dataset_is_a_mismatch(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert refusal(tmp_path / name, "data")[0] == "DATA_MISMATCH"


def test_a_folder_without_arrays_is_a_mismatch(tmp_path: Path) -> None:
    (tmp_path / "x_train.csv").write_bytes(b"1")
    assert refusal(tmp_path, "data")[0] == "DATA_MISMATCH"


def test_every_kind_has_a_word_and_a_file_name() -> None:
    kinds = [kind for kind in artifact_pb2.ArtifactKind.values() if kind]
    assert [kind_named(kind_word(kind)) for kind in kinds] == kinds
    assert len({file_name(kind) for kind in kinds}) == len(kinds)
    others = {artifact_pb2.ARTIFACT_KIND_CONTRACT, artifact_pb2.ARTIFACT_KIND_LOGS}
    assert MODEL_KINDS | DATA_KINDS | others == set(kinds)
    assert {file_name(kind) for kind in FOLDER_KINDS} == {"model", "data", "logs"}


@pytest.mark.parametrize("kind", [0, 99, -1])
def test_an_unknown_kind_is_refused(kind: int) -> None:
    with pytest.raises(SqueezeflowError) as caught:
        kind_word(kind)
    assert caught.value.reason == "INVALID_PARAMETER"


@pytest.mark.parametrize("word", ["UNSPECIFIED", "ZIP", ""])
def test_an_unknown_word_is_no_kind(word: str) -> None:
    with pytest.raises(ValueError):
        kind_named(word)

"""Sizes as INTERFACES defines them."""

from __future__ import annotations

import zlib

import numpy as np

from squeezeflow.core.sizes import CHUNK, sizes_of


def test_sizes_are_the_bytes_and_the_bytes_after_deflate_at_level_nine(tmp_path):
    data = np.random.default_rng(0).integers(0, 8, CHUNK + 12345, dtype=np.uint8).tobytes()
    (tmp_path / "model.tflite").write_bytes(data)
    sizes = sizes_of(tmp_path / "model.tflite")
    assert sizes.raw_bytes == len(data)
    assert sizes.deflated_bytes == len(zlib.compress(data, 9))


def test_sizes_of_a_folder_sum_its_files_each_by_itself(tmp_path):
    (tmp_path / "variables").mkdir()
    (tmp_path / "saved_model.pb").write_bytes(b"a" * 1000)
    (tmp_path / "variables" / "variables.index").write_bytes(b"b" * 500)
    sizes = sizes_of(tmp_path)
    assert sizes.raw_bytes == 1500
    assert sizes.deflated_bytes == len(zlib.compress(b"a" * 1000, 9)) + len(zlib.compress(b"b" * 500, 9))


def test_an_empty_file_has_no_bytes(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert sizes_of(tmp_path / "empty").raw_bytes == 0

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.actions_suite import BEGAN, ActionsSuite, action
from tests.store_suite import refusal

from squeezeflow.core.actions import ActionCache
from squeezeflow.core.store import Store, open_store
from squeezeflow.v1.artifact_pb2 import Artifact
from squeezeflow.v1.step_pb2 import StepResult
from squeezeflow.v1.technique_pb2 import Convert, Prune


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(f"dir:{tmp_path_factory.mktemp('store')}")


@pytest.fixture
def tenant() -> str:
    return "default"


class TestActionsInAFolder(ActionsSuite):
    pass


def test_the_digest_is_that_of_the_canonical_json() -> None:
    value = {
        "technique": "convert",
        "params": json.loads(replace(action(), params=Convert()).params_json),
        "inputs": {"model": "a" * 64},
        "settings": {"signature": "s", "scale": [0.5]},
        "toolchain": {"tensorflow": "2"},
    }
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    made = replace(
        action(),
        technique="convert",
        params=Convert(),
        inputs={"model": "a" * 64},
        settings={"scale": [0.5], "signature": "s"},
        toolchain={"tensorflow": "2"},
    )
    assert made.digest == hashlib.sha256(text.encode()).hexdigest()


def test_order_and_defaults_that_are_written_out_do_not_count() -> None:
    assert action(inputs={"a": "1", "b": "2"}).digest == action(inputs={"b": "2", "a": "1"}).digest
    filled = Prune()
    filled.sparsity = Prune().sparsity
    assert filled.HasField("sparsity")
    assert replace(action(), params=Prune()).digest == replace(action(), params=filled).digest
    assert json.loads(replace(action(), params=Prune()).params_json)["sparsity"] == 0.8


def test_everything_that_a_result_depends_on_counts() -> None:
    base = action()
    others = [
        replace(base, technique="cluster"),
        replace(base, params=Prune(sparsity=0.6)),
        replace(base, inputs={"model": "a" * 64}),
        replace(base, inputs={"baseline": base.inputs["model"], "data": base.inputs["data"]}),
        replace(base, settings={**base.settings, "signature": "other"}),
        replace(base, settings={**base.settings, "scale": []}),
        replace(base, toolchain={"tensorflow": "2.22.0", "squeezeflow": "1"}),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == len(others) + 1


def test_a_digest_does_not_change_between_versions() -> None:
    assert (
        replace(action(), params=Convert()).digest == "e07f0009a97a553a483a723c0dbbb238ce9124b26659f47847e24a4163f3d905"
    )


def test_long_lineages_are_bounded_and_nearest_first(tmp_path: Path) -> None:
    cache = ActionCache(open_store(f"dir:{tmp_path}"), "default")
    first = action(inputs={"model": "a" * 64})
    cache.put(first, StepResult(artifact=Artifact(digest="b" * 64)), BEGAN)
    folder = tmp_path / "tenants" / "default"
    template = (folder / "actions" / first.digest).read_text()
    for number in range(1, 1100):  # copies of a real record, not flushed to the disk one by one
        step = {first.digest: f"{number:064x}", "a" * 64: f"{number - 1:064x}", "b" * 64: f"{number:064x}"}
        text = template
        for old, new in step.items():
            text = text.replace(old, new)
        (folder / "actions" / f"{number:064x}").write_text(text)
        (folder / "producers" / f"{number:064x}").mkdir()
        (folder / "producers" / f"{number:064x}" / f"{number:064x}").touch()
    lineage = cache.lineage(f"{1099:064x}")
    assert [int(record.action, 16) for record in lineage] == list(range(1099, 99, -1))


def test_a_store_that_is_down_is_no_miss(tmp_path: Path) -> None:
    cache = ActionCache(open_store(f"dir:{tmp_path}/store"), "default")
    cache.put(action(), StepResult(), BEGAN)
    shutil.rmtree(tmp_path / "store")
    for call in (
        lambda: cache.get(action().digest),
        lambda: cache.record(action().digest),
        lambda: cache.producers("0" * 64),
        lambda: cache.put(action(), StepResult(), BEGAN),
    ):
        assert refusal(call).reason == "STORE_UNAVAILABLE"

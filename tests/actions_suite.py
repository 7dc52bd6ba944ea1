"""What action records must do over every store; a subclass has a `store` fixture and a fresh `tenant`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from tests.store_suite import refusal

from squeezeflow.core.actions import Action, ActionCache
from squeezeflow.core.artifacts import Artifacts
from squeezeflow.core.store import Store
from squeezeflow.v1.artifact_pb2 import ARTIFACT_KIND_CONTRACT, ARTIFACT_KIND_TFLITE
from squeezeflow.v1.step_pb2 import Invariant, Metric, StepResult
from squeezeflow.v1.technique_pb2 import Prune

ABSENT = "0" * 64
BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def action(number: int = 0, inputs: Mapping[str, str] | None = None, **settings: Any) -> Action:
    return Action(
        technique="prune",
        params=Prune(sparsity=0.5),
        inputs=inputs or {"model": f"{number:064x}", "data": "f" * 64},
        settings={"signature": "", "scale": [0.5], **settings},
        toolchain={"tensorflow": "2.21.0", "squeezeflow": "1"},
    )


class ActionsSuite:
    """The tests."""

    @pytest.fixture
    def cache(self, store: Store, tenant: str) -> ActionCache:
        return ActionCache(store, tenant)

    @pytest.fixture
    def artifacts(self, store: Store, tenant: str) -> Artifacts:
        return Artifacts(store, tenant)

    def result(self, artifacts: Artifacts, folder: Path, text: str = "model", contract: str = "{}") -> StepResult:
        (folder / "m").write_text(text)
        (folder / "c").write_text(contract)
        return StepResult(
            artifact=artifacts.write(ARTIFACT_KIND_TFLITE, folder / "m"),
            contract=artifacts.write(ARTIFACT_KIND_CONTRACT, folder / "c").digest,
            metrics={"accuracy": Metric(value=0.9, low=0.8, samples=100)},
            invariants=[Invariant(name="finite", passed=True, detail="ü")],
            notes=["note"],
            seconds={"run": 1.5},
        )

    def test_a_result_comes_back_as_it_was_and_marked_as_cached(
        self, cache: ActionCache, artifacts: Artifacts, tmp_path: Path
    ) -> None:
        assert cache.get(action().digest) is None
        assert cache.record(action().digest) is None
        given = self.result(artifacts, tmp_path)
        kept = cache.put(action(), given, BEGAN)
        assert (kept.action, kept.cached) == (action().digest, False)
        found = cache.get(action().digest)
        assert found is not None
        assert found.cached
        found.cached = False
        assert found == kept
        found.action = ""
        assert found == given

    def test_a_record_says_all_that_the_result_depends_on(
        self, cache: ActionCache, artifacts: Artifacts, tmp_path: Path
    ) -> None:
        given = self.result(artifacts, tmp_path)
        cache.put(action(3), given, BEGAN.astimezone(timezone(timedelta(hours=5))))
        record = cache.record(action(3).digest)
        assert record is not None
        assert (record.action, record.technique) == (action(3).digest, "prune")
        assert json.loads(record.params)["sparsity"] == 0.5
        assert [(named.name, named.digest) for named in record.inputs] == [("data", "f" * 64), ("model", f"{3:064x}")]
        assert dict(record.toolchain) == {"tensorflow": "2.21.0", "squeezeflow": "1"}
        assert [(named.name, named.digest) for named in record.outputs] == [
            ("artifact", given.artifact.digest),
            ("contract", given.contract),
        ]
        assert record.start_time.ToDatetime(UTC) == BEGAN
        assert abs(record.end_time.ToDatetime(UTC) - datetime.now(UTC)) < timedelta(minutes=5)

    def test_a_result_without_artifact_is_kept_too(self, cache: ActionCache) -> None:
        cache.put(action(), StepResult(metrics={"accuracy": Metric(value=1)}), BEGAN)
        found = cache.get(action().digest)
        assert found is not None
        assert found.metrics["accuracy"].value == 1
        assert not found.HasField("artifact")

    def test_the_first_record_stands(self, cache: ActionCache, artifacts: Artifacts, tmp_path: Path) -> None:
        first = cache.put(action(), self.result(artifacts, tmp_path, "first"), BEGAN)
        second = cache.put(action(), self.result(artifacts, tmp_path, "second"), BEGAN)
        assert second.artifact == first.artifact
        assert second.cached
        found = cache.get(action().digest)
        assert found is not None
        assert found.artifact == first.artifact

    def test_writers_at_the_same_time_agree_on_one_record(
        self, cache: ActionCache, artifacts: Artifacts, tmp_path: Path
    ) -> None:
        results = [self.result(artifacts, tmp_path, str(number)) for number in range(8)]
        with ThreadPoolExecutor(8) as writers:
            kept = list(writers.map(lambda result: cache.put(action(), result, BEGAN), results))
        assert len({result.artifact.digest for result in kept}) == 1
        assert [result.cached for result in kept].count(False) == 1

    @pytest.mark.parametrize("lost", ["artifact", "contract"])
    @pytest.mark.parametrize("part", ["blobs", "artifacts"])
    def test_a_record_whose_outputs_are_gone_is_a_miss_and_replaced(
        self, store: Store, tenant: str, cache: ActionCache, artifacts: Artifacts, tmp_path: Path, lost: str, part: str
    ) -> None:
        first = cache.put(action(), self.result(artifacts, tmp_path, "first", '{"n":1}'), BEGAN)
        digest = first.artifact.digest if lost == "artifact" else first.contract
        store.delete(f"tenants/{tenant}/{part}/{digest}")
        assert cache.get(action().digest) is None
        assert cache.record(action().digest) is not None
        second = cache.put(action(), self.result(artifacts, tmp_path, "second", '{"n":2}'), BEGAN)
        assert second.artifact.digest != first.artifact.digest
        found = cache.get(action().digest)
        assert found is not None
        assert found.artifact == second.artifact

    def test_a_record_whose_artifact_was_found_damaged_is_a_miss(
        self, store: Store, tenant: str, cache: ActionCache, artifacts: Artifacts, tmp_path: Path
    ) -> None:
        kept = cache.put(action(), self.result(artifacts, tmp_path), BEGAN)
        store.put_bytes(f"tenants/{tenant}/blobs/{kept.artifact.digest}", b"mOdel")
        assert refusal(lambda: artifacts.fetch(kept.artifact.digest, tmp_path / "out")).reason == "DIGEST_MISMATCH"
        assert cache.get(action().digest) is None
        cache.put(action(), self.result(artifacts, tmp_path), BEGAN)
        assert cache.get(action().digest) is not None
        artifacts.fetch(kept.artifact.digest, tmp_path / "out")

    @pytest.mark.parametrize(
        "data", [b"", b"\xff", b"[]", b"{}", b'{"record":{},"result":{}}', b'{"record":1,"result":2}']
    )
    def test_a_record_that_cannot_be_read_is_a_miss_and_replaced(
        self, store: Store, tenant: str, cache: ActionCache, artifacts: Artifacts, tmp_path: Path, data: bytes
    ) -> None:
        store.put_bytes(f"tenants/{tenant}/actions/{action().digest}", data)
        assert cache.get(action().digest) is None
        assert cache.record(action().digest) is None
        cache.put(action(), self.result(artifacts, tmp_path), BEGAN)
        assert cache.get(action().digest) is not None

    def test_a_record_under_the_name_of_another_action_is_a_miss(
        self, store: Store, tenant: str, cache: ActionCache, artifacts: Artifacts, tmp_path: Path
    ) -> None:
        cache.put(action(1), self.result(artifacts, tmp_path), BEGAN)
        data = store.get_bytes(f"tenants/{tenant}/actions/{action(1).digest}")
        store.put_bytes(f"tenants/{tenant}/actions/{action(2).digest}", data)
        assert cache.get(action(2).digest) is None

    def test_the_records_of_another_tenant_are_not_seen(
        self, store: Store, tenant: str, cache: ActionCache, artifacts: Artifacts, tmp_path: Path
    ) -> None:
        kept = cache.put(action(), self.result(artifacts, tmp_path), BEGAN)
        other = ActionCache(store, f"other-{tenant}")
        assert other.get(action().digest) is None
        assert other.record(action().digest) is None
        assert other.producers(kept.artifact.digest) == []
        assert other.lineage(kept.artifact.digest) == []

    def test_producers_are_those_whose_record_stands_newest_first(
        self, cache: ActionCache, artifacts: Artifacts, tmp_path: Path
    ) -> None:
        for number in (2, 0, 1):
            kept = cache.put(action(number), self.result(artifacts, tmp_path), BEGAN)
        other = self.result(artifacts, tmp_path, "other")
        cache.put(action(0), other, BEGAN)  # does not stand
        records = cache.producers(kept.artifact.digest)
        assert [record.action for record in records] == [action(number).digest for number in (1, 0, 2)]
        assert [record.action for record in cache.producers(kept.contract)] == [record.action for record in records]
        assert cache.producers(other.artifact.digest) == []
        assert cache.producers(ABSENT) == []

    def chain(self, cache: ActionCache, artifacts: Artifacts, folder: Path) -> dict[str, Action]:
        """Makes source → a → b → c, where b takes data that d made, and c takes a too."""
        made: dict[str, Action] = {}
        outputs: dict[str, str] = {}
        takes = {"a": [], "d": [], "b": ["a", "d"], "c": ["b", "a"]}
        for name, sources in takes.items():
            made[name] = action(inputs={"source": "a" * 64} | {source: outputs[source] for source in sources})
            made[name] = replace(made[name], technique=name)
            result = self.result(artifacts, folder, name, "")
            outputs[name] = cache.put(made[name], StepResult(artifact=result.artifact), BEGAN).artifact.digest
        self.outputs = outputs
        return made

    def test_lineage_goes_back_to_the_source_nearest_first(
        self, cache: ActionCache, artifacts: Artifacts, tmp_path: Path
    ) -> None:
        self.chain(cache, artifacts, tmp_path)
        lineage = [record.technique for record in cache.lineage(self.outputs["c"])]
        assert lineage[0] == "c"
        assert sorted(lineage[1:3]) == ["a", "b"]
        assert lineage[3:] == ["d"]
        assert [record.technique for record in cache.lineage(self.outputs["a"])] == ["a"]
        assert cache.lineage("a" * 64) == []

    def test_lineage_ends_where_actions_feed_each_other(
        self, cache: ActionCache, artifacts: Artifacts, tmp_path: Path
    ) -> None:
        one, two = (self.result(artifacts, tmp_path, text, "").artifact for text in "12")
        forth = action(inputs={"model": one.digest})
        back = action(inputs={"model": two.digest})
        cache.put(forth, StepResult(artifact=two), BEGAN)
        cache.put(back, StepResult(artifact=one), BEGAN)
        assert [record.action for record in cache.lineage(one.digest)] == [back.digest, forth.digest]

    @pytest.mark.parametrize("digest", ["", "x", "../" + "0" * 61])
    def test_what_is_no_digest_is_refused(self, cache: ActionCache, digest: str) -> None:
        for call in (cache.get, cache.record, cache.producers, cache.lineage):
            assert refusal(lambda call=call: call(digest)).reason == "INVALID_PARAMETER"

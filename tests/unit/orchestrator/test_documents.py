"""Jobs in the store."""

from __future__ import annotations

import json
import time
from pathlib import Path

from tests.unit.orchestrator.builders import ALL_RECIPES, record_of, succeeded

from squeezeflow.core.store import open_store
from squeezeflow.orchestrator.documents import JobDocuments, new_id
from squeezeflow.orchestrator.record import StepView
from squeezeflow.orchestrator.report import assemble
from squeezeflow.v1 import jobs_pb2


def test_a_document_is_the_jobs_proto_json_under_its_tenant(tmp_path: Path) -> None:
    store = open_store(f"dir:{tmp_path}")
    documents = JobDocuments(store)
    record = record_of(*ALL_RECIPES)
    job = assemble(record, {node.id: StepView(outcome=succeeded(node.id)) for node in record.plan.nodes})
    documents.put("default", job)
    assert documents.get("default", job.id) == job
    document = json.loads(store.get_bytes(f"tenants/default/jobs/{job.id}"))
    assert document["state"] == "JOB_STATE_SUCCEEDED"
    assert document["spec"]["recipes"][2]["techniques"][0]["prune"]["sparsity"] == 0.8


def test_another_tenants_job_is_not_there(tmp_path: Path) -> None:
    documents = JobDocuments(open_store(f"dir:{tmp_path}"))
    documents.put("default", jobs_pb2.Job(id="job-1"))
    assert documents.get("other", "job-1") is None
    assert list(documents.ids("other", start_after="", limit=10)) == []


def test_ids_list_the_newest_first_in_pages(tmp_path: Path) -> None:
    documents = JobDocuments(open_store(f"dir:{tmp_path}"))
    made = []
    for _ in range(5):
        made.append(new_id())
        documents.put("default", jobs_pb2.Job(id=made[-1]))
        time.sleep(0.002)
    newest_first = made[::-1]
    assert list(documents.ids("default", start_after="", limit=3)) == newest_first[:3]
    assert list(documents.ids("default", start_after=newest_first[2], limit=3)) == newest_first[3:]


def test_a_request_id_stands_for_one_job_of_one_tenant(tmp_path: Path) -> None:
    documents = JobDocuments(open_store(f"dir:{tmp_path}"))
    assert documents.claimed("default", "../x") == ""
    documents.claim("default", "../x", "job-1")
    assert documents.claimed("default", "../x") == "job-1"
    assert documents.claimed("other", "../x") == ""

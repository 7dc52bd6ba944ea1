"""`squeezeflow jobs`: what ran, what runs, and an end to it."""

from __future__ import annotations

from squeezeflow.cli import exits
from squeezeflow.cli.compress import answer, follow, report
from squeezeflow.cli.output import Output
from squeezeflow.cli.session import open_session
from squeezeflow.cli.settings import Settings

_NEEDS = frozenset({"orchestrator"})


def list_jobs(settings: Settings, output: Output, *, page_size: int, page_token: str) -> int:
    """Writes a page of jobs, newest first."""
    with open_session(settings, output, _NEEDS) as session:
        page = session.client.list_jobs(page_size=page_size, page_token=page_token)
    from squeezeflow.cli import tables

    output.message(page)
    output.show(tables.jobs_table(page.jobs))
    if page.next_page_token:
        output.tell(f"there are more: --page-token {page.next_page_token}")
    return exits.DONE


def get(settings: Settings, output: Output, job_id: str) -> int:
    """Writes a job as it stands, and what its files cost."""
    with open_session(settings, output, _NEEDS) as session:
        job = session.client.get_job(job_id)
    from squeezeflow.cli import tables

    answer(output, job)
    costs = tables.costs_table(job)
    if costs.row_count:
        output.show("", costs)
    return exits.DONE


def watch(settings: Settings, output: Output, job_id: str) -> int:
    """Shows a job until it has ended, writes it, and gives the code that `compress` would have given."""
    with open_session(settings, output, _NEEDS) as session:
        job, interrupted = follow(session.client, session.client.get_job(job_id), output, cancel=False)
        answer(output, job)
    return report(output, job, interrupted=interrupted)


def cancel(settings: Settings, output: Output, job_id: str) -> int:
    """Ends a job and writes it as it stands then."""
    with open_session(settings, output, _NEEDS) as session:
        answer(output, session.client.cancel_job(job_id))
    return exits.DONE

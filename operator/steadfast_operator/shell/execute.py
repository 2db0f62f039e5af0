"""The only writer: carries out one decision. Each action is safe to repeat, so dying in between loses nothing.

The order is what fencing rests on: records, then the status, then everything that acts on it.
"""

from __future__ import annotations

import asyncio
from typing import assert_never

from steadfast_operator.api.types import TrainingJob, TrainingJobStatus
from steadfast_operator.core import attempts
from steadfast_operator.core.actions import Action, CreateRecord, CreateWorker, Decision, DeleteWorkers, EmitEvent
from steadfast_operator.core.observation import AttemptRecord
from steadfast_operator.shell.ports import Cluster, ClusterError

CREATES_AT_ONCE = 32


async def execute(cluster: Cluster, job: TrainingJob, decision: Decision) -> None:
    """Carry out a decision about this job, as it was observed.

    Raises:
        ClusterError: something could not be written; what was, stands, and the next look sees it.
    """
    status = decision.status
    for action in decision.actions:
        if isinstance(action, CreateRecord):
            status = await _put_record(cluster, action.record, status)
    if status != job.status:
        await cluster.write_status(job, status)
    creates = [action for action in decision.actions if isinstance(action, CreateWorker)]
    if creates:
        await cluster.isolate_workers(job)
    for start in range(0, len(creates), CREATES_AT_ONCE):
        batch = creates[start : start + CREATES_AT_ONCE]
        await asyncio.gather(*(cluster.create_worker(job, action) for action in batch))
    for action in decision.actions:
        await _carry_out(cluster, job, action)


async def _carry_out(cluster: Cluster, job: TrainingJob, action: Action) -> None:
    match action:
        case CreateRecord() | CreateWorker():
            pass  # done before, in their own order
        case DeleteWorkers():
            await cluster.delete_workers(action.names, action.grace_seconds)
        case EmitEvent():
            await cluster.emit_event(job, action)
        case _:
            assert_never(action)


async def _put_record(cluster: Cluster, record: AttemptRecord, status: TrainingJobStatus) -> TrainingJobStatus:
    """Write an attempt down, or adopt the one that somebody has written before: its roster stands."""
    if await cluster.create_record(record):
        return status
    existing = await cluster.fetch_record(record.number)
    if existing is None:
        raise ClusterError(f"The record of attempt {record.number} exists and cannot be read.")
    return attempts.moved_to(status, existing)

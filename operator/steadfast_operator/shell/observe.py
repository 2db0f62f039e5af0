"""The only reader: one look at a job and everything that belongs to it."""

from __future__ import annotations

from datetime import datetime

from steadfast_operator.api.crossfield import cross_field_problems
from steadfast_operator.api.resolve import config_digest
from steadfast_operator.core.observation import Limits, Observation
from steadfast_operator.shell.ports import Clock, Cluster


async def observe(cluster: Cluster, clock: Clock, *, limits: Limits, watched_since: datetime) -> Observation | None:
    """What there is now; None when the job is gone.

    Raises:
        ClusterError: something could not be read; half a look is no look.
    """
    # Workers before the job: none of them can belong to an attempt that the job does not know yet.
    workers = await cluster.list_workers()
    job = await cluster.fetch_job()
    if job is None:
        return None
    number = job.status.attempt
    record = await cluster.fetch_record(number) if number else None
    problems = tuple(str(problem) for problem in cross_field_problems(job))
    return Observation(
        # Read last: nothing that was seen is later than now.
        now=clock.now(),
        job=job,
        workers=tuple(sorted(workers, key=lambda w: (w.attempt, w.serial))),
        record=record,
        problems=problems,
        config_digest="" if problems else config_digest(job),
        limits=limits,
        watched_since=watched_since,
    )

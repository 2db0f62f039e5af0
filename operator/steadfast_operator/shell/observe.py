"""The only reader: one look at a job and everything that belongs to it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from steadfast_operator.api.acceptance import profile_problems
from steadfast_operator.api.crossfield import cross_field_problems
from steadfast_operator.api.resolve import config_digest
from steadfast_operator.core.observation import Limits, Observation
from steadfast_operator.core.status import is_finished
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
    seen = Observation(
        now=clock.now(),
        job=job,
        workers=tuple(sorted(workers, key=lambda w: (w.attempt, w.serial))),
        record=record,
        problems=tuple(str(problem) for problem in cross_field_problems(job)),
        limits=limits,
        watched_since=watched_since,
    )
    if _may_create(seen):
        seen = await _with_profile(cluster, seen)
    # Read last: nothing that was seen is later than now.
    return replace(seen, now=clock.now())


def _may_create(seen: Observation) -> bool:
    """Whether workers could be created after this look. Only they have a profile: a whole gang is left alone by it."""
    if is_finished(seen.status) or seen.job.metadata.deletion_timestamp is not None:
        return False
    return not seen.attempt_runs or (seen.record is not None and len(seen.members) < len(seen.record.serials))


async def _with_profile(cluster: Cluster, seen: Observation) -> Observation:
    """The look with what the job's profile has to say."""
    profile = await cluster.fetch_profile(seen.job.spec.profile)
    problems = seen.problems + tuple(str(problem) for problem in profile_problems(seen.job, profile))
    digest = config_digest(seen.job, profile) if profile and not problems else ""
    return replace(seen, problems=problems, config_digest=digest)

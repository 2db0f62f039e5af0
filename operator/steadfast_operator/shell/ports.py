"""What the loop needs from the world. `local.py` and `kube.py` are real; `tests/fakes/cluster.py` is in memory.

Adapters translate their own exceptions into `ClusterError`; the loop retries those.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Protocol

from steadfast_operator.api.profile import ClusterTrainingProfile
from steadfast_operator.api.types import TrainingJob, TrainingJobStatus
from steadfast_operator.core.actions import CreateWorker, EmitEvent
from steadfast_operator.core.observation import AttemptRecord, Worker


class ClusterError(Exception):
    """The cluster did not answer, or refused: nothing is known about the effect. Look again and retry."""


class ConflictError(ClusterError):
    """The job is no longer what it was when it was observed."""


class Cluster(Protocol):
    """One job and everything that belongs to it."""

    async def fetch_job(self) -> TrainingJob | None:
        """The job; None when it is gone. Never older than our own last write."""

    async def list_workers(self) -> tuple[Worker, ...]:
        """Every worker of the job, of whatever attempt, with what its agent last said."""

    async def fetch_profile(self, name: str) -> ClusterTrainingProfile | None:
        """What jobs that name this profile may ask for; None when there is none of that name.

        Workers are created with the one that was fetched last: what was accepted is what they get.
        """

    async def fetch_record(self, number: int) -> AttemptRecord | None:
        """The record of one attempt."""

    async def create_record(self, record: AttemptRecord) -> bool:
        """Write an attempt down. False: there is a record of that number already, and it stays as it is."""

    async def isolate_workers(self, job: TrainingJob) -> None:
        """Keep strangers away from the workers to come, as far as this cluster can. It may have been done before."""

    async def create_worker(self, job: TrainingJob, action: CreateWorker) -> bool:
        """Create a worker. False: there is one of that name already."""

    async def delete_workers(self, names: tuple[str, ...], grace_seconds: int) -> None:
        """Ask workers to end, and return without waiting for it. Names that do not exist are no error."""

    async def write_status(self, job: TrainingJob, status: TrainingJobStatus) -> None:
        """Replace the status of the job as it was observed.

        Raises:
            ConflictError: the job has changed since; without this, two operators could count a failure twice.
        """

    async def emit_event(self, job: TrainingJob, event: EmitEvent) -> None:
        """Tell people."""


class Clock(Protocol):
    """Time, and waiting for it."""

    def now(self) -> datetime:
        """Aware, UTC."""

    async def wait(self, wake: asyncio.Event, seconds: float | None) -> None:
        """Return when the event is set or the time is over; None waits for the event alone."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Aware, UTC."""
        return datetime.now(UTC)

    async def wait(self, wake: asyncio.Event, seconds: float | None) -> None:
        """Return when the event is set or the time is over; None waits for the event alone."""
        try:
            async with asyncio.timeout(seconds):
                await wake.wait()
        except TimeoutError:
            pass

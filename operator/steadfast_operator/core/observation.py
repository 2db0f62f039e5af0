"""Everything that `decide` may know, frozen: the job, its workers, the attempt record, the limits and the time.

Only the shell's `observe` builds an Observation in production; tests and the simulator build them by hand.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from steadfast_contract.exits import FailureClass
from steadfast_contract.heartbeat import Phase, Pulse
from steadfast_operator.api.types import AttemptStatus, TrainingJob, TrainingJobStatus


class WorkerPhase(StrEnum):
    """Where a worker stands; the names are Kubernetes' own."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True, kw_only=True)
class WorkerEnd:
    """How a worker ended."""

    code: int
    failure_class: FailureClass | None
    """None when it simply finished."""
    message: str
    rank: int | None
    at: datetime


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One worker as its cluster and its agent describe it."""

    name: str
    serial: int
    attempt: int
    phase: WorkerPhase
    created_at: datetime
    placed_at: datetime | None = None
    """When a node was found for it; None while it waits for one."""
    waiting: str = ""
    """What it waits for before its processes begin, in its cluster's words."""
    started_at: datetime | None = None
    """When its processes began; None: not yet, or as it was created."""
    terminating_since: datetime | None = None
    """When it was asked to end, by whomever."""
    grace_seconds: int = 0
    """What it was given for its end, once that was asked for."""
    taken: FailureClass | None = None
    """Why its cluster takes it away, if it says so; `taken_because` in its words."""
    taken_because: str = ""
    ready: bool = False
    """Its agent has answered. The adapter remembers: one lost answer takes nothing back. Of a terminating worker it
    says whether it still answers."""
    master: str = ""
    """`host:port` of the rendezvous, reported by node rank 0's agent; empty for the others."""
    end: WorkerEnd | None = None
    progress: Pulse | None = None
    """The newest known; kept by the adapter when the agent falls silent or ends."""

    @property
    def ended(self) -> bool:
        """Its processes are gone for certain."""
        return self.phase in (WorkerPhase.SUCCEEDED, WorkerPhase.FAILED)

    @property
    def trains(self) -> bool:
        """It has got as far as its first step, or is past it."""
        return self.progress is not None and self.progress.phase >= Phase.TRAINING


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """What an attempt was begun with: written once, before anything acts on it."""

    number: int
    serials: tuple[int, ...]
    """The roster; the position is the node rank."""
    reason: str
    config_digest: str
    created_at: datetime

    def to_json(self) -> str:
        """As adapters keep it."""
        return json.dumps(asdict(self), default=datetime.isoformat)

    @classmethod
    def from_json(cls, text: str) -> AttemptRecord:
        """Decode what `to_json` wrote."""
        data = json.loads(text)
        created_at = datetime.fromisoformat(data["created_at"])
        return cls(**(data | {"serials": tuple(data["serials"]), "created_at": created_at}))


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The operator's own patience; what belongs to one job is in its `spec.faultTolerance`."""

    restarts_per_hour: int = 120
    """Storm breaker: restarts for infrastructure within an hour; at most 256."""
    attempts_without_progress: int = 10
    """Failures in a row, without a newer checkpoint or a new step between them, that stop the job."""
    backoff_base_seconds: float = 1
    backoff_max_seconds: float = 60
    terminating_wait_seconds: float = 10
    """A silent worker that has been terminating for longer is stuck; nothing waits for it."""
    stop_grace_seconds: int = 60
    """For saving before a stop."""
    victim_wait_seconds: float = 1
    """From a collective's failure in one worker to a verdict without a better cause."""
    finish_wait_seconds: float = 60
    """From the first worker that is done to the last."""
    poll_seconds: float = 0.5
    """Longest time between two observations while workers start or stop."""
    refusal_seconds: float = 15
    """Longest time between two observations of a refused job: an edit of its profile wakes nobody."""
    progress_seconds: float = 5
    """Longest time between two observations of a training gang, and shortest between two writes of its progress."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One look at a job and at everything that belongs to it."""

    now: datetime
    job: TrainingJob
    workers: tuple[Worker, ...] = ()
    record: AttemptRecord | None = None
    """Record of `status.attempt`."""
    problems: tuple[str, ...] = ()
    """Why the spec cannot run; empty when it can."""
    config_digest: str = ""
    """Of the spec as it is now."""
    limits: Limits = field(default_factory=Limits)
    watched_since: datetime | None = None
    """When this operator began to listen to the job: nobody is late for an answer that was not listened for."""

    @property
    def status(self) -> TrainingJobStatus:
        """What was known before this look."""
        return self.job.status

    @property
    def attempt(self) -> AttemptStatus | None:
        """The current attempt; None before the first."""
        return next((a for a in self.status.attempts if a.number == self.status.attempt), None)

    @property
    def attempt_runs(self) -> bool:
        """An attempt was begun and nothing has ended it."""
        return self.attempt is not None and self.attempt.ended is None

    @property
    def members(self) -> dict[int, Worker]:
        """Workers of the current roster that exist, by node rank, in order."""
        if self.record is None:
            return {}
        found = {w.serial: w for w in self.workers if w.attempt == self.status.attempt}
        return {rank: found[serial] for rank, serial in enumerate(self.record.serials) if serial in found}

    @property
    def pulse(self) -> Pulse | None:
        """Progress of the current attempt: node rank 0's."""
        first = self.members.get(0)
        return first.progress if first else None


def is_stuck(worker: Worker, seen: Observation) -> bool:
    """Whether a terminating worker has used up its time: it blocks nothing any more.

    One whose agent answers may still be saving; a dead node's agent never answers.
    """
    if worker.terminating_since is None:
        return False
    patience = seen.limits.terminating_wait_seconds + (worker.grace_seconds if worker.ready else 0)
    return seen.now - worker.terminating_since >= timedelta(seconds=patience)


def blocks(worker: Worker, seen: Observation) -> bool:
    """Whether a new gang has to wait for this worker's end."""
    return not worker.ended and not is_stuck(worker, seen)


def instant(unix_seconds: float, *, now: datetime) -> datetime:
    """A worker's time as a datetime. Worker clocks are not ours, and not always sane: never later than now."""
    if not math.isfinite(unix_seconds) or unix_seconds <= 0:
        return datetime.fromtimestamp(0, UTC)
    return datetime.fromtimestamp(min(unix_seconds, now.timestamp()), UTC)

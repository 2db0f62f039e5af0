"""Observations for tests of the decision core: a test names only what matters to it.

a_look()                                   a job that nobody has looked at yet
a_look(workers=..., **{"spec.suspend": True})
a_gang(size=2)                             attempt 1 of two workers that train, as the operator knows it
altered(a_gang(), 1, phase=...)            the same with node rank 1 changed
told(seen)                                 the decision as a dict: reason, message, actions, wake, changes of the status
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from builders import a_job
from steadfast_contract.exits import ExitCode, FailureClass
from steadfast_contract.heartbeat import Phase, Pulse
from steadfast_operator.api.labels import worker_name
from steadfast_operator.api.types import TrainingJobStatus
from steadfast_operator.core import attempts
from steadfast_operator.core.actions import DeleteWorkers, EmitEvent, EventType
from steadfast_operator.core.decide import decide
from steadfast_operator.core.observation import (
    AttemptRecord,
    Observation,
    Worker,
    WorkerEnd,
    WorkerPhase,
)

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
DIGEST = "sha256:" + "d" * 64
MASTER = "10.0.0.1:29500"
BOTH = ("moe-7e1f5-0", "moe-7e1f5-1")
"""Names of the workers of a gang of two."""


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


A_SECOND_AGO = ago(1)


def a_look(**overrides: Any) -> Observation:
    """A look at a job; dotted names change the job, others the observation."""
    job = a_job(**{key: overrides.pop(key) for key in list(overrides) if "." in key})
    status = overrides.pop("status", None)
    if status is not None:
        job = job.model_copy(update={"status": status})
    return Observation(**{"now": NOW, "job": job, "config_digest": DIGEST} | overrides)


def a_worker(serial: int, **overrides: Any) -> Worker:
    meta = a_job().metadata
    name = worker_name(job=meta.name, uid=meta.uid, serial=serial)
    defaults: dict[str, Any] = {"attempt": 1, "phase": WorkerPhase.PENDING, "created_at": ago(100)}
    return Worker(name=name, serial=serial, **defaults | overrides)


def a_pulse(**overrides: Any) -> Pulse:
    defaults: dict[str, Any] = {
        "phase": Phase.TRAINING,
        "step": 4,
        "steps": 10,
        "tokens": 1024,
        "loss": 2.5,
        "tokens_per_second": 256.0,
        "resumed_from": 0,
        "updated_at": ago(1).timestamp(),
    }
    return Pulse(**defaults | overrides)


def a_member(node_rank: int, **overrides: Any) -> Worker:
    """A worker of attempt 1 that trains; its serial is its node rank."""
    training = {"phase": WorkerPhase.RUNNING, "ready": True, "progress": a_pulse()}
    return a_worker(node_rank, **training | {"master": "" if node_rank else MASTER} | overrides)


def an_end(failure_class: FailureClass | None, *, at: datetime = A_SECOND_AGO, **overrides: Any) -> WorkerEnd:
    code = ExitCode.USER_ERROR if failure_class else ExitCode.DONE
    return WorkerEnd(
        **{"code": code, "failure_class": failure_class, "message": "boom", "rank": 3, "at": at} | overrides
    )


def failed(seen: Observation, node_rank: int, failure_class: FailureClass, **overrides: Any) -> Observation:
    end = an_end(failure_class, **overrides)
    return altered(seen, node_rank, phase=WorkerPhase.FAILED, end=end)


def a_record(size: int = 2, **overrides: Any) -> AttemptRecord:
    defaults: dict[str, Any] = {
        "number": 1,
        "serials": tuple(range(size)),
        "reason": "FirstStart",
        "config_digest": DIGEST,
        "created_at": ago(100),
    }
    return AttemptRecord(**defaults | overrides)


def a_start(size: int = 2, **overrides: Any) -> Observation:
    """Attempt 1 was begun and no worker exists."""
    record = a_record(size)
    status = attempts.moved_to(TrainingJobStatus(), record)
    return settled(a_look(**{"status": status, "record": record, "spec.workers": size} | overrides))


def a_gang(size: int = 2, **overrides: Any) -> Observation:
    """Attempt 1 trains, and the status says so."""
    members = tuple(a_member(node_rank) for node_rank in range(size))
    return settled(a_start(size, **{"workers": members} | overrides))


def settled(seen: Observation) -> Observation:
    """The same look with the status that the operator gave it."""
    return with_status(seen, decide(seen).status)


def with_status(seen: Observation, status: TrainingJobStatus | None = None, **update: Any) -> Observation:
    new = (status or seen.status).model_copy(update=update)
    return replace(seen, job=seen.job.model_copy(update={"status": new}))


def with_spec(seen: Observation, **update: Any) -> Observation:
    return replace(seen, job=seen.job.model_copy(update={"spec": seen.job.spec.model_copy(update=update)}))


def ended(seen: Observation, outcome: str, **status: Any) -> Observation:
    """The same job after its attempt was ended, without workers."""
    entry = seen.status.attempts[-1].model_copy(update={"ended": ago(5), "outcome": outcome})
    return replace(with_status(seen, attempts=[entry], **status), workers=())


def delete(names: tuple[str, ...], reason: str, grace: int = 0) -> DeleteWorkers:
    return DeleteWorkers(names=names, grace_seconds=grace, reason=reason)  # type: ignore[arg-type]


def event(reason: str, message: str, kind: EventType = EventType.NORMAL) -> EmitEvent:
    return EmitEvent(type=kind, reason=reason, message=message)  # type: ignore[arg-type]


def altered(seen: Observation, node_rank: int, **changes: Any) -> Observation:
    return replace(seen, workers=tuple(replace(w, **changes) if w.serial == node_rank else w for w in seen.workers))


def after(seen: Observation, seconds: float) -> Observation:
    return replace(seen, now=seen.now + timedelta(seconds=seconds))


def told(seen: Observation) -> dict[str, Any]:
    """The whole decision, the status as its differences."""
    decision = decide(seen)
    return {
        "reason": decision.reason,
        "message": decision.message,
        "actions": decision.actions,
        "wake": decision.wake_after_seconds,
        "changes": changes(seen.status, decision.status),
    }


def changes(before: TrainingJobStatus, after_: TrainingJobStatus) -> dict[str, Any]:
    """Fields that differ. Conditions as {type: (status, reason)}, the current attempt's entry as its own changes."""
    found = {f: getattr(after_, f) for f in TrainingJobStatus.model_fields if getattr(before, f) != getattr(after_, f)}
    if "conditions" in found:
        found["conditions"] = {
            c.type: (str(c.status), c.reason) for c in after_.conditions if c not in before.conditions
        }
    if "attempts" in found and len(before.attempts) == len(after_.attempts):
        old, new = before.attempts[-1].model_dump(), after_.attempts[-1].model_dump()
        found["attempts"] = {key: value for key, value in new.items() if old[key] != value}
    return found

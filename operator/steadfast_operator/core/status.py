"""The job's status: what was seen (progress, checkpoint, readiness) and where the job stands (conditions).

Nothing per rank or per step goes in here, and nothing that changes without a fact behind it: an unchanged status
is not written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

from steadfast_contract.heartbeat import Pulse
from steadfast_operator.api.reasons import ConditionType, Reason
from steadfast_operator.api.types import (
    CheckpointStatus,
    Condition,
    ConditionStatus,
    LastFailure,
    ProgressStatus,
    TrainingJobStatus,
)
from steadfast_operator.core import attempts
from steadfast_operator.core.failures import Failure
from steadfast_operator.core.observation import Observation, instant

STANDINGS = (
    ConditionType.RUNNING,
    ConditionType.RESTARTING,
    ConditionType.SUSPENDED,
    ConditionType.SUCCEEDED,
    ConditionType.FAILED,
)
"""At most one of these holds at a time."""
FARTHEST_ETA_SECONDS = 100 * 365 * 86_400


@dataclass(frozen=True)
class Standing:
    """Where a job stands: which of `STANDINGS` holds (None: none of them), and why."""

    kind: ConditionType | None
    reason: Reason
    message: str


def holds(status: TrainingJobStatus, kind: ConditionType) -> bool:
    """Whether a condition is True."""
    return any(c.type == kind and c.status == ConditionStatus.TRUE for c in status.conditions)


def is_finished(status: TrainingJobStatus) -> bool:
    """Whether the job has come to its end, good or bad."""
    return holds(status, ConditionType.SUCCEEDED) or holds(status, ConditionType.FAILED)


def observed(seen: Observation) -> TrainingJobStatus:
    """The status with everything that this look says; where the job stands is `standing`'s business."""
    status = seen.status.model_copy(update={"observed_generation": seen.job.metadata.generation})
    status = _with_condition(seen, status, _acceptance(seen))
    status = attempts.observed(seen, status)
    status = status.model_copy(update={"workers_ready": _workers_ready(seen)})
    return _with_progress(seen, status, seen.pulse) if seen.pulse else status


def standing(seen: Observation, status: TrainingJobStatus, at: Standing) -> TrainingJobStatus:
    """The status with the one condition True and the other standings not."""
    for kind in STANDINGS:
        if kind == at.kind or holds(status, kind):
            new = _condition(seen, kind, kind == at.kind, reason=at.reason, message=at.message)
            status = _with_condition(seen, status, new)
    return status.model_copy(update={"state": str(at.kind or _STATES.get(at.reason, "Starting"))})


def with_failure(status: TrainingJobStatus, failure: Failure, *, remedy: str) -> TrainingJobStatus:
    """The status with this as the newest failure."""
    last = LastFailure(
        class_=failure.failure_class,
        worker=failure.worker[:63],
        rank=failure.rank,
        evidence=shortened(failure.evidence, 1024),
        at=failure.at,
        remedy=shortened(remedy, 253),
    )
    return status.model_copy(update={"last_failure": last})


def shortened(text: str, length: int) -> str:
    """At most so many characters; a long text loses its middle, because tracebacks say most at both ends."""
    if len(text) <= length:
        return text
    kept = length - 5
    return f"{text[: kept // 2]} ... {text[-(kept - kept // 2) :]}"


_STATES = {Reason.INVALID_SPEC: "Invalid", Reason.SUSPENDING: "Suspending"}


def _acceptance(seen: Observation) -> Condition:
    if seen.problems:
        message = " ".join(seen.problems)
        return _condition(seen, ConditionType.ACCEPTED, False, reason=Reason.INVALID_SPEC, message=message)
    message = "The spec can run."
    return _condition(seen, ConditionType.ACCEPTED, True, reason=Reason.ACCEPTED, message=message)


def _condition(seen: Observation, kind: ConditionType, true: bool, *, reason: Reason, message: str) -> Condition:
    return Condition(
        type=kind,
        status=ConditionStatus.TRUE if true else ConditionStatus.FALSE,
        reason=reason,
        message=shortened(message, 1024),
        last_transition_time=seen.now,
        observed_generation=seen.job.metadata.generation,
    )


def _with_condition(seen: Observation, status: TrainingJobStatus, new: Condition) -> TrainingJobStatus:
    """The status with this condition in its place; its transition time moves only when its status does."""
    old = next((c for c in status.conditions if c.type == new.type), None)
    if old is not None and old.status == new.status:
        new = new.model_copy(update={"last_transition_time": old.last_transition_time})
    others = [c for c in status.conditions if c.type != new.type]
    order = {str(kind): i for i, kind in enumerate(ConditionType)}
    conditions = sorted([*others, new], key=lambda c: order.get(c.type, len(order)))
    return status.model_copy(update={"conditions": conditions})


def _workers_ready(seen: Observation) -> str:
    ready = sum(w.ready and not w.ended and not w.terminating_since for w in seen.members.values())
    desired = len(seen.record.serials) if seen.record and seen.attempt_runs else seen.job.spec.workers
    return f"{ready}/{desired}"


def _with_progress(seen: Observation, status: TrainingJobStatus, pulse: Pulse) -> TrainingJobStatus:
    """Progress is refreshed at its own pace; at once when a checkpoint was committed or somebody ends."""
    if pulse.step < 0 and status.progress is not None:
        return status  # a new attempt that has not yet read where it goes on
    committed = status.checkpoint.step if status.checkpoint else -1
    newer = pulse.committed > committed
    if not newer and not _is_due(seen, status):
        return status
    restarts = status.restarts
    if newer or pulse.step > restarts.best_step:
        best_step = max(pulse.step, restarts.best_step)
        restarts = restarts.model_copy(update={"best_step": best_step, "without_progress": 0})
    update: dict[str, object] = {"progress": _progress(seen, pulse), "restarts": restarts}
    if newer:
        uri = f"{seen.job.run_uri}/step-{pulse.committed:012d}"
        update["checkpoint"] = CheckpointStatus(step=pulse.committed, uri=uri[:2048], at=seen.now)
    return status.model_copy(update=update)


def _is_due(seen: Observation, status: TrainingJobStatus) -> bool:
    updated = status.progress.updated if status.progress else None
    if updated is None or any(w.ended or w.terminating_since for w in seen.members.values()):
        return True
    return seen.now - updated >= timedelta(seconds=seen.limits.progress_seconds)


def _progress(seen: Observation, pulse: Pulse) -> ProgressStatus:
    step = max(pulse.step, 0)
    updated = instant(pulse.updated_at, now=seen.now)
    return ProgressStatus(
        step=step,
        steps=pulse.steps,
        tokens=pulse.tokens,
        # Before its first step an attempt has none of its own.
        loss=_finite(pulse.loss) if pulse.step > pulse.resumed_from else None,
        tokens_per_second=_finite(pulse.tokens_per_second) if pulse.step > pulse.resumed_from else None,
        percent=round(100 * min(step / pulse.steps, 1), 2) if pulse.steps > 0 else 0.0,
        eta=_eta(pulse, updated),
        updated=updated,
    )


def _eta(pulse: Pulse, updated: datetime) -> datetime | None:
    """When the last step will be done at the present rate; None while that cannot be known."""
    speed = _finite(pulse.tokens_per_second)
    if not speed or speed <= 0 or pulse.step <= 0 or pulse.tokens <= 0:
        return None
    remaining = max(pulse.steps - pulse.step, 0) * pulse.tokens / pulse.step / speed
    if remaining > FARTHEST_ETA_SECONDS:
        return None
    return updated + timedelta(seconds=round(remaining))


def _finite(number: float) -> float | None:
    """JSON has no infinities, and a NaN would differ from itself at every look."""
    return number if math.isfinite(number) else None

"""Whether a failure is worth another attempt, and when. Counters live in `status.restarts`, so they survive us."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from steadfast_contract.exits import FailureClass
from steadfast_operator.api.reasons import Reason
from steadfast_operator.api.types import Restarts, TrainingJobSpec, TrainingJobStatus
from steadfast_operator.core.failures import Failure
from steadfast_operator.core.observation import Limits

NOT_RETRYABLE = {FailureClass.CONFIG_INVALID, FailureClass.DATA_ERROR, FailureClass.CHECKPOINT_UNREADABLE}
"""The next attempt would meet the same."""
USER_ERRORS = {FailureClass.USER_ERROR, FailureClass.NON_FINITE_LOSS}
"""Spend `maxRestarts`."""
NOT_FAILURES = {FailureClass.PREEMPTED, FailureClass.EVICTED}
"""Spend nothing: somebody needed the machine."""
STORM_WINDOW = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class Restart:
    """Begin another attempt, not before the delay is over."""

    delay_seconds: float
    counts: bool
    """Whether it is a failure: counted against progress and budgets."""


@dataclass(frozen=True, kw_only=True)
class GiveUp:
    """Stop the job."""

    reason: Reason
    message: str


def verdict(
    failure: Failure, status: TrainingJobStatus, *, spec: TrainingJobSpec, limits: Limits, now: datetime
) -> Restart | GiveUp:
    """What to do about a failure. `status` already holds the progress that the failed attempt made."""
    kind = failure.failure_class
    if kind in NOT_RETRYABLE:
        return GiveUp(reason=Reason.NOT_RETRYABLE, message=f"{kind}: {failure.evidence}")
    if kind in NOT_FAILURES:
        return Restart(delay_seconds=limits.backoff_base_seconds, counts=False)
    if kind in USER_ERRORS and user_restarts(status.restarts) >= spec.fault_tolerance.max_restarts:
        spent = f"All {spec.fault_tolerance.max_restarts} restarts for user errors are spent."
        return GiveUp(reason=Reason.RESTART_BUDGET_SPENT, message=f"{spent} {kind}: {failure.evidence}")
    if kind not in USER_ERRORS and len(recent(status.restarts, now)) >= limits.restarts_per_hour:
        storm = f"{limits.restarts_per_hour} restarts within an hour."
        return GiveUp(reason=Reason.RESTART_STORM, message=f"{storm} {kind}: {failure.evidence}")
    failures = status.restarts.without_progress + 1
    if failures >= limits.attempts_without_progress:
        stalled = f"{failures} failures in a row without progress."
        return GiveUp(reason=Reason.NO_PROGRESS, message=f"{stalled} {kind}: {failure.evidence}")
    return Restart(delay_seconds=_backoff(failures, limits), counts=True)


def count(restarts: Restarts, failure: Failure, *, restart: Restart, now: datetime) -> Restarts:
    """The counters after a restart was granted."""
    kind = failure.failure_class
    breaker = [now] if restart.counts and kind not in USER_ERRORS else []
    return restarts.model_copy(
        update={
            "total": restarts.total + 1,
            "by_class": restarts.by_class | {str(kind): restarts.by_class.get(kind, 0) + 1},
            "recent": (recent(restarts, now) + breaker)[-256:],
            "without_progress": restarts.without_progress + restart.counts,
        }
    )


def user_restarts(restarts: Restarts) -> int:
    """Restarts that were spent from `maxRestarts`."""
    return sum(restarts.by_class.get(kind, 0) for kind in USER_ERRORS)


def recent(restarts: Restarts, now: datetime) -> list[datetime]:
    """Times of the restarts that the storm breaker still counts."""
    return [at for at in restarts.recent if now - at < STORM_WINDOW]


def _backoff(failures: int, limits: Limits) -> float:
    """0, base, 2 base, 4 base ... up to the maximum."""
    if failures <= 1:
        return 0
    # The exponent is bounded because 2.0**1024 overflows.
    return min(limits.backoff_max_seconds, limits.backoff_base_seconds * 2.0 ** min(failures - 2, 64))

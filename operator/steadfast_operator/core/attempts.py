"""Attempts: the next record, the serials of its workers, and the history in the status.

An attempt is written down (the record), then persisted as `status.attempt`, and only then acted on.
"""

from __future__ import annotations

from itertools import count, takewhile

from steadfast_operator.api.reasons import Reason
from steadfast_operator.api.types import AttemptStatus, TrainingJobStatus
from steadfast_operator.core.observation import AttemptRecord, Observation

HISTORY = 10
"""Attempts that are kept in the status, and records that are kept beside it."""

RESTARTS = (Reason.WORKER_FAILED, Reason.PREEMPTED, Reason.CONFIGURATION_CHANGED)
"""Reasons to end one attempt and to begin the next."""


def next_record(seen: Observation, status: TrainingJobStatus) -> AttemptRecord:
    """The record of the next attempt, with serials that no worker has had before.

    Number and serials follow from the persisted status alone: whoever writes record n + 1 down from the status of
    attempt n chooses the same roster, so a record that is found can be adopted.
    """
    return AttemptRecord(
        number=status.attempt + 1,
        serials=tuple(range(status.next_serial, status.next_serial + seen.job.spec.workers)),
        reason=reason_to_begin(seen),
        config_digest=seen.config_digest,
        created_at=seen.now,
    )


def reason_to_begin(seen: Observation) -> Reason:
    """Why the next attempt begins: what ended the one before."""
    if seen.status.attempt == 0 or seen.attempt is None:
        return Reason.FIRST_START
    if seen.attempt.outcome == Reason.SUSPENDED:
        return Reason.RESUMED
    return next((reason for reason in RESTARTS if reason == seen.attempt.outcome), Reason.WORKER_FAILED)


def moved_to(status: TrainingJobStatus, record: AttemptRecord) -> TrainingJobStatus:
    """The status once this record's attempt is the current one.

    The writer calls this too, with the record that it found where it wanted to create one: an operator that died
    between record and status, or a second operator, has begun this attempt already, and its roster stands.
    """
    entry = AttemptStatus(number=record.number, reason=record.reason, started=record.created_at)
    earlier = [a for a in status.attempts if a.number < record.number]
    return status.model_copy(
        update={
            "attempt": record.number,
            "next_serial": max(status.next_serial, *(serial + 1 for serial in record.serials)),
            "config_digest": record.config_digest,
            "started": status.started or record.created_at,
            "restart_at": None,
            "attempts": [*earlier, entry][-HISTORY:],
        }
    )


def ended(seen: Observation, status: TrainingJobStatus, *, outcome: Reason) -> TrainingJobStatus:
    """The status after the current attempt was ended; an attempt that was over keeps its time."""
    current = next((a for a in status.attempts if a.number == status.attempt), None)
    end = (current and current.ended) or seen.now
    return with_attempt(status, ended=end, outcome=str(outcome))


def observed(seen: Observation, status: TrainingJobStatus) -> TrainingJobStatus:
    """The status with what this look says about the running attempt."""
    if not seen.attempt_runs or seen.attempt is None:
        return status
    members, pulse = seen.members, seen.pulse
    created = len(list(takewhile(lambda node_rank: node_rank in members, count())))
    resumed_from = pulse.resumed_from if pulse and pulse.resumed_from >= 0 else seen.attempt.resumed_from
    return with_attempt(status, workers_created=max(created, seen.attempt.workers_created), resumed_from=resumed_from)


def with_attempt(status: TrainingJobStatus, **update: object) -> TrainingJobStatus:
    """The status with the current attempt's entry changed."""
    entries = [a.model_copy(update=update) if a.number == status.attempt else a for a in status.attempts]
    return status.model_copy(update={"attempts": entries})

"""What to do next about one job: the page to read first.

`decide` looks at one frozen Observation and answers with one step. It is level-triggered: it remembers nothing, so
an operator that was killed at any point just looks again. Three rules make that safe:

- One phase per decision: old things are stopped, and only a later look that finds them gone starts new ones.
- An attempt is ended, and a new one begun, by persisting it in the status. Only later looks act on it, so a failure
  is counted once, whatever dies in between.
- Every decision says why, and when to look again.

An attempt is one run of the whole gang. It runs from the decision that begins it to the one that ends it
(`status.attempts[].ended`); its workers are named in its record.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from steadfast_operator.api.reasons import ConditionType, Reason
from steadfast_operator.api.types import TrainingJobStatus
from steadfast_operator.core import attempts, restarts
from steadfast_operator.core import status as statuses
from steadfast_operator.core.actions import (
    Action,
    CreateRecord,
    CreateWorker,
    Decision,
    DeleteWorkers,
    EmitEvent,
    EventType,
)
from steadfast_operator.core.failures import Failure, first_failure
from steadfast_operator.core.observation import Observation, Worker, WorkerPhase, blocks
from steadfast_operator.core.status import Standing


def decide(seen: Observation) -> Decision:
    """The next step for this job. Branches are in the order of their precedence."""
    if seen.job.metadata.deletion_timestamp is not None:
        return _tidy_up(seen, Reason.DELETING, grace_seconds=seen.limits.stop_grace_seconds)
    if statuses.is_finished(seen.status):
        return _tidy_up(seen, _reason_of_end(seen), grace_seconds=0)
    if _all_succeeded(seen):
        return _finish(seen, ConditionType.SUCCEEDED, Reason.COMPLETED, "All workers finished.")
    if (deadline := _deadline(seen)) and seen.now >= deadline:
        message = f"The job ran longer than {seen.job.spec.active_deadline_seconds} s."
        return _finish(seen, ConditionType.FAILED, Reason.DEADLINE_EXCEEDED, message)
    if seen.problems and not seen.attempt_runs:
        return _refuse(seen)
    if seen.job.spec.suspend:
        return _suspend(seen)
    if outsiders := tuple(w for w in seen.workers if not _belongs(w, seen)):
        if _unstopped(outsiders):
            return _stop(seen, outsiders)
        if any(blocks(w, seen) for w in outsiders):
            return _under_way(seen, Reason.STOPPING_WORKERS, "Workers of an earlier attempt are ending.")
    if not seen.attempt_runs:
        return _begin_attempt(seen)
    if failure := first_failure(seen):
        return _on_failure(seen, failure)
    if missing := _missing(seen):
        return _create(seen, missing)
    return _watch(seen)


def _tidy_up(seen: Observation, reason: Reason, *, grace_seconds: int) -> Decision:
    """Nothing is started any more. Ended workers of the last attempt stay for their logs, as a finished pod does."""
    left = tuple(w for w in seen.workers if not (w.ended and w.attempt == seen.status.attempt))
    waiting = any(blocks(w, seen) for w in left)
    return Decision(
        actions=_deletion(_unstopped(left), grace_seconds, reason),
        status=seen.status,
        reason=reason,
        message="Its last workers are ending." if waiting else "Nothing is left to do.",
        wake_after_seconds=seen.limits.poll_seconds if waiting else None,
    )


def _finish(seen: Observation, end: ConditionType, reason: Reason, message: str) -> Decision:
    """The job has come to its end; whatever still runs may save."""
    status = statuses.observed(seen)
    if seen.attempt_runs:
        status = attempts.ended(seen, status, outcome=reason)
    return _finished(seen, Standing(end, reason, message), status=status, grace_seconds=seen.limits.stop_grace_seconds)


def _finished(seen: Observation, at: Standing, *, status: TrainingJobStatus, grace_seconds: int) -> Decision:
    status = status.model_copy(update={"finished": seen.now, "restart_at": None})
    kind = EventType.NORMAL if at.kind == ConditionType.SUCCEEDED else EventType.WARNING
    running = _unstopped(tuple(w for w in seen.workers if not w.ended))
    event = EmitEvent(type=kind, reason=at.reason, message=at.message)
    return _decision(seen, at, status=status, actions=(*_deletion(running, grace_seconds, at.reason), event))


def _refuse(seen: Observation) -> Decision:
    """The spec cannot run: no worker until it is changed. A gang that runs already is not touched by an edit."""
    at = Standing(None, Reason.INVALID_SPEC, " ".join(seen.problems))
    status = statuses.observed(seen)
    actions = _deletion(_unstopped(seen.workers), 0, at.reason)
    if _acceptance(status) != _acceptance(seen.status):
        actions = (*actions, EmitEvent(type=EventType.WARNING, reason=at.reason, message=at.message))
    return _decision(seen, at, status=status, actions=actions)


def _suspend(seen: Observation) -> Decision:
    """All workers save and stop; the job rests until `spec.suspend` is taken back."""
    status = statuses.observed(seen).model_copy(update={"restart_at": None})
    if seen.attempt is not None:
        status = attempts.ended(seen, status, outcome=Reason.SUSPENDED)
    if any(w.terminating_since is None or blocks(w, seen) for w in seen.workers):
        at = Standing(None, Reason.SUSPENDING, "Workers save and stop.")
        actions = _deletion(_unstopped(seen.workers), seen.limits.stop_grace_seconds, at.reason)
        return _decision(seen, at, status=status, actions=actions)
    at = Standing(ConditionType.SUSPENDED, Reason.SUSPENDED, "No worker runs; spec.suspend is true.")
    event = EmitEvent(type=EventType.NORMAL, reason=at.reason, message=at.message)
    known = statuses.holds(seen.status, ConditionType.SUSPENDED)
    return _decision(seen, at, status=status, actions=() if known else (event,))


def _stop(seen: Observation, outsiders: tuple[Worker, ...]) -> Decision:
    """End what must not run beside the current attempt. A broken gang's ranks cannot save, a whole one's can."""
    outcome = seen.attempt.outcome if seen.attempt else ""
    grace = seen.limits.stop_grace_seconds if outcome in (Reason.SUSPENDED, Reason.PREEMPTED) else 0
    actions = _deletion(_unstopped(outsiders), grace, Reason.STOPPING_WORKERS)
    message = f"{len(_unstopped(outsiders))} workers of an earlier attempt are stopped."
    return _under_way(seen, Reason.STOPPING_WORKERS, message, actions=actions)


def _begin_attempt(seen: Observation) -> Decision:
    """Everything old is gone, or stuck beyond reach: write the next attempt down, unless it is too early."""
    status = statuses.observed(seen)
    if status.restart_at is not None and seen.now < status.restart_at:
        message = f"The next attempt begins at {status.restart_at:%Y-%m-%dT%H:%M:%SZ}."
        return _under_way(seen, Reason.BACKING_OFF, message)
    record = attempts.next_record(seen, status)
    reason = Reason(record.reason)
    message = f"Attempt {record.number} began with {len(record.serials)} workers."
    told = Reason.RESTARTED if reason in attempts.RESTARTS else reason  # the cause was told when it was found
    event = EmitEvent(type=EventType.NORMAL, reason=told, message=message)
    status = attempts.moved_to(status, record)
    return _under_way(seen, reason, message, status=status, actions=(CreateRecord(record=record), event))


def _on_failure(seen: Observation, failure: Failure) -> Decision:
    """End the attempt, count it, and leave what comes next to the next look."""
    status = statuses.observed(seen)
    answer = restarts.verdict(failure, status, spec=seen.job.spec, limits=seen.limits, now=seen.now)
    if isinstance(answer, restarts.GiveUp):
        status = attempts.ended(seen, status, outcome=answer.reason)
        status = statuses.with_failure(status, failure, remedy=f"The job was stopped: {answer.reason}.")
        at = Standing(ConditionType.FAILED, answer.reason, answer.message)
        return _finished(seen, at, status=status, grace_seconds=0)
    return _restart(seen, failure, answer=answer, status=status)


def _restart(seen: Observation, failure: Failure, *, answer: restarts.Restart, status: TrainingJobStatus) -> Decision:
    delay, taken = answer.delay_seconds, not answer.counts
    outcome = Reason.PREEMPTED if taken else Reason.WORKER_FAILED
    remedy = f"A new attempt begins {f'in {delay:g} s' if delay else 'at once'}."
    status = statuses.with_failure(attempts.ended(seen, status, outcome=outcome), failure, remedy=remedy)
    counted = restarts.count(status.restarts, failure, restart=answer, now=seen.now)
    restart_at = seen.now + timedelta(seconds=delay) if delay else None
    status = status.model_copy(update={"restarts": counted, "restart_at": restart_at})
    message = f"{failure.failure_class} of {failure.worker or 'the attempt'}: {failure.evidence}"
    event = EmitEvent(type=EventType.NORMAL if taken else EventType.WARNING, reason=outcome, message=message)
    # Only a gang that nothing broke can still save.
    deletion = _deletion(_unstopped(seen.workers), seen.limits.stop_grace_seconds if taken else 0, outcome)
    return _under_way(seen, outcome, message, status=status, actions=(*deletion, event))


def _create(seen: Observation, missing: tuple[CreateWorker, ...]) -> Decision:
    """Node rank 0 first, because it chooses the address that the others must be told."""
    if seen.problems or (seen.record and seen.record.config_digest != seen.config_digest):
        return _abandon(seen)
    num_workers = missing[0].num_workers
    if missing[0].node_rank == 0:
        message = f"The first of {num_workers} workers is created."
        return _under_way(seen, Reason.STARTING_WORKERS, message, actions=missing[:1])
    if not missing[0].master:
        message = f"Node rank 0 has not told its address yet.{_what_holds_them_up(seen)}"
        return _under_way(seen, Reason.WAITING_FOR_WORKERS, message)
    message = f"{len(missing)} of {num_workers} workers are created."
    return _under_way(seen, Reason.STARTING_WORKERS, message, actions=missing)


def _abandon(seen: Observation) -> Decision:
    """The spec or profile was edited while the gang was being created: it would be mixed of two configurations."""
    reason = Reason.CONFIGURATION_CHANGED
    status = attempts.ended(seen, statuses.observed(seen), outcome=reason)
    actions = _deletion(_unstopped(tuple(seen.members.values())), 0, reason)
    message = "The spec or its profile changed before all workers were created."
    return _under_way(seen, reason, message, status=status, actions=actions)


def _watch(seen: Observation) -> Decision:
    """The whole gang exists and nothing is wrong with it."""
    members = seen.members.values()
    if any(w.trains for w in members):
        message = f"Attempt {seen.status.attempt} trains on {len(members)} workers."
        at = Standing(ConditionType.RUNNING, Reason.TRAINING, message)
        return _decision(seen, at, status=statuses.observed(seen))
    ready = sum(w.ready for w in members)
    message = f"{ready} of {len(members)} workers have answered; none trains yet."
    return _under_way(seen, Reason.WAITING_FOR_WORKERS, message + _what_holds_them_up(seen))


def _what_holds_them_up(seen: Observation) -> str:
    """What the first worker that cannot begin yet waits for; nothing, mostly."""
    worker = next((w for w in seen.members.values() if w.waiting), None)
    return f" {worker.name} waits: {worker.waiting}" if worker else ""


def _under_way(
    seen: Observation,
    reason: Reason,
    message: str,
    *,
    status: TrainingJobStatus | None = None,
    actions: tuple[Action, ...] = (),
) -> Decision:
    """On the way to a training gang: restarting when there was one before, starting otherwise."""
    status = status or statuses.observed(seen)
    current = next((a for a in status.attempts if a.number == status.attempt), None)
    cause = (current.outcome or current.reason) if current else ""
    kind = ConditionType.RESTARTING if cause in attempts.RESTARTS else None
    return _decision(seen, Standing(kind, reason, message), status=status, actions=actions)


def _decision(
    seen: Observation, at: Standing, *, status: TrainingJobStatus, actions: tuple[Action, ...] = ()
) -> Decision:
    return Decision(
        actions=actions,
        status=statuses.standing(seen, status, at),
        reason=at.reason,
        message=at.message,
        wake_after_seconds=_next_look(seen, status, at.reason),
    )


def _next_look(seen: Observation, status: TrainingJobStatus, reason: Reason) -> float | None:
    """Seconds to the next time at which this job could need a decision though nothing happened."""
    times: list[datetime] = []
    if (deadline := _deadline(seen)) is not None:
        times.append(deadline)
    if reason == Reason.TRAINING and not any(w.ended for w in seen.members.values()):
        times.append(seen.now + timedelta(seconds=seen.limits.progress_seconds))
    elif reason == Reason.BACKING_OFF and status.restart_at is not None:
        times.append(status.restart_at)
    elif reason == Reason.INVALID_SPEC:
        times.append(seen.now + timedelta(seconds=seen.limits.refusal_seconds))
    elif reason != Reason.SUSPENDED:
        times.append(seen.now + timedelta(seconds=seen.limits.poll_seconds))
    return max((min(times) - seen.now).total_seconds(), 0.0) if times else None


def _deletion(workers: tuple[Worker, ...], grace_seconds: int, reason: Reason) -> tuple[Action, ...]:
    names = tuple(w.name for w in workers)
    return (DeleteWorkers(names=names, grace_seconds=grace_seconds, reason=reason),) if names else ()


def _unstopped(workers: tuple[Worker, ...]) -> tuple[Worker, ...]:
    """Those that nobody has asked to end."""
    return tuple(w for w in workers if w.terminating_since is None)


def _belongs(worker: Worker, seen: Observation) -> bool:
    """Whether the running attempt wants this worker; without a record nobody can say, and a check speaks up."""
    if not seen.attempt_runs or worker.attempt != seen.status.attempt:
        return False
    return seen.record is None or worker.serial in seen.record.serials


def _missing(seen: Observation) -> tuple[CreateWorker, ...]:
    """Workers of the roster that do not exist yet, in node-rank order."""
    assert seen.record is not None, "first_failure reports a missing record"
    members, serials = seen.members, seen.record.serials
    master = members[0].master if 0 in members else ""
    return tuple(
        CreateWorker(
            serial=serial,
            attempt=seen.record.number,
            node_rank=node_rank,
            num_workers=len(serials),
            master=master if node_rank else "",
        )
        for node_rank, serial in enumerate(serials)
        if node_rank not in members
    )


def _all_succeeded(seen: Observation) -> bool:
    """Every worker of the roster finished its run."""
    members = seen.members
    whole = seen.record is not None and len(members) == len(seen.record.serials)
    return whole and all(w.phase == WorkerPhase.SUCCEEDED for w in members.values())


def _deadline(seen: Observation) -> datetime | None:
    """When the job has run for too long; None: never, or it has not begun."""
    limit, started = seen.job.spec.active_deadline_seconds, seen.status.started
    return started + timedelta(seconds=limit) if limit and started else None


def _acceptance(status: TrainingJobStatus) -> str:
    """What was said about the spec."""
    return next((c.message for c in status.conditions if c.type == ConditionType.ACCEPTED), "")


def _reason_of_end(seen: Observation) -> Reason:
    """The reason that the finished job was given."""
    ends = (ConditionType.SUCCEEDED, ConditionType.FAILED)
    found = next(c.reason for c in seen.status.conditions if c.type in ends and c.status == "True")
    return Reason(found)

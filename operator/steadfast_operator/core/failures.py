"""Failure detection: an ordered tuple of small pure checks. The first that finds something wins: causes come
before their victims, facts before suspicions. `decide` asks `first_failure` about a running attempt only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from steadfast_contract.exits import ExitCode, FailureClass, describe_exit
from steadfast_contract.heartbeat import Phase
from steadfast_operator.api.labels import worker_name
from steadfast_operator.core.observation import Observation, Worker, WorkerPhase, instant


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an attempt cannot go on, as far as one look can tell."""

    failure_class: FailureClass
    worker: str
    rank: int | None
    evidence: str
    at: datetime


def first_failure(seen: Observation) -> Failure | None:
    """The most telling failure of the running attempt; None when it is well."""
    return next((failure for check in CHECKS if (failure := check(seen))), None)


def record_missing(seen: Observation) -> Failure | None:
    """Nobody knows the roster any more: the attempt's record was deleted."""
    if seen.record is not None:
        return None
    evidence = f"The record of attempt {seen.status.attempt} does not exist."
    return Failure(failure_class=FailureClass.UNKNOWN, worker="", rank=None, evidence=evidence, at=seen.now)


def worker_crashed(seen: Observation) -> Failure | None:
    """A worker ended by its own fault, the earliest first."""
    not_its_fault = {None, FailureClass.COLLECTIVE_ERROR, FailureClass.PREEMPTED}
    return _earliest(w for w in seen.members.values() if not w.terminating_since and _class(w) not in not_its_fault)


def worker_evicted(seen: Observation) -> Failure | None:
    """A worker of a running attempt is being deleted, and not by us: we end the attempt first."""
    leaving = [w for w in seen.members.values() if w.terminating_since and w.phase != WorkerPhase.SUCCEEDED]
    if not leaving:
        return None
    worker = min(leaving, key=lambda w: (w.terminating_since, w.serial))
    evidence = worker.taken_because or "The worker is being deleted by somebody else."
    return _failure(worker.taken or FailureClass.EVICTED, worker, evidence, at=seen.now)


def worker_preempted(seen: Observation) -> Failure | None:
    """A worker was asked to stop, saved and left, although the job is not suspended."""
    return _earliest(w for w in seen.members.values() if _class(w) == FailureClass.PREEMPTED)


def worker_vanished(seen: Observation) -> Failure | None:
    """A worker that was seen to exist is no longer listed."""
    if seen.attempt is None or seen.record is None:
        return None
    members = seen.members
    for node_rank, serial in enumerate(seen.record.serials[: seen.attempt.workers_created]):
        if node_rank not in members:
            name = worker_name(job=seen.job.metadata.name, uid=seen.job.metadata.uid, serial=serial)
            evidence = f"The worker of node rank {node_rank} no longer exists."
            agent_lost = FailureClass.AGENT_LOST
            return Failure(failure_class=agent_lost, worker=name, rank=None, evidence=evidence, at=seen.now)
    return None


def peers_lost(seen: Observation) -> Failure | None:
    """Workers ended because a collective failed, and nobody has said who broke it: victims may be heard first."""
    victims = [w for w in seen.members.values() if _class(w) == FailureClass.COLLECTIVE_ERROR]
    patience = timedelta(seconds=seen.limits.victim_wait_seconds)
    return _earliest(w for w in victims if w.end and seen.now - w.end.at >= patience)


def start_timed_out(seen: Observation) -> Failure | None:
    """A worker's agent has never answered. Waiting for a node is no failure, and an image takes its time to come."""
    patience = seen.job.spec.fault_tolerance
    for worker in seen.members.values():
        pending = worker.phase == WorkerPhase.PENDING
        if worker.ready or worker.ended or (pending and worker.placed_at is None):
            continue
        limit = patience.hang.init_seconds if pending else patience.start_timeout_seconds
        if seen.now - _listened_since(worker, seen) >= timedelta(seconds=limit):
            waits = f" and waits: {worker.waiting}" if worker.waiting else ""
            evidence = f"The agent did not answer within {limit} s; the worker is {worker.phase}{waits}."
            return _failure(FailureClass.START_TIMEOUT, worker, evidence, at=seen.now)
    return None


def start_hung(seen: Observation) -> Failure | None:
    """All agents answer, but no rank has begun to train."""
    members = tuple(seen.members.values())
    if not members or any(w.trains or w.ended for w in members) or not all(w.ready for w in members):
        return None
    limit = seen.job.spec.fault_tolerance.hang.init_seconds
    youngest = max(members, key=lambda w: (_listened_since(w, seen), w.serial))
    if seen.now - _listened_since(youngest, seen) < timedelta(seconds=limit):
        return None
    first = members[0]
    phase = Phase(first.progress.phase).name if first.progress else "unknown"
    evidence = f"Training did not begin within {limit} s of the start; node rank 0's phase is {phase}."
    return _failure(FailureClass.HANG, first, evidence, at=seen.now)


def step_hung(seen: Observation) -> Failure | None:
    """No rank has got on. One that does vouches for all, because every step is collective."""
    training = [w for w in seen.members.values() if w.trains and not w.ended]
    if not training:
        return None
    limit = seen.job.spec.fault_tolerance.hang.first_step_seconds
    newest = max(training, key=lambda w: (_moved_at(w, seen), -w.serial))
    if seen.now - _moved_at(newest, seen) < timedelta(seconds=limit):
        return None
    step = newest.progress.step if newest.progress else -1
    return _failure(FailureClass.HANG, newest, f"No rank got on for {limit} s; the last step was {step}.", at=seen.now)


def finish_hung(seen: Observation) -> Failure | None:
    """Some workers are done, others neither end nor fail."""
    members = seen.members.values()
    done = [w for w in members if w.phase == WorkerPhase.SUCCEEDED]
    late = [w for w in members if not w.ended]
    limit = seen.limits.finish_wait_seconds
    if not done or not late or seen.now - max(_ended_at(w) for w in done) < timedelta(seconds=limit):
        return None
    evidence = f"{len(done)} workers are done, this one still runs {limit:g} s later."
    return _failure(FailureClass.HANG, late[0], evidence, at=seen.now)


Check = Callable[[Observation], Failure | None]

CHECKS: tuple[Check, ...] = (
    record_missing,  # without a roster there is nothing to look at
    worker_crashed,  # a fault that a rank or the kernel reported
    worker_evicted,  # somebody takes a worker away
    worker_preempted,  # somebody took one away, and it has saved
    worker_vanished,  # a worker is gone without a word
    peers_lost,  # victims of a cause that none of the above explains
    start_timed_out,  # nobody home
    start_hung,  # at home, but not at work
    step_hung,  # was at work, no longer is
    finish_hung,  # the others are done
)


def _class(worker: Worker) -> FailureClass | None:
    """Class of a worker's end; None while it runs and when it finished."""
    if not worker.ended or worker.phase == WorkerPhase.SUCCEEDED:
        return None
    if worker.end is None:
        return FailureClass.UNKNOWN
    if worker.end.code == ExitCode.SAVED and worker.end.failure_class is None:
        return FailureClass.PREEMPTED
    return worker.end.failure_class or FailureClass.UNKNOWN


def _earliest(workers: Iterable[Worker]) -> Failure | None:
    worker = min(workers, key=lambda w: (_ended_at(w), w.serial), default=None)
    if worker is None:
        return None
    end = worker.end
    evidence = f"{describe_exit(end.code)}: {end.message}".removesuffix(": ") if end else "The worker failed."
    return _failure(_class(worker) or FailureClass.UNKNOWN, worker, evidence, at=_ended_at(worker))


def _failure(failure_class: FailureClass, worker: Worker, evidence: str, *, at: datetime) -> Failure:
    rank = worker.end.rank if worker.end else None
    return Failure(failure_class=failure_class, worker=worker.name, rank=rank, evidence=evidence, at=at)


def _ended_at(worker: Worker) -> datetime:
    return worker.end.at if worker.end else worker.created_at


def _listened_since(worker: Worker, seen: Observation) -> datetime:
    """Start of the wait for an answer: what was said before we listened cannot be held against the worker."""
    since = worker.started_at or worker.placed_at or worker.created_at
    if worker.progress is not None or seen.watched_since is None:
        return since
    return max(since, seen.watched_since)


def _moved_at(worker: Worker, seen: Observation) -> datetime:
    """When the worker's first rank last made progress."""
    moved = worker.progress.updated_at if worker.progress else 0.0
    return max(worker.created_at, instant(moved, now=seen.now))

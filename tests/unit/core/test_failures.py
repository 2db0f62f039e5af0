"""Every check: the look that raises it, and looks that do not quite."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from core_builders import (
    NOW,
    a_gang,
    a_member,
    a_pulse,
    a_start,
    a_worker,
    ago,
    altered,
    an_end,
    failed,
    with_spec,
    with_status,
)
from steadfast_contract.exits import FailureClass
from steadfast_contract.heartbeat import Phase
from steadfast_operator.api.types import FaultTolerance, Hang
from steadfast_operator.core.failures import CHECKS, Failure, first_failure
from steadfast_operator.core.observation import Observation, WorkerPhase

LOST, BUG = FailureClass.COLLECTIVE_ERROR, FailureClass.USER_ERROR


def failure(
    kind: FailureClass, evidence: str, *, node_rank: int = 0, rank: int | None = None, at: float = 0
) -> Failure:
    return Failure(failure_class=kind, worker=f"moe-7e1f5-{node_rank}", rank=rank, evidence=evidence, at=ago(at))


def ended(kind: FailureClass, *, node_rank: int, at: float) -> Failure:
    return failure(kind, "exit code 70 (USER_ERROR): boom", node_rank=node_rank, rank=3, at=at)


def silent(node_rank: int, seconds: float, *, listening: float | None = None, gang: int = 2) -> Observation:
    """A gang of which one worker, created so long ago, has never answered."""
    member = a_worker(node_rank, phase=WorkerPhase.RUNNING, created_at=ago(seconds))
    workers = tuple(member if n == node_rank else a_member(n, progress=None) for n in range(gang))
    since = None if listening is None else ago(listening)
    return a_start(gang, workers=workers, watched_since=since)


def queued(seconds: float, **changes: Any) -> Observation:
    """A gang of which one worker, created so long ago, does not run yet."""
    return altered(silent(1, seconds), 1, phase=WorkerPhase.PENDING, **changes)


def starting(*, age: float, pulse: Phase | None = Phase.RENDEZVOUS, listening: float | None = None) -> Observation:
    """A gang that answers and is in a phase before training."""
    progress = None if pulse is None else a_pulse(phase=pulse, step=-1)
    workers = tuple(a_member(n, created_at=ago(age), progress=progress) for n in range(2))
    return a_start(workers=workers, watched_since=None if listening is None else ago(listening))


def moved(*seconds: float, phase: Phase = Phase.TRAINING) -> Observation:
    """A training gang whose ranks last got on so long ago."""
    pulses = [a_pulse(phase=phase, updated_at=ago(s).timestamp()) for s in seconds]
    workers = tuple(a_member(n, progress=p, created_at=ago(5000)) for n, p in enumerate(pulses))
    return a_start(len(seconds), workers=workers)


def done(seen: Observation, node_rank: int, seconds: float) -> Observation:
    return altered(seen, node_rank, phase=WorkerPhase.SUCCEEDED, end=an_end(None, at=ago(seconds)))


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(a_gang(), None, id="a training gang is well"),
        pytest.param(a_start(), None, id="so is one that does not exist yet"),
        pytest.param(
            replace(a_gang(), record=None),
            Failure(
                failure_class=FailureClass.UNKNOWN,
                worker="",
                rank=None,
                evidence="The record of attempt 1 does not exist.",
                at=NOW,
            ),
            id="without a record the roster is lost",
        ),
        # worker_crashed
        pytest.param(failed(a_gang(), 1, BUG), ended(BUG, node_rank=1, at=1), id="a worker crashed"),
        pytest.param(
            failed(failed(a_gang(), 0, BUG, at=ago(2)), 1, FailureClass.GPU_FAULT, at=ago(3)),
            ended(FailureClass.GPU_FAULT, node_rank=1, at=3),
            id="of two crashes the earlier is the cause",
        ),
        pytest.param(
            failed(failed(a_gang(), 0, LOST, at=ago(9)), 1, BUG, at=ago(3)),
            ended(BUG, node_rank=1, at=3),
            id="a lost peer that was seen earlier is still the victim",
        ),
        pytest.param(
            altered(a_gang(), 1, phase=WorkerPhase.FAILED),
            failure(FailureClass.UNKNOWN, "The worker failed.", node_rank=1, at=100),
            id="a worker that failed without a word",
        ),
        pytest.param(
            altered(a_gang(), 1, phase=WorkerPhase.FAILED, end=an_end(None, code=137, message="")),
            failure(FailureClass.UNKNOWN, "exit code 137", node_rank=1, rank=3, at=1),
            id="a failed worker whose end has no class",
        ),
        # worker_evicted
        pytest.param(
            altered(a_gang(), 1, terminating_since=ago(3)),
            failure(FailureClass.EVICTED, "The worker is being deleted by somebody else.", node_rank=1),
            id="a worker is being deleted",
        ),
        pytest.param(
            failed(altered(a_gang(), 1, terminating_since=ago(3)), 1, FailureClass.UNKNOWN),
            failure(FailureClass.EVICTED, "The worker is being deleted by somebody else.", node_rank=1, rank=3),
            id="its ranks being killed is part of the eviction",
        ),
        pytest.param(
            failed(altered(a_gang(), 1, terminating_since=ago(3)), 0, LOST),
            failure(FailureClass.EVICTED, "The worker is being deleted by somebody else.", node_rank=1),
            id="a peer that loses an evicted worker is its victim",
        ),
        pytest.param(
            altered(a_gang(), 1, terminating_since=ago(3), taken=FailureClass.NODE_LOST, taken_because="not ready"),
            failure(FailureClass.NODE_LOST, "not ready", node_rank=1),
            id="a worker is taken off a lost node",
        ),
        pytest.param(
            done(altered(a_gang(), 1, terminating_since=ago(3)), 1, 5), None, id="a finished worker may be deleted"
        ),
        # worker_preempted
        pytest.param(
            failed(a_gang(), 1, FailureClass.PREEMPTED, code=75),
            failure(FailureClass.PREEMPTED, "exit code 75 (SAVED): boom", node_rank=1, rank=3, at=1),
            id="a worker saved and left",
        ),
        pytest.param(
            altered(a_gang(), 1, phase=WorkerPhase.FAILED, end=an_end(None, code=75)),
            failure(FailureClass.PREEMPTED, "exit code 75 (SAVED): boom", node_rank=1, rank=3, at=1),
            id="exit code 75 says so by itself",
        ),
        pytest.param(
            failed(failed(a_gang(), 0, FailureClass.PREEMPTED, at=ago(9)), 1, BUG),
            ended(BUG, node_rank=1, at=1),
            id="a crash tells more than a preemption",
        ),
        # worker_vanished
        pytest.param(
            replace(a_gang(), workers=a_gang().workers[:1]),
            failure(FailureClass.AGENT_LOST, "The worker of node rank 1 no longer exists.", node_rank=1),
            id="a worker vanished",
        ),
        pytest.param(
            failed(replace(a_gang(), workers=a_gang().workers[:1]), 0, LOST),
            failure(FailureClass.AGENT_LOST, "The worker of node rank 1 no longer exists.", node_rank=1),
            id="a peer that loses a vanished worker is its victim",
        ),
        pytest.param(a_start(workers=(a_member(0),)), None, id="a worker that was never created has not vanished"),
        # peers_lost
        pytest.param(
            failed(failed(a_gang(), 0, LOST, at=ago(3)), 1, LOST, at=ago(2)),
            ended(LOST, node_rank=0, at=3),
            id="peers lost each other",
        ),
        pytest.param(
            failed(a_gang(), 1, LOST, at=ago(0.9)), None, id="a victim is heard before whoever broke the collective"
        ),
        # start_timed_out
        pytest.param(
            silent(1, 60),
            failure(
                FailureClass.START_TIMEOUT, "The agent did not answer within 60 s; the worker is Running.", node_rank=1
            ),
            id="an agent never answered",
        ),
        pytest.param(silent(1, 59.9), None, id="an agent that still has time"),
        pytest.param(silent(1, 500, listening=59.9), None, id="nobody listened before"),
        pytest.param(silent(0, 60, gang=1), failure(FailureClass.START_TIMEOUT,
            "The agent did not answer within 60 s; the worker is Running."), id="the only worker never answered"),
        pytest.param(queued(9999), None, id="there is no node for a worker yet"),
        pytest.param(queued(9999, placed_at=ago(599)), None, id="an image that is still coming"),
        pytest.param(
            queued(9999, placed_at=ago(600), waiting="ImagePullBackOff: no such image"),
            failure(
                FailureClass.START_TIMEOUT,
                "The agent did not answer within 600 s; the worker is Pending and waits: "
                "ImagePullBackOff: no such image.",
                node_rank=1,
            ),
            id="an image that never comes",
        ),
        pytest.param(
            altered(silent(1, 9999), 1, placed_at=ago(999), started_at=ago(59)), None, id="its processes began just now"
        ),
        # start_hung
        pytest.param(
            starting(age=600),
            failure(
                FailureClass.HANG,
                "Training did not begin within 600 s of the start; node rank 0's phase is RENDEZVOUS.",
            ),
            id="all answer and none trains",
        ),
        pytest.param(starting(age=599.9), None, id="a rendezvous that still has time"),
        pytest.param(
            starting(age=600, pulse=None),
            failure(
                FailureClass.HANG, "Training did not begin within 600 s of the start; node rank 0's phase is unknown."
            ),
            id="agents answer but no rank ever reported",
        ),
        pytest.param(starting(age=700, pulse=None, listening=599), None, id="nobody listened to the ranks before"),
        pytest.param(
            altered(starting(age=900), 1, progress=a_pulse()), None, id="one rank that trains proves that all do"
        ),
        # step_hung
        pytest.param(
            moved(900, 950), failure(FailureClass.HANG, "No rank got on for 900 s; the last step was 4."), id="a hang"
        ),
        pytest.param(
            moved(950, 900, phase=Phase.SAVING),
            failure(FailureClass.HANG, "No rank got on for 900 s; the last step was 4.", node_rank=1),
            id="a hang while saving",
        ),
        pytest.param(moved(899.9, 950), None, id="one rank that got on vouches for all"),
        pytest.param(
            a_gang(workers=(a_member(0, progress=a_pulse(updated_at=0.0)), a_member(1))), None, id="no time told yet"
        ),
        pytest.param(
            a_gang(workers=tuple(a_member(n, progress=a_pulse(updated_at=float("nan"))) for n in (0, 1))),
            None,
            id="a clock that tells nonsense",
        ),
        # finish_hung
        pytest.param(
            done(a_gang(), 0, 60),
            failure(FailureClass.HANG, "1 workers are done, this one still runs 60 s later.", node_rank=1),
            id="a worker does not end when the others do",
        ),
        pytest.param(done(a_gang(), 0, 59.9), None, id="a worker may end a little later"),
    ],
)  # fmt: skip
def test_first_failure(seen: Observation, expected: Failure | None) -> None:
    assert first_failure(seen) == expected


@pytest.mark.parametrize(
    ("tolerance", "seen"),
    [
        pytest.param(FaultTolerance(start_timeout_seconds=5), silent(1, 5), id="startTimeoutSeconds"),
        pytest.param(FaultTolerance(hang=Hang(init_seconds=5)), starting(age=5), id="hang.initSeconds"),
        pytest.param(FaultTolerance(hang=Hang(first_step_seconds=5)), moved(5, 5), id="hang.firstStepSeconds"),
    ],
)
def test_the_jobs_own_limits_count(tolerance: FaultTolerance, seen: Observation) -> None:
    assert first_failure(seen) is None
    assert first_failure(with_spec(seen, fault_tolerance=tolerance)) is not None


def test_without_an_attempt_nobody_can_have_vanished() -> None:
    assert first_failure(with_status(a_gang(workers=()), attempts=[])) is None


def test_the_order_of_the_checks_is_their_priority() -> None:
    assert [check.__name__ for check in CHECKS] == [
        "record_missing",
        "worker_crashed",
        "worker_evicted",
        "worker_preempted",
        "worker_vanished",
        "peers_lost",
        "start_timed_out",
        "start_hung",
        "step_hung",
        "finish_hung",
    ]

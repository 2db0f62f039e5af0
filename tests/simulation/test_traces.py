"""Whole lives of jobs in simulated time: the real loop and the real decisions, against a world in memory."""

from __future__ import annotations

from itertools import pairwise

import pytest

from builders import a_job
from fakes.cluster import EPOCH, Fault, OperatorKilled, Trace, a_world, run_to_rest
from steadfast_contract.exits import FailureClass
from steadfast_operator.core.actions import CreateRecord, CreateWorker, DeleteWorkers, EmitEvent
from steadfast_operator.core.observation import Limits
from steadfast_operator.core.restarts import NOT_FAILURES, NOT_RETRYABLE
from steadfast_operator.shell.loop import run_job

START = ["StartingWorkers", "WaitingForWorkers", "StartingWorkers", "WaitingForWorkers", "Training"]
FIRST = ["FirstStart", *START]
AGAIN = ["WorkerFailed", "StoppingWorkers", "WorkerFailed", *START]
COUNTED = [kind for kind in FailureClass if kind not in NOT_RETRYABLE | NOT_FAILURES]


def clean(trace: Trace) -> Trace:
    assert trace.world.cluster.violations == []
    return trace


def elapsed(trace: Trace) -> float:
    return (trace.world.now() - EPOCH).total_seconds()


async def test_a_job_trains_to_its_end() -> None:
    trace = clean(await run_to_rest(a_world(a_job(**{"spec.workers": 4}))))
    assert trace.reasons == [*FIRST, "Completed"]
    actions = [action for _, decision in trace.decisions for action in decision.actions]
    assert [type(action) for action in actions] == [CreateRecord, EmitEvent, *[CreateWorker] * 4, EmitEvent]
    assert [a.node_rank for a in actions if isinstance(a, CreateWorker)] == [0, 1, 2, 3]
    status = trace.status
    assert (status.state, status.attempt, status.restarts.total, status.finished) == (
        "Succeeded",
        1,
        0,
        trace.world.now(),
    )
    assert status.checkpoint is not None
    assert status.checkpoint.step == 10


async def test_a_single_worker_needs_no_address() -> None:
    trace = clean(await run_to_rest(a_world(a_job(**{"spec.workers": 1}))))
    assert trace.reasons == ["FirstStart", "StartingWorkers", "WaitingForWorkers", "Training", "Completed"]


@pytest.mark.parametrize("kind", [kind for kind in COUNTED if kind != FailureClass.COLLECTIVE_ERROR])
async def test_a_failure_is_followed_by_an_attempt_from_the_newest_checkpoint(kind: FailureClass) -> None:
    trace = clean(await run_to_rest(a_world(a_job(), Fault(kind=kind, after=7, node_rank=1))))
    assert trace.reasons == [*FIRST, *AGAIN, "Completed"]
    assert trace.status.restarts.by_class == {kind: 1}
    assert [a.resumed_from for a in trace.status.attempts] == [0, 3]
    assert {type(a) for _, d in trace.decisions for a in d.actions} == {
        CreateRecord,
        CreateWorker,
        DeleteWorkers,
        EmitEvent,
    }


async def test_a_lost_collective_waits_a_moment_for_a_better_cause() -> None:
    fault = Fault(kind=FailureClass.COLLECTIVE_ERROR, after=7, node_rank=1)
    trace = clean(await run_to_rest(a_world(a_job(), fault)))
    status = trace.status
    assert (status.state, status.restarts.by_class) == ("Succeeded", {FailureClass.COLLECTIVE_ERROR: 1})
    assert status.attempts[0].ended is not None
    assert status.last_failure is not None
    waited = (status.attempts[0].ended - status.last_failure.at).total_seconds()
    assert waited == Limits().victim_wait_seconds


@pytest.mark.parametrize("kind", sorted(NOT_RETRYABLE))
async def test_what_cannot_be_retried_stops_the_job(kind: FailureClass) -> None:
    trace = clean(await run_to_rest(a_world(a_job(), Fault(kind=kind, after=7))))
    assert trace.reasons == [*FIRST, "NotRetryable"]
    assert trace.status.state == "Failed"
    assert [w.phase for w in trace.world.cluster.workers.values()] == ["Failed"]


@pytest.mark.parametrize(
    ("kind", "failure_class", "seconds"),
    [
        pytest.param("vanish", "AgentLost", 25, id="a worker that is gone is noticed at once"),
        pytest.param("evict", "Evicted", 25, id="an evicted worker's gang saves"),
        pytest.param("strand", "Evicted", 40, id="a worker stuck on a dead node delays nothing for long"),
        pytest.param("hang", "Hang", 960, id="a hang is noticed within its limit"),
        pytest.param("Preempted", "Preempted", 30, id="a preempted gang goes on"),
    ],
)
async def test_trouble_of_a_worker(kind: str, failure_class: str, seconds: float) -> None:
    trace = clean(await run_to_rest(a_world(a_job(), Fault(kind=kind, after=7, node_rank=1))))
    assert trace.status.restarts.by_class == {failure_class: 1}
    assert (trace.status.state, trace.status.attempt) == ("Succeeded", 2)
    assert elapsed(trace) <= seconds


async def test_an_agent_that_never_answers_is_replaced_after_its_time() -> None:
    trace = clean(await run_to_rest(a_world(a_job(), Fault(kind="silence", after=1.5, node_rank=1))))
    assert trace.status.restarts.by_class == {"StartTimeout": 1}
    assert 60 < elapsed(trace) < 85


async def test_suspend_and_resume_lose_no_step_and_spend_nothing() -> None:
    world = a_world(a_job(), Fault(kind="suspend", after=8, attempt=0), Fault(kind="resume", after=500, attempt=0))
    trace = clean(await run_to_rest(world))
    assert trace.reasons == [*FIRST, "Suspending", "Suspended", "Resumed", *START, "Completed"]
    first, second = trace.status.attempts
    assert (first.outcome, second.reason, second.resumed_from) == ("Suspended", "Resumed", 5)
    assert trace.status.restarts.total == 0


async def test_a_job_that_stays_suspended_rests() -> None:
    trace = clean(await run_to_rest(a_world(a_job(), Fault(kind="suspend", after=8, attempt=0))))
    assert (trace.status.state, trace.world.cluster.workers) == ("Suspended", {})


async def test_a_job_that_runs_too_long_fails_and_keeps_its_steps() -> None:
    trace = clean(await run_to_rest(a_world(a_job(**{"spec.activeDeadlineSeconds": 8}))))
    assert trace.reasons == [*FIRST, "DeadlineExceeded"]
    assert (trace.status.state, trace.world.committed) == ("Failed", 5)


async def test_a_job_that_is_deleted_ends_the_loop() -> None:
    trace = clean(await run_to_rest(a_world(a_job(), Fault(kind="delete", after=8, attempt=0))))
    assert trace.reasons == FIRST


async def test_back_off_grows_from_the_second_failure_without_progress() -> None:
    trace = clean(await run_to_rest(a_world(a_job(), Fault(kind="GpuFault", after=2.5, attempt=None))))
    assert trace.reasons[-1] == "NoProgress"
    pauses = [
        (after.started - before.ended).total_seconds()
        for before, after in pairwise(trace.status.attempts)
        if before.ended is not None
    ]
    assert pauses == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


async def test_a_users_bug_spends_the_users_budget() -> None:
    job = a_job(**{"spec.faultTolerance.maxRestarts": 3})
    trace = clean(await run_to_rest(a_world(job, Fault(kind="UserError", after=4, attempt=None))))
    assert (trace.reasons[-1], trace.status.attempt) == ("RestartBudgetSpent", 4)
    assert trace.status.restarts.by_class == {"UserError": 3}


async def test_failures_with_progress_between_them_stop_only_at_a_storm() -> None:
    job = a_job(**{"spec.train.steps": 1000, "spec.faultTolerance.maxRestarts": 0})
    world = a_world(job, Fault(kind="NetworkFault", after=9, attempt=None), checkpoint_every=1)
    trace = clean(await run_to_rest(world, limits=Limits(restarts_per_hour=20)))
    assert (trace.reasons[-1], trace.status.attempt) == ("RestartStorm", 21)
    assert trace.status.restarts.without_progress <= 1
    assert "BackingOff" not in trace.reasons


async def test_an_operator_that_comes_back_late_blames_nobody_for_its_own_absence() -> None:
    world = a_world(a_job(**{"spec.train.steps": 400}), Fault(kind="outage", after=8, attempt=0))
    world.cluster.kill_at = (6, True)
    trace = clean(await run_to_rest(world))
    assert (trace.status.state, trace.status.attempt) == ("Succeeded", 1)


async def test_a_spec_that_is_edited_while_the_gang_is_created_makes_no_mixed_gang() -> None:
    world = a_world(a_job())
    world.cluster.kill_at = (4, True)  # record, status, event, node rank 0
    with pytest.raises(OperatorKilled):
        await run_job(world.cluster, world, wake=world.wake)
    world.cluster.edit(workers=4)
    trace = clean(await run_to_rest(world))
    assert trace.status.attempts[0].outcome == "ConfigurationChanged"
    assert (trace.status.state, trace.status.attempt, trace.status.restarts.total) == ("Succeeded", 2, 0)
    assert len(world.cluster.records[2].serials) == 4

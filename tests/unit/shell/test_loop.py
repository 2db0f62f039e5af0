"""The loop: when it waits, retries, speaks and returns."""

from __future__ import annotations

import asyncio
import logging

import pytest

from builders import a_job, a_profile
from fakes.cluster import FakeCluster, Fault, World, a_world, run_to_rest
from steadfast_operator.api.profile import ClusterTrainingProfile
from steadfast_operator.api.types import TrainingJob, TrainingJobStatus
from steadfast_operator.core.actions import CreateWorker
from steadfast_operator.core.observation import AttemptRecord, Limits, Worker
from steadfast_operator.shell.loop import RETRY_SECONDS, run_job
from steadfast_operator.shell.observe import observe
from steadfast_operator.shell.ports import ClusterError, SystemClock


class Waits(World):
    """A world that notes how long it was asked to wait."""

    async def wait(self, wake: asyncio.Event, seconds: float | None) -> None:
        self.__dict__.setdefault("asked", []).append(seconds)
        await super().wait(wake, seconds)


async def test_a_job_that_does_not_exist_is_not_looked_after() -> None:
    world = a_world(a_job())
    world.cluster.job = None
    await run_job(world.cluster, world, wake=world.wake)


async def test_a_spec_that_cannot_run_is_refused_with_every_problem() -> None:
    world = a_world(a_job(**{"spec.train.globalBatchTokens": 33, "spec.ranksPerWorker": 3, "spec.device": "cuda"}))
    trace = await run_to_rest(world)
    assert trace.reasons == ["InvalidSpec"]
    (accepted,) = trace.status.conditions
    assert "globalBatchTokens" in accepted.message
    assert "gpusPerWorker is 0" in accepted.message
    assert world.cluster.created == []


async def test_a_cluster_that_does_not_answer_is_asked_ever_more_slowly_and_told_about_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster = FakeCluster(a_job())
    world = Waits(cluster=cluster, faults=(Fault(kind="outage", after=0, attempt=0),))
    world.tick()
    with caplog.at_level(logging.WARNING):
        await run_job(cluster, world, wake=world.wake, until_rest=True)
    failed = world.__dict__["asked"][:6]
    assert failed == list(RETRY_SECONDS[:6])
    assert len([r for r in caplog.records if "retrying" in r.message]) == 1
    assert cluster.job is not None
    assert cluster.job.status.state == "Succeeded"


async def test_our_own_bug_does_not_end_the_care_for_a_job() -> None:
    class Broken(FakeCluster):
        broken = 3

        async def list_workers(self) -> tuple[Worker, ...]:
            self.broken -= 1
            if self.broken >= 0:
                raise KeyError("a bug")
            return await super().list_workers()

    cluster = Broken(a_job())
    world = World(cluster=cluster)
    await run_job(cluster, world, wake=world.wake, until_rest=True)
    assert cluster.job is not None
    assert cluster.job.status.state == "Succeeded"


async def test_an_action_without_effect_is_not_repeated_without_a_breath() -> None:
    class Deaf(FakeCluster):
        async def create_worker(self, job: object, action: object) -> bool:
            self.writes += 1
            return False

    cluster = Deaf(a_job(**{"spec.activeDeadlineSeconds": 10}))
    world = World(cluster=cluster)
    await run_job(cluster, world, wake=world.wake, until_rest=True)
    assert cluster.writes < 60


async def test_logs_tell_each_change_of_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        await run_to_rest(a_world(a_job()))
    texts = [r.message for r in caplog.records if r.name.endswith("shell.loop")]
    assert len(texts) == 7
    assert texts[0].startswith("Decided: job=research/moe attempt=1 reason=FirstStart actions=2 message='Attempt 1")


async def test_two_operators_do_not_count_a_failure_twice() -> None:
    world = a_world(a_job(), Fault(kind="GpuFault", after=6))
    loops = [run_job(world.cluster, world, wake=asyncio.Event(), until_rest=True) for _ in range(2)]
    await asyncio.gather(*loops)
    assert world.cluster.job is not None
    assert world.cluster.job.status.restarts.by_class == {"GpuFault": 1}
    assert world.cluster.violations == []


async def test_observe_reads_workers_before_the_job_and_the_time_last() -> None:
    order: list[str] = []

    class Noting(FakeCluster):
        async def list_workers(self) -> tuple[Worker, ...]:
            order.append("workers")
            return await super().list_workers()

        async def fetch_job(self):  # type: ignore[no-untyped-def]
            order.append("job")
            return await super().fetch_job()

        async def fetch_profile(self, name: str) -> ClusterTrainingProfile | None:
            order.append(f"profile {name}")
            return await super().fetch_profile(name)

        async def fetch_record(self, number: int) -> AttemptRecord | None:
            order.append(f"record {number}")
            return await super().fetch_record(number)

    job = a_job().model_copy(update={"status": TrainingJobStatus(attempt=3)})
    world = World(cluster=Noting(job))
    seen = await observe(world.cluster, world, limits=Limits(), watched_since=world.now())
    assert seen is not None
    assert order == ["workers", "job", "record 3", "profile default"]
    assert (seen.problems, seen.config_digest[:7]) == ((), "sha256:")


class Edited(FakeCluster):
    """Its profile becomes another one when the first worker of an attempt is created, or the last."""

    def __init__(self, job: TrainingJob, *, last: bool, profile: ClusterTrainingProfile | None) -> None:
        super().__init__(job)
        self.last, self.new = last, profile
        self.asked: list[int] = []

    async def create_worker(self, job: TrainingJob, action: CreateWorker) -> bool:
        if (action.node_rank == action.num_workers - 1) == self.last:
            self.profile = self.new
        return await super().create_worker(job, action)

    async def fetch_profile(self, name: str) -> ClusterTrainingProfile | None:
        self.asked.append(self.job.status.attempt if self.job else 0)
        return await super().fetch_profile(name)


async def test_a_gang_that_runs_is_left_alone_by_its_profile_and_nobody_asks_for_it() -> None:
    cluster = Edited(a_job(), last=True, profile=None)
    trace = await run_to_rest(World(cluster=cluster))
    assert (trace.status.state, trace.status.attempt) == ("Succeeded", 1)
    trains = [seen for seen, decision in trace.decisions if decision.reason == "Training"]
    assert len(trains) > 1
    assert len(cluster.asked) < len(trace.decisions) - len(trains)


async def test_the_next_attempt_has_the_profile_as_it_is_then() -> None:
    cluster = Edited(a_job(), last=True, profile=a_profile(allowedImages=["other"]))
    trace = await run_to_rest(World(cluster=cluster, faults=(Fault(kind="GpuFault", after=5),)))
    assert trace.reasons[-1] == "InvalidSpec"
    assert (trace.status.state, trace.status.attempt) == ("Invalid", 1)
    assert all(worker.terminating_since for worker in cluster.workers.values())


async def test_a_gang_is_not_mixed_of_two_profiles() -> None:
    cluster = Edited(a_job(), last=False, profile=a_profile(nodeSelector={"pool": "new"}))
    trace = await run_to_rest(World(cluster=cluster))
    assert (trace.status.state, trace.status.attempt) == ("Succeeded", 2)
    assert "ConfigurationChanged" in trace.reasons
    assert trace.status.restarts.total == 0


async def test_a_refused_job_is_looked_at_again_because_its_profile_wakes_nobody() -> None:
    class Late(World):
        async def wait(self, wake: asyncio.Event, seconds: float | None) -> None:
            if seconds == Limits().refusal_seconds:
                self.cluster.profile = a_profile()
            await super().wait(wake, seconds)

    world = Late(cluster=FakeCluster(a_job()))
    world.cluster.profile = None
    await run_job(world.cluster, world, wake=world.wake)
    assert world.cluster.job is not None
    assert world.cluster.job.status.state == "Succeeded"
    assert [event.reason for event in world.cluster.events] == ["InvalidSpec", "FirstStart", "Completed"]


async def test_a_job_of_another_profile_than_there_is_is_refused_by_its_name() -> None:
    trace = await run_to_rest(a_world(a_job(**{"spec.profile": "h100"})))
    (accepted,) = trace.status.conditions
    assert accepted.message.startswith("spec.profile: there is no ClusterTrainingProfile 'h100'")


async def test_half_a_look_is_no_look() -> None:
    world = a_world(a_job())
    world.cluster.down = True
    with pytest.raises(ClusterError):
        await observe(world.cluster, world, limits=Limits(), watched_since=world.now())


async def test_the_system_clock_waits_for_the_event_or_the_time() -> None:
    clock, wake = SystemClock(), asyncio.Event()
    await clock.wait(wake, 0.001)
    wake.set()
    await clock.wait(wake, None)
    assert clock.now().tzinfo is not None

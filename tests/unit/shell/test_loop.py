"""The loop: when it waits, retries, speaks and returns."""

from __future__ import annotations

import asyncio
import logging

import pytest

from builders import a_job
from fakes.cluster import FakeCluster, Fault, World, a_world, run_to_rest
from steadfast_operator.api.types import TrainingJobStatus
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
    assert cluster.writes < 30


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

        async def fetch_record(self, number: int) -> AttemptRecord | None:
            order.append(f"record {number}")
            return await super().fetch_record(number)

    job = a_job().model_copy(update={"status": TrainingJobStatus(attempt=3)})
    world = World(cluster=Noting(job))
    seen = await observe(world.cluster, world, limits=Limits(), watched_since=world.now())
    assert seen is not None
    assert (order, seen.problems, seen.config_digest[:7]) == (["workers", "job", "record 3"], (), "sha256:")


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

"""The promises of the cluster port, kept alike in memory, by local processes, and on Kubernetes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest

from builders import JOB_UID, a_job, a_profile
from core_builders import a_record
from fakes.apiserver import FakeApiServer, connected, serving
from fakes.cluster import FakeCluster, World
from fakes.kubelet import FakeKubelet
from steadfast_contract.exits import ExitCode, FailureClass
from steadfast_operator.api.labels import worker_name
from steadfast_operator.api.reasons import Reason
from steadfast_operator.api.types import TrainingJob
from steadfast_operator.core.actions import CreateWorker, EmitEvent, EventType
from steadfast_operator.core.observation import Worker, WorkerEnd, WorkerPhase
from steadfast_operator.shell import local
from steadfast_operator.shell.agents import Agents
from steadfast_operator.shell.job_folder import JobFolder
from steadfast_operator.shell.kube import JobKey, KubeCluster
from steadfast_operator.shell.local import LocalCluster, LocalWorker
from steadfast_operator.shell.pod_cache import PodCache
from steadfast_operator.shell.ports import Cluster, ConflictError

SECONDS = 20.0
"""Longest wait for a process."""

Workers = dict[str, Worker]


class Place(Protocol):
    """A cluster, and what a test can do to its workers."""

    cluster: Cluster
    wake: asyncio.Event
    events: list[EmitEvent]

    async def until(self, true: Callable[[Workers], bool]) -> Workers:
        """Let time pass until this is true of the workers."""

    def fail(self, name: str) -> None:
        """A rank of the worker fails and says so."""

    def kill(self, name: str) -> None:
        """The worker ends without a word."""

    def finish(self, name: str) -> None:
        """The worker has done all its work."""

    def remove_job(self) -> None:
        """The job is gone."""


class InMemory:
    """The cluster of the simulations."""

    def __init__(self) -> None:
        self.fake = FakeCluster(a_job())
        self.cluster: Cluster = self.fake
        self.world = World(self.fake, steps=3)
        self.wake, self.events = self.world.wake, self.fake.events

    async def until(self, true: Callable[[Workers], bool]) -> Workers:
        for _ in range(100):
            if true(workers := {w.name: w for w in await self.cluster.list_workers()}):
                return workers
            self.world.tick()
        raise AssertionError("not within 50 simulated seconds")

    def fail(self, name: str) -> None:
        self._end(name, FailureClass.COLLECTIVE_ERROR)

    def kill(self, name: str) -> None:
        self._end(name, FailureClass.AGENT_LOST)

    def _end(self, name: str, failure_class: FailureClass) -> None:
        self.world.end(self.fake.workers[name], failure_class)
        self.wake.set()  # what a watch would do

    def finish(self, name: str) -> None:
        """It trains by itself."""

    def remove_job(self) -> None:
        self.fake.job = None


class OnThisMachine:
    """Real processes; a small program stands in for the agent."""

    def __init__(self, folder: JobFolder, **environ: str) -> None:
        folder.write(a_job())
        self.folder, self.wake, self.events = folder, asyncio.Event(), list[EmitEvent]()
        self.local = LocalCluster(
            folder,
            wake=self.wake,
            environ={**os.environ, **environ},
            on_event=self.events.append,
            command=(sys.executable, str(Path(__file__).with_name("fake_agent.py"))),
        )
        self.cluster: Cluster = self.local

    async def until(self, true: Callable[[Workers], bool]) -> Workers:
        async with asyncio.timeout(SECONDS):
            while not true(workers := {w.name: w for w in await self.cluster.list_workers()}):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return workers

    def member(self, name: str) -> LocalWorker:
        members = [self.local.member(node_rank, attempt=1) for node_rank in range(2)]
        return next(member for member in members if member is not None and member.worker.name == name)

    def fail(self, name: str) -> None:
        os.kill(self.member(name).process.pid, signal.SIGUSR1)

    def kill(self, name: str) -> None:
        os.kill(self.member(name).process.pid, signal.SIGKILL)

    def finish(self, name: str) -> None:
        os.kill(self.member(name).process.pid, signal.SIGUSR2)

    def remove_job(self) -> None:
        (self.folder.path / "job.json").unlink()


@asynccontextmanager
async def on_this_machine(home: Path, **environ: str) -> AsyncIterator[OnThisMachine]:
    folder = JobFolder.hold(home, namespace="research", name="moe")
    place = OnThisMachine(folder, **environ)
    yield place
    await place.local.close()
    folder.release()


class OnKubernetes:
    """An API server and kubelets that are not real, over connections that are."""

    def __init__(self, server: FakeApiServer, kubelet: FakeKubelet, *, cluster: Cluster, wake: asyncio.Event) -> None:
        self.server, self.kubelet, self.cluster, self.wake = server, kubelet, cluster, wake

    @property
    def events(self) -> list[EmitEvent]:
        return [
            EmitEvent(type=EventType(event["type"]), reason=Reason(event["reason"]), message=event["message"])
            for event in self.server.find("events")
        ]

    async def until(self, true: Callable[[Workers], bool]) -> Workers:
        async with asyncio.timeout(SECONDS):
            while not true(workers := {w.name: w for w in await self.cluster.list_workers()}):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return workers

    def fail(self, name: str) -> None:
        self.kubelet.fail(name, ExitCode.COLLECTIVE, "simulated")

    def kill(self, name: str) -> None:
        self.kubelet.end(name, code=137)

    def finish(self, name: str) -> None:
        self.kubelet.end(name, code=0, reason="Completed")

    def remove_job(self) -> None:
        self.server.delete(("trainingjobs", "research", "moe"), {})


@asynccontextmanager
async def on_kubernetes() -> AsyncIterator[OnKubernetes]:
    server = FakeApiServer()
    server.add("trainingjobs", a_job().to_object())
    server.add("clustertrainingprofiles", a_profile().to_object())
    kubelet = FakeKubelet(server, step_seconds=None)
    kubelet.start()
    wake, agents = asyncio.Event(), Agents()
    async with serving(server):
        api = connected(server)
        pods = PodCache(api, on_change=lambda uid: wake.set())
        following = asyncio.create_task(pods.run())
        await pods.synced.wait()
        key = JobKey(namespace="research", name="moe", uid=JOB_UID)
        cluster = KubeCluster(key, server=api, pods=pods, agents=agents)
        yield OnKubernetes(server, kubelet, cluster=cluster, wake=wake)
        following.cancel()
        await kubelet.close()
        await agents.close()
        await api.close()
    assert kubelet.violations == []


@pytest.fixture
async def machine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OnThisMachine]:
    """Local processes; a test may give their agents an environment as parameter."""
    async with on_this_machine(tmp_path, **getattr(request, "param", {})) as place:
        yield place


@pytest.fixture(params=["in memory", "on kubernetes", pytest.param("on this machine", marks=pytest.mark.local)])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    """Each kind of cluster, with a job that nobody has looked at."""
    if request.param == "in memory":
        yield (memory := InMemory())
        assert memory.fake.violations == []
        return
    if request.param == "on kubernetes":
        async with on_kubernetes() as kubernetes:
            yield kubernetes
        return
    async with on_this_machine(tmp_path) as machine:
        yield machine


def named(serial: int) -> str:
    return worker_name(job="moe", uid=JOB_UID, serial=serial)


def creation(node_rank: int = 0, *, size: int = 1) -> CreateWorker:
    master = "10.0.0.1:29500" if node_rank else ""
    return CreateWorker(serial=node_rank, attempt=1, node_rank=node_rank, num_workers=size, master=master)


async def begun(place: Place, *, size: int = 1) -> TrainingJob:
    """The job, with attempt 1 of `size` workers written down."""
    assert await place.cluster.create_record(a_record(size))
    job = await place.cluster.fetch_job()
    assert job is not None
    await place.cluster.write_status(job, job.status.model_copy(update={"attempt": 1, "next_serial": size}))
    assert await place.cluster.fetch_profile(job.spec.profile)
    await place.cluster.isolate_workers(job)
    job = await place.cluster.fetch_job()
    assert job is not None
    return job


async def started(place: Place, *, size: int = 1) -> Workers:
    """Every worker of attempt 1, ready."""
    job = await begun(place, size=size)
    for node_rank in range(size):
        assert await place.cluster.create_worker(job, creation(node_rank, size=size))
    return await place.until(lambda workers: all(w.ready for w in workers.values()))


async def ended(place: Place, name: str) -> tuple[Worker, WorkerEnd]:
    worker = (await place.until(lambda workers: workers[name].ended))[name]
    assert worker.end is not None
    return worker, worker.end


async def test_the_job_is_there_until_it_is_gone(place: Place) -> None:
    assert await place.cluster.fetch_job() == a_job()
    place.remove_job()
    assert await place.cluster.fetch_job() is None


async def test_a_status_is_read_back_as_it_was_written(place: Place) -> None:
    job = await begun(place)
    assert (job.status.attempt, job.status.next_serial) == (1, 1)
    assert job.spec == a_job().spec


async def test_a_status_of_a_job_that_has_changed_is_refused(place: Place) -> None:
    stale = await place.cluster.fetch_job()
    now = await begun(place)
    assert stale is not None
    with pytest.raises(ConflictError):
        await place.cluster.write_status(stale, stale.status.model_copy(update={"attempt": 2}))
    assert await place.cluster.fetch_job() == now


async def test_a_status_of_a_job_that_is_gone_is_refused(place: Place) -> None:
    job = await begun(place)
    place.remove_job()
    with pytest.raises(ConflictError):
        await place.cluster.write_status(job, job.status)
    assert await place.cluster.fetch_job() is None


async def test_a_record_is_written_once(place: Place) -> None:
    first = a_record(2)
    assert await place.cluster.create_record(first)
    assert not await place.cluster.create_record(replace(first, serials=(7, 8), reason="Resumed"))
    assert await place.cluster.fetch_record(1) == first


async def test_a_record_that_was_never_written_is_none(place: Place) -> None:
    await place.cluster.create_record(a_record(number=2))
    assert await place.cluster.fetch_record(1) is None


async def test_an_event_reaches_people(place: Place) -> None:
    event = EmitEvent(type=EventType.WARNING, reason=Reason.WORKER_FAILED, message="Attempt 1 failed.")
    await place.cluster.emit_event(await begun(place), event)
    assert place.events == [event]


async def test_no_worker_is_there_before_it_is_created(place: Place) -> None:
    await begun(place)
    assert await place.cluster.list_workers() == ()


async def test_a_new_worker_is_listed_at_once(place: Place) -> None:
    await place.cluster.create_worker(await begun(place), creation())
    (worker,) = await place.cluster.list_workers()
    assert (worker.name, worker.serial, worker.attempt) == (named(0), 0, 1)
    assert not worker.ended
    assert worker.terminating_since is None


async def test_a_worker_is_created_once(place: Place) -> None:
    job = await begun(place)
    assert await place.cluster.create_worker(job, creation())
    assert not await place.cluster.create_worker(job, creation())
    assert len(await place.cluster.list_workers()) == 1


async def test_a_ready_worker_of_node_rank_0_tells_where_the_ranks_meet(place: Place) -> None:
    workers = await started(place, size=2)
    first, second = workers[named(0)], workers[named(1)]
    assert first.phase == second.phase == WorkerPhase.RUNNING
    host, _, port = first.master.rpartition(":")
    assert host
    assert port.isdecimal()
    assert second.master == ""
    assert first.progress is not None


async def test_a_worker_that_is_done_has_succeeded(place: Place) -> None:
    await started(place)
    place.finish(named(0))
    worker, end = await ended(place, named(0))
    assert worker.phase == WorkerPhase.SUCCEEDED
    assert (end.code, end.failure_class) == (0, None)


async def test_a_worker_that_fails_says_why(place: Place) -> None:
    before = (await started(place))[named(0)]
    place.fail(named(0))
    worker, end = await ended(place, named(0))
    assert worker.phase == WorkerPhase.FAILED
    assert (end.failure_class, end.message, end.rank) == (FailureClass.COLLECTIVE_ERROR, "simulated", 0)
    assert end.at >= worker.created_at
    assert worker.ready
    assert (worker.progress, worker.master) == (before.progress, before.master)


async def test_a_worker_that_is_killed_is_lost(place: Place) -> None:
    await started(place)
    place.kill(named(0))
    worker, end = await ended(place, named(0))
    assert worker.phase == WorkerPhase.FAILED
    assert end.failure_class == FailureClass.AGENT_LOST


async def test_the_end_of_a_worker_wakes_the_loop(place: Place) -> None:
    await started(place, size=2)
    place.wake.clear()
    place.fail(named(1))
    async with asyncio.timeout(SECONDS):
        await place.wake.wait()
    assert {w.name: w.ended for w in await place.cluster.list_workers()}[named(1)]


@pytest.mark.parametrize("grace_seconds", [0, 60])
async def test_a_deleted_worker_goes_while_the_others_stay(place: Place, grace_seconds: int) -> None:
    await started(place, size=2)
    place.wake.clear()
    await place.cluster.delete_workers((named(1),), grace_seconds)
    leaving = {w.name: w for w in await place.cluster.list_workers()}.get(named(1))
    assert leaving is None or leaving.terminating_since is not None
    workers = await place.until(lambda workers: named(1) not in workers)
    assert workers.keys() == {named(0)}
    assert workers[named(0)].terminating_since is None
    assert place.wake.is_set()


async def test_a_worker_that_has_ended_stays_until_it_is_deleted(place: Place) -> None:
    await started(place)
    place.fail(named(0))
    await ended(place, named(0))
    await place.cluster.delete_workers((named(0),), 60)
    await place.until(lambda workers: not workers)


async def test_deleting_again_changes_nothing(place: Place) -> None:
    await started(place)
    await place.cluster.delete_workers((named(0),), 60)
    seen = await place.cluster.list_workers()
    await place.cluster.delete_workers((named(0),), 60)
    (before,) = seen
    after = await place.cluster.list_workers()  # it may have ended by now
    assert {w.terminating_since for w in after} <= {before.terminating_since}
    await place.until(lambda workers: not workers)


async def test_deleting_what_is_not_there_is_no_error(place: Place) -> None:
    await begun(place)
    await place.cluster.delete_workers(("moe-7e1f5-9", "other"), 0)
    await place.cluster.delete_workers((), 60)
    assert await place.cluster.list_workers() == ()


@pytest.mark.local
async def test_a_local_worker_may_save_before_it_ends(machine: OnThisMachine) -> None:
    await started(machine)
    member = machine.member(named(0))
    await machine.cluster.delete_workers((named(0),), 60)
    await machine.until(lambda workers: not workers)
    end = member.worker.end
    assert end is not None
    assert (end.code, end.failure_class, end.message) == (75, FailureClass.PREEMPTED, "saved")


@pytest.mark.local
@pytest.mark.parametrize("machine", [{"FAKE_AGENT": "deaf"}], indirect=True, ids=["deaf to SIGTERM"])
async def test_a_local_worker_is_killed_when_its_grace_is_over(machine: OnThisMachine) -> None:
    await started(machine)
    member = machine.member(named(0))
    began = asyncio.get_running_loop().time()
    await machine.cluster.delete_workers((named(0),), 1)
    await machine.until(lambda workers: not workers)
    assert asyncio.get_running_loop().time() - began >= 1
    assert member.process.returncode == -signal.SIGKILL


@pytest.mark.local
async def test_a_local_worker_without_grace_is_not_asked(machine: OnThisMachine) -> None:
    await started(machine)
    member = machine.member(named(0))
    await machine.cluster.delete_workers((named(0),), 0)
    await machine.until(lambda workers: not workers)
    assert member.process.returncode == -signal.SIGKILL


@pytest.mark.local
@pytest.mark.parametrize("machine", [{"FAKE_AGENT": "silent"}], indirect=True, ids=["ends at its start"])
async def test_a_local_worker_that_never_spoke_names_its_log(machine: OnThisMachine) -> None:
    await machine.cluster.create_worker(await begun(machine), creation())
    worker, end = await ended(machine, named(0))
    log = machine.folder.worker_folder(named(0)) / "log"
    assert not worker.ready
    assert end.failure_class == FailureClass.AGENT_LOST
    assert end.code == 1
    assert str(log) in end.message
    assert log.read_text() == "nothing to say\n"


@pytest.mark.local
async def test_a_frozen_local_worker_delays_nobody_and_stays_ready(
    machine: OnThisMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "STATUS_SECONDS", 0.2)
    before = await started(machine)
    os.kill(machine.member(named(0)).process.pid, signal.SIGSTOP)
    assert {w.name: w for w in await machine.cluster.list_workers()} == before


@pytest.mark.local
async def test_closing_leaves_no_local_process(machine: OnThisMachine) -> None:
    await started(machine, size=2)
    members = [machine.member(named(serial)) for serial in range(2)]
    await machine.local.close()
    assert [member.process.returncode for member in members] == [-signal.SIGKILL, -signal.SIGKILL]

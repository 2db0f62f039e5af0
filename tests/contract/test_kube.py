"""What the cluster port promises on Kubernetes alone; what all clusters promise is in test_cluster.py."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from builders import JOB_UID, a_job
from contract.test_cluster import OnKubernetes, begun, creation, named, on_kubernetes, started
from core_builders import a_record
from steadfast_contract.exits import FailureClass
from steadfast_contract.heartbeat import Phase, Pulse
from steadfast_operator.api.reasons import Reason
from steadfast_operator.core.actions import EmitEvent, EventType
from steadfast_operator.shell.kube import KubeCluster
from steadfast_operator.shell.ports import ClusterError, ConflictError

POD = ("pods", "research", named(0))


@pytest.fixture
async def place() -> AsyncIterator[OnKubernetes]:
    async with on_kubernetes() as kubernetes:
        yield kubernetes


def kube(place: OnKubernetes) -> KubeCluster:
    assert isinstance(place.cluster, KubeCluster)
    return place.cluster


def kept(cluster: KubeCluster) -> dict[str, Any]:
    """What one operator's clusters share."""
    return {"server": cluster._server, "pods": cluster._pods, "agents": cluster._agents}


async def test_a_job_of_the_same_name_is_another_job(place: OnKubernetes) -> None:
    place.remove_job()
    place.server.add("trainingjobs", a_job(**{"metadata.uid": "another"}).to_object())
    assert await place.cluster.fetch_job() is None


async def test_somebody_else_may_change_the_job_between_look_and_write(place: OnKubernetes) -> None:
    job = await begun(place)
    place.server.edit(("trainingjobs", "research", "moe"), suspend=True)
    with pytest.raises(ConflictError):
        await place.cluster.write_status(job, job.status.model_copy(update={"attempt": 2}))


async def test_a_status_leaves_the_spec_alone(place: OnKubernetes) -> None:
    await begun(place)
    (stored,) = place.server.find("trainingjobs")
    assert stored["metadata"]["generation"] == 1
    assert stored["spec"] == a_job().to_object()["spec"]


async def test_the_first_worker_s_own_address_is_given_to_the_others(place: OnKubernetes) -> None:
    workers = await started(place)
    pod = place.server.objects[POD]
    assert workers[named(0)].master == f"{pod['status']['podIP']}:29500"


async def test_a_record_is_an_immutable_child_of_the_job(place: OnKubernetes) -> None:
    await place.cluster.create_record(a_record(2))
    (stored,) = place.server.find("configmaps")
    assert stored["immutable"] is True
    assert stored["metadata"]["name"] == "moe-7e1f5-attempt-1"
    assert [owner["uid"] for owner in stored["metadata"]["ownerReferences"]] == [JOB_UID]
    assert json.loads(stored["data"]["record"])["serials"] == [0, 1]


async def test_a_record_of_another_job_is_refused(place: OnKubernetes) -> None:
    await place.cluster.create_record(a_record(2))
    place.server.find("configmaps")[0]["metadata"]["ownerReferences"][0]["uid"] = "another"
    fresh = KubeCluster(kube(place).key, **kept(kube(place)))
    with pytest.raises(ClusterError, match="not this job's record"):
        await fresh.fetch_record(1)


async def test_the_newest_ten_records_are_kept(place: OnKubernetes) -> None:
    for number in range(1, 13):
        assert await place.cluster.create_record(a_record(2, number=number))
    kept = {int(stored["metadata"]["labels"]["steadfast.dev/attempt"]) for stored in place.server.find("configmaps")}
    assert kept == set(range(3, 13))


async def test_events_of_one_reason_are_counted(place: OnKubernetes) -> None:
    job = await begun(place)
    for message in ("first", "second"):
        event = EmitEvent(type=EventType.WARNING, reason=Reason.WORKER_FAILED, message=message)
        await place.cluster.emit_event(job, event)
    await place.cluster.emit_event(job, EmitEvent(type=EventType.NORMAL, reason=Reason.RESUMED, message="x"))
    told = {event["reason"]: (event["count"], event["message"]) for event in place.server.find("events")}
    assert told == {"WorkerFailed": (2, "second"), "Resumed": (1, "x")}


async def test_an_event_that_is_refused_is_no_failure(place: OnKubernetes) -> None:
    job = await begun(place)
    place.server.refuse = lambda method, path: 403 if "/events" in path else None
    await place.cluster.emit_event(job, EmitEvent(type=EventType.NORMAL, reason=Reason.RESUMED, message="x"))
    assert place.events == []


async def test_a_pod_that_only_claims_to_be_a_worker_is_none(place: OnKubernetes) -> None:
    await started(place)
    stored = place.server.objects[POD]
    forged = {
        "metadata": {"name": "forged", "namespace": "research", "labels": stored["metadata"]["labels"]},
        "spec": stored["spec"],
    }
    place.server.add("pods", forged)
    assert list(await place.until(lambda workers: True)) == [named(0)]


async def test_a_new_job_waits_for_the_workers_of_an_earlier_one_of_its_name(place: OnKubernetes) -> None:
    await started(place)
    place.kubelet.may_end.clear()
    place.server.delete(("trainingjobs", "research", "moe"), {})
    place.server.add("trainingjobs", a_job(**{"metadata.uid": "another"}).to_object())
    place.cluster = new = KubeCluster(replace(kube(place).key, uid="another"), **kept(kube(place)))
    (left,) = await new.list_workers()
    assert (left.name, left.attempt, left.ended) == (named(0), 0, False)
    await new.delete_workers((left.name,), 0)
    assert place.server.objects[POD]["metadata"]["deletionGracePeriodSeconds"] > 1  # not ours to hurry
    place.kubelet.may_end.set()
    await place.until(lambda workers: not workers)


async def test_another_agent_at_a_worker_s_address_is_not_believed(place: OnKubernetes) -> None:
    await place.cluster.create_worker(await begun(place), creation())
    pod = place.kubelet.named(named(0))
    pod.env = replace(pod.env, worker="somebody-else")
    await place.until(lambda workers: workers[named(0)].phase == "Running")
    assert not (await place.until(lambda workers: True))[named(0)].ready


async def test_an_agent_that_falls_silent_takes_nothing_back(place: OnKubernetes) -> None:
    workers = await started(place)
    place.kubelet.down.add(named(0))
    before = workers[named(0)]
    async with asyncio.timeout(10):
        (after,) = await place.cluster.list_workers()
    assert after == before


async def test_a_terminating_worker_is_ready_as_long_as_its_agent_answers(
    place: OnKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steadfast_operator.shell.kube.SILENT_SECONDS", 1.5)
    await started(place, size=2)
    place.kubelet.may_end.clear()
    await place.cluster.delete_workers((named(0), named(1)), 60)
    await asyncio.sleep(1.6)
    place.kubelet.down.add(named(1))
    workers = await place.until(lambda workers: not workers[named(1)].ready)
    assert (workers[named(0)].ready, workers[named(0)].grace_seconds) == (True, 60)
    place.kubelet.may_end.set()


async def test_progress_is_node_rank_0_s(place: OnKubernetes) -> None:
    await started(place, size=2)
    for serial in range(2):
        place.kubelet.named(named(serial)).pulse = Pulse(phase=Phase.TRAINING, step=7)
    workers = await place.until(lambda workers: True)
    assert workers[named(0)].progress == Pulse(phase=Phase.TRAINING, step=7)
    assert workers[named(1)].progress == Pulse()


async def test_a_running_pod_is_never_forgotten_before_its_processes_are_gone(place: OnKubernetes) -> None:
    await started(place)
    await place.cluster.delete_workers((named(0),), 0)
    assert place.server.objects[POD]["metadata"]["deletionGracePeriodSeconds"] == 1


async def test_a_pod_that_is_gone_already_is_forgotten_at_once(place: OnKubernetes) -> None:
    await started(place)
    place.server.muted = True
    place.kubelet.end(named(0), code=137)
    place.server.delete(POD, {"gracePeriodSeconds": 0})
    await place.cluster.delete_workers((named(0),), 0)
    assert await place.cluster.list_workers() == ()


async def test_an_oom_kill_is_told_from_other_deaths(place: OnKubernetes) -> None:
    await started(place)
    place.kubelet.end(named(0), code=137, reason="OOMKilled")
    workers = await place.until(lambda workers: workers[named(0)].ended)
    end = workers[named(0)].end
    assert end is not None
    assert end.failure_class == FailureClass.OUT_OF_MEMORY


async def test_a_worker_is_what_the_profile_of_the_look_says(place: OnKubernetes) -> None:
    job = await begun(place)
    place.server.edit(("clustertrainingprofiles", "", "default"), nodeSelector={"pool": "new"})
    await place.cluster.create_worker(job, creation())
    assert "nodeSelector" not in place.server.objects[POD]["spec"]
    assert await place.cluster.fetch_profile("default")
    await place.cluster.create_worker(job, creation(1, size=2))
    assert place.server.objects[("pods", "research", named(1))]["spec"]["nodeSelector"] == {"pool": "new"}


async def test_no_worker_is_created_without_its_profile(place: OnKubernetes) -> None:
    job = await begun(place)
    assert await place.cluster.fetch_profile("h100") is None
    with pytest.raises(ClusterError, match="profile default was not fetched"):
        await place.cluster.create_worker(job, creation())


async def test_a_profile_that_cannot_be_read_is_an_error_of_the_cluster(place: OnKubernetes) -> None:
    place.server.edit(("clustertrainingprofiles", "", "default"), hostNetwork="perhaps")
    with pytest.raises(ClusterError, match="profile default cannot be read"):
        await place.cluster.fetch_profile("default")


async def test_a_network_policy_that_exists_stays(place: OnKubernetes) -> None:
    job = await begun(place)
    (before,) = place.server.find("networkpolicies")
    await place.cluster.isolate_workers(job)
    assert place.server.find("networkpolicies") == [before]


@pytest.mark.parametrize("status", [403, 422, 429, 500])
async def test_a_refusal_is_an_error_of_the_cluster(place: OnKubernetes, status: int) -> None:
    job = await begun(place)
    place.server.refuse = lambda method, path: status
    with pytest.raises(ClusterError, match=str(status)):
        await place.cluster.fetch_job()
    with pytest.raises(ClusterError, match=str(status)):
        await place.cluster.create_worker(job, creation())
    with pytest.raises(ClusterError, match=str(status)):
        await place.cluster.write_status(job, job.status)


async def test_a_job_that_cannot_be_read_is_an_error_of_the_cluster(place: OnKubernetes) -> None:
    place.server.edit(("trainingjobs", "research", "moe"), workers="many")
    with pytest.raises(ClusterError, match="cannot be read"):
        await place.cluster.fetch_job()

"""The whole operator in one process, kopf included, against an API server and kubelets in memory."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp
import pytest

from builders import a_job, a_profile
from fakes.apiserver import FakeApiServer, Object, connected, serving
from fakes.kubelet import FakeKubelet
from steadfast_contract.exits import ExitCode
from steadfast_operator.__main__ import serve
from steadfast_operator.api.profile import ClusterTrainingProfile
from steadfast_operator.core.observation import Limits
from steadfast_operator.settings import Settings
from steadfast_operator.shell import jobs

SECONDS = 20.0
JOB = ("trainingjobs", "research", "moe")
PROFILE = ("clustertrainingprofiles", "", "default")
DEFAULT = a_profile()


@dataclass
class Site:
    """A cluster with an operator that can be killed."""

    server: FakeApiServer
    kubelet: FakeKubelet
    settings: Settings
    operator: asyncio.Task[None] | None = None
    in_operator: Callable[[Callable[[], Any]], Any] = lambda call: None
    """Calls something in the operator's thread."""
    end: Callable[[], Any] = lambda: None
    cancel: Callable[[], Any] = lambda: None

    @property
    def job(self) -> Object:
        return self.server.objects[JOB]

    @property
    def status(self) -> Object:
        found: Object = self.job.get("status", {})
        return found

    def start(self) -> None:
        # In a thread and loop of its own, because kopf ends by cancelling every task that it finds in its loop.
        self.operator = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(self._operate())))

    async def _operate(self) -> None:
        stop, task = asyncio.Event(), asyncio.current_task()
        assert task is not None
        self.end, self.cancel = stop.set, task.cancel
        self.in_operator = asyncio.get_running_loop().call_soon_threadsafe
        await serve(connected(self.server), settings=self.settings, stop=stop)

    async def kill(self) -> None:
        """End it between two of its steps, whatever it is doing."""
        assert self.operator is not None
        self.in_operator(self.cancel)
        await asyncio.gather(self.operator, return_exceptions=True)
        self.operator = None

    async def until(self, true: Callable[[], Any]) -> None:
        async with asyncio.timeout(SECONDS):
            while not true():
                if self.operator is not None and self.operator.done():
                    self.operator.result()
                    raise AssertionError("the operator ended")
                await asyncio.sleep(0.01)

    async def until_state(self, state: str) -> None:
        await self.until(lambda: JOB in self.server.objects and self.status.get("state") == state)

    def workers(self) -> list[str]:
        return [pod["metadata"]["name"] for pod in self.server.find("pods")]

    async def fetch(self, path: str) -> str:
        url = f"http://127.0.0.1:{self.settings.port}{path}"
        async with aiohttp.ClientSession() as http, http.get(url) as reply:
            return await reply.text()


@asynccontextmanager
async def a_site(
    *, steps: int = 10, profile: ClusterTrainingProfile | None = DEFAULT, **overrides: Any
) -> AsyncIterator[Site]:
    server = FakeApiServer()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        settings = Settings(host="127.0.0.1", port=free.getsockname()[1], watch_seconds=30)
    kubelet = FakeKubelet(server, steps=steps)
    kubelet.start()
    async with serving(server):
        if profile is not None:
            server.add("clustertrainingprofiles", profile.to_object())
        server.add("trainingjobs", a_job(**overrides).to_object())
        site = Site(server, kubelet, settings)
        site.start()
        try:
            yield site
        finally:
            if site.operator is not None:
                site.in_operator(site.end)
                await site.operator
            await kubelet.close()
    assert kubelet.violations == []


def reasons(site: Site) -> dict[str, int]:
    return {f"{event['type']} {event['reason']}": event["count"] for event in site.server.find("events")}


async def test_a_job_trains_to_its_end() -> None:
    async with a_site() as site:
        await site.until_state("Succeeded")
        assert site.status["attempt"] == 1
        assert site.status["progress"]["step"] == 10
        assert site.status["checkpoint"]["step"] == 9
        await site.until(lambda: reasons(site) == {"Normal FirstStart": 1, "Normal Completed": 1})
        assert len(site.server.find("configmaps")) == 1
        metrics = await site.fetch("/metrics")
        assert 'steadfast_jobs{state="Succeeded"} 1.0' in metrics
        assert re.search(r'steadfast_job_step\{training_job="research/moe"\} \d', metrics)
        assert await site.fetch("/readyz") == "ok\n"


async def test_a_worker_that_is_lost_costs_one_restart() -> None:
    async with a_site(steps=40) as site:
        await site.until_state("Running")
        site.kubelet.end("moe-7e1f5-1", code=137)
        await site.until_state("Succeeded")
        assert site.status["attempt"] == 2
        assert site.status["restarts"]["byClass"] == {"AgentLost": 1}
        assert site.workers() == ["moe-7e1f5-2", "moe-7e1f5-3"]
        assert reasons(site)["Warning WorkerFailed"] == reasons(site)["Normal Restarted"] == 1
        metrics = await site.fetch("/metrics")
        assert "steadfast_recovery_seconds_count 1.0" in metrics
        assert 'steadfast_restarts_total{class="AgentLost",training_job="research/moe"} 1.0' in metrics


async def test_a_pod_that_somebody_deletes_is_an_eviction() -> None:
    async with a_site(steps=40) as site:
        await site.until_state("Running")
        site.server.delete(("pods", "research", "moe-7e1f5-0"), {"gracePeriodSeconds": 30})
        await site.until_state("Succeeded")
        assert site.status["restarts"]["byClass"] == {"Evicted": 1}
        assert site.status["restarts"].get("withoutProgress", 0) == 0


async def test_a_worker_lost_while_no_watch_runs_is_noticed() -> None:
    async with a_site(steps=40) as site:
        await site.until_state("Running")
        site.server.muted = True
        site.kubelet.end("moe-7e1f5-1", code=137)
        site.server.compact()
        site.server.drop_watches()
        site.server.muted = False
        await site.until_state("Succeeded")
        assert site.status["restarts"]["byClass"] == {"AgentLost": 1}


async def test_a_suspended_job_rests_until_it_is_resumed() -> None:
    async with a_site(steps=40) as site:
        await site.until_state("Running")
        site.server.edit(JOB, suspend=True)
        await site.until_state("Suspended")
        assert site.workers() == []
        assert site.status["checkpoint"]["step"] == site.kubelet.committed  # saved on the way out
        site.server.edit(JOB, suspend=False)
        await site.until_state("Succeeded")
        assert [entry["reason"] for entry in site.status["attempts"]] == ["FirstStart", "Resumed"]
        assert site.status["restarts"].get("byClass", {}) == {}


async def test_an_operator_killed_amid_a_recovery_loses_and_doubles_nothing() -> None:
    async with a_site(steps=40) as site:
        await site.until_state("Running")
        site.kubelet.end("moe-7e1f5-0", code=137)
        await site.until(lambda: site.status["restarts"].get("byClass"))
        await site.kill()
        site.start()
        await site.until(lambda: site.status["attempt"] == 2)
        await site.kill()
        site.start()
        await site.until_state("Succeeded")
        assert site.status["restarts"]["byClass"] == {"AgentLost": 1}
        assert (site.status["attempt"], len(site.server.find("configmaps"))) == (2, 2)


async def test_a_job_deleted_while_the_operator_is_away_leaves_nothing() -> None:
    async with a_site(steps=1000) as site:
        await site.until_state("Running")
        assert "finalizers" not in site.job["metadata"]
        await site.kill()
        site.server.delete(JOB, {})
        await site.until(lambda: not site.workers())
        site.start()
        site.server.add("trainingjobs", a_job(**{"metadata.uid": "00000000-new"}).to_object())
        await site.until_state("Running")
        assert site.workers() == ["moe-00000-0", "moe-00000-1"]
        assert {e["metadata"]["labels"]["steadfast.dev/attempt"] for e in site.server.find("configmaps")} == {"1"}


async def test_a_job_deleted_while_it_trains_goes_with_everything() -> None:
    async with a_site(steps=1000) as site:
        await site.until_state("Running")
        site.server.delete(JOB, {})
        await site.until(lambda: not site.server.find("pods") and not site.server.find("configmaps"))
        await site.until(lambda: not [r for r in site.kubelet.running()])


async def test_a_finished_job_is_deleted_after_its_time_to_live() -> None:
    async with a_site(**{"spec.ttlSecondsAfterFinished": 1}) as site:
        await site.until_state("Succeeded")
        await site.until(lambda: JOB not in site.server.objects)
        await site.until(lambda: not site.server.find("pods"))


async def test_a_spec_that_cannot_run_is_refused_until_it_is_corrected() -> None:
    async with a_site(**{"spec.train.globalBatchTokens": 33}) as site:
        await site.until_state("Invalid")
        assert site.workers() == []
        site.server.edit(JOB, train={"steps": 10, "globalBatchTokens": 256})
        await site.until_state("Succeeded")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused jobs are looked at again soon."""
    monkeypatch.setattr(jobs, "Limits", partial(Limits, refusal_seconds=0.1))


def acceptance(site: Site) -> Object:
    found: Object = next(c for c in site.status["conditions"] if c["type"] == "Accepted")
    return found


@pytest.mark.usefixtures("impatient")
async def test_a_job_that_its_profile_refuses_begins_once_the_profile_allows_it() -> None:
    profile = a_profile(allowedImages=["registry.example/other:*"], ceilings={"workers": 1})
    async with a_site(profile=profile) as site:
        await site.until_state("Invalid")
        assert site.workers() == []
        assert (acceptance(site)["status"], acceptance(site)["reason"]) == ("False", "InvalidSpec")
        assert "is no image that profile default allows" in acceptance(site)["message"]
        assert "2 workers are 1 more than the 1" in acceptance(site)["message"]
        site.server.edit(PROFILE, allowedImages=["registry.example/*"], ceilings={"workers": 2})
        await site.until_state("Succeeded")
        assert acceptance(site)["status"] == "True"
        told = {"Warning InvalidSpec": 1, "Normal FirstStart": 1, "Normal Completed": 1}
        await site.until(lambda: reasons(site) == told)


@pytest.mark.usefixtures("impatient")
async def test_a_job_waits_for_a_profile_that_does_not_exist_yet() -> None:
    async with a_site(profile=None) as site:
        await site.until_state("Invalid")
        assert "there is no ClusterTrainingProfile 'default'" in acceptance(site)["message"]
        site.server.add("clustertrainingprofiles", DEFAULT.to_object())
        await site.until_state("Succeeded")


async def test_the_attempt_after_an_edit_of_the_profile_has_it() -> None:
    async with a_site(steps=60) as site:
        await site.until_state("Running")
        asked = site.server.requests.count("GET /apis/steadfast.dev/v1alpha1/clustertrainingprofiles/default")
        site.server.edit(PROFILE, nodeSelector={"pool": "new"})
        site.server.edit(JOB, faultTolerance={"maxRestarts": 3})
        await site.until(lambda: site.status["observedGeneration"] == 2)
        again = site.server.requests.count("GET /apis/steadfast.dev/v1alpha1/clustertrainingprofiles/default")
        assert again == asked, "a gang that trains costs no request for its profile"
        site.kubelet.end("moe-7e1f5-1", code=137)
        await site.until_state("Succeeded")
        selectors = {pod["metadata"]["name"]: pod["spec"].get("nodeSelector") for pod in site.server.find("pods")}
        assert selectors == {"moe-7e1f5-2": {"pool": "new"}, "moe-7e1f5-3": {"pool": "new"}}


async def test_one_network_policy_is_there_before_the_pods_and_goes_with_the_job() -> None:
    async with a_site(steps=40) as site:
        await site.until_state("Running")
        site.kubelet.end("moe-7e1f5-1", code=137)
        await site.until_state("Succeeded")
        (policy,) = site.server.find("networkpolicies")
        kinds = [event.plural for event in site.server.history if event.type == "ADDED"]
        assert kinds.index("networkpolicies") < kinds.index("pods")
        assert policy["metadata"]["ownerReferences"][0]["uid"] == site.job["metadata"]["uid"]
        site.server.delete(JOB, {})
        await site.until(lambda: not site.server.find("networkpolicies"))


async def test_a_user_error_that_repeats_stops_the_job() -> None:
    async with a_site(steps=1000, **{"spec.faultTolerance.maxRestarts": 1}) as site:
        await site.until_state("Running")
        site.kubelet.fail("moe-7e1f5-0", ExitCode.USER_ERROR, "boom")
        await site.until(lambda: site.status["attempt"] == 2)
        await site.until_state("Running")
        site.kubelet.fail("moe-7e1f5-2", ExitCode.USER_ERROR, "boom")
        await site.until_state("Failed")
        assert site.status["lastFailure"]["evidence"] == "exit code 70 (USER_ERROR): boom"


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_an_api_server_that_refuses_for_a_while_delays_and_doubles_nothing(status: int) -> None:
    async with a_site() as site:
        left = {"pods": 1, "configmaps": 1, "trainingjobs": 1}

        def refuse(method: str, path: str) -> int | None:
            plural = next((name for name in left if f"/{name}" in path), "")
            if method == "GET" or not left.get(plural):
                return None
            left[plural] -= 1
            return status

        site.server.refuse = refuse
        await site.until_state("Succeeded")
        assert site.status["attempt"] == 1
        assert set(left.values()) == {0}

"""Nodes for the fake API server: every pod gets an address of 127.0.0.0/8, an agent that answers there, and an end.

A gang whose workers all run trains by itself, a step every `step_seconds`, unless told otherwise.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from typing import Any

from aiohttp import web

from fakes.apiserver import Event, FakeApiServer, Key, Object, stamp
from steadfast_contract.env import WorkerEnv
from steadfast_contract.exits import ExitCode, RankReport
from steadfast_contract.heartbeat import AgentPhase, AgentStatus, Phase, Pulse

CHECKPOINT_EVERY = 3
_ADDRESSES = count(2)
"""Never used twice: a port that was just closed may not be free yet."""


@dataclass(eq=False)
class FakePod:
    """One pod on its node."""

    key: Key
    uid: str
    address: str
    env: WorkerEnv
    runner: web.AppRunner | None = None
    pulse: Pulse = field(default_factory=Pulse)
    ended: bool = False


@dataclass
class FakeKubelet:
    """All nodes."""

    server: FakeApiServer
    steps: int = 10
    step_seconds: float | None = 0.05
    """None: nothing trains."""
    committed: int = 0
    pods: dict[str, FakePod] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    down: set[str] = field(default_factory=set)
    """Names of pods whose node is dead: nothing about them changes."""
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    """While it is not set, pods that were asked to end take their time."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def start(self) -> None:
        self.may_end.set()
        self.server.on_change.append(self._on_change)
        if self.step_seconds is not None:
            self._spawn(self._train())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pod in self.pods.values():
            if pod.runner is not None:
                await pod.runner.cleanup()

    def named(self, name: str) -> FakePod:
        return next(pod for pod in self.pods.values() if pod.key[2] == name)

    def running(self) -> list[FakePod]:
        return [pod for pod in self.pods.values() if not pod.ended and pod.runner is not None]

    def end(self, name: str, *, code: int, report: RankReport | None = None, reason: str = "Error") -> None:
        """The worker's container ends."""
        pod = self.named(name)
        pod.ended = True
        terminated = {"exitCode": code, "reason": reason, "finishedAt": stamp(datetime.now(UTC))}
        if report is not None:
            terminated["message"] = replace(report, progress=pod.pulse).to_json()
        self._say(
            pod,
            phase="Failed" if code else "Succeeded",
            containerStatuses=[{"name": "worker", "state": {"terminated": terminated}}],
        )
        self._spawn(self._stop_agent(pod))

    def _on_change(self, event: Event) -> None:
        if event.plural != "pods":
            return
        meta = event.object["metadata"]
        if event.type == "ADDED":
            self._spawn(self._run_pod(event.object))
        elif event.type == "MODIFIED" and "deletionTimestamp" in meta and meta["uid"] in self.pods:
            self._spawn(self._terminate(self.pods[meta["uid"]]))
        elif event.type == "DELETED" and meta["uid"] in self.pods:
            pod = self.pods[meta["uid"]]
            if not pod.ended:
                self.violations.append(f"{pod.key[2]} was forgotten while it ran")

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_pod(self, content: Object) -> None:
        meta = content["metadata"]
        values = {entry["name"]: entry["value"].replace("$$", "$") for entry in content["spec"]["containers"][0]["env"]}
        number = next(_ADDRESSES)
        key = ("pods", meta["namespace"], meta["name"])
        env = WorkerEnv.from_mapping(values)
        pod = FakePod(key=key, uid=meta["uid"], address=f"127.77.{number // 250}.{number % 250 + 1}", env=env)
        self.pods[meta["uid"]] = pod
        if self.step_seconds is not None:
            self._check(pod)
        await asyncio.sleep(0.01)
        if key not in self.server.objects:
            pod.ended = True
            return
        app = web.Application()
        app.router.add_get("/status", self._answer(pod))
        pod.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await pod.runner.setup()
        await web.TCPSite(pod.runner, pod.address, env.port).start()
        self._say(pod, phase="Running", podIP=pod.address)

    def _answer(self, pod: FakePod) -> Callable[[web.Request], Any]:
        async def status(_: web.Request) -> web.Response:
            if pod.key[2] in self.down:
                await asyncio.sleep(60)
            answer = AgentStatus(
                worker=pod.env.worker,
                attempt=pod.env.attempt,
                node_rank=pod.env.node_rank,
                phase=AgentPhase.RUNNING,
                master="" if pod.env.node_rank else f"0.0.0.0:{pod.env.master_port}",
                progress=pod.pulse,
            )
            return web.Response(text=answer.to_json())

        return status

    def _check(self, new: FakePod) -> None:
        gang = [pod for pod in self.pods.values() if pod.env.job_uid == new.env.job_uid]
        first = next((p for p in gang if p.env.attempt == new.env.attempt and not p.env.node_rank), None)
        for other in gang:
            if other.env.attempt != new.env.attempt and not other.ended:
                self.violations.append(f"{new.key[2]} was created while {other.key[2]} ran")
        if new.env.node_rank and (first is None or new.env.master != f"{first.address}:{new.env.master_port}"):
            self.violations.append(f"{new.key[2]} was sent to {new.env.master!r}")

    async def _terminate(self, pod: FakePod) -> None:
        await asyncio.sleep(0.03)
        await self.may_end.wait()
        if pod.key[2] in self.down:
            return
        if not pod.ended and pod.pulse.phase >= Phase.TRAINING:
            self.committed = max(self.committed, pod.pulse.step)
        if not pod.ended:
            pod.pulse = replace(pod.pulse, committed=self.committed)
            self.end(pod.key[2], code=ExitCode.SAVED, report=RankReport(code=ExitCode.SAVED, attempt=pod.env.attempt))
        await self._stop_agent(pod)
        if self.server.objects.get(pod.key, {}).get("metadata", {}).get("uid") == pod.uid:
            self.server.delete(pod.key, {"gracePeriodSeconds": 0})

    async def _stop_agent(self, pod: FakePod) -> None:
        if pod.runner is not None:
            runner, pod.runner = pod.runner, None
            await runner.cleanup()

    def _say(self, pod: FakePod, **status: Any) -> None:
        """Report the pod's status, as a kubelet does."""
        content = copy.deepcopy(self.server.objects.get(pod.key))
        if content is not None and content["metadata"]["uid"] == pod.uid:
            content["status"] |= status
            self.server.replace(pod.key, content, status=True)

    async def _train(self) -> None:
        """Every gang that is whole makes a step."""
        while True:
            await asyncio.sleep(self.step_seconds or 0)
            for attempt in {pod.env.attempt for pod in self.pods.values()}:
                gang = [pod for pod in self.running() if pod.env.attempt == attempt and pod.key[2] not in self.down]
                if gang and len(gang) == gang[0].env.num_workers:
                    self._step(gang)

    def _step(self, gang: list[FakePod]) -> None:
        pulse = gang[0].pulse
        if pulse.phase < Phase.TRAINING:
            pulse = Pulse(phase=Phase.TRAINING, step=self.committed, steps=self.steps, resumed_from=self.committed)
        elif pulse.step < self.steps:
            pulse = replace(pulse, step=pulse.step + 1, loss=2.5, tokens_per_second=256.0, tokens=256 * pulse.step)
            if pulse.step % CHECKPOINT_EVERY == 0:
                self.committed = max(self.committed, pulse.step)
        else:
            for pod in gang:
                done = RankReport(code=0, attempt=pod.env.attempt)
                self.end(pod.key[2], code=0, report=done, reason="Completed")
            return
        for pod in gang:
            pod.pulse = replace(pulse, committed=self.committed, updated_at=time.time())

    def fail(self, name: str, code: ExitCode, message: str) -> None:
        """A rank of the worker fails and says so."""
        report = RankReport(code=code, attempt=1, rank=0, message=message)
        self.end(name, code=code, report=report)

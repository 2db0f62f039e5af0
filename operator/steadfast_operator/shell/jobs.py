"""One task per job on Kubernetes: started when `handlers.py` hears of a job, woken by its events and its pods.

A task ends when its job has: the next event about the job starts another one, which looks and finds nothing to do.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import timedelta

from steadfast_operator.core.network import Callers
from steadfast_operator.core.observation import Limits
from steadfast_operator.core.status import is_finished
from steadfast_operator.shell.agents import Agents
from steadfast_operator.shell.api_server import ApiServer
from steadfast_operator.shell.kube import JobKey, KubeCluster
from steadfast_operator.shell.loop import run_job
from steadfast_operator.shell.metrics import Metrics
from steadfast_operator.shell.pod_cache import PodCache
from steadfast_operator.shell.ports import ClusterError, SystemClock

RETRY_SECONDS = 10.0
VICTIM_WAIT_SECONDS = 3.0
"""Kubelets tell of an end up to two seconds late, in whole seconds: who broke a collective may be heard last."""

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Care:
    """One job that is looked after."""

    wake: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    heard: bool = False
    """Something was said about the job since its task last began to look."""


class Jobs:
    """Every job that this operator looks after."""

    def __init__(
        self,
        server: ApiServer,
        *,
        metrics: Metrics,
        namespace: str | None = None,
        watch_seconds: int = 120,
        limits: Limits | None = None,
        callers: Callers | None = None,
    ) -> None:
        self._server, self._metrics, self._callers = server, metrics, callers
        self._limits, self._clock = limits or Limits(victim_wait_seconds=VICTIM_WAIT_SECONDS), SystemClock()
        self._agents = Agents()
        self.pods = PodCache(server, on_change=self._wake, namespace=namespace, watch_seconds=watch_seconds)
        self._cares: dict[str, _Care] = {}
        self._following: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to follow the pods."""
        self._following = asyncio.create_task(self.pods.run())

    @property
    def ready(self) -> bool:
        """Whether the pods are known; jobs are looked after from then on."""
        return self.pods.synced.is_set() and self._following is not None and not self._following.done()

    def hear(self, key: JobKey) -> None:
        """Something about this job is new, or it is gone."""
        care = self._cares.setdefault(key.uid, _Care())
        care.heard = True
        care.wake.set()
        if care.task is None:
            care.task = asyncio.create_task(self._care(key, care))

    async def close(self) -> None:
        """Stop looking after anything; what runs goes on running."""
        tasks = [task for task in (self._following, *(care.task for care in self._cares.values())) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._agents.close()

    def _wake(self, job_uid: str) -> None:
        if job_uid in self._cares:
            self._cares[job_uid].wake.set()

    async def _care(self, key: JobKey, care: _Care) -> None:
        await self.pods.synced.wait()
        cluster = KubeCluster(
            key,
            server=self._server,
            pods=self.pods,
            agents=self._agents,
            callers=self._callers,
            grace_seconds=self._limits.stop_grace_seconds,
        )
        try:
            gone = False
            while care.heard and not gone:
                care.heard = False
                await run_job(cluster, self._clock, wake=care.wake, limits=self._limits, on_decision=self._metrics.note)
                gone = await self._outlive(cluster, care)
        finally:
            care.task = None
            del self._cares[key.uid]
        if gone:
            self._metrics.forget(f"{key.namespace}/{key.name}")

    async def _outlive(self, cluster: KubeCluster, care: _Care) -> bool:
        """Wait for the end of a finished job's time to live, and delete it; True when the job is gone."""
        while True:
            care.wake.clear()
            try:
                job = await cluster.fetch_job()
                if job is None:
                    return True
                ttl, finished = job.spec.ttl_seconds_after_finished, job.status.finished
                if job.metadata.deletion_timestamp or ttl is None or finished is None or not is_finished(job.status):
                    return False
                left = (finished + timedelta(seconds=ttl) - self._clock.now()).total_seconds()
                if left <= 0:
                    _log.info(
                        "Deleted the job after its time to live: job=%s/%s", cluster.key.namespace, cluster.key.name
                    )
                    await cluster.delete_job()
                    return True
            except ClusterError:
                left = RETRY_SECONDS
            await self._clock.wait(care.wake, left)

"""What the worker answers over HTTP: liveness, readiness, metrics and status. It reports; it takes no orders."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from steadfast_agent.supervise import Gang
from steadfast_contract.env import WorkerEnv
from steadfast_contract.folder import pulse_path
from steadfast_contract.heartbeat import AgentPhase, AgentStatus, read_pulse


class Probes:
    """The HTTP server of one worker."""

    def __init__(self, worker: WorkerEnv, gang: Gang, *, phase: Callable[[], AgentPhase], master: str) -> None:
        """Prepare; `master` is where node rank 0's ranks meet, empty on the other workers."""
        self._worker, self._gang, self._phase, self._master = worker, gang, phase, master
        self._registry = CollectorRegistry()
        labels = {"training_job": worker.job, "worker": worker.worker, "attempt": str(worker.attempt)}
        self._gauges = {
            name: Gauge(f"steadfast_rank_{name}", text, [*labels, "rank"], registry=self._registry)
            for name, text in METRICS.items()
        }
        text = "Ranks that could not be forked from the warm process and were executed from scratch"
        self._cold = Gauge("steadfast_worker_cold_ranks", text, [*labels], registry=self._registry)
        self._labels = labels

    async def serve(self) -> str:
        """Listen; return `host:port`."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                web.get("/status", self._status),
            ]
        )
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, self._worker.host, self._worker.port).start()
        return f"{self._worker.host}:{runner.addresses[0][1]}"

    def status(self) -> AgentStatus:
        """The worker as it is now."""
        return AgentStatus(
            worker=self._worker.worker,
            attempt=self._worker.attempt,
            node_rank=self._worker.node_rank,
            phase=self._phase(),
            master=self._master,
            pids=tuple(process.pid for process in self._gang.ranks),
            progress=read_pulse(pulse_path(self._worker.folder, local_rank=0)),
        )

    async def _healthz(self, request: web.Request) -> web.Response:
        # Liveness means only that this loop lives; it never reflects ranks, or a slow step would kill the pod.
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        ready = self._phase() == AgentPhase.RUNNING
        return web.Response(text=f"{self._phase()}\n", status=200 if ready else 503)

    async def _status(self, request: web.Request) -> web.Response:
        return web.Response(text=self.status().to_json(), content_type="application/json")

    async def _metrics(self, request: web.Request) -> web.Response:
        for local_rank in range(self._worker.ranks_per_worker):
            pulse = read_pulse(pulse_path(self._worker.folder, local_rank=local_rank))
            rank = str(self._worker.node_rank * self._worker.ranks_per_worker + local_rank)
            for name, gauge in self._gauges.items():
                if pulse is not None:
                    gauge.labels(**self._labels, rank=rank).set(getattr(pulse, name))
        self._cold.labels(**self._labels).set(sum(not process.warm for process in self._gang.ranks))
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


METRICS = {
    "phase": "0 starting, 1 rendezvous, 2 restoring, 3 training, 4 saving, 5 done",
    "step": "Newest finished step",
    "tokens": "Tokens trained on since the start of the run",
    "loss": "Loss of the newest step, mean over the global batch, in nats per token",
    "tokens_per_second": "Tokens per second of the whole job in this attempt",
    "committed": "Step of the newest checkpoint known to be complete",
    "data_wait_seconds": "Seconds that steps have waited for batches in this attempt",
    "stall_seconds": "Seconds that steps have waited for checkpoints in this attempt",
}

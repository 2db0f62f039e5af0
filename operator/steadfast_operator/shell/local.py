"""The cluster port on one machine: workers are local processes, resources are files. Ships as product.

`steadfast run` uses it; it needs no cluster and no root. Workers die with the process that runs them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from steadfast_contract.exits import FailureClass, RankReport, failure_class
from steadfast_contract.folder import agent_path, cache_path, pulse_path, termination_path
from steadfast_contract.heartbeat import AgentStatus, read_pulse
from steadfast_operator.api.acceptance import permitting
from steadfast_operator.api.profile import ClusterTrainingProfile
from steadfast_operator.api.resolve import training_config
from steadfast_operator.api.types import TrainingJob, TrainingJobStatus
from steadfast_operator.core.actions import CreateWorker, EmitEvent
from steadfast_operator.core.observation import AttemptRecord, Worker, WorkerEnd, WorkerPhase
from steadfast_operator.core.workers import store_variables, worker_env
from steadfast_operator.shell.job_folder import JobFolder
from steadfast_operator.shell.ports import ConflictError

STATUS_SECONDS = 2.0
"""How long an agent may take to answer."""
AGENT = (sys.executable, "-m", "steadfast_agent")


@dataclass(eq=False)
class LocalWorker:
    """One agent process."""

    worker: Worker
    node_rank: int
    folder: Path
    process: subprocess.Popen[bytes]
    status: AgentStatus | None = None
    deleted: bool = False
    kill_timer: asyncio.TimerHandle | None = None
    reaped: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def gone(self) -> bool:
        """Its process has ended and was reaped."""
        return self.worker.ended


class LocalCluster:
    """Workers as processes of this one; implements `ports.Cluster` for a single job."""

    def __init__(
        self,
        folder: JobFolder,
        *,
        wake: asyncio.Event,
        environ: Mapping[str, str],
        on_event: Callable[[EmitEvent], None] = lambda event: None,
        command: Sequence[str] = AGENT,
    ) -> None:
        """Use the job in `folder`; `environ` is what workers inherit, object store included; `command` is a worker."""
        self._folder, self._wake, self._environ, self._on_event = folder, wake, environ, on_event
        self._command = command
        self.ranks_per_worker = 1
        self._workers: dict[str, LocalWorker] = {}
        self._http: aiohttp.ClientSession | None = None

    async def fetch_job(self) -> TrainingJob | None:
        """The job as its file says."""
        return self._folder.read()

    async def list_workers(self) -> tuple[Worker, ...]:
        """All workers that were not deleted, or are not gone yet, with their agents' newest answers."""
        await asyncio.gather(*(self._ask(w) for w in self._workers.values() if not w.gone))
        workers = tuple(w.worker for w in self._workers.values())
        # A deleted worker is shown once more after its end: its last progress is in it.
        self._workers = {name: w for name, w in self._workers.items() if not (w.deleted and w.gone)}
        return workers

    async def fetch_profile(self, name: str) -> ClusterTrainingProfile | None:
        """One that permits the job: nobody administers this machine for others."""
        job = self._folder.read()
        return permitting(job) if job is not None else None

    async def fetch_record(self, number: int) -> AttemptRecord | None:
        """One attempt record."""
        return self._folder.read_record(number)

    async def create_record(self, record: AttemptRecord) -> bool:
        """Write an attempt down, once."""
        return self._folder.create_record(record)

    async def isolate_workers(self, job: TrainingJob) -> None:
        """Nothing to do: workers listen on this machine's own address."""

    async def create_worker(self, job: TrainingJob, action: CreateWorker) -> bool:
        """Start an agent."""
        self.ranks_per_worker = job.spec.ranks
        training = training_config(job).to_json()
        env = worker_env(job, action, training=training)
        if env.worker in self._workers:
            return False
        folder = self._folder.worker_folder(env.worker)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        env = replace(env, folder=str(folder), host="127.0.0.1", port=0, master_port=0)
        process = self._start_agent(env.to_mapping() | store_variables(job.spec.object_store), log=folder / "log")
        worker = Worker(
            name=env.worker,
            serial=action.serial,
            attempt=action.attempt,
            phase=WorkerPhase.RUNNING,
            created_at=datetime.now(UTC),
        )
        local = LocalWorker(worker, action.node_rank, folder, process)
        self._workers[worker.name] = local
        pidfd = os.pidfd_open(process.pid)
        asyncio.get_running_loop().add_reader(pidfd, self._on_exit, local, pidfd)
        return True

    async def delete_workers(self, names: tuple[str, ...], grace_seconds: int) -> None:
        """Ask agents to end, and kill them when the grace is over."""
        loop = asyncio.get_running_loop()
        for local in [self._workers[name] for name in names if name in self._workers]:
            local.deleted = True
            if local.gone:
                self._workers.pop(local.worker.name)
                continue
            if local.worker.terminating_since is None:
                local.worker = replace(local.worker, terminating_since=datetime.now(UTC), grace_seconds=grace_seconds)
            if grace_seconds == 0:
                local.process.kill()
            elif local.kill_timer is None:
                local.process.terminate()
                local.kill_timer = loop.call_later(grace_seconds, local.process.kill)

    async def write_status(self, job: TrainingJob, status: TrainingJobStatus) -> None:
        """Store the status of the job as it was observed."""
        stored = self._folder.read()
        if stored is None or stored != job:
            raise ConflictError(f"job {job.metadata.name} was changed by somebody else")
        self._folder.write(stored.model_copy(update={"status": status}))

    async def emit_event(self, job: TrainingJob, event: EmitEvent) -> None:
        """Hand the event to whoever shows it."""
        self._on_event(event)

    def member(self, node_rank: int, *, attempt: int) -> LocalWorker | None:
        """The running worker at this place of the roster."""
        return next(
            (
                w
                for w in self._workers.values()
                if w.node_rank == node_rank and w.worker.attempt == attempt and not w.gone and not w.deleted
            ),
            None,
        )

    async def close(self) -> None:
        """Kill what still runs, and return when it is gone."""
        running = [local for local in self._workers.values() if not local.gone]
        for local in running:
            local.process.kill()
        for local in running:
            await local.reaped.wait()
        if self._http is not None:
            await self._http.close()

    def _start_agent(self, env: Mapping[str, str], *, log: Path) -> subprocess.Popen[bytes]:
        inherited = {**self._environ, "GLOO_SOCKET_IFNAME": "lo", "STEADFAST_DIE_WITH_PARENT": "1"}
        with log.open("ab") as output:
            return subprocess.Popen(
                self._command,
                env={**inherited, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C in the terminal is ours to translate
            )

    def _on_exit(self, local: LocalWorker, pidfd: int) -> None:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
        code = local.process.wait()
        if local.kill_timer is not None:
            local.kill_timer.cancel()
        end = _worker_end(local, code)
        phase = WorkerPhase.SUCCEEDED if end.failure_class is None else WorkerPhase.FAILED
        progress = read_pulse(pulse_path(str(local.folder), local_rank=0)) or local.worker.progress
        local.worker = replace(local.worker, phase=phase, end=end, progress=progress)
        shutil.rmtree(cache_path(str(local.folder)), ignore_errors=True)
        local.reaped.set()
        self._wake.set()

    async def _ask(self, local: LocalWorker) -> None:
        try:
            address = agent_path(str(local.folder)).read_text()
        except FileNotFoundError:
            return
        if self._http is None:
            self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=STATUS_SECONDS))
        with suppress(aiohttp.ClientError, TimeoutError, ValueError):
            async with self._http.get(f"http://{address}/status") as reply:
                local.status = AgentStatus.from_json(await reply.text())
            if local.gone:  # meanwhile: its end said more than this answer
                return
            local.worker = replace(
                local.worker,
                ready=True,
                master=local.status.master,
                progress=local.status.progress or local.worker.progress,
            )


def _worker_end(local: LocalWorker, code: int) -> WorkerEnd:
    now = datetime.now(UTC)
    try:
        report = RankReport.from_json(termination_path(str(local.folder)).read_text())
    except (FileNotFoundError, ValueError):
        message = f"its agent left no report; see {local.folder / 'log'}"
        return WorkerEnd(code=code, failure_class=FailureClass.AGENT_LOST, message=message, rank=None, at=now)
    return WorkerEnd(
        code=report.code,
        failure_class=failure_class(report.code, reported=report.reported),
        message=report.message,
        rank=report.rank,
        at=now,
    )


def send_signal(pid: int, number: signal.Signals) -> None:
    """Signal a process that may be gone already."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)

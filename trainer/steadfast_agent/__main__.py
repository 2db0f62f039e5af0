"""First process of a worker: `python -m steadfast_agent`. Reads its orders from the environment.

Listens, warms the training program, forks the ranks, and ends when they do: with the exit code of the rank that ended
the worker, its report left behind as the termination message.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from steadfast_agent.probes import Probes
from steadfast_agent.supervise import Gang
from steadfast_agent.zygote import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, Zygote, prctl
from steadfast_contract.env import WorkerEnv
from steadfast_contract.exits import ExitCode, RankReport
from steadfast_contract.folder import agent_path, pulse_path, termination_path
from steadfast_contract.heartbeat import AgentPhase, read_pulse

TRAINER = "steadfast_trainer.__main__"


class Agent:
    """One worker's life."""

    def __init__(self, worker: WorkerEnv, *, program: str = TRAINER) -> None:
        """Prepare; `program` is the module whose `main()` a rank runs."""
        self.worker, self._program = worker, program
        self.phase = AgentPhase.STARTING
        self.listener = _listen(worker) if worker.node_rank == 0 else None
        self.gang = Gang(worker, on_line=_print_line)

    @property
    def master(self) -> str:
        """Where the ranks meet."""
        if self.listener is None:
            return self.worker.master
        return f"{self.worker.host}:{self.listener.getsockname()[1]}"

    async def run(self) -> RankReport:
        """From the first probe to the last rank's end."""
        zygote = Zygote.start(self._program, env=dict(os.environ))
        own_master = self.master if self.listener is not None else ""
        probes = Probes(self.worker, self.gang, phase=lambda: self.phase, master=own_master)
        address = await probes.serve()
        _write_whole(agent_path(self.worker.folder), address)
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # a Ctrl-C in the terminal is the runtime's to translate

        warm = loop.run_in_executor(None, zygote.wait_warm)
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((warm, stopped), return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            os.kill(zygote.pid, signal.SIGKILL)
            return RankReport(code=ExitCode.SAVED, attempt=self.worker.attempt, message="stopped before training")
        try:
            _print_line(f"Warmed the trainer seconds={await warm:.2f}")
            self.gang.start(zygote, master=self.master, listener=self.listener)
        except RuntimeError as error:
            return RankReport(code=ExitCode.USER_ERROR, attempt=self.worker.attempt, message=str(error))
        self.phase = AgentPhase.RUNNING

        ended = asyncio.create_task(self.gang.ended.wait())
        await asyncio.wait((ended, stopped), return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            self.phase = AgentPhase.STOPPING
            self.gang.stop()  # whoever stops us also kills us when the grace period is over
        await ended
        return replace(self.gang.report(), progress=read_pulse(pulse_path(self.worker.folder, local_rank=0)))


def _listen(worker: WorkerEnv) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((worker.host, worker.master_port))
    listener.listen(1024)
    return listener


def _print_line(line: str) -> None:
    print(line, flush=True)


def _write_whole(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    os.rename(file.name, path)


def main(program: str = TRAINER) -> None:
    """Run one worker; leave without any clean-up, the ranks are gone."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    if os.environ.get("STEADFAST_DIE_WITH_PARENT"):  # the local runtime's workers must not outlive it
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        worker = WorkerEnv.from_mapping(os.environ)
    except ValueError as error:
        sys.exit(f"steadfast agent: {error}")
    Path(worker.folder).mkdir(parents=True, exist_ok=True)
    report = asyncio.run(Agent(worker, program=program).run())
    # In place: the container runtime may have mounted this file, and a mount point cannot be renamed over.
    termination_path(worker.folder).write_text(report.to_json())
    sys.stdout.flush()
    os._exit(report.code if report.code >= 0 else 128 - report.code)


if __name__ == "__main__":
    main()

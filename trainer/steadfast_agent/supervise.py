"""The ranks of one worker: started from the warm process, watched by pidfd, ended together.

A worker's end is one event: the first rank that fails ends all of them, and its report becomes the worker's.
"""

from __future__ import annotations

import asyncio
import collections
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from steadfast_agent.zygote import Zygote
from steadfast_contract.env import RankEnv, WorkerEnv
from steadfast_contract.exits import ExitCode, RankReport
from steadfast_contract.folder import pulse_path, report_path

LAST_LINES = 20


@dataclass
class RankProcess:
    """One running rank."""

    rank: int
    local_rank: int
    pid: int
    pidfd: int
    output: int
    """Read end of its standard output and error, which do not block."""
    warm: bool
    pending: bytearray = field(default_factory=bytearray)
    """The beginning of a line."""
    lines: collections.deque[str] = field(default_factory=lambda: collections.deque(maxlen=LAST_LINES))
    code: int | None = None
    """As in subprocess: negative for a signal; None while it runs."""


def rank_env(worker: WorkerEnv, *, local_rank: int, master: str) -> RankEnv:
    """The environment of one rank, as torchrun would give it, plus ours."""
    address, _, port = master.rpartition(":")
    return RankEnv(
        rank=worker.node_rank * worker.ranks_per_worker + local_rank,
        local_rank=local_rank,
        world_size=worker.num_workers * worker.ranks_per_worker,
        local_world_size=worker.ranks_per_worker,
        master_addr=address,
        master_port=int(port),
        training=worker.training,
        job=worker.job,
        job_uid=worker.job_uid,
        attempt=worker.attempt,
        folder=worker.folder,
    )


class Gang:
    """All ranks of this worker."""

    def __init__(self, worker: WorkerEnv, *, on_line: Callable[[str], None]) -> None:
        self.ranks: list[RankProcess] = []
        self.ended = asyncio.Event()
        self._worker, self._on_line = worker, on_line
        self._first_failure: RankProcess | None = None

    def start(self, zygote: Zygote, *, master: str, listener: socket.socket | None) -> None:
        """Fork every rank; blocks for milliseconds.

        Raises:
            RuntimeError: one could not be started.
        """
        for local_rank in range(self._worker.ranks_per_worker):
            # A restarted container finds the files of the one before: they would speak for the new ranks.
            report_path(self._worker.folder, local_rank=local_rank).unlink(missing_ok=True)
            pulse_path(self._worker.folder, local_rank=local_rank).unlink(missing_ok=True)
            env = rank_env(self._worker, local_rank=local_rank, master=master)
            output, output_write = os.pipe()
            os.set_blocking(output, False)
            hand_over = [listener.fileno()] if listener is not None and env.rank == 0 else []
            forked = zygote.fork(env.to_mapping(), fds=[output_write, *hand_over])
            os.close(output_write)
            if not forked.warm:
                self._on_line(f"Started rank cold rank={env.rank} reason={forked.reason!r}")
            process = RankProcess(
                rank=env.rank,
                local_rank=local_rank,
                pid=forked.pid,
                pidfd=os.pidfd_open(forked.pid),
                output=output,
                warm=forked.warm,
            )
            self.ranks.append(process)
            loop = asyncio.get_running_loop()
            loop.add_reader(process.pidfd, self._on_exit, process)
            loop.add_reader(process.output, self._on_output, process)

    def stop(self) -> None:
        """Ask every rank to save and stop."""
        self._signal_all(signal.SIGTERM)

    def kill(self) -> None:
        """End every rank and whatever it started, now."""
        self._signal_all(signal.SIGKILL)

    def report(self) -> RankReport:
        """How the worker ended, once `ended` is set: the first failure, else a stop, else done."""
        ended = self._first_failure or next((p for p in self.ranks if p.code == ExitCode.SAVED), self.ranks[0])
        assert ended.code is not None
        if (report := self._words_of(ended)) is not None:
            return report
        message = f"rank {ended.rank} left no report"
        if ended.lines:
            message += "; its last lines:\n" + "\n".join(ended.lines)
        return RankReport(
            code=ended.code, attempt=self._worker.attempt, rank=ended.rank, message=message, reported=False
        )

    def _words_of(self, process: RankProcess) -> RankReport | None:
        """The report of an ended rank, if it is about this end: a rank can be killed after it has written one."""
        try:
            text = report_path(self._worker.folder, local_rank=process.local_rank).read_text()
            report = RankReport.from_json(text)
        except (FileNotFoundError, ValueError):
            return None
        return report if report.code == process.code else None

    def _on_output(self, process: RankProcess) -> bool:
        """Take what is there; whether more may follow at once."""
        try:
            chunk = os.read(process.output, 65536)
        except BlockingIOError:
            return False
        if not chunk:
            asyncio.get_running_loop().remove_reader(process.output)
        process.pending += chunk
        *lines, rest = bytes(process.pending).split(b"\n")
        process.pending[:] = rest
        for line in lines:
            self._say(process, line)
        return bool(chunk)

    def _say(self, process: RankProcess, line: bytes) -> None:
        text = line.decode(errors="replace")
        process.lines.append(text)
        self._on_line(f"[rank {process.rank}] {text}")

    def _on_exit(self, process: RankProcess) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(process.pidfd)
        os.close(process.pidfd)
        _signal_session(process.pid, signal.SIGKILL)  # what it started must not outlive it; its pid is not free yet
        while self._on_output(process):  # its last words are in the pipe
            continue
        loop.remove_reader(process.output)
        os.close(process.output)
        if process.pending:
            self._say(process, bytes(process.pending))
        _, status = os.waitpid(process.pid, 0)
        process.code = os.waitstatus_to_exitcode(status)
        good = process.code == ExitCode.DONE or (process.code == ExitCode.SAVED and self._words_of(process) is not None)
        if not good and self._first_failure is None:
            self._first_failure = process
            self.kill()
        if all(p.code is not None for p in self.ranks):
            self.ended.set()

    def _signal_all(self, number: int) -> None:
        for process in self.ranks:
            if process.code is None:
                _signal_session(process.pid, number)


def _signal_session(pid: int, number: int) -> None:
    # SIGTERM is for the rank alone: what it started (uploads) must live until it is done.
    targets = _session_members(pid) if number == signal.SIGKILL else [pid]
    for target in targets:
        try:
            os.kill(target, number)
        except ProcessLookupError:
            continue


def _session_members(session: int) -> list[int]:
    members = [session]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == session and int(entry.name) != session:
                members.append(int(entry.name))
    return members

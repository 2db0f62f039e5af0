"""The warm process: imports the training program once, then forks ranks in milliseconds.

Started by the agent (`python -m steadfast_agent.zygote FD MODULE`), it answers on a socket pair: one JSON request and
the rank's file descriptors in, one JSON reply out. It double-forks, so that ranks become children of the agent (a
subreaper), which alone reaps and kills them. A fork is only safe while this process has a single thread and has not
touched a GPU: both are checked before each, and a rank that cannot be forked is executed cold instead.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
MAX_MESSAGE = 1 << 20

# Set before the imports: numpy and torch start their thread pools by them, and a fork would lose the threads.
WARM_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def prctl(option: int, value: int) -> None:
    """Call prctl(2).

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@dataclass(frozen=True, kw_only=True)
class Forked:
    """A started rank."""

    pid: int
    warm: bool
    """False: it had to be executed from scratch; `reason` says why."""
    reason: str = ""


class Zygote:
    """The agent's handle on its warm process."""

    def __init__(self, process_id: int, connection: socket.socket) -> None:
        self.pid = process_id
        self._connection = connection

    @classmethod
    def start(cls, module: str, *, env: dict[str, str]) -> Zygote:
        """Start warming; returns at once."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.set_inheritable(True)
        command = [sys.executable, "-m", "steadfast_agent.zygote", str(theirs.fileno()), module]
        pid = os.posix_spawn(sys.executable, command, WARM_ENVIRONMENT | env)
        theirs.close()
        return cls(pid, ours)

    def wait_warm(self) -> float:
        """Block until the imports are done; return the seconds they took.

        Raises:
            RuntimeError: the program cannot be imported; the message has the traceback.
        """
        return float(self._reply()["import_seconds"])

    def fork(self, env: dict[str, str], *, fds: list[int]) -> Forked:
        """Start one rank with this environment on top; `fds` are its output, then a listening socket if it has one.

        Raises:
            RuntimeError: it could not be started.
        """
        request = json.dumps({"env": env}).encode()
        socket.send_fds(self._connection, [request], fds)
        reply = self._reply()
        return Forked(pid=reply["pid"], warm=reply["warm"], reason=reply["reason"])

    def _reply(self) -> dict[str, Any]:
        text = self._connection.recv(MAX_MESSAGE)
        reply: dict[str, Any] = json.loads(text) if text else {"error": "the warm process ended"}
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply


def unsafe_to_fork() -> str:
    """Why a fork of this process would break the child; empty when it would not."""
    tasks = os.listdir("/proc/self/task")
    if len(tasks) != 1:
        names = sorted(Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in tasks)
        return f"{len(tasks)} threads: {', '.join(names)}"
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        if target.startswith("/dev/nvidia"):
            return f"open device {target}"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "CUDA is initialised"
    return ""


def serve(connection: socket.socket, module: str) -> None:
    """Import the program, then fork a rank for every request until the agent is gone."""
    agent = os.getppid()
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    started = time.monotonic()
    try:
        program = importlib.import_module(module)
    except BaseException:
        connection.send(json.dumps({"error": f"cannot import {module}:\n{traceback.format_exc()}"}).encode())
        return
    connection.send(json.dumps({"import_seconds": time.monotonic() - started}).encode())
    while True:
        request, fds, _, _ = socket.recv_fds(connection, MAX_MESSAGE, 2)
        if not request:
            return
        env = json.loads(request)["env"]
        reason = unsafe_to_fork()
        pid = _double_fork(program, module, env=env, fds=fds, agent=agent, cold=bool(reason))
        for fd in fds:
            os.close(fd)
        connection.send(json.dumps({"pid": pid, "warm": not reason, "reason": reason}).encode())


def _double_fork(program: Any, module: str, *, env: dict[str, str], fds: list[int], agent: int, cold: bool) -> int:
    pid_read, pid_write = os.pipe()
    middle = os.fork()
    if middle == 0:
        rank = os.fork()
        if rank == 0:
            os.close(pid_read)
            os.close(pid_write)
            _become_rank(program, module, env=env, fds=fds, agent=agent, cold=cold)
        os.write(pid_write, str(rank).encode())
        os._exit(0)
    os.close(pid_write)
    os.waitpid(middle, 0)
    pid = int(os.read(pid_read, 32))
    os.close(pid_read)
    return pid


def _become_rank(program: Any, module: str, *, env: dict[str, str], fds: list[int], agent: int, cold: bool) -> None:
    try:
        os.setsid()
        while os.getppid() != agent:  # until the middle process is gone, its death would be taken for the agent's
            time.sleep(0.001)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != agent:
            os._exit(1)
        output, *listener = fds
        os.dup2(output, 1)
        os.dup2(output, 2)
        if listener:
            os.set_inheritable(listener[0], True)
            env = env | {"STEADFAST_MASTER_LISTEN_FD": str(listener[0])}
        os.environ.update(env)
        if cold:
            os.execv(sys.executable, [sys.executable, "-m", module])
        program.main()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])

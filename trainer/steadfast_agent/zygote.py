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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

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
        rank = _Rank(program, module, env, fds, agent, bool(reason), connection)
        pid = _double_fork(rank)
        for fd in fds:
            os.close(fd)
        connection.send(json.dumps({"pid": pid, "warm": not reason, "reason": reason}).encode())


@dataclass(frozen=True)
class _Rank:
    """A rank to be started."""

    program: Any
    module: str
    env: dict[str, str]
    fds: list[int]
    agent: int
    cold: bool
    connection: socket.socket


def _double_fork(rank: _Rank) -> int:
    pid_read, pid_write = os.pipe()
    sys.stdout.flush()  # or the rank would say once more what the import has said
    sys.stderr.flush()
    middle = os.fork()
    if middle == 0:
        middle = os.getpid()
        pid = os.fork()
        if pid == 0:
            os.close(pid_read)
            os.close(pid_write)
            _become_rank(rank, middle=middle)
        os.write(pid_write, str(pid).encode())
        os._exit(0)
    os.close(pid_write)
    os.waitpid(middle, 0)
    pid = int(os.read(pid_read, 32))
    os.close(pid_read)
    return pid


def _become_rank(rank: _Rank, *, middle: int) -> NoReturn:
    code = 1
    try:
        os.setsid()
        rank.connection.close()  # or the agent would not learn that the warm process has died
        while os.getppid() == middle:  # its death would be taken for the agent's
            time.sleep(0.001)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != rank.agent:
            os._exit(1)
        output, *listener = rank.fds
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        os.environ.update(rank.env)
        if listener:
            os.set_inheritable(listener[0], True)
            os.environ["STEADFAST_MASTER_LISTEN_FD"] = str(listener[0])
        if rank.cold:
            os.execv(sys.executable, [sys.executable, "-m", rank.module])
        rank.program.main()
        code = 0
    except SystemExit as end:
        code = _exit_code(end)
    except BaseException:
        with suppress(OSError, ValueError):
            sys.stdout.flush()  # so that the error comes last
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _exit_code(end: SystemExit) -> int:
    """As the interpreter would leave: None is 0, a text is printed and is 1."""
    if end.code is None or isinstance(end.code, int):
        return (end.code or 0) & 0xFF
    print(end.code, file=sys.stderr)
    return 1


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])

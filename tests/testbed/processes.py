"""Processes of the test bed: started detached, recorded by pid and start time, found again after the driver died.

Each is in the cgroup `steadfast-testbed` of the pids controller, and its children (containerd's shims) with it, so that
`down` finds what no record names.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from testbed.paths import LOGS, STATE, BedError

CGROUPS = Path("/sys/fs/cgroup")
CGROUP = "steadfast-testbed"
_RECORDS = STATE / "pids"
_SYSTEM = CGROUPS / "pids" / CGROUP / "system" / "cgroup.procs"
_LAUNCH = 'echo $$ > "$0" && cd / && exec "$@"'
_children: set[int] = set()


@dataclass(frozen=True)
class Process:
    """One that was started, whether or not it still runs."""

    name: str
    pid: int
    started: str
    """Start time since boot as the kernel counts it: pids are used again, pairs are not."""

    @property
    def runs(self) -> bool:
        return _start_time(self.pid) == self.started


def start(name: str, command: Sequence[object], *, namespace: str | None, mounts_of: Process | None = None) -> Process:
    """Run `command` in a network namespace, or with another's mounts; returns at once, a running one goes on."""
    if (old := recorded(name)) and old.runs:
        return old
    enter = [f"--net=/run/netns/{namespace}"] if namespace else []
    if mounts_of is not None:
        enter.append(f"--mount=/proc/{mounts_of.pid}/ns/mnt")
    if enter:
        enter = ["nsenter", *enter, "--"]
    LOGS.mkdir(parents=True, exist_ok=True)
    log = str(LOGS / f"{name}.log")
    # Not subprocess: its objects complain of processes that outlive them, which these are meant to.
    pid = os.posix_spawnp(
        "sh",
        ["sh", "-c", _LAUNCH, str(_SYSTEM), *enter, *map(str, command)],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigdef=[signal.SIGPIPE],  # Python ignores it, and programs would inherit that
    )
    _children.add(pid)
    process = Process(name, pid, _start_time(pid) or "")
    _RECORDS.mkdir(parents=True, exist_ok=True)
    (_RECORDS / f"{name}.json").write_text(json.dumps({"pid": process.pid, "started": process.started}))
    return process


def recorded(name: str) -> Process | None:
    with suppress(FileNotFoundError, ValueError, KeyError):
        found = json.loads((_RECORDS / f"{name}.json").read_text())
        return Process(name, found["pid"], found["started"])
    return None


def all_recorded() -> list[Process]:
    names = sorted(path.stem for path in _RECORDS.glob("*.json"))
    return [process for name in names if (process := recorded(name))]


def stop(name: str, *, seconds: float = 5.0) -> None:
    """SIGTERM, then SIGKILL; silent when it does not run."""
    process = recorded(name)
    if process is None:
        return
    for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 5.0)):
        if process.runs:
            os.kill(process.pid, number)
        deadline = time.monotonic() + patience
        while process.runs and time.monotonic() < deadline:
            _reap()
            time.sleep(0.02)
    (_RECORDS / f"{name}.json").unlink(missing_ok=True)


def log_end(name: str, lines: int = 8) -> str:
    path = LOGS / f"{name}.log"
    text = path.read_text(errors="replace").splitlines()[-lines:] if path.exists() else []
    return f"the end of {path}:\n" + "\n".join(text)


def wait_until(what: str, ready: Callable[[], bool], *, seconds: float, process: Process | None = None) -> None:
    """Poll until it is so.

    Raises:
        BedError: not within `seconds`, or the process that would make it so has ended.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        if process and not process.runs:
            raise BedError(f"{process.name} ended while we waited until {what}; {log_end(process.name)}")
        if time.monotonic() > deadline:
            raise BedError(f"not within {seconds:.0f} s: {what}" + (f"; {log_end(process.name)}" if process else ""))
        _reap()
        time.sleep(0.1)


# Cgroups


def make_cgroup(path: str) -> None:
    """Create it under every controller, usable: cpuset groups start without a CPU."""
    for controller in _controllers():
        for depth in range(1, len(Path(path).parts) + 1):
            folder = controller.joinpath(*Path(path).parts[:depth])
            folder.mkdir(exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):
                if (file := folder / name).exists() and not file.read_text().strip():
                    file.write_text((folder.parent / name).read_text())


def kill_cgroup(path: str) -> int:
    """SIGKILL to every process of the group and of those below it; returns how many there were."""
    killed: set[int] = set()
    deadline = time.monotonic() + 10
    while pids := _pids_below(path):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed |= pids
        _reap()
        if time.monotonic() > deadline:
            raise BedError(f"processes {sorted(pids)} of the test bed did not die")
        time.sleep(0.05)
    return len(killed)


def remove_cgroup(path: str) -> None:
    for controller in _controllers():
        folders = sorted((controller / path).rglob("*/"), key=lambda each: -len(each.parts))
        for folder in [*folders, controller / path]:
            with suppress(FileNotFoundError, NotADirectoryError):
                folder.rmdir()


def require_cgroup_v1() -> None:
    if not (CGROUPS / "pids" / "cgroup.procs").exists():
        raise BedError("the test bed needs cgroup v1 (or hybrid); elsewhere use kind and STEADFAST_KUBECONFIG")


def _controllers() -> list[Path]:
    return [path for path in CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()]


def _pids_below(path: str) -> set[int]:
    pids: set[int] = set()
    for controller in (CGROUPS / "pids", CGROUPS / "memory"):
        for procs in (controller / path).rglob("cgroup.procs"):
            with suppress(OSError):
                pids |= {int(line) for line in procs.read_text().split()}
    return pids - {0}


def _start_time(pid: int) -> str | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]


def _reap() -> None:
    """Collect those of our own processes that ended: as zombies they would keep their pids."""
    for pid in list(_children):
        with suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                continue
        _children.discard(pid)

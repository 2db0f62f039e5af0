"""What the ranks of a job in the test bed do, seen from the machine that carries its nodes.

Ranks write their progress into a page of shared memory in their pod's folder. All pods, whatever made them, are on
this machine: one clock, no request between a step and its observation, nothing that favours a system.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.systems import FOLDER, WORKERS

from steadfast_contract.folder import pulse_path
from steadfast_contract.heartbeat import PULSE_BYTES, Pulse, unpack_pulse
from testbed.paths import STATE
from testbed.processes import CGROUP, CGROUPS

POLL_SECONDS = 0.02
_PULSE = pulse_path(FOLDER, local_rank=0).name


@dataclass(frozen=True)
class FirstStep:
    """The first optimizer step that a whole gang finished."""

    at: float
    """When its last rank had finished it; Unix seconds."""
    resumed_from: int


def first_step(pulses: Iterable[Pulse], *, after: float) -> FirstStep | None:
    """The first step of the gang that began after that time; None while a rank of it has done none.

    A rank's `first_step_at` is that of its own process, so a step of the gang before never counts.
    """
    new = [pulse for pulse in pulses if pulse.first_step_at > after]
    if len(new) < WORKERS or len({pulse.resumed_from for pulse in new}) > 1:
        return None
    return FirstStep(max(pulse.first_step_at for pulse in new), new[0].resumed_from)


def wait_for_first_step(namespace: str, *, after: float, seconds: float = 150) -> FirstStep:
    """Poll until there is one.

    Raises:
        TimeoutError: there is none.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := first_step(read_pulses(namespace), after=after):
            return found
        time.sleep(POLL_SECONDS)
    raise TimeoutError(f"no gang in {namespace} finished a step within {seconds:.0f} s")


def wait_for_checkpoint(namespace: str, *, of: FirstStep, steps: int = 25, seconds: float = 120) -> int:
    """Let the gang train on, past a checkpoint of its own; returns that checkpoint's step.

    Raises:
        TimeoutError: it does not.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        gang = [pulse for pulse in read_pulses(namespace) if of.at - 60 < pulse.first_step_at <= of.at]
        committed = max((pulse.committed for pulse in gang), default=-1)
        done = min((pulse.step for pulse in gang), default=0) - of.resumed_from
        if done >= steps and committed > of.resumed_from:
            return committed
        time.sleep(POLL_SECONDS)
    raise TimeoutError(f"the gang in {namespace} made no checkpoint within {seconds:.0f} s")


def read_pulses(namespace: str) -> list[Pulse]:
    """Of every pod of the namespace that has one, ended pods included."""
    found = (read_pulse(path) for uid in pod_uids(namespace) for path in _in_folder_of(uid))
    return [pulse for pulse in found if pulse is not None]


def read_pulse(path: Path) -> Pulse | None:
    """Without a memory map: a container that starts again truncates the file, which would end its readers."""
    for _ in range(100):
        try:
            page, again = path.read_bytes(), path.read_bytes()
        except OSError:
            return None
        if len(page) != PULSE_BYTES:
            return None
        if page == again and (pulse := unpack_pulse(page)) is not None:
            return pulse
    return None


def pod_uids(namespace: str) -> list[str]:
    """From the folders of their logs: `<namespace>_<pod>_<uid>`."""
    return [folder.name.rpartition("_")[2] for folder in STATE.glob(f"nodes/*/pod-logs/{namespace}_*")]


def kill_rank(uid: str) -> float:
    """SIGKILL to the pod's one rank; returns the time just before.

    Raises:
        RuntimeError: there is none.
    """
    for procs in (CGROUPS / "pids" / CGROUP).glob(f"*/kubepods/**/pod{uid}/**/cgroup.procs"):
        for pid in map(int, procs.read_text().split()):
            if writes_pulse(_maps(pid)):
                at = time.time()
                os.kill(pid, signal.SIGKILL)
                return at
    raise RuntimeError(f"pod {uid} has no rank")


def writes_pulse(maps: str) -> bool:
    """Whether it is a rank's `/proc/PID/maps`; others only read the page."""
    lines = (line.split() for line in maps.splitlines())
    return any(line[1] == "rw-s" and line[-1].endswith(f"/{_PULSE}") for line in lines)


def _in_folder_of(uid: str) -> list[Path]:
    volume = Path("volumes", "kubernetes.io~empty-dir", "work")
    return list(STATE.glob(f"nodes/*/own/kubelet/pods/{uid}/{volume}/{_PULSE}"))


def _maps(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return ""

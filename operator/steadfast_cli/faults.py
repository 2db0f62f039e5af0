"""Faults on demand, to see a job survive them: `--fault "kill worker 1 at step 40"`."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from steadfast_contract.folder import pulse_path
from steadfast_contract.heartbeat import read_pulse
from steadfast_operator.api.types import TrainingJob
from steadfast_operator.shell.local import LocalCluster, send_signal

POLL_SECONDS = 0.01
GRAMMAR = "kill|freeze worker|rank N at step S, for example 'kill worker 1 at step 40'"
_FAULT = re.compile(r"(kill|freeze) (worker|rank) (\d+) at step (\d+)")
_SIGNALS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing to break, once."""

    verb: str
    target: str
    """`worker` (the agent, and with it its ranks) or `rank`."""
    number: int
    """Node rank of the worker, or rank."""
    step: int
    """When this step is finished."""

    def __str__(self) -> str:
        return f"{self.verb} {self.target} {self.number} at step {self.step}"


def parse_fault(text: str, *, job: TrainingJob, steps: int) -> Fault:
    """Read a fault and check that it can happen to this job.

    Raises:
        ValueError: it is malformed, or names a worker, rank or step that the job does not have.
    """
    match = _FAULT.fullmatch(" ".join(text.split()))
    if match is None:
        raise ValueError(f"{text!r} is no fault: write {GRAMMAR}")
    verb, target, number, step = match[1], match[2], int(match[3]), int(match[4])
    have = job.spec.workers if target == "worker" else job.spec.workers * job.spec.ranks
    if number >= have:
        raise ValueError(f"{text!r}: the job has {have} {target}s, numbered from 0")
    if not 1 <= step < steps:
        raise ValueError(f"{text!r}: the job has {steps} steps, a fault happens after one of 1 to {steps - 1}")
    return Fault(verb=verb, target=target, number=number, step=step)


async def inject(
    faults: list[Fault], cluster: LocalCluster, *, attempt: Callable[[], int], on_fault: Callable[[Fault, float], None]
) -> None:
    """Cause each fault once, as soon as rank 0 has finished its step, in the order of steps."""
    for fault in sorted(faults, key=lambda fault: fault.step):
        while not _strike(fault, cluster, attempt=attempt()):  # noqa: ASYNC110 - shared memory wakes nobody
            await asyncio.sleep(POLL_SECONDS)
        on_fault(fault, time.time())


def _strike(fault: Fault, cluster: LocalCluster, *, attempt: int) -> bool:
    first = cluster.member(0, attempt=attempt)
    pulse = read_pulse(pulse_path(str(first.folder), local_rank=0)) if first else None
    if pulse is None or pulse.step < fault.step or not pulse.first_step_at:
        return False
    ranks = 1 if fault.target == "worker" else cluster.ranks_per_worker
    victim = cluster.member(fault.number // ranks, attempt=attempt)
    if victim is None or victim.status is None or not victim.status.pids:
        return False
    pid = victim.process.pid if fault.target == "worker" else victim.status.pids[fault.number % ranks]
    send_signal(pid, _SIGNALS[fault.verb])
    return True

"""From a failure to the next optimizer step of the whole gang, in a cluster: Steadfast beside its peers.

`rank-killed`: SIGKILL to the last rank. `worker-deleted`: `kubectl delete pod` of the last worker, five seconds of
grace. Peers get a fresh job for each failure, because some back off ever longer; Steadfast gets them all in a row.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from bench import gang
from bench.cluster_job import attempt_ended, delete_pod, last_worker, load, place, repeats, running, say
from bench.report import publish, row
from bench.systems import SYSTEMS, Place, System

OURS, PEERS = {"rank-killed": 20, "worker-deleted": 10}, 5
IN_A_ROW = 4
Fault = Callable[[System, str, Place], float]


def kill_rank(system: System, job: str, at: Place) -> float:
    return gang.kill_rank(last_worker(system, job, at)[1])


def delete_worker(system: System, job: str, at: Place) -> float:
    return delete_pod(last_worker(system, job, at)[0], at)


FAULTS: dict[str, Fault] = {"rank-killed": kill_rank, "worker-deleted": delete_worker}


class Recovery(NamedTuple):
    """What followed one failure; seconds since it."""

    seconds: float
    """To the first step of the whole new gang."""
    decided: float | None
    """To the operator's decision to end the attempt; the peers tell nobody theirs."""


def main(only: list[str]) -> None:
    """All systems, or those named."""
    rows = []
    with place() as at:
        before = load()
        for case in FAULTS:
            rows += compare(case, [system for name, system in SYSTEMS.items() if not only or name in only], at=at)
        if not only or "pytorchjob" in only:
            rows.append(in_a_row(SYSTEMS["pytorchjob"], at=at))
    publish("restart", rows, note=f"load {before} before, {load()} after")


def compare(case: str, systems: list[System], *, at: Place) -> list[dict[str, Any]]:
    """A row for each system: peers in turns, so that the machine's mood meets all, then Steadfast."""
    found: dict[str, list[Recovery]] = {system.name: [] for system in systems}
    unfinished = dict.fromkeys(found, 0)
    for number in range(repeats(PEERS)):
        for system in systems:
            if system.name == "steadfast":
                continue
            try:
                found[system.name] += measure(system, f"{system.name}-{case}-{number}", case, at=at)
            except TimeoutError as error:
                unfinished[system.name] += 1
                say(f"{system.name}: {error}")
    decided = []
    if "steadfast" in found:
        system, times = SYSTEMS["steadfast"], repeats(OURS[case])
        found["steadfast"] = measure(system, f"steadfast-{case}", case, at=at, times=times)
        values = [each.decided for each in found["steadfast"] if each.decided is not None]
        decided.append(row(f"{case}-decided", "steadfast", values))
    missing = {name: {"unfinished": count} if count else {} for name, count in unfinished.items()}
    rows = [row(case, name, [each.seconds for each in all_], **missing[name]) for name, all_ in found.items()]
    return rows + decided


def in_a_row(system: System, *, at: Place) -> dict[str, Any]:
    """How recovery slows down with each failure of one job."""
    found = measure(system, f"{system.name}-in-a-row", "rank-killed", at=at, times=repeats(IN_A_ROW))
    seconds = [round(each.seconds, 3) for each in found]
    return row("rank-killed-in-a-row", system.name, seconds, in_order=seconds)


def measure(system: System, job: str, case: str, *, at: Place, times: int = 1) -> list[Recovery]:
    """Fault after fault on one job, each once its gang has saved a checkpoint of its own.

    Raises:
        TimeoutError: no new gang came.
        RuntimeError: one did not go on from its newest checkpoint.
    """
    found = []
    with running(system, job, at) as (_, first):
        for number in range(times):
            committed = gang.wait_for_checkpoint(at.namespace, of=first)
            before = FAULTS[case](system, job, at)
            first = gang.wait_for_first_step(at.namespace, after=before)
            ended = attempt_ended(job, at) if system.name == "steadfast" else None
            found.append(Recovery(first.at - before, ended and ended - before))
            say(f"{job} {number + 1}/{times}: {found[-1].seconds:.2f} s")
            if first.resumed_from < committed:
                raise RuntimeError(f"{job} resumed from {first.resumed_from}, but had saved {committed}")
    return found


if __name__ == "__main__":
    main(sys.argv[1:])

"""From a pod to a worker: how far it is, since when it is ending, and how it ended. `kube.py` calls it. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from steadfast_contract.exits import FailureClass, RankReport, failure_class
from steadfast_operator.api import labels
from steadfast_operator.core.observation import Worker, WorkerEnd, WorkerPhase
from steadfast_operator.core.pods import CONTAINER

Object = dict[str, Any]

_PHASES = {phase.value: phase for phase in WorkerPhase}
_TAKEN = {
    "DeletionByTaintManager": FailureClass.NODE_LOST,
    "DeletionByPodGC": FailureClass.NODE_LOST,
    "PreemptionByScheduler": FailureClass.PREEMPTED,
}
"""Reasons of the condition DisruptionTarget that are more than an eviction."""


def worker_of(pod: Object) -> Worker:
    """The worker that a pod is, without anything that only its agent knows.

    Raises:
        ValueError: the pod lacks a label of ours.
    """
    meta, status = pod["metadata"], pod.get("status", {})
    try:
        serial, attempt = (int(meta["labels"][label]) for label in (labels.SERIAL, labels.ATTEMPT))
    except (KeyError, ValueError) as error:
        raise ValueError(f"pod {meta['namespace']}/{meta['name']} is not labelled as a worker: {error}") from error
    phase = _PHASES.get(status.get("phase", "Pending"), WorkerPhase.RUNNING)  # Unknown: nothing says that it ended
    return Worker(
        name=meta["name"],
        serial=serial,
        attempt=attempt,
        phase=phase,
        created_at=instant(meta["creationTimestamp"]),
        terminating_since=_terminating_since(meta),
        end=_end(pod, phase) if phase in (WorkerPhase.SUCCEEDED, WorkerPhase.FAILED) else None,
    )


def instant(text: str) -> datetime:
    """A time as Kubernetes writes it."""
    return datetime.fromisoformat(text).astimezone(UTC)


def _terminating_since(meta: Object) -> datetime | None:
    """When the deletion was asked for; the API server notes when its grace is over."""
    if "deletionTimestamp" not in meta:
        return None
    return instant(meta["deletionTimestamp"]) - timedelta(seconds=meta.get("deletionGracePeriodSeconds") or 0)


def _end(pod: Object, phase: WorkerPhase) -> WorkerEnd:
    terminated = _terminated(pod)
    code, at = terminated.get("exitCode", 0 if phase == WorkerPhase.SUCCEEDED else 137), _ended_at(pod, terminated)
    try:
        report = RankReport.from_json(terminated.get("message", ""))
    except ValueError:
        report = None
    words = report.message if report else terminated.get("message") or pod["status"].get("message", "")
    rank = report.rank if report else None
    if phase == WorkerPhase.SUCCEEDED:
        return WorkerEnd(code=code, failure_class=None, message=words, rank=rank, at=at)
    if taken := _taken(pod):
        reason, why = taken
        return WorkerEnd(code=code, failure_class=reason, message=why, rank=None, at=at)
    if terminated.get("reason") == "OOMKilled":
        memory = "the kernel killed it for its memory; raise spec.resources.limits.memory"
        return WorkerEnd(code=code, failure_class=FailureClass.OUT_OF_MEMORY, message=memory, rank=rank, at=at)
    if report is None:
        why = words or pod["status"].get("reason") or "its agent left no report; see the pod's log"
        return WorkerEnd(code=code, failure_class=FailureClass.AGENT_LOST, message=why, rank=None, at=at)
    kind = failure_class(report.code, reported=report.reported)
    return WorkerEnd(code=report.code, failure_class=kind, message=words, rank=rank, at=at)


def _terminated(pod: Object) -> Object:
    """How the container ended; empty when the kubelet never said."""
    statuses = pod["status"].get("containerStatuses") or []
    found: Object = next((one for one in statuses if one["name"] == CONTAINER), {})
    terminated: Object = found.get("state", {}).get("terminated") or {}
    return terminated


def _taken(pod: Object) -> tuple[FailureClass, str] | None:
    """Why Kubernetes took the worker away, if it did."""
    for condition in pod["status"].get("conditions") or []:
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            reason = condition.get("reason", "")
            return _TAKEN.get(reason, FailureClass.EVICTED), f"{reason}: {condition.get('message', '')}"
    if pod["status"].get("reason") in ("Evicted", "Preempting", "Shutdown", "Terminated", "NodeShutdown"):
        return FailureClass.EVICTED, f"{pod['status']['reason']}: {pod['status'].get('message', '')}"
    return None


def _ended_at(pod: Object, terminated: Object) -> datetime:
    """When its container ended, or the last thing that is known about the pod happened."""
    if finished := terminated.get("finishedAt"):
        return instant(finished)
    conditions = pod["status"].get("conditions") or []
    times = [instant(one["lastTransitionTime"]) for one in conditions if one.get("lastTransitionTime")]
    return max([instant(pod["metadata"]["creationTimestamp"]), *times])

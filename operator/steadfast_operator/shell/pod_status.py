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
    taken, taken_because = _taken(status)
    report = _report(status)
    return Worker(
        name=meta["name"],
        serial=serial,
        attempt=attempt,
        phase=phase,
        created_at=instant(meta["creationTimestamp"]),
        placed_at=_placed_at(status),
        waiting=_waiting(status) if phase == WorkerPhase.PENDING else "",
        started_at=_started_at(status),
        terminating_since=_terminating_since(meta),
        grace_seconds=meta.get("deletionGracePeriodSeconds") or 0,
        taken=taken,
        taken_because=taken_because,
        progress=report.progress if report else None,
        end=_end(pod, phase) if phase in (WorkerPhase.SUCCEEDED, WorkerPhase.FAILED) else None,
    )


def instant(text: str) -> datetime:
    """A time as Kubernetes writes it."""
    return datetime.fromisoformat(text).astimezone(UTC)


def _placed_at(status: Object) -> datetime | None:
    """When the scheduler, or whoever it was, chose a node."""
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "True":
            return instant(condition["lastTransitionTime"])
    return None


def _waiting(status: Object) -> str:
    """Why a pending pod does not run yet."""
    waiting: Object = _container(status).get("state", {}).get("waiting") or {}
    conditions = [one for one in status.get("conditions") or [] if one["type"] == "PodScheduled"]
    for told in (waiting, *(one for one in conditions if one["status"] != "True")):
        if told.get("reason"):
            return f"{told['reason']}: {told.get('message', '')}".removesuffix(": ")
    return ""


def _started_at(status: Object) -> datetime | None:
    state = _container(status).get("state", {})
    told = (state.get("running") or state.get("terminated") or {}).get("startedAt")
    return instant(told) if told else None


def _terminating_since(meta: Object) -> datetime | None:
    """When the deletion was asked for; the API server notes when its grace is over."""
    if "deletionTimestamp" not in meta:
        return None
    return instant(meta["deletionTimestamp"]) - timedelta(seconds=meta.get("deletionGracePeriodSeconds") or 0)


def _end(pod: Object, phase: WorkerPhase) -> WorkerEnd:
    terminated, report = _terminated(pod["status"]), _report(pod["status"])
    code, at = terminated.get("exitCode", 0 if phase == WorkerPhase.SUCCEEDED else 137), _ended_at(pod, terminated)
    words = report.message if report else terminated.get("message") or pod["status"].get("message", "")
    rank = report.rank if report else None
    if phase == WorkerPhase.SUCCEEDED:
        return WorkerEnd(code=code, failure_class=None, message=words, rank=rank, at=at)
    taken, why = _taken(pod["status"])
    if taken is not None:
        return WorkerEnd(code=code, failure_class=taken, message=why, rank=None, at=at)
    if terminated.get("reason") == "OOMKilled":
        memory = "the kernel killed it for its memory; raise spec.resources.limits.memory"
        return WorkerEnd(code=code, failure_class=FailureClass.OUT_OF_MEMORY, message=memory, rank=rank, at=at)
    if report is None:
        why = words or pod["status"].get("reason") or "its agent left no report; see the pod's log"
        return WorkerEnd(code=code, failure_class=FailureClass.AGENT_LOST, message=why, rank=None, at=at)
    kind = failure_class(report.code, reported=report.reported)
    return WorkerEnd(code=report.code, failure_class=kind, message=words, rank=rank, at=at)


def _container(status: Object) -> Object:
    """What the kubelet says about our container."""
    statuses = status.get("containerStatuses") or []
    found: Object = next((one for one in statuses if one["name"] == CONTAINER), {})
    return found


def _terminated(status: Object) -> Object:
    """How the container ended; empty when the kubelet never said."""
    terminated: Object = _container(status).get("state", {}).get("terminated") or {}
    return terminated


def _report(status: Object) -> RankReport | None:
    """The agent's last words."""
    try:
        return RankReport.from_json(_terminated(status).get("message", ""))
    except ValueError:
        return None


def _taken(status: Object) -> tuple[FailureClass | None, str]:
    """Why Kubernetes takes the worker away, if it does."""
    for condition in status.get("conditions") or []:
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            reason = condition.get("reason", "")
            return _TAKEN.get(reason, FailureClass.EVICTED), f"{reason}: {condition.get('message', '')}"
    if status.get("reason") in ("Evicted", "Preempting", "Shutdown", "Terminated", "NodeShutdown"):
        return FailureClass.EVICTED, f"{status['reason']}: {status.get('message', '')}"
    return None, ""


def _ended_at(pod: Object, terminated: Object) -> datetime:
    """When its container ended, or the last thing that is known about the pod happened."""
    if finished := terminated.get("finishedAt"):
        return instant(finished)
    conditions = pod["status"].get("conditions") or []
    times = [instant(one["lastTransitionTime"]) for one in conditions if one.get("lastTransitionTime")]
    return max([instant(pod["metadata"]["creationTimestamp"]), *times])

"""From a pod's status to a worker: a table of what kubelets and controllers write."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from steadfast_contract.exits import FailureClass, RankReport
from steadfast_contract.heartbeat import Pulse
from steadfast_operator.core.observation import WorkerPhase
from steadfast_operator.shell.pod_status import worker_of

CREATED, ENDED = "2026-01-01T12:00:00Z", "2026-01-01T12:05:00Z"
REPORT = RankReport(code=72, attempt=1, rank=3, message="a peer is gone").to_json()
WORDLESS = RankReport(code=-9, attempt=1, rank=1, message="rank 1 left no report", reported=False).to_json()
SAVED = RankReport(code=75, attempt=1, rank=0, message="saved").to_json()


def a_pod(meta: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    labels = {"steadfast.dev/serial": "4", "steadfast.dev/attempt": "2", "steadfast.dev/node-rank": "0"}
    name = {"name": "moe-7e1f5-4", "namespace": "research", "labels": labels, "creationTimestamp": CREATED}
    return {"metadata": name | (meta or {}), "status": status}


def terminated(code: int, message: str = "", reason: str = "Error") -> list[dict[str, Any]]:
    state = {"exitCode": code, "message": message, "reason": reason, "finishedAt": ENDED}
    return [
        {"name": "injected", "state": {"terminated": {"exitCode": 1, "message": "not ours"}}},
        {"name": "worker", "state": {"terminated": state}},
    ]


def disrupted(reason: str) -> list[dict[str, Any]]:
    return [
        {"type": "Ready", "status": "False", "lastTransitionTime": ENDED},
        {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "why", "lastTransitionTime": None},
    ]


ENDS = [
    pytest.param({"containerStatuses": terminated(72, REPORT)}, "CollectiveError", "a peer is gone", 3, id="a report"),
    pytest.param(
        {"containerStatuses": terminated(137, WORDLESS)}, "Unknown", "rank 1 left no report", 1, id="a killed rank"
    ),
    pytest.param({"containerStatuses": terminated(75, SAVED)}, "Preempted", "saved", 0, id="stopped after saving"),
    pytest.param(
        {"containerStatuses": terminated(137)}, "AgentLost", "its agent left no report", None, id="a killed agent"
    ),
    pytest.param({"containerStatuses": terminated(1, "Traceback")}, "AgentLost", "Traceback", None, id="other words"),
    pytest.param(
        {"containerStatuses": terminated(137, reason="OOMKilled")}, "OutOfMemory", "limits.memory", None, id="OOM kill"
    ),
    pytest.param(
        {"containerStatuses": terminated(137, WORDLESS, "OOMKilled")}, "OutOfMemory", "kernel", 1, id="OOM, reported"
    ),
    pytest.param(
        {"conditions": disrupted("EvictionByEvictionAPI"), "containerStatuses": terminated(75, SAVED)},
        "Evicted",
        "EvictionByEvictionAPI: why",
        None,
        id="evicted, though it saved",
    ),
    pytest.param({"conditions": disrupted("PreemptionByScheduler")}, "Preempted", "why", None, id="preempted"),
    pytest.param({"conditions": disrupted("DeletionByTaintManager")}, "NodeLost", "why", None, id="its node is gone"),
    pytest.param(
        {"reason": "Evicted", "message": "low on memory"},
        "Evicted",
        "Evicted: low on memory",
        None,
        id="by the kubelet",
    ),
    pytest.param({"reason": "UnexpectedAdmissionError"}, "AgentLost", "UnexpectedAdmissionError", None, id="refused"),
]


@pytest.mark.parametrize(("status", "failure_class", "message", "rank"), ENDS)
def test_how_a_worker_ended(status: dict[str, Any], failure_class: str, message: str, rank: int | None) -> None:
    worker = worker_of(a_pod(phase="Failed", **status))
    assert worker.phase == WorkerPhase.FAILED
    assert worker.end is not None
    assert worker.end.failure_class == FailureClass(failure_class)
    assert message in worker.end.message
    assert worker.end.rank == rank


def test_a_worker_that_is_done_has_no_failure() -> None:
    end = worker_of(a_pod(phase="Succeeded", containerStatuses=terminated(0, reason="Completed"))).end
    assert end is not None
    assert (end.code, end.failure_class, end.at) == (0, None, datetime(2026, 1, 1, 12, 5, tzinfo=UTC))


@pytest.mark.parametrize(
    ("phase", "seen"), [("Pending", "Pending"), ("Running", "Running"), ("Unknown", "Running"), (None, "Pending")]
)
def test_phases(phase: str | None, seen: str) -> None:
    worker = worker_of(a_pod(**({"phase": phase} if phase else {})))
    assert (worker.phase, worker.end, worker.ready) == (seen, None, False)
    assert (worker.serial, worker.attempt, worker.name) == (4, 2, "moe-7e1f5-4")


def test_a_deletion_began_its_grace_before_its_end() -> None:
    meta = {"deletionTimestamp": "2026-01-01T12:01:30Z", "deletionGracePeriodSeconds": 60}
    worker = worker_of(a_pod(meta, phase="Running"))
    assert worker.terminating_since == datetime(2026, 1, 1, 12, 0, 30, tzinfo=UTC)

    assert worker.grace_seconds == 60


def test_who_takes_a_worker_off_its_node_is_known_while_it_ends() -> None:
    meta = {"deletionTimestamp": ENDED, "deletionGracePeriodSeconds": 60}
    worker = worker_of(a_pod(meta, phase="Running", conditions=disrupted("DeletionByTaintManager")))
    assert (worker.taken, worker.taken_because) == (FailureClass.NODE_LOST, "DeletionByTaintManager: why")
    assert worker.end is None


SCHEDULED = {"type": "PodScheduled", "status": "True", "lastTransitionTime": ENDED}
UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
PULLING = {"name": "worker", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}


@pytest.mark.parametrize(
    ("status", "placed", "waiting"),
    [
        pytest.param({}, False, "", id="nobody has looked at it"),
        pytest.param({"conditions": [UNSCHEDULABLE]}, False, "Unschedulable: 0/3 nodes", id="no room"),
        pytest.param({"conditions": [SCHEDULED]}, True, "", id="a node, no kubelet"),
        pytest.param(
            {"conditions": [SCHEDULED], "containerStatuses": [PULLING]},
            True,
            "ImagePullBackOff: no such image",
            id="no image",
        ),
    ],
)
def test_what_a_pending_worker_waits_for(status: dict[str, Any], placed: bool, waiting: str) -> None:
    worker = worker_of(a_pod(phase="Pending", **status))
    assert (worker.placed_at is not None, worker.waiting, worker.started_at) == (placed, waiting, None)


def test_a_worker_starts_with_its_container() -> None:
    running = [{"name": "worker", "state": {"running": {"startedAt": ENDED}}}]
    assert worker_of(a_pod(phase="Running", containerStatuses=running)).started_at == datetime(
        2026, 1, 1, 12, 5, tzinfo=UTC
    )


def test_the_last_words_tell_how_far_it_got() -> None:
    words = RankReport(code=0, attempt=1, progress=Pulse(step=7)).to_json()
    worker = worker_of(a_pod(phase="Succeeded", containerStatuses=terminated(0, words)))
    assert worker.progress == Pulse(step=7)


def test_an_end_without_a_time_is_the_last_thing_that_happened() -> None:
    late = worker_of(a_pod(phase="Failed", conditions=disrupted("EvictionByEvictionAPI"))).end
    bare = worker_of(a_pod(phase="Failed")).end
    assert late is not None
    assert bare is not None
    assert (late.at.minute, bare.at.minute) == (5, 0)


@pytest.mark.parametrize("labels", [{}, {"steadfast.dev/serial": "x", "steadfast.dev/attempt": "1"}])
def test_a_pod_without_our_labels_is_no_worker(labels: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="is not labelled as a worker"):
        worker_of(a_pod({"labels": labels}))

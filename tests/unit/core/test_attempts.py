"""Records, adoption and history of attempts; what a new worker is told."""

from __future__ import annotations

import pytest

from builders import JOB_UID, a_job
from core_builders import NOW, a_look, a_record, ago, with_status
from steadfast_contract.env import WorkerEnv
from steadfast_operator.api.types import AttemptStatus, TrainingJobStatus
from steadfast_operator.core.actions import CreateWorker
from steadfast_operator.core.attempts import moved_to, next_record, reason_to_begin
from steadfast_operator.core.workers import worker_env


def test_number_and_serials_follow_from_the_status_alone() -> None:
    seen = with_status(a_look(), attempt=4, next_serial=9)
    record = next_record(seen, seen.status)
    assert (record.number, record.serials, record.created_at) == (5, (9, 10), NOW)


def test_an_adopted_record_brings_its_own_roster_reason_and_digest() -> None:
    found = a_record(3, number=5, serials=(9, 10, 11), reason="Preempted", config_digest="sha256:old")
    ours = TrainingJobStatus(attempt=5, next_serial=11, config_digest="sha256:new", started=ago(500), restart_at=NOW)
    status = moved_to(ours, found)
    assert (status.attempt, status.next_serial, status.config_digest) == (5, 12, "sha256:old")
    assert (status.started, status.restart_at) == (ago(500), None)
    assert status.attempts == [AttemptStatus(number=5, reason="Preempted", started=found.created_at)]


def test_adopting_an_attempt_that_is_in_the_history_replaces_its_entry() -> None:
    begun = moved_to(TrainingJobStatus(), a_record(reason="Resumed"))
    assert [a.reason for a in moved_to(begun, a_record()).attempts] == ["FirstStart"]


def test_the_history_keeps_the_newest_ten() -> None:
    status = TrainingJobStatus()
    for number in range(1, 15):
        status = moved_to(status, a_record(number=number))
    assert [a.number for a in status.attempts] == list(range(5, 15))


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({}, "FirstStart"),
        ({"attempt": 3}, "FirstStart"),
        ({"attempt": 1, "attempts": [AttemptStatus(number=1, reason="x", started=NOW, outcome="odd")]}, "WorkerFailed"),
    ],
)
def test_reason_to_begin_without_a_usual_past(status: dict[str, object], reason: str) -> None:
    assert reason_to_begin(with_status(a_look(), **status)) == reason


def test_a_worker_is_told_its_place() -> None:
    job = a_job(**{"spec.ranksPerWorker": 4})
    action = CreateWorker(serial=7, attempt=3, node_rank=1, num_workers=2, master="10.0.0.1:29500")
    assert worker_env(job, action, training="{}") == WorkerEnv(
        job="research/moe",
        job_uid=JOB_UID,
        worker="moe-7e1f5-7",
        attempt=3,
        node_rank=1,
        num_workers=2,
        ranks_per_worker=4,
        master="10.0.0.1:29500",
        training="{}",
    )

"""One case for each branch of `decide`, asserting the whole decision, and the cases that are not quite it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from core_builders import (
    BOTH,
    DIGEST,
    MASTER,
    NOW,
    a_gang,
    a_look,
    a_member,
    a_record,
    a_start,
    a_worker,
    ago,
    altered,
    an_end,
    delete,
    ended,
    event,
    failed,
    settled,
    told,
    with_spec,
    with_status,
)
from steadfast_contract.exits import FailureClass
from steadfast_operator.api.types import AttemptStatus
from steadfast_operator.core.actions import CreateRecord, CreateWorker, EventType
from steadfast_operator.core.decide import decide
from steadfast_operator.core.observation import Observation, WorkerPhase


def create(node_rank: int, *, master: str = "", attempt: int = 1, size: int = 2) -> CreateWorker:
    return CreateWorker(serial=node_rank, attempt=attempt, node_rank=node_rank, num_workers=size, master=master)


def succeeded(seen: Observation, *node_ranks: int, at: float = 1) -> Observation:
    for node_rank in node_ranks:
        seen = altered(seen, node_rank, phase=WorkerPhase.SUCCEEDED, end=an_end(None, at=ago(at)))
    return seen


def finished(seen: Observation) -> Observation:
    return settled(succeeded(seen, *(w.serial for w in seen.workers)))


def test_a_new_job_begins_attempt_1_by_writing_it_down_and_creates_nothing_yet() -> None:
    seen = a_look()
    record = a_record(created_at=NOW)
    message = "Attempt 1 began with 2 workers."
    assert told(seen) == {
        "reason": "FirstStart",
        "message": message,
        "actions": (CreateRecord(record=record), event("FirstStart", message)),
        "wake": 0.5,
        "changes": {
            "observed_generation": 1,
            "attempt": 1,
            "next_serial": 2,
            "config_digest": DIGEST,
            "started": NOW,
            "conditions": {"Accepted": ("True", "Accepted")},
            "attempts": [AttemptStatus(number=1, reason="FirstStart", started=NOW)],
            "state": "Starting",
            "workers_ready": "0/2",
        },
    }


@pytest.mark.parametrize(
    ("seen", "reason", "message", "actions"),
    [
        pytest.param(
            a_start(),
            "StartingWorkers",
            "The first of 2 workers is created.",
            (create(0),),
            id="node rank 0 is created first",
        ),
        pytest.param(
            a_start(workers=(a_worker(0, created_at=ago(1)),)),
            "WaitingForWorkers",
            "Node rank 0 has not told its address yet.",
            (),
            id="the others wait for node rank 0's address",
        ),
        pytest.param(
            a_start(3, workers=(a_member(0, progress=None),)),
            "StartingWorkers",
            "2 of 3 workers are created.",
            (create(1, master=MASTER, size=3), create(2, master=MASTER, size=3)),
            id="all others are created with node rank 0's address",
        ),
        pytest.param(
            a_start(3, workers=(a_member(0, progress=None), a_worker(2, created_at=ago(1)))),
            "StartingWorkers",
            "1 of 3 workers are created.",
            (create(1, master=MASTER, size=3),),
            id="an operator that died half way creates only the missing one",
        ),
        pytest.param(
            a_start(workers=(a_member(0, progress=None), a_worker(1, created_at=ago(1)))),
            "WaitingForWorkers",
            "1 of 2 workers have answered; none trains yet.",
            (),
            id="a whole gang that does not train yet is waited for",
        ),
    ],
)
def test_starting(seen: Observation, reason: str, message: str, actions: tuple[object, ...]) -> None:
    assert told(seen) == {"reason": reason, "message": message, "actions": actions, "wake": 0.5, "changes": {}}


def test_a_training_gang_needs_nothing_but_another_look() -> None:
    expected = {"reason": "Training", "message": "Attempt 1 trains on 2 workers.", "actions": ()}
    assert told(a_gang()) == expected | {"wake": 5, "changes": {}}


def test_a_failure_ends_the_attempt_counts_it_and_stops_the_gang_at_once() -> None:
    seen = failed(a_gang(), 1, FailureClass.GPU_FAULT)
    message = "GpuFault of moe-7e1f5-1: exit code 70 (USER_ERROR): boom"
    decision = told(seen)
    restarts, last = decision["changes"].pop("restarts"), decision["changes"].pop("last_failure")
    assert decision == {
        "reason": "WorkerFailed",
        "message": message,
        "actions": (delete(BOTH, "WorkerFailed"), event("WorkerFailed", message, EventType.WARNING)),
        "wake": 0.5,
        "changes": {
            "attempts": {"ended": NOW, "outcome": "WorkerFailed"},
            "conditions": {"Running": ("False", "WorkerFailed"), "Restarting": ("True", "WorkerFailed")},
            "state": "Restarting",
            "workers_ready": "1/2",
        },
    }
    assert (restarts.total, restarts.by_class, restarts.recent) == (1, {"GpuFault": 1}, [NOW])
    assert (last.class_, last.worker, last.rank, last.remedy) == (
        "GpuFault",
        "moe-7e1f5-1",
        3,
        "A new attempt begins at once.",
    )


def test_an_evicted_gang_is_whole_and_may_save() -> None:
    seen = altered(a_gang(), 1, terminating_since=ago(1))
    decision = decide(seen)
    assert decision.actions[0] == delete(BOTH[:1], "Preempted", grace=60)
    assert decision.status.restart_at == NOW + timedelta(seconds=1)
    assert (decision.status.restarts.by_class, decision.status.restarts.recent) == ({"Evicted": 1}, [])


def test_a_failure_that_another_attempt_would_meet_again_stops_the_job() -> None:
    seen = failed(a_gang(), 1, FailureClass.DATA_ERROR)
    decision = told(seen)
    assert decision["changes"].pop("last_failure").remedy == "The job was stopped: NotRetryable."
    message = "DataError: exit code 70 (USER_ERROR): boom"
    assert decision == {
        "reason": "NotRetryable",
        "message": message,
        "actions": (delete(BOTH[:1], "NotRetryable"), event("NotRetryable", message, EventType.WARNING)),
        "wake": 0.5,
        "changes": {
            "finished": NOW,
            "attempts": {"ended": NOW, "outcome": "NotRetryable"},
            "conditions": {"Running": ("False", "NotRetryable"), "Failed": ("True", "NotRetryable")},
            "state": "Failed",
            "workers_ready": "1/2",
        },
    }


@pytest.mark.parametrize(
    ("outcome", "status", "reason"),
    [
        pytest.param("WorkerFailed", {}, "WorkerFailed", id="after a failure"),
        pytest.param("Preempted", {}, "Preempted", id="after an eviction"),
        pytest.param("Suspended", {}, "Resumed", id="after a suspension"),
        pytest.param("ConfigurationChanged", {}, "ConfigurationChanged", id="after an edit during the start"),
        pytest.param("WorkerFailed", {"restart_at": NOW}, "WorkerFailed", id="when the back-off is just over"),
    ],
)
def test_the_next_attempt_has_a_new_number_and_new_serials(outcome: str, status: Any, reason: str) -> None:
    seen = with_status(ended(a_gang(), outcome), **status)
    decision = decide(seen)
    record = a_record(number=2, serials=(2, 3), reason=reason, created_at=NOW)
    assert decision.actions[0] == CreateRecord(record=record)
    assert (decision.reason, decision.status.attempt, decision.status.next_serial) == (reason, 2, 4)
    assert (decision.status.restart_at, decision.status.attempts[-1].reason) == (None, reason)


def test_a_changed_configuration_is_in_the_next_record() -> None:
    seen = with_spec(replace(ended(a_gang(), "Suspended"), config_digest="sha256:new"), workers=3)
    (create_record, _) = decide(seen).actions
    assert isinstance(create_record, CreateRecord)
    assert (create_record.record.config_digest, create_record.record.serials) == ("sha256:new", (2, 3, 4))


def test_backing_off_waits_exactly_as_long_as_it_must() -> None:
    seen = settled(ended(a_gang(), "WorkerFailed", restart_at=NOW + timedelta(seconds=7)))
    message = "The next attempt begins at 2026-01-01T12:00:07Z."
    assert told(seen) == {"reason": "BackingOff", "message": message, "actions": (), "wake": 7, "changes": {}}


@pytest.mark.parametrize(
    ("old", "actions", "reason"),
    [
        pytest.param({}, (delete(BOTH[:1], "StoppingWorkers"),), "StoppingWorkers", id="a living one is stopped"),
        pytest.param({"terminating_since": ago(9)}, (), "StoppingWorkers", id="a stopping one is waited for"),
        pytest.param(
            {"terminating_since": ago(60), "grace_seconds": 60, "ready": True},
            (),
            "StoppingWorkers",
            id="one that answers may be saving",
        ),
        pytest.param({"terminating_since": ago(10), "ready": False}, None, "WorkerFailed", id="a stuck one is left"),
        pytest.param(
            {"terminating_since": ago(70), "grace_seconds": 60, "ready": True},
            None,
            "WorkerFailed",
            id="even if it answers",
        ),
        pytest.param(
            {"terminating_since": ago(10), "ready": True}, None, "WorkerFailed", id="one without grace saves nothing"
        ),
        pytest.param(
            {"phase": WorkerPhase.FAILED, "terminating_since": ago(1)}, None, "WorkerFailed", id="an ended one is none"
        ),
    ],
)
def test_workers_of_an_ended_attempt(old: dict[str, Any], actions: Any, reason: str) -> None:
    seen = replace(ended(a_gang(), "WorkerFailed"), workers=(a_member(0, **{"ready": False} | old),))
    decision = decide(seen)
    assert decision.reason == reason
    if actions is not None:
        assert decision.actions == actions
    else:
        assert isinstance(decision.actions[0], CreateRecord)


@pytest.mark.parametrize(
    "outsider",
    [
        pytest.param(a_worker(7, attempt=3), id="of an attempt that nobody knows"),
        pytest.param(a_worker(7, attempt=1), id="of this attempt but not in its roster"),
    ],
)
def test_a_worker_that_the_attempt_does_not_want_is_stopped(outsider: Any) -> None:
    seen = replace(a_gang(), workers=(*a_gang().workers, outsider))
    assert decide(seen).actions == (delete((outsider.name,), "StoppingWorkers"),)


def test_a_stuck_worker_of_an_old_attempt_does_not_disturb_a_training_gang() -> None:
    seen = replace(a_gang(), workers=(*a_gang().workers, a_worker(7, attempt=0, terminating_since=ago(11))))
    assert (decide(seen).reason, decide(seen).actions) == ("Training", ())


def test_success_needs_every_worker() -> None:
    message = "All workers finished."
    decision = told(succeeded(a_gang(), 0, 1))
    assert decision == {
        "reason": "Completed",
        "message": message,
        "actions": (event("Completed", message),),
        "wake": 0.5,
        "changes": {
            "finished": NOW,
            "attempts": {"ended": NOW, "outcome": "Completed"},
            "conditions": {"Running": ("False", "Completed"), "Succeeded": ("True", "Completed")},
            "state": "Succeeded",
            "workers_ready": "0/2",
        },
    }
    assert decide(succeeded(a_gang(), 0)).reason == "Training"
    assert decide(succeeded(a_start(workers=(a_member(0),)), 0)).reason == "StartingWorkers"


def test_work_that_is_done_is_done_even_if_the_job_is_suspended_or_late() -> None:
    seen = with_spec(succeeded(a_gang(), 0, 1), suspend=True, active_deadline_seconds=10)
    assert decide(seen).reason == "Completed"


@pytest.mark.parametrize(
    ("workers", "actions", "wake"),
    [
        pytest.param((), (), None, id="nothing is left"),
        pytest.param((a_member(0, phase=WorkerPhase.SUCCEEDED),), (), None, id="an ended worker keeps its logs"),
        pytest.param((a_member(0),), (delete(BOTH[:1], "Completed"),), 0.5, id="a leftover is stopped"),
        pytest.param((a_member(0, terminating_since=ago(1)),), (), 0.5, id="a stopping one is waited for"),
        pytest.param((a_member(0, terminating_since=ago(99)),), (), None, id="a stuck one is left"),
        pytest.param((a_worker(9, attempt=9),), (delete(("moe-7e1f5-9",), "Completed"),), 0.5, id="an alien goes"),
    ],
)
def test_a_finished_job_is_only_tidied_up(workers: Any, actions: Any, wake: float | None) -> None:
    decision = told(replace(finished(a_gang()), workers=workers))
    assert (decision["actions"], decision["wake"], decision["changes"]) == (actions, wake, {})


def test_nothing_restarts_a_finished_job() -> None:
    seen = with_spec(replace(finished(a_gang()), workers=(), record=None, problems=("bad",)), suspend=True)
    assert told(seen)["actions"] == ()
    assert told(seen)["reason"] == "Completed"


def test_a_deleted_job_lets_its_workers_save() -> None:
    seen = a_gang()
    meta = seen.job.metadata.model_copy(update={"deletion_timestamp": NOW})
    decision = told(replace(seen, job=seen.job.model_copy(update={"metadata": meta})))
    message = "Its last workers are ending."
    expected = {"reason": "Deleting", "message": message, "actions": (delete(BOTH, "Deleting", 60),)}
    assert decision == expected | {"wake": 0.5, "changes": {}}


def test_the_deadline_fails_the_job_and_lets_it_save() -> None:
    seen = with_spec(a_gang(), active_deadline_seconds=100)
    message = "The job ran longer than 100 s."
    decision = decide(seen)
    assert (decision.reason, decision.status.state) == ("DeadlineExceeded", "Failed")
    assert decision.actions == (
        delete(BOTH, "DeadlineExceeded", 60),
        event("DeadlineExceeded", message, EventType.WARNING),
    )


def test_the_deadline_also_ends_a_back_off() -> None:
    later = NOW + timedelta(seconds=9)
    seen = with_spec(ended(a_gang(), "WorkerFailed", restart_at=later), active_deadline_seconds=100)
    status = decide(seen).status
    assert (status.state, status.restart_at, status.finished) == ("Failed", None, NOW)
    assert (status.attempts[-1].ended, status.attempts[-1].outcome) == (ago(5), "WorkerFailed")


@pytest.mark.parametrize(
    ("seen", "wake"),
    [
        pytest.param(with_spec(a_gang(), active_deadline_seconds=102), 2, id="a deadline before the next look"),
        pytest.param(with_spec(a_gang(), active_deadline_seconds=200), 5, id="a deadline after the next look"),
        pytest.param(
            with_spec(ended(a_gang(), "Suspended"), suspend=True, active_deadline_seconds=200), 100, id="suspended"
        ),
        pytest.param(with_spec(ended(a_gang(), "Suspended"), suspend=True), None, id="suspended without a deadline"),
    ],
)
def test_the_next_look_is_not_later_than_the_deadline(seen: Observation, wake: float | None) -> None:
    assert decide(seen).wake_after_seconds == wake


def test_an_invalid_job_gets_no_worker_and_one_event() -> None:
    seen = a_look(problems=("spec.model: no.",))
    expected = {"reason": "InvalidSpec", "message": "spec.model: no.", "wake": 15}
    decision = told(seen)
    assert decision["changes"].pop("conditions") == {"Accepted": ("False", "InvalidSpec")}
    assert decision["changes"] == {"observed_generation": 1, "state": "Invalid", "workers_ready": "0/2"}
    assert decision["actions"] == (event("InvalidSpec", "spec.model: no.", EventType.WARNING),)
    assert told(settled(seen)) == expected | {"actions": (), "changes": {}}


def test_an_invalid_edit_does_not_touch_a_running_gang_but_is_told() -> None:
    decision = told(replace(a_gang(), problems=("no",), config_digest=""))
    assert (decision["reason"], decision["actions"]) == ("Training", ())
    assert decision["changes"] == {"conditions": {"Accepted": ("False", "InvalidSpec")}}


def test_after_a_failure_an_invalid_spec_stops_what_is_left_and_starts_nothing() -> None:
    seen = replace(ended(a_gang(), "WorkerFailed"), workers=(a_member(1),), problems=("no",))
    decision = decide(seen)
    assert (decision.reason, decision.actions[0]) == ("InvalidSpec", delete(BOTH[1:], "InvalidSpec"))


@pytest.mark.parametrize("edit", [{"config_digest": "sha256:new"}, {"problems": ("no",)}])
def test_a_spec_that_changes_during_the_start_makes_no_mixed_gang(edit: dict[str, Any]) -> None:
    decision = decide(replace(a_start(workers=(a_member(0, progress=None),)), **edit))
    assert decision.actions == (delete(BOTH[:1], "ConfigurationChanged"),)
    assert decision.status.attempts[-1].outcome == "ConfigurationChanged"
    assert decision.status.restarts.total == 0


def test_a_spec_that_changes_later_waits_for_the_next_attempt() -> None:
    assert decide(replace(a_gang(), config_digest="sha256:new")).reason == "Training"


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [("WorkerFailed", "Restarted"), ("Preempted", "Restarted"), ("Suspended", "Resumed")],
)
def test_the_event_of_a_new_attempt_leaves_its_cause_to_the_event_of_the_end(outcome: str, reason: str) -> None:
    (_, told_) = decide(ended(a_gang(), outcome)).actions
    assert told_ == event(reason, "Attempt 2 began with 2 workers.")

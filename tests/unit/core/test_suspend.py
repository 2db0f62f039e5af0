"""Suspension: save, stop, rest, and go on."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from core_builders import BOTH, NOW, a_gang, a_look, after, ago, delete, ended, event, failed, settled, told, with_spec
from steadfast_contract.exits import FailureClass
from steadfast_operator.core.decide import decide


def test_workers_save_and_stop() -> None:
    seen = with_spec(a_gang(), suspend=True)
    expected = {"reason": "Suspending", "message": "Workers save and stop.", "wake": 0.5}
    assert told(seen) == expected | {
        "actions": (delete(BOTH, "Suspending", 60),),
        "changes": {
            "attempts": {"ended": NOW, "outcome": "Suspended"},
            "conditions": {"Running": ("False", "Suspending")},
            "state": "Suspending",
        },
    }


def test_saving_workers_are_waited_for() -> None:
    seen = settled(with_spec(a_gang(), suspend=True))
    seen = replace(seen, workers=tuple(replace(w, terminating_since=ago(30), grace_seconds=60) for w in seen.workers))
    assert (decide(seen).reason, decide(seen).actions) == ("Suspending", ())
    assert decide(after(seen, 40)).reason == "Suspended"


def test_at_rest() -> None:
    seen = replace(settled(with_spec(a_gang(), suspend=True)), workers=())
    message = "No worker runs; spec.suspend is true."
    decision = decide(seen)
    assert decision.actions == (event("Suspended", message),)
    assert told(settled(seen)) == {
        "reason": "Suspended",
        "message": message,
        "actions": (),
        "wake": None,
        "changes": {},
    }


def test_saved_ranks_are_no_failure() -> None:
    seen = failed(settled(with_spec(a_gang(), suspend=True)), 1, FailureClass.PREEMPTED, code=75)
    decision = decide(seen)
    assert (decision.reason, decision.status.restarts.total) == ("Suspending", 0)


def test_before_the_first_attempt() -> None:
    seen = a_look(**{"spec.suspend": True})
    assert decide(seen).reason == "Suspended"
    assert decide(with_spec(settled(seen), suspend=False)).reason == "FirstStart"


def test_while_backing_off_it_forgets_the_back_off() -> None:
    seen = with_spec(ended(a_gang(), "WorkerFailed", restart_at=NOW + timedelta(seconds=9)), suspend=True)
    decision = decide(seen)
    assert (decision.reason, decision.status.restart_at) == ("Suspended", None)
    assert decision.status.attempts[-1].ended == ago(5)
    assert decide(with_spec(settled(seen), suspend=False)).reason == "Resumed"


def test_taken_back_while_workers_save_they_may_finish_saving() -> None:
    seen = with_spec(settled(with_spec(a_gang(), suspend=True)), suspend=False)
    assert decide(seen).actions == (delete(BOTH, "StoppingWorkers", 60),)
    saving = replace(seen, workers=tuple(replace(w, terminating_since=ago(30), grace_seconds=60) for w in seen.workers))
    assert (decide(saving).reason, decide(saving).actions) == ("StoppingWorkers", ())

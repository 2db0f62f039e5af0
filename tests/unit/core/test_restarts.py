"""Whether a failure is worth another attempt: one case for each verdict, and its edge."""

from __future__ import annotations

from typing import Any

import pytest

from builders import a_job
from core_builders import NOW, ago
from steadfast_contract.exits import FailureClass
from steadfast_operator.api.types import Restarts, TrainingJobStatus
from steadfast_operator.core.failures import Failure
from steadfast_operator.core.observation import Limits
from steadfast_operator.core.restarts import NOT_FAILURES, NOT_RETRYABLE, GiveUp, Restart, count, verdict

ALL = list(FailureClass)
RETRIED = [kind for kind in ALL if kind not in NOT_RETRYABLE]
COUNTED = [kind for kind in RETRIED if kind not in NOT_FAILURES]
USER = [FailureClass.USER_ERROR, FailureClass.NON_FINITE_LOSS]
INFRASTRUCTURE = [kind for kind in COUNTED if kind not in USER]


def judged(kind: FailureClass, *, max_restarts: int = 10, limits: Limits | None = None, **restarts: Any) -> Any:
    failure = Failure(failure_class=kind, worker="w", rank=0, evidence="boom", at=NOW)
    status = TrainingJobStatus(restarts=Restarts(**restarts))
    spec = a_job(**{"spec.faultTolerance.maxRestarts": max_restarts}).spec
    return verdict(failure, status, spec=spec, limits=limits or Limits(), now=NOW)


@pytest.mark.parametrize("kind", sorted(NOT_RETRYABLE))
def test_what_the_next_attempt_would_meet_again_stops_the_job(kind: FailureClass) -> None:
    assert judged(kind) == GiveUp(reason="NotRetryable", message=f"{kind}: boom")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", COUNTED)
def test_the_first_restart_is_immediate(kind: FailureClass) -> None:
    assert judged(kind) == Restart(delay_seconds=0, counts=True)


@pytest.mark.parametrize(("before", "delay"), [(0, 0), (1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (8, 60)])
def test_back_off_doubles_from_the_second_failure_without_progress(before: int, delay: float) -> None:
    assert judged(FailureClass.HANG, without_progress=before) == Restart(delay_seconds=delay, counts=True)


def test_back_off_does_not_overflow() -> None:
    limits = Limits(attempts_without_progress=10**6)
    assert judged(FailureClass.HANG, limits=limits, without_progress=5000).delay_seconds == 60


@pytest.mark.parametrize("kind", sorted(NOT_FAILURES))
def test_preemption_and_eviction_spend_nothing(kind: FailureClass) -> None:
    spent = {"without_progress": 99, "by_class": {"UserError": 99, kind: 99}, "recent": [NOW] * 200}
    assert judged(kind, **spent) == Restart(delay_seconds=1, counts=False)


@pytest.mark.parametrize("kind", USER)
def test_user_errors_spend_max_restarts_together(kind: FailureClass) -> None:
    one_left, none_left = {"UserError": 1, "Hang": 50}, {"UserError": 1, "NonFiniteLoss": 1}
    assert judged(kind, max_restarts=2, by_class=one_left) == Restart(delay_seconds=0, counts=True)
    assert judged(kind, max_restarts=2, by_class=none_left) == GiveUp(
        reason="RestartBudgetSpent",  # type: ignore[arg-type]
        message=f"All 2 restarts for user errors are spent. {kind}: boom",
    )


@pytest.mark.parametrize("kind", INFRASTRUCTURE)
def test_infrastructure_never_spends_max_restarts(kind: FailureClass) -> None:
    assert isinstance(judged(kind, max_restarts=0), Restart)


@pytest.mark.parametrize("kind", INFRASTRUCTURE)
def test_too_many_restarts_within_an_hour_are_a_storm(kind: FailureClass) -> None:
    limits = Limits(restarts_per_hour=3)
    assert isinstance(judged(kind, limits=limits, recent=[ago(3600), ago(3599), ago(1)]), Restart)
    assert judged(kind, limits=limits, recent=[ago(3599), ago(2), ago(1)]) == GiveUp(
        reason="RestartStorm",  # type: ignore[arg-type]
        message=f"3 restarts within an hour. {kind}: boom",
    )


@pytest.mark.parametrize("kind", COUNTED)
def test_failing_again_and_again_without_progress_stops_the_job(kind: FailureClass) -> None:
    assert isinstance(judged(kind, without_progress=8), Restart)
    assert judged(kind, without_progress=9) == GiveUp(
        reason="NoProgress",  # type: ignore[arg-type]
        message=f"10 failures in a row without progress. {kind}: boom",
    )


@pytest.mark.parametrize(
    ("kind", "counts", "expected"),
    [
        pytest.param(
            FailureClass.HANG,
            True,
            Restarts(total=6, by_class={"Hang": 2}, recent=[ago(10), NOW], without_progress=3),
            id="infrastructure counts towards the storm",
        ),
        pytest.param(
            FailureClass.USER_ERROR,
            True,
            Restarts(total=6, by_class={"Hang": 1, "UserError": 1}, recent=[ago(10)], without_progress=3),
            id="a user error does not",
        ),
        pytest.param(
            FailureClass.EVICTED,
            False,
            Restarts(total=6, by_class={"Hang": 1, "Evicted": 1}, recent=[ago(10)], without_progress=2),
            id="an eviction is only noted",
        ),
    ],
)
def test_count(kind: FailureClass, counts: bool, expected: Restarts) -> None:
    before = Restarts(total=5, by_class={"Hang": 1}, recent=[ago(4000), ago(10)], without_progress=2)
    failure = Failure(failure_class=kind, worker="w", rank=0, evidence="boom", at=NOW)
    assert count(before, failure, restart=Restart(delay_seconds=0, counts=counts), now=NOW) == expected


def test_the_list_of_recent_restarts_stays_within_its_bound() -> None:
    failure = Failure(failure_class=FailureClass.HANG, worker="w", rank=0, evidence="boom", at=NOW)
    before = Restarts(recent=[ago(1)] * 256)
    counted = count(before, failure, restart=Restart(delay_seconds=0, counts=True), now=NOW)
    assert counted.recent == [ago(1)] * 255 + [NOW]

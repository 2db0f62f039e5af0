"""What a look puts into the status: progress, checkpoint, conditions, bounds."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from core_builders import (
    NOW,
    a_gang,
    a_look,
    a_pulse,
    after,
    ago,
    altered,
    changes,
    failed,
    settled,
    told,
    with_spec,
    with_status,
)
from steadfast_contract.exits import FailureClass
from steadfast_contract.heartbeat import Phase
from steadfast_operator.api.reasons import ConditionType, Reason
from steadfast_operator.api.types import CheckpointStatus, ProgressStatus, TrainingJobStatus
from steadfast_operator.core import status as statuses
from steadfast_operator.core.decide import decide
from steadfast_operator.core.observation import Observation
from steadfast_operator.core.status import Standing, observed, shortened, standing


def pulsing(seen: Observation, **pulse: Any) -> Observation:
    return altered(seen, 0, progress=a_pulse(**pulse))


def condition(status: TrainingJobStatus, kind: str) -> Any:
    return next(c for c in status.conditions if c.type == kind)


def test_progress_is_node_rank_0s() -> None:
    seen = altered(a_gang(), 1, progress=a_pulse(step=9))
    assert observed(seen).progress == ProgressStatus(
        step=4,
        steps=10,
        tokens=1024,
        loss=2.5,
        tokens_per_second=256.0,
        percent=40.0,
        eta=NOW + timedelta(seconds=5),  # 6 steps of 256 tokens at 256 tokens/s, counted from a second ago
        updated=ago(1),
    )


@pytest.mark.parametrize(
    ("pulse", "expected"),
    [
        pytest.param({"step": -1}, {"step": 0, "loss": None, "eta": None, "percent": 0}, id="no step yet"),
        pytest.param({"loss": float("nan")}, {"loss": None}, id="a loss that is no number"),
        pytest.param({"tokens_per_second": float("inf")}, {"tokens_per_second": None, "eta": None}, id="no speed"),
        pytest.param({"tokens_per_second": 1e-9}, {"eta": None}, id="an end that no calendar holds"),
        pytest.param({"steps": 0}, {"percent": 0.0}, id="unknown length"),
        pytest.param({"step": 12}, {"percent": 100.0}, id="more steps than the run has"),
        pytest.param({"updated_at": 1e30}, {"updated": NOW}, id="a clock that runs ahead"),
    ],
)
def test_odd_pulses(pulse: dict[str, Any], expected: dict[str, Any]) -> None:
    progress = observed(pulsing(with_status(a_gang(), progress=None), **pulse)).progress
    assert progress is not None
    assert {key: getattr(progress, key) for key in expected} == expected


def test_progress_is_written_at_its_own_pace() -> None:
    seen = a_gang()
    soon, later = (pulsing(after(seen, s), step=5, updated_at=after(seen, s).now.timestamp()) for s in (3.9, 4.0))
    assert changes(seen.status, observed(soon)) == {}
    assert set(changes(seen.status, observed(later))) == {"progress", "restarts"}


def test_progress_is_written_at_once_when_a_checkpoint_is_complete_or_a_worker_ends() -> None:
    seen = a_gang()
    assert set(changes(seen.status, observed(pulsing(seen, step=5, committed=3)))) >= {"progress", "checkpoint"}
    ended = failed(pulsing(seen, step=5), 1, FailureClass.HANG)
    assert "progress" in changes(seen.status, observed(ended))


def test_a_newer_checkpoint_is_noted_once_and_proves_progress() -> None:
    seen = with_status(a_gang(), restarts=a_gang().status.restarts.model_copy(update={"without_progress": 4}))
    status = observed(pulsing(seen, committed=3))
    expected = CheckpointStatus(step=3, uri="s3://runs/research/moe/step-000000000003", at=NOW)
    assert (status.checkpoint, status.restarts.without_progress) == (expected, 0)
    again = observed(after(with_status(pulsing(seen, committed=3), status), 60))
    assert again.checkpoint == expected


def test_the_checkpoint_never_goes_back() -> None:
    known = CheckpointStatus(step=8, uri="s3://runs/x", at=ago(50))
    assert observed(pulsing(with_status(a_gang(), checkpoint=known), committed=3)).checkpoint == known


@pytest.mark.parametrize(("step", "without_progress"), [(7, 4), (8, 0)])
def test_only_a_step_beyond_the_best_is_progress(step: int, without_progress: int) -> None:
    restarts = a_gang().status.restarts.model_copy(update={"without_progress": 4, "best_step": 7})
    seen = with_status(a_gang(), restarts=restarts, progress=None)
    counted = observed(pulsing(seen, step=step)).restarts
    assert (counted.without_progress, counted.best_step) == (without_progress, max(step, 7))


def test_a_condition_keeps_its_transition_time_until_its_status_changes() -> None:
    seen = after(a_gang(), 60)
    told_before = condition(seen.status, "Running").last_transition_time
    edited = with_spec(seen, suspend=False)
    edited = replace(
        edited,
        job=edited.job.model_copy(update={"metadata": edited.job.metadata.model_copy(update={"generation": 7})}),
    )
    running = condition(settled(edited).status, "Running")
    assert (running.last_transition_time, running.observed_generation) == (told_before, 7)
    stopped = settled(failed(edited, 1, FailureClass.HANG)).status
    assert condition(stopped, "Running").last_transition_time == seen.now
    assert stopped.observed_generation == 7


@pytest.mark.parametrize("kind", [None, *statuses.STANDINGS])
def test_at_most_one_standing_holds(kind: ConditionType | None) -> None:
    seen = a_gang()
    status = standing(seen, seen.status, Standing(kind, Reason.TRAINING, "x"))
    assert [c.type for c in status.conditions if c.status == "True" and c.type != "Accepted"] == [kind] * bool(kind)
    assert status.state == (kind or "Starting")


def test_long_texts_lose_their_middle_and_fit() -> None:
    assert shortened("abc", 3) == "abc"
    assert shortened("a" * 50 + "b" * 50, 15) == "aaaaa ... bbbbb"
    seen = failed(a_gang(), 1, FailureClass.DATA_ERROR, message="x" * 5000)
    status = settled(seen).status
    assert TrainingJobStatus.model_validate_json(status.model_dump_json(by_alias=True)) == status
    assert len(settled(a_look(problems=("y" * 5000,))).status.conditions[0].message) == 1024


def test_ready_workers_are_counted_of_those_that_the_attempt_has() -> None:
    assert a_gang(3).status.workers_ready == "3/3"
    assert observed(altered(a_gang(3), 2, ready=False)).workers_ready == "2/3"
    assert observed(with_spec(a_gang(3), workers=5)).workers_ready == "3/3"
    assert observed(a_look(**{"spec.workers": 5})).workers_ready == "0/5"


def test_the_attempt_notes_its_resume_point_and_its_workers() -> None:
    seen = pulsing(a_gang(), resumed_from=6)
    assert told(seen)["changes"] == {"attempts": {"resumed_from": 6}}
    forgotten = replace(a_gang(), workers=a_gang().workers[1:])
    entry = observed(forgotten).attempts[-1]
    assert (entry.workers_created, entry.resumed_from) == (2, 0)


def test_the_eta_is_as_stable_as_the_pulse() -> None:
    first, second = (observed(after(with_status(a_gang(), progress=None), s)).progress for s in (0, 30))
    assert first == second
    assert isinstance(first and first.eta, datetime)


def test_progress_stays_until_a_new_attempt_knows_where_it_goes_on() -> None:
    before = decide(a_gang()).status
    restoring = altered(with_status(a_gang(), before), 0, progress=a_pulse(phase=Phase.RESTORING, step=-1))
    assert decide(after(restoring, 60)).status.progress == before.progress


def test_an_attempt_without_a_step_of_its_own_has_no_loss() -> None:
    restored = altered(a_gang(), 0, progress=a_pulse(step=4, resumed_from=4, loss=0.0))
    progress = decide(after(with_status(restored, progress=None), 60)).status.progress
    assert progress is not None
    assert (progress.step, progress.loss, progress.tokens_per_second) == (4, None, None)

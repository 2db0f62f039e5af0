"""What a run came to, from histories made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from steadfast_cli.summary import FailureSeen, Summary, kept_steps, read_history, summarise
from steadfast_contract.heartbeat import StepRecord

Histories = Sequence[tuple[int, Sequence[StepRecord]]]


def steps(first: int, last: int, *, at: float, seconds: float = 1.0) -> list[StepRecord]:
    """Steps of one attempt; the first ends `at` seconds after the start of the run. Their loss is 100 - step."""
    return [
        StepRecord(step=step, loss=100.0 - step, at=at + (step - first) * seconds) for step in range(first, last + 1)
    ]


def failure(attempt: int, *, happened_at: float = 50, decided_at: float = 51) -> FailureSeen:
    return FailureSeen(
        attempt=attempt, failure="AgentLost", evidence="killed", happened_at=happened_at, decided_at=decided_at
    )


def summary(histories: Histories, *failures: FailureSeen, **overrides: Any) -> Summary:
    defaults: dict[str, Any] = {
        "state": "Succeeded", "steps": 10, "started_at": 0.0, "ended_at": 100.0, "global_batch_tokens": 512,
    }  # fmt: skip
    return summarise(histories=histories, failures=failures, **defaults | overrides)


def test_an_undisturbed_run() -> None:
    seen = summary([(1, steps(1, 20, at=30, seconds=2.0))])
    assert seen.failures == ()
    assert (seen.first_step_at, seen.first_loss) == (30, 99)
    assert seen.final_loss == pytest.approx(sum(range(80, 90)) / 10)
    assert seen.tokens_per_second == 256
    assert seen.wall_seconds == 100
    assert seen.ettr == pytest.approx(20 * 2.0 / 100)


def test_the_first_step_of_an_attempt_counts_as_much_as_a_usual_one() -> None:
    """Its own time holds the start-up: 30 s here, and 40 s after the failure."""
    histories = [(1, steps(1, 10, at=30)), (2, steps(11, 20, at=80))]
    assert summary(histories, failure(1)).ettr == pytest.approx(20 * 1.0 / 100)


def test_steps_that_were_done_twice_count_once() -> None:
    histories = [(1, steps(1, 10, at=10)), (2, steps(6, 20, at=50))]
    seen = summary(histories, failure(1))
    assert seen.ettr == pytest.approx(20 / 100)
    assert seen.failures[0].lost_steps == 5


def test_a_slow_step_does_not_change_the_speed() -> None:
    slow = StepRecord(step=11, loss=1.0, at=60.0)
    seen = summary([(1, [*steps(1, 10, at=1), slow])])
    assert seen.tokens_per_second == 512


@pytest.mark.parametrize(
    ("histories", "failures", "lost"),
    [
        pytest.param([(1, steps(1, 8, at=1)), (2, steps(7, 9, at=60))], [1], [2], id="steps after the checkpoint"),
        pytest.param([(1, steps(1, 8, at=1)), (2, steps(9, 9, at=60))], [1], [0], id="none, when all was saved"),
        pytest.param([(1, steps(1, 8, at=1)), (2, steps(1, 9, at=60))], [1], [8], id="all, without a checkpoint"),
        pytest.param([(1, steps(1, 8, at=1)), (2, [])], [1], [0], id="unknown while nothing has gone on"),
        pytest.param([(1, []), (2, steps(1, 8, at=60))], [1], [0], id="none, when it failed before its first step"),
        pytest.param(
            [(1, steps(1, 8, at=1)), (2, []), (3, steps(7, 9, at=60))], [1, 2], [2, 0],
            id="once, when the next attempt fails before its first step",
        ),
        pytest.param(
            [(1, steps(1, 40, at=1)), (2, steps(31, 35, at=60)), (3, steps(21, 50, at=80))], [1, 2], [10, 15],
            id="more than its own, when a later attempt goes further back",
        ),
        pytest.param([(4, steps(91, 98, at=1)), (5, steps(97, 99, at=60))], [4], [2], id="as well in a continued run"),
    ],
)  # fmt: skip
def test_lost_steps_are(histories: Histories, failures: list[int], lost: list[int]) -> None:
    seen = summary(histories, *(failure(attempt) for attempt in failures))
    assert [restart.lost_steps for restart in seen.failures] == lost


def test_lost_steps_are_all_that_was_done_twice() -> None:
    histories = [(1, steps(1, 40, at=1)), (2, []), (3, steps(31, 35, at=60)), (4, steps(21, 50, at=80))]
    seen = summary(histories, failure(1), failure(2), failure(3))
    done = sum(len(history) for _, history in histories)
    assert sum(restart.lost_steps for restart in seen.failures) == done - len(kept_steps(histories))


@pytest.mark.parametrize(
    ("histories", "recovery"),
    [
        pytest.param([(1, steps(1, 8, at=1)), (2, steps(7, 9, at=62))], 12, id="to the next attempt's first step"),
        pytest.param([(1, steps(1, 8, at=1)), (2, []), (3, steps(7, 9, at=70))], 20, id="past an attempt without any"),
        pytest.param([(1, steps(1, 8, at=1))], None, id="never"),
    ],
)
def test_recovery_takes(histories: Histories, recovery: float | None) -> None:
    (restart,) = summary(histories, failure(1, happened_at=50, decided_at=50.25)).failures
    assert (restart.detection_seconds, restart.recovery_seconds) == (0.25, recovery)
    assert (restart.failure, restart.evidence) == ("AgentLost", "killed")


@pytest.mark.parametrize(
    ("histories", "kept"),
    [
        pytest.param([], {}, id="nothing was done"),
        pytest.param([(1, steps(1, 3, at=1))], {1: 1, 2: 2, 3: 3}, id="one attempt"),
        pytest.param([(1, steps(1, 3, at=1)), (2, steps(3, 4, at=60))], {1: 1, 2: 2, 3: 60, 4: 61}, id="the later one"),
        pytest.param([(1, steps(1, 3, at=1)), (2, [])], {1: 1, 2: 2, 3: 3}, id="an attempt without steps loses none"),
        pytest.param([(1, steps(1, 9, at=1)), (2, steps(3, 4, at=60))], {1: 1, 2: 2, 3: 60, 4: 61}, id="not the lost"),
    ],
)
def test_kept_are(histories: Histories, kept: dict[int, float]) -> None:
    assert {step: record.at for step, record in kept_steps(histories).items()} == kept


def test_a_run_without_a_step_has_no_figures() -> None:
    seen = summary([(1, [])], steps=0, state="Failed")
    figures = (seen.first_step_at, seen.first_loss, seen.final_loss, seen.tokens_per_second, seen.ettr)
    assert figures == (None, None, None, None, None)


def test_a_run_of_one_step_has_no_speed() -> None:
    seen = summary([(1, steps(1, 1, at=1))])
    assert (seen.first_loss, seen.final_loss, seen.tokens_per_second, seen.ettr) == (99, 99, None, 0)


def test_the_report_is_json_with_every_figure() -> None:
    data = json.loads(summary([(1, steps(1, 8, at=1)), (2, steps(7, 9, at=60))], failure(1)).to_json())
    assert data.keys() == Summary.__dataclass_fields__.keys()
    assert data["failures"][0]["lost_steps"] == 2


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param('{"step": 1, "loss": 2.5, "at": 3.0}\n{"step": 2, "loss": 2, "at": 4}\n', [1, 2], id="whole"),
        pytest.param('{"step": 1, "loss": 2.5, "at": 3.0}\n{"step": 2, "lo', [1], id="a last line that was cut off"),
        pytest.param('{"step": 1, "loss": 2.5, "at": 3.0}\n{"step": 2, "loss": 2, "at": 4}', [1], id="but its end"),
        pytest.param('{"step": 1, "loss": NaN, "at": 3.0}\n', [1], id="a loss that is no number"),
        pytest.param("", [], id="empty"),
        pytest.param(None, [], id="no file"),
    ],
)
def test_a_history_is_read(tmp_path: Path, text: str | None, found: list[int]) -> None:
    path = tmp_path / "steps.jsonl"
    if text is not None:
        path.write_text(text)
    assert [record.step for record in read_history(path)] == found

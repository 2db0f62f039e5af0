"""What a person sees of a run, on a terminal and without one."""

from __future__ import annotations

import io
import math
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from steadfast_cli import display
from steadfast_cli.display import PLAIN_SECONDS, Display, summary_table
from steadfast_cli.summary import FailureCost, Summary
from steadfast_contract.heartbeat import Phase, Pulse


class Clock:
    seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(display, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def a_console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, _environ={})


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def a_pulse(**overrides: Any) -> Pulse:
    training: dict[str, Any] = {
        "phase": Phase.TRAINING, "step": 40, "steps": 200, "tokens": 40 * 512, "loss": 5.4321, "committed": 30,
        "tokens_per_second": 1024.0, "first_step_at": 1.0,
    }  # fmt: skip
    return Pulse(**training | overrides)


def lines(*pulses: Pulse | None, clock: Clock, apart: float = PLAIN_SECONDS) -> list[str]:
    """What a run without a terminal prints about these pulses."""
    console = a_console()
    with Display(console, job="moe", steps=200) as shown:
        for pulse in pulses:
            shown.progress(pulse, state="Training", restarts=1)
            clock.seconds += apart
    return text_of(console).splitlines()


def test_what_is_said_has_its_time_and_is_taken_literally(clock: Clock) -> None:
    console = a_console()
    shown = Display(console, job="moe", steps=200)
    clock.seconds += 75.4
    shown.say("WorkerFailed: [rank 1] saw [/tmp/x] " + "x" * 200)
    assert text_of(console) == "0:01:15  WorkerFailed: [rank 1] saw [/tmp/x] " + "x" * 200 + "\n"


@pytest.mark.parametrize(
    ("pulse", "line"),
    [
        pytest.param(
            {}, "step 40/200  loss 5.432  1,024 tokens/s  ETA 0:01:20  checkpoint 30  restarts 1",
            id="loss, speed and what is left",
        ),
        pytest.param(
            {"committed": 0}, "step 40/200  loss 5.432  1,024 tokens/s  ETA 0:01:20  restarts 1",
            id="no checkpoint before the first",
        ),
        pytest.param(
            {"phase": Phase.RESTORING}, "step 40/200  restoring  checkpoint 30  restarts 1",
            id="the phase, when it does not train",
        ),
        pytest.param(
            {"first_step_at": 0.0}, "step 40/200  training  checkpoint 30  restarts 1",
            id="no speed before the first step of the attempt",
        ),
    ],
)  # fmt: skip
def test_a_plain_line_shows(clock: Clock, pulse: dict[str, Any], line: str) -> None:
    assert lines(a_pulse(**pulse), clock=clock) == [f"0:00:00  {line}"]


def test_plain_lines_come_every_ten_seconds(clock: Clock) -> None:
    shown = lines(*(a_pulse(step=step) for step in range(40, 60)), clock=clock, apart=1.0)
    assert [line.split()[:3] for line in shown] == [["0:00:00", "step", "40/200"], ["0:00:10", "step", "50/200"]]


@pytest.mark.parametrize("pulse", [None, Pulse(), a_pulse(step=0)], ids=["no pulse", "an empty pulse", "step 0"])
def test_there_is_no_plain_line_before_the_first_step(clock: Clock, pulse: Pulse | None) -> None:
    assert lines(pulse, clock=clock) == []


EVERY_PULSE = [
    *(pytest.param(a_pulse(phase=phase), id=f"{phase.name.lower()}") for phase in Phase),
    *(pytest.param(Pulse(phase=phase), id=f"{phase.name.lower()} without a step") for phase in Phase),
    pytest.param(None, id="no pulse"),
    pytest.param(a_pulse(tokens_per_second=0.0), id="no speed"),
    pytest.param(a_pulse(loss=math.nan), id="a loss that is no number"),
    pytest.param(a_pulse(step=200, phase=Phase.TRAINING), id="the last step"),
    pytest.param(a_pulse(step=201), id="a step too many"),
]


@pytest.mark.parametrize("pulse", EVERY_PULSE)
@pytest.mark.parametrize("terminal", [False, True], ids=["plain", "terminal"])
def test_every_pulse_can_be_shown(clock: Clock, pulse: Pulse | None, terminal: bool) -> None:
    console = a_console(terminal=terminal)
    with Display(console, job="moe", steps=200) as shown:
        shown.progress(pulse, state="Waiting [/for] workers", restarts=0)
        during = text_of(console)
    if terminal:
        assert "moe" in during
    if terminal and (pulse is None or pulse.step <= 0):
        assert "Waiting [/for] workers" in during
    elif pulse is not None and pulse.step > 0:
        assert f"step {pulse.step}/200" in during


def a_summary(**overrides: Any) -> Summary:
    defaults: dict[str, Any] = {
        "state": "Succeeded", "steps": 200, "first_step_at": 5.0, "first_loss": 8.3, "final_loss": 5.25,
        "tokens_per_second": 1234.5, "restarts": 0, "failures": (), "wall_seconds": 61.25, "ettr": 0.8765,
    }  # fmt: skip
    return Summary(**defaults | overrides)


def rows(summary: Summary) -> list[list[str]]:
    console = a_console()
    console.print(summary_table(summary))
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text_of(console).splitlines() if "│" in line]


def test_the_closing_table_of_an_undisturbed_run() -> None:
    assert rows(a_summary()) == [
        ["state", "Succeeded"],
        ["steps", "200"],
        ["first loss", "8.300"],
        ["final loss (mean of last 10 steps)", "5.250"],
        ["tokens per second", "1,234"],
        ["restarts", "0"],
        ["lost steps", "0"],
        ["wall seconds", "61.2"],
        ["ETTR (start-up included)", "87.6%"],
    ]


def test_the_closing_table_tells_what_each_failure_cost() -> None:
    first = FailureCost(failure="AgentLost", evidence="", detection_seconds=0.016, recovery_seconds=3.0, lost_steps=4)
    second = FailureCost(failure="Hang", evidence="", detection_seconds=1.0, recovery_seconds=None, lost_steps=3)
    shown = rows(a_summary(restarts=1, failures=(first, second)))
    assert shown[5:15] == [
        ["restarts", "1"],
        ["1. failure", "AgentLost"],
        ["detection, seconds", "0.02"],
        ["recovery to first new step, seconds", "3.00"],
        ["lost steps", "4"],
        ["2. failure", "Hang"],
        ["detection, seconds", "1.00"],
        ["recovery to first new step, seconds", "-"],
        ["lost steps", "3"],
        ["lost steps", "7"],
    ]


def test_what_is_not_known_is_a_dash() -> None:
    unknown = dict.fromkeys(("first_loss", "final_loss", "tokens_per_second", "ettr"))
    shown = dict(rows(a_summary(state="Failed", steps=0, **unknown)))
    assert [name for name, value in shown.items() if value == "-"] == [
        "first loss", "final loss (mean of last 10 steps)", "tokens per second", "ETTR (start-up included)",
    ]  # fmt: skip

"""What a local run came to: losses, restarts, seconds lost. Computed from the ranks' own step histories."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from steadfast_contract.heartbeat import StepRecord

LAST_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class FailureCost:
    """One failure and what it cost. Times in seconds."""

    failure: str
    evidence: str
    detection_seconds: float
    """From the injected fault, or else from the worker's end, to the decision."""
    recovery_seconds: float | None
    """From the same moment to the end of the next attempt's first step; None if there was none."""
    lost_steps: int
    """Steps that had to be done again."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A run in figures."""

    state: str
    steps: int
    first_step_at: float | None
    """Unix seconds."""
    first_loss: float | None
    final_loss: float | None
    """Mean of the last ten steps."""
    tokens_per_second: float | None
    restarts: int
    """Failures that a later attempt recovered from."""
    failures: tuple[FailureCost, ...]
    wall_seconds: float
    ettr: float | None
    """Time spent on steps that count, over wall time since the start, start-up included."""

    def to_json(self) -> str:
        """Encode for `--report`."""
        return json.dumps(asdict(self), indent=1)


@dataclass(frozen=True, kw_only=True)
class FailureSeen:
    """A failure as the runtime noticed it; times are Unix seconds."""

    attempt: int
    failure: str
    evidence: str
    happened_at: float
    decided_at: float


def read_history(path: Path) -> list[StepRecord]:
    """Steps of one attempt; a last line that was cut off by a kill is dropped."""
    try:
        lines = path.read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [StepRecord(**json.loads(line)) for line in lines if line.endswith("\n")]


def summarise(
    *,
    state: str,
    steps: int,
    histories: Sequence[tuple[int, Sequence[StepRecord]]],
    failures: Sequence[FailureSeen],
    started_at: float,
    ended_at: float,
    global_batch_tokens: int,
) -> Summary:
    """Put a run's histories (attempt number and steps, in order) and failures together."""
    kept = kept_steps(histories)
    attempt_of = {record.step: number for number, history in histories for record in history}
    durations = [
        kept[step].at - kept[step - 1].at
        for step in kept
        if step - 1 in kept and attempt_of[step - 1] == attempt_of[step]  # a first step includes the start
    ]
    typical = statistics.median(durations) if durations else 0.0
    productive = sum(durations) + typical * (len(kept) - len(durations))
    wall = ended_at - started_at
    losses = [kept[step].loss for step in sorted(kept)]
    costs = tuple(_cost(failure, histories) for failure in failures)
    return Summary(
        state=state,
        steps=steps,
        first_step_at=next((history[0].at for _, history in histories if history), None),
        first_loss=losses[0] if losses else None,
        final_loss=statistics.fmean(losses[-LAST_STEPS:]) if losses else None,
        tokens_per_second=global_batch_tokens / typical if typical else None,
        restarts=sum(cost.recovery_seconds is not None for cost in costs),
        failures=costs,
        wall_seconds=wall,
        ettr=productive / wall if wall > 0 and kept else None,
    )


def kept_steps(histories: Sequence[tuple[int, Sequence[StepRecord]]]) -> dict[int, StepRecord]:
    """Each step as its last attempt did it: what earlier attempts did beyond their successor's start is lost."""
    kept: dict[int, StepRecord] = {}
    for _, history in histories:
        if history:
            kept = {step: record for step, record in kept.items() if step < history[0].step}
            kept |= {record.step: record for record in history}
    return kept


def _cost(failure: FailureSeen, histories: Sequence[tuple[int, Sequence[StepRecord]]]) -> FailureCost:
    own = next((history for number, history in histories if number == failure.attempt), ())
    after = next((history for number, history in histories if number > failure.attempt and history), None)
    lost = own[-1].step - (after[0].step - 1) if own and after else 0
    return FailureCost(
        failure=failure.failure,
        evidence=failure.evidence,
        detection_seconds=failure.decided_at - failure.happened_at,
        recovery_seconds=after[0].at - failure.happened_at if after else None,
        lost_steps=max(0, lost),
    )

"""What `decide` can ask for: a closed union. Each action is safe to repeat; `execute` carries them out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from steadfast_operator.api.reasons import Reason
from steadfast_operator.api.types import TrainingJobStatus
from steadfast_operator.core.observation import AttemptRecord


class EventType(StrEnum):
    """Kubernetes' two kinds of events."""

    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True, kw_only=True)
class CreateRecord:
    """Write down an attempt. An existing record of that number wins and is adopted."""

    record: AttemptRecord


@dataclass(frozen=True, kw_only=True)
class CreateWorker:
    """Create one worker of the current attempt."""

    serial: int
    attempt: int
    node_rank: int
    num_workers: int
    master: str
    """`host:port` of node rank 0; empty for node rank 0 itself."""


@dataclass(frozen=True, kw_only=True)
class DeleteWorkers:
    """End workers: SIGTERM, then SIGKILL after the grace; 0 kills at once."""

    names: tuple[str, ...]
    grace_seconds: int
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class EmitEvent:
    """Tell people, once."""

    type: EventType
    reason: Reason
    message: str


Action = CreateRecord | CreateWorker | DeleteWorkers | EmitEvent


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One step: records first, then the status if it differs, then the other actions in their order."""

    actions: tuple[Action, ...]
    status: TrainingJobStatus
    reason: Reason
    message: str
    wake_after_seconds: float | None
    """Look again after this time even if nothing happens; None: nothing but a change can matter."""

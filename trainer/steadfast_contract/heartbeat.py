"""Progress: from a rank to its agent through shared memory, and from an agent to whoever asks over HTTP.

A rank packs a `Pulse` into a small memory-mapped file; packing never blocks a step. The agent answers
`GET /status` with an `AgentStatus`.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, fields
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any, Self

from steadfast_contract import CONTRACT_VERSION


class Phase(IntEnum):
    """What a rank is doing."""

    STARTING = 0
    RENDEZVOUS = 1
    RESTORING = 2
    TRAINING = 3
    SAVING = 4
    DONE = 5


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """One rank's progress. Times are Unix seconds; a step of -1 means none yet."""

    phase: int = Phase.STARTING
    step: int = -1
    """Newest finished step, counted from 1 over the whole run."""
    steps: int = 0
    """Steps that the run will have."""
    tokens: int = 0
    loss: float = 0.0
    tokens_per_second: float = 0.0
    resumed_from: int = -1
    """Step that this attempt started from; 0 for a fresh start."""
    committed: int = -1
    """Newest checkpoint known to be complete in the bucket."""
    updated_at: float = 0.0
    first_step_at: float = 0.0
    first_loss: float = 0.0
    data_wait_seconds: float = 0.0
    """Time this attempt's steps have waited for their batches."""
    stall_seconds: float = 0.0
    """Time this attempt's steps have waited for checkpoints."""

    @classmethod
    def from_mapping(cls, told: Mapping[str, Any]) -> Self:
        """From JSON, of this contract version or its neighbours: fields that we do not know are dropped.

        Raises:
            AttributeError: `told` is no mapping.
        """
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in told.items() if name in known})


_LAYOUT = struct.Struct("<Iqqqddqqddddd")
_HEADER = struct.Struct("<II")
PULSE_BYTES = 4096
"""Size of the shared file: one page."""


def pack_pulse(pulse: Pulse, *, into: memoryview, sequence: int) -> None:
    """Write a pulse so that a reader sees all of it or knows that it did not (a sequence lock)."""
    _HEADER.pack_into(into, 0, CONTRACT_VERSION, 2 * sequence + 1)
    _LAYOUT.pack_into(into, _HEADER.size, *astuple(pulse))
    _HEADER.pack_into(into, 0, CONTRACT_VERSION, 2 * sequence + 2)


def unpack_pulse(page: bytes | memoryview) -> Pulse | None:
    """Read a pulse; None when nothing was written yet, or while it is being written."""
    version, before = _HEADER.unpack_from(page, 0)
    values = _LAYOUT.unpack_from(page, _HEADER.size)
    _, after = _HEADER.unpack_from(page, 0)
    if version != CONTRACT_VERSION or before != after or before % 2:
        return None
    return Pulse(**dict(zip((f.name for f in fields(Pulse)), values, strict=True)))


def read_pulse(path: Path) -> Pulse | None:
    """The newest progress of a rank from its file; None before it has any."""
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), PULSE_BYTES, access=mmap.ACCESS_READ) as shared,
            memoryview(shared) as page,  # a copy would be torn itself, and its header the same before and after
        ):
            for _ in range(100):  # a writer holds the sequence lock for microseconds
                if (pulse := unpack_pulse(page)) is not None:
                    return pulse
    except (FileNotFoundError, ValueError):
        return None
    return None


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One finished step in rank 0's history."""

    step: int
    loss: float
    at: float
    """Unix seconds."""


class AgentPhase(StrEnum):
    """What a worker is doing, as its agent sees it."""

    STARTING = "Starting"
    """The warm process is importing the trainer."""
    RUNNING = "Running"
    STOPPING = "Stopping"


@dataclass(frozen=True, kw_only=True)
class AgentStatus:
    """The answer to `GET /status`."""

    worker: str
    attempt: int
    node_rank: int
    phase: AgentPhase
    master: str
    """`host:port` where node rank 0's rendezvous listens; empty on the other workers."""
    progress: Pulse | None
    """Of the worker's first rank."""
    pids: tuple[int, ...] = ()
    """Process ids of its ranks, by local rank."""
    contract_version: int = CONTRACT_VERSION

    def to_json(self) -> str:
        """Encode for the wire."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> AgentStatus:
        """Decode what `to_json` wrote, of this contract version or its neighbours (unknown fields are dropped).

        Raises:
            ValueError: the text is no agent status.
        """
        try:
            data = json.loads(text)
            progress = data["progress"]
            return cls(
                worker=data["worker"],
                attempt=data["attempt"],
                node_rank=data["node_rank"],
                phase=AgentPhase(data["phase"]),
                master=data["master"],
                progress=Pulse.from_mapping(progress) if progress else None,
                pids=tuple(data.get("pids", ())),
                contract_version=data["contract_version"],
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not an agent status: {text[:80]!r}") from error

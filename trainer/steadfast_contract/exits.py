"""How a rank or a worker ended, in words that the operator can act on.

A rank writes a `RankReport` before it exits; the agent forwards it as the worker's termination message. Exit codes
64-75 count only together with a report, because a user's program may use the same numbers for something else.
"""

from __future__ import annotations

import json
import signal
from bisect import bisect_right
from dataclasses import asdict, dataclass
from enum import IntEnum, StrEnum

from steadfast_contract.heartbeat import Pulse

MAX_REPORT_BYTES = 4096


class ExitCode(IntEnum):
    """The exit codes of a rank and of an agent (frozen surface)."""

    DONE = 0
    CONFIG = 64
    DATA = 65
    CHECKPOINT_UNREADABLE = 66
    USER_ERROR = 70
    NON_FINITE_LOSS = 71
    COLLECTIVE = 72
    GPU = 73
    STORAGE = 74
    SAVED = 75
    """Stopped on request, after saving."""


class FailureClass(StrEnum):
    """The closed list of reasons why an attempt can end early (frozen surface)."""

    USER_ERROR = "UserError"
    CONFIG_INVALID = "ConfigInvalid"
    DATA_ERROR = "DataError"
    NON_FINITE_LOSS = "NonFiniteLoss"
    OUT_OF_MEMORY = "OutOfMemory"
    COLLECTIVE_ERROR = "CollectiveError"
    HANG = "Hang"
    STRAGGLER = "Straggler"
    GPU_FAULT = "GpuFault"
    NODE_LOST = "NodeLost"
    NODE_UNHEALTHY = "NodeUnhealthy"
    AGENT_LOST = "AgentLost"
    NETWORK_FAULT = "NetworkFault"
    STORAGE_ERROR = "StorageError"
    PREEMPTED = "Preempted"
    EVICTED = "Evicted"
    IMAGE_ERROR = "ImageError"
    STUCK_PENDING = "StuckPending"
    STUCK_TERMINATING = "StuckTerminating"
    START_TIMEOUT = "StartTimeout"
    CHECKPOINT_UNREADABLE = "CheckpointUnreadable"
    OPERATOR_BLIND = "OperatorBlind"
    UNKNOWN = "Unknown"


CLASS_OF_CODE = {
    ExitCode.CONFIG: FailureClass.CONFIG_INVALID,
    ExitCode.DATA: FailureClass.DATA_ERROR,
    ExitCode.CHECKPOINT_UNREADABLE: FailureClass.CHECKPOINT_UNREADABLE,
    ExitCode.USER_ERROR: FailureClass.USER_ERROR,
    ExitCode.NON_FINITE_LOSS: FailureClass.NON_FINITE_LOSS,
    ExitCode.COLLECTIVE: FailureClass.COLLECTIVE_ERROR,
    ExitCode.GPU: FailureClass.GPU_FAULT,
    ExitCode.STORAGE: FailureClass.STORAGE_ERROR,
    ExitCode.SAVED: FailureClass.PREEMPTED,
}


@dataclass(frozen=True, kw_only=True)
class RankReport:
    """What a rank says about its own end, and the agent about its worker's: at most 4 KiB of JSON."""

    code: int
    attempt: int
    rank: int | None = None
    step: int | None = None
    message: str = ""
    reported: bool = True
    """False: the rank left no words of its own, its agent wrote these."""
    progress: Pulse | None = None
    """How far the worker's first rank had got; the agent adds it, because nobody can ask it any more."""

    def to_json(self) -> str:
        """Encode; a long message loses its middle, because tracebacks say most at both ends."""
        text = json.dumps(asdict(self))
        if len(text) <= MAX_REPORT_BYTES:  # ASCII: as many bytes as characters
            return text
        # A character costs one to twelve bytes of JSON (a surrogate pair): search for how many fit.
        longest = bisect_right(range(len(self.message)), MAX_REPORT_BYTES, key=lambda keep: len(self._shortened(keep)))
        return self._shortened(longest - 1)

    def _shortened(self, keep: int) -> str:
        head, tail = keep - keep // 2, len(self.message) - keep // 2
        return json.dumps(asdict(self) | {"message": f"{self.message[:head]} ... {self.message[tail:]}"})

    @classmethod
    def from_json(cls, text: str) -> RankReport:
        """Decode what `to_json` wrote.

        Raises:
            ValueError: the text is no report.
        """
        try:
            data = json.loads(text)
            told = {name: data[name] for name in ("code", "attempt", "rank", "step", "message", "reported")}
            progress = data.get("progress")
            return cls(**told, progress=Pulse.from_mapping(progress) if progress else None)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not a rank report: {text[:80]!r}") from error


def failure_class(code: int, *, reported: bool) -> FailureClass | None:
    """The class that a process's end belongs to; None when it simply finished.

    `code` follows subprocess: negative is a signal. Containers report signals as 128 + n.
    """
    if code == ExitCode.DONE:
        return None
    if reported and code in CLASS_OF_CODE:
        return CLASS_OF_CODE[ExitCode(code)]
    if code < 0 or code - 128 in signal.valid_signals():
        return FailureClass.UNKNOWN
    return FailureClass.USER_ERROR


def describe_exit(code: int) -> str:
    """A process's end in a few words: `killed by SIGKILL`, `exit code 70 (USER_ERROR)`."""
    if code < 0:
        number = -code
        return f"killed by {signal.Signals(number).name if number in list(signal.Signals) else f'signal {number}'}"
    try:
        return f"exit code {code} ({ExitCode(code).name})"
    except ValueError:
        return f"exit code {code}"

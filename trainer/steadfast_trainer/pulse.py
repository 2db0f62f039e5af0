"""A rank's side of its progress and its last words. Writing them never blocks a step."""

from __future__ import annotations

import mmap
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from steadfast_contract.exits import RankReport
from steadfast_contract.heartbeat import PULSE_BYTES, Pulse, pack_pulse


class PulseWriter:
    """Keeps the newest `Pulse` of this rank in a memory-mapped file of the worker's folder, or nowhere."""

    def __init__(self, path: Path | None) -> None:
        self.pulse = Pulse()
        self._sequence = 0
        if path is None:
            self._page = memoryview(bytearray(PULSE_BYTES))
            return
        with path.open("w+b") as file:
            file.truncate(PULSE_BYTES)
            self._page = memoryview(mmap.mmap(file.fileno(), PULSE_BYTES))

    def update(self, **changes: Any) -> None:
        """Replace some fields."""
        self.pulse = replace(self.pulse, **changes)
        pack_pulse(self.pulse, into=self._page, sequence=self._sequence)
        self._sequence += 1


def write_report(path: Path, report: RankReport) -> None:
    """Leave the last words where the agent looks for them, all or nothing."""
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(report.to_json())
    temporary.rename(path)

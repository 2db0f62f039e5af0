"""What the test bed takes of the disk, now and at its worst."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from testbed.paths import CACHE, STATE, BedError

LIMIT_GB = 25.0
_SECONDS = 15.0


class Peak:
    """The largest of the samples."""

    def __init__(self) -> None:
        self.gb = 0.0

    def sample(self) -> None:
        self.gb = max(self.gb, used_gb(STATE, CACHE))


def used_gb(*folders: Path) -> float:
    """What `du` counts: a file with several names once per call."""
    command = ["du", "-sxk", "--total", *map(str, folders)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(result.stdout.split()[-2]) * 1024 / 1e9 if result.stdout else 0.0


@contextmanager
def watched() -> Iterator[Peak]:
    """Sample meanwhile, and check at the end.

    Raises:
        BedError: it took more than the limit.
    """
    peak, done = Peak(), threading.Event()

    def watch() -> None:
        while not done.wait(_SECONDS):
            peak.sample()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak.sample()
    if peak.gb > LIMIT_GB:
        raise BedError(f"the test bed took {peak.gb:.1f} GB, more than its {LIMIT_GB:.0f}: delete {CACHE}")

"""One rank killed to the first new step: the local runtime beside torchrun, same trainer, same run."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.local_job import manifest, prepare, steadfast, torchrun, wait_for_step, write_manifest
from bench.report import publish, row

from steadfast_cli.embedded_store import acquire
from steadfast_contract.folder import pulse_path

KILLS, PEER_KILLS = 20, 5
SPACING = 25


def main() -> None:
    """Kill the last rank again and again."""
    with tempfile.TemporaryDirectory(prefix="steadfast-bench-") as temporary:
        home = Path(temporary)
        environ = prepare(home)
        store = acquire(home)
        try:
            both = {**environ, **store.environment}
            theirs = _torchrun(home, environ=both)
            ours = _steadfast(home, environ=both)
        finally:
            store.release()
    recovery = [restart["recovery_seconds"] for restart in ours]
    detection = [restart["detection_seconds"] for restart in ours]
    publish(
        "restart-local",
        [
            row("rank-killed", "steadfast", recovery),
            row("rank-killed", "torchrun", theirs),
            row("rank-killed-decided", "steadfast", detection),
        ],
    )


def _steadfast(home: Path, *, environ: dict[str, str]) -> list[dict[str, Any]]:
    content = manifest("restart", steps=SPACING * (KILLS + 2))
    report = home / "report.json"
    faults = [f"--fault=kill rank 3 at step {SPACING * (number + 1)}" for number in range(KILLS)]
    steadfast("run", str(write_manifest(home, content)), f"--report={report}", *faults, environ=environ)
    restarts: list[dict[str, Any]] = json.loads(report.read_text())["failures"]
    assert len(restarts) == KILLS
    return restarts


def _torchrun(home: Path, *, environ: dict[str, str]) -> list[float]:
    seconds = []
    for number in range(PEER_KILLS):
        folder = home / f"torchrun-{number}"
        folder.mkdir()
        process = torchrun(manifest(f"torchrun-{number}", steps=100_000), folder=folder, environ=environ)
        wait_for_step(pulse_path(str(folder), local_rank=0), step=SPACING)
        killed_at = time.time()
        os.kill(_rank_pid(process.pid, rank=3), signal.SIGKILL)
        after = wait_for_step(pulse_path(str(folder), local_rank=0), newer_than=killed_at)
        seconds.append(after.first_step_at - killed_at)
        print(f"torchrun {number + 1}/{PEER_KILLS}: {seconds[-1]:.2f} s", file=sys.stderr)
        process.kill()
        _kill_children(folder)
    return seconds


def _rank_pid(launcher: int, *, rank: int) -> int:
    for pid in _processes():
        environ = _environ(pid)
        if environ.get("RANK") == str(rank) and _parent(pid) == launcher:
            return pid
    raise RuntimeError(f"torchrun {launcher} has no rank {rank}")


def _kill_children(folder: Path) -> None:
    for pid in _processes():
        if _environ(pid).get("STEADFAST_FOLDER") == str(folder):
            os.kill(pid, signal.SIGKILL)


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _environ(pid: int) -> dict[str, str]:
    try:
        pairs = Path(f"/proc/{pid}/environ").read_text().split("\0")
    except OSError:
        return {}
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


if __name__ == "__main__":
    main()

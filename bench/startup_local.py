"""From the command to the end of the first step: `steadfast run` on 2 workers x 2 ranks, beside torchrun with 4."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.local_job import manifest, prepare, steadfast, torchrun, wait_for_step, write_manifest
from bench.report import publish, row

from steadfast_cli.embedded_store import acquire
from steadfast_contract.folder import pulse_path

RUNS = 7


def main() -> None:
    """Measure in turns, so that the machine's mood meets both."""
    ours, theirs = [], []
    with tempfile.TemporaryDirectory(prefix="steadfast-bench-") as temporary:
        home = Path(temporary)
        environ = prepare(home)
        store = acquire(home)  # both sides find a store that already runs
        try:
            for number in range(RUNS):
                ours.append(_steadfast(home, number, environ={**environ, **store.environment}))
                theirs.append(_torchrun(home, number, environ={**environ, **store.environment}))
                print(
                    f"run {number + 1}/{RUNS}: steadfast {ours[-1]:.2f} s, torchrun {theirs[-1]:.2f} s", file=sys.stderr
                )
        finally:
            store.release()
    publish(
        "startup-local", [row("run-to-first-step", "steadfast", ours), row("run-to-first-step", "torchrun", theirs)]
    )


def _steadfast(home: Path, number: int, *, environ: dict[str, str]) -> float:
    content = manifest(f"startup-{number}", steps=3)
    report = home / "report.json"
    started = time.time()
    steadfast("run", str(write_manifest(home, content)), f"--report={report}", environ=environ)
    return float(json.loads(report.read_text())["first_step_at"]) - started


def _torchrun(home: Path, number: int, *, environ: dict[str, str]) -> float:
    folder = home / f"torchrun-{number}"
    folder.mkdir()
    started = time.time()
    process = torchrun(manifest(f"torchrun-{number}", steps=3), folder=folder, environ=environ)
    first = wait_for_step(pulse_path(str(folder), local_rank=0)).first_step_at
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
    return first - started


if __name__ == "__main__":
    main()

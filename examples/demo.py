"""`make demo`: prepare real data, train moe-tiny on two workers, kill one, recover, and judge the result."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
HOME = ROOT / ".demo"
STEADFAST = [sys.executable, "-m", "steadfast_cli"]
LEAST_FALL = 2.0


def main() -> int:
    """Run the demo; 0 only if the job succeeded, its loss fell and the kill was recovered."""
    started = time.monotonic()
    shutil.rmtree(HOME, ignore_errors=True)
    environ = {**os.environ, "STEADFAST_HOME": str(HOME)}
    for name in ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID"):
        environ.pop(name, None)  # the demo keeps to its own store
    report = HOME / "report.json"
    _step("Preparing data: the Python standard library's sources", environ, [
        "data", "prepare", "python-stdlib", "--out", "s3://corpora/python",
        "--tokenizer", "train:4096", "--sequence-length", "128",
    ])  # fmt: skip
    _step("Training, with a worker killed at step 40", environ, [
        "run", str(ROOT / "examples" / "moe-tiny.yaml"),
        "--fault", "kill worker 1 at step 40", "--report", str(report),
    ])  # fmt: skip
    summary = json.loads(report.read_text())
    fall = summary["first_loss"] - summary["final_loss"]
    checks = {
        "the job succeeded": summary["state"] == "Succeeded",
        f"the loss fell by {fall:.2f}, at least {LEAST_FALL}": fall >= LEAST_FALL,
        "the killed worker was recovered": summary["restarts"] == len(summary["failures"]) == 1,
    }
    for check, passed in checks.items():
        print(f"{'ok    ' if passed else 'FAILED'}  {check}")
    print(f"Demo took {time.monotonic() - started:.0f} s")
    return 0 if all(checks.values()) else 1


def _step(title: str, environ: dict[str, str], arguments: list[str]) -> None:
    print(f"\n{title}\n$ steadfast {' '.join(arguments)}", flush=True)
    done = subprocess.run([*STEADFAST, *arguments], env=environ, check=False)
    if done.returncode:
        sys.exit(f"FAILED: exit code {done.returncode}")


if __name__ == "__main__":
    sys.exit(main())

"""A small job, and the same training under torchrun, for the benchmarks of the local runtime."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from steadfast_cli.embedded_store import acquire
from steadfast_contract.heartbeat import Pulse, read_pulse
from steadfast_operator.api.resolve import training_config
from steadfast_operator.api.types import TrainingJob

WORKERS, RANKS = 2, 2
POLL_SECONDS = 0.005


def manifest(name: str, *, steps: int, interval_seconds: int = 1) -> dict[str, Any]:
    """A moe-nano job on 2 workers with 2 ranks each."""
    return {
        "apiVersion": "steadfast.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": {
            "image": "none",
            "workers": WORKERS,
            "ranksPerWorker": RANKS,
            "device": "cpu",
            "model": {"preset": "moe-nano"},
            "train": {"steps": steps, "globalBatchTokens": 256},
            "data": {
                "tokenizer": "s3://corpora/nano/tokenizer.json",
                "streams": [{"name": "nano", "remote": "s3://corpora/nano"}],
            },
            "checkpoint": {"destination": "s3://runs", "intervalSeconds": interval_seconds},
        },
    }


def prepare(home: Path) -> Mapping[str, str]:
    """Prepare the data in the home's embedded store; return an environment for commands that use that home."""
    environ = {**os.environ, "STEADFAST_HOME": str(home)}
    steadfast(
        "data", "prepare", "python-stdlib", "--out=s3://corpora/nano", "--tokenizer=train:512",
        "--sequence-length=32", "--max-tokens=200000", environ=environ,
    )  # fmt: skip
    store = acquire(home)
    store.ensure_bucket("runs")
    store.release()
    return environ


def steadfast(*arguments: str, environ: Mapping[str, str]) -> None:
    """Run the command line to its end.

    Raises:
        RuntimeError: it failed; the message has its output.
    """
    done = subprocess.run(
        [sys.executable, "-m", "steadfast_cli", *arguments], env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"steadfast {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def write_manifest(folder: Path, content: dict[str, Any]) -> Path:
    """The manifest as a file."""
    path = folder / f"{content['metadata']['name']}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def torchrun(content: dict[str, Any], *, folder: Path, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """The same training, with as many ranks, under torchrun."""
    training = training_config(TrainingJob.model_validate(content)).to_json()
    env = {
        **environ,
        "STEADFAST_TRAINING": training,
        "STEADFAST_FOLDER": str(folder),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORKERS * RANKS}",
        "--max-restarts=100", "--monitor-interval=0.1", "-m", "steadfast_trainer",
    ]  # fmt: skip
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for_step(pulse_file: Path, *, step: int = 1, newer_than: float = 0.0, seconds: float = 120) -> Pulse:
    """The pulse once its attempt has done a step, after `newer_than`, and reached `step`.

    Raises:
        TimeoutError: it did not.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pulse = read_pulse(pulse_file)
        if pulse is not None and pulse.first_step_at > newer_than and pulse.step >= step:
            return pulse
        time.sleep(POLL_SECONDS)
    raise TimeoutError(f"{pulse_file} did not reach step {step}")

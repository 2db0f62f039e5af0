"""Real local runs: real agents, ranks and S3, driven from outside as a user's shell would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from builders import a_manifest
from steadfast_cli.embedded_store import EmbeddedStore
from steadfast_contract.folder import agent_path, pulse_path
from steadfast_contract.heartbeat import AgentStatus, Pulse, read_pulse
from steadfast_operator.api.types import TrainingJob

POLL_SECONDS = 0.005


class LocalRun:
    """`steadfast run` in a process of its own, with a home of its own."""

    def __init__(self, folder: Path, manifest: dict[str, Any], *, environ: Mapping[str, str]) -> None:
        self.home = folder
        self.environ = {**os.environ, **environ, "STEADFAST_HOME": str(folder)}
        self.manifest = folder / "job.yaml"
        self.manifest.write_text(yaml.safe_dump(manifest))
        name, namespace = manifest["metadata"]["name"], manifest["metadata"].get("namespace", "default")
        self.folder = folder / "jobs" / namespace / name
        self.log = folder / "output"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        command = [sys.executable, "-m", "steadfast_cli", "run", str(self.manifest), *options]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                command, env=self.environ, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def finish(self, *options: str, seconds: float = 120) -> int:
        self.start(*options)
        return self.wait(seconds)

    def wait(self, seconds: float = 120) -> int:
        assert self.process is not None
        return self.process.wait(seconds)

    @property
    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    @property
    def output(self) -> str:
        return self.log.read_text()

    def job(self) -> TrainingJob:
        return TrainingJob.model_validate_json((self.folder / "job.json").read_text())

    def true_conditions(self) -> dict[str, str]:
        return {c.type: c.reason for c in self.job().status.conditions if c.status == "True"}

    def worker_folders(self) -> list[Path]:
        """Of the newest attempt, by node rank."""
        job = self.job()
        record = json.loads((self.folder / f"attempt-{job.status.attempt}.json").read_text())
        prefix = f"{job.metadata.name}-{job.metadata.uid[:5]}"
        return [self.folder / "workers" / f"{prefix}-{serial}" for serial in record["serials"]]

    def pulse(self) -> Pulse | None:
        try:
            return read_pulse(pulse_path(str(self.worker_folders()[0]), local_rank=0))
        except FileNotFoundError:
            return None

    def agent_status(self, node_rank: int) -> AgentStatus:
        address = agent_path(str(self.worker_folders()[node_rank])).read_text()
        with urllib.request.urlopen(f"http://{address}/status", timeout=5) as reply:
            return AgentStatus.from_json(reply.read().decode())

    def wait_until(self, true: Callable[[], bool], what: str, *, seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < until, f"waited {seconds} s for {what}\n{self.output}"
            assert not self.ended, f"the run ended while waiting for {what}\n{self.output}"
            time.sleep(POLL_SECONDS)

    def wait_for_steps(self, steps: int, *, attempt: int = 0, seconds: float = 60) -> None:
        """Until the attempt after `attempt` has done so many steps of its own."""

        def done() -> bool:
            if not (self.folder / "job.json").exists() or self.job().status.attempt <= attempt:
                return False
            pulse = self.pulse()
            return pulse is not None and pulse.resumed_from >= 0 and pulse.step - pulse.resumed_from >= steps

        self.wait_until(done, f"{steps} steps after attempt {attempt}", seconds=seconds)

    def kill_rank(self, rank: int) -> None:
        workers = len(self.worker_folders())
        assert workers == 2
        os.kill(self.agent_status(rank // 2).pids[rank % 2], signal.SIGKILL)

    def kill_worker(self, node_rank: int) -> None:
        rank = self.agent_status(node_rank).pids[0]
        agent = int(Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(agent, signal.SIGKILL)

    def kill_runtime(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)


@pytest.fixture(scope="session")
def nano_corpus(embedded_store: EmbeddedStore) -> Mapping[str, str]:
    """Shards of the standard library for moe-nano at s3://corpora/nano; returns the store's environment."""
    command = [
        sys.executable, "-m", "steadfast_trainer.data.prepare", "python-stdlib", "--out=s3://corpora/nano",
        "--tokenizer=train:512", "--sequence-length=32", "--max-tokens=200000",
    ]  # fmt: skip
    environ = {**os.environ, **embedded_store.environment}
    subprocess.run(command, env=environ, check=True, capture_output=True)
    return embedded_store.environment


def nano(name: str, **overrides: Any) -> dict[str, Any]:
    """A moe-nano job on two workers of two ranks each."""
    data = {
        "tokenizer": "s3://corpora/nano/tokenizer.json",
        "streams": [{"name": "nano", "remote": "s3://corpora/nano"}],
    }
    spec = {"ranksPerWorker": 2, "data": data, "checkpoint": {"intervalSeconds": 1}}
    manifest = a_manifest(metadata={"name": name, "namespace": "default"}, spec=spec)
    return _override(manifest, overrides)


def _override(manifest: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    for path, value in overrides.items():
        node = manifest
        *parents, last = path.split(".")
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return manifest


@pytest.fixture
def local_run(
    tmp_path_factory: pytest.TempPathFactory, nano_corpus: Mapping[str, str]
) -> Iterator[Callable[..., LocalRun]]:
    """Makes local runs; what still runs at the end is killed."""
    runs: list[LocalRun] = []

    def make(manifest: dict[str, Any], *, environ: Mapping[str, str] | None = None) -> LocalRun:
        folder = tmp_path_factory.mktemp(manifest["metadata"]["name"])
        runs.append(LocalRun(folder, manifest, environ=nano_corpus if environ is None else environ))
        return runs[-1]

    yield make
    for run in runs:
        if not run.ended:
            run.kill_runtime()

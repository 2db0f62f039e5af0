"""`make demo-cluster`: on the test bed, install the operator, apply moe-tiny, kill a pod, and judge the result.

What it prints after a $ is what a user types; the bed (tests/testbed) lends the cluster, the images and the store.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

from rich.console import Console

from steadfast_cli.display import summary_table
from steadfast_cli.summary import FailureSeen, Summary, summarise
from steadfast_contract.heartbeat import AgentStatus, StepRecord
from steadfast_operator.api.types import TrainingJob
from steadfast_operator.core.status import is_finished
from steadfast_trainer.checkpoint.store import ObjectStore
from testbed import cluster, services
from testbed.paths import BIN, KUBECONFIG

ROOT = Path(__file__).parent.parent
NAMESPACE, JOB, SYSTEM, SECRET = "demo", "moe-tiny", "steadfast-system", "steadfast-store"
KILL_AT_STEP = 40
LEAST_FALL = 2.0
POLL_SECONDS = 0.1
PATIENCE_SECONDS = 600
METRICS = (
    f'steadfast_job_step{{training_job="{NAMESPACE}/{JOB}"}}',
    f'steadfast_restarts_total{{training_job="{NAMESPACE}/{JOB}"}}',
    "steadfast_recovery_seconds_sum / steadfast_recovery_seconds_count",
    f'max_over_time(steadfast_rank_loss{{training_job="{NAMESPACE}/{JOB}",rank="0"}}[10m])',
)


def main() -> int:
    """Run the demo; 0 only if every check passed."""
    started = time.monotonic()
    os.environ["KUBECONFIG"] = str(KUBECONFIG)
    os.environ["PATH"] = f"{BIN}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    os.environ |= services.store_environment()
    _install()
    _shell(f"kubectl apply --namespace {NAMESPACE} -f examples/moe-tiny.yaml")
    summary = _Watched().to_its_end()
    _shell(f"kubectl get trainingjobs,pods --namespace {NAMESPACE}")
    _shell(f"kubectl get events --namespace {NAMESPACE} --field-selector involvedObject.kind=TrainingJob")
    values = {metric: _ask_prometheus(metric) for metric in METRICS}
    print()
    Console().print(summary_table(summary))
    for metric, value in values.items():
        print(f"Prometheus: {metric} = {'nothing' if value is None else f'{value:g}'}")
    fall = (summary.first_loss or 0.0) - (summary.final_loss or 0.0)
    checks = {
        "the job succeeded": summary.state == "Succeeded",
        f"the loss fell by {fall:.2f}, at least {LEAST_FALL}": fall >= LEAST_FALL,
        "the killed pod was recovered": summary.restarts == len(summary.failures) == 1,
        "Prometheus has its metrics": all(value is not None and math.isfinite(value) for value in values.values()),
    }
    for check, passed in checks.items():
        print(f"{'ok    ' if passed else 'FAILED'}  {check}")
    print(f"Demo took {time.monotonic() - started:.0f} s. The cluster runs on: make cluster-status, make cluster-down")
    return 0 if all(checks.values()) else 1


def _install() -> None:
    """Operator, data, and a namespace that may reach them."""
    repository, _, tag = cluster.add_image("operator", _say).rpartition(":")
    cluster.add_image("trainer", _say)
    store = "profiles.default.spec.objectStore"
    _shell(
        f"helm upgrade --install steadfast charts/steadfast --namespace {SYSTEM} --create-namespace --wait"
        f" --set image.repository={repository} --set image.tag={tag}"
        f" --set {store}.endpoint=$S3_ENDPOINT_URL --set {store}.region=$AWS_REGION"
        f" --set {store}.credentialsSecret={SECRET}",
        quiet=True,
    )
    _shell(f"kubectl delete namespace {NAMESPACE} --ignore-not-found")
    runs = ObjectStore(f"s3://runs/{NAMESPACE}", env=os.environ)
    for key in runs.list():  # of an earlier demo, whose run this one would continue
        runs.delete(key)
    _shell(f"kubectl create namespace {NAMESPACE}")
    keys = " ".join(f"--from-literal {name}=${name}" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    _shell(f"kubectl create secret generic {SECRET} --namespace {NAMESPACE} {keys}")
    _shell(
        "steadfast data prepare python-stdlib --out s3://corpora/python --tokenizer train:4096 --sequence-length 128"
    )


class _Watched:
    """The job from apply to its end, as the API server and node rank 0's agent tell it."""

    def __init__(self) -> None:
        self._started_at = time.time()
        self._histories: dict[int, dict[int, StepRecord]] = {}
        self._killed_at = 0.0
        self._failures: list[FailureSeen] = []
        self._addresses: dict[int, str] = {}
        """Of node rank 0, by attempt."""
        self._said = ""

    def to_its_end(self) -> Summary:
        while True:
            job = _fetch_job()
            self._note_steps(job)
            self._note_failure(job)
            self._say_state(job)
            if is_finished(job.status):
                return self._summary(job)
            if time.time() - self._started_at > PATIENCE_SECONDS:
                sys.exit(f"FAILED: the job did not end within {PATIENCE_SECONDS} s")
            if not self._killed_at and max(self._histories.get(1, {0: None})) >= KILL_AT_STEP:
                self._killed_at = time.time()
                _shell(f"kubectl delete pod --namespace {NAMESPACE} --grace-period 1 --wait=false {_pod(job, 1)[0]}")
            time.sleep(POLL_SECONDS)

    def _note_steps(self, job: TrainingJob) -> None:
        attempt = job.status.attempt
        address = self._addresses.get(attempt) or _pod(job, 0)[1]
        if not address:
            return
        self._addresses[attempt] = address
        try:
            with urllib.request.urlopen(f"http://{address}:9400/status", timeout=1) as reply:
                pulse = AgentStatus.from_json(reply.read().decode()).progress
        except (OSError, ValueError):
            return
        if pulse is not None and pulse.step > max(pulse.resumed_from, 0):
            record = StepRecord(step=pulse.step, loss=pulse.loss, at=pulse.updated_at)
            self._histories.setdefault(attempt, {}).setdefault(pulse.step, record)

    def _note_failure(self, job: TrainingJob) -> None:
        last = job.status.last_failure
        if last is None or self._failures:
            return
        seen = FailureSeen(
            attempt=job.status.attempts[0].number,
            failure=f"{last.class_} of {last.worker}",
            evidence=last.evidence,
            happened_at=self._killed_at,
            decided_at=time.time(),
        )
        self._failures.append(seen)

    def _say_state(self, job: TrainingJob) -> None:
        step = job.status.progress.step if job.status.progress else 0
        said = f"{job.status.state:10} attempt {job.status.attempt}  workers {job.status.workers_ready}  step {step}"
        if said != self._said:
            _say(f"{time.time() - self._started_at:6.1f} s  {said}")
            self._said = said

    def _summary(self, job: TrainingJob) -> Summary:
        return summarise(
            state=job.status.state,
            steps=job.status.progress.step if job.status.progress else 0,
            histories=[(attempt, list(steps.values())) for attempt, steps in sorted(self._histories.items())],
            failures=self._failures,
            started_at=self._started_at,
            ended_at=job.status.finished.timestamp() if job.status.finished else time.time(),
            global_batch_tokens=job.spec.train.global_batch_tokens,
        )


def _fetch_job() -> TrainingJob:
    command = ["kubectl", "get", "trainingjob", JOB, f"--namespace={NAMESPACE}", "--output=json"]
    return TrainingJob.model_validate_json(subprocess.run(command, check=True, capture_output=True).stdout)


def _pod(job: TrainingJob, node_rank: int) -> tuple[str, str]:
    """Name and address of a worker of the current attempt."""
    chosen = f"steadfast.dev/attempt={job.status.attempt},steadfast.dev/node-rank={node_rank}"
    wanted = "jsonpath={.items[0].metadata.name} {.items[0].status.podIP}"
    command = ["kubectl", "get", "pods", f"--namespace={NAMESPACE}", f"--selector={chosen}", f"--output={wanted}"]
    found = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    name, _, address = found.partition(" ")
    return name, address


def _ask_prometheus(metric: str) -> float | None:
    url = f"{services.PROMETHEUS_URL}/api/v1/query?{urllib.parse.urlencode({'query': metric})}"
    with urllib.request.urlopen(url, timeout=5) as reply:
        found = json.load(reply)["data"]["result"]
    return float(found[0]["value"][1]) if found else None


def _say(text: str) -> None:
    print(text, flush=True)


def _shell(command: str, *, quiet: bool = False) -> None:
    """Show a command and run it as a shell would."""
    _say(f"\n$ {command}")
    output = subprocess.PIPE if quiet else None
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, stdout=output, check=False)
    if done.returncode:
        sys.exit(f"FAILED: exit code {done.returncode}")


if __name__ == "__main__":
    sys.exit(main())

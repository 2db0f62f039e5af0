"""A cluster as its users drive it: kubectl, helm, jobs, and the faults that any Kubernetes allows."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from builders import a_manifest
from steadfast_contract.heartbeat import AgentStatus, Pulse
from steadfast_operator.api.types import TrainingJob

Object = dict[str, Any]

POLL_SECONDS = 0.2
SYSTEM = "steadfast-system"
"""Namespace of the operator."""
SECRET = "steadfast-store"
KILL_RANK = (
    "import json, os, urllib.request as r; "
    "os.kill(json.load(r.urlopen('http://127.0.0.1:{port}/status'))['pids'][{rank}], 9)"
)
"""Run in the worker itself: process ids mean nothing outside."""


@dataclass(frozen=True)
class Cluster:
    """Whatever `kubeconfig` names, with what tests need beside it."""

    kubeconfig: Path
    folder: str
    """Of kubectl and helm; empty when they are on the PATH."""
    store: Mapping[str, str]
    """An S3 client's environment, the same for pods and tests."""
    trainer: str
    operator: str
    """Images, already on the nodes."""

    def kubectl(self, *arguments: str, stdin: Object | None = None, check: bool = True) -> str:
        """Its standard output; with `check` a failure raises what kubectl said."""
        command = [f"{self.folder}kubectl", f"--kubeconfig={self.kubeconfig}", "--request-timeout=60s", *arguments]
        text = None if stdin is None else json.dumps(stdin)
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise RefusedByCluster(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def get(self, *arguments: str) -> Object:
        """One object, or a list of them."""
        found: Object = json.loads(self.kubectl("get", "--output=json", *arguments))
        return found

    def helm(self, *arguments: str) -> str:
        """Its standard output; a failure raises what helm said."""
        command = [f"{self.folder}helm", f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RefusedByCluster(f"helm {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def operators(self) -> list[str]:
        """Names of the operator's pods, also of those that are ending."""
        pods = self.get("pods", f"--namespace={SYSTEM}", "--selector=app.kubernetes.io/name=steadfast")["items"]
        return [pod["metadata"]["name"] for pod in pods]

    def kill_operator(self) -> None:
        """At once, without a word; its Deployment makes another one."""
        for name in self.operators():
            self.kubectl("delete", "pod", name, f"--namespace={SYSTEM}", "--grace-period=0", "--force")

    def scale_operator(self, replicas: int) -> None:
        """Returns when so many run."""
        self.kubectl("scale", "deployment/steadfast", f"--namespace={SYSTEM}", f"--replicas={replicas}")
        if replicas:
            self.kubectl("rollout", "status", "deployment/steadfast", f"--namespace={SYSTEM}", "--timeout=90s")
        until(lambda: len(self.operators()) == replicas, f"{replicas} operators", seconds=60)


class RefusedByCluster(AssertionError):
    """kubectl or helm said no; the message is theirs."""


class Job:
    """A TrainingJob that was, or will be, applied."""

    def __init__(self, cluster: Cluster, manifest: Object) -> None:
        self.cluster, self.manifest = cluster, manifest
        self.name, self.namespace = manifest["metadata"]["name"], manifest["metadata"]["namespace"]
        self._kubectl = partial(cluster.kubectl, f"--namespace={self.namespace}")

    def apply(self) -> None:
        self.cluster.kubectl("apply", "--filename=-", stdin=self.manifest)

    def delete(self, *, wait: bool = True) -> None:
        self._kubectl("delete", "trainingjob", self.name, f"--wait={str(wait).lower()}")

    def patch(self, **spec: Any) -> None:
        self._kubectl("patch", "trainingjob", self.name, "--type=merge", f"--patch={json.dumps({'spec': spec})}")

    def fetch(self) -> TrainingJob:
        return TrainingJob.model_validate(json.loads(self._kubectl("get", "trainingjob", self.name, "--output=json")))

    @property
    def state(self) -> str:
        return self.fetch().status.state

    def pods(self) -> list[Object]:
        """Of the current attempt, by node rank."""
        job = self.fetch()
        chosen = f"steadfast.dev/job-uid={job.metadata.uid},steadfast.dev/attempt={job.status.attempt}"
        found = json.loads(self._kubectl("get", "pods", f"--selector={chosen}", "--output=json"))["items"]
        return sorted(found, key=lambda pod: int(pod["metadata"]["labels"]["steadfast.dev/node-rank"]))

    def all_pods(self) -> list[Object]:
        """Of whatever job has, or had, this name."""
        chosen = f"--selector=steadfast.dev/job-name={self.name}"
        found: list[Object] = json.loads(self._kubectl("get", "pods", chosen, "--output=json"))["items"]
        return found

    def exists(self) -> bool:
        return bool(self._kubectl("get", "trainingjob", self.name, "--ignore-not-found"))

    def pulse(self) -> Pulse | None:
        """What node rank 0's agent says right now, asked through the API server."""
        pods = self.pods()
        if not pods or pods[0]["status"]["phase"] != "Running":
            return None
        port = pods[0]["spec"]["containers"][0]["ports"][0]["containerPort"]
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pods[0]['metadata']['name']}:{port}/proxy/status"
        try:
            return AgentStatus.from_json(self._kubectl("get", f"--raw={path}", check=False)).progress
        except ValueError:
            return None

    def until_state(self, *states: str, seconds: float = 120) -> None:
        self.until(lambda: self.state in states, f"is {' or '.join(states)}", seconds=seconds)

    def until_steps(self, steps: int, *, attempt: int = 0, seconds: float = 120) -> int:
        """Until the attempt after `attempt` has done so many steps of its own; returns its number."""

        def done() -> bool:
            if self.fetch().status.attempt <= attempt or (pulse := self.pulse()) is None:
                return False
            return pulse.resumed_from >= 0 and pulse.step - pulse.resumed_from >= steps

        self.until(done, f"has done {steps} steps after attempt {attempt}", seconds=seconds)
        return self.fetch().status.attempt

    def until(self, true: Callable[[], Any], what: str, *, seconds: float) -> None:
        try:
            until(true, f"{self.namespace}/{self.name} {what}", seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.story()}") from None

    def story(self) -> str:
        """What an engineer would look at first."""
        pods = self._kubectl("get", "pods", "--output=wide", check=False)
        events = self._kubectl("get", "events", "--sort-by=.lastTimestamp", check=False)
        job = self._kubectl("get", "trainingjob", self.name, "--output=yaml", check=False)
        logs = self.cluster.kubectl("logs", "deployment/steadfast", f"--namespace={SYSTEM}", "--tail=40", check=False)
        return "\n".join((job[-4000:], pods, events[-4000:], logs))

    # Faults

    def kill_rank(self, node_rank: int, local_rank: int) -> None:
        pod = self.pods()[node_rank]
        port = pod["spec"]["containers"][0]["ports"][0]["containerPort"]
        script = KILL_RANK.format(port=port, rank=local_rank)
        self._kubectl("exec", pod["metadata"]["name"], "--", "python", "-c", script)

    def delete_pod(self, node_rank: int) -> None:
        self._kubectl("delete", "pod", self.pods()[node_rank]["metadata"]["name"], "--wait=false")

    def node_of(self, node_rank: int) -> str:
        node: str = self.pods()[node_rank]["spec"]["nodeName"]
        return node


def until(true: Callable[[], Any], what: str, *, seconds: float) -> None:
    """Look again and again until it is true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited {seconds} s until {what}"
        time.sleep(POLL_SECONDS)


def nano(cluster: Cluster, name: str, *, namespace: str, **overrides: Any) -> Object:
    """A moe-nano job on two workers of two ranks each, as a user of this cluster writes it."""
    spec = {
        "image": cluster.trainer,
        "ranksPerWorker": 2,
        "data": {
            "tokenizer": "s3://corpora/small/tokenizer.json",
            "streams": [{"name": "small", "remote": "s3://corpora/small"}],
        },
        "checkpoint": {"intervalSeconds": 1},
        "objectStore": {
            "endpoint": cluster.store["S3_ENDPOINT_URL"],
            "region": cluster.store["AWS_REGION"],
            "credentialsSecret": SECRET,
        },
    }
    return a_manifest(metadata={"name": name, "namespace": namespace}, spec=spec, **overrides)

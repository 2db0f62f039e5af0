"""Jobs of the benchmarks in the test bed: what they need there, their beginning, their end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from bench.gang import FirstStep, wait_for_first_step
from bench.systems import SECRET, Manifest, Place, System

from steadfast_trainer.checkpoint.store import ObjectStore
from testbed import cluster, control, peers, services
from testbed.paths import BIN, KUBECONFIG, ROOT, BedError
from testbed.processes import wait_until

NAMESPACE = "steadfast-bench"
GRACE_SECONDS = 5
"""For every pod of every system, when it is deleted."""
_CHART = ROOT / "charts" / "steadfast"
_RELEASE = "bench"
_NOT_THE_OPERATOR = "app.kubernetes.io/component!=operator"


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


@contextmanager
def place() -> Iterator[Place]:
    """A namespace with credentials, the operator, the peers and the data; all but the data is gone afterwards.

    Raises:
        BedError: something of it cannot be had.
    """
    image = cluster.add_image("trainer", say)
    store = services.store_environment()
    peers.up(say)
    _prepare_data(store)
    _apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    secret = {name: store[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    meta = {"name": SECRET, "namespace": NAMESPACE}
    _apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": secret})
    try:
        _install_operator()
        profile = {"apiVersion": "steadfast.dev/v1alpha1", "kind": "ClusterTrainingProfile", "spec": {}}
        _apply(profile | {"metadata": {"name": NAMESPACE}})
        yield Place(
            namespace=NAMESPACE,
            profile=NAMESPACE,
            image=image,
            endpoint=store["S3_ENDPOINT_URL"],
            region=store["AWS_REGION"],
            dns=peers.DNS_ADDRESS,
        )
    finally:
        _helm("uninstall", _RELEASE, f"--namespace={NAMESPACE}", "--ignore-not-found")
        control.kubectl("delete", "clustertrainingprofile", NAMESPACE, "--ignore-not-found")
        control.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
        peers.down()


@contextmanager
def running(system: System, job: str, at: Place) -> Iterator[tuple[float, FirstStep]]:
    """Apply a fresh job: the time just before, and its first step. Afterwards nothing of it is left."""
    manifests = system.manifests(job, at)
    try:
        applied = time.time()
        _apply(*manifests)
        yield applied, wait_for_first_step(at.namespace, after=applied)
    finally:
        control.kubectl("delete", "--filename=-", "--ignore-not-found", "--wait=false", stdin=_list(*manifests))
        workers = [f"--namespace={at.namespace}", f"--selector={_NOT_THE_OPERATOR}"]
        control.kubectl("delete", "pods", *workers, "--grace-period=1", "--wait=false")
        wait_until(f"the pods of {job} are gone", lambda: not _pods(at.namespace), seconds=90)
        _delete_run(f"{at.namespace}/{job}")


def last_worker(system: System, job: str, at: Place) -> tuple[str, str]:
    """Name and uid of the pod with the last rank."""
    pods = _pods(at.namespace, system.last_worker.format(job=job))
    alive = [pod for pod in pods if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]]
    (pod,) = alive
    return pod["metadata"]["name"], pod["metadata"]["uid"]


def delete_pod(name: str, at: Place) -> float:
    """As a person would; returns the time just before."""
    before = time.time()
    flags = [f"--namespace={at.namespace}", f"--grace-period={GRACE_SECONDS}", "--wait=false"]
    _checked(control.kubectl("delete", "pod", name, *flags))
    return before


def attempt_ended(job: str, at: Place) -> float | None:
    """When the operator ended the newest attempt of a `TrainingJob` that has ended; Unix seconds."""
    reply = control.kubectl("get", "trainingjobs.steadfast.dev", job, f"--namespace={at.namespace}", "-o=json")
    attempts = json.loads(_checked(reply))["status"]["attempts"]
    ended = [datetime.fromisoformat(attempt["ended"]).timestamp() for attempt in attempts if attempt.get("ended")]
    return max(ended, default=None)


def load() -> str:
    """How busy the machine is besides us, for a result's `machine`."""
    return " ".join(f"{each:.1f}" for each in os.getloadavg())


def repeats(default: int) -> int:
    """`REPEATS=` of the command, or what the benchmark's rules ask for."""
    return int(os.environ.get("REPEATS") or default)


def _install_operator() -> None:
    """From the chart, for the jobs of this namespace; a release that looks after all of the cluster does it as well."""
    if cluster_wide := _cluster_wide_operator():
        say(f"The operator is the cluster's: {cluster_wide}")
        return
    image, _, tag = cluster.add_image("operator", say).rpartition(":")
    has_definitions = control.kubectl("get", "crd", "trainingjobs.steadfast.dev").returncode == 0
    values = {
        "image.repository": image,
        "image.tag": tag,
        "image.pullPolicy": "Never",
        "watchNamespace": NAMESPACE,
        "crds.install": str(not has_definitions).lower(),
    }
    settings = [f"--set-string={name}={value}" for name, value in values.items() if name != "crds.install"]
    flags = [f"--namespace={NAMESPACE}", *settings, f"--set=crds.install={values['crds.install']}"]
    _checked(_helm("upgrade", "--install", _RELEASE, str(_CHART), *flags, "--wait", "--timeout=90s"))


def _cluster_wide_operator() -> str:
    """The image of an operator that looks after every namespace; empty: there is none."""
    command = ["get", "deployments", "--all-namespaces", "--selector=app.kubernetes.io/name=steadfast", "-o=json"]
    for deployment in json.loads(_checked(control.kubectl(*command)))["items"]:
        container = deployment["spec"]["template"]["spec"]["containers"][0]
        if "STEADFAST_NAMESPACE" not in {variable["name"] for variable in container["env"]}:
            return str(container["image"])
    return ""


def _prepare_data(store: dict[str, str]) -> None:
    """Again changes nothing."""
    command = [sys.executable, "-m", "steadfast_cli", "data", "prepare", "python-stdlib", "--out=s3://corpora/bench"]
    options = ["--tokenizer=train:512", "--sequence-length=32", "--max-tokens=200000"]
    result = subprocess.run([*command, *options], env=os.environ | store, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BedError(f"steadfast data prepare: {(result.stdout + result.stderr).strip()[-500:]}")


def _delete_run(name: str) -> None:
    runs = ObjectStore(f"s3://runs/{name}", env=services.store_environment())
    for key in runs.list():
        runs.delete(key)


def _pods(namespace: str, selector: str = _NOT_THE_OPERATOR) -> list[Manifest]:
    reply = _checked(control.kubectl("get", "pods", f"--namespace={namespace}", f"--selector={selector}", "-o=json"))
    pods: list[Manifest] = json.loads(reply)["items"]
    return pods


def _apply(*manifests: Manifest) -> None:
    _checked(control.kubectl("apply", "--filename=-", stdin=_list(*manifests)))


def _list(*manifests: Manifest) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})


def _helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "helm"), f"--kubeconfig={KUBECONFIG}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _checked(result: subprocess.CompletedProcess[str]) -> str:
    if result.returncode:
        raise BedError(f"{' '.join(map(str, result.args[:4]))}: {result.stderr.strip()[-800:]}")
    return result.stdout

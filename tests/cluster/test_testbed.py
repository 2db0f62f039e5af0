"""The test bed is a real cluster: what the chaos tests rest on, shown on its own."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator

import pytest

from cluster.conftest import needs_bed
from testbed import cluster, images, nodes, services
from testbed.control import kubectl
from testbed.paths import NODES
from testbed.processes import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180), needs_bed]


@pytest.fixture(scope="module", autouse=True)
def _bed() -> None:
    if not cluster.is_up():
        pytest.fail("the test bed is not up: make cluster-up")


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    assert kubectl("create", "namespace", name).returncode == 0
    # The service account is made a moment later; without it no pod is admitted.
    wait_for("serviceaccount/default", "create", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


def test_three_nodes_are_ready_with_four_gpus_each() -> None:
    assert {node: (nodes.is_ready(node), nodes.gpus_of(node)) for node in NODES} == dict.fromkeys(NODES, (True, 4))


def test_a_pod_runs_on_each_node(namespace: str) -> None:
    for node in NODES:
        run(namespace, node, ["python3", "-m", "http.server"], node=node)
    for node in NODES:
        wait_for(f"pod/{node}", "condition=Ready", namespace)


def test_gpus_are_given_out_by_the_scheduler(namespace: str) -> None:
    command = ["python3", "-c", "import os; print(os.environ['NVIDIA_VISIBLE_DEVICES'].count('gpu-'))"]
    run(namespace, "four", command, gpus=4)
    wait_for("pod/four", "jsonpath={.status.phase}=Succeeded", namespace)
    assert kubectl("logs", "four", f"--namespace={namespace}").stdout == "4\n"


def test_pods_talk_to_each_other_across_nodes(namespace: str) -> None:
    run(namespace, "server", ["python3", "-m", "http.server", "8000"], node="node1")
    wait_for("pod/server", "condition=Ready", namespace)
    address = kubectl("get", "pod", "server", f"--namespace={namespace}", "-o=jsonpath={.status.podIP}").stdout
    for node in ("node2", "node3"):
        run(namespace, node, fetch(f"http://{address}:8000/"), node=node)
    for node in ("node2", "node3"):
        wait_for(f"pod/{node}", "jsonpath={.status.phase}=Succeeded", namespace)


def test_pods_reach_the_api_server_by_the_address_they_are_told(namespace: str) -> None:
    script = "import os, socket; socket.create_connection((os.environ['KUBERNETES_SERVICE_HOST'], 443), 10)"
    run(namespace, "asks", ["python3", "-c", script])
    wait_for("pod/asks", "jsonpath={.status.phase}=Succeeded", namespace)


def test_pods_reach_the_object_store(namespace: str) -> None:
    endpoint = urllib.parse.urlsplit(services.store_environment()["S3_ENDPOINT_URL"])
    script = f"import socket; socket.create_connection(({endpoint.hostname!r}, {endpoint.port}), 10)"
    run(namespace, "asks", ["python3", "-c", script])
    wait_for("pod/asks", "jsonpath={.status.phase}=Succeeded", namespace)


@pytest.mark.full
def test_prometheus_finds_pods(namespace: str) -> None:
    run(namespace, "scraped", ["python3", "-m", "http.server", "8000"], annotations={"prometheus.io/scrape": "true"})
    wait_for("pod/scraped", "condition=Ready", namespace)
    wait_until("Prometheus knows the pod", lambda: namespace in discovered_namespaces(), seconds=60)


def test_a_gpu_that_breaks_is_not_given_out() -> None:
    nodes.set_gpu_health("node2", 1, healthy=False)
    try:
        wait_until("node2 has three GPUs", lambda: nodes.gpus_of("node2") == 3, seconds=30)
    finally:
        nodes.set_gpu_health("node2", 1, healthy=True)
    wait_until("node2 has four GPUs", lambda: nodes.gpus_of("node2") == 4, seconds=30)


@pytest.mark.full
def test_a_node_comes_back_when_its_kubelet_does() -> None:
    nodes.crash("node3")
    try:
        wait_for("node/node3", "condition=Ready=Unknown", seconds=90)
    finally:
        nodes.start_kubelet("node3")
    wait_for("node/node3", "condition=Ready", seconds=60)
    wait_until("node3 has four GPUs", lambda: nodes.gpus_of("node3") == 4, seconds=30)


@pytest.mark.full
def test_a_node_without_its_cable_is_not_ready_until_it_is_plugged_in() -> None:
    nodes.partition("node3")
    try:
        wait_for("node/node3", "condition=Ready=Unknown", seconds=90)
    finally:
        nodes.heal("node3")
    wait_for("node/node3", "condition=Ready", seconds=60)


def test_the_object_store_keeps_its_objects_when_it_goes_away() -> None:
    services.stop_store()
    services.start_store()
    assert services.has_bucket("runs")


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_worker_image_imports_torch_without_root(namespace: str) -> None:
    reference = cluster.add_image("trainer", print)
    script = "import os, torch, steadfast_trainer; print(os.getuid(), torch.ones(2).sum().item())"
    run(namespace, "torch", ["python", "-c", script], image=reference)
    wait_for("pod/torch", "jsonpath={.status.phase}=Succeeded", namespace, seconds=120)
    assert kubectl("logs", "torch", f"--namespace={namespace}").stdout == "10001 2.0\n"


def run(
    namespace: str,
    name: str,
    command: list[str],
    *,
    node: str = "",
    image: str = images.BASE,
    gpus: int = 0,
    annotations: dict[str, str] | None = None,
) -> None:
    """Create a pod, on a node or wherever the scheduler puts it."""
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "Never",
        "command": command,
        "ports": [{"containerPort": 8000}],
        "resources": {"limits": {"nvidia.com/gpu": gpus}} if gpus else {},
    }
    spec = {"containers": [container], "restartPolicy": "Never", "terminationGracePeriodSeconds": 0}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "annotations": annotations or {}},
        "spec": spec | ({"nodeName": node} if node else {}),
    }
    created = kubectl("create", "-f", "-", stdin=json.dumps(pod))
    assert created.returncode == 0, created.stderr


def fetch(url: str) -> list[str]:
    return ["python3", "-c", f"import urllib.request; urllib.request.urlopen({url!r}, timeout=10)"]


def wait_for(what: str, condition: str, namespace: str = "default", *, seconds: int = 60) -> None:
    reply = kubectl("wait", what, f"--for={condition}", f"--namespace={namespace}", f"--timeout={seconds}s")
    if reply.returncode:
        detail = kubectl("describe", what, f"--namespace={namespace}").stdout
        pytest.fail(f"{reply.stderr}\n{detail[-3000:]}")


def discovered_namespaces() -> set[str]:
    with urllib.request.urlopen(f"{services.PROMETHEUS_URL}/api/v1/targets?state=active", timeout=5) as reply:
        targets = json.load(reply)["data"]["activeTargets"]
    return {target["labels"]["namespace"] for target in targets}

"""The nodes: each a network namespace with private mounts, a containerd, a kubelet and a GPU device plugin.

A holder process keeps a node's mounts, so that its programs can stop and start again as on a machine that stays up.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from testbed import control, network
from testbed.containers import clone_golden, write_containerd_config
from testbed.paths import BIN, NODES, PKI, node_folder, template, write
from testbed.processes import CGROUP, Process, kill_cgroup, make_cgroup, recorded, start, stop, wait_until

GPUS = 4
PARTS = ("mounts", "containerd", "kubelet", "gpu-device-plugin")
_OWN_FOLDERS = {
    "kubelet": "/var/lib/kubelet",
    "cni": "/var/lib/cni",
    "containerd": "/run/containerd",
    "container-logs": "/var/log/containers",
    "network-namespaces": "/run/netns",
}
"""Places with fixed names that kubelets on one machine would fight over."""


def cgroup_of(node: str) -> str:
    return f"{CGROUP}/{node}"


def up(nodes: Sequence[str] = NODES) -> None:
    """Start what does not run of each node; returns when all are Ready with their GPUs."""
    for node in nodes:
        _prepare(node)
        _hold_mounts(node)
        start_containerd(node)
    for node in nodes:
        start_kubelet(node)
    for node in nodes:
        process = recorded(f"{node}-kubelet")
        wait_until(f"{node} is Ready", lambda node=node: is_ready(node), seconds=90, process=process)
        wait_until(f"{node} has its GPUs", lambda node=node: gpus_of(node) is not None, seconds=30)


def start_containerd(node: str) -> None:
    folder = node_folder(node)
    process = start_in_node(node, "containerd", ["containerd", f"--config={folder}/containerd.toml"])
    command = ["ctr", f"--address={folder}/containerd.sock", "version"]
    wait_until(
        f"containerd of {node} answers",
        lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0,
        seconds=30,
        process=process,
    )


def start_kubelet(node: str) -> None:
    flags = [
        f"--config={node_folder(node)}/kubelet.yaml",
        f"--kubeconfig={PKI / node}.kubeconfig",
        f"--node-ip={network.address_of(node)}",
        f"--hostname-override={node}",
        f"--node-labels=kubernetes.io/hostname={node},nvidia.com/gpu.product=TESTBED",
    ]
    start_in_node(node, "kubelet", [BIN / "kubelet", *flags])
    health = _health_folder(node)
    health.mkdir(exist_ok=True)
    start_in_node(node, "gpu-device-plugin", [BIN / "gpu-device-plugin", f"--count={GPUS}", f"--health={health}"])


def start_in_node(node: str, name: str, command: Sequence[object]) -> Process:
    return start(f"{node}-{name}", command, namespace=network.namespace_of(node), mounts_of=recorded(f"{node}-mounts"))


def is_ready(node: str) -> bool:
    condition = '{.status.conditions[?(@.type=="Ready")].status}'
    return control.kubectl("get", "node", node, f"-o=jsonpath={condition}").stdout == "True"


def gpus_of(node: str) -> int | None:
    """Allocatable GPUs, as the scheduler sees them; None while the node has none at all to speak of."""
    reply = control.kubectl("get", "node", node, "-o=json")
    if reply.returncode:
        return None
    count = json.loads(reply.stdout)["status"].get("allocatable", {}).get("nvidia.com/gpu")
    return None if count is None else int(count)


# Faults: what the chaos tests do to a node


def partition(node: str) -> None:
    """Pull its cable: everything on it goes on running, nobody hears of it."""
    network.set_link(network.namespace_of(node), "down")


def heal(node: str) -> None:
    network.set_link(network.namespace_of(node), "up")


def stop_kubelet(node: str) -> None:
    """The containers go on; after the grace period the node is NotReady."""
    for name in ("gpu-device-plugin", "kubelet"):
        stop(f"{node}-{name}")


def kill_containers(node: str) -> int:
    """SIGKILL to everything that pods run on this node; returns how many processes."""
    return kill_cgroup(f"{cgroup_of(node)}/kubepods")


def crash(node: str) -> None:
    """As if it lost power: kubelet first, then what its pods run."""
    stop_kubelet(node)
    kill_containers(node)


def set_gpu_health(node: str, gpu: int, *, healthy: bool) -> None:
    """Allocatable follows with the kubelet's next report, at most 10 s later."""
    mark = _health_folder(node) / f"gpu-{gpu}"
    if healthy:
        mark.unlink(missing_ok=True)
    else:
        mark.touch()


def _health_folder(node: str) -> Path:
    return node_folder(node) / "unhealthy-gpus"


# A node's folder and mounts


def _prepare(node: str) -> None:
    folder = node_folder(node)
    if (folder / "prepared").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    for name in _OWN_FOLDERS:
        (folder / "own" / name).mkdir(parents=True)
    for path in ("pod-logs", "unhealthy-gpus"):
        (folder / path).mkdir()
    make_cgroup(cgroup_of(node))
    write_containerd_config(folder, root=folder / "containerd")
    write(
        folder / "cni" / "10-testbed.conflist", template("cni.json", folder=folder, subnet=network.pod_subnet_of(node))
    )
    write(folder / "kubelet.yaml", template("kubelet.yaml", folder=folder, cgroup=cgroup_of(node), pki=PKI))
    clone_golden(folder / "containerd")
    (folder / "prepared").touch()


def _hold_mounts(node: str) -> None:
    if (holder := recorded(f"{node}-mounts")) and holder.runs:
        return
    folder = node_folder(node)
    binds = [f"mkdir -p {there} && mount --bind {folder}/own/{name} {there}" for name, there in _OWN_FOLDERS.items()]
    ready = folder / "mounted"
    ready.unlink(missing_ok=True)
    script = " && ".join([*binds, f"touch {ready}", "exec sleep infinity"])
    holder = start(f"{node}-mounts", ["unshare", "--mount", "sh", "-c", script], namespace=network.namespace_of(node))
    wait_until(f"the mounts of {node} are made", ready.exists, seconds=10, process=holder)

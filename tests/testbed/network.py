"""Network of the test bed: a namespace per node, one for the control plane, one for the object store, joined by a
bridge in a namespace of its own. The machine itself gets one leg, so that tests reach all of it. No traffic leaves.
"""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path

from testbed.paths import NODES, BedError

FABRIC = "sf-fabric"
CONTROL = "sf-cp"
STORE = "sf-store"
HOST_LINK = "sf-host"
CONTROL_ADDRESS = "10.240.0.10"
STORE_ADDRESS = "10.240.0.20"
HOST_ADDRESS = "10.240.0.1"
SERVICES = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
API_PORT = 6443


def namespace_of(node: str) -> str:
    return f"sf-{node}"


def address_of(node: str) -> str:
    return f"10.240.0.{11 + NODES.index(node)}"


def pod_subnet_of(node: str) -> str:
    return f"10.244.{1 + NODES.index(node)}.0/24"


def namespaces() -> list[str]:
    return [FABRIC, CONTROL, STORE, *map(namespace_of, NODES)]


def existing() -> list[str]:
    return [name for name in namespaces() if Path("/run/netns", name).exists()]


def stands() -> bool:
    """Whether its last part is there: it is not after a restart of the machine, though files say so."""
    command = ["ip", "-n", FABRIC, "link", "show", "host"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def create() -> None:
    """The whole network, anew."""
    for name in namespaces():
        _run("ip", "netns", "add", name)
        _run("ip", "-n", name, "link", "set", "lo", "up")
    _run("ip", "-n", FABRIC, "link", "add", "br0", "type", "bridge")
    _run("ip", "-n", FABRIC, "link", "set", "br0", "up")
    _join(CONTROL, CONTROL_ADDRESS)
    _join(STORE, STORE_ADDRESS)
    for node in NODES:
        _join(namespace_of(node), address_of(node))
    _join_host()
    _set_routes()
    _redirect_api_service()


def delete() -> None:
    for name in existing():
        _run("ip", "netns", "delete", name)
    if Path("/sys/class/net", HOST_LINK).exists():
        _run("ip", "link", "delete", HOST_LINK)


def set_link(namespace: str, state: str) -> None:
    """Pull (`down`) or plug in (`up`) the cable of a node, of the store, at the switch."""
    _run("ip", "-n", FABRIC, "link", "set", namespace, state)


def link_is_up(namespace: str) -> bool:
    command = ["ip", "-n", FABRIC, "-o", "link", "show", namespace]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return ",UP" in result.stdout


def _join(namespace: str, address: str) -> None:
    _run("ip", "-n", FABRIC, "link", "add", namespace, "type", "veth", "peer", "name", "eth0", "netns", namespace)
    _run("ip", "-n", FABRIC, "link", "set", namespace, "master", "br0", "up")
    _run("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
    _run("ip", "-n", namespace, "link", "set", "eth0", "up")
    _run("nsenter", f"--net=/run/netns/{namespace}", "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")


def _join_host() -> None:
    _run("ip", "-n", FABRIC, "link", "add", "host", "type", "veth", "peer", "name", HOST_LINK, "netns", "1")
    _run("ip", "-n", FABRIC, "link", "set", "host", "master", "br0", "up")
    _run("ip", "address", "add", f"{HOST_ADDRESS}/24", "dev", HOST_LINK)
    _run("ip", "link", "set", HOST_LINK, "up")


def _set_routes() -> None:
    for node in NODES:
        for namespace in (CONTROL, STORE, *(namespace_of(other) for other in NODES if other != node)):
            _run("ip", "-n", namespace, "route", "add", pod_subnet_of(node), "via", address_of(node))
        _run("ip", "route", "add", pod_subnet_of(node), "via", address_of(node))
        _run("ip", "-n", namespace_of(node), "route", "add", SERVICES, "via", CONTROL_ADDRESS)


def _redirect_api_service() -> None:
    """The one Service with an address: pods find the API server without kube-proxy."""
    _run("ip", "-n", CONTROL, "address", "add", f"{API_SERVICE}/32", "dev", "lo")
    rule = ["-d", API_SERVICE, "-p", "tcp", "--dport", "443", "-j", "REDIRECT", "--to-ports", str(API_PORT)]
    _run("nsenter", f"--net=/run/netns/{CONTROL}", "iptables", "-t", "nat", "-A", "PREROUTING", *rule)


def _run(*command: str) -> None:
    with suppress(FileNotFoundError):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise BedError(f"{' '.join(command)}: {result.stderr.strip()}")
        return
    raise BedError(f"{command[0]} is not installed")

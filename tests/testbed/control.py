"""The control plane: etcd, API server, controller manager, scheduler, in a network namespace of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from testbed import network, pki
from testbed.paths import BIN, KUBECONFIG, PKI, STATE
from testbed.processes import Process, start, wait_until

COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")


def up() -> None:
    """Start what does not run; returns when the API server is ready."""
    if not KUBECONFIG.exists():
        pki.create()
    _start("etcd", _etcd())
    api = _start("kube-apiserver", [BIN / "kube-apiserver", *_apiserver_flags()])
    wait_until("the API server is ready", api_is_ready, seconds=90, process=api)
    for name in ("kube-controller-manager", "kube-scheduler"):
        flags = [f"--kubeconfig={PKI / name}.kubeconfig", "--leader-elect=false"]
        if name == "kube-controller-manager":
            flags += [
                "--use-service-account-credentials",
                f"--service-account-private-key-file={PKI / 'service-accounts.key'}",
                f"--root-ca-file={PKI / 'ca.crt'}",
                "--allocate-node-cidrs=false",
            ]
        _start(name, [BIN / name, *flags])


def api_is_ready() -> bool:
    return kubectl("get", "--raw=/readyz").returncode == 0


def kubectl(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Our kubectl with the bed's kubeconfig; look at the return code yourself."""
    patience = [] if "wait" in arguments else ["--request-timeout=20s"]
    command = [str(BIN / "kubectl"), f"--kubeconfig={KUBECONFIG}", *patience, *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


def _start(name: str, command: Sequence[object]) -> Process:
    return start(name, command, namespace=network.CONTROL)


def _etcd() -> list[object]:
    client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
    return [
        "etcd",
        f"--data-dir={STATE / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
    ]


def _apiserver_flags() -> list[str]:
    return [
        "--etcd-servers=http://127.0.0.1:2379",
        f"--advertise-address={network.CONTROL_ADDRESS}",
        f"--secure-port={network.API_PORT}",
        f"--service-cluster-ip-range={network.SERVICES}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--client-ca-file={PKI / 'ca.crt'}",
        f"--tls-cert-file={PKI / 'apiserver.crt'}",
        f"--tls-private-key-file={PKI / 'apiserver.key'}",
        f"--kubelet-client-certificate={PKI / 'apiserver-kubelet.crt'}",
        f"--kubelet-client-key={PKI / 'apiserver-kubelet.key'}",
        "--kubelet-preferred-address-types=InternalIP",  # names would need DNS
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={PKI / 'service-accounts.pub'}",
        f"--service-account-signing-key-file={PKI / 'service-accounts.key'}",
    ]

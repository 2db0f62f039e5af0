"""Certificates and kubeconfigs of one bed: a new authority for each, valid for a month, made with openssl."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

from testbed import network
from testbed.paths import KUBECONFIG, NODES, PKI, template, write

DAYS = "30"
_SERVER_NAMES = (
    f"IP:{network.CONTROL_ADDRESS},IP:{network.API_SERVICE},IP:127.0.0.1,"
    "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
)


def create() -> None:
    PKI.mkdir(parents=True, exist_ok=True, mode=0o700)
    _key("ca")
    _openssl("req", "-x509", "-new", "-key", "ca.key", "-subj", "/CN=testbed-ca", "-days", DAYS, "-out", "ca.crt")
    _key("service-accounts")
    _openssl("pkey", "-in", "service-accounts.key", "-pubout", "-out", "service-accounts.pub")
    _certificate("apiserver", "/CN=kube-apiserver", names=_SERVER_NAMES)
    _certificate("apiserver-kubelet", "/O=system:masters/CN=apiserver-kubelet")
    create_kubeconfig("admin", "/O=system:masters/CN=admin", path=KUBECONFIG)
    for name in ("kube-controller-manager", "kube-scheduler"):
        create_kubeconfig(name, f"/CN=system:{name}")
    for node in NODES:
        create_kubeconfig(node, f"/O=system:nodes/CN=system:node:{node}")


def create_kubeconfig(name: str, subject: str, *, path: Path | None = None) -> Path:
    _certificate(name, subject)
    text = template(
        "kubeconfig.yaml",
        server=f"https://{network.CONTROL_ADDRESS}:{network.API_PORT}",
        ca=_base64("ca.crt"),
        certificate=_base64(f"{name}.crt"),
        key=_base64(f"{name}.key"),
    )
    return write(path or PKI / f"{name}.kubeconfig", text, 0o600)


def _certificate(name: str, subject: str, *, names: str = "") -> None:
    _key(name)
    _openssl("req", "-new", "-key", f"{name}.key", "-subj", subject, "-out", f"{name}.csr")
    extensions = "extendedKeyUsage=serverAuth,clientAuth\n" + (f"subjectAltName={names}\n" if names else "")
    write(PKI / f"{name}.ext", extensions)
    sign = ["x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"]
    _openssl(*sign, "-days", DAYS, "-extfile", f"{name}.ext", "-out", f"{name}.crt")


def _key(name: str) -> None:
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{name}.key")


def _base64(name: str) -> str:
    return base64.b64encode((PKI / name).read_bytes()).decode()


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=PKI, check=True, capture_output=True)

"""What Steadfast is measured against: JobSet and Kubeflow's training operator, and the DNS that their pods need.

They run as processes in the control plane's namespace, like its other parts, and only when a benchmark asks for them.
No webhook is configured: manifests spell out what those would have filled in, and requests are spared their latency.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from testbed import control, images, network
from testbed.paths import BIN, CACHE, KUBECONFIG, PKI, STATE, BedError, template, write
from testbed.processes import recorded, start, stop, wait_until
from testbed.programs import Build, ensure, module_folder, stored

DNS_ADDRESS = network.CONTROL_ADDRESS
NAMESPACE = "kubeflow"
_FOLDER = STATE / "peers"
_JOBSET_CONFIG = {
    "apiVersion": "config.jobset.x-k8s.io/v1alpha1",
    "kind": "Configuration",
    "leaderElection": {"leaderElect": False},
    "internalCertManagement": {"enable": False},
    "health": {"healthProbeBindAddress": ":18081"},
    "metrics": {"bindAddress": "0"},
    "webhook": {"port": 19443},
}
_INIT_CONTAINER = f"""
- name: init-pytorch
  image: {images.BASE}
  imagePullPolicy: Never
  command: ['sh', '-c', 'for i in $(seq {{{{.MaxTries}}}}); do getent hosts {{{{.MasterAddr}}}} && exit 0; sleep 2; done; exit 1']
"""  # noqa: E501
"""The training operator's own, with an image that the nodes have, which has getent instead of nslookup."""


@dataclass(frozen=True)
class Peer:
    """A controller: what it is built from, where its module keeps its resource, where it says that it is ready."""

    build: Build
    source: str
    resource: str
    ready: str


DNS = Peer(Build("coredns", ".", ("coredns",)), "", "", f"http://{DNS_ADDRESS}:8181/ready")
JOBSET = Peer(
    Build("jobset", "sigs.k8s.io/jobset", ("jobset",)),
    "sigs.k8s.io/jobset",
    "config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml",
    f"http://{network.CONTROL_ADDRESS}:18081/readyz",
)
_KUBEFLOW = "github.com/kubeflow/training-operator"
TRAINING_OPERATOR = Peer(
    Build("training-operator", f"{_KUBEFLOW}/cmd/training-operator.v1", ("training-operator",)),
    _KUBEFLOW,
    "manifests/base/crds/kubeflow.org_pytorchjobs.yaml",
    f"http://{network.CONTROL_ADDRESS}:18082/readyz",
)
PEERS = (DNS, JOBSET, TRAINING_OPERATOR)


def up(say: Callable[[str], None]) -> None:
    """Build what the cache lacks, start what does not run; returns when all are ready.

    Raises:
        BedError: the bed is not up, or one does not start.
    """
    if not KUBECONFIG.exists() or not control.api_is_ready():
        raise BedError("the test bed is not up: make cluster-up")
    ensure(say, [peer.build for peer in PEERS])
    for peer in PEERS:
        if peer.resource:
            _apply(_resource(peer))
    folder = _private_tmp()
    _start(DNS, BIN / "coredns", f"-conf={_corefile()}")
    config = write(_FOLDER / "jobset.yaml", json.dumps(_JOBSET_CONFIG))
    _start(JOBSET, *_with_tmp(folder), BIN / "jobset", f"--kubeconfig={KUBECONFIG}", f"--config={config}")
    _start(TRAINING_OPERATOR, *_with_tmp(folder), *_training_operator())
    say(f"{', '.join(peer.build.names[0] for peer in PEERS)} are ready")


def down() -> None:
    """End them; their resources, and what users made of them, stay."""
    for peer in PEERS:
        stop(peer.build.names[0])


def run() -> bool:
    processes = [recorded(peer.build.names[0]) for peer in PEERS]
    return all(process is not None and process.runs for process in processes)


def _start(peer: Peer, *command: object) -> None:
    name = peer.build.names[0]
    process = start(name, command, namespace=network.CONTROL)
    wait_until(f"{name} is ready", lambda: _answers(peer.ready), seconds=60, process=process)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def _corefile() -> Path:
    return write(_FOLDER / "Corefile", template("Corefile", address=DNS_ADDRESS, kubeconfig=KUBECONFIG))


def _training_operator() -> list[object]:
    """It waits for a Secret to put a certificate into, and for that certificate as a file."""
    _apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    secret = {"name": "training-operator-webhook-cert", "namespace": NAMESPACE}
    if control.kubectl("get", "secret", secret["name"], f"--namespace={NAMESPACE}").returncode:
        _apply({"apiVersion": "v1", "kind": "Secret", "metadata": secret})
    init_container = write(_FOLDER / "init-container.yaml", _INIT_CONTAINER)
    return [
        "env",
        f"MY_POD_NAMESPACE={NAMESPACE}",
        BIN / "training-operator",
        f"--kubeconfig={KUBECONFIG}",
        "--enable-scheme=pytorchjob",
        "--metrics-bind-address=0",
        "--health-probe-bind-address=:18082",
        "--webhook-server-port=19444",
        f"--pytorch-init-container-template-file={init_container}",
    ]


def _private_tmp() -> Path:
    """Both read their webhook's certificate from a fixed folder below /tmp; any will do, nobody asks the webhook."""
    folder = _FOLDER / "tmp"
    for name in ("k8s-webhook-server", "k8s-metrics-server"):
        certificates = folder / name / "serving-certs"
        certificates.mkdir(parents=True, exist_ok=True)
        for kind in ("crt", "key"):
            shutil.copy2(PKI / f"apiserver.{kind}", certificates / f"tls.{kind}")
    return folder


def _with_tmp(folder: Path) -> list[object]:
    return ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /tmp && exec "$@"', folder]


def _apply(resource: dict[str, object] | Path) -> None:
    text = resource.read_text() if isinstance(resource, Path) else json.dumps(resource)
    # A client's apply would keep a second copy in an annotation, which has less room.
    result = control.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", stdin=text)
    if result.returncode:
        raise BedError(f"kubectl apply: {result.stderr.strip()[-500:]}")


def _resource(peer: Peer) -> Path:
    """The definition from the module that the program is built from, kept beside the program."""
    kept = CACHE / "peers" / f"{stored(peer.build).name}.yaml"
    if not kept.exists():
        folder = module_folder(peer.build)
        subprocess.run(["go", "mod", "download", peer.source], cwd=folder, check=True, capture_output=True)
        command = ["go", "list", "-m", "-f={{.Dir}}", peer.source]
        source = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
        write(kept, (Path(source) / peer.resource).read_text())
    return kept

"""The same training under four systems: Steadfast, JobSet, Kubeflow's PyTorchJob, and a plain Indexed Job.

Each has two pods with one rank, from one image, with one configuration. The three peers run the trainer under
`torchrun`, as their own documentation does, and with the restarts that they offer for training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from steadfast_operator.api.labels import JOB_NAME, NODE_RANK
from steadfast_operator.api.resolve import training_config
from steadfast_operator.api.types import TrainingJob

Manifest = dict[str, Any]

WORKERS = 2
SECRET = "steadfast-bench"
FOLDER = "/run/steadfast"
_USER = 10001
_PORT = 29400
_INDEX = "batch.kubernetes.io/job-completion-index"
_KUBEFLOW = "training.kubeflow.org"
_OWN_STORE = """
import os, socket
if os.environ["RANK"] == "0":
    listener = socket.create_server(("", int(os.environ["MASTER_PORT"])))
    os.set_inheritable(listener.fileno(), True)
    os.environ["STEADFAST_MASTER_LISTEN_FD"] = str(listener.fileno())
os.environ["TORCHELASTIC_RESTART_COUNT"] = "0"
os.execvp("python", ["python", "-m", "steadfast_trainer"])
"""
"""A store of its own for each round of torchrun's rendezvous, at the port that the round agreed on.

The agents' shared store outlives rounds, and the trainer tells rounds apart by the agent's count of restarts, which a
new pod's agent has not: a gang with a replaced pod would never meet.
"""
_VOLUMES = {"work": FOLDER, "shared-memory": "/dev/shm", "temporary": "/tmp"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """What all jobs of a benchmark share."""

    namespace: str
    profile: str
    image: str
    endpoint: str
    region: str
    dns: str


@dataclass(frozen=True)
class System:
    """How a system is told what to train, and which of the pods is the last worker."""

    name: str
    manifests: Callable[[str, Place], list[Manifest]]
    last_worker: str
    """A label selector; `{job}` stands for the job's name."""


def steadfast(job: str, place: Place) -> list[Manifest]:
    """A `TrainingJob`; what it trains is what the others are given, too."""
    spec = {
        "image": place.image,
        "profile": place.profile,
        "workers": WORKERS,
        "ranksPerWorker": 1,
        "device": "cpu",
        "model": {"preset": "moe-nano"},
        "train": {"steps": 1_000_000, "globalBatchTokens": 256},
        "data": {
            "tokenizer": "s3://corpora/bench/tokenizer.json",
            "streams": [{"name": "bench", "remote": "s3://corpora/bench"}],
        },
        "checkpoint": {"destination": "s3://runs", "intervalSeconds": 2},
        "objectStore": {"endpoint": place.endpoint, "region": place.region, "credentialsSecret": SECRET},
    }
    return [_object("steadfast.dev/v1alpha1", "TrainingJob", job, place, spec)]


def jobset(job: str, place: Place) -> list[Manifest]:
    """One failed pod fails its Job, and the JobSet makes all of it anew: its `Recreate`, which is its default."""
    arguments = [
        f"--nnodes={WORKERS}",
        "--nproc-per-node=1",
        "--node-rank=$(JOB_COMPLETION_INDEX)",
        f"--master-addr={job}-workers-0-0.{job}",
        f"--master-port={_PORT}",
        f"--rdzv-id={job}",
    ]
    spec = {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True, "subdomain": job},
        "successPolicy": {"operator": "All"},
        "startupPolicy": {"startupPolicyOrder": "AnyOrder"},
        "failurePolicy": {"maxRestarts": 100, "restartStrategy": "Recreate"},
        "replicatedJobs": [
            {
                "name": "workers",
                "replicas": 1,
                "template": {"spec": {**_indexed(), "backoffLimit": 0, "template": _pod(job, place, arguments)}},
            }
        ],
    }
    return [_object("jobset.x-k8s.io/v1alpha2", "JobSet", job, place, spec)]


def pytorchjob(job: str, place: Place) -> list[Manifest]:
    """A failed container is started again where it is, with the kubelet's back-off; the operator tells torchrun."""
    replica = {
        "replicas": 1,
        "restartPolicy": "OnFailure",
        "template": _pod(job, place, [f"--rdzv-id={job}"], restart="OnFailure"),
    }
    spec = {
        "nprocPerNode": "1",
        "runPolicy": {"cleanPodPolicy": "None"},
        "pytorchReplicaSpecs": {"Master": replica, "Worker": replica},
    }
    return [_object("kubeflow.org/v1", "PyTorchJob", job, place, spec)]


def torchrun_job(job: str, place: Place) -> list[Manifest]:
    """No controller but Kubernetes' own: torchrun restarts ranks in its pods, the Job replaces lost pods."""
    arguments = [
        f"--nnodes={WORKERS}",
        "--nproc-per-node=1",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={job}-0.{job}:{_PORT}",
        f"--rdzv-id={job}",
        "--local-addr=$(POD_IP)",  # the test bed's kubelets know no domain, of which its own guess would be made
        "--max-restarts=100",
    ]
    service = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"job-name": job}}
    program = ["--no-python", "python", "-c", _OWN_STORE]
    template = _pod(job, place, arguments, program=program, restart="OnFailure")
    template["spec"]["subdomain"] = job
    template["spec"]["containers"][0]["env"] += [
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "value": "1"},
    ]
    spec = {**_indexed(), "backoffLimit": 100, "template": template}
    return [_object("v1", "Service", job, place, service), _object("batch/v1", "Job", job, place, spec)]


SYSTEMS = {
    system.name: system
    for system in (
        System("steadfast", steadfast, f"{JOB_NAME}={{job}},{NODE_RANK}={WORKERS - 1}"),
        System("jobset", jobset, f"jobset.sigs.k8s.io/jobset-name={{job}},{_INDEX}={WORKERS - 1}"),
        System("pytorchjob", pytorchjob, f"{_KUBEFLOW}/job-name={{job}},{_KUBEFLOW}/replica-type=worker"),
        System("torchrun-job", torchrun_job, f"job-name={{job}},{_INDEX}={WORKERS - 1}"),
    )
}


def _object(version: str, kind: str, name: str, place: Place, spec: Manifest) -> Manifest:
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": name, "namespace": place.namespace},
        "spec": spec,
    }


def _indexed() -> Manifest:
    return {"completionMode": "Indexed", "completions": WORKERS, "parallelism": WORKERS}


def _pod(
    job: str,
    place: Place,
    torchrun: list[str],
    *,
    program: Sequence[str] = ("-m", "steadfast_trainer"),
    restart: str = "Never",
) -> Manifest:
    """What a worker of Steadfast is, with torchrun in the place of its agent, and with a DNS."""
    training = training_config(TrainingJob.model_validate(steadfast(job, place)[0])).to_json()
    env = {
        "STEADFAST_TRAINING": training,
        "STEADFAST_FOLDER": FOLDER,
        "OMP_NUM_THREADS": "1",
        "S3_ENDPOINT_URL": place.endpoint,
        "AWS_REGION": place.region,
    }
    container = {
        "name": "pytorch",
        "image": place.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["torchrun", *torchrun, *program],
        "env": [{"name": name, "value": value} for name, value in env.items()],
        "envFrom": [{"secretRef": {"name": SECRET}}],
        "ports": [{"name": "pytorchjob-port", "containerPort": _PORT}],
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in _VOLUMES.items()],
    }
    return {
        "spec": {
            "restartPolicy": restart,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "dnsPolicy": "None",
            "dnsConfig": {
                "nameservers": [place.dns],
                "searches": [f"{place.namespace}.svc.cluster.local", "svc.cluster.local", "cluster.local"],
                "options": [{"name": "ndots", "value": "5"}],
            },
            "securityContext": {"runAsNonRoot": True, "runAsUser": _USER, "runAsGroup": _USER, "fsGroup": _USER},
            "volumes": [
                {"name": name, "emptyDir": {"medium": "Memory"} if name == "shared-memory" else {}} for name in _VOLUMES
            ],
            "containers": [container],
        }
    }

"""The pod of one worker, from the job, its profile and the decision to create it. `shell/kube.py` sends it as it is.

It has no privilege but those that the profile gives.
"""

from __future__ import annotations

from typing import Any

from steadfast_contract.env import WorkerEnv
from steadfast_contract.folder import termination_path
from steadfast_operator.api import labels
from steadfast_operator.api.profile import ClusterTrainingProfile, ProfileSpec
from steadfast_operator.api.resolve import object_store
from steadfast_operator.api.types import API_VERSION, KIND, TrainingJob
from steadfast_operator.core.actions import CreateWorker
from steadfast_operator.core.workers import store_variables, worker_env

Manifest = dict[str, Any]

CONTAINER = "worker"
USER = 10001
LOST_NODE_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
LOST_NODE_SECONDS = 5
"""Kubernetes' own patience with a worker on such a node is five minutes."""
_VOLUMES = {
    "shared-memory": ("/dev/shm", {"medium": "Memory"}),
    "work": (WorkerEnv.folder, {}),
    "temporary": ("/tmp", {}),
}
"""What a worker may write: all of it ends with the pod."""


def build_worker_pod(
    job: TrainingJob, action: CreateWorker, *, profile: ClusterTrainingProfile, training: str, grace_seconds: int
) -> Manifest:
    """The manifest; `training` is the `TrainingConfig` as JSON, `grace_seconds` the time to save in after SIGTERM."""
    env = worker_env(job, action, training=training)
    pod: Manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": env.worker,
            "namespace": job.metadata.namespace,
            "labels": child_labels(job=job.metadata.name, uid=job.metadata.uid)
            | {
                labels.ATTEMPT: str(action.attempt),
                labels.SERIAL: str(action.serial),
                labels.NODE_RANK: str(action.node_rank),
            },
            "annotations": _scraped(env.port) | profile.spec.annotations,
            "ownerReferences": [owner_reference(job=job.metadata.name, uid=job.metadata.uid)],
        },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": grace_seconds,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "volumes": [{"name": name, "emptyDir": dict(source)} for name, (_, source) in _VOLUMES.items()],
            "containers": [_container(job, env, profile=profile)],
        },
    }
    _place(pod, profile.spec)
    if (account := object_store(job, profile).service_account_name) is not None:
        pod["spec"]["serviceAccountName"] = account
    return pod


def _place(pod: Manifest, profile: ProfileSpec) -> None:
    """Where the pod may run, and in which network."""
    spec = pod["spec"]
    if profile.node_selector:
        spec["nodeSelector"] = dict(profile.node_selector)
    given = [one.model_dump(mode="json", by_alias=True, exclude_none=True) for one in profile.tolerations]
    spec["tolerations"] = given + [
        {"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": LOST_NODE_SECONDS}
        for taint in LOST_NODE_TAINTS
        if not any(one.get("key") == taint for one in given)
    ]
    if profile.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in profile.image_pull_secrets]
    if profile.host_network:
        spec |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}


def child_labels(*, job: str, uid: str) -> dict[str, str]:
    """What every child of a job is selected by."""
    return {
        "app.kubernetes.io/managed-by": "steadfast",
        labels.JOB_NAME: job,
        labels.JOB_UID: uid,
    }


def owner_reference(*, job: str, uid: str) -> Manifest:
    """The job as controller: its children go when it goes, whether or not an operator runs."""
    return {"apiVersion": API_VERSION, "kind": KIND, "name": job, "uid": uid, "controller": True}


def _scraped(port: int) -> dict[str, str]:
    """How a Prometheus without its operator finds the metrics of a worker."""
    return {"prometheus.io/scrape": "true", "prometheus.io/port": str(port), "prometheus.io/path": "/metrics"}


def _container(job: TrainingJob, env: WorkerEnv, *, profile: ClusterTrainingProfile) -> Manifest:
    gives, store = profile.spec, object_store(job, profile)
    variables = gives.environment | env.to_mapping() | store_variables(store)
    container: Manifest = {
        "name": CONTAINER,
        "image": job.spec.image,
        "command": ["python", "-m", "steadfast_agent"],
        "env": [_variable(name, value) for name, value in variables.items()],
        "ports": _ports(env, on_host=gives.host_network),
        "livenessProbe": _probe("/healthz", env.port) | {"periodSeconds": 5, "failureThreshold": 6},
        "readinessProbe": _probe("/readyz", env.port) | {"periodSeconds": 2},
        "terminationMessagePath": str(termination_path(env.folder)),
        "securityContext": {
            # A program that is not root has a capability only by gaining it from its file.
            "allowPrivilegeEscalation": bool(gives.capabilities),
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]} | _added(gives),
        },
        "volumeMounts": [{"name": name, "mountPath": path} for name, (path, _) in _VOLUMES.items()],
    }
    if limits := _limits(job, gives):
        container["resources"] = {"limits": limits, "requests": dict(limits)}
    if (secret := store.credentials_secret) is not None:
        container["envFrom"] = [{"secretRef": {"name": secret}}]
    return container


def _variable(name: str, value: str) -> Manifest:
    # The kubelet would replace $(NAME) by that variable, a secret's perhaps; $$ stands for a dollar.
    return {"name": name, "value": value.replace("$", "$$")}


def _probe(path: str, port: int) -> Manifest:
    return {"httpGet": {"path": path, "port": port}, "timeoutSeconds": 5}


def _ports(env: WorkerEnv, *, on_host: bool) -> list[Manifest]:
    """In a node's network they are the node's: the scheduler keeps apart what would listen on the same ones."""
    if not on_host:
        return [{"name": "agent", "containerPort": env.port}]
    ports = {"agent": env.port, "rendezvous": env.master_port}
    return [{"name": name, "containerPort": port, "hostPort": port} for name, port in ports.items()]


def _added(profile: ProfileSpec) -> Manifest:
    return {"add": [str(capability) for capability in profile.capabilities]} if profile.capabilities else {}


def _limits(job: TrainingJob, profile: ProfileSpec) -> dict[str, str]:
    given = {name: str(count) for name, count in profile.worker_resources.items()}
    gpus = {profile.gpu_resource: str(job.spec.gpus_per_worker)} if job.spec.gpus_per_worker else {}
    return given | job.spec.resources.limits | gpus

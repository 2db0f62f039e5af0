"""The NetworkPolicy of one job: who may reach its workers. `shell/kube.py` sends it as it is, before the first pod.

Everything that ranks say to each other is trusted: whoever reaches their ports takes part in the training. So only
workers of the same job do. It is a fence between namespaces and jobs, not within a namespace, where whoever may create
pods may also give them the job's label. Ways out are left open, because object stores are anywhere. Policies need a
network plugin that enforces them, and do not apply to workers in their node's network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from steadfast_contract.env import WorkerEnv
from steadfast_operator.api import labels
from steadfast_operator.api.types import TrainingJob
from steadfast_operator.core.pods import child_labels, owner_reference

Manifest = dict[str, Any]

OPERATOR_LABELS = {"app.kubernetes.io/name": "steadfast"}
"""What the chart gives to the operator's pods."""
_NAMESPACE = "kubernetes.io/metadata.name"


@dataclass(frozen=True, kw_only=True)
class Callers:
    """Who may ask the agents of all jobs, beside the kubelet, whose probes no policy stops."""

    operator_namespace: str | None = None
    """Where the operator's pods are; None: it runs outside the cluster, and anybody may be the operator."""
    metrics_namespaces: tuple[str, ...] = ()
    """Where Prometheus is; empty: in any namespace. An agent tells how far training is and takes no orders, so metrics
    that work everywhere are the better default; name the namespaces where losses and speeds are nobody's business."""


def build_network_policy(job: TrainingJob, callers: Callers) -> Manifest:
    """The manifest."""
    meta = job.metadata
    workers = {"matchLabels": {labels.JOB_UID: meta.uid}}
    agent = {"ports": [{"protocol": "TCP", "port": WorkerEnv.port}]}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": labels.policy_name(job=meta.name, uid=meta.uid),
            "namespace": meta.namespace,
            "labels": child_labels(job=meta.name, uid=meta.uid),
            "ownerReferences": [owner_reference(job=meta.name, uid=meta.uid)],
        },
        "spec": {
            "podSelector": workers,
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": workers}]}, agent | _from(callers)],
        },
    }


def _from(callers: Callers) -> Manifest:
    """Peers of the agent's port; without `from` everybody is one."""
    if callers.operator_namespace is None:
        return {}
    if not callers.metrics_namespaces:
        return {"from": [{"namespaceSelector": {}}]}
    operator = {
        "namespaceSelector": {"matchLabels": {_NAMESPACE: callers.operator_namespace}},
        "podSelector": {"matchLabels": dict(OPERATOR_LABELS)},
    }
    names = {"key": _NAMESPACE, "operator": "In", "values": list(callers.metrics_namespaces)}
    return {"from": [operator, {"namespaceSelector": {"matchExpressions": [names]}}]}

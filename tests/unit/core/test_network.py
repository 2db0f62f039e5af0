"""Who may reach a job's workers."""

from __future__ import annotations

from typing import Any

import pytest

from builders import JOB_UID, a_job
from steadfast_operator.core.network import Callers, build_network_policy

OURS = {"podSelector": {"matchLabels": {"steadfast.dev/job-uid": JOB_UID}}}
OPERATOR = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "steadfast"}},
    "podSelector": {"matchLabels": {"app.kubernetes.io/name": "steadfast"}},
}


def metrics_from(*names: str) -> dict[str, Any]:
    expression = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": list(names)}
    return {"namespaceSelector": {"matchExpressions": [expression]}}


def test_a_policy_is_the_job_s_and_selects_its_workers() -> None:
    policy = build_network_policy(a_job(), Callers())
    assert policy["metadata"]["name"] == "moe-7e1f5"
    assert policy["metadata"]["namespace"] == "research"
    assert [owner["uid"] for owner in policy["metadata"]["ownerReferences"]] == [JOB_UID]
    assert policy["spec"]["podSelector"] == OURS["podSelector"]


def test_workers_of_a_job_reach_each_other_on_every_port_and_anything_outside() -> None:
    spec = build_network_policy(a_job(), Callers())["spec"]
    assert spec["ingress"][0] == {"from": [OURS]}
    assert spec["policyTypes"] == ["Ingress"]


@pytest.mark.parametrize(
    ("callers", "peers"),
    [
        pytest.param(Callers(), {}, id="an operator outside the cluster may be anybody"),
        pytest.param(Callers(metrics_namespaces=("monitoring",)), {}, id="which namespaces named do not change"),
        pytest.param(
            Callers(operator_namespace="steadfast"), {"from": [{"namespaceSelector": {}}]}, id="Prometheus anywhere"
        ),
        pytest.param(
            Callers(operator_namespace="steadfast", metrics_namespaces=("monitoring", "team")),
            {"from": [OPERATOR, metrics_from("monitoring", "team")]},
            id="Prometheus in namespaces that are named",
        ),
    ],
)
def test_others_reach_the_agent_s_port_alone(callers: Callers, peers: dict[str, Any]) -> None:
    _, others = build_network_policy(a_job(), callers)["spec"]["ingress"]
    assert others == {"ports": [{"protocol": "TCP", "port": 9400}], **peers}

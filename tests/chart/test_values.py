"""The schema of the values: what is wrong is refused before anything reaches a cluster, and helm says where."""

from __future__ import annotations

from typing import Any

import pytest

from chart.rendering import Helm, nested

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("repliccas", 1, "additional properties 'repliccas' not allowed"),
        ("image.tags", "1", "at '/image': additional properties 'tags' not allowed"),
        ("metrics.podMonitor.enable", True, "at '/metrics/podMonitor': additional properties 'enable' not allowed"),
        ("replicas", 2, "at '/replicas': maximum: got 2, want 1"),
        ("replicas", "1", "at '/replicas': got string, want integer"),
        ("image.repository", "Repo:1", "at '/image/repository': 'Repo:1' does not match pattern"),
        ("image.tag", "a b", "at '/image/tag': 'a b' does not match pattern"),
        ("image.tag", 7, "at '/image/tag': got number, want string"),
        ("image.digest", "sha256:abc", "at '/image/digest': 'sha256:abc' does not match pattern"),
        ("image.pullPolicy", "Sometimes", "at '/image/pullPolicy': value must be one of 'Always'"),
        ("imagePullSecrets", ["registry"], "at '/imagePullSecrets/0': got string, want object"),
        ("fullnameOverride", "Big", "at '/fullnameOverride': "),
        ("crds.install", "false", "at '/crds/install': got string, want boolean"),
        ("watchNamespace", "a,b", "at '/watchNamespace': 'a,b' does not match pattern"),
        ("logLevel", "TRACE", "at '/logLevel': value must be one of 'DEBUG'"),
        ("port", 80, "at '/port': minimum: got 80, want 1,024"),
        ("port", 65536, "at '/port': maximum: got 65,536, want 65,535"),
        ("extraEnv", {"A": "b"}, "at '/extraEnv': got object, want array"),
        ("extraEnv", [{"name": "A-B"}], "at '/extraEnv/0/name': 'A-B' does not match pattern"),
        ("extraEnv", [{"name": "A", "value": 1}], "at '/extraEnv/0/value': got number, want string"),
        ("resources.limits.memory", "lots", "at '/resources/limits/memory': 'lots' does not match pattern"),
        ("resources.claims", [], "at '/resources': additional properties 'claims' not allowed"),
        ("nodeSelector", {"a": True}, "at '/nodeSelector/a': got boolean, want string"),
        ("tolerations", [{"efect": "NoSchedule"}], "at '/tolerations/0': additional properties 'efect' not allowed"),
        ("affinity.nodes", {}, "at '/affinity': additional properties 'nodes' not allowed"),
        ("priorityClassName", "A", "at '/priorityClassName': 'A' does not match pattern"),
        ("podLabels", {"a b": "c"}, "at '/podLabels': additional properties 'a b' not allowed"),
        ("podAnnotations", {"a": 1}, "at '/podAnnotations/a': got number, want string"),
        ("serviceAccount.create", 1, "at '/serviceAccount/create': got number, want boolean"),
        ("rbac.userRoles", "yes", "at '/rbac/userRoles': got string, want boolean"),
        ("metrics.namespaces", "monitoring", "at '/metrics/namespaces': got string, want array"),
        ("metrics.serviceMonitor.interval", 15, "at '/metrics/serviceMonitor/interval': got number, want string"),
        ("networkPolicy.metricsFrom", [{}], "at '/networkPolicy/metricsFrom/0': minProperties: got 0, want 1"),
        ("profiles.mine", {"enabled": True}, "at '/profiles/mine': missing property 'spec'"),
        ("profiles.Mine", {"enabled": True, "spec": {}}, "at '/profiles': additional properties 'Mine' not allowed"),
    ],
)
def test_a_value_is_refused(helm: Helm, path: str, value: Any, said: str) -> None:
    done = helm.template(nested(path, value))
    assert done.returncode == 1
    assert said in done.stderr


def test_every_wrong_value_is_named_at_once(helm: Helm) -> None:
    said = helm.template({"port": 1, "logLevel": "loud", "crds": {"install": "no"}}).stderr
    assert [path for path in ("/port", "/logLevel", "/crds/install") if f"at '{path}'" not in said] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("global", {"anything": 1}),
        ("resources.limits.cpu", 2),
        ("extraEnv", [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}]),
        ("podAnnotations", {"example.com/a": "b"}),
        ("profiles.default", None),
    ],
)
def test_a_value_is_accepted(helm: Helm, path: str, value: Any) -> None:
    assert helm.template(nested(path, value)).returncode == 0

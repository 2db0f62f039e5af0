"""What a release may do in a cluster: the operator's roles, the users' roles, and pods that ask for no privilege.

That the operator needs all that it gets is in tests/contract/test_rights.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chart.rendering import NAMESPACE, Helm, Object, nested, of_kind, one

pytestmark = pytest.mark.cluster

JOBS = {
    "trainingjobs": {"get", "list", "watch", "delete"},
    "trainingjobs/status": {"update"},
    "pods": {"list", "watch", "create", "delete"},
    "configmaps": {"get", "create", "delete"},
    "events": {"get", "create", "patch"},
    "networkpolicies": {"create"},
}
PROFILES = {"clustertrainingprofiles": {"get"}}
NEVER = {"secrets", "pods/exec", "pods/attach", "pods/portforward", "pods/ephemeralcontainers", "serviceaccounts",
         "serviceaccounts/token", "nodes", "roles", "rolebindings", "clusterroles", "clusterrolebindings",
         "customresourcedefinitions", "mutatingwebhookconfigurations", "validatingwebhookconfigurations"}  # fmt: skip
VARIANTS = {
    "of all namespaces": {},
    "of one namespace": {"watchNamespace": "team"},
    "with everything": {
        "networkPolicy": {"enabled": True},
        "metrics": {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}},
        "profiles": {"h100-infiniband": {"enabled": True}},
    },
}


def verbs(*roles: Object) -> dict[str, set[str]]:
    """Verbs by resource, in groups of their own."""
    found: dict[str, set[str]] = {}
    for rule in (rule for role in roles for rule in role["rules"]):
        assert rule.keys() == {"apiGroups", "resources", "verbs"}
        for resource in rule["resources"]:
            assert resource not in found, f"{resource} twice"
            found[resource] = set(rule["verbs"])
    return found


def bound(objects: list[Object]) -> Iterator[tuple[Object, Object]]:
    """Bindings with their roles."""
    for binding in of_kind(objects, "ClusterRoleBinding", "RoleBinding"):
        yield binding, one(objects, binding["roleRef"]["kind"], binding["roleRef"]["name"])


@pytest.fixture(params=VARIANTS, scope="module")
def variant(request: pytest.FixtureRequest, helm: Helm) -> list[Object]:
    return helm.render(VARIANTS[request.param])


def test_for_all_namespaces_one_role_says_everything(default: list[Object]) -> None:
    ((_, role),) = bound(default)
    assert verbs(role) == PROFILES | JOBS
    assert of_kind(default, "Role") == []


def test_for_one_namespace_only_profiles_are_of_the_cluster(helm: Helm) -> None:
    objects = helm.render({"watchNamespace": "team"})
    assert verbs(one(objects, "ClusterRole", f"steadfast-{NAMESPACE}")) == PROFILES
    assert verbs(one(objects, "Role")) == JOBS
    assert {one(objects, kind)["metadata"]["namespace"] for kind in ("Role", "RoleBinding")} == {"team"}
    assert len(list(bound(objects))) == 2


def test_roles_are_bound_to_the_operator_alone(variant: list[Object]) -> None:
    account = one(variant, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"]
    assert account == one(variant, "ServiceAccount")["metadata"]["name"]
    for binding, role in bound(variant):
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}]
        assert binding["metadata"].get("namespace") == role["metadata"].get("namespace")


def test_no_role_opens_a_way_to_more(variant: list[Object]) -> None:
    for role in of_kind(variant, "ClusterRole", "Role"):
        assert "aggregationRule" not in role
        for resource, allowed in verbs(role).items():
            assert resource not in NEVER
            assert not {resource, *allowed} & {"*", "bind", "escalate", "impersonate"}


@pytest.mark.parametrize("value", ["rbac.create", "rbac.userRoles"])
def test_roles_may_be_left_to_others(helm: Helm, value: str) -> None:
    names = {each["metadata"]["name"] for each in of_kind(helm.render(nested(value, False)), "ClusterRole")}
    users = {f"steadfast-{NAMESPACE}-edit", f"steadfast-{NAMESPACE}-view"}
    assert names == (users if value == "rbac.create" else {f"steadfast-{NAMESPACE}"})


@pytest.mark.parametrize(
    ("account", "name"),
    [
        pytest.param({"create": False}, "default", id="the namespace's own"),
        pytest.param({"create": False, "name": "mine"}, "mine", id="one that is there"),
        pytest.param({"name": "mine"}, "mine", id="a new one of that name"),
    ],
)
def test_the_account_is(helm: Helm, account: Object, name: str) -> None:
    objects = helm.render({"serviceAccount": account})
    assert one(objects, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == name
    assert [each["metadata"]["name"] for each in of_kind(objects, "ServiceAccount")] == [name] * account.get(
        "create", True
    )
    ((binding, _),) = bound(objects)
    assert binding["subjects"][0]["name"] == name


def test_users_get_jobs_by_the_roles_they_have(default: list[Object]) -> None:
    edit, view = (one(default, "ClusterRole", f"steadfast-{NAMESPACE}-{name}") for name in ("edit", "view"))
    read = {"get", "list", "watch"}
    assert verbs(view) == {"trainingjobs": read, "trainingjobs/status": read, "clustertrainingprofiles": read}
    assert verbs(edit) == {"trainingjobs": {"create", "update", "patch", "delete", "deletecollection"}}
    added = {name: aggregated(role) for name, role in (("edit", edit), ("view", view))}
    assert added == {"edit": {"admin", "edit"}, "view": {"admin", "edit", "view"}}


def aggregated(role: Object) -> set[str]:
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    return {name.removeprefix(prefix) for name in role["metadata"]["labels"] if name.startswith(prefix)}


def test_pods_are_restricted(variant: list[Object]) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"""
    pods = [each["spec"]["template"]["spec"] for each in of_kind(variant, "Deployment", "Job")]
    assert len(pods) == 2
    for pod in pods:
        assert not pod.keys() & {
            "hostNetwork",
            "hostPID",
            "hostIPC",
            "volumes",
            "initContainers",
            "ephemeralContainers",
        }
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        for container in pod["containers"]:
            assert not [port for port in container.get("ports", []) if "hostPort" in port]
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }

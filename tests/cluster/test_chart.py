"""The chart on a real cluster: Ready where Pod Security is `restricted`, and the whole life of a release.

There is one set of definitions in a cluster, and other tests' jobs hang on it. So the life of a release is led by a
copy of the chart whose kinds are of another group; its operator, which knows only ours, is at rest.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cluster.driver import Cluster, RefusedByCluster
from testbed.paths import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

CHART = ROOT / "charts/steadfast"
GROUP = "steadfast.dev"
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
WANTED = {
    ("trainingjobs.steadfast.dev", "get list watch delete"),
    ("trainingjobs.steadfast.dev/status", "update"),
    ("pods", "list watch create delete"),
    ("configmaps", "get create delete"),
    ("events", "get create patch"),
    ("networkpolicies.networking.k8s.io", "create"),
}
FORBIDDEN = {
    ("secrets", "get list watch create"),
    ("pods/exec", "create get"),
    ("pods", "patch update"),
    ("roles.rbac.authorization.k8s.io", "create bind escalate"),
    ("nodes", "get list"),
    ("namespaces", "list"),
}


@dataclass(frozen=True)
class Release:
    """One release, or the place for one."""

    cluster: Cluster
    namespace: str
    chart: Path
    name: str = "steadfast"
    values: tuple[str, ...] = ()

    def install(self, *more: str) -> str:
        return self._helm("install", str(self.chart), *self._values(), *more)

    def upgrade(self, *more: str) -> str:
        return self._helm("upgrade", str(self.chart), *self._values(), *more)

    def uninstall(self) -> str:
        return self._helm("uninstall", "--wait")

    def rollback(self, revision: int) -> str:
        return self._helm("rollback", str(revision))

    def kubectl(self, *arguments: str) -> str:
        return self.cluster.kubectl(f"--namespace={self.namespace}", *arguments)

    def may(self, verb: str, resource: str, *, namespace: str) -> bool:
        who = f"--as=system:serviceaccount:{self.namespace}:{self.name}"
        kind, _, part = resource.partition("/")
        asked = (verb, kind, f"--subresource={part}", who, f"--namespace={namespace}")
        return self.cluster.kubectl("auth", "can-i", *asked, check=False) == "yes\n"

    def _helm(self, command: str, *arguments: str) -> str:
        return self.cluster.helm(command, self.name, *arguments, f"--namespace={self.namespace}", "--timeout=120s")

    def _values(self) -> list[str]:
        repository, _, tag = self.cluster.operator.rpartition(":")
        image = (f"image.repository={repository}", f"image.tag={tag}")
        return [f"--set={value}" for value in (*image, *self.values)]


@pytest.fixture
def restricted(cluster: Cluster) -> Iterator[str]:
    """A namespace of its own, where Pod Security refuses whatever is not restricted."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    labels = {**RESTRICTED}
    cluster.kubectl(
        "create", "--filename=-",
        stdin={"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}},
    )  # fmt: skip
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def ours(cluster: Cluster, restricted: str) -> Iterator[Release]:
    """The chart itself, for the jobs of its own namespace; definitions and profiles are others'."""
    cluster.kubectl("apply", "--server-side", "--force-conflicts", f"--filename={ROOT / 'crds'}")
    values = (f"watchNamespace={restricted}", "crds.install=false", "profiles.default.enabled=false")
    release = Release(cluster, restricted, CHART, values=values)
    yield release
    cluster.helm("uninstall", release.name, f"--namespace={restricted}", "--ignore-not-found", "--wait")


@pytest.fixture
def copy(cluster: Cluster, restricted: str, tmp_path: Path) -> Iterator[Release]:
    """A copy whose definitions no cluster has: another group."""
    group = f"{restricted}.example"
    chart = tmp_path / "steadfast"
    shutil.copytree(CHART, chart)
    for path in (path for path in chart.rglob("*") if path.is_file()):
        path.write_text(path.read_text().replace(GROUP, group))
    values = ("replicas=0", "rbac.userRoles=false")
    yield Release(cluster, restricted, chart, values=values)
    for name in ("trainingjobs", "clustertrainingprofiles"):
        cluster.kubectl("delete", "crd", f"{name}.{group}", "--ignore-not-found", "--wait=false")


def test_the_operator_is_ready_where_pods_are_restricted(ours: Release) -> None:
    notes = ours.install("--wait")
    assert f"looks after the TrainingJobs of namespace {ours.namespace}" in notes
    (pod,) = ours.cluster.get("pods", f"--namespace={ours.namespace}")["items"]
    (container,) = pod["status"]["containerStatuses"]
    assert (container["ready"], container["restartCount"]) == (True, 0)
    metrics = f"/api/v1/namespaces/{ours.namespace}/pods/{pod['metadata']['name']}:8080/proxy/metrics"
    assert "steadfast_decisions" in ours.kubectl("get", f"--raw={metrics}")
    log = ours.kubectl("logs", "deployment/steadfast")
    assert [line for line in log.splitlines() if " WARNING " in line or " ERROR " in line] == []

    ours.upgrade("--wait", "--set=logLevel=DEBUG")
    (upgraded,) = ours.cluster.get("pods", f"--namespace={ours.namespace}")["items"]
    assert upgraded["metadata"]["uid"] != pod["metadata"]["uid"]


def test_the_operator_may_do_its_work_in_its_namespace_and_nothing_else(ours: Release) -> None:
    ours.install("--set=replicas=0")
    here = {(what, verb) for what, verbs in WANTED | FORBIDDEN for verb in verbs.split()}
    allowed = {(what, verb) for what, verb in here if ours.may(verb, what, namespace=ours.namespace)}
    assert allowed == {(what, verb) for what, verbs in WANTED for verb in verbs.split()}
    assert not [(what, verb) for what, verb in allowed if ours.may(verb, what, namespace="kube-system")]
    assert ours.may("get", "clustertrainingprofiles.steadfast.dev", namespace="")
    assert not ours.may("create", "clustertrainingprofiles.steadfast.dev", namespace="")


def test_the_life_of_a_release(copy: Release) -> None:
    kinds = [f"crd/{name}.{copy.namespace}.example" for name in ("clustertrainingprofiles", "trainingjobs")]
    profile = f"clustertrainingprofiles.{copy.namespace}.example/default"

    copy.install()  # on a cluster that has no definitions, without --wait
    assert described(copy, profile) == "Any node, any image, no privileges."
    assert copy.kubectl("get", "jobs", "--output=name") == ""
    copy.upgrade("--set=profiles.default.spec.description=changed")
    assert described(copy, profile) == "changed"
    uids = uid_of(copy, *kinds, profile)
    copy.upgrade("--set=profiles.default.spec.description=changed", "--set=logLevel=DEBUG")
    assert uid_of(copy, *kinds, profile) == uids, "what does not change stays as it is"
    rename(copy, "newer")
    copy.upgrade("--set=profiles.default.spec.description=changed")
    assert short_name(copy, kinds[1]) == "newer"

    copy.uninstall()
    assert uid_of(copy, *kinds, profile) == uids
    assert copy.kubectl("get", "deployments,services,roles", "--output=name") == ""

    copy = replace(copy, values=(*copy.values, "profiles.default.spec.description=changed"))
    rename(copy, "newest")
    copy.install()
    assert short_name(copy, kinds[1]) == "newest", "a definition that was kept is upgraded too"
    copy.uninstall()
    other = replace(copy, name="other")
    with pytest.raises(RefusedByCluster, match="invalid ownership metadata"):
        other.install()
    copy.kubectl("label", kinds[0], "app.kubernetes.io/managed-by-")  # as one that kubectl created
    other.install("--take-ownership")
    beside = replace(copy, name="beside")
    beside.install("--set=crds.install=false")
    beside.uninstall()
    other.uninstall()
    assert uid_of(copy, *kinds, profile) == uids


def rename(release: Release, short: str) -> None:
    """Another version of the chart, with another definition."""
    path = release.chart / "files/crds/trainingjobs.yaml"
    path.write_text(re.sub("(shortNames:\n +- )[a-z]+", f"\\g<1>{short}", path.read_text()))


def short_name(release: Release, definition: str) -> str:
    return release.kubectl("get", definition, "--output=jsonpath={.spec.names.shortNames[0]}")


def described(release: Release, profile: str) -> str:
    return release.kubectl("get", profile, "--output=jsonpath={.spec.description}")


def uid_of(release: Release, *names: str) -> dict[str, str]:
    return {name: json.loads(release.kubectl("get", name, "--output=json"))["metadata"]["uid"] for name in names}

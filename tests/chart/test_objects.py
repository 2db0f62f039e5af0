"""What a release is made of, by its values."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart.rendering import CHART, NAMESPACE, PROFILES, Helm, Object, nested, of_kind, one
from steadfast_operator.core.network import OPERATOR_LABELS
from steadfast_operator.settings import Settings
from testbed.paths import ROOT

pytestmark = pytest.mark.cluster

GOLDEN = ROOT / "tests/golden/chart/default.yaml"
DIGEST = f"sha256:{'ab' * 32}"
CLUSTERWIDE = {"ClusterRole", "ClusterRoleBinding", "ClusterTrainingProfile", "CustomResourceDefinition"}
MONITORS = ("ServiceMonitor", "PodMonitor")


def pod(objects: list[Object]) -> Object:
    return one(objects, "Deployment")["spec"]["template"]


def container(objects: list[Object]) -> Object:
    (only,) = pod(objects)["spec"]["containers"]
    return only


def environment(objects: list[Object]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container(objects)["env"] if "value" in each}


def names(objects: list[Object]) -> set[tuple[str, str]]:
    return {(each["kind"], each["metadata"]["name"]) for each in objects}


def test_helm_finds_nothing_to_say_about_the_chart(helm: Helm) -> None:
    done = helm.run("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout
    assert "WARNING" not in done.stdout


def test_a_release_of_the_defaults_is_as_it_was_accepted(default: list[Object], pytestconfig: pytest.Config) -> None:
    objects = [each for each in default if each["kind"] != "CustomResourceDefinition"]  # a test of their own
    if pytestconfig.getoption("--update-golden"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(yaml.safe_dump_all(objects, sort_keys=False, width=120))
    assert list(yaml.safe_load_all(GOLDEN.read_text())) == objects, "if it is meant, run pytest with --update-golden"


@pytest.mark.parametrize("path", sorted((ROOT / "crds").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_definition_goes_out_as_it_is_and_is_kept(default: list[Object], path: Any) -> None:
    rendered = one(default, "CustomResourceDefinition", f"{path.stem}.steadfast.dev")
    assert rendered["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert rendered == yaml.safe_load(path.read_text())


def test_braces_in_a_definition_are_no_template(helm: Helm, tmp_path: Path) -> None:
    chart = shutil.copytree(CHART, tmp_path / "steadfast")
    definition = chart / "files/crds/trainingjobs.yaml"
    definition.write_text(definition.read_text().replace("description: '", "description: '{{ .Chart.Name }} ", 1))
    done = helm.run("template", "x", str(chart), "--kube-version=1.36.0", "--show-only=templates/crds.yaml")
    assert "{{ .Chart.Name }} " in done.stdout


def test_definitions_may_be_left_out(helm: Helm) -> None:
    assert of_kind(helm.render({"crds": {"install": False}}), "CustomResourceDefinition") == []


def test_every_object_says_what_it_belongs_to(default: list[Object]) -> None:
    for each in default:
        meta = each["metadata"]
        assert meta.get("namespace", NAMESPACE) == NAMESPACE
        assert ("namespace" in meta) != (each["kind"] in CLUSTERWIDE), f"{each['kind']} {meta['name']}"
        if each["kind"] != "CustomResourceDefinition":
            labels = {"app.kubernetes.io/name": "steadfast", "app.kubernetes.io/managed-by": "Helm"}
            assert labels.items() <= meta["labels"].items(), f"{each['kind']} {meta['name']}"


def test_two_releases_of_one_name_share_no_object_of_the_cluster(helm: Helm, default: list[Object]) -> None:
    values = {"crds": {"install": False}, "profiles": {"default": {"enabled": False}}}
    other = helm.render(values, "--namespace=elsewhere")
    mine, its = (names(of_kind(objects, "ClusterRole", "ClusterRoleBinding")) for objects in (default, other))
    assert not mine & its
    assert names(of_kind(other, *CLUSTERWIDE)) == its


@pytest.mark.parametrize(
    ("release", "override", "name"),
    [
        pytest.param("steadfast", "", "steadfast", id="the chart's name is not said twice"),
        pytest.param("prod", "", "prod-steadfast", id="a release's own name comes first"),
        pytest.param("prod", "trainer", "trainer", id="an override is taken as it is"),
        pytest.param("x" * 53, "", "x" * 50, id="a long name is cut"),
    ],
)
def test_objects_are_named_by(helm: Helm, release: str, override: str, name: str) -> None:
    flags = [f"--namespace={NAMESPACE}", "--kube-version=1.36.0", f"--set=fullnameOverride={override}"]
    objects = list(yaml.safe_load_all(helm.run("template", release, str(CHART), *flags).stdout))
    assert one(objects, "Deployment")["metadata"]["name"] == name
    assert pod(objects)["spec"]["serviceAccountName"] == name


def test_jobs_let_the_operator_s_pod_through_by_its_labels(default: list[Object]) -> None:
    assert OPERATOR_LABELS.items() <= pod(default)["metadata"]["labels"].items()


def test_the_service_and_the_deployment_find_the_same_pod(default: list[Object]) -> None:
    labels = pod(default)["metadata"]["labels"]
    service = one(default, "Service")["spec"]
    assert service["selector"].items() <= labels.items()
    assert service["selector"] == one(default, "Deployment")["spec"]["selector"]["matchLabels"]
    assert service["clusterIP"] == "None"


@pytest.mark.parametrize(
    ("image", "reference"),
    [
        pytest.param({}, "steadfast-operator:0.1.0", id="the chart's own version"),
        pytest.param({"tag": "7"}, "steadfast-operator:7", id="a tag"),
        pytest.param({"tag": "7", "digest": DIGEST}, f"steadfast-operator@{DIGEST}", id="a digest wins over a tag"),
        pytest.param({"repository": "r.example:5000/a/b", "tag": "7"}, "r.example:5000/a/b:7", id="a registry"),
    ],
)
def test_the_image_is(helm: Helm, image: Object, reference: str) -> None:
    objects = helm.render({"image": image})
    assert container(objects)["image"] == reference
    (waiting,) = one(objects, "Job")["spec"]["template"]["spec"]["containers"]
    assert waiting["image"] == reference


def test_the_old_operator_ends_before_the_new_one_starts(default: list[Object]) -> None:
    spec = one(default, "Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_probes_and_metrics_are_at_the_port_that_is_told(helm: Helm) -> None:
    objects = helm.render({"port": 9999})
    assert container(objects)["ports"] == [{"name": "metrics", "containerPort": 9999}]
    assert environment(objects)["STEADFAST_OPERATOR_PORT"] == "9999"
    assert pod(objects)["metadata"]["annotations"]["prometheus.io/port"] == "9999"
    assert one(objects, "Service")["spec"]["ports"] == [{"name": "metrics", "port": 9999, "targetPort": "metrics"}]
    probes = {name: container(objects)[f"{name}Probe"]["httpGet"] for name in ("readiness", "liveness")}
    assert probes == {
        "readiness": {"path": "/readyz", "port": "metrics"},
        "liveness": {"path": "/healthz", "port": "metrics"},
    }


def test_the_operator_understands_what_the_chart_tells_it(helm: Helm) -> None:
    values = {"watchNamespace": "team", "logLevel": "DEBUG", "port": 9999, "metrics": {"namespaces": ["a", "b"]}}
    told = Settings.from_mapping(environment(helm.render(values)) | {"POD_NAMESPACE": NAMESPACE})
    assert told == Settings(
        namespace="team",
        operator_namespace=NAMESPACE,
        metrics_namespaces=("a", "b"),
        port=9999,
        log_level="DEBUG",
    )


def test_the_operator_knows_its_own_namespace(default: list[Object]) -> None:
    (own,) = (each for each in container(default)["env"] if each["name"] == "POD_NAMESPACE")
    assert own["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.namespace"}}


@pytest.mark.parametrize(
    ("value", "content"),
    [
        ("nodeSelector", {"role": "system"}),
        ("tolerations", [{"key": "a/b", "operator": "Exists", "effect": "NoSchedule"}]),
        ("affinity", {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}),
        ("priorityClassName", "system-cluster-critical"),
        ("imagePullSecrets", [{"name": "registry"}]),
    ],
)
def test_pods_are_placed_by(helm: Helm, value: str, content: Any) -> None:
    objects = helm.render({value: content})
    pods = (pod(objects), one(objects, "Job")["spec"]["template"])
    assert [each["spec"][value] for each in pods] == [content, content]


def test_the_container_gets_what_else_it_needs(helm: Helm) -> None:
    proxy = {"name": "HTTPS_PROXY", "value": "http://proxy"}
    got = container(helm.render({"extraEnv": [proxy], "resources": {"requests": {"cpu": "2"}}}))
    assert proxy in got["env"]
    assert got["resources"]["requests"]["cpu"] == "2"


def test_pod_labels_are_added_and_never_replace_the_chart_s(helm: Helm) -> None:
    labels = pod(helm.render({"podLabels": {"team": "ml", "app.kubernetes.io/name": "mine"}}))["metadata"]["labels"]
    assert (labels["team"], labels["app.kubernetes.io/name"]) == ("ml", "steadfast")


@pytest.mark.parametrize(
    ("values", "annotations"),
    [
        pytest.param({}, None, id="none at all"),
        pytest.param({"podAnnotations": {"a": "b"}}, {"a": "b"}, id="only yours"),
    ],
)
def test_without_those_for_prometheus_the_annotations_are(helm: Helm, values: Object, annotations: Any) -> None:
    assert (
        pod(helm.render(values | nested("metrics.scrapeAnnotations", False)))["metadata"].get("annotations")
        == annotations
    )


@pytest.mark.parametrize("name", ["STEADFAST_NAMESPACE", "STEADFAST_OPERATOR_PORT"])
def test_what_has_a_value_of_its_own_is_no_extra_environment(helm: Helm, name: str) -> None:
    done = helm.template({"extraEnv": [{"name": name, "value": "x"}]})
    assert done.returncode == 1
    assert "extraEnv sets what the value " in done.stderr


def test_monitors_and_policies_come_on_demand_only(default: list[Object]) -> None:
    assert of_kind(default, *MONITORS, "NetworkPolicy") == []


def test_a_service_monitor_reads_the_operator_s_service(helm: Helm) -> None:
    objects = helm.render(nested("metrics.serviceMonitor", {"enabled": True, "labels": {"release": "prometheus"}}))
    monitor = one(objects, "ServiceMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= one(objects, "Service")["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] == one(objects, "Service")["spec"]["ports"][0]["name"]
    assert of_kind(objects, "PodMonitor") == []


@pytest.mark.parametrize(("watched", "where"), [("", {"any": True}), ("team", {"matchNames": ["team"]})])
def test_a_pod_monitor_reads_the_workers_of_the_jobs_looked_after(helm: Helm, watched: str, where: Object) -> None:
    objects = helm.render(nested("metrics.podMonitor.enabled", True) | {"watchNamespace": watched})
    spec = one(objects, "PodMonitor")["spec"]
    assert spec["namespaceSelector"] == where
    assert spec["selector"]["matchLabels"] == {"app.kubernetes.io/managed-by": "steadfast"}
    (endpoint,) = spec["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("agent", "/metrics")
    assert endpoint["relabelings"][0]["targetLabel"] == "training_job"


@pytest.mark.parametrize("peers", [[], [{"namespaceSelector": {"matchLabels": {"team": "ops"}}}]])
def test_the_operator_s_policy_lets_only_metrics_in(helm: Helm, peers: list[Object]) -> None:
    spec = one(helm.render({"networkPolicy": {"enabled": True, "metricsFrom": peers}}), "NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress"]
    assert spec["ingress"] == [{"ports": [{"port": "metrics"}]} | ({"from": peers} if peers else {})]


def test_profiles_wait_for_their_definition(default: list[Object]) -> None:
    hooks = [each for each in default if "helm.sh/hook" in each["metadata"].get("annotations", {})]
    order = sorted(hooks, key=lambda each: int(each["metadata"]["annotations"].get("helm.sh/hook-weight", 0)))
    assert [each["kind"] for each in order] == ["Job", "ClusterTrainingProfile"]
    (waiting,) = order[0]["spec"]["template"]["spec"]["containers"]
    assert waiting["command"][-1] == "clustertrainingprofiles.steadfast.dev"


def test_profiles_do_not_wait_for_a_kind_that_is_served(helm: Helm) -> None:
    assert of_kind(helm.render(None, f"--api-versions={PROFILES}"), "Job") == []


@pytest.mark.parametrize(
    ("profiles", "names"),
    [
        pytest.param({}, ["default"], id="the default one alone"),
        pytest.param({"h100-infiniband": {"enabled": True}}, ["default", "h100-infiniband"], id="the example too"),
        pytest.param({"mine": {"enabled": True, "spec": {}}}, ["default", "mine"], id="one of your own"),
        pytest.param({"default": {"enabled": False}}, [], id="none"),
        pytest.param({"default": None}, [], id="none, said otherwise"),
    ],
)
def test_profiles_are(helm: Helm, profiles: Object, names: list[str]) -> None:
    objects = helm.render({"profiles": profiles})
    assert [each["metadata"]["name"] for each in of_kind(objects, "ClusterTrainingProfile")] == names
    assert len(of_kind(objects, "Job")) == bool(names)


def test_the_example_profile_is_rendered_as_it_is_written(helm: Helm) -> None:
    objects = helm.render(nested("profiles.h100-infiniband.enabled", True))
    example = yaml.safe_load((ROOT / "examples/profiles/h100-infiniband.yaml").read_text())
    assert one(objects, "ClusterTrainingProfile", "h100-infiniband")["spec"] == example["spec"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        pytest.param({}, "--namespace YOURS get tjob", id="whose jobs, in general"),
        pytest.param({"watchNamespace": "team"}, "--namespace team get tjob", id="whose jobs, in particular"),
        pytest.param({"port": 9999}, "curl http://localhost:9999/metrics", id="where metrics are"),
        pytest.param({"replicas": 0}, "nothing is started or restarted", id="that no operator runs"),
    ],
)
def test_the_notes_say(helm: Helm, tmp_path: Path, values: Object, said: str) -> None:
    chart = shutil.copytree(CHART, tmp_path / "steadfast")  # helm shows notes only where there is a cluster
    (chart / "templates/NOTES.txt").rename(chart / "notes.txt")
    (chart / "templates/notes.yaml").write_text('{kind: Notes, text: {{ tpl (.Files.Get "notes.txt") . | quote }}}')
    flags = ("--kube-version=1.36.0", "--show-only=templates/notes.yaml")
    done = helm.run("template", "steadfast", str(chart), *flags, values=values)
    assert said in yaml.safe_load(done.stdout)["text"]

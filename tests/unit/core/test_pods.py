"""Pods of workers as golden files: tests/golden/pods/<case>.yaml, accepted with --update-golden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from builders import a_job, a_profile
from steadfast_contract.env import WorkerEnv
from steadfast_operator.api.resolve import training_config
from steadfast_operator.api.types import TrainingJob
from steadfast_operator.core.actions import CreateWorker
from steadfast_operator.core.pods import Manifest, build_worker_pod

FOLDER = Path(__file__).parents[2] / "golden/pods"
TRAINING = '{"steps": 10}'

H100 = {
    "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
    "tolerations": [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "pool", "value": "training", "effect": "NoExecute", "tolerationSeconds": 60},
    ],
    "workerResources": {"rdma/hca": "8", "hugepages-2Mi": "4Gi"},
    "annotations": {"k8s.v1.cni.cncf.io/networks": "ib0,ib1"},
    "hostNetwork": True,
    "capabilities": ["IPC_LOCK"],
    "environment": {"NCCL_IB_HCA": "mlx5", "NCCL_DEBUG_FILE": "/tmp/$(HOSTNAME)"},
    "imagePullSecrets": ["registry"],
    "allowedImages": ["registry.example/*"],
    "ceilings": {"workers": 512, "limits": {"memory": "1800Gi"}},
}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], CreateWorker]] = {
    "first_worker_on_cpu": (
        {},
        {},
        CreateWorker(serial=0, attempt=1, node_rank=0, num_workers=2, master=""),
    ),
    "second_worker_with_everything": (
        {
            "spec.device": "cuda",
            "spec.gpusPerWorker": 8,
            "spec.resources.limits": {"cpu": "96", "memory": "1400Gi", "rdma/hca": 1},
            "spec.objectStore": {
                "endpoint": "https://s3.example",
                "region": "eu-central-1",
                "credentialsSecret": "steadfast-s3",
                "serviceAccountName": "steadfast-trainer",
            },
        },
        {},
        CreateWorker(serial=7, attempt=3, node_rank=1, num_workers=2, master="10.0.0.1:29500"),
    ),
    "worker_under_an_infiniband_profile": (
        {"spec.gpusPerWorker": 8, "spec.resources.limits": {"memory": "1400Gi", "rdma/hca": 4}},
        H100,
        CreateWorker(serial=0, attempt=1, node_rank=0, num_workers=2, master=""),
    ),
}
FIRST = CASES["first_worker_on_cpu"][2]


def a_pod(
    action: CreateWorker = FIRST, *, job: TrainingJob | None = None, training: str = TRAINING, **profile: Any
) -> Manifest:
    profile_ = a_profile(**profile)
    return build_worker_pod(job or a_job(), action, profile=profile_, training=training, grace_seconds=60)


@pytest.mark.parametrize("name", CASES)
def test_a_pod_is_as_it_was_accepted(name: str, pytestconfig: pytest.Config) -> None:
    overrides, profile, action = CASES[name]
    pod = a_pod(action, job=a_job(**overrides), **profile)
    golden = FOLDER / f"{name}.yaml"
    if pytestconfig.getoption("--update-golden"):
        golden.write_text(yaml.safe_dump(pod, sort_keys=False, width=120))
    assert yaml.safe_load(golden.read_text()) == pod, "if it is meant, run pytest with --update-golden"


def test_every_golden_pod_is_compared() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(CASES)


def test_a_worker_understands_the_environment_of_its_pod() -> None:
    job = a_job()
    training = training_config(job).to_json()
    pod = a_pod(job=job, training=training)
    (container,) = pod["spec"]["containers"]
    worker = WorkerEnv.from_mapping({entry["name"]: entry["value"] for entry in container["env"]})
    assert (worker.job, worker.worker, worker.training) == ("research/moe", pod["metadata"]["name"], training)
    assert (worker.host, worker.port) == ("0.0.0.0", container["ports"][0]["containerPort"])


def test_no_variable_is_put_into_another() -> None:
    job = a_job(**{"spec.data.tokenizer": "s3://corpora/$(AWS_SECRET_ACCESS_KEY)"})
    training = training_config(job).to_json()
    pod = a_pod(job=job, training=training)
    values = {entry["name"]: entry["value"] for entry in pod["spec"]["containers"][0]["env"]}
    assert values["STEADFAST_TRAINING"] == training.replace("$(", "$$(")


def test_a_worker_leaves_a_lost_node_after_seconds_unless_its_profile_says_otherwise() -> None:
    patient = {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 60}
    tolerated = [
        {one["key"]: one["tolerationSeconds"] for one in pod["spec"]["tolerations"]}
        for pod in (a_pod(), a_pod(tolerations=[patient]))
    ]
    assert tolerated == [
        {"node.kubernetes.io/not-ready": 5, "node.kubernetes.io/unreachable": 5},
        {"node.kubernetes.io/not-ready": 5, "node.kubernetes.io/unreachable": 60},
    ]


def test_a_profile_s_object_store_completes_the_job_s() -> None:
    theirs = {
        "endpoint": "http://theirs",
        "region": "eu",
        "credentialsSecret": "store",
        "serviceAccountName": "trainer",
    }
    job = a_job(**{"spec.objectStore": {"endpoint": "http://ours"}})
    spec = a_pod(job=job, objectStore=theirs)["spec"]
    (container,) = spec["containers"]
    values = {entry["name"]: entry["value"] for entry in container["env"]}
    assert (values["S3_ENDPOINT_URL"], values["AWS_REGION"]) == ("http://ours", "eu")
    assert container["envFrom"] == [{"secretRef": {"name": "store"}}]
    assert spec["serviceAccountName"] == "trainer"


def test_two_jobs_share_no_part_of_a_pod() -> None:
    first, second = (a_pod() for _ in range(2))
    first["spec"]["volumes"][0]["emptyDir"]["sizeLimit"] = "1Gi"
    assert second != first


def test_no_worker_has_a_privilege_that_its_profile_does_not_give() -> None:
    spec = a_pod()["spec"]
    (container,) = spec["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert not {"hostNetwork", "nodeSelector", "imagePullSecrets"} & spec.keys()
    assert not any("hostPort" in port for port in container["ports"])


def test_whatever_a_profile_gives_a_worker_is_not_root_and_knows_no_token() -> None:
    spec = a_pod(**H100)["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True


def test_a_profile_overrides_none_of_our_variables() -> None:
    (container,) = a_pod(environment={"STEADFAST_ATTEMPT": "9", "NCCL_DEBUG": "INFO"})["spec"]["containers"]
    values = [(entry["name"], entry["value"]) for entry in container["env"] if entry["name"] == "STEADFAST_ATTEMPT"]
    assert values == [("STEADFAST_ATTEMPT", "1")]


def test_in_a_node_s_network_ports_are_the_node_s() -> None:
    (container,) = a_pod(hostNetwork=True)["spec"]["containers"]
    ports = {port["name"]: (port["containerPort"], port["hostPort"]) for port in container["ports"]}
    assert ports == {"agent": (9400, 9400), "rendezvous": (29500, 29500)}


@pytest.mark.parametrize(
    ("limits", "spec", "expected"),
    [
        pytest.param({}, {"gpuResource": "amd.com/gpu"}, {"amd.com/gpu": "8"}, id="gpus of another vendor"),
        pytest.param({}, {"workerResources": {"a/b": 2}}, {"a/b": "2", "nvidia.com/gpu": "8"}, id="devices are given"),
        pytest.param(
            {"a/b": 1}, {"workerResources": {"a/b": 2}}, {"a/b": "1", "nvidia.com/gpu": "8"}, id="the job asks for less"
        ),
    ],
)
def test_what_a_worker_may_use(limits: dict[str, Any], spec: dict[str, Any], expected: dict[str, str]) -> None:
    job = a_job(**{"spec.gpusPerWorker": 8, "spec.resources.limits": limits})
    resources = a_pod(job=job, **spec)["spec"]["containers"][0]["resources"]
    assert resources == {"limits": expected, "requests": expected}

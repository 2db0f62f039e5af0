"""Pods of workers as golden files: tests/golden/pods/<case>.yaml, accepted with --update-golden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from builders import a_job
from steadfast_contract.env import WorkerEnv
from steadfast_operator.api.resolve import training_config
from steadfast_operator.core.actions import CreateWorker
from steadfast_operator.core.pods import build_worker_pod

FOLDER = Path(__file__).parents[2] / "golden/pods"
TRAINING = '{"steps": 10}'

CASES: dict[str, tuple[dict[str, Any], CreateWorker]] = {
    "first_worker_on_cpu": (
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
        CreateWorker(serial=7, attempt=3, node_rank=1, num_workers=2, master="10.0.0.1:29500"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_pod_is_as_it_was_accepted(name: str, pytestconfig: pytest.Config) -> None:
    overrides, action = CASES[name]
    pod = build_worker_pod(a_job(**overrides), action, training=TRAINING, grace_seconds=60)
    golden = FOLDER / f"{name}.yaml"
    if pytestconfig.getoption("--update-golden"):
        golden.write_text(yaml.safe_dump(pod, sort_keys=False, width=120))
    assert yaml.safe_load(golden.read_text()) == pod, "if it is meant, run pytest with --update-golden"


def test_every_golden_pod_is_compared() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(CASES)


def test_a_worker_understands_the_environment_of_its_pod() -> None:
    job = a_job()
    training = training_config(job).to_json()
    pod = build_worker_pod(job, CASES["first_worker_on_cpu"][1], training=training, grace_seconds=60)
    (container,) = pod["spec"]["containers"]
    worker = WorkerEnv.from_mapping({entry["name"]: entry["value"] for entry in container["env"]})
    assert (worker.job, worker.worker, worker.training) == ("research/moe", pod["metadata"]["name"], training)
    assert (worker.host, worker.port) == ("0.0.0.0", container["ports"][0]["containerPort"])


def test_no_variable_is_put_into_another() -> None:
    job = a_job(**{"spec.data.tokenizer": "s3://corpora/$(AWS_SECRET_ACCESS_KEY)"})
    training = training_config(job).to_json()
    pod = build_worker_pod(job, CASES["first_worker_on_cpu"][1], training=training, grace_seconds=60)
    values = {entry["name"]: entry["value"] for entry in pod["spec"]["containers"][0]["env"]}
    assert values["STEADFAST_TRAINING"] == training.replace("$(", "$$(")


def test_two_jobs_share_no_part_of_a_pod() -> None:
    action = CASES["first_worker_on_cpu"][1]
    first, second = (build_worker_pod(a_job(), action, training=TRAINING, grace_seconds=60) for _ in range(2))
    first["spec"]["volumes"][0]["emptyDir"]["sizeLimit"] = "1Gi"
    assert second != first

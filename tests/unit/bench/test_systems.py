from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from bench.systems import SYSTEMS, WORKERS, Place

from steadfast_contract.training import TrainingConfig
from steadfast_operator.api.resolve import training_config
from steadfast_operator.api.types import TrainingJob

PLACE = Place(
    namespace="bench", profile="bench", image="trainer:1", endpoint="http://s3:1", region="r", dns="10.0.0.10"
)
PEERS = sorted(set(SYSTEMS) - {"steadfast"})


def pods_of(value: Any) -> Iterator[dict[str, Any]]:
    """Pod specs anywhere in a manifest."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from pods_of(each)


@pytest.mark.parametrize("name", PEERS)
def test_peers_train_what_steadfast_trains(name: str) -> None:
    ours = training_config(TrainingJob.model_validate(SYSTEMS["steadfast"].manifests("job", PLACE)[0]))
    pods = list(pods_of(SYSTEMS[name].manifests("job", PLACE)))
    assert pods
    for pod in pods:
        (container,) = pod["containers"]
        env = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert TrainingConfig.from_json(env["STEADFAST_TRAINING"]) == ours
        assert container["image"] == PLACE.image


@pytest.mark.parametrize("name", SYSTEMS)
def test_each_job_has_a_run_and_a_namespace(name: str) -> None:
    elsewhere = replace(PLACE, namespace="other")
    manifests = SYSTEMS[name].manifests("job", elsewhere)
    assert {manifest["metadata"]["namespace"] for manifest in manifests} == {"other"}


def test_all_have_two_workers_of_one_rank() -> None:
    spec = SYSTEMS["steadfast"].manifests("job", PLACE)[0]["spec"]
    assert (spec["workers"], spec["ranksPerWorker"]) == (WORKERS, 1)
    for name in ("jobset", "torchrun-job"):
        (pod,) = pods_of(SYSTEMS[name].manifests("job", PLACE))
        assert {f"--nnodes={WORKERS}", "--nproc-per-node=1"} <= set(pod["containers"][0]["command"])
    (job,) = SYSTEMS["pytorchjob"].manifests("job", PLACE)
    assert sum(replica["replicas"] for replica in job["spec"]["pytorchReplicaSpecs"].values()) == WORKERS
    assert job["spec"]["nprocPerNode"] == "1"

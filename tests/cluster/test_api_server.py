"""What the real API server makes of our resources: nothing is lost on the way, nothing bad gets in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from builders import a_manifest
from cluster.driver import Cluster, Object, RefusedByCluster
from steadfast_operator.api.crossfield import cross_field_problems
from steadfast_operator.api.types import TrainingJob
from testbed.paths import ROOT
from unit.api.test_validate import REFUSED

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

WHOLE_SPEC: Object = {
    "runName": "team/moe",
    "image": "registry.example/steadfast-trainer@sha256:" + "0" * 64,
    "workers": 2,
    "gpusPerWorker": 2,
    "ranksPerWorker": 1,
    "device": "cuda",
    "profile": "h100-infiniband",
    "resources": {"limits": {"cpu": "96", "memory": "1400Gi", "rdma/hca": "1"}},
    "model": {
        "preset": "dbrx", "layers": 2, "hiddenSize": 64, "heads": 4, "kvHeads": 2, "ffnHiddenSize": 64, "experts": 4,
        "expertsPerToken": 2, "vocabularySize": 512, "contextLength": 32, "ropeTheta": 500000.5,
    },
    "precision": {"recipe": "bf16"},
    "train": {
        "tokens": "12T", "globalBatchTokens": "64M", "seed": 18,
        "optimizer": {
            "learningRate": 0.001, "beta1": 0.8, "beta2": 0.9, "epsilon": 1e-07, "weightDecay": 0.2, "gradientClip": 2,
        },
        "schedule": {"warmupTokens": "10G", "decay": "constant", "finalFraction": 0.5},
    },
    "data": {"tokenizer": "s3://corpora/t.json", "streams": [{"name": "web", "remote": "s3://corpora/web"}]},
    "checkpoint": {"destination": "s3://runs", "resume": "never", "intervalSeconds": 60},
    "objectStore": {
        "endpoint": "https://s3.example:9000", "region": "eu-central-1", "credentialsSecret": "steadfast-s3",
        "serviceAccountName": "steadfast-trainer",
    },
    "faultTolerance": {
        "maxRestarts": 3, "startTimeoutSeconds": 30, "hang": {"initSeconds": 10, "firstStepSeconds": 20},
    },
    "suspend": True,
    "activeDeadlineSeconds": 86400,
    "ttlSecondsAfterFinished": 3600,
}  # fmt: skip

WHEN = "2026-01-01T12:00:00Z"
WHOLE_STATUS: Object = {
    "observedGeneration": 3,
    "attempt": 7,
    "nextSerial": 14,
    "configDigest": "sha256:" + "d" * 64,
    "started": WHEN,
    "finished": WHEN,
    "restartAt": WHEN,
    "conditions": [
        {
            "type": "Running", "status": "False", "reason": "Completed", "message": "All workers finished.",
            "lastTransitionTime": WHEN, "observedGeneration": 3,
        }
    ],
    "progress": {
        "step": 5, "steps": 10, "tokens": 1280, "loss": 2.5, "tokensPerSecond": 256.5, "percent": 50.5, "eta": WHEN,
        "updated": WHEN,
    },
    "checkpoint": {"step": 5, "uri": "s3://runs/team/moe/step-5", "at": WHEN},
    "restarts": {
        "total": 6, "byClass": {"GpuFault": 4, "NodeLost": 2}, "recent": [WHEN], "withoutProgress": 1, "bestStep": 5,
    },
    "lastFailure": {
        "class": "GpuFault", "worker": "moe-7e1f5-3", "rank": 3, "evidence": "Xid 79", "at": WHEN, "remedy": "restart",
    },
    "attempts": [
        {
            "number": 7, "reason": "WorkerFailed", "started": WHEN, "ended": WHEN, "outcome": "Completed",
            "resumedFrom": 4, "workersCreated": 2,
        }
    ],
    "state": "Succeeded",
    "workersReady": "0/2",
}  # fmt: skip


def test_our_examples_of_everything_name_every_field() -> None:
    definition = yaml.safe_load((ROOT / "crds" / "trainingjobs.yaml").read_text())
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    assert list(missing(schema["spec"], WHOLE_SPEC, at="spec")) == ["spec.train.steps"]  # or tokens
    assert list(missing(schema["status"], WHOLE_STATUS, at="status")) == []


def missing(schema: Mapping[str, Any], value: Any, *, at: str) -> Iterator[str]:
    """Properties of the schema that the value does not have."""
    if schema["type"] == "array":
        yield from missing(schema["items"], value[0], at=f"{at}[]") if "type" in schema["items"] else ()
    for name, inner in schema.get("properties", {}).items():
        if name not in value:
            yield f"{at}.{name}"
        elif "type" in inner:
            yield from missing(inner, value[name], at=f"{at}.{name}")


def test_nothing_that_we_send_is_pruned(installed: Cluster, namespace: str) -> None:
    job = a_manifest(metadata={"name": "whole", "namespace": namespace}) | {"spec": WHOLE_SPEC}
    stored = create(installed, job)
    assert stored["spec"] == WHOLE_SPEC
    status = f"--patch={json.dumps({'status': WHOLE_STATUS})}"  # a patch, because the operator writes it, too
    place = ("trainingjob", "whole", f"--namespace={namespace}", "--subresource=status", "--type=merge")
    assert json.loads(installed.kubectl("patch", *place, status, "--output=json"))["status"] == WHOLE_STATUS
    installed.kubectl("delete", "trainingjob", "whole", f"--namespace={namespace}")


@pytest.mark.parametrize(
    ("overrides", "path", "says"),
    # To Kubernetes null is no value, and the default takes its place.
    [pytest.param(*case, id=f"{case[1]}: {case[2][:60]}") for case in REFUSED if None not in case[0].values()],
)
def test_a_bad_manifest_never_runs(
    installed: Cluster, namespace: str, overrides: dict[str, Any], path: str, says: str
) -> None:
    """The API server refuses it, or the operator would: what no rule can say there is arithmetic."""
    overrides = {"metadata.namespace": namespace} | overrides
    manifest = a_manifest(**overrides)
    if refusal := refusal_of(installed, manifest):
        assert path.rpartition(".")[2].partition("[")[0] in refusal or "no matches for kind" in refusal
    else:
        problems = cross_field_problems(TrainingJob.model_validate(manifest))
        assert path in {problem.path for problem in problems}


def test_a_job_that_runs_keeps_its_configuration(installed: Cluster, namespace: str) -> None:
    manifest = a_manifest(metadata={"name": "frozen", "namespace": namespace}, **{"spec.train.globalBatchTokens": 33})
    create(installed, manifest)  # the operator refuses it, so that nothing runs
    for change in ({"workers": 4}, {"model": {"preset": "dbrx"}}, {"checkpoint": {"destination": "s3://elsewhere"}}):
        with pytest.raises(RefusedByCluster, match=r"suspend|never"):
            patch(installed, "frozen", namespace=namespace, spec=change)
    patch(installed, "frozen", namespace=namespace, spec={"suspend": True, "workers": 4})


def refusal_of(cluster: Cluster, manifest: Object) -> str:
    """What the API server says against it; nothing when it would take it."""
    try:
        create(cluster, manifest, dry_run=True)
    except RefusedByCluster as refusal:
        return str(refusal)
    return ""


def create(cluster: Cluster, manifest: Object, *, dry_run: bool = False) -> Object:
    options = ["--dry-run=server"] if dry_run else []
    stored: Object = json.loads(
        cluster.kubectl("create", "--validate=strict", "--output=json", "--filename=-", *options, stdin=manifest)
    )
    return stored


def patch(cluster: Cluster, name: str, *, namespace: str, spec: Object) -> None:
    text = json.dumps({"spec": spec})
    cluster.kubectl("patch", "trainingjob", name, f"--namespace={namespace}", "--type=merge", f"--patch={text}")

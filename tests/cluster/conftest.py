"""One cluster for the whole suite: the test bed, or whatever `STEADFAST_KUBECONFIG` names.

Another cluster than the bed needs kubectl and helm on the PATH, the images on its nodes (`STEADFAST_TRAINER_IMAGE`,
`STEADFAST_OPERATOR_IMAGE`), and a store with the buckets corpora and runs that pods and tests reach by the same
address (`S3_ENDPOINT_URL`, `AWS_*`). `make kind-up` prints all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import testbed.cluster
from cluster.driver import SECRET, SYSTEM, Cluster
from testbed import services
from testbed.paths import BIN, KUBECONFIG, ROOT

CHART = ROOT / "charts" / "steadfast"


def is_bed() -> bool:
    """Whether the suite runs on our own test bed, where nodes can be killed and cables pulled."""
    return Path(os.environ.get("STEADFAST_KUBECONFIG") or KUBECONFIG).expanduser() == KUBECONFIG


needs_bed = pytest.mark.skipif(not is_bed(), reason="kills nodes and pulls cables: only on the test bed")


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster, with the images of this tree on its nodes."""
    if not is_bed():
        store = {name: os.environ[name] for name in services.STORE_VARIABLES}
        images = {name: os.environ[f"STEADFAST_{name.upper()}_IMAGE"] for name in ("trainer", "operator")}
        return Cluster(Path(os.environ["STEADFAST_KUBECONFIG"]).expanduser(), "", store, **images)
    if not testbed.cluster.is_up():
        pytest.fail("the test bed is not up: make cluster-up")
    images = {name: testbed.cluster.add_image(name, print) for name in ("trainer", "operator")}
    return Cluster(KUBECONFIG, f"{BIN}/", services.store_environment(), **images)


@pytest.fixture(scope="session")
def installed(cluster: Cluster) -> Cluster:
    """The cluster with our operator, installed as a user does it."""
    repository, _, tag = cluster.operator.rpartition(":")
    cluster.helm(
        "upgrade", "--install", "steadfast", str(CHART), f"--namespace={SYSTEM}", "--create-namespace", "--wait",
        "--take-ownership",
        "--timeout=120s", f"--set=image.repository={repository}", f"--set=image.tag={tag}",
    )  # fmt: skip
    return cluster


@pytest.fixture(scope="session")
def nano_corpus(cluster: Cluster) -> None:
    """Shards of the standard library for moe-nano at s3://corpora/small, enough that no sample comes twice."""
    command = [
        sys.executable, "-m", "steadfast_trainer.data.prepare", "python-stdlib", "--out=s3://corpora/small",
        "--tokenizer=train:512", "--sequence-length=32", "--max-tokens=600000",
    ]  # fmt: skip
    done = subprocess.run(command, env=os.environ | cluster.store, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace with the store's credentials."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", name)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SECRET, "namespace": name},
        "stringData": {key: cluster.store[key] for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")},
    }
    cluster.kubectl("create", "--filename=-", stdin=secret)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")

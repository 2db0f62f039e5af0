"""The promise, on real kubelets: whatever is killed, a run ends with the weights of one that nobody disturbed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.conftest import is_bed
from cluster.driver import Cluster, Job, nano, until
from oracle import (
    assert_every_sample_once,
    assert_same_tensors,
    assert_unbroken_chain,
    newest_checkpoint,
    tensors_of,
)
from steadfast_operator.api.resolve import training_config
from testbed import nodes, services

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900), pytest.mark.usefixtures("nano_corpus")]

STEPS = 2000
STORE_GONE_SECONDS = 20
NODE_LOST_SECONDS = 120
"""Bound on the way back from a dead node. Its peers notice at once, and its worker is waited for for 10 s; but if the
scheduler puts the replacement on the dead node again, Kubernetes takes 51 s to call it not ready (node monitor grace
50 s, its default, not shortened here), and then pods tolerate that for 5 s."""


@pytest.fixture(scope="module")
def undisturbed(installed: Cluster, namespace: str) -> Job:
    """A run that nobody disturbs, from apply to its end."""
    job = Job(installed, nano(installed, "undisturbed", namespace=namespace, **{"spec.train.steps": STEPS}))
    job.apply()
    job.until_state("Succeeded", seconds=400)
    return job


def test_a_job_trains_to_its_end(undisturbed: Job) -> None:
    status = undisturbed.fetch().status
    assert (status.attempt, status.restarts.total) == (1, 0)
    assert status.progress is not None
    assert (status.progress.step, status.progress.percent) == (STEPS, 100)
    assert status.checkpoint is not None
    assert status.checkpoint.step == STEPS
    assert {c.type for c in status.conditions if c.status == "True"} == {"Accepted", "Succeeded"}
    assert [pod["status"]["phase"] for pod in undisturbed.pods()] == ["Succeeded", "Succeeded"]


def test_six_faults_end_with_the_weights_of_an_undisturbed_run(
    installed: Cluster, namespace: str, undisturbed: Job, tmp_path: Path
) -> None:
    job = Job(installed, nano(installed, "disturbed", namespace=namespace, **{"spec.train.steps": STEPS}))
    job.apply()
    attempt = 0
    for fault, failure_class in FAULTS:
        attempt = job.until_steps(20, attempt=attempt)
        began = time.monotonic()
        fault(installed, job)
        job.until_steps(1, attempt=attempt, seconds=60)
        last = job.fetch().status.last_failure
        print(f"{fault.__name__}: {time.monotonic() - began:.1f} s to the next step; {last}")
        assert last is not None
        assert last.class_ == failure_class
    if is_bed():
        lose_the_store(job)
    delete_and_apply_again(job)
    if is_bed():
        lose_a_node(job)
    job.until_state("Succeeded", seconds=400)

    expected_store, expected = newest_checkpoint(f"s3://runs/{namespace}/undisturbed", environ=installed.store)
    actual_store, actual = newest_checkpoint(f"s3://runs/{namespace}/disturbed", environ=installed.store)
    assert actual.step == expected.step == STEPS
    assert actual.data == expected.data
    training = training_config(job.fetch())
    assert_every_sample_once(actual, training=training, cache=tmp_path, environ=installed.store)
    assert_same_tensors(tensors_of(actual_store, actual), tensors_of(expected_store, expected))
    assert_unbroken_chain(actual_store, actual)


def kill_a_rank(_: Cluster, job: Job) -> None:
    job.kill_rank(1, 1)


def delete_a_worker(_: Cluster, job: Job) -> None:
    job.delete_pod(1)


def kill_the_operator_during_a_recovery(cluster: Cluster, job: Job) -> None:
    before = job.fetch().status.restarts.total
    job.kill_rank(0, 0)
    job.until(lambda: job.fetch().status.restarts.total > before, "has counted the failure", seconds=30)
    cluster.kill_operator()


FAULTS: list[tuple[Callable[[Cluster, Job], None], str]] = [
    (kill_a_rank, "Unknown"),
    (delete_a_worker, "Evicted"),
    (kill_the_operator_during_a_recovery, "Unknown"),
]


def lose_the_store(job: Job) -> None:
    """Its cable is pulled: requests hang, training goes on, nothing restarts."""
    before = job.fetch().status
    services.cut_store()
    try:
        time.sleep(STORE_GONE_SECONDS)
    finally:
        services.heal_store()
    after = job.fetch().status
    assert after.attempt == before.attempt
    committed = after.checkpoint.step if after.checkpoint else 0
    job.until(lambda: (now := job.fetch().status.checkpoint) and now.step > committed, "saves again", seconds=60)


def delete_and_apply_again(job: Job) -> None:
    """Another job, the same run."""
    before = job.fetch()
    job.delete()
    job.apply()
    job.until_steps(1)
    after = job.fetch()
    assert after.metadata.uid != before.metadata.uid
    assert after.status.attempts[0].resumed_from is not None
    assert before.status.checkpoint is not None
    assert after.status.attempts[0].resumed_from >= before.status.checkpoint.step > 0


def lose_a_node(job: Job) -> None:
    """Kubelet and containers of the second worker's node, at once; it comes back when the job runs elsewhere."""
    attempt, node = job.until_steps(20), job.node_of(1)
    began = time.monotonic()
    nodes.crash(node)
    try:
        job.until_steps(1, attempt=attempt, seconds=NODE_LOST_SECONDS)
        print(f"lose_a_node: {time.monotonic() - began:.1f} s to the next step, {node} Ready: {nodes.is_ready(node)}")
        until(lambda: not nodes.is_ready(node), "the node is called not ready", seconds=90)
        print(f"{node} is NotReady after {time.monotonic() - began:.1f} s")
    finally:
        nodes.start_kubelet(node)
        until(lambda: nodes.is_ready(node), "the node is back", seconds=60)
    last = job.fetch().status.last_failure
    assert last is not None
    assert last.class_ in {"CollectiveError", "NodeLost", "AgentLost"}

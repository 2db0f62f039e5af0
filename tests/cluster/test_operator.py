"""Jobs outlive their operator: what is asked for while it is away happens when it is back, or without it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.driver import Cluster, Job, nano, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400), pytest.mark.usefixtures("nano_corpus")]


@pytest.fixture
def away(installed: Cluster) -> Iterator[Cluster]:
    """The cluster; whatever a test does to its operator, it is there again afterwards."""
    yield installed
    installed.scale_operator(1)


def test_jobs_created_and_deleted_while_the_operator_is_away(away: Cluster, namespace: str) -> None:
    doomed = Job(away, nano(away, "doomed", namespace=namespace, **{"spec.train.steps": 100_000}))
    doomed.apply()
    doomed.until_steps(1)
    away.scale_operator(0)
    doomed.delete()
    created = Job(away, nano(away, "created", namespace=namespace))
    created.apply()
    until(lambda: not doomed.all_pods(), "the deleted job's pods are gone", seconds=90)
    assert not created.all_pods()
    away.scale_operator(1)
    created.until_state("Succeeded", seconds=90)


def test_a_suspended_job_saves_rests_and_goes_on(installed: Cluster, namespace: str) -> None:
    job = Job(installed, nano(installed, "rests", namespace=namespace, **{"spec.train.steps": 300}))
    job.apply()
    job.until_steps(20)
    job.patch(suspend=True)
    job.until_state("Suspended", seconds=60)
    until(lambda: not job.all_pods(), "its pods are gone", seconds=30)
    saved = job.fetch().status.checkpoint
    assert saved is not None
    job.patch(suspend=False)
    job.until_state("Succeeded", seconds=120)
    status = job.fetch().status
    assert [entry.reason for entry in status.attempts] == ["FirstStart", "Resumed"]
    assert (status.attempts[1].resumed_from, status.restarts.total) == (saved.step, 0)


def test_a_job_past_its_deadline_fails_and_goes_after_its_time_to_live(installed: Cluster, namespace: str) -> None:
    limits = {"spec.activeDeadlineSeconds": 5, "spec.ttlSecondsAfterFinished": 5}
    job = Job(installed, nano(installed, "late", namespace=namespace, **{"spec.train.steps": 100_000}, **limits))
    job.apply()
    job.until_state("Failed", seconds=60)
    assert [c.reason for c in job.fetch().status.conditions if c.status == "True"] == ["Accepted", "DeadlineExceeded"]
    until(lambda: not job.exists(), "the job is deleted", seconds=60)
    until(lambda: not job.all_pods(), "its pods are gone", seconds=90)


def test_a_job_that_cannot_run_says_why_and_runs_when_it_can(installed: Cluster, namespace: str) -> None:
    job = Job(installed, nano(installed, "odd", namespace=namespace, **{"spec.train.globalBatchTokens": 33}))
    job.apply()
    job.until_state("Invalid", seconds=30)
    (accepted,) = (c for c in job.fetch().status.conditions if c.type == "Accepted")
    assert "33 is no multiple of contextLength 32" in accepted.message
    assert not job.all_pods()
    job.patch(suspend=True)
    job.patch(train={"globalBatchTokens": 256}, suspend=False)
    job.until_state("Succeeded", seconds=90)


def test_a_job_gets_no_secret_that_its_profile_does_not_lend(installed: Cluster, namespace: str) -> None:
    job = Job(installed, nano(installed, "nosy", namespace=namespace))
    job.manifest["spec"]["objectStore"]["credentialsSecret"] = "payroll"
    job.apply()
    job.until_state("Invalid", seconds=30)
    (accepted,) = (c for c in job.fetch().status.conditions if c.type == "Accepted")
    assert "'payroll'" in accepted.message
    assert not job.all_pods()


def test_a_worker_has_no_token_no_root_and_a_network_policy(installed: Cluster, namespace: str) -> None:
    job = Job(installed, nano(installed, "modest", namespace=namespace, **{"spec.train.steps": 100_000}))
    job.apply()
    job.until_steps(1)
    script = (
        "import os; print(os.getuid(), os.access('/', os.W_OK), "
        "os.path.exists('/var/run/secrets/kubernetes.io/serviceaccount'))"
    )
    name = job.pods()[0]["metadata"]["name"]
    said = installed.kubectl("exec", name, f"--namespace={namespace}", "--", "python", "-c", script)
    assert said == "10001 False False\n"
    chosen = f"--selector=steadfast.dev/job-uid={job.fetch().metadata.uid}"
    (policy,) = installed.get("networkpolicies", f"--namespace={namespace}", chosen)["items"]
    assert policy["metadata"]["ownerReferences"][0]["name"] == "modest"
    job.delete()
    until(lambda: not job.all_pods(), "its pods are gone", seconds=90)

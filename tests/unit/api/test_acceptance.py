"""What a profile refuses: the path each refusal names and what it says; and what it lets through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from builders import a_job, a_profile
from steadfast_operator.api.acceptance import CHECKS, matches, permitting, profile_problems
from steadfast_operator.api.profile import ClusterTrainingProfile

PROFILES = sorted((Path(__file__).parents[3] / "examples/profiles").glob("*.yaml"))
LIMITS = "spec.resources.limits"

REFUSED: dict[str, list[tuple[dict[str, Any], dict[str, Any], str, str]]] = {
    "image_not_allowed": [
        (
            {"allowedImages": ["ghcr.example/*", "registry.example/other@*"]},
            {},
            "spec.image",
            "'registry.example/steadfast-trainer:1' is no image that profile default allows. Write one that matches "
            "ghcr.example/* or registry.example/other@*.",
        ),
        ({"allowedImages": []}, {}, "spec.image", "It allows none: use another profile."),
        ({"allowedImages": ["gistry.example/*"]}, {}, "spec.image", "is no image"),
        ({"allowedImages": ["*steadfast-trainer"]}, {}, "spec.image", "is no image"),
    ],
    "secret_not_allowed": [
        (
            {"allowedSecrets": ["s3-team", "roots"]},
            {"spec.objectStore.credentialsSecret": "root"},
            "spec.objectStore.credentialsSecret",
            "'root' neither begins with steadfast- nor is allowed by profile default. Name one that begins with "
            "steadfast-, or ask an administrator to allow this one.",
        ),
        (
            {"allowedServiceAccounts": ["root"]},
            {"spec.objectStore.credentialsSecret": "root"},
            "spec.objectStore.credentialsSecret",
            "'root' neither",
        ),
    ],
    "account_not_allowed": [
        (
            {"allowedSecrets": ["default"]},
            {"spec.objectStore.serviceAccountName": "default"},
            "spec.objectStore.serviceAccountName",
            "'default' neither begins with steadfast- nor is allowed by profile default.",
        ),
    ],
    "too_many_workers": [
        (
            {"ceilings": {"workers": 1}},
            {},
            "spec.workers",
            "2 workers are 1 more than the 1 that profile default allows. Write at most 1.",
        ),
    ],
    "too_many_gpus": [
        (
            {"ceilings": {"gpusPerWorker": 4}},
            {"spec.gpusPerWorker": 8},
            "spec.gpusPerWorker",
            "8 GPUs for each worker are 4 more than the 4 that profile default allows. Write at most 4.",
        ),
        ({"ceilings": {"gpusPerWorker": 0}}, {"spec.gpusPerWorker": 1}, "spec.gpusPerWorker", "1 more than the 0"),
    ],
    "resource_not_named": [
        (
            {"workerResources": {"rdma/hca_b": 1}},
            {LIMITS: {"rdma/hca": 1}},
            LIMITS,
            "rdma/hca is no resource that profile default names. Leave it out, or ask an administrator to name it in "
            "workerResources or ceilings.limits.",
        ),
        (
            {"gpuResource": "nvidia.com/mig-1g.10gb"},
            {LIMITS: {"nvidia.com/mig-1g.10gb": 1}},
            LIMITS,
            "nvidia.com/mig-1g.10gb is what gpusPerWorker asks for under profile default. Write the number there",
        ),
    ],
    "limit_above_ceiling": [
        (
            {"ceilings": {"limits": {"memory": "1800Gi"}}},
            {LIMITS: {"memory": "2Ti"}},
            LIMITS,
            "memory 2Ti is 248Gi more than the 1800Gi that profile default allows each worker. Write at most 1800Gi.",
        ),
        (
            {"ceilings": {"limits": {"memory": "1G"}}},
            {LIMITS: {"memory": "1Gi"}},
            LIMITS,
            "memory 1Gi is 0.074G more than the 1G",
        ),
        (
            {"ceilings": {"limits": {"cpu": "500m"}}},
            {LIMITS: {"cpu": 1}},
            LIMITS,
            "cpu 1 is 500m more than the 500m that",
        ),
        (
            {"workerResources": {"rdma/hca": 8}},
            {LIMITS: {"rdma/hca": 16}},
            LIMITS,
            "rdma/hca 16 is 8 more than the 8 that",
        ),
        (
            {"workerResources": {"rdma/hca": 8}, "ceilings": {"limits": {"rdma/hca": 12}}},
            {LIMITS: {"rdma/hca": 16}},
            LIMITS,
            "rdma/hca 16 is 4 more than the 12 that",
        ),
    ],
    "limit_missing": [
        (
            {"ceilings": {"limits": {name: "1Gi"}}},
            {},
            LIMITS,
            f"sets no {name}, and a worker without a limit is above the 1Gi that profile default allows. Add {name}, "
            "at most 1Gi.",
        )
        for name in ("cpu", "memory", "ephemeral-storage")
    ],
}


@pytest.mark.parametrize(
    ("check", "spec", "overrides", "path", "message"),
    [pytest.param(check, *case, id=f"{check} {i}") for check, cases in REFUSED.items() for i, case in enumerate(cases)],
)
def test_what_is_refused(check: str, spec: dict[str, Any], overrides: dict[str, Any], path: str, message: str) -> None:
    job, profile = a_job(**overrides), a_profile(**spec)
    (problem,) = profile_problems(job, profile)
    assert problem.path == path
    assert message in str(problem)
    (found,) = (each for each in CHECKS if list(each(job, profile)))
    assert found.__name__ == check


def test_every_check_is_seen_to_refuse() -> None:
    assert list(REFUSED) == [check.__name__ for check in CHECKS]


@pytest.mark.parametrize(
    ("spec", "overrides"),
    [
        pytest.param({}, {}, id="a profile that says nothing"),
        pytest.param({"allowedImages": ["registry.example/*:1"]}, {}, id="an image of a pattern"),
        pytest.param({}, {"spec.objectStore.credentialsSecret": "steadfast-s3"}, id="a secret of ours"),
        pytest.param(
            {"allowedSecrets": ["s3"]}, {"spec.objectStore.credentialsSecret": "s3"}, id="a secret that it names"
        ),
        pytest.param(
            {"allowedServiceAccounts": ["default"]},
            {"spec.objectStore.serviceAccountName": "default"},
            id="an account that it names",
        ),
        pytest.param({"ceilings": {"workers": 2, "gpusPerWorker": 0}}, {}, id="as many workers and GPUs as it allows"),
        pytest.param({}, {LIMITS: {"cpu": 1, "memory": "1Gi", "ephemeral-storage": "1Gi"}}, id="what all nodes have"),
        pytest.param({"workerResources": {"rdma/hca": 8}}, {LIMITS: {"rdma/hca": 4}}, id="fewer of a worker's devices"),
        pytest.param(
            {"workerResources": {"rdma/hca": 8}, "ceilings": {"limits": {"rdma/hca": 16}}},
            {LIMITS: {"rdma/hca": 16}},
            id="more devices than a worker gets, within a ceiling",
        ),
        pytest.param({"ceilings": {"limits": {"rdma/hca": 1}}}, {}, id="no limit of a device with a ceiling"),
        pytest.param({"ceilings": {"limits": {"cpu": 1}}}, {LIMITS: {"cpu": "1000m"}}, id="just as much as allowed"),
    ],
)
def test_what_is_accepted(spec: dict[str, Any], overrides: dict[str, Any]) -> None:
    assert profile_problems(a_job(**overrides), a_profile(**spec)) == []


def test_a_profile_that_does_not_exist_is_named() -> None:
    (problem,) = profile_problems(a_job(**{"spec.profile": "h200"}), None)
    assert str(problem) == (
        "spec.profile: there is no ClusterTrainingProfile 'h200' in this cluster. Name one of those that `kubectl get "
        "clustertrainingprofiles` lists, or ask an administrator for it."
    )


def test_all_problems_are_told_at_once() -> None:
    profile = a_profile(allowedImages=[], ceilings={"workers": 1, "limits": {"cpu": 1, "memory": "1Gi"}})
    problems = profile_problems(a_job(), profile)
    assert [problem.path for problem in problems] == ["spec.image", "spec.workers", LIMITS, LIMITS]


def test_where_no_administrator_is_everything_is_permitted_and_nothing_given() -> None:
    job = a_job(
        **{
            "spec.profile": "h100",
            "spec.objectStore": {"credentialsSecret": "root", "serviceAccountName": "default"},
            LIMITS: {"rdma/hca": 1, "cpu": "500m"},
            "spec.gpusPerWorker": 8,
        }
    )
    profile = permitting(job)
    assert profile_problems(job, profile) == []
    assert profile.spec.worker_resources == {}


@pytest.mark.parametrize("example", PROFILES, ids=lambda path: path.name)
def test_every_example_is_one_that_the_api_server_would_take(example: Path) -> None:
    written = yaml.safe_load(example.read_text())
    profile = ClusterTrainingProfile.model_validate(written)
    assert profile.metadata.name == example.stem
    assert written["spec"].keys() <= profile.to_object()["spec"].keys()


@pytest.mark.parametrize(
    ("pattern", "text", "matched"),
    [
        ("a", "a", True),
        ("a", "ab", False),
        ("a", "ba", False),
        ("a*", "ab", True),
        ("*b", "ab", True),
        ("*", "", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("a*b*c", "axbyc", True),
        ("a*b*b", "ab", False),
        ("r/*:1", "r/x/y:1", True),
        ("r/*:1", "r/x:12", False),
        ("a.c", "abc", False),
        ("a?c", "abc", False),
        ("[a]", "a", False),
    ],
)
def test_a_pattern_is_of_the_whole_text(pattern: str, text: str, matched: bool) -> None:
    assert matches(pattern, text) is matched


@given(st.lists(st.text("ab", max_size=3), min_size=1, max_size=5), st.lists(st.text("ab", max_size=2), min_size=5))
def test_whatever_stands_for_the_stars_matches(parts: list[str], between: list[str]) -> None:
    text = "".join(part + filling for part, filling in zip(parts, [*between[: len(parts) - 1], ""], strict=True))
    assert matches("*".join(parts), text)


def test_no_pattern_takes_long() -> None:
    assert not matches("*a" * 250 + "*b", "a" * 512)

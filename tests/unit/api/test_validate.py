"""Every refusal of a manifest: the path it names and what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import REMOVED, a_job, a_manifest
from steadfast_operator.api.types import TrainingJob
from steadfast_operator.api.validate import NOT_YET, Problem, cross_field_problems, validate_manifest

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))
STREAM = {"name": "a", "remote": "s3://corpora/a"}


def problems_of(manifest: dict[str, Any] | str) -> list[Problem]:
    text = manifest if isinstance(manifest, str) else yaml.safe_dump(manifest, sort_keys=False)
    job, problems = validate_manifest(text, source="job.yaml")
    assert (job is None) == bool(problems)
    return problems


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_valid(example: Path) -> None:
    job, problems = validate_manifest(example.read_text(), source=example.name)
    assert problems == []
    assert job is not None


def test_a_valid_manifest_becomes_the_job() -> None:
    job, problems = validate_manifest(yaml.safe_dump(a_manifest()), source="job.yaml")
    assert problems == []
    assert job == TrainingJob.model_validate(a_manifest())


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param({"spec.train": {"steps": REMOVED, "tokens": "1.5k"}}, id="tokens as a quantity"),
        pytest.param({"spec.train.schedule.warmupTokens": 0}, id="no warm-up"),
        pytest.param({"spec.model.preset": "dbrx", "spec.train.globalBatchTokens": 8192}, id="the largest preset"),
        pytest.param({"spec.runName": "a.b/c..d/e"}, id="dots within a run's segment"),
        pytest.param({"spec.device": "cuda", "spec.gpusPerWorker": 2}, id="two ranks on two GPUs"),
        pytest.param({"spec.train.optimizer.learningRate": 1}, id="a whole number where a fraction may stand"),
        pytest.param({"metadata.labels": {"team": "a"}, "metadata.annotations": {"note": "b"}}, id="labels"),
        pytest.param({"status": {"anything": 1}}, id="a status, as kubectl get prints it"),
        pytest.param({"metadata.name": "x" * 40}, id="a name of 40 characters"),
        pytest.param({"spec.resources.limits": {"cpu": 96, "memory": "1400Gi", "rdma/hca": 1}}, id="resources"),
        pytest.param({"spec.resources.limits": {"cpu": "500m"}}, id="half a core"),
        pytest.param({"spec.objectStore.credentialsSecret": "steadfast-s3"}, id="a secret of ours"),
        pytest.param({"spec.objectStore.serviceAccountName": "steadfast-trainer"}, id="an account of ours"),
        pytest.param({"spec.objectStore.credentialsSecret": "s3"}, id="a secret that a profile may allow"),
        pytest.param({"spec.objectStore.serviceAccountName": "default"}, id="an account that a profile may allow"),
        pytest.param({"spec.profile": "h100-infiniband"}, id="a profile"),
        pytest.param({"spec.ttlSecondsAfterFinished": 0}, id="deleted as soon as it is finished"),
        pytest.param({"metadata.namespace": REMOVED}, id="no namespace"),
    ],
)
def test_what_is_accepted(overrides: dict[str, Any]) -> None:
    assert problems_of(a_manifest(**overrides)) == []


REFUSED = [
    # What the document is.
    ({"apiVersion": "v1"}, "apiVersion", "'v1' is not steadfast.dev/v1alpha1. Write steadfast.dev/v1alpha1."),
    ({"apiVersion": REMOVED}, "apiVersion", "is missing. Add apiVersion: steadfast.dev/v1alpha1."),
    ({"kind": "Job"}, "kind", "'Job' is not TrainingJob"),
    ({"kind": REMOVED}, "kind", "is missing. Add kind: TrainingJob."),
    # Fields that do not exist.
    ({"spec.worker": 2}, "spec.worker", "is no field of a TrainingJob. Did you mean workers?"),
    ({"spec.train.global_batch_tokens": 256}, "spec.train.global_batch_tokens", "Did you mean globalBatchTokens?"),
    ({"spec.train.optimizer.lr": 1.0}, "spec.train.optimizer.lr", "Remove it; known here: learningRate, beta1"),
    ({"metadata.nmae": "x"}, "metadata.nmae", "Did you mean name?"),
    ({"spec.data.streams": [{**STREAM, "remot": 1}]}, "spec.data.streams[0].remot", "Did you mean remote?"),
    ({"specs": {}}, "specs", "Did you mean spec?"),
    # Missing.
    ({"spec": REMOVED}, "spec", "is missing"),
    ({"metadata": REMOVED}, "metadata", "is missing"),
    ({"metadata.name": REMOVED}, "metadata.name", "is missing"),
    ({"spec.image": REMOVED}, "spec.image", "is missing"),
    ({"spec.model": REMOVED}, "spec.model", "is missing"),
    ({"spec.train.globalBatchTokens": REMOVED}, "spec.train.globalBatchTokens", "is missing"),
    ({"spec.data.streams": [{"name": "a"}]}, "spec.data.streams[0].remote", "is missing"),
    ({"spec.checkpoint.destination": REMOVED}, "spec.checkpoint.destination", "is missing"),
    # Types.
    ({"spec.workers": "2"}, "spec.workers", "'2' is not a whole number"),
    ({"spec.workers": 1.5}, "spec.workers", "1.5 is not a whole number"),
    ({"spec.suspend": "false"}, "spec.suspend", "'false' is not true or false"),
    ({"spec.suspend": None}, "spec.suspend", "null is not true or false"),
    ({"spec.image": 5}, "spec.image", "5 is not a string"),
    ({"spec.train.optimizer.beta1": "high"}, "spec.train.optimizer.beta1", "'high' is not a number"),
    ({"spec.model": "dbrx"}, "spec.model", "'dbrx' is not a mapping of fields"),
    ({"spec": [1]}, "spec", "[1] is not a mapping of fields"),
    ({"spec.data.streams": STREAM}, "spec.data.streams", "is not a list"),
    ({"metadata.labels": {"a": 1}}, "metadata.labels", 'a is 1, not a string. Quote it: a: "1".'),
    # Counts.
    ({"spec.train.globalBatchTokens": "60MB"}, "spec.train.globalBatchTokens", "'60MB' is no count"),
    ({"spec.train.globalBatchTokens": 256.5}, "spec.train.globalBatchTokens", "256.5 is no count"),
    ({"spec.train.globalBatchTokens": "1.5"}, "spec.train.globalBatchTokens", "'1.5' is 1.5, not a whole number"),
    ({"spec.train.globalBatchTokens": 0}, "spec.train.globalBatchTokens", "0 is not above 0"),
    ({"spec.train.schedule.warmupTokens": -1}, "spec.train.schedule.warmupTokens", "-1 is not at least 0"),
    # Bounds.
    ({"spec.workers": 0}, "spec.workers", "0 is not at least 1. Write a number that is at least 1."),
    ({"spec.gpusPerWorker": 65}, "spec.gpusPerWorker", "65 is not at most 64"),
    ({"spec.train.optimizer.learningRate": 0}, "spec.train.optimizer.learningRate", "0 is not above 0"),
    ({"spec.train.optimizer.beta2": 1.0}, "spec.train.optimizer.beta2", "1.0 is not below 1"),
    ({"spec.data.streams": []}, "spec.data.streams", "[] is shorter than 1"),
    ({"spec.runName": ""}, "spec.runName", "'' is shorter than 1"),
    ({"metadata.name": "x" * 41}, "metadata.name", "is longer than 40"),
    # Forms.
    ({"metadata.name": "Moe_1"}, "metadata.name", "Write lowercase letters, digits and '-'"),
    ({"metadata.namespace": "Team A"}, "metadata.namespace", "'Team A' is no name of a namespace"),
    ({"spec.image": "a b"}, "spec.image", "Write an image reference without spaces"),
    ({"spec.checkpoint.destination": "/mnt/x"}, "spec.checkpoint.destination", "Write s3://bucket or s3://bucket/path"),
    ({"spec.data.tokenizer": "http://x"}, "spec.data.tokenizer", "Write s3://bucket/path/tokenizer.json"),
    ({"spec.data.streams": [{**STREAM, "name": "A"}]}, "spec.data.streams[0].name", "Write lowercase letters"),
    ({"spec.objectStore.endpoint": "s3:9000"}, "spec.objectStore.endpoint", "such as https://s3.example:9000"),
    ({"spec.objectStore.region": "EU"}, "spec.objectStore.region", "such as eu-central-1"),
    ({"spec.objectStore.credentialsSecret": "S3"}, "spec.objectStore.credentialsSecret", "such as steadfast-s3"),
    ({"spec.objectStore.serviceAccountName": "a b"}, "spec.objectStore.serviceAccountName", "such as steadfast-"),
    ({"spec.profile": "H100"}, "spec.profile", "Write the name of a ClusterTrainingProfile, such as default."),
    ({"spec.resources.limits": {"cpu": "many"}}, "spec.resources.limits.cpu", "'many' is no amount. Write a positive"),
    ({"spec.resources.limits": {"cpu": "0"}}, "spec.resources.limits.cpu", "'0' is no amount"),
    ({"spec.resources.limits": {"cpu": 1.5}}, "spec.resources.limits.cpu", "1.5 is no amount"),
    ({"spec.resources.limits": {"cpus": 1}}, "spec.resources.limits", "'cpus' is no resource. Write cpu, memory"),
    ({"spec.resources.limits": {"nvidia.com/gpu": 1}}, "spec.resources.limits", "belongs in gpusPerWorker"),
    ({"spec.resources.requests": {"cpu": 1}}, "spec.resources.requests", "is no field of a TrainingJob"),
    ({"spec.ttlSecondsAfterFinished": -1}, "spec.ttlSecondsAfterFinished", "-1 is not at least 0"),
    ({"spec.runName": "-x"}, "spec.runName", "'-x' does not have the right form"),
    # Choices.
    ({"spec.device": "gpu"}, "spec.device", "'gpu' is none of auto, cuda, cpu"),
    ({"spec.device": "CUDA"}, "spec.device", "Did you mean cuda?"),
    ({"spec.model.preset": "dbrxx"}, "spec.model.preset", "Did you mean dbrx?"),
    ({"spec.precision.recipe": "fp8-rowwise"}, "spec.precision.recipe", "is not supported by this version"),
    ({"spec.checkpoint.resume": "s3://runs/x"}, "spec.checkpoint.resume", "is not supported by this version"),
    ({"spec.data.streams": [STREAM, STREAM]}, "spec.data.streams", "holds 2 streams, and this version supports one"),
    # Numbers that do not go together.
    ({"spec.train.tokens": "1k"}, "spec.train", "sets both tokens (1000) and steps (10). Keep one of them."),
    ({"spec.train.steps": REMOVED}, "spec.train", "sets neither tokens nor steps"),
    ({"spec.model.hiddenSize": 30}, "spec.model", "hiddenSize 30 is not divisible by heads 4"),
    ({"spec.model.hiddenSize": 36}, "spec.model", "hiddenSize 36 / heads 4 = 9 must be even"),
    ({"spec.model.kvHeads": 3}, "spec.model", "heads 4 is not divisible by kvHeads 3"),
    ({"spec.model.expertsPerToken": 5}, "spec.model", "expertsPerToken 5 exceeds experts 4"),
    (
        {"spec.train.globalBatchTokens": 250},
        "spec.train.globalBatchTokens",
        "250 is no multiple of contextLength 32: 250 = 7 x 32 + 26. "
        "Write a multiple of 64 (2 workers x 1 ranks = 2 ranks, 32 tokens each), such as 192 or 256.",
    ),
    (
        {"spec.ranksPerWorker": 3},
        "spec.train.globalBatchTokens",
        "256 tokens are 8 sequences of 32, which 2 workers x 3 ranks = 6 ranks cannot share evenly. "
        "Write a multiple of 192 (2 workers x 3 ranks = 6 ranks, 32 tokens each), such as 192 or 384.",
    ),
    (
        {"spec.train.globalBatchTokens": 32},
        "spec.train.globalBatchTokens",
        "32 tokens are 1 sequences of 32, which 2 workers x 1 ranks = 2 ranks cannot share evenly. "
        "Write a multiple of 64 (2 workers x 1 ranks = 2 ranks, 32 tokens each), such as 64 or 128.",
    ),
    (
        {"spec.train.schedule.warmupTokens": 2560},
        "spec.train.schedule.warmupTokens",
        "2560 tokens are 10 steps of 256 tokens, but the whole run has only 10. Write at most 2304, or train longer.",
    ),
    (
        {"spec.train": {"steps": REMOVED, "tokens": "1E"}},
        "spec.train.tokens",
        "1000000000000000000 tokens / 256 tokens per step = 3906250000000000 steps, above 1000000000.",
    ),
    ({"spec.device": "cuda"}, "spec.device", "cuda needs GPUs, but gpusPerWorker is 0"),
    (
        {"spec.gpusPerWorker": 2, "spec.ranksPerWorker": 4},
        "spec.ranksPerWorker",
        "4 ranks share 2 GPUs (gpusPerWorker) on each worker, but a rank needs one of its own. Write at most 2",
    ),
    ({"spec.runName": "a/../b"}, "spec.runName", "'a/../b' has a '..' segment"),
    ({"spec.runName": "a/./b"}, "spec.runName", "'a/./b' has a '.' segment"),
    ({"spec.runName": "a//b"}, "spec.runName", "'a//b' has an empty segment"),
]


@pytest.mark.parametrize(
    ("overrides", "path", "says"),
    [pytest.param(*case, id=f"{case[1]}: {case[2][:60]}") for case in REFUSED],
)
def test_a_refusal_names_its_path_and_what_to_do(overrides: dict[str, Any], path: str, says: str) -> None:
    (problem,) = problems_of(a_manifest(**overrides))
    assert problem.path == path
    assert says in str(problem)


LATER = [f"{parent}.{name}" for parent, names in NOT_YET.items() for name in names]


@pytest.mark.parametrize("path", LATER)
def test_a_field_of_a_later_version_is_refused_by_name(path: str) -> None:
    if path.startswith("spec.data.streams."):
        manifest = a_manifest(**{"spec.data.streams": [STREAM | {path.rpartition(".")[2]: 1}]})
        path = path.replace("streams", "streams[0]")
    else:
        manifest = a_manifest(**{path: 1})
    (problem,) = problems_of(manifest)
    assert str(problem).endswith(f"{path}: is not supported by this version of Steadfast. Remove it.")


TEXTS = [
    ("", None, "the file is empty. Write one TrainingJob"),
    ("---\n---\n", None, "the file is empty"),
    ("a: 1\n---\nb: 1\n", 3, "the file holds 2 documents. Write one TrainingJob, in a file of its own."),
    ("just text", 1, "'just text' is no manifest. Write a mapping with apiVersion, kind, metadata and spec."),
    ("- a\n", 1, '["a"] is no manifest'),
    ("spec:\n  a: 1\n\tb: 2\n", 3, "not YAML"),
    ("\tspec: 1\n", 1, "Indent with spaces."),
    ("spec: {a: 1\n", 2, "not YAML"),
    ("spec: \x00", None, "not YAML"),
    ("spec: !!python/object:os.system {}\n", 1, "the tag tag:yaml.org,2002:python/object:os.system means nothing"),
    ("? [a]\n: 1\n", 1, "a mapping has a key that is no name"),
    ("a: &a [*a]\n", 1, "more than 100000 values. Write it without aliases"),
    ("a: 1\nb: *c\n", 2, "undefined alias"),
    ('a: "\\ud800"\n', 1, "a value that JSON cannot hold"),
    ('"\\ud800": 1\n', 1, "a value that JSON cannot hold"),
    (f"a: {'9' * 5000}\n", 1, "a value that JSON cannot hold"),
]


@pytest.mark.parametrize(("text", "line", "says"), TEXTS, ids=[repr(case[0]) for case in TEXTS])
def test_text_that_is_no_manifest_is_refused_with_its_line(text: str, line: int | None, says: str) -> None:
    (problem,) = problems_of(text)
    assert (problem.source, problem.line, problem.path) == ("job.yaml", line, "")
    assert says in str(problem)


def test_an_alias_bomb_is_refused_before_it_goes_off() -> None:
    rows = ["a0: &a0 [1]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    (problem,) = problems_of("\n".join(rows))
    assert "more than 100000 values" in problem.what


def with_train(*lines: str) -> str:
    """A manifest whose spec.train is written by hand, from line 1."""
    rest = yaml.safe_dump(a_manifest(**{"spec.train": REMOVED}), sort_keys=False)
    return rest.replace("spec:\n", "\n".join(["spec:", "  train:", *(f"    {line}" for line in lines), ""]))


def test_numbers_are_read_as_kubernetes_reads_them() -> None:
    optimizer = "optimizer: {learningRate: 3e-4, epsilon: 1E-8}"
    job, problems = validate_manifest(with_train("steps: 0x0a", "globalBatchTokens: 256", optimizer), source="")
    assert problems == []
    assert job is not None
    assert (job.spec.train.steps, job.spec.train.optimizer.learning_rate) == (10, 3e-4)


def test_a_time_of_day_is_text_and_a_date_too() -> None:
    problems = problems_of(with_train("steps: 1:30", "globalBatchTokens: 2026-01-01"))
    assert [problem.what for problem in problems] == ["'1:30' is not a whole number", "'2026-01-01' is no count"]


def test_a_field_written_twice_is_refused() -> None:
    (problem,) = problems_of(with_train("steps: 10", "globalBatchTokens: 256", "steps: 20"))
    assert str(problem) == "job.yaml:10: spec.train.steps: is written twice, first in line 8. Keep one of them."


def test_a_merged_field_may_be_written_again() -> None:
    merge = "optimizer: {<<: {beta1: 0.5}, beta1: 0.6}"
    job, problems = validate_manifest(with_train("steps: 10", "globalBatchTokens: 256", merge), source="")
    assert problems == []
    assert job is not None
    assert job.spec.train.optimizer.beta1 == 0.6


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf"])
def test_numbers_that_json_lacks_are_refused(number: str) -> None:
    (problem,) = problems_of(with_train("steps: 10", "globalBatchTokens: 256", f"optimizer: {{beta1: {number}}}"))
    assert (problem.path, problem.line) == ("spec.train.optimizer.beta1", 10)
    assert f"{number} is a number that Kubernetes does not have" in problem.what


def test_all_problems_are_reported_at_once_with_their_lines() -> None:
    manifest = a_manifest(
        spec={
            "image": REMOVED,
            "workers": "two",
            "spares": 1,
            "model": {"hiddenSize": 30},
            "train": {"schedule": {"warmupTokens": 10_000}},
            "checkpoint": {"intervalSeconds": 0},
        }
    )
    problems = problems_of(manifest)
    assert [(problem.line, problem.path) for problem in problems] == [
        (6, "spec.image"),
        (7, "spec.workers"),
        (9, "spec.model"),
        (16, "spec.train.schedule.warmupTokens"),
        (24, "spec.checkpoint.intervalSeconds"),
        (25, "spec.spares"),
    ]


def test_arithmetic_never_uses_a_value_that_the_user_did_not_write() -> None:
    # With the placeholder's one worker, 8 sequences could be shared: nothing may be said about the batch.
    problems = problems_of(a_manifest(**{"spec.workers": "two", "spec.train.globalBatchTokens": 33}))
    assert [problem.path for problem in problems] == ["spec.workers"]


INNER = (
    "train.steps", "train.optimizer", "train.schedule", "train.schedule.warmupTokens", "train.globalBatchTokens",
    "data.streams", "data.tokenizer", "model.preset", "checkpoint.destination", "hang",
)  # fmt: skip
PATHS = sorted(f"spec.{path}" for path in (*a_manifest()["spec"], *INNER))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(STREAM),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(PATHS), VALUES | st.just(REMOVED), min_size=1, max_size=3))
def test_whatever_is_written_ends_in_a_job_or_in_problems(overrides: dict[str, Any]) -> None:
    try:
        manifest = a_manifest(**dict(sorted(overrides.items())))
    except (AttributeError, TypeError):
        return  # one override is inside what another replaced
    for problem in problems_of(manifest):
        assert problem.line
        assert problem.what
        assert problem.remedy


def test_another_kind_of_resource_is_not_taken_apart() -> None:
    problems = problems_of({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 1}})
    assert [problem.path for problem in problems] == ["apiVersion", "kind"]


def test_cross_field_problems_of_a_job_that_the_api_server_let_through() -> None:
    assert cross_field_problems(a_job()) == []
    (problem,) = cross_field_problems(a_job(**{"spec.train.globalBatchTokens": 250}))
    assert str(problem).startswith("spec.train.globalBatchTokens: 250 is no multiple of contextLength 32")


def test_one_mistake_in_the_model_is_not_reported_as_two() -> None:
    job = a_job(**{"spec.model.hiddenSize": 30, "spec.train.globalBatchTokens": 250})
    assert [problem.path for problem in cross_field_problems(job)] == ["spec.model"]

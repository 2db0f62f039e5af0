"""From a manifest to what every rank is told."""

from __future__ import annotations

from typing import Any

import pytest

from builders import REMOVED, a_job, a_profile
from steadfast_contract.models import PRESETS
from steadfast_contract.training import TrainingConfig
from steadfast_operator.api.profile import ProfileSpec
from steadfast_operator.api.resolve import config_digest, model_shape, total_steps, training_config


def test_a_preset_alone_is_the_preset() -> None:
    assert model_shape(a_job(**{"spec.model.preset": "dbrx"}).spec.model) == PRESETS["dbrx"]


def test_overrides_replace_numbers_of_the_preset() -> None:
    shape = model_shape(a_job(**{"spec.model": {"experts": 16, "ropeTheta": 5e5}}).spec.model)
    assert (shape.experts, shape.rope_theta, shape.layers) == (16, 500_000.0, PRESETS["moe-nano"].layers)


def test_an_impossible_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="hiddenSize 30 is not divisible by heads 4"):
        model_shape(a_job(**{"spec.model.hiddenSize": 30}).spec.model)


@pytest.mark.parametrize(
    ("tokens", "steps"),
    [
        pytest.param(256, 1, id="one full step"),
        pytest.param(257, 2, id="one token more needs another step"),
        pytest.param("1M", 3907, id="a quantity is rounded up"),
    ],
)
def test_tokens_are_rounded_up_to_whole_steps(tokens: int | str, steps: int) -> None:
    assert total_steps(a_job(**{"spec.train.steps": REMOVED, "spec.train.tokens": tokens}).spec.train) == steps


@pytest.mark.parametrize("tokens", [REMOVED, 1000])
def test_a_length_needs_exactly_one_of_tokens_and_steps(tokens: Any) -> None:
    steps = REMOVED if tokens is REMOVED else 3
    with pytest.raises(ValueError, match="exactly one of tokens and steps"):
        total_steps(a_job(**{"spec.train.tokens": tokens, "spec.train.steps": steps}).spec.train)


def test_every_field_reaches_the_ranks() -> None:
    job = a_job(
        spec={
            "runName": "team/moe",
            "device": "cuda",
            "gpusPerWorker": 1,
            "precision": {"recipe": "bf16"},
            "train": {
                "seed": 5,
                "optimizer": {"learningRate": 0.01, "beta1": 0.8, "gradientClip": 2.0},
                "schedule": {"warmupTokens": 300, "decay": "constant", "finalFraction": 0.2},
            },
            "checkpoint": {"destination": "s3://runs/prefix/", "resume": "never", "intervalSeconds": 7},
        }
    )
    config = training_config(job)
    assert config.run == "s3://runs/prefix/team/moe"
    assert (config.device, config.recipe, config.seed, config.resume) == ("cuda", "bf16", 5, "never")
    assert (config.steps, config.global_batch_tokens, config.global_batch_samples) == (10, 256, 8)
    assert (config.optimizer.learning_rate, config.optimizer.beta1, config.optimizer.gradient_clip) == (0.01, 0.8, 2.0)
    assert (config.schedule.warmup_steps, config.schedule.decay, config.schedule.final_fraction) == (2, "constant", 0.2)
    assert (config.stream.name, config.stream.remote) == ("python", "s3://corpora/python")
    assert config.tokenizer == "s3://corpora/python/tokenizer.json"
    assert config.checkpoint_interval_seconds == 7.0


def test_the_run_defaults_to_namespace_and_name() -> None:
    assert training_config(a_job()).run == "s3://runs/research/moe"


def test_the_configuration_survives_its_environment_variable() -> None:
    config = training_config(a_job())
    assert TrainingConfig.from_json(config.to_json()) == config


def test_a_digest_is_short_and_stable() -> None:
    assert config_digest(a_job(), a_profile()) == config_digest(a_job(), a_profile())
    assert len(config_digest(a_job(), a_profile())) == len("sha256:") + 64


@pytest.mark.parametrize(
    "change",
    [
        {"spec.workers": 4},
        {"spec.image": "other:1"},
        {"spec.ranksPerWorker": 2},
        {"spec.gpusPerWorker": 1},
        {"spec.objectStore.endpoint": "http://s3:9000"},
        {"spec.train.seed": 1},
        {"spec.model.experts": 8},
        {"spec.checkpoint.resume": "never"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_makes_workers_differ_changes_the_digest(change: dict[str, Any]) -> None:
    assert config_digest(a_job(**change), a_profile()) != config_digest(a_job(), a_profile())


@pytest.mark.parametrize(
    "change",
    [
        {"spec.suspend": True},
        {"spec.faultTolerance.maxRestarts": 1},
        {"spec.activeDeadlineSeconds": 60},
        {"spec.ranksPerWorker": 1},
        {"metadata.labels": {"team": "a"}},
        {"status.attempt": 3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_operators_own_business_leaves_the_digest(change: dict[str, Any]) -> None:
    assert config_digest(a_job(**change), a_profile()) == config_digest(a_job(), a_profile())


@pytest.mark.parametrize(
    "spec",
    [
        {"nodeSelector": {"pool": "h100"}},
        {"tolerations": [{"operator": "Exists"}]},
        {"gpuResource": "amd.com/gpu"},
        {"workerResources": {"rdma/hca": 8}},
        {"annotations": {"a": "b"}},
        {"hostNetwork": True},
        {"capabilities": ["IPC_LOCK"]},
        {"environment": {"NCCL_DEBUG": "INFO"}},
        {"imagePullSecrets": ["registry"]},
        {"objectStore": {"region": "eu"}},
    ],
    ids=lambda spec: next(iter(spec)),
)
def test_what_a_profile_gives_to_workers_changes_the_digest(spec: dict[str, Any]) -> None:
    assert config_digest(a_job(), a_profile(**spec)) != config_digest(a_job(), a_profile())


@pytest.mark.parametrize(
    "spec",
    [
        {"description": "x"},
        {"allowedImages": ["*"]},
        {"allowedSecrets": ["s3"]},
        {"allowedServiceAccounts": ["default"]},
        {"ceilings": {"workers": 2}},
    ],
    ids=lambda spec: next(iter(spec)),
)
def test_what_a_profile_merely_allows_leaves_the_digest(spec: dict[str, Any]) -> None:
    assert config_digest(a_job(), a_profile(**spec)) == config_digest(a_job(), a_profile())


def test_every_field_of_a_profile_was_thought_about() -> None:
    assert len(ProfileSpec.model_fields) == 10 + 5

"""From what a user wrote to what every rank is told: presets, token counts and defaults resolved once.

The operator and `steadfast run` hand the result to workers; validation uses the same arithmetic.
"""

from __future__ import annotations

import hashlib
import json

from steadfast_contract.models import PRESETS, ModelShape
from steadfast_contract.training import OptimizerConfig, ScheduleConfig, StreamConfig, TrainingConfig
from steadfast_operator.api.profile import ClusterTrainingProfile
from steadfast_operator.api.types import Model, ObjectStore, Train, TrainingJob


def model_shape(model: Model) -> ModelShape:
    """The preset with the manifest's overrides.

    Raises:
        ValueError: the numbers cannot make a model.
    """
    resolved = {
        name: preset if (override := getattr(model, name)) is None else override
        for name, preset in vars(PRESETS[model.preset]).items()
    }
    return ModelShape(**resolved)


def total_steps(train: Train) -> int:
    """Optimizer steps of the whole run: tokens are rounded up to whole steps.

    Raises:
        ValueError: `train` has not exactly one of `tokens` and `steps`.
    """
    if (train.tokens is None) == (train.steps is None):
        raise ValueError("spec.train needs exactly one of tokens and steps")
    return train.steps or whole_steps(train.tokens or 0, global_batch_tokens=train.global_batch_tokens)


def whole_steps(tokens: int, *, global_batch_tokens: int) -> int:
    """Steps that see at least this many tokens."""
    return -(-tokens // global_batch_tokens)


def training_config(job: TrainingJob) -> TrainingConfig:
    """What every rank of the job is told.

    Raises:
        ValueError: `cross_field_problems` would have refused the job.
    """
    train, stream = job.spec.train, job.spec.data.streams[0]
    schedule = train.schedule
    return TrainingConfig(
        model=model_shape(job.spec.model),
        steps=total_steps(train),
        global_batch_tokens=train.global_batch_tokens,
        run=job.run_uri,
        tokenizer=job.spec.data.tokenizer,
        stream=StreamConfig(name=stream.name, remote=stream.remote),
        recipe=job.spec.precision.recipe.value,
        device=job.spec.device.value,
        seed=train.seed,
        optimizer=OptimizerConfig(**train.optimizer.model_dump()),
        schedule=ScheduleConfig(
            warmup_steps=whole_steps(schedule.warmup_tokens, global_batch_tokens=train.global_batch_tokens),
            decay=schedule.decay.value,
            final_fraction=schedule.final_fraction,
        ),
        resume=job.spec.checkpoint.resume.value,
        checkpoint_interval_seconds=float(job.spec.checkpoint.interval_seconds),
    )


MERELY_ALLOWED = {"description", "allowed_images", "allowed_service_accounts", "allowed_secrets", "ceilings"}
"""Fields of a profile that leave no trace in a pod."""


def object_store(job: TrainingJob, profile: ClusterTrainingProfile) -> ObjectStore:
    """The job's own store, completed by its profile's."""
    return profile.spec.object_store.model_copy(update=job.spec.object_store.model_dump(exclude_none=True))


def config_digest(job: TrainingJob, profile: ClusterTrainingProfile) -> str:
    """`sha256:...` over everything that makes one worker differ from another.

    Suspension, fault tolerance and deadline are the operator's business and leave it as it is; so does what a profile
    merely allows.

    Raises:
        ValueError: `cross_field_problems` would have refused the job.
    """
    spec = job.spec
    described = {
        "training": training_config(job).to_json(),
        "image": spec.image,
        "workers": spec.workers,
        "gpusPerWorker": spec.gpus_per_worker,
        "ranksPerWorker": spec.ranks,
        "objectStore": spec.object_store.model_dump(mode="json", by_alias=True),
        "resources": spec.resources.limits,
        "profile": profile.spec.model_dump(mode="json", by_alias=True, exclude=MERELY_ALLOWED),
    }
    return f"sha256:{hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()}"

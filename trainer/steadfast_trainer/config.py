"""A rank's configuration: what to train (from the operator) checked against its place in the world."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from steadfast_contract.env import RankEnv
from steadfast_contract.training import TrainingConfig
from steadfast_trainer.precision import precision_of


class ConfigError(Exception):
    """The configuration cannot be trained; the message says what to change."""


@dataclass(frozen=True, kw_only=True)
class RankConfig:
    """Everything that one rank knows when it starts."""

    env: RankEnv
    training: TrainingConfig
    device: torch.device


def rank_config(env: RankEnv) -> RankConfig:
    """Parse and check.

    Raises:
        ConfigError: no configuration, a malformed one, or one that does not fit the world.
    """
    if not env.training:
        raise ConfigError("no configuration: set STEADFAST_TRAINING to the training configuration as JSON")
    try:
        training = TrainingConfig.from_json(env.training)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if training.global_batch_tokens % training.model.context_length:
        raise ConfigError(
            f"globalBatchTokens {training.global_batch_tokens} is not a multiple of contextLength "
            f"{training.model.context_length}"
        )
    if training.global_batch_samples % env.world_size:
        raise ConfigError(
            f"a global batch of {training.global_batch_samples} sequences cannot be shared evenly by "
            f"{env.world_size} ranks"
        )
    device = _device(training.device, local_rank=env.local_rank)
    try:
        precision_of(training.recipe, device=device)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return RankConfig(env=env, training=training, device=device)


def _device(name: str, *, local_rank: int) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device is cuda but this worker has no usable GPU: set device: cpu or auto")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(f"rank needs GPU {local_rank} but this worker has {torch.cuda.device_count()}")
    return torch.device("cuda", local_rank)

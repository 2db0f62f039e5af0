"""A rank's configuration: what to train (from the operator) checked against its place in the world."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from steadfast_contract.env import RankEnv
from steadfast_contract.training import TrainingConfig
from steadfast_trainer.precision import precision_of


class ConfigError(Exception):
    """The configuration cannot be trained; the message says what to change."""


STATE_BYTES_PER_PARAMETER = 16
"""Weight, gradient and AdamW's two moments, all fp32 and whole in every rank."""


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
    _check_memory(training, device, ranks=env.local_world_size)
    return RankConfig(env=env, training=training, device=device)


def _check_memory(training: TrainingConfig, device: torch.device, *, ranks: int) -> None:
    """Refuse what cannot fit before the kernel's out-of-memory killer does, which explains nothing."""
    if device.type == "cuda":
        have, where = torch.cuda.get_device_properties(device).total_memory, "this GPU has"
    else:
        have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // ranks
        where = f"each of this machine's {ranks} ranks has"
    need = training.model.total_parameters * STATE_BYTES_PER_PARAMETER
    if need > have:
        raise ConfigError(
            f"the model's {training.model.total_parameters / 1e9:.1f}B parameters need {need / 2**30:.0f} GiB in every "
            f"rank ({STATE_BYTES_PER_PARAMETER} bytes each for weight, gradient and optimizer state) and {where} "
            f"{have / 2**30:.0f} GiB: choose a smaller model; state is not sharded over ranks yet"
        )


def _device(name: str, *, local_rank: int) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device is cuda but this worker has no usable GPU: set device: cpu or auto")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(f"rank needs GPU {local_rank} but this worker has {torch.cuda.device_count()}")
    return torch.device("cuda", local_rank)

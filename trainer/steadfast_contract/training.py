"""What one run trains: the resolved configuration that the operator hands to every rank as JSON.

The operator resolves presets, defaults and quantities once; the trainer parses nothing but this.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from steadfast_contract.models import ModelShape


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with decoupled weight decay; `gradient_clip` bounds the global norm."""

    learning_rate: float = 3e-4
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    gradient_clip: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Linear warm-up over `warmup_steps`, then cosine decay (or none) to `final_fraction` of the learning rate."""

    warmup_steps: int = 0
    decay: str = "cosine"
    final_fraction: float = 0.1


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """One data stream: a folder of MDS shards in an object store."""

    name: str
    remote: str


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything a rank needs to know besides its place in the world."""

    model: ModelShape
    steps: int
    global_batch_tokens: int
    run: str
    """`s3://bucket/prefix/runName`: what checkpoints belong to."""
    tokenizer: str
    stream: StreamConfig
    recipe: str = "fp32"
    device: str = "auto"
    seed: int = 17
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    resume: str = "auto"
    checkpoint_interval_seconds: float = 120.0

    @property
    def global_batch_samples(self) -> int:
        """Sequences in one optimizer step, over all ranks."""
        return self.global_batch_tokens // self.model.context_length

    def to_json(self) -> str:
        """Encode for an environment variable."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> TrainingConfig:
        """Decode what `to_json` wrote.

        Raises:
            ValueError: the text is no JSON object, misses a field or has an unknown one.
        """
        try:
            data: dict[str, Any] = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"training configuration is not JSON: {error}") from error
        if not isinstance(data, dict):
            raise ValueError(f"training configuration is no JSON object: {text[:80]!r}")
        nested = {
            "model": ModelShape,
            "stream": StreamConfig,
            "optimizer": OptimizerConfig,
            "schedule": ScheduleConfig,
        }
        unknown = sorted(set(data) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"training configuration has unknown fields: {', '.join(unknown)}")
        try:
            return cls(**{key: nested[key](**value) if key in nested else value for key, value in data.items()})
        except TypeError as error:
            raise ValueError(f"training configuration: {error}") from error

"""Model shapes and their parameter counts: the one table that trainer, validation and planner share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A decoder mixture-of-experts transformer: RoPE, RMSNorm, grouped-query attention, SwiGLU experts.

    Raises:
        ValueError: the numbers cannot make a model; the message names the fields as a manifest spells them.
    """

    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    ffn_hidden_size: int
    experts: int
    experts_per_token: int
    vocabulary_size: int
    context_length: int
    rope_theta: float = 10_000.0

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads:
            raise ValueError(f"hiddenSize {self.hidden_size} is not divisible by heads {self.heads}")
        if self.head_size % 2:
            raise ValueError(
                f"hiddenSize {self.hidden_size} / heads {self.heads} = {self.head_size} must be even: "
                "rotary embeddings turn pairs"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not divisible by kvHeads {self.kv_heads}")
        if self.experts_per_token > self.experts:
            raise ValueError(f"expertsPerToken {self.experts_per_token} exceeds experts {self.experts}")

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.heads

    def _parameters(self, experts: int) -> int:
        attention = self.hidden_size * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        router = self.hidden_size * self.experts
        norms = 2 * self.hidden_size
        ffn = 3 * self.hidden_size * self.ffn_hidden_size * experts
        embeddings = 2 * self.vocabulary_size * self.hidden_size
        return self.layers * (attention + router + norms + ffn) + embeddings + self.hidden_size

    @property
    def total_parameters(self) -> int:
        """Every parameter, input embedding and output head included (they are not tied)."""
        return self._parameters(self.experts)

    @property
    def active_parameters(self) -> int:
        """Parameters that one token passes through: `experts_per_token` experts instead of all."""
        return self._parameters(self.experts_per_token)


PRESETS: dict[str, ModelShape] = {
    # For tests: a step takes tens of milliseconds on one core.
    "moe-nano": ModelShape(
        layers=2,
        hidden_size=32,
        heads=4,
        kv_heads=2,
        ffn_hidden_size=64,
        experts=4,
        experts_per_token=2,
        vocabulary_size=512,
        context_length=32,
    ),
    # Visibly learns source code within two minutes on two cores.
    "moe-tiny": ModelShape(
        layers=4,
        hidden_size=128,
        heads=4,
        kv_heads=2,
        ffn_hidden_size=256,
        experts=8,
        experts_per_token=2,
        vocabulary_size=4096,
        context_length=128,
    ),
    # databricks/dbrx-base: 132B parameters, 36B active.
    "dbrx": ModelShape(
        layers=40,
        hidden_size=6144,
        heads=48,
        kv_heads=8,
        ffn_hidden_size=10752,
        experts=16,
        experts_per_token=4,
        vocabulary_size=100_352,
        context_length=4096,
        rope_theta=500_000.0,
    ),
}

"""The decoder: embeddings, blocks of attention and experts, output head."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadfast_contract.models import ModelShape
from steadfast_trainer.model.attention import Attention
from steadfast_trainer.model.moe import MixtureOfExperts
from steadfast_trainer.model.rope import rotation_table
from steadfast_trainer.model.router import Routing

NORM_EPSILON = 1e-5
INITIAL_STD = 0.02


class Output(NamedTuple):
    """What one forward pass yields."""

    logits_BTV: Tensor
    count_LE: Tensor
    probability_LE: Tensor
    z_L: Tensor


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, shape: ModelShape, *, dtype: torch.dtype, group_rows: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.hidden_size, eps=NORM_EPSILON)
        self.attention = Attention(shape)
        self.experts_norm = nn.RMSNorm(shape.hidden_size, eps=NORM_EPSILON)
        self.experts = MixtureOfExperts(shape, dtype=dtype, group_rows=group_rows)

    def forward(self, x_BTD: Tensor, cos_TA: Tensor, sin_TA: Tensor) -> tuple[Tensor, Routing]:
        """Attend, then think."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cos_TA, sin_TA)
        y_BTD, routing = self.experts(self.experts_norm(x_BTD))
        return x_BTD + y_BTD, routing


class Transformer(nn.Module):
    """A decoder mixture-of-experts language model."""

    cos_TA: Tensor
    sin_TA: Tensor

    def __init__(self, shape: ModelShape, *, dtype: torch.dtype = torch.float32, group_rows: int = 1) -> None:
        """Make the model on the current default device; call `initialise` for weights.

        `dtype` is that of the experts' products, `group_rows` what their row groups are padded to.
        """
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary_size, shape.hidden_size)
        self.blocks = nn.ModuleList(Block(shape, dtype=dtype, group_rows=group_rows) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=NORM_EPSILON)
        self.head = nn.Linear(shape.hidden_size, shape.vocabulary_size, bias=False)
        cos_TA, sin_TA = rotation_table(shape.context_length, shape.head_size, theta=shape.rope_theta)
        self.register_buffer("cos_TA", cos_TA, persistent=False)
        self.register_buffer("sin_TA", sin_TA, persistent=False)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw the weights: normal, those that write to the residual stream scaled by depth (GPT-2)."""
        generator = torch.Generator().manual_seed(seed)
        residual_std = INITIAL_STD / math.sqrt(2 * len(self.blocks))
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
                continue
            std = residual_std if name.endswith(("attention.output.weight", "w2_EDF")) else INITIAL_STD
            parameter.copy_(torch.randn(parameter.shape, generator=generator).mul_(std))

    def forward(self, token_BT: Tensor) -> Output:
        """Predict the next token at every position."""
        length = token_BT.shape[1]
        cos_TA, sin_TA = self.cos_TA[:length], self.sin_TA[:length]
        x_BTD = self.embedding(token_BT)
        routings = []
        for block in self.blocks:
            x_BTD, routing = block(x_BTD, cos_TA, sin_TA)
            routings.append(routing)
        return Output(
            logits_BTV=self.head(self.norm(x_BTD)),
            count_LE=torch.stack([r.count_E for r in routings]),
            probability_LE=torch.stack([r.probability_E for r in routings]),
            z_L=torch.stack([r.z for r in routings]),
        )


def next_token_loss(logits_BTV: Tensor, target_BT: Tensor) -> Tensor:
    """Mean cross entropy in nats per token, in fp32."""
    return F.cross_entropy(logits_BTV.float().flatten(0, 1), target_BT.flatten())

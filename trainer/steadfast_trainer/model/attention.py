"""Causal grouped-query attention with rotary positions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from steadfast_contract.models import ModelShape
from steadfast_trainer.model.rope import rotate


class Attention(nn.Module):
    """`heads` query heads share `kv_heads` keys and values (Ainslie et al. 2023, arXiv 2305.13245)."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_size = shape.heads, shape.kv_heads, shape.head_size
        kv_width = 2 * shape.kv_heads * shape.head_size
        self.query_key_value = nn.Linear(shape.hidden_size, shape.heads * shape.head_size + kv_width, bias=False)
        self.output = nn.Linear(shape.heads * shape.head_size, shape.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, cos_TA: Tensor, sin_TA: Tensor) -> Tensor:
        """Mix positions: (B, T, D) to (B, T, D)."""
        batch, length, _ = x_BTD.shape
        heads = self.query_key_value(x_BTD).view(batch, length, -1, self.head_size).transpose(1, 2)
        q_BHTA, k_BKTA, v_BKTA = heads.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        mixed_BHTA = F.scaled_dot_product_attention(
            rotate(q_BHTA, cos_TA, sin_TA),
            rotate(k_BKTA, cos_TA, sin_TA),
            v_BKTA,
            is_causal=True,
            enable_gqa=self.heads != self.kv_heads,
        )
        y_BTD: Tensor = self.output(mixed_BHTA.transpose(1, 2).reshape(batch, length, -1))
        return y_BTD

"""Rotary position embeddings (Su et al. 2021, arXiv 2104.09864), in the half-split layout of GPT-NeoX and Llama."""

from __future__ import annotations

import torch
from torch import Tensor


def rotation_table(length: int, head_size: int, *, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position and frequency, both (T, A) in fp32."""
    frequencies = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x_BHTA: Tensor, cos_TA: Tensor, sin_TA: Tensor) -> Tensor:
    """Turn each pair (a, a + A/2) by its position's angle."""
    low, high = x_BHTA.chunk(2, dim=-1)
    turned = torch.cat((-high, low), dim=-1)
    return (x_BHTA * cos_TA + turned * sin_TA).to(x_BHTA.dtype)

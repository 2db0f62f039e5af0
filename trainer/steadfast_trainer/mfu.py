"""Model FLOPs utilisation: useful arithmetic per second over what the hardware could do at most."""

from __future__ import annotations

from steadfast_contract.models import ModelShape

H100_BF16_FLOPS = 989e12
"""Dense bf16 peak of an H100 or H200 SXM, in FLOP/s (NVIDIA data sheet)."""


def flops_per_token(shape: ModelShape) -> int:
    """6 x active parameters, embeddings excluded: forward 2, backward 4 (Kaplan et al. 2020, arXiv 2001.08361).

    Attention's quadratic part and recomputation are not counted.
    """
    return 6 * (shape.active_parameters - shape.vocabulary_size * shape.hidden_size)


def mfu(*, tokens_per_second_per_gpu: float, shape: ModelShape, peak_flops: float = H100_BF16_FLOPS) -> float:
    """Share of the peak that this rate of tokens uses."""
    return tokens_per_second_per_gpu * flops_per_token(shape) / peak_flops

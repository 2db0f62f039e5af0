"""Which experts see which token, and the two losses that keep the choice healthy."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from steadfast_contract.models import ModelShape

LOAD_BALANCE_WEIGHT = 0.01
"""Weight of the load-balance loss (Fedus et al. 2021, arXiv 2101.03961)."""
ROUTER_Z_WEIGHT = 1e-3
"""Weight of the router z-loss (Zoph et al. 2022, arXiv 2202.08906)."""


class Routing(NamedTuple):
    """One layer's decision."""

    expert_NC: Tensor
    weight_NC: Tensor
    """Mixing weights of the chosen experts; each token's add up to 1."""
    count_E: Tensor
    """Rows sent to each expert, fp32 so that sums over ranks are exact; no gradient."""
    probability_E: Tensor
    """Mean router probability of each expert."""
    z: Tensor
    """Mean squared log-partition."""


class Router(nn.Module):
    """Top-k softmax routing in fp32, whatever the recipe: its choice is discrete, rounding would flip it."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.experts, self.experts_per_token = shape.experts, shape.experts_per_token
        self.weight = nn.Parameter(torch.empty(shape.experts, shape.hidden_size))

    def forward(self, x_ND: Tensor) -> Routing:
        """Choose experts for N tokens."""
        with torch.autocast(x_ND.device.type, enabled=False):
            logit_NE = x_ND.float() @ self.weight.t()
            probability_NE = logit_NE.softmax(dim=-1)
            weight_NC, expert_NC = probability_NE.topk(self.experts_per_token, dim=-1)
            count_E = torch.zeros(self.experts, device=x_ND.device)
            count_E.scatter_add_(0, expert_NC.flatten(), torch.ones_like(expert_NC.flatten(), dtype=torch.float32))
            return Routing(
                expert_NC=expert_NC,
                weight_NC=weight_NC / weight_NC.sum(dim=-1, keepdim=True),
                count_E=count_E,
                probability_E=probability_NE.mean(dim=0),
                z=logit_NE.logsumexp(dim=-1).square().mean(),
            )


def routing_loss(*, count_LE: Tensor, probability_LE: Tensor, z_L: Tensor) -> Tensor:
    """Load-balance loss plus z-loss, averaged over layers.

    `count_LE` must be summed over the whole global batch: the balance loss is not linear in the batch, and only then
    does the mean over ranks of this value equal the value of one big batch.
    """
    share_LE = count_LE / count_LE.sum(dim=-1, keepdim=True)
    balance_L = count_LE.shape[-1] * (share_LE * probability_LE).sum(dim=-1)
    return LOAD_BALANCE_WEIGHT * balance_L.mean() + ROUTER_Z_WEIGHT * z_L.mean()

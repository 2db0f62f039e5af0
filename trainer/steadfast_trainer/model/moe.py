"""The mixture-of-experts layer: route, group rows by expert, compute, mix. Dropless, without a host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steadfast_contract.models import ModelShape
from steadfast_trainer.model.experts.torch import swiglu
from steadfast_trainer.model.router import Router, Routing


class MixtureOfExperts(nn.Module):
    """SwiGLU experts behind a top-k router."""

    def __init__(self, shape: ModelShape, *, dtype: torch.dtype, group_rows: int) -> None:
        """Make a layer that multiplies in `dtype` and pads every expert's rows to a multiple of `group_rows`."""
        super().__init__()
        self.dtype, self.group_rows = dtype, group_rows
        self.router = Router(shape)
        experts, width, hidden = shape.experts, shape.ffn_hidden_size, shape.hidden_size
        self.w1_EFD = nn.Parameter(torch.empty(experts, width, hidden))
        self.w2_EDF = nn.Parameter(torch.empty(experts, hidden, width))
        self.w3_EFD = nn.Parameter(torch.empty(experts, width, hidden))

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Routing]:
        """Send each token through its experts: (B, T, D) to (B, T, D)."""
        x_ND = x_BTD.flatten(0, 1)
        routing = self.router(x_ND)
        row_NC, ends_E, num_rows = group_by_expert(routing, group_rows=self.group_rows)
        experts_per_token = row_NC.shape[1]
        x_RD = x_ND.new_zeros(num_rows, x_ND.shape[1], dtype=self.dtype).index_copy(
            0, row_NC.flatten(), x_ND.to(self.dtype).repeat_interleave(experts_per_token, dim=0)
        )
        w1_EFD, w2_EDF, w3_EFD = (w.to(self.dtype) for w in (self.w1_EFD, self.w2_EDF, self.w3_EFD))
        y_RD = swiglu(x_RD, w1_EFD, w2_EDF, w3_EFD, ends_E)
        y_NCD = y_RD[row_NC.flatten()].view(*row_NC.shape, -1)
        y_ND = (y_NCD * routing.weight_NC.unsqueeze(-1)).sum(dim=1).to(x_ND.dtype)
        return y_ND.view_as(x_BTD), routing


def group_by_expert(routing: Routing, *, group_rows: int) -> tuple[Tensor, Tensor, int]:
    """Give each (token, choice) a row such that every expert's rows are adjacent.

    Returns the row of each choice (N, C), each group's end (E,) in int32, and the number of rows to allocate. The
    latter is an upper bound known without looking at the data: with padding, groups end at multiples of `group_rows`.
    """
    expert_R = routing.expert_NC.flatten()
    num_experts = routing.count_E.shape[0]
    count_E = routing.count_E.to(torch.int64)
    padded_E = (count_E + group_rows - 1) // group_rows * group_rows
    ends_E = padded_E.cumsum(0)
    order_R = expert_R.argsort(stable=True)
    sorted_expert_R = expert_R[order_R]
    first_E = count_E.cumsum(0) - count_E
    place_R = torch.arange(expert_R.shape[0], device=expert_R.device) - first_E[sorted_expert_R]
    row_R = torch.empty_like(order_R).scatter_(0, order_R, (ends_E - padded_E)[sorted_expert_R] + place_R)
    num_rows = expert_R.shape[0] + num_experts * (group_rows - 1)
    return row_R.view_as(routing.expert_NC), ends_E.to(torch.int32), num_rows

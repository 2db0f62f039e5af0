"""SwiGLU experts on `torch.nn.functional.grouped_mm`: runs on CPU and GPU, the numerical reference for all others."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def swiglu(x_RD: Tensor, w1_EFD: Tensor, w2_EDF: Tensor, w3_EFD: Tensor, ends_E: Tensor) -> Tensor:
    """`w2 (silu(w1 x) * w3 x)` for each group of rows; rows behind the last end are undefined."""
    gate_RF = F.grouped_mm(x_RD, w1_EFD.transpose(1, 2), offs=ends_E)
    up_RF = F.grouped_mm(x_RD, w3_EFD.transpose(1, 2), offs=ends_E)
    return F.grouped_mm(F.silu(gate_RF) * up_RF, w2_EDF.transpose(1, 2), offs=ends_E)

"""Which rank writes which part of the state, and under which names. Pure; save and load both build on it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from steadfast_trainer.optim import AdamW
from steadfast_trainer.parallel import FlatParameters


def shares(sizes: Mapping[str, int], *, num_ranks: int) -> list[list[str]]:
    """Deal tensors to ranks so that the largest share is small: biggest first, to the rank that has least."""
    loads = [0] * num_ranks
    dealt: list[list[str]] = [[] for _ in range(num_ranks)]
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        rank = loads.index(min(loads))
        loads[rank] += sizes[name]
        dealt[rank].append(name)
    return dealt


def state_views(flat: FlatParameters, optimizer: AdamW) -> dict[str, Tensor]:
    """Every tensor of the training state by its name in a checkpoint, as views that can be written to."""
    buffers = {"weights": flat.weights} | optimizer.buffers()
    return {
        f"{kind}/{name}": view
        for kind, buffer in buffers.items()
        for name, view in flat.view_like_weights(buffer).items()
    }


def rng_name(rank: int, generator: str) -> str:
    """Name of a rank's random number generator state."""
    return f"rng/{generator}/{rank:05d}"

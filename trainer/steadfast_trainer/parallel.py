"""The gang: joining it, and the one all-reduce of a step. The only file that knows torch.distributed.

Replicated data parallel by a single flat all-reduce: one buffer, one order of summation, so a resumed run repeats an
undisturbed one bit for bit (torch DDP rebuilds its buckets after the first step and does not). The buffer's tail
carries the loss and the wishes of single ranks, so that all ranks agree on them at the same step for free.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from steadfast_contract.env import RankEnv

RENDEZVOUS_TIMEOUT = timedelta(seconds=300)
CONNECT_TIMEOUT = timedelta(seconds=20)
"""For a connection to rank 0's store after the rendezvous: then it listens already, or is gone."""
COLLECTIVE_TIMEOUT = timedelta(seconds=600)


class CollectiveError(Exception):
    """A peer is gone or silent: this rank is a victim, not the cause."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This rank's place, and the small key-value store that the ranks share besides the collectives."""

    rank: int
    size: int
    device: torch.device
    env: RankEnv
    namespace: str

    def store(self) -> dist.Store:
        """Open a connection of one's own to the shared store: a blocking wait on it blocks nobody else.

        Raises:
            CollectiveError: nobody listens there.
        """
        if self.size == 1 and not self.env.master_port:
            return dist.PrefixStore(self.namespace, _LONE_STORE)
        try:
            client = _connect(self.env, timeout=CONNECT_TIMEOUT)
        except (RuntimeError, ValueError) as error:
            at = f"{self.env.master_addr}:{self.env.master_port}"
            raise CollectiveError(f"the shared store at {at} cannot be reached: {error}") from error
        client.set_timeout(RENDEZVOUS_TIMEOUT)
        return dist.PrefixStore(self.namespace, client)

    def tell_all(self, key: str, text: str | None) -> str:
        """Let every rank know what rank 0 knows; the others pass None and wait.

        Raises:
            CollectiveError: rank 0 is gone, or silent for too long.
        """
        shared = self.store()
        try:
            if text is not None:
                shared.set(key, text)
                return text
            return str(shared.get(key).decode())
        except RuntimeError as error:
            raise CollectiveError(f"rank 0 did not say {key!r}: {error}") from error

    def meet(self) -> None:
        """Return when every rank has come here.

        Raises:
            CollectiveError: a peer is gone.
        """
        self.sum(torch.zeros(1, device=self.device))

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum in place over all ranks."""
        if self.size > 1:
            try:
                dist.all_reduce(tensor)
            except RuntimeError as error:
                raise CollectiveError(str(error)) from error
        return tensor


_LONE_STORE = dist.HashStore()


def join(env: RankEnv, *, device: torch.device, namespace: str) -> World:
    """Meet the other ranks.

    Node rank 0's agent (or torchrun) listens already; a handed-over socket avoids every race about the port.

    Raises:
        CollectiveError: not all ranks came in time.
    """
    world = World(rank=env.rank, size=env.world_size, device=device, env=env, namespace=namespace)
    if env.world_size == 1 and not env.master_port:
        return world
    try:
        if env.master_listen_fd >= 0:
            _SERVERS.append(
                dist.TCPStore(
                    env.master_addr,
                    env.master_port,
                    is_master=True,
                    master_listen_fd=env.master_listen_fd,
                    wait_for_workers=False,
                )
            )
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore(namespace, _connect(env, timeout=RENDEZVOUS_TIMEOUT)),
            rank=env.rank,
            world_size=env.world_size,
            timeout=COLLECTIVE_TIMEOUT,
            device_id=device if device.type == "cuda" else None,
        )
    except (RuntimeError, ValueError) as error:
        raise CollectiveError(
            f"rank {env.rank} of {env.world_size} could not meet the others at "
            f"{env.master_addr}:{env.master_port}: {error}"
        ) from error
    return world


def _connect(env: RankEnv, *, timeout: timedelta) -> dist.TCPStore:
    return dist.TCPStore(env.master_addr, env.master_port, is_master=False, timeout=timeout, wait_for_workers=False)


_SERVERS: list[dist.TCPStore] = []
"""Keeps the rendezvous server alive as long as its process."""


class Agreement(NamedTuple):
    """What all ranks know after the all-reduce of a step."""

    loss: float
    """Mean over the global batch."""
    gradient_norm: float
    save: bool
    stop: bool


class FlatParameters:
    """All parameters of a model in one buffer, all gradients in another; the model's own tensors become views.

    Matrices come first, then vectors (norms), so that weight decay applies to one slice.
    """

    TAIL = 4
    """Loss, wish to save, wish to stop, spare."""

    def __init__(self, model: nn.Module) -> None:
        named = sorted(model.named_parameters(), key=lambda item: item[1].dim() == 1)
        self.names = [name for name, _ in named]
        parameters = [parameter for _, parameter in named]
        self.num_decayed = sum(p.numel() for p in parameters if p.dim() > 1)
        size = sum(p.numel() for p in parameters)
        self.weights = torch.empty(size, device=parameters[0].device)
        self._gradients = torch.zeros(size + self.TAIL, device=parameters[0].device)
        self.gradients = self._gradients[:size]
        self.views = _views(self.weights, parameters)
        for parameter, weight, gradient in zip(parameters, self.views, _views(self.gradients, parameters), strict=True):
            weight.copy_(parameter.data)
            parameter.data = weight
            parameter.grad = gradient

    def view_like_weights(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of any buffer of the same size, by parameter name."""
        return dict(zip(self.names, _views(flat, self.views), strict=True))

    def zero_gradients(self) -> None:
        """Clear for the next step."""
        self._gradients.zero_()

    def reduce(self, world: World, *, loss: Tensor, save: bool, stop: bool) -> Agreement:
        """Average gradients and loss over all ranks; learn whether any rank wants to save or stop.

        Raises:
            CollectiveError: a peer did not take part.
        """
        tail = self._gradients[-self.TAIL :]
        tail[0] = loss.detach()
        tail[1], tail[2] = float(save), float(stop)
        world.sum(self._gradients)
        self._gradients[: -self.TAIL + 1].div_(world.size)
        norm = torch.linalg.vector_norm(self.gradients)
        mean_loss, wish_save, wish_stop, norm_value = torch.cat((tail[:3], norm.view(1))).tolist()
        return Agreement(loss=mean_loss, gradient_norm=norm_value, save=wish_save > 0, stop=wish_stop > 0)


def _views(flat: Tensor, like: Iterable[Tensor]) -> list[Tensor]:
    views, start = [], 0
    for tensor in like:
        views.append(flat[start : start + tensor.numel()].view(tensor.shape))
        start += tensor.numel()
    return views

"""Restoring: every byte is verified before it is used, and nothing is ever unpickled."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from torch import Tensor

from steadfast_contract.checkpoints import Manifest, Shard
from steadfast_contract.models import ModelShape
from steadfast_trainer.checkpoint.layout import rng_name
from steadfast_trainer.checkpoint.store import ObjectMissing, ObjectStore

PARALLEL_READS = 4


class CheckpointUnreadable(Exception):
    """A checkpoint that should be complete is damaged."""


class CheckpointForeign(Exception):
    """A complete checkpoint, but of another model or other data: the configuration is wrong."""


def fetch_manifest(store: ObjectStore, key: str) -> Manifest:
    """Read and check a manifest.

    Raises:
        CheckpointUnreadable: it is missing or malformed.
    """
    try:
        return Manifest.from_json(store.get(key))
    except (ObjectMissing, ValueError) as error:
        raise CheckpointUnreadable(f"manifest {store.uri}/{key}: {error}") from error


def refuse_foreign(manifest: Manifest, *, run: str, model: ModelShape, data: Mapping[str, Any]) -> None:
    """Make sure that a checkpoint belongs to this model and to this order of samples.

    Raises:
        CheckpointForeign: it does not; the message names each difference.
    """
    differences = [
        f"{kind}.{name} is {theirs.get(name)!r} in the checkpoint and {ours.get(name)!r} here"
        for kind, theirs, ours in (("model", manifest.model, asdict(model)), ("data", manifest.data, data))
        for name in sorted(set(theirs) | set(ours))
        if name != "samples" and theirs.get(name) != ours.get(name)
    ]
    if differences:
        raise CheckpointForeign(
            f"run {run} holds a checkpoint (step {manifest.step}) that does not fit this job: "
            f"{'; '.join(differences)}. Use another runName, or checkpoint.resume: never to start the run afresh."
        )


def restore(store: ObjectStore, manifest: Manifest, *, state: Mapping[str, Tensor], rank: int) -> None:
    """Fill the training state, and this rank's random number generators, in place.

    Raises:
        CheckpointUnreadable: a shard is missing, damaged, or lacks a tensor.
    """
    missing = set(state)
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        for tensors in pool.map(lambda shard: _fetch_shard(store, shard), manifest.shards):
            for name, tensor in tensors.items():
                if name in state:
                    _fill(state[name], tensor, name=name)
                    missing.discard(name)
            _restore_rng(tensors, rank=rank)
    if missing:
        raise CheckpointUnreadable(f"checkpoint of step {manifest.step} lacks {len(missing)} tensors: {min(missing)}")


def _fetch_shard(store: ObjectStore, shard: Shard) -> dict[str, Tensor]:
    try:
        content = store.get(shard.key)
    except ObjectMissing as error:
        raise CheckpointUnreadable(f"shard {store.uri}/{shard.key} is missing") from error
    if len(content) != shard.size or hashlib.sha256(content).hexdigest() != shard.sha256:
        raise CheckpointUnreadable(
            f"shard {store.uri}/{shard.key} is damaged: {len(content)} bytes do not have the hash in the manifest"
        )
    try:
        tensors: dict[str, Tensor] = from_safetensors(content)
    except SafetensorError as error:
        raise CheckpointUnreadable(f"shard {store.uri}/{shard.key}: {error}") from error
    return tensors


def _fill(view: Tensor, tensor: Tensor, *, name: str) -> None:
    if view.shape != tensor.shape or view.dtype != tensor.dtype:
        raise CheckpointUnreadable(
            f"tensor {name} is {tensor.dtype} {tuple(tensor.shape)}, not {view.dtype} {tuple(view.shape)}"
        )
    view.copy_(tensor)


def _restore_rng(tensors: Mapping[str, Tensor], *, rank: int) -> None:
    if (cpu := tensors.get(rng_name(rank, "cpu"))) is not None:
        torch.set_rng_state(cpu)
    if (cuda := tensors.get(rng_name(rank, "cuda"))) is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)

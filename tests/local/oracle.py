"""What two runs must share to count as the same training, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors.torch import load

from steadfast_contract.checkpoints import Manifest
from steadfast_trainer.checkpoint.store import ObjectStore


def tensors_of(store: ObjectStore, manifest: Manifest) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint: weights, optimizer state, random number generators."""
    return {name: tensor for shard in manifest.shards for name, tensor in load(store.get(shard.key)).items()}


def assert_same_tensors(actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Bit for bit, the random number generators included."""
    assert sorted(actual) == sorted(expected)
    assert {name.partition("/")[0] for name in actual} == {"weights", "adam.mean", "adam.square", "rng"}
    different = [name for name in expected if not torch.equal(actual[name], expected[name])]
    assert different == []


def assert_unbroken_chain(store: ObjectStore, manifest: Manifest) -> None:
    """From the last checkpoint to the first: each parent exists, is older, and of no later attempt."""
    while manifest.parent is not None:
        parent = Manifest.from_json(store.get(manifest.parent))
        assert parent.step < manifest.step
        assert parent.attempt <= manifest.attempt
        manifest = parent

"""What two runs must share to count as the same training, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load

from steadfast_contract.checkpoints import LATEST, Latest, Manifest
from steadfast_contract.training import TrainingConfig
from steadfast_trainer.checkpoint.store import ObjectStore
from steadfast_trainer.data.order import positions_of, samples_at
from steadfast_trainer.data.streams import open_stream


def newest_checkpoint(uri: str, *, environ: Mapping[str, str]) -> tuple[ObjectStore, Manifest]:
    """The checkpoint that LATEST names."""
    store = ObjectStore(uri, env=environ)
    latest = Latest.from_json(store.get(LATEST))
    assert latest.manifest is not None
    return store, Manifest.from_json(store.get(latest.manifest))


def tensors_of(store: ObjectStore, manifest: Manifest) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint: weights, optimizer state, random number generators."""
    return {name: tensor for shard in manifest.shards for name, tensor in load(store.get(shard.key)).items()}


def assert_same_tensors(actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Bit for bit, the random number generators included."""
    assert sorted(actual) == sorted(expected)
    assert {name.partition("/")[0] for name in actual} == {"weights", "adam.mean", "adam.square", "rng"}
    different = [name for name in expected if not torch.equal(actual[name], expected[name])]
    assert different == []


def assert_every_sample_once(
    manifest: Manifest, *, training: TrainingConfig, cache: Path, environ: Mapping[str, str]
) -> None:
    """The ranks consumed exactly the samples that the order gives them, in that order, and no sample twice."""
    stream = open_stream(
        training.stream.remote,
        tokenizer=training.tokenizer,
        context_length=training.model.context_length,
        vocabulary_size=training.model.vocabulary_size,
        cache=cache,
        env=environ,
    )
    consumed: list[int] = []
    for rank in range(manifest.world_size):
        digest = ""
        for step in range(manifest.step):
            positions = positions_of(
                step, rank=rank, world_size=manifest.world_size, global_batch=training.global_batch_samples
            )
            samples = samples_at(np.array(positions), seed=training.seed, size=stream.size)
            digest = sha256(digest.encode() + stream.read_many(samples).tobytes()).hexdigest()
            consumed.extend(samples.tolist())
        assert manifest.samples[str(rank)] == digest
    assert len(consumed) == manifest.data["samples"] < stream.size
    assert len(set(consumed)) == len(consumed)


def assert_unbroken_chain(store: ObjectStore, manifest: Manifest) -> None:
    """From the last checkpoint to the first: each parent exists, is older, and of no later attempt."""
    while manifest.parent is not None:
        parent = Manifest.from_json(store.get(manifest.parent))
        assert parent.step < manifest.step
        assert parent.attempt <= manifest.attempt
        manifest = parent

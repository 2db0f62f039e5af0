"""Saving: a copy while the step waits, everything else in the background.

Each rank uploads its share as an immutable shard and tells rank 0 its hash; rank 0 writes the manifest when it has
all of them, then moves LATEST. Whatever breaks before that leaves a partial upload that nobody will ever choose.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from steadfast_contract.checkpoints import Manifest, Shard, manifest_key, shard_key
from steadfast_contract.models import ModelShape
from steadfast_trainer.checkpoint.fence import Fence
from steadfast_trainer.checkpoint.layout import rng_name, shares
from steadfast_trainer.checkpoint.store import ObjectStore, StoreError
from steadfast_trainer.parallel import CollectiveError, World

UPLOAD_SECONDS = 600.0
"""How long one object may take, retries included, before this checkpoint is given up."""


class CheckpointFailed(Exception):
    """A checkpoint that had to be complete is not."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A rank's part of one checkpoint, copied: training may go on."""

    step: int
    tensors: Mapping[str, Tensor]
    samples: str
    """Digest of all samples that this rank has consumed."""
    data: Mapping[str, Any]


class Saver:
    """Uploads this rank's snapshots, one at a time, and commits them if this is rank 0."""

    def __init__(
        self, store: ObjectStore, world: World, *, attempt: int, model: ModelShape, fence: Fence | None
    ) -> None:
        """Prepare; `fence` is rank 0's right to publish and None on all other ranks."""
        self._store, self._world, self._attempt, self._model, self._fence = store, world, attempt, model, fence
        self._receipts = world.store()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._share: list[str] | None = None
        self.committed = -1
        """Newest step known to be complete in the bucket; only rank 0 knows."""
        self.stall_seconds = 0.0

    @property
    def busy(self) -> bool:
        """Whether an upload is under way."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, step: int, state: Mapping[str, Tensor], *, samples: str, data: Mapping[str, Any]) -> None:
        """Copy this rank's share of the state and upload it in the background.

        Waits for an upload that is still under way: rank 0 asks for a checkpoint only when it has none.

        Raises:
            Fenced: the upload before found that the run is no longer ours.
        """
        started = time.monotonic()
        self._join()
        if self._share is None:
            sizes = {name: tensor.nbytes for name, tensor in state.items()}
            self._share = shares(sizes, num_ranks=self._world.size)[self._world.rank]
        tensors = {name: state[name].detach().to("cpu", copy=True) for name in self._share}
        tensors[rng_name(self._world.rank, "cpu")] = torch.get_rng_state()
        if self._world.device.type == "cuda":
            tensors[rng_name(self._world.rank, "cuda")] = torch.cuda.get_rng_state(self._world.device)
        snapshot = Snapshot(step=step, tensors=tensors, samples=samples, data=dict(data))
        self._thread = threading.Thread(target=self._upload, args=(snapshot,), name=f"upload-{step}", daemon=True)
        self._thread.start()
        self.stall_seconds += time.monotonic() - started

    def finish(self) -> None:
        """Wait until the newest snapshot is uploaded, and on rank 0 committed.

        Raises:
            CheckpointFailed: it could not be.
            Fenced: the run is no longer ours.
        """
        started = time.monotonic()
        self._join(strict=True)
        self.stall_seconds += time.monotonic() - started

    def _join(self, *, strict: bool = False) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is None:
            return
        if not isinstance(error, StoreError | CheckpointFailed):
            raise error
        if strict:
            raise CheckpointFailed(str(error)) from error
        print(f"Gave up a checkpoint, training goes on: {error}", flush=True)

    def _upload(self, snapshot: Snapshot) -> None:
        try:
            receipt = self._put_shard(snapshot)
        except Exception as error:
            self._error = error
            receipt = {"error": f"rank {self._world.rank}: {error}"}
        try:
            self._tell(snapshot.step, receipt)
            if self._fence is not None:
                self._commit(snapshot, self._fence)
        except Exception as error:
            self._error = self._error or error

    def _tell(self, step: int, receipt: Mapping[str, Any]) -> None:
        try:
            self._receipts.set(_receipt_key(step, self._world.rank), json.dumps(receipt))
        except RuntimeError as error:
            raise CollectiveError(f"rank 0 is gone, it did not take the receipt of step {step}: {error}") from error

    def _put_shard(self, snapshot: Snapshot) -> dict[str, Any]:
        content = to_safetensors(dict(snapshot.tensors))
        key = shard_key(step=snapshot.step, attempt=self._attempt, rank=self._world.rank, world_size=self._world.size)
        shard = Shard(
            key=key,
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            tensors=tuple(sorted(snapshot.tensors)),
        )
        self._store.put(key, content, deadline_seconds=UPLOAD_SECONDS)
        return {"shard": asdict(shard), "samples": snapshot.samples}

    def _commit(self, snapshot: Snapshot, fence: Fence) -> None:
        receipts = [self._receipt(snapshot.step, rank) for rank in range(self._world.size)]
        fence.settle()
        manifest = Manifest(
            step=snapshot.step,
            attempt=self._attempt,
            owner=fence.latest.owner,
            nonce=fence.latest.nonce,
            parent=fence.latest.manifest,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            world_size=self._world.size,
            model=asdict(self._model),
            data=snapshot.data,
            samples={str(rank): receipt["samples"] for rank, receipt in enumerate(receipts)},
            shards=tuple(
                Shard(**(receipt["shard"] | {"tensors": tuple(receipt["shard"]["tensors"])})) for receipt in receipts
            ),
            libraries={"torch": torch.__version__},
        )
        key = manifest_key(step=snapshot.step, attempt=self._attempt)
        self._store.create(key, manifest.to_json(), deadline_seconds=UPLOAD_SECONDS)
        fence.publish(step=snapshot.step, manifest=key, deadline_seconds=UPLOAD_SECONDS)
        self.committed = snapshot.step

    def _receipt(self, step: int, rank: int) -> dict[str, Any]:
        key = _receipt_key(step, rank)
        try:
            self._receipts.wait([key], timedelta(seconds=UPLOAD_SECONDS))
        except RuntimeError as error:
            raise CheckpointFailed(f"checkpoint of step {step}: rank {rank} did not finish its upload") from error
        receipt: dict[str, Any] = json.loads(self._receipts.get(key))
        if "error" in receipt:
            raise CheckpointFailed(f"checkpoint of step {step}: {receipt['error']}")
        return receipt


def _receipt_key(step: int, rank: int) -> str:
    return f"checkpoint/{step}/{rank}"

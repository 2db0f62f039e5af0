"""Reading a prepared stream: shards on demand from the bucket, each verified before a token of it is used.

Called by `train`. mosaicml-streaming wrote the shards but does not read them here: it would keep shared memory, trust a
stale index and fall back to unsigned requests. The ranks of one worker share a cache folder without locks, because a
shard appears in it whole, by rename, and every rank verifies what it opens.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steadfast_trainer.checkpoint.store import BucketMissing, ObjectMissing, ObjectStore
from steadfast_trainer.data.dataset import (
    INDEX,
    MANIFEST,
    FormatError,
    ShardEntry,
    StreamManifest,
    parse_index,
    sha256_of,
    view_samples,
)
from steadfast_trainer.data.order import positions_of, samples_at

_PREPARE = "prepare one with `steadfast data prepare`"
_FETCHED_AT_ONCE = 8
_OPEN_SHARDS = 512
"""An open shard costs a file descriptor."""


class DataError(Exception):
    """The data cannot be trained on. The message says what, where, and what to do; trying again does not help."""


def open_stream(
    remote: str, *, tokenizer: str, context_length: int, vocabulary_size: int, cache: Path, env: Mapping[str, str]
) -> TokenStream:
    """Open the stream at `remote` (`s3://bucket/prefix`) for a model, after checking that they fit. Fetches no shard.

    Raises:
        DataError: nothing prepared there, or not for this model and tokenizer.
        StoreError: the store cannot be reached, or refuses us.
    """
    store = _store(remote, env=env)
    manifest = _fetch_manifest(store, remote=remote)
    if manifest.sequence_length != context_length:
        raise DataError(
            f"{remote} has sequences of {manifest.sequence_length} tokens, the model's context is {context_length}: "
            f"prepare the stream again with --sequence-length {context_length}"
        )
    if manifest.vocabulary_size > vocabulary_size:
        raise DataError(
            f"{remote} has a vocabulary of {manifest.vocabulary_size} tokens, the model only {vocabulary_size}: "
            "choose a larger vocabularySize, or prepare the stream with a smaller tokenizer"
        )
    if not manifest.samples:
        raise DataError(f"{remote} is empty: {_PREPARE}")
    _check_tokenizer(tokenizer, manifest=manifest, remote=remote, env=env)
    index = _fetch(store, INDEX, missing=f"{remote} has {MANIFEST} but no {INDEX}: {_PREPARE}, with --overwrite")
    if sha256_of(index) != manifest.index_sha256:
        raise DataError(f"{remote}/{INDEX} is not the one that {MANIFEST} names: {_PREPARE}, with --overwrite")
    try:
        shards = parse_index(index, manifest=manifest)
    except FormatError as error:
        raise DataError(f"{remote}/{INDEX}: {error}: {_PREPARE}") from error
    missing = sorted({shard.name for shard in shards}.difference(store.list()))
    if missing:
        raise DataError(f"{remote} misses {len(missing)} of {len(shards)} shards ({missing[0]}): {_PREPARE}")
    return TokenStream(store, manifest=manifest, shards=shards, cache=cache / manifest.index_sha256)


def _fetch_manifest(store: ObjectStore, *, remote: str) -> StreamManifest:
    try:
        return StreamManifest.from_json(store.get(MANIFEST))
    except FormatError as error:
        raise DataError(f"{remote}/{MANIFEST}: {error}: {_PREPARE}, with --overwrite") from error
    except BucketMissing as error:
        raise DataError(f"no bucket for {remote}: create it and {_PREPARE}") from error
    except ObjectMissing as error:
        if store.exists(INDEX):
            raise DataError(
                f"{remote} holds MDS shards, but no {MANIFEST}: they were written by something else, "
                f"or are still being written; {_PREPARE}"
            ) from error
        raise DataError(f"{remote} holds no prepared stream: {_PREPARE}") from error


def _check_tokenizer(uri: str, *, manifest: StreamManifest, remote: str, env: Mapping[str, str]) -> None:
    parent, _, name = uri.rpartition("/")
    data = _fetch(_store(parent, env=env), name, missing=f"no tokenizer at {uri}: correct data.tokenizer")
    if sha256_of(data) != manifest.tokenizer_sha256:
        raise DataError(
            f"{uri} ({sha256_of(data)[:12]}) is not the tokenizer that {remote} was made with "
            f"({manifest.tokenizer_sha256[:12]}): use {remote}/tokenizer.json, or prepare the stream again"
        )


def _store(uri: str, *, env: Mapping[str, str]) -> ObjectStore:
    try:
        return ObjectStore(uri, env=env)
    except ValueError as error:
        raise DataError(f"data are read from a bucket: {error}") from error


def _fetch(store: ObjectStore, key: str, *, missing: str) -> bytes:
    try:
        return store.get(key)
    except (ObjectMissing, BucketMissing) as error:
        raise DataError(missing) from error


class TokenStream:
    """The samples of one prepared stream. Thread-safe; shards are fetched when first read and kept in the cache."""

    def __init__(
        self, store: ObjectStore, *, manifest: StreamManifest, shards: Sequence[ShardEntry], cache: Path
    ) -> None:
        self._store = store
        self._manifest = manifest
        self._shards = shards
        self._cache = cache
        self._ends = np.cumsum([shard.samples for shard in shards])
        self._open: OrderedDict[int, NDArray[np.uint32]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Number of samples."""
        return self._manifest.samples

    @property
    def digest(self) -> str:
        """Identity of the data: sha256 of the index, which names the sha256 of every shard."""
        return self._manifest.index_sha256

    @property
    def tokenizer_digest(self) -> str:
        """The sha256 of the tokenizer file that made the tokens."""
        return self._manifest.tokenizer_sha256

    def read(self, index: int) -> NDArray[np.int64]:
        """One sample: (L+1,) tokens.

        Raises:
            IndexError: there is no such sample.
            DataError: the shard in the bucket is gone or is not what the index names.
            StoreError: the store cannot be reached, or refuses us.
        """
        tokens_L: NDArray[np.int64] = self.read_many(np.array([index], dtype=np.int64))[0]
        return tokens_L

    def read_many(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Samples in the given order: (n, L+1) tokens; shards not in the cache are fetched side by side."""
        if indices.size and not 0 <= indices.min() <= indices.max() < self.size:
            raise IndexError(f"no samples {indices.min()} to {indices.max()} in a stream of {self.size}")
        numbers = np.searchsorted(self._ends, indices, side="right")
        shards = self._open_shards(np.unique(numbers).tolist())
        tokens_BL = np.empty((len(indices), self._manifest.sequence_length + 1), dtype=np.int64)
        for row, (number, index) in enumerate(zip(numbers.tolist(), indices.tolist(), strict=True)):
            first = int(self._ends[number]) - self._shards[number].samples
            tokens_BL[row] = shards[number][index - first]
        return tokens_BL

    def _open_shards(self, numbers: list[int]) -> dict[int, NDArray[np.uint32]]:
        with self._lock:
            found = {number: self._open[number] for number in numbers if number in self._open}
            closed = [number for number in numbers if number not in found]
            if len(closed) > 1:
                with ThreadPoolExecutor(min(len(closed), _FETCHED_AT_ONCE)) as pool:
                    opened = list(pool.map(self._open_shard, closed))
            else:
                opened = [self._open_shard(number) for number in closed]
            self._open.update(zip(closed, opened, strict=True))
            for number in numbers:
                self._open.move_to_end(number)
            while len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
            return found | dict(zip(closed, opened, strict=True))

    def _open_shard(self, number: int) -> NDArray[np.uint32]:
        shard = self._shards[number]
        path = self._cache / shard.name
        if not _holds(path, shard):
            self._download(shard, path)
        try:
            return view_samples(np.memmap(path, dtype=np.uint8, mode="r"), shard=shard, manifest=self._manifest)
        except FormatError as error:
            raise DataError(f"{self._store.uri}/{shard.name}: {error}: {_PREPARE}, with --overwrite") from error

    def _download(self, shard: ShardEntry, path: Path) -> None:
        where = f"{self._store.uri}/{shard.name}"
        for _ in range(2):  # a second time, because the first may have been damaged on its way
            data = _fetch(self._store, shard.name, missing=f"{where} is gone: {_PREPARE}, with --overwrite")
            if sha256_of(data) == shard.sha256:
                return _put_file(path, data)
        raise DataError(f"{where} is corrupt: its sha256 is not the one in {INDEX}: {_PREPARE}, with --overwrite")


def _holds(path: Path, shard: ShardEntry) -> bool:
    """Whether the cache has the shard, undamaged."""
    try:
        return path.stat().st_size == shard.bytes and sha256_of(path.read_bytes()) == shard.sha256
    except FileNotFoundError:
        return False


def _put_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


class BatchLoader:
    """This rank's batches from `start_step` on, read ahead by a background thread."""

    def __init__(
        self,
        stream: TokenStream,
        *,
        seed: int,
        rank: int,
        world_size: int,
        global_batch: int,
        start_step: int,
        ahead: int = 4,
    ) -> None:
        """Start reading. Step s (from 0) reads the global positions s * global_batch and on.

        Raises:
            ValueError: the global batch does not divide by the world size.
        """
        positions_of(start_step, rank=rank, world_size=world_size, global_batch=global_batch)
        self.wait_seconds = 0.0
        """Time that `next` has waited."""
        self._stream = stream
        self._seed, self._rank, self._world_size, self._global_batch = seed, rank, world_size, global_batch
        self._ahead = ahead
        self._batches: deque[NDArray[np.int64]] = deque()
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, args=(start_step,), name="batch-loader", daemon=True)
        self._thread.start()

    def next(self) -> NDArray[np.int64]:
        """The next step's batch: (global batch / world size, L+1) tokens.

        Raises:
            Exception: whatever reading raised, once the batches before it are used up, and again on every call.
            RuntimeError: the loader is closed.
        """
        started = time.monotonic()
        with self._changed:
            self._changed.wait_for(lambda: self._batches or self._error or self._closed)
            self.wait_seconds += time.monotonic() - started
            if self._closed:
                raise RuntimeError("the batch loader is closed")
            if not self._batches:
                assert self._error is not None
                raise self._error
            batch = self._batches.popleft()
            self._changed.notify_all()
            return batch

    def close(self) -> None:
        """Stop reading ahead; waits for the read in progress."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self, step: int) -> None:
        try:
            while True:
                batch = self._read(step)
                with self._changed:
                    self._changed.wait_for(lambda: len(self._batches) < self._ahead or self._closed)
                    if self._closed:
                        return
                    self._batches.append(batch)
                    self._changed.notify_all()
                step += 1
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _read(self, step: int) -> NDArray[np.int64]:
        positions = positions_of(step, rank=self._rank, world_size=self._world_size, global_batch=self._global_batch)
        return self._stream.read_many(samples_at(positions, seed=self._seed, size=self._stream.size))

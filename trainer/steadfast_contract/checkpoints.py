"""Where a run's checkpoints live and what makes one complete.

    <destination>/<runName>/LATEST                                            who may publish, and the newest checkpoint
    <destination>/<runName>/LEASE                                             proof that the run's owner is alive
    <destination>/<runName>/step-000000000120/attempt-000003/manifest.json    written last: the commit
    <destination>/<runName>/step-000000000120/attempt-000003/rank-00000-of-00004.safetensors

Shards are immutable. A manifest names every shard with its hash, and its parent: the history is a chain. LATEST
moves only by compare-and-set, and only for the attempt that it names: an older gang that still runs cannot publish.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

FORMAT_VERSION = 1
LATEST = "LATEST"
LEASE = "LEASE"


def checkpoint_folder(*, step: int, attempt: int) -> str:
    """Key prefix of one checkpoint, relative to the run."""
    return f"step-{step:012d}/attempt-{attempt:06d}"


def manifest_key(*, step: int, attempt: int) -> str:
    """Key of a checkpoint's manifest, relative to the run."""
    return f"{checkpoint_folder(step=step, attempt=attempt)}/manifest.json"


def shard_key(*, step: int, attempt: int, rank: int, world_size: int) -> str:
    """Key of one rank's shard, relative to the run."""
    return f"{checkpoint_folder(step=step, attempt=attempt)}/rank-{rank:05d}-of-{world_size:05d}.safetensors"


class _Document:
    """A frozen dataclass as a JSON object: unknown fields of a newer writer are dropped, missing ones refused."""

    def to_json(self) -> bytes:
        """Encode for the bucket."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Decode what `to_json` wrote.

        Raises:
            ValueError: the bytes are no such document, or of an unknown format version.
        """
        try:
            data = json.loads(text)
            version = data["version"]
            document = cls(**cls._decode(_known(cls, data))) if version == FORMAT_VERSION else None
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not a {cls.__name__}: {type(error).__name__} {error}") from error
        if document is None:
            raise ValueError(f"{cls.__name__} has format version {version}, not {FORMAT_VERSION}")
        return document

    @classmethod
    def _decode(cls, data: dict[str, Any]) -> dict[str, Any]:
        return data


def _known(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    known = {f.name for f in fields(cls)}
    return {key: value for key, value in data.items() if key in known}


@dataclass(frozen=True, kw_only=True)
class Latest(_Document):
    """The fence and the head of the chain.

    Whoever holds `owner` and `attempt` may publish; a claim of a higher attempt shuts all older ones out.
    """

    owner: str
    """UID of the job, or a nonce for a launch without an operator."""
    attempt: int
    """Counted over the whole run: a new owner's first attempt follows the last one of the owner before."""
    nonce: str
    """Of the writer: a lost reply to our own write is told from somebody else's write."""
    step: int
    manifest: str | None
    """Key of the newest checkpoint's manifest, relative to the run; None before the first."""
    released: bool = False
    """The owner has stopped for good: another job may continue the run at once."""
    attempts_before: int = 0
    """Attempts of earlier owners; without them a new owner's attempt 1 would write over the shards of theirs."""
    version: int = FORMAT_VERSION


@dataclass(frozen=True, kw_only=True)
class Lease(_Document):
    """Renewed while the owner lives; a second job watches whether `beat` moves, so clocks do not matter."""

    owner: str
    job: str
    beat: int
    version: int = FORMAT_VERSION


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One immutable object of a checkpoint."""

    key: str
    """Relative to the run."""
    size: int
    sha256: str
    tensors: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest(_Document):
    """A complete checkpoint. Its existence, with every shard as hashed here, is the commit."""

    step: int
    attempt: int
    owner: str
    nonce: str
    parent: str | None
    """Key of the manifest of the checkpoint before; None for the first of a run."""
    created: str
    world_size: int
    model: Mapping[str, Any]
    """`ModelShape` as JSON: a checkpoint of another model is refused by name."""
    data: Mapping[str, Any]
    """Where the data stands: samples consumed, seed, and the digests of shards and tokenizer."""
    samples: Mapping[str, str]
    """Per rank, the digest of all samples consumed so far, in order."""
    shards: tuple[Shard, ...]
    libraries: Mapping[str, str]
    version: int = FORMAT_VERSION

    @classmethod
    def _decode(cls, data: dict[str, Any]) -> dict[str, Any]:
        shards = tuple(
            Shard(**(_known(Shard, shard) | {"tensors": tuple(shard["tensors"])})) for shard in data["shards"]
        )
        return data | {"shards": shards}

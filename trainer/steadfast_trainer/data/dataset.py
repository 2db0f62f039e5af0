"""What a prepared stream is: a folder of MDS shards, and `steadfast.json`, which vouches for them.

    <remote>/steadfast.json        written last: the stream is complete, and what it was made of
    <remote>/tokenizer.json        the tokenizer that made the tokens
    <remote>/index.json            MDS index: every shard with its size and sha256
    <remote>/shard.00000.mds       fixed-size samples of sequence length + 1 tokens

Neighbouring samples overlap by one token, so that every token but the first is predicted exactly once. Read by
`streams`, written by `prepare`; both refuse any other column than ours, because MDS can hold pickles.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT_VERSION = 1
MANIFEST = "steadfast.json"
INDEX = "index.json"
TOKENIZER = "tokenizer.json"
COLUMN = "tokens"
_SHARD_NAME = re.compile(r"shard\.\d{5,}\.mds")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class FormatError(ValueError):
    """A document or shard is not what a prepared stream holds; the message says what is wrong."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where documents came from."""

    name: str
    documents: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class StreamManifest:
    """`steadfast.json`: a prepared stream is complete, and this is what it holds."""

    tokenizer_sha256: str
    vocabulary_size: int
    sequence_length: int
    samples: int
    tokens: int
    """Tokens to predict: samples x sequence length."""
    index_sha256: str
    sources: tuple[Source, ...]
    version: int = FORMAT_VERSION

    @property
    def token_type(self) -> str:
        """Smallest type that holds every token of the vocabulary."""
        return "uint16" if self.vocabulary_size <= 1 << 16 else "uint32"

    @property
    def encoding(self) -> str:
        """MDS encoding of the one column: a fixed-shape array, so that no sample carries its size."""
        return f"ndarray:{self.token_type}:{self.sequence_length + 1}"

    @property
    def sample_bytes(self) -> int:
        """Size of one sample in a shard."""
        return np.dtype(self.token_type).itemsize * (self.sequence_length + 1)

    def to_json(self) -> bytes:
        """Encode for the bucket."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, text: bytes) -> StreamManifest:
        """Decode what `to_json` wrote; fields of a newer writer are dropped.

        Raises:
            FormatError: the bytes are no such document, or of another format version.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            if data["version"] != FORMAT_VERSION:
                raise FormatError(f"format version {data['version']}, not {FORMAT_VERSION}")
            known = {field.name for field in fields(cls)}
            sources = tuple(Source(**source) for source in data["sources"])
            manifest = cls(**{key: value for key, value in data.items() if key in known} | {"sources": sources})
        except FormatError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise FormatError(f"not a stream manifest: {error}") from error
        manifest._check()
        return manifest

    def _check(self) -> None:
        for name in ("vocabulary_size", "sequence_length", "samples", "tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < (0 if name in ("samples", "tokens") else 1):
                raise FormatError(f"{name} is {value!r}")
        for name in ("tokenizer_sha256", "index_sha256"):
            if not isinstance(getattr(self, name), str) or not _SHA256.fullmatch(getattr(self, name)):
                raise FormatError(f"{name} is no sha256")


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One shard, as the index names it."""

    name: str
    samples: int
    bytes: int
    sha256: str


def sha256_of(data: bytes) -> str:
    """Digest in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def parse_index(text: bytes, *, manifest: StreamManifest) -> tuple[ShardEntry, ...]:
    """The shards of a stream, each checked to hold nothing but our column.

    Raises:
        FormatError: the index is unreadable, or a shard is not what the manifest describes.
    """
    try:
        index = json.loads(text)
        if index["version"] != 2:
            raise FormatError(f"MDS version {index['version']}, not 2")
        shards = tuple(_parse_shard(shard, manifest=manifest) for shard in index["shards"])
    except FormatError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FormatError(f"not an MDS index: {type(error).__name__} {error}") from error
    samples = sum(shard.samples for shard in shards)
    if samples != manifest.samples:
        raise FormatError(f"{samples} samples in the index, {manifest.samples} in {MANIFEST}")
    if len({shard.name for shard in shards}) != len(shards):
        raise FormatError("two shards have the same name")
    return shards


def _parse_shard(shard: dict[str, Any], *, manifest: StreamManifest) -> ShardEntry:
    raw = shard["raw_data"]
    name, samples, size, sha256 = raw["basename"], shard["samples"], raw["bytes"], raw["hashes"].get("sha256")
    # The name becomes a path in the cache: nothing but a plain shard name may get there.
    if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
        raise FormatError(f"a shard is named {name!r}")
    if shard["column_names"] != [COLUMN] or shard["column_encodings"] != [manifest.encoding]:
        columns = dict(zip(shard["column_names"], shard["column_encodings"], strict=False))
        raise FormatError(f"{name} has columns {columns}, not {{'{COLUMN}': '{manifest.encoding}'}}")
    if shard["version"] != 2 or shard["format"] != "mds" or shard["compression"] or shard["zip_data"]:
        raise FormatError(f"{name} is not an uncompressed MDS shard of version 2")
    if shard["column_sizes"] != [manifest.sample_bytes] or not isinstance(samples, int) or samples < 1:
        raise FormatError(f"{name} has {samples} samples of {shard['column_sizes']} bytes")
    if not isinstance(size, int) or size < 1 or not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise FormatError(f"{name} has no sha256 or no size")
    return ShardEntry(name=name, samples=samples, bytes=size, sha256=sha256)


def view_samples(data: NDArray[np.uint8], *, shard: ShardEntry, manifest: StreamManifest) -> NDArray[np.uint32]:
    """A shard's samples as an array (samples, L+1) over its bytes, copying nothing; uint16 or uint32, as stored.

    An MDS shard is: uint32 count, uint32 offsets[count + 1], the writer's settings as JSON, then the samples.

    Raises:
        FormatError: the offsets are not those of fixed-size samples, or a token is outside the vocabulary.
    """
    head = 4 * (shard.samples + 2)
    if data.size != shard.bytes or data.size < head + shard.samples * manifest.sample_bytes:
        raise FormatError(f"{shard.name} has {data.size} bytes")
    numbers = data[:head].view("<u4")
    expected = data.size - manifest.sample_bytes * np.arange(shard.samples, -1, -1)
    if numbers[0] != shard.samples or not np.array_equal(numbers[1:], expected):
        raise FormatError(f"{shard.name} does not hold {shard.samples} samples of {manifest.sample_bytes} bytes")
    start = int(expected[0])
    samples_SL = np.frombuffer(data, dtype=f"<u{np.dtype(manifest.token_type).itemsize}", offset=start)
    if samples_SL.max() >= manifest.vocabulary_size:
        raise FormatError(f"{shard.name} holds token {samples_SL.max()}, vocabulary size is {manifest.vocabulary_size}")
    return samples_SL.reshape(shard.samples, manifest.sequence_length + 1)

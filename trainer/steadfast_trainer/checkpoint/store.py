"""The trainer's one way to an object store: retries, deadlines and conditional writes over obstore's S3 client.

Checkpoints, the run's fence and the data streams call it from threads; obstore releases the GIL while it waits.
Nothing here touches obstore before the first request: a client made before a fork hangs the child.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NoReturn, Self, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store

from steadfast_trainer.checkpoint.s3 import (
    CREDENTIALS_HINT,
    FIRST_DELAY_SECONDS,
    Bucket,
    BucketMissing,
    Cause,
    ObjectMissing,
    PreconditionFailed,
    StoreDenied,
    StoreError,
    StoreUnavailable,
    client_config,
    endpoint_of,
)

__all__ = [
    "BucketMissing",
    "ObjectMissing",
    "ObjectStore",
    "PreconditionFailed",
    "StoreDenied",
    "StoreError",
    "StoreUnavailable",
]

T = TypeVar("T")

_PART_BYTES = 16 << 20
_MOST_PARTS = 9_000
"""S3 allows 10,000 parts in one object."""
_PARTS_AT_ONCE = 4
_REQUEST_SECONDS = (30, 16, 8, 4, 2, 1)
"""How long a request may stay silent. One client per value: the longest that fits in half of the time that is left."""
_LONGEST_DELAY_SECONDS = 5.0


class ObjectStore:
    """Objects below one `s3://bucket/prefix`; keys are relative to it.

    Every method retries errors that pass until `deadline_seconds` after its start, and raises the others at once.
    The deadline bounds the wait for a store that fails or is silent; a transfer that moves may take longer.
    """

    def __init__(self, uri: str, *, env: Mapping[str, str], deadline_seconds: float = 60) -> None:
        """Read where the bucket is and who we are from `env`; no request is made.

        Raises:
            ValueError: `uri` is no `s3://bucket/prefix`.
            StoreDenied: `env` holds no credentials; requests are never sent unsigned.
        """
        scheme, _, rest = uri.partition("://")
        bucket, _, prefix = rest.partition("/")
        if scheme != "s3" or not bucket:
            raise ValueError(f"not an object store address: {uri!r}; write s3://bucket/prefix")
        self._bucket = Bucket(name=bucket, endpoint=endpoint_of(env), config=client_config(env, bucket=bucket))
        self._prefix = prefix.strip("/")
        self._deadline_seconds = deadline_seconds

    @property
    def uri(self) -> str:
        """`s3://bucket/prefix`, without a slash at its end."""
        return f"s3://{self._bucket.name}/{self._prefix}".rstrip("/")

    def child(self, path: str) -> Self:
        """The store of a sub-prefix; shares the connections."""
        child = object.__new__(type(self))
        child._bucket = self._bucket
        child._prefix = self._path(path.strip("/"))
        child._deadline_seconds = self._deadline_seconds
        return child

    def get(self, key: str, *, deadline_seconds: float | None = None) -> bytes:
        """The whole object."""
        return self.get_tagged(key, deadline_seconds=deadline_seconds)[0]

    def get_tagged(self, key: str, *, deadline_seconds: float | None = None) -> tuple[bytes, str]:
        """The whole object and its tag, which `replace` takes."""
        path = self._path(key)
        return self._retry("GET", key, lambda client: _read(client, path), deadline_seconds=deadline_seconds)

    def get_range(self, key: str, start: int, length: int, *, deadline_seconds: float | None = None) -> bytes:
        """`length` bytes from `start`; fewer where the object ends before.

        Raises:
            StoreError: `start` lies beyond the object's end.
        """
        path = self._path(key)
        if length == 0:
            return b""
        return self._retry(
            "GET",
            key,
            lambda client: bytes(obstore.get_range(client, path, start=start, length=length)),
            deadline_seconds=deadline_seconds,
        )

    def put(self, key: str, data: bytes | bytearray | memoryview, *, deadline_seconds: float | None = None) -> None:
        """Write an object, whatever was there before. Large ones travel in parts; they appear whole or not at all."""
        path = self._path(key)
        part = max(_PART_BYTES, -(-len(data) // _MOST_PARTS))

        def write(client: S3Store) -> None:
            obstore.put(client, path, data, chunk_size=part, max_concurrency=_PARTS_AT_ONCE)

        self._retry("PUT", key, write, deadline_seconds=deadline_seconds)

    def create(self, key: str, data: bytes, *, deadline_seconds: float | None = None) -> str:
        """Write an object that must not exist yet; returns its tag.

        Raises:
            PreconditionFailed: it exists, with other bytes than a try of ours may have left.
        """
        return self._write_if(key, data, condition="create", deadline_seconds=deadline_seconds)

    def replace(self, key: str, data: bytes, *, etag: str, deadline_seconds: float | None = None) -> str:
        """Write an object that must still be the one of this tag; returns the new tag.

        Raises:
            PreconditionFailed: it is another one, or gone.
        """
        return self._write_if(key, data, condition={"e_tag": etag}, deadline_seconds=deadline_seconds)

    def list(self, prefix: str = "", *, deadline_seconds: float | None = None) -> list[str]:
        """Keys below the folder `prefix`, sorted. `step-1` finds `step-1/a`, not `step-10/a`."""
        folder = self._path(prefix.strip("/"))

        def read(client: S3Store) -> list[str]:
            return sorted(found["path"] for page in obstore.list(client, prefix=folder or None) for found in page)

        paths = self._retry("LIST", prefix, read, deadline_seconds=deadline_seconds)
        return [path[len(self._prefix) :].lstrip("/") for path in paths]

    def delete(self, key: str, *, deadline_seconds: float | None = None) -> None:
        """Remove an object; one that is gone already is fine."""
        path = self._path(key)
        with suppress(ObjectMissing):
            self._retry("DELETE", key, lambda client: obstore.delete(client, path), deadline_seconds=deadline_seconds)

    def exists(self, key: str, *, deadline_seconds: float | None = None) -> bool:
        """Whether the object is there.

        Raises:
            BucketMissing: the bucket is not, so the question has no answer.
        """
        path = self._path(key)
        try:
            self._retry("HEAD", key, lambda client: obstore.head(client, path), deadline_seconds=deadline_seconds)
        except ObjectMissing:
            self.list(key, deadline_seconds=deadline_seconds)  # a HEAD has no body that would name a missing bucket
            return False
        return True

    def _write_if(self, key: str, data: bytes, *, condition: Any, deadline_seconds: float | None) -> str:
        path = self._path(key)
        in_doubt = False

        def write(client: S3Store) -> str:
            nonlocal in_doubt
            try:
                return _tag(obstore.put(client, path, data, mode=condition, use_multipart=False))
            except (AlreadyExistsError, PreconditionError):
                if in_doubt:  # an earlier try failed after the store had done it, perhaps: then the bytes are ours
                    with suppress(FileNotFoundError):
                        found, tag = _read(client, path)
                        if found == data:
                            return tag
                raise
            except BaseError:
                in_doubt = True
                raise

        return self._retry("PUT", key, write, deadline_seconds=deadline_seconds, inner_retries=0)

    def _retry(
        self,
        verb: str,
        key: str,
        request: Callable[[S3Store], T],
        *,
        deadline_seconds: float | None,
        inner_retries: int = 2,
    ) -> T:
        """Send `request` until it is answered; obstore itself retries a little, for the parts of large transfers."""
        seconds = self._deadline_seconds if deadline_seconds is None else deadline_seconds
        started = time.monotonic()
        delay = FIRST_DELAY_SECONDS
        tries = 0
        while True:
            left = started + seconds - time.monotonic()
            client = self._bucket.client(seconds=_request_seconds(left), retries=inner_retries)
            tries += 1
            try:
                return request(client)
            except (BaseError, OSError) as error:
                cause = Cause.of(error)
            if not cause.passes:
                self._fail(verb, key, cause)
            pause = random.uniform(delay / 2, delay)
            if time.monotonic() + pause >= started + seconds:
                self._give_up(verb, key, cause, tries=tries, seconds=time.monotonic() - started)
            time.sleep(pause)
            delay = min(2 * delay, _LONGEST_DELAY_SECONDS)

    def _fail(self, verb: str, key: str, cause: Cause) -> NoReturn:
        at = f"{verb} {self._place(key)}"
        match cause.kind:
            case "bucket":
                raise BucketMissing(
                    f"{at}: the bucket {self._bucket.name!r} does not exist; create it or correct the address"
                )
            case "object" if verb != "PUT":
                raise ObjectMissing(f"{at}: there is no such object")
            case "precondition":
                raise PreconditionFailed(f"{at}: {cause.text}; somebody else wrote it: read it again")
            case "denied":
                raise StoreDenied(f"{at}: {cause.text}; {CREDENTIALS_HINT}")
            case _:
                raise StoreError(f"{at}: {cause.text}; check the endpoint, the region and the address")

    def _give_up(self, verb: str, key: str, cause: Cause, *, tries: int, seconds: float) -> NoReturn:
        raise StoreUnavailable(
            f"{verb} {self._place(key)}: {cause.text}; gave up after {tries} tries in {seconds:.1f} s: "
            "check that the store is up and can be reached from here"
        )

    def _place(self, key: str) -> str:
        return f"s3://{self._bucket.name}/{self._path(key)} at {self._bucket.endpoint}"

    def _path(self, key: str) -> str:
        return f"{self._prefix}/{key}".strip("/") if self._prefix else key


def _read(client: S3Store, path: str) -> tuple[bytes, str]:
    reply = obstore.get(client, path)
    return bytes(reply.bytes()), _tag(reply.meta)


def _tag(meta: Mapping[str, Any]) -> str:
    if not meta["e_tag"]:
        raise StoreError("the store gives its objects no ETag: conditional writes, and so checkpoints, need them")
    return str(meta["e_tag"])


def _request_seconds(left: float) -> int:
    return next((seconds for seconds in _REQUEST_SECONDS if seconds <= left / 2), _REQUEST_SECONDS[-1])

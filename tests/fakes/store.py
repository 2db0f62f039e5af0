"""An object store in memory with the interface of `ObjectStore` and faults on order; nothing here sleeps.

Time is simulated: an outage of some seconds is outlived at once by a call whose deadline is longer.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from steadfast_trainer.checkpoint.store import (
    BucketMissing,
    ObjectMissing,
    PreconditionFailed,
    StoreDenied,
    StoreError,
    StoreUnavailable,
)

FOREVER = float("inf")


@dataclass
class FakeService:
    """The far side: buckets, objects and the faults that the next requests meet. Shared by all stores on it."""

    buckets: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"corpora": {}, "runs": {}})
    calls: list[tuple[str, str]] = field(default_factory=list)
    """Verb and full key of every request, in order."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    _outage_seconds: float = 0
    _failures: deque[StoreError] = field(default_factory=deque)
    _lost_replies: deque[Callable[[], None]] = field(default_factory=deque)

    def fail_next(self, error: StoreError, *, calls: int = 1) -> None:
        """The next calls raise `error` and do nothing else."""
        self._failures.extend([error] * calls)

    def go_away(self, *, seconds: float = FOREVER) -> None:
        """Nobody answers for so long; calls with a longer deadline wait and succeed."""
        self._outage_seconds = seconds

    def come_back(self) -> None:
        self._outage_seconds = 0

    def lose_replies(self, *, writes: int = 1, meanwhile: Callable[[], None] = lambda: None) -> None:
        """The next writes are done, their replies lost, `meanwhile` happens, then the caller tries again."""
        self._lost_replies.extend([meanwhile] * writes)

    def enter(self, verb: str, path: str, *, deadline_seconds: float) -> None:
        with self.lock:
            self.calls.append((verb, path))
            if self._failures:
                raise self._failures.popleft()
            if self._outage_seconds > deadline_seconds:
                self._outage_seconds -= deadline_seconds
                raise StoreUnavailable(f"{verb} {path}: connection refused; gave up after {deadline_seconds} s")
            self._outage_seconds = 0

    def lost_reply(self) -> Callable[[], None] | None:
        return self._lost_replies.popleft() if self._lost_replies else None


class FakeObjectStore:
    """`ObjectStore` on a `FakeService`."""

    def __init__(
        self, uri: str = "s3://runs", *, service: FakeService | None = None, deadline_seconds: float = 60, denied=False
    ) -> None:
        self._bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self._prefix = prefix.strip("/")
        self._deadline_seconds = deadline_seconds
        self._denied = denied
        self.service = service or FakeService()

    @property
    def uri(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def child(self, path: str) -> Self:
        return type(self)(
            f"{self.uri}/{path}",
            service=self.service,
            deadline_seconds=self._deadline_seconds,
            denied=self._denied,
        )

    def get(self, key: str, *, deadline_seconds: float | None = None) -> bytes:
        return self.get_tagged(key, deadline_seconds=deadline_seconds)[0]

    def get_tagged(self, key: str, *, deadline_seconds: float | None = None) -> tuple[bytes, str]:
        objects = self._enter("GET", key, deadline_seconds)
        try:
            data = objects[self._path(key)]
        except KeyError:
            raise ObjectMissing(f"GET {self._path(key)}: there is no such object") from None
        return data, _tag(data)

    def get_range(self, key: str, start: int, length: int, *, deadline_seconds: float | None = None) -> bytes:
        if length == 0:
            return b""
        data = self.get(key, deadline_seconds=deadline_seconds)
        if start >= len(data):
            raise StoreError(f"GET {self._path(key)}: 416 InvalidRange")
        return data[start : start + length]

    def put(self, key: str, data: bytes | bytearray | memoryview, *, deadline_seconds: float | None = None) -> None:
        objects = self._enter("PUT", key, deadline_seconds)
        objects[self._path(key)] = bytes(data)
        if meanwhile := self.service.lost_reply():
            meanwhile()
            objects[self._path(key)] = bytes(data)

    def create(self, key: str, data: bytes, *, deadline_seconds: float | None = None) -> str:
        return self._write_if(key, data, expected=None, deadline_seconds=deadline_seconds)

    def replace(self, key: str, data: bytes, *, etag: str, deadline_seconds: float | None = None) -> str:
        return self._write_if(key, data, expected=etag, deadline_seconds=deadline_seconds)

    def list(self, prefix: str = "", *, deadline_seconds: float | None = None) -> list[str]:
        objects = self._enter("LIST", prefix, deadline_seconds)
        folder = self._path(prefix.strip("/"))
        start = f"{folder}/" if folder else ""
        found = sorted(path for path in objects if path.startswith(start))
        return [path[len(self._prefix) :].lstrip("/") for path in found]

    def delete(self, key: str, *, deadline_seconds: float | None = None) -> None:
        self._enter("DELETE", key, deadline_seconds).pop(self._path(key), None)

    def exists(self, key: str, *, deadline_seconds: float | None = None) -> bool:
        return self._path(key) in self._enter("HEAD", key, deadline_seconds)

    def _write_if(self, key: str, data: bytes, *, expected: str | None, deadline_seconds: float | None) -> str:
        objects = self._enter("PUT", key, deadline_seconds)
        path = self._path(key)
        with self.service.lock:
            self._check(objects, path, expected=expected)
            objects[path] = bytes(data)
            meanwhile = self.service.lost_reply()
        if meanwhile:  # the next try meets our own write, or that of somebody else
            meanwhile()
            if objects.get(path) != bytes(data):
                self._check(objects, path, expected=expected)
                objects[path] = bytes(data)
        return _tag(data)

    def _check(self, objects: dict[str, bytes], path: str, *, expected: str | None) -> None:
        found = _tag(objects[path]) if path in objects else None
        if found != expected:
            raise PreconditionFailed(f"PUT {path}: 412 PreconditionFailed; somebody else wrote it: read it again")

    def _enter(self, verb: str, key: str, deadline_seconds: float | None) -> dict[str, bytes]:
        seconds = self._deadline_seconds if deadline_seconds is None else deadline_seconds
        self.service.enter(verb, self._path(key), deadline_seconds=seconds)
        if self._denied:
            raise StoreDenied(f"{verb} {self._path(key)}: 403 SignatureDoesNotMatch")
        if self._bucket not in self.service.buckets:
            raise BucketMissing(f"{verb} {self._path(key)}: the bucket {self._bucket!r} does not exist")
        return self.service.buckets[self._bucket]

    def _path(self, key: str) -> str:
        return f"{self._prefix}/{key}".strip("/") if self._prefix else key


def _tag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'

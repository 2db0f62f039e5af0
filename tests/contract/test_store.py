"""What every object store of the trainer does: one table over the fake and over the real adapter on a real server.

The real one is reached through `Link`, a wire that can be cut, fall silent, or swallow replies.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from fakes.store import FakeObjectStore, FakeService
from steadfast_trainer.checkpoint.store import (
    BucketMissing,
    ObjectMissing,
    ObjectStore,
    PreconditionFailed,
    StoreDenied,
    StoreError,
    StoreUnavailable,
)


class Link:
    """A TCP wire to the server, with faults."""

    def __init__(self, target: str) -> None:
        host, port = target.removeprefix("http://").split(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cut = False
        self.silent = False
        self.replies_to_lose = 0
        self.meanwhile = lambda: None
        self._sockets: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self.cut = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._hang_up()
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._sockets):
            end.close()

    def cut_for(self, *, seconds: float) -> None:
        self.cut = True
        self._hang_up()
        timer = threading.Timer(seconds, setattr, (self, "cut", False))
        self._threads.append(timer)
        timer.start()

    def _hang_up(self) -> None:
        for end in list(self._sockets):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.cut:
                near.close()
                continue
            far = socket.create_connection(self._target)
            self._sockets |= {near, far}
            for pair in ((near, far, False), (far, near, True)):
                self._threads.append(threading.Thread(target=self._carry, args=pair))
                self._threads[-1].start()

    def _carry(self, source: socket.socket, sink: socket.socket, replies: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if replies and self.silent:
                    continue
                if replies and self.replies_to_lose:
                    self.replies_to_lose -= 1
                    self.meanwhile()
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class RealWorld:
    def __init__(self, embedded_store, *, prefix: str) -> None:
        self._env = embedded_store.environment
        self._prefix = prefix
        self.link = Link(self._env["S3_ENDPOINT_URL"])
        self.other = ObjectStore(f"s3://runs/{prefix}", env=self._env)

    def store(self, *, bucket: str = "runs", secret: str | None = None, deadline_seconds: float = 20) -> ObjectStore:
        env = self._env | {"S3_ENDPOINT_URL": self.link.endpoint}
        if secret:
            env["AWS_SECRET_ACCESS_KEY"] = secret
        return ObjectStore(f"s3://{bucket}/{self._prefix}", env=env, deadline_seconds=deadline_seconds)

    def cut_for(self, *, seconds: float) -> None:
        self.link.cut_for(seconds=seconds)

    def lose_reply(self, meanwhile=lambda: None) -> None:
        self.link.meanwhile = meanwhile
        self.link.replies_to_lose = 1


class FakeWorld:
    def __init__(self) -> None:
        self._service = FakeService()
        self.other = FakeObjectStore("s3://runs/here", service=self._service)

    def store(self, *, bucket: str = "runs", secret: str | None = None, deadline_seconds: float = 20):
        return FakeObjectStore(
            f"s3://{bucket}/here", service=self._service, deadline_seconds=deadline_seconds, denied=bool(secret)
        )

    def cut_for(self, *, seconds: float) -> None:
        self._service.go_away(seconds=seconds)

    def lose_reply(self, meanwhile=lambda: None) -> None:
        self._service.lose_replies(meanwhile=meanwhile)


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.local)])
def world(request):
    if request.param == "fake":
        yield FakeWorld()
        return
    world = RealWorld(request.getfixturevalue("embedded_store"), prefix=f"store/{os.urandom(6).hex()}")
    yield world
    world.link.close()


@pytest.fixture
def real(embedded_store):
    world = RealWorld(embedded_store, prefix=f"store/{os.urandom(6).hex()}")
    yield world
    world.link.close()


def test_what_is_put_is_got(world):
    store = world.store()
    store.put("a/b", b"one")
    store.put("a/b", b"two")
    data, tag = store.get_tagged("a/b")
    assert (data, store.get("a/b")) == (b"two", b"two")
    assert store.replace("a/b", b"three", etag=tag) != tag
    assert store.get_range("a/b", 1, 3) == b"hre"
    assert store.get_range("a/b", 3, 100) == b"ee"
    assert store.get_range("a/b", 1, 0) == b""
    with pytest.raises(StoreError, match="416"):
        store.get_range("a/b", 5, 1)


def test_an_empty_object_is_an_object(world):
    store = world.store()
    store.put("empty", b"")
    assert store.get("empty") == b""
    assert store.exists("empty")


def test_forty_megabytes_come_back_whole(world):
    store = world.store()
    data = os.urandom(40_000_000)
    store.put("put", memoryview(data))
    assert store.get("put") == data
    store.create("created", data)
    assert store.get_range("created", 39_999_990, 10) == data[-10:]
    with pytest.raises(PreconditionFailed):
        store.create("created", data[:-1] + b"?")


def test_list_is_by_folder_sorted_and_relative(world):
    store = world.store()
    for key in ("step-10/b", "step-1/b", "step-1/a", "top"):
        store.put(key, b"")
    assert store.list() == ["step-1/a", "step-1/b", "step-10/b", "top"]
    assert store.list("step-1") == store.list("step-1/") == ["step-1/a", "step-1/b"]
    assert store.list("nothing") == []
    child = store.child("step-1")
    assert child.uri == f"{store.uri}/step-1"
    assert child.list() == ["a", "b"]
    assert child.get("a") == b""


def test_more_objects_than_one_page_are_listed(real):
    store = real.store()
    keys = [f"many/{number:04d}" for number in range(1100)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda key: store.put(key, b""), keys))
    assert store.list("many") == keys


def test_delete_and_exists(world):
    store = world.store()
    store.put("a", b"")
    assert store.exists("a")
    store.delete("a")
    store.delete("a")
    assert not store.exists("a")


def test_a_missing_object_is_named(world):
    with pytest.raises(ObjectMissing, match="no-such-key"):
        world.store().get("no-such-key")


REQUESTS = {
    "get": lambda store: store.get("k"),
    "put": lambda store: store.put("k", b""),
    "put in parts": lambda store: store.put("k", bytes(20 << 20)),
    "create": lambda store: store.create("k", b""),
    "list": lambda store: store.list(),
    "delete": lambda store: store.delete("k"),
    "exists": lambda store: store.exists("k"),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_a_missing_bucket_is_told_from_a_missing_object(world, request_):
    with pytest.raises(BucketMissing, match="no-such-bucket"):
        request_(world.store(bucket="no-such-bucket"))


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_wrong_credentials_are_denied_at_once(world, request_):
    started = time.monotonic()
    with pytest.raises(StoreDenied) as denied:
        request_(world.store(secret="not-the-secret"))
    assert time.monotonic() - started < 5
    assert "not-the-secret" not in str(denied.value)


def test_one_of_eight_contending_creates_wins(world):
    store = world.store()
    won = _contend(lambda writer: store.create("fence", b"%d" % writer))
    assert len(won) == 1
    assert store.get("fence") == b"%d" % won[0]


def test_one_of_eight_contending_replaces_wins(world):
    store = world.store()
    tag = store.create("fence", b"start")
    won = _contend(lambda writer: store.replace("fence", b"%d" % writer, etag=tag))
    assert len(won) == 1
    assert store.get("fence") == b"%d" % won[0]


def _contend(write):
    start = threading.Barrier(8)

    def attempt(writer):
        start.wait()
        try:
            write(writer)
        except PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        return [writer for writer, won in enumerate(threads.map(attempt, range(8))) if won]


def test_replace_needs_the_object_that_was_read(world):
    store = world.store()
    tag = store.create("k", b"1")
    store.put("k", b"2")
    with pytest.raises(PreconditionFailed):
        store.replace("k", b"3", etag=tag)
    store.delete("k")
    with pytest.raises(PreconditionFailed):
        store.replace("k", b"3", etag=tag)


def test_a_store_that_comes_back_before_the_deadline_is_no_failure(world):
    store = world.store()
    store.put("k", b"1")
    world.cut_for(seconds=1)
    assert store.get("k") == b"1"


def test_a_store_that_stays_away_is_unavailable_after_the_deadline(world):
    store = world.store(deadline_seconds=1)
    store.put("k", b"1")
    world.cut_for(seconds=3)
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        store.get("k")
    assert time.monotonic() - started < 2
    assert store.get("k", deadline_seconds=20) == b"1"


@pytest.mark.parametrize("kind", ["create", "replace"])
def test_a_conditional_write_whose_reply_was_lost_succeeded(world, kind):
    store = world.store()
    tag = store.create("k", b"before") if kind == "replace" else None
    world.lose_reply()
    new = store.replace("k", b"mine", etag=tag) if tag else store.create("k", b"mine")
    assert store.get_tagged("k") == (b"mine", new)


@pytest.mark.parametrize("kind", ["create", "replace"])
def test_a_lost_reply_and_another_writer_after_it_is_a_conflict(world, kind):
    store = world.store()
    tag = store.create("k", b"before") if kind == "replace" else None
    world.lose_reply(lambda: world.other.put("k", b"theirs"))
    with pytest.raises(PreconditionFailed):
        store.replace("k", b"mine", etag=tag) if tag else store.create("k", b"mine")
    assert store.get("k") == b"theirs"


def test_a_conflict_without_a_lost_reply_stays_one_for_equal_bytes(world):
    store = world.store()
    store.create("k", b"same")
    with pytest.raises(PreconditionFailed):
        store.create("k", b"same")


@pytest.mark.local
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_a_silent_store_is_given_up_after_the_deadline(real, request_):
    store = real.store(deadline_seconds=1.5)
    real.link.silent = True
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match="did not answer in time"):
        request_(store)
    assert time.monotonic() - started < 4


ENV = {"S3_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hush"}


@pytest.mark.parametrize("missing", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_no_credentials_are_denied_before_any_request(missing):
    with pytest.raises(StoreDenied, match=f": {missing} not set"):
        ObjectStore("s3://runs/x", env={name: value for name, value in ENV.items() if name != missing})


@pytest.mark.local
def test_the_environment_of_the_process_does_not_mix_in(real, monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "somebody-else's")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store = real.store()
    store.put("k", b"1")
    assert store.get("k") == b"1"


def test_nothing_of_obstore_runs_before_the_first_request():
    code = (
        "import os; from steadfast_trainer.checkpoint.store import ObjectStore; "
        f"ObjectStore('s3://runs/x', env={ENV}).child('y'); print(len(os.listdir('/proc/self/task')))"
    )
    threads = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert threads.strip() == "1"


@pytest.mark.parametrize("uri", ["runs/x", "gs://runs/x", "s3://", "s3:///x"])
def test_an_address_that_is_none_is_refused(uri):
    with pytest.raises(ValueError, match="s3://bucket/prefix"):
        ObjectStore(uri, env=ENV)


REPLIES = {
    "an expired token (400)": ("400 Bad Request", "ExpiredToken", StoreDenied),
    "a clock that is wrong": ("403 Forbidden", "RequestTimeTooSkewed", StoreDenied),
    "a wrong region": ("301 Moved", "PermanentRedirect", StoreError),
    "slow down": ("503 Slow Down", "SlowDown", StoreUnavailable),
    "too many requests": ("429 Too Many Requests", "TooManyRequests", StoreUnavailable),
    "an internal error": ("500 Internal Server Error", "InternalError", StoreUnavailable),
    "a conflict": ("409 Conflict", "ConditionalRequestConflict", PreconditionFailed),
    "a malformed request": ("400 Bad Request", "InvalidArgument", StoreError),
}


@pytest.mark.parametrize(("status", "code", "expected"), REPLIES.values(), ids=REPLIES)
def test_the_replies_of_s3_have_their_meaning(status, code, expected):
    body = f"<Error><Code>{code}</Code><Message>so it is</Message><Token-0>hush</Token-0></Error>"
    reply = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=_answer, args=(listener, reply))
        server.start()
        env = ENV | {"S3_ENDPOINT_URL": f"http://127.0.0.1:{listener.getsockname()[1]}"}
        with pytest.raises(StoreError) as failure:
            ObjectStore("s3://runs/x", env=env, deadline_seconds=0.5).create("k", b"")
        listener.shutdown(socket.SHUT_RDWR)
        server.join()
    assert type(failure.value) is expected
    assert "s3://runs/x/k" in str(failure.value)
    assert "hush" not in str(failure.value)


def _answer(listener, reply):
    with suppress(OSError):
        while True:
            near, _ = listener.accept()
            with near:
                near.recv(1 << 16)
                near.sendall(reply)


def test_the_fake_fails_the_next_calls_only():
    service = FakeService()
    store = FakeObjectStore(service=service)
    service.fail_next(StoreUnavailable("gone"), calls=2)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            store.put("k", b"")
    store.put("k", b"")
    assert service.calls == [("PUT", "k")] * 3

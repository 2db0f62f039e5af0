"""The S3 server of the local runtime: one SeaweedFS per home, shared by every command that uses this home.

`acquire` is for the CLI, the local runtime and the tests. Each user holds a shared lock on <home>/store/users.lock;
a detached supervisor (`python -m steadfast_cli.embedded_store <home>`) owns the server and ends when it can take that
lock alone. Locks die with their process, so a killed user never keeps a server, and a killed supervisor is replaced.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from steadfast_cli.weed import (
    PORTS,
    REGION,
    EmbeddedStoreError,
    Keys,
    ask,
    find_weed,
    free_ports,
    is_free,
    server_arguments,
)

__all__ = ["EmbeddedStore", "EmbeddedStoreError", "acquire"]

START_SECONDS = 30.0
IDLE_SECONDS = 2.0
"""A server that nobody has used for so long is stopped."""
_STOP_SECONDS = 1.0
"""Left alone, `weed` says goodbye to itself for 16 s; it answers a write only when its files have it."""
_POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1


class EmbeddedStore:
    """One user's hold on the server of a home; the server runs at least until `release`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._files = _Files(home)
        self._files.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._users_lock: IO[bytes] | None = self._files.users_lock.open("ab")
        try:
            fcntl.flock(self._users_lock, fcntl.LOCK_SH)
            self.ensure_running()
        except BaseException:
            self.release()
            raise

    @classmethod
    def acquire(cls, home: Path) -> Self:
        """Use the server of `home`; starts it where it does not run (about 2.5 s).

        Raises:
            EmbeddedStoreError: the server is missing, did not start, or the disk is nearly full.
        """
        return cls(home)

    @property
    def environment(self) -> dict[str, str]:
        """What an S3 client needs to find the server and be let in."""
        keys = self._files.credentials()
        endpoint = self._files.endpoint()
        return {
            "S3_ENDPOINT_URL": f"http://{endpoint}",
            "AWS_ACCESS_KEY_ID": keys.access_key,
            "AWS_SECRET_ACCESS_KEY": keys.secret_key,
            "AWS_REGION": REGION,
        }

    def ensure_running(self) -> None:
        """Start the server again if it is gone; it keeps its address unless somebody else took it.

        Raises:
            EmbeddedStoreError: it does not start.
        """
        if self._users_lock is None:
            raise EmbeddedStoreError("this hold on the local object store was released: acquire it again")
        if self._answers():
            return
        with _locked(self._files.start_lock):
            if not self._answers():
                self._start()

    def ensure_bucket(self, name: str) -> None:
        """Create a bucket unless it exists.

        Raises:
            EmbeddedStoreError: S3 does not allow the name (3 to 63 of a-z, 0-9, dot and dash), or the server is gone.
        """
        deadline = time.monotonic() + START_SECONDS
        while True:
            status, code = ask("PUT", f"/{name}", endpoint=self._files.endpoint(), keys=self._files.credentials())
            if status == 200 or code in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                return
            if (status and status < 500) or time.monotonic() > deadline:
                raise EmbeddedStoreError(f"bucket {name!r} could not be created: {status} {code}".rstrip())
            time.sleep(_POLL_SECONDS)

    def release(self) -> None:
        """Give up the hold; the last one to do so ends the server, the data stays."""
        if self._users_lock is not None:
            self._users_lock.close()
            self._users_lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _answers(self) -> bool:
        try:
            endpoint, keys = self._files.endpoint(), self._files.credentials()
        except EmbeddedStoreError:
            return False
        # Signed with the keys of this home: the server of another one on the same port would refuse them.
        return ask("GET", "/", endpoint=endpoint, keys=keys)[0] == 200

    def _start(self) -> None:
        self._files.failure.unlink(missing_ok=True)
        subprocess.run(  # returns at once: the supervisor detaches itself
            [sys.executable, "-m", "steadfast_cli.embedded_store", str(self._files.home)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            check=True,
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            with suppress(FileNotFoundError):
                raise EmbeddedStoreError(self._files.failure.read_text())
            if time.monotonic() > deadline:
                raise EmbeddedStoreError(
                    f"the local object store did not answer within {START_SECONDS:.0f} s; {self._files.log_end()}"
                )
            time.sleep(_POLL_SECONDS)


def acquire(home: Path) -> EmbeddedStore:
    """Use the server of `home`: see `EmbeddedStore.acquire`."""
    return EmbeddedStore.acquire(home)


class _Files:
    """What lies in <home>/store, and how it is read."""

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()
        self.folder = self.home / "store"
        self.data = self.folder / "data"
        self.log = self.folder / "weed.log"
        self.failure = self.folder / "failure.txt"
        self.users_lock = self.folder / "users.lock"
        self.start_lock = self.folder / "start.lock"
        self.supervisor_lock = self.folder / "supervisor.lock"
        self._endpoint = self.folder / "endpoint.json"
        self._ports = self.folder / "ports.json"
        self.s3_config = self.folder / "s3.json"

    def endpoint(self) -> str:
        """`host:port` of the server as last published."""
        try:
            return str(json.loads(self._endpoint.read_bytes())["endpoint"])
        except (FileNotFoundError, ValueError, KeyError) as error:
            raise EmbeddedStoreError(f"no local object store runs for {self.home}") from error

    def publish(self, *, endpoint: str, pid: int) -> None:
        _write_private(self._endpoint, {"endpoint": endpoint, "pid": pid, "supervisor": os.getpid()})

    def withdraw(self) -> None:
        self._endpoint.unlink(missing_ok=True)

    def credentials(self) -> Keys:
        """The keys of this home; made at its first use, by the supervisor."""
        try:
            found = json.loads(self.s3_config.read_bytes())["identities"][0]["credentials"][0]
        except (FileNotFoundError, ValueError, LookupError) as error:
            raise EmbeddedStoreError(f"no readable keys in {self.s3_config}: delete it to get new ones") from error
        return Keys(found["accessKey"], found["secretKey"])

    def ensure_credentials(self) -> None:
        if self.s3_config.exists():
            return
        keys = {"accessKey": secrets.token_hex(10).upper(), "secretKey": secrets.token_urlsafe(30)}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        _write_private(
            self.s3_config, {"identities": [{"name": "steadfast", "credentials": [keys], "actions": actions}]}
        )

    def choose_ports(self) -> dict[str, int]:
        """The ports of the last time, so that clients which still run find the server again; else free ones."""
        try:
            ports: dict[str, int] = json.loads(self._ports.read_bytes())
        except (FileNotFoundError, ValueError):
            ports = {}
        if set(ports) != set(PORTS) or not all(is_free(port) for port in ports.values()):
            ports = free_ports()
            _write_private(self._ports, ports)
        return ports

    def log_end(self) -> str:
        """The last lines of the server's log, for an error message."""
        with suppress(FileNotFoundError):
            if lines := self.log.read_text(errors="replace").splitlines()[-10:]:
                return f"the end of {self.log}:\n" + "\n".join(lines)
        return f"nothing was written to {self.log}"


# The supervisor


def supervise(home: Path) -> None:
    """Keep the server of `home` up while somebody uses it; ends with it. Only one per home does anything."""
    files = _Files(home)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with ExitStack() as exits:
        lock = exits.enter_context(files.supervisor_lock.open("ab"))
        if not _lock_within(lock, seconds=5 + _STOP_SECONDS):
            return  # another supervisor is at work
        users = exits.enter_context(files.users_lock.open("ab"))
        try:
            while _serve(files, lock=lock, users=users) == "died":
                pass
        except Exception as error:
            files.failure.write_text(str(error))
        finally:
            files.withdraw()


def _serve(files: _Files, *, lock: IO[bytes], users: IO[bytes]) -> str:
    """Run one server until it dies or nobody uses it."""
    ports = files.choose_ports()
    files.ensure_credentials()
    files.data.mkdir(exist_ok=True, mode=0o700)
    command = [find_weed(), *server_arguments(data=files.data, s3_config=files.s3_config, ports=ports)]
    with _running(command, log=files.log, lock=lock, ports=ports) as weed:
        endpoint = f"127.0.0.1:{ports['s3.port']}"
        if not _became_ready(weed, files=files, endpoint=endpoint):
            return "died"
        files.publish(endpoint=endpoint, pid=weed.pid)
        used = time.monotonic()
        while weed.poll() is None:
            time.sleep(_POLL_SECONDS)
            if not _try_lock(users):
                used = time.monotonic()
            elif time.monotonic() - used > IDLE_SECONDS:
                files.withdraw()
                return "unused"  # with the lock held: a new user waits until the server is gone, then starts another
            else:
                fcntl.flock(users, fcntl.LOCK_UN)
    return "died"


@contextmanager
def _running(
    command: list[str], *, log: Path, lock: IO[bytes], ports: Mapping[str, int]
) -> Iterator[subprocess.Popen[bytes]]:
    """The server, killed with us; it inherits our lock, so that no successor starts before it is really gone."""
    with log.open("wb") as output:
        os.fchmod(output.fileno(), 0o600)
        weed = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            pass_fds=(lock.fileno(),),
            preexec_fn=partial(_die_with, os.getpid()),
        )
    try:
        yield weed
    finally:
        weed.terminate()
        try:
            weed.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            weed.kill()
            weed.wait()
        for port in ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # it also listens there, under this fixed name
                left.unlink(missing_ok=True)


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we could ask
        os._exit(1)


def _became_ready(weed: subprocess.Popen[bytes], *, files: _Files, endpoint: str) -> bool:
    """Wait for the first answer; False: somebody took one of the ports in the meantime."""
    deadline = time.monotonic() + START_SECONDS
    while ask("GET", "/", endpoint=endpoint, keys=files.credentials())[0] != 200:
        if weed.poll() is not None:
            if "address already in use" in files.log_end():
                return False
            raise EmbeddedStoreError(f"weed ended with {weed.returncode} while it started; {files.log_end()}")
        if time.monotonic() > deadline:
            raise EmbeddedStoreError(f"weed did not answer within {START_SECONDS:.0f} s; {files.log_end()}")
        time.sleep(_POLL_SECONDS / 2)
    return True


# Locks and files


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _try_lock(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_within(lock: IO[bytes], *, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not _try_lock(lock):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _write_private(path: Path, document: object) -> None:
    """Whole or not at all, and for nobody else's eyes."""
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(document, file)
    part.replace(path)


def _detach_and_supervise(home: Path) -> None:
    """The caller waits for our first process only: the second is nobody's child, and never a zombie."""
    if os.fork() == 0:
        supervise(home)


if __name__ == "__main__":
    _detach_and_supervise(Path(sys.argv[1]))

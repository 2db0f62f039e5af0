"""Images as containerd takes them: an OCI archive written straight into `ctr images import`, layer by layer.

The usual way (`buildah push oci-archive:`) writes all 6 GB of the trainer's image again after every change of a line of
code, and keeps them a third time meanwhile. Here a layer that the receiver has already is left out, and none is stored.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_BUFFER = 1 << 20


@dataclass(frozen=True)
class Layer:
    """The changes of one layer, as overlayfs keeps them, and what they are as a tar file."""

    folder: Path
    digest: str
    size: int


@dataclass(frozen=True)
class Image:
    name: str
    layers: tuple[Layer, ...]
    config: dict[str, Any]
    """`config` of the OCI image configuration: Env, Entrypoint, User."""


def read_layer(folder: Path) -> Layer:
    """Reads all of it."""
    counter = _Counter()
    _write_tar(folder, counter)
    return Layer(folder, f"sha256:{counter.digest.hexdigest()}", counter.size)


def chain_ids(layers: Sequence[Layer]) -> list[str]:
    """What containerd calls the snapshot on top of each layer."""
    chain: list[str] = []
    for layer in layers:
        text = f"{chain[-1]} {layer.digest}" if chain else layer.digest
        chain.append(f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" if chain else layer.digest)
    return chain


def write_archive(image: Image, stream: IO[bytes], *, without: Iterable[str] = ()) -> None:
    """An OCI archive of the image, without the layers of these digests."""
    left_out = set(without)
    config = _encode(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": image.config,
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in image.layers]},
        }
    )
    layers = [{"mediaType": _LAYER, "digest": layer.digest, "size": layer.size} for layer in image.layers]
    manifest = _encode(
        {"schemaVersion": 2, "mediaType": _MANIFEST, "config": _descriptor(_CONFIG, config), "layers": layers}
    )
    entry = _descriptor(_MANIFEST, manifest) | {"annotations": {"io.containerd.image.name": image.name}}
    with tarfile.open(fileobj=stream, mode="w|", bufsize=_BUFFER, format=tarfile.GNU_FORMAT) as archive:
        _add(archive, "oci-layout", _encode({"imageLayoutVersion": "1.0.0"}))
        _add(archive, "index.json", _encode({"schemaVersion": 2, "manifests": [entry]}))
        for blob in (config, manifest):
            _add(archive, _blob_path(_digest(blob)), blob)
        for layer in image.layers:
            if layer.digest not in left_out:
                left_out.add(layer.digest)
                _add_layer(archive, layer)


def _add_layer(archive: tarfile.TarFile, layer: Layer) -> None:
    info = tarfile.TarInfo(_blob_path(layer.digest))
    info.size = layer.size
    archive.addfile(info)  # the header alone: what follows is written past it
    output = archive.fileobj
    assert output is not None
    _write_tar(layer.folder, output)
    padding = -layer.size % tarfile.BLOCKSIZE
    output.write(b"\0" * padding)
    archive.offset += layer.size + padding


def _write_tar(folder: Path, output: Any) -> None:
    """Always the same bytes for the same folder."""
    buffered = _Buffered(output)
    archive = tarfile.open(fileobj=buffered, mode="w", format=tarfile.GNU_FORMAT, copybufsize=_BUFFER)  # noqa: SIM115
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted([*folders, *files]):
            path = Path(place, name)
            _add_path(archive, path, str(path.relative_to(folder)))
    archive.close()
    buffered.flush()


def _add_path(archive: tarfile.TarFile, path: Path, name: str) -> None:
    found = path.lstat()
    if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:  # how overlayfs says: deleted
        archive.addfile(tarfile.TarInfo(str(Path(name).with_name(f".wh.{path.name}"))))
        return
    if stat.S_ISSOCK(found.st_mode):
        return
    info = archive.gettarinfo(str(path), name)
    info.mtime = int(info.mtime)
    info.uname = info.gname = ""
    if info.isreg():
        with path.open("rb") as file:
            archive.addfile(info, file)
    else:
        archive.addfile(info)
    if info.isdir() and _is_opaque(path):
        archive.addfile(tarfile.TarInfo(f"{name}/.wh..wh..opq"))


def _is_opaque(path: Path) -> bool:
    with suppress(OSError):
        return os.getxattr(path, "trusted.overlay.opaque") == b"y"
    return False


class _Buffered(io.RawIOBase):
    """tarfile writes headers of 512 bytes and asks for the position: collected here, counted here."""

    def __init__(self, output: Any) -> None:
        self._output, self._parts, self._waiting, self._position = output, [], 0, 0

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        self._waiting += len(data)
        self._position += len(data)
        if self._waiting >= _BUFFER:
            self.flush()
        return len(data)

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        if self._parts:
            self._output.write(b"".join(self._parts))
        self._parts, self._waiting = [], 0


class _Counter:
    def __init__(self) -> None:
        self.digest, self.size = hashlib.sha256(), 0

    def write(self, data: bytes) -> None:
        self.digest.update(data)
        self.size += len(data)


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def _blob_path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _descriptor(kind: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": _digest(data), "size": len(data)}


def _encode(document: object) -> bytes:
    return json.dumps(document, sort_keys=True).encode()

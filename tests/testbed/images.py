"""Images built from the real Dockerfiles without a registry, and given to the nodes.

Their base is made with debootstrap under the name that the Dockerfiles ask for. buildah keeps the layers, so that a
change of code builds and imports in a second; images whose content was built before are not built at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testbed import containers, oci
from testbed.paths import CACHE, ROOT, BedError

BASE = "docker.io/library/python:3.11-slim-bookworm"
"""Debian's own Python of that version; also what tests use for a pod with a shell."""
TARGETS = {"operator": None, "trainer": "cpu"}
_ALIASES = {"trainer": "docker.io/library/steadfast-trainer:cpu"}
"""What examples/ call it: always the image that was built last."""
_FOLDER = CACHE / "images"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_DEBIAN = ("--variant=minbase", "--include=python3,python3-venv,ca-certificates")


def build(name: str, say: Callable[[str], None]) -> str:
    """Build `images/<name>.Dockerfile` as the tree is now and import it; returns the image's name for manifests."""
    _ensure_base(say)
    with tempfile.TemporaryDirectory(prefix="context-", dir=_FOLDER) as folder:
        context = Path(folder)
        dockerfile = ROOT / "images" / f"{name}.Dockerfile"
        copied = re.findall(r"^COPY (.+) \S+$", dockerfile.read_text(), re.MULTILINE)
        parts = [context / part for parts in copied for part in parts.split()]
        for part in parts:
            _copy(ROOT / part.relative_to(context), part)
        libraries = _key((_find(BASE) or {})["id"], dockerfile, *(part for part in parts if part.suffix == ".lock"))
        code = _key(*(part for part in parts if part.suffix != ".lock"))
        reference = f"testbed.local/steadfast-{name}:{libraries}-{code}"
        if _find(reference) is None:
            _forget(name, but=f"{libraries}-")  # before the new layers need the room
            _build(reference, dockerfile=dockerfile, context=context, target=TARGETS[name], say=say)
    _import(reference, say)
    if name in _ALIASES:
        containers.tag_image(reference, _ALIASES[name])
    _forget(name, but=f"{libraries}-{code}")
    return reference


def add_base(say: Callable[[str], None]) -> None:
    _ensure_base(say)
    _import(BASE, say)


def _build(reference: str, *, dockerfile: Path, context: Path, target: str | None, say: Callable[[str], None]) -> None:
    started = time.monotonic()
    say(f"Building {reference}")
    _buildah("rm", "--all")  # what a killed build left, gigabytes perhaps
    options = ["--layers", "--pull-never", f"--file={dockerfile}", f"--tag={reference}"]
    _buildah("bud", *options, *([f"--target={target}"] if target else []), str(context))
    say(f"Built {reference} in {time.monotonic() - started:.0f} s")


def _import(reference: str, say: Callable[[str], None]) -> None:
    with containers.golden_containerd():
        known = reference in containers.images(containers.GOLDEN)
    if known and all(reference in containers.images(folder) for folder in containers.running_folders()):
        return
    started = time.monotonic()
    image = _read(reference)
    containers.import_image(image)
    size = sum(layer.size for layer in image.layers) / 1e9
    say(f"Imported {reference}, {size:.2f} GB, in {time.monotonic() - started:.1f} s")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy2(source, target)


def _forget(name: str, *, but: str) -> None:
    """Images of that name whose tag does not begin so; a layer that only they have goes with them."""
    repository = f"testbed.local/steadfast-{name}:"
    known = {each for image in _images() for each in image.get("names") or []}
    for each in sorted(known):
        if each.startswith(repository) and not each.startswith(repository + but):
            _buildah("rmi", "--force", each)
    with containers.golden_containerd():
        for each in containers.images(containers.GOLDEN):
            if each.startswith(repository) and not each.startswith(repository + but):
                containers.remove_image(each, containers.GOLDEN)


def _ensure_base(say: Callable[[str], None]) -> None:
    if _find(BASE) is not None:
        return
    _FOLDER.mkdir(parents=True, exist_ok=True)
    root = _FOLDER / "rootfs"
    if not (root / "etc/debian_version").exists() or (root / "debootstrap").exists():
        started = time.monotonic()
        say("Making the base image with debootstrap, about 2 minutes")
        shutil.rmtree(root, ignore_errors=True)
        command = ["debootstrap", *_DEBIAN, "bookworm", str(root)]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if result.returncode:
            raise BedError(f"debootstrap failed: {result.stdout.strip()[-500:]}")
        say(f"Made the base image in {time.monotonic() - started:.0f} s")
    shutil.copy2(_CERTIFICATES, root / "etc/ssl/certs/ca-certificates.crt")
    shutil.rmtree(root / "var/cache/apt", ignore_errors=True)
    shutil.rmtree(root / "var/lib/apt/lists", ignore_errors=True)
    container = _buildah("from", "scratch").strip()
    _buildah("copy", container, str(root), "/")
    inside = "/etc/ssl/certs/ca-certificates.crt"
    _buildah("config", f"--env=PIP_CERT={inside}", f"--env=SSL_CERT_FILE={inside}", "--cmd=python3", container)
    _buildah("commit", "--rm", container, BASE)
    shutil.rmtree(root)


# What buildah keeps


def _read(reference: str) -> oci.Image:
    found = _find(reference)
    if found is None:
        raise BedError(f"{reference} was not built")
    parents = {layer["id"]: layer.get("parent") for layer in _storage("overlay-layers/layers.json")}
    chain: list[str] = []
    top = found["layer"]
    while top:
        chain.insert(0, top)
        top = parents[top]
    config = json.loads(_buildah("inspect", "--type=image", reference))["OCIv1"]["config"]
    return oci.Image(reference, tuple(map(_layer, chain)), config)


def _layer(identity: str) -> oci.Layer:
    """Digest and size, which take a while for 6 GB, are kept: a layer never changes."""
    folder = _FOLDER / "storage" / "overlay" / identity / "diff"
    note = _FOLDER / "layers" / f"{identity}.json"
    if not note.exists():
        layer = oci.read_layer(folder)
        note.parent.mkdir(exist_ok=True)
        note.write_text(json.dumps({"digest": layer.digest, "size": layer.size}))
    return oci.Layer(folder, **json.loads(note.read_text()))


def _find(reference: str) -> dict[str, Any] | None:
    return next((image for image in _images() if reference in (image.get("names") or [])), None)


def _images() -> list[dict[str, Any]]:
    return _storage("overlay-images/images.json")


def _storage(name: str) -> list[dict[str, Any]]:
    path = _FOLDER / "storage" / name
    return json.loads(path.read_text()) if path.exists() else []


def _buildah(*arguments: str) -> str:
    temporary = _FOLDER / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    storage = [f"--root={_FOLDER / 'storage'}", f"--runroot={_FOLDER / 'run'}", "--storage-driver=overlay"]
    environment = os.environ | {"BUILDAH_ISOLATION": "chroot", "TMPDIR": str(temporary)}
    result = subprocess.run(
        ["buildah", *storage, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise BedError(f"buildah {arguments[0]} failed: {(result.stderr or result.stdout).strip()[-1500:]}")
    return result.stdout


def _key(*parts: Any) -> str:
    """A short hash of files and of what else an image is made of."""
    digest = hashlib.sha256()
    for part in parts:
        if not isinstance(part, Path):
            digest.update(json.dumps(part, sort_keys=True).encode())
            continue
        for path in sorted(path for path in [part, *part.rglob("*")] if path.is_file()):
            digest.update(str(path.relative_to(part)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:10]

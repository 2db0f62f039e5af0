"""The golden container store: images are imported once, every node gets a hard-linked copy in a second, at no space."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from testbed import oci
from testbed.paths import BIN, CACHE, NODES, BedError, node_folder, template, write
from testbed.processes import recorded, start, stop, wait_until

PAUSE_IMAGE = "testbed.local/pause:1"
GOLDEN = CACHE / "golden"
_LARGE = 500_000_000
"""Bytes of new layers that running nodes are not given: each would keep its own copy."""


def write_containerd_config(folder: Path, *, root: Path) -> Path:
    text = template("containerd.toml", root=root, folder=folder, pause=PAUSE_IMAGE)
    return write(folder / "containerd.toml", text)


def clone_golden(target: Path) -> None:
    """Hard links, but real copies of what containerd writes in place: its databases.

    Raises:
        BedError: the cache is on another disk than the state.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    source = GOLDEN / "containerd"
    result = subprocess.run(["cp", "-al", str(source), str(target)], capture_output=True, text=True, check=False)
    if result.returncode:
        raise BedError(f"nodes are hard links of {source}: {result.stderr.strip().splitlines()[-1]}")
    for database in source.rglob("*.db"):
        copy = target / database.relative_to(source)
        copy.unlink()
        shutil.copy2(database, copy)


def import_image(image: oci.Image) -> None:
    """Into the golden store and every running node, which pods then name with `imagePullPolicy: Never`.

    Raises:
        BedError: nodes are running and the image is large: start them anew.
    """
    with golden_containerd():
        _import(image, GOLDEN)
        _drop_layer_files(image, GOLDEN)
    for folder in running_folders():
        if sum(layer.size for layer in _missing(image, folder)) > _LARGE:
            raise BedError(f"{image.name} is in the golden store; running nodes get it by cluster-down, cluster-up")
        _import(image, folder)
        _drop_layer_files(image, folder)


def running_folders() -> list[Path]:
    """Folders of the nodes whose containerd runs."""
    return [node_folder(node) for node in NODES if (kept := recorded(f"{node}-containerd")) and kept.runs]


def add_pause_image() -> None:
    with golden_containerd():
        if PAUSE_IMAGE in images(GOLDEN):
            return
        folder = GOLDEN / "pause"
        folder.mkdir(exist_ok=True)
        shutil.copy2((BIN / "pause").resolve(), folder / "pause")
        layer = oci.read_layer(folder)
        _import(oci.Image(PAUSE_IMAGE, (layer,), {"Entrypoint": ["/pause"], "User": "65535:65535"}), GOLDEN)


@contextmanager
def golden_containerd() -> Iterator[None]:
    """The template's containerd, running for as long as something is put into it; may be nested."""
    if (outer := recorded("golden-containerd")) and outer.runs:
        yield
        return
    GOLDEN.mkdir(parents=True, exist_ok=True)
    config = write_containerd_config(GOLDEN, root=GOLDEN / "containerd")
    process = start("golden-containerd", ["containerd", f"--config={config}"], namespace=None)
    try:
        wait_until(
            "the golden containerd answers", lambda: not _ctr(GOLDEN, "version").returncode, seconds=30, process=process
        )
        yield
    finally:
        stop("golden-containerd")


def images(folder: Path) -> list[str]:
    """Names of the images that the containerd of a node's folder has."""
    return _ctr(folder, "images", "list", "--quiet").stdout.decode().split()


def tag_image(name: str, alias: str) -> None:
    """Another name for an image, in the golden store and on every running node; taken from whichever had it."""
    with golden_containerd():
        for folder in (GOLDEN, *running_folders()):
            _ctr(folder, "images", "tag", "--force", name, alias)


def remove_image(name: str, folder: Path) -> None:
    """Also under the name that containerd itself gave it, which would keep it, unless others mean the same image."""
    lines = _ctr(folder, "images", "list").stdout.decode().splitlines()
    digests = {line.split()[0]: line.split()[2] for line in lines[1:]}
    same = [each for each, digest in digests.items() if digest == digests.get(name)]
    given = [each for each in same if not each.startswith("sha256:")]
    _ctr(folder, "images", "remove", "--sync", *(same if given == [name] else [name]))


def _import(image: oci.Image, folder: Path) -> None:
    missing = {layer.digest for layer in _missing(image, folder)}
    present = [layer.digest for layer in image.layers if layer.digest not in missing]
    command = [*_ctr_command(folder), "images", "import", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        broken = None
        try:
            oci.write_archive(image, process.stdin, without=present)
            process.stdin.close()
        except BrokenPipeError as error:
            broken = error
        output = process.stdout.read().decode(errors="replace")
    if process.returncode or broken:
        raise BedError(f"importing {image.name} failed: {output.strip()[-500:]}")


def _missing(image: oci.Image, folder: Path) -> list[oci.Layer]:
    found = set(_ctr(folder, "snapshots", "list").stdout.decode().split())
    chain = oci.chain_ids(image.layers)
    return [layer for layer, name in zip(image.layers, chain, strict=True) if name not in found]


def _drop_layer_files(image: oci.Image, folder: Path) -> None:
    """Unpacked, a layer's tar file is a second copy that nobody reads again."""
    for layer in image.layers:
        _ctr(folder, "content", "remove", layer.digest)
    # Files go with the next garbage collection, which the end of a lease can be told to wait for.
    lease = _ctr(folder, "leases", "create").stdout.decode().strip()
    _ctr(folder, "leases", "delete", "--sync", lease)


def _ctr_command(folder: Path) -> list[str]:
    return ["ctr", f"--address={folder / 'containerd.sock'}", "--namespace=k8s.io"]


def _ctr(folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*_ctr_command(folder), *arguments], capture_output=True, check=False)

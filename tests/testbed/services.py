"""What a cluster has beside it: an S3 server that pods reach, and a Prometheus that finds pods.

The S3 server has a network namespace of its own, so that a test can pull its cable.
"""

from __future__ import annotations

import json
import secrets
import urllib.request
from pathlib import Path

from steadfast_cli.weed import PORTS, REGION, Keys, ask, find_weed, server_arguments
from testbed import network
from testbed.paths import BIN, KUBECONFIG, STATE, template, write
from testbed.processes import start, stop, wait_until

NAMES = ("store", "prometheus")
STORE_VARIABLES = ("S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
BUCKETS = ("corpora", "runs")
PROMETHEUS_URL = f"http://{network.CONTROL_ADDRESS}:9090"
_FIRST_PORT = 18880
_PORTS = {name: _FIRST_PORT + number for number, name in enumerate(PORTS)}
_STORE = f"{network.STORE_ADDRESS}:{_PORTS['s3.port']}"
_STORE_FOLDER = STATE / "store"


def up() -> None:
    start_store()
    start_prometheus()
    for bucket in BUCKETS:
        wait_until(f"the bucket {bucket} is there", lambda bucket=bucket: has_bucket(bucket), seconds=30)


def store_environment() -> dict[str, str]:
    """What an S3 client needs, in a pod or on this machine."""
    keys = _keys()
    return {
        "S3_ENDPOINT_URL": f"http://{_STORE}",
        "AWS_ACCESS_KEY_ID": keys.access_key,
        "AWS_SECRET_ACCESS_KEY": keys.secret_key,
        "AWS_REGION": REGION,
    }


def start_store() -> None:
    """Also after `stop_store`: the objects are still there."""
    data = _STORE_FOLDER / "data"
    data.mkdir(parents=True, exist_ok=True)
    # Its own name for itself is the address that the kernel lets it bind; everything else as in the product.
    arguments = server_arguments(data=data, s3_config=_s3_config(), ports=_PORTS)
    arguments = [each.replace("=127.0.0.1", f"={network.STORE_ADDRESS}") for each in arguments]
    process = start("store", [find_weed(), *arguments], namespace=network.STORE)
    ready = lambda: ask("GET", "/", endpoint=_STORE, keys=_keys())[0] == 200  # noqa: E731
    wait_until("the object store answers", ready, seconds=30, process=process)


def stop_store() -> None:
    stop("store", seconds=1.0)
    for port in _PORTS.values():
        for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # it also listens there, under this fixed name
            left.unlink(missing_ok=True)


def cut_store() -> None:
    """Pull its cable: requests hang, as in a real outage."""
    network.set_link(network.STORE, "down")


def heal_store() -> None:
    network.set_link(network.STORE, "up")


def start_prometheus() -> None:
    config = write(STATE / "prometheus" / "prometheus.yaml", template("prometheus.yaml", kubeconfig=KUBECONFIG))
    flags = [
        f"--config.file={config}",
        f"--storage.tsdb.path={STATE / 'prometheus' / 'data'}",
        "--storage.tsdb.retention.time=1d",
        "--web.listen-address=:9090",
    ]
    process = start("prometheus", [BIN / "prometheus", *flags], namespace=network.CONTROL)
    wait_until("Prometheus is ready", _prometheus_is_ready, seconds=60, process=process)


def _prometheus_is_ready() -> bool:
    try:
        with urllib.request.urlopen(f"{PROMETHEUS_URL}/-/ready", timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def has_bucket(name: str) -> bool:
    status, code = ask("PUT", f"/{name}", endpoint=_STORE, keys=_keys())
    return status == 200 or code in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}


def _keys() -> Keys:
    found = json.loads(_s3_config().read_text())["identities"][0]["credentials"][0]
    return Keys(found["accessKey"], found["secretKey"])


def _s3_config() -> Path:
    path = _STORE_FOLDER / "s3.json"
    if not path.exists():
        keys = {"accessKey": secrets.token_hex(10).upper(), "secretKey": secrets.token_urlsafe(30)}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "testbed", "credentials": [keys], "actions": actions}
        write(path, json.dumps({"identities": [identity]}), 0o600)
    return path

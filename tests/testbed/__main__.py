"""Commands of the test bed: `python -m testbed up`."""

from __future__ import annotations

import argparse
import sys
import time

from testbed import cluster, images, nodes, peers
from testbed.paths import KUBECONFIG, NODES, BedError

_STARTED = time.monotonic()


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        options.action(options)
    except BedError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


def say(message: str) -> None:
    print(f"{time.monotonic() - _STARTED:6.1f} s  {message}", flush=True)


def _up(_: argparse.Namespace) -> None:
    if not cluster.up(say):
        print("The test bed is up already.")
    print(f"export STEADFAST_KUBECONFIG={KUBECONFIG}")


def _down(_: argparse.Namespace) -> None:
    cluster.down(say)


def _status(_: argparse.Namespace) -> None:
    rows = cluster.rows()
    for name, state, detail in rows:
        print(f"{name:32} {state:10} {detail}")


def _image(options: argparse.Namespace) -> None:
    print(cluster.add_image(options.name, say))


def _peers(options: argparse.Namespace) -> None:
    peers.up(say) if options.state == "up" else peers.down()


def _fault(options: argparse.Namespace) -> None:
    match options.fault:
        case "partition":
            nodes.partition(options.node)
        case "heal":
            nodes.heal(options.node)
        case "stop-kubelet":
            nodes.stop_kubelet(options.node)
        case "start-kubelet":
            nodes.start_kubelet(options.node)
        case "crash":
            nodes.crash(options.node)
        case "break-gpu" | "mend-gpu":
            nodes.set_gpu_health(options.node, options.gpu, healthy=options.fault == "mend-gpu")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="testbed", description="A real Kubernetes of three nodes on this machine.")
    commands = parser.add_subparsers(required=True)
    for name, action, text in (
        ("up", _up, "start what does not run"),
        ("down", _down, "end and delete all of it, the cache stays"),
        ("status", _status, "what runs, what it takes, where it is"),
    ):
        commands.add_parser(name, help=text).set_defaults(action=action)
    image = commands.add_parser("image", help="build an image as the tree is now, give it to the nodes, print its name")
    image.add_argument("name", choices=sorted(images.TARGETS))
    image.set_defaults(action=_image)
    beside = commands.add_parser("peers", help="controllers to measure against, and a DNS; built the first time")
    beside.add_argument("state", choices=["up", "down"])
    beside.set_defaults(action=_peers)
    fault = commands.add_parser("fault", help="do something to a node")
    fault.add_argument(
        "fault",
        choices=["partition", "heal", "stop-kubelet", "start-kubelet", "crash", "break-gpu", "mend-gpu"],
    )
    fault.add_argument("node", choices=NODES)
    fault.add_argument("--gpu", type=int, default=0, choices=range(nodes.GPUS))
    fault.set_defaults(action=_fault)
    return parser


if __name__ == "__main__":
    sys.exit(main())

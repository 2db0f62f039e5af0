"""From `kubectl apply` to the first optimizer step of the whole gang, in a cluster whose nodes have the image."""

from __future__ import annotations

import sys

from bench.cluster_job import load, place, repeats, running, say
from bench.report import publish, row
from bench.systems import SYSTEMS

RUNS = 5


def main(only: list[str]) -> None:
    """All systems, or those named, in turns, so that the machine's mood meets all."""
    seconds: dict[str, list[float]] = {name: [] for name in SYSTEMS if not only or name in only}
    with place() as at:
        before = load()
        for number in range(repeats(RUNS)):
            for name, values in seconds.items():
                with running(SYSTEMS[name], f"{name}-startup-{number}", at) as (applied, first):
                    values.append(first.at - applied)
                say(f"{name} {number + 1}: {values[-1]:.2f} s")
    rows = [row("apply-to-first-step", name, values) for name, values in seconds.items()]
    publish("startup", rows, note=f"load {before} before, {load()} after")


if __name__ == "__main__":
    main(sys.argv[1:])

"""The promise: whatever is killed, whenever, the run ends with the same weights, having seen every sample once."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from local.conftest import LocalRun, nano
from oracle import (
    assert_every_sample_once,
    assert_same_tensors,
    assert_unbroken_chain,
    newest_checkpoint,
    tensors_of,
)
from steadfast_cli.embedded_store import EmbeddedStore
from steadfast_operator.api.resolve import training_config

pytestmark = [pytest.mark.local, pytest.mark.timeout(1200)]

STEPS = 600
KILLS = ["rank", "worker", "runtime", "rank", "worker", "store", "rank", "worker", "runtime", "rank"]
STORE_GONE_SECONDS = 20


def test_ten_random_kills_end_with_the_weights_of_an_undisturbed_run(
    local_run: Callable[..., LocalRun], nano_corpus: Mapping[str, str], embedded_store: EmbeddedStore
) -> None:
    undisturbed = local_run(nano("undisturbed", **{"spec.train.steps": STEPS}))
    assert undisturbed.finish(seconds=300) == 0, undisturbed.output
    seed = int(os.environ.get("STEADFAST_TEST_SEED", time.time_ns() % 10**6))
    print(f"STEADFAST_TEST_SEED={seed}")

    disturbed = local_run(nano("disturbed", **{"spec.train.steps": STEPS}))
    disturb(disturbed, embedded_store, randomly=random.Random(seed))
    assert disturbed.wait(300) == 0, disturbed.output

    status = disturbed.job().status
    assert status.attempt >= len([kind for kind in KILLS if kind != "store"])
    expected_store, expected = newest_checkpoint("s3://runs/default/undisturbed", environ=nano_corpus)
    actual_store, actual = newest_checkpoint("s3://runs/default/disturbed", environ=nano_corpus)
    assert actual.step == expected.step == STEPS
    assert actual.data == expected.data
    training = training_config(disturbed.job())
    assert_every_sample_once(actual, training=training, cache=disturbed.home / "cache", environ=nano_corpus)
    assert_same_tensors(tensors_of(actual_store, actual), tensors_of(expected_store, expected))
    assert_unbroken_chain(actual_store, actual)


def disturb(run: LocalRun, store: EmbeddedStore, *, randomly: random.Random) -> None:
    """Kill ten things, one after another, each at a random moment of its attempt: start-up, steps or uploads."""
    kills = list(KILLS)
    randomly.shuffle(kills)
    run.start()
    attempt = 0
    for kind in kills:
        steps = randomly.choice([0, 0, *range(1, 40)])
        run.wait_for_steps(steps, attempt=attempt)
        time.sleep(randomly.random() * 0.5)
        attempt = run.job().status.attempt
        print(f"attempt {attempt}, after {steps} steps: kill {kind}")
        if kind == "rank":
            run.kill_rank(randomly.randrange(4))
        elif kind == "worker":
            run.kill_worker(randomly.randrange(2))
        elif kind == "runtime":
            run.kill_runtime()
            run.start()
        else:
            take_away(store, seconds=STORE_GONE_SECONDS)
            attempt -= 1  # it goes on without a restart
    assert not run.ended


def take_away(store: EmbeddedStore, *, seconds: float) -> None:
    endpoint = json.loads((Path(store.home) / "store" / "endpoint.json").read_text())
    for pid in (endpoint["supervisor"], endpoint["pid"]):
        os.kill(pid, signal.SIGKILL)
    time.sleep(seconds)
    store.ensure_running()

"""Whatever happens, in whatever order: what must always hold."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from builders import a_job
from fakes.cluster import Fault, Trace, a_world, run_to_rest
from steadfast_contract.exits import FailureClass
from steadfast_operator.core.actions import CreateRecord, CreateWorker, DeleteWorkers
from steadfast_operator.core.decide import decide
from steadfast_operator.core.observation import Observation
from steadfast_operator.core.restarts import NOT_FAILURES, user_restarts

TAKEN = ["evict", "strand", *NOT_FAILURES]
"""Spend no budget: a job from which every attempt is taken goes on for ever, and is meant to."""
BROKEN = ["vanish", "hang", "silence", *(kind for kind in FailureClass if kind not in NOT_FAILURES)]
MAX_RESTARTS = 2

AFTER = [0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 11.5]


def faults(kinds: list[str], attempts: list[int | None]) -> st.SearchStrategy[Fault]:
    return st.builds(
        Fault,
        kind=st.sampled_from(kinds),
        after=st.sampled_from(AFTER),
        node_rank=st.integers(0, 2),
        attempt=st.sampled_from(attempts),
    )


worker_faults = faults(BROKEN, [1, 1, 2, 3, None]) | faults(TAKEN, [1, 2, 3])
world_faults = st.builds(
    Fault,
    kind=st.sampled_from(["suspend", "resume", "outage"]),
    after=st.integers(1, 120).map(float),
    attempt=st.just(0),
)
kill_points = st.lists(st.tuples(st.integers(1, 80), st.booleans()), max_size=4, unique_by=lambda k: k[0])


def live(faults: list[Fault], kills: list[tuple[int, bool]]) -> Trace:
    tolerance = {"maxRestarts": MAX_RESTARTS, "hang": {"initSeconds": 60, "firstStepSeconds": 60}}
    job = a_job(**{"spec.workers": 3, "spec.train.globalBatchTokens": 288, "spec.faultTolerance": tolerance})
    return asyncio.run(run_to_rest(a_world(job, *faults), kills=sorted(kills)))


@settings(max_examples=100, deadline=None)
@given(st.lists(worker_faults, max_size=5), st.lists(world_faults, max_size=3), kill_points)
@example([Fault(kind="strand", after=5, node_rank=1)], [], [])
@example([Fault(kind="vanish", after=5)], [Fault(kind="suspend", after=7, attempt=0)], [(7, True)])
@example([], [Fault(kind="suspend", after=8, attempt=0), Fault(kind="resume", after=9, attempt=0)], [])
def test_every_life_ends_well(
    of_workers: list[Fault], of_the_world: list[Fault], kills: list[tuple[int, bool]]
) -> None:
    trace = live([*of_workers, *of_the_world], kills)
    cluster, status = trace.world.cluster, trace.status

    # Workers of two attempts were never created together, none beside a living old one, no serial twice.
    assert cluster.violations == []
    # It ended, for a reason that a person can read.
    assert status.state in ("Succeeded", "Failed", "Suspended")
    assert all(c.reason and c.message for c in status.conditions)
    # Attempts were strictly increasing, each in a record of its own
    assert cluster.attempts_seen == sorted(cluster.attempts_seen)
    assert all(after_ - before in (0, 1) for before, after_ in pairwise(cluster.attempts_seen))
    # (an operator that died may have left the record of the next one behind, to be adopted).
    assert sorted(cluster.records) in (list(range(1, status.attempt + 1)), list(range(1, status.attempt + 2)))
    serials = [serial for number in range(1, status.attempt + 1) for serial in cluster.records[number].serials]
    assert serials == list(range(status.next_serial))
    # Nobody's budget was exceeded.
    assert user_restarts(status.restarts) <= MAX_RESTARTS
    # At rest there is nothing to do, and nothing to write.
    seen, last = trace.decisions[-1]
    assert last.actions == ()
    assert cluster.job is not None
    again = decide(replace(seen, job=cluster.job))
    assert (again.actions, again.status) == ((), status)


@settings(max_examples=30, deadline=None)
@given(st.lists(worker_faults, max_size=4), st.lists(world_faults, max_size=2))
def test_every_decision_is_one_phase_and_says_when_to_look_again(
    of_workers: list[Fault], of_the_world: list[Fault]
) -> None:
    for seen, decision in live([*of_workers, *of_the_world], []).decisions:
        kinds = {type(action) for action in decision.actions} & {CreateRecord, CreateWorker, DeleteWorkers}
        assert len(kinds) <= 1
        assert decision == decide(seen)
        assert decision.message
        assert decision.wake_after_seconds is not None or resting(seen)


def resting(seen: Observation) -> bool:
    ended = any(c.type in ("Succeeded", "Failed") and c.status == "True" for c in seen.status.conditions)
    return ended or seen.job.spec.suspend

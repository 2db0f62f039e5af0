"""The operator is killed at each of its writes, before and after the write takes effect, and comes back."""

from __future__ import annotations

from typing import Any

import pytest

from builders import a_job
from fakes.cluster import Fault, World, a_world, run_to_rest

LIVES = {
    "training": (),
    "a failure": (Fault(kind="GpuFault", after=7, node_rank=1),),
    "two failures": (Fault(kind="UserError", after=7), Fault(kind="vanish", after=5, node_rank=1, attempt=2)),
    "an eviction": (Fault(kind="evict", after=7, node_rank=2),),
    "a stuck worker": (Fault(kind="strand", after=7, node_rank=1),),
    "a stop": (Fault(kind="DataError", after=7),),
    "a suspension": (Fault(kind="suspend", after=8, attempt=0), Fault(kind="resume", after=60, attempt=0)),
}


def fresh(life: str) -> World:
    return a_world(a_job(**{"spec.workers": 3, "spec.train.globalBatchTokens": 288}), *LIVES[life])


def end(world: World) -> dict[str, Any]:
    """What must not depend on the operator's own life."""
    assert world.cluster.job is not None
    status = world.cluster.job.status
    return {
        "state": status.state,
        "attempt": status.attempt,
        "serials": status.next_serial,
        "restarts": (status.restarts.total, status.restarts.by_class),
        "outcomes": [(a.reason, a.outcome) for a in status.attempts],
        "records": [(r.number, r.serials, r.reason) for r in world.cluster.records.values()],
        "created": sorted(c.serial for c in world.cluster.created),
        "violations": world.cluster.violations,
    }


@pytest.mark.parametrize("life", LIVES)
async def test_the_end_is_the_same_wherever_the_operator_dies(life: str) -> None:
    undisturbed = fresh(life)
    await run_to_rest(undisturbed)
    expected = end(undisturbed)
    assert expected["violations"] == []
    for write in range(1, undisturbed.cluster.writes + 1):
        for takes_effect in (False, True):
            world = fresh(life)
            await run_to_rest(world, kills=[(write, takes_effect)])
            assert end(world) == expected, f"killed at write {write}, takes effect: {takes_effect}"


@pytest.mark.parametrize("life", LIVES)
async def test_the_end_is_the_same_if_the_operator_dies_all_the_time(life: str) -> None:
    undisturbed = fresh(life)
    await run_to_rest(undisturbed)
    world = fresh(life)
    await run_to_rest(world, kills=[(write, write % 2 == 0) for write in range(2, 60, 3)])
    assert end(world) == end(undisturbed)

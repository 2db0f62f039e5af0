"""The writer: its order, and what it does with a record that exists already."""

from __future__ import annotations

import pytest

from builders import a_job
from core_builders import NOW, a_gang, a_look, a_record, a_start
from fakes.cluster import FakeCluster, OperatorKilled
from steadfast_operator.core.actions import Decision
from steadfast_operator.core.decide import decide
from steadfast_operator.core.observation import AttemptRecord
from steadfast_operator.shell.execute import execute
from steadfast_operator.shell.ports import ClusterError, ConflictError


def first_decision() -> Decision:
    return decide(a_look())


async def test_the_record_is_written_before_the_status() -> None:
    cluster = FakeCluster(a_look().job)
    cluster.kill_at = (2, False)
    with pytest.raises(OperatorKilled):
        await execute(cluster, a_look().job, first_decision())
    assert cluster.records == {1: a_record(created_at=NOW)}
    assert cluster.job == a_look().job


async def test_a_record_that_exists_is_adopted() -> None:
    cluster = FakeCluster(a_look().job)
    cluster.records[1] = a_record(3, reason="Resumed")
    await execute(cluster, a_look().job, first_decision())
    assert cluster.job is not None
    status = cluster.job.status
    assert (status.next_serial, status.attempts[-1].reason) == (3, "Resumed")
    assert cluster.records[1] == a_record(3, reason="Resumed")


async def test_a_record_that_exists_and_cannot_be_read_is_no_ground_to_act() -> None:
    class Forgetful(FakeCluster):
        async def fetch_record(self, number: int) -> AttemptRecord | None:
            return None

    cluster = Forgetful(a_look().job)
    cluster.records[1] = a_record()
    with pytest.raises(ClusterError, match="attempt 1"):
        await execute(cluster, a_look().job, first_decision())
    assert cluster.job == a_look().job


async def test_an_unchanged_status_is_not_written() -> None:
    cluster = FakeCluster(a_gang().job)
    await execute(cluster, a_gang().job, decide(a_gang()))
    assert cluster.writes == 0


async def test_nothing_is_done_on_the_ground_of_an_old_job() -> None:
    old = a_start()
    cluster = FakeCluster(a_job())
    decision = decide(old)
    changed = Decision(**vars(decision) | {"status": decision.status.model_copy(update={"state": "new"})})
    with pytest.raises(ConflictError):
        await execute(cluster, old.job, changed)
    assert cluster.created == []


async def test_workers_are_out_of_strangers_reach_before_they_exist() -> None:
    seen = a_start()
    cluster = FakeCluster(seen.job)
    cluster.records[1] = a_record()
    cluster.kill_at = (1, False)
    with pytest.raises(OperatorKilled):
        await execute(cluster, seen.job, decide(seen))
    assert cluster.created == []
    await execute(cluster, seen.job, decide(seen))
    assert (cluster.isolated, len(cluster.created), cluster.violations) == (True, 1, [])


async def test_a_worker_that_exists_is_no_error() -> None:
    seen = a_start()
    cluster = FakeCluster(seen.job)
    cluster.records[1] = a_record()
    await execute(cluster, seen.job, decide(seen))
    await execute(cluster, seen.job, decide(seen))
    assert [c.serial for c in cluster.created] == [0]

"""What the operator's metrics say after decisions."""

from __future__ import annotations

import re

from builders import a_job
from core_builders import a_gang, failed, settled
from fakes.cluster import Fault, a_world, run_to_rest
from steadfast_contract.exits import FailureClass
from steadfast_operator.core.decide import decide
from steadfast_operator.core.observation import Observation
from steadfast_operator.shell.metrics import Metrics

JOB = "research/moe"


def samples(metrics: Metrics) -> dict[str, float]:
    found = re.findall(r"^(steadfast\S+?)(\{\S*\})? (\S+)$", metrics.to_text().decode(), re.MULTILINE)
    return {name + labels: float(value) for name, labels, value in found if not name.endswith("_created")}


def noted(*looks: Observation) -> dict[str, float]:
    metrics = Metrics()
    for seen in looks:
        metrics.note(seen, decide(seen))
    return samples(metrics)


def test_a_training_job_shows_its_progress() -> None:
    told = noted(a_gang())
    assert told['steadfast_jobs{state="Running"}'] == 1
    assert told['steadfast_decisions_total{reason="Training"}'] == 1
    assert told[f'steadfast_job_step{{training_job="{JOB}"}}'] == 4
    assert told[f'steadfast_job_loss{{training_job="{JOB}"}}'] == 2.5
    assert told[f'steadfast_job_tokens_per_second{{training_job="{JOB}"}}'] == 256


def test_a_failure_is_counted_once_by_its_class() -> None:
    broken = failed(a_gang(), 1, FailureClass.GPU_FAULT)
    told = noted(broken, settled(broken))
    assert told[f'steadfast_restarts_total{{class="GpuFault",training_job="{JOB}"}}'] == 1
    assert (told['steadfast_jobs{state="Restarting"}'], told.get('steadfast_jobs{state="Running"}', 0)) == (1, 0)


def test_a_job_that_is_gone_leaves_no_series() -> None:
    metrics = Metrics()
    broken = failed(a_gang(), 1, FailureClass.GPU_FAULT)
    metrics.note(broken, decide(broken))
    metrics.forget(JOB)
    metrics.forget(JOB)
    told = samples(metrics)
    assert not [name for name in told if JOB in name]
    assert told['steadfast_jobs{state="Restarting"}'] == 0


async def recoveries(*faults: Fault) -> list[float]:
    """Count and sum of recoveries of a whole life."""
    metrics = Metrics()
    trace = await run_to_rest(a_world(a_job(), *faults))
    for seen, decision in trace.decisions:
        metrics.note(seen, decision)
    told = samples(metrics)
    return [told["steadfast_recovery_seconds_count"], told["steadfast_recovery_seconds_sum"]]


async def test_a_recovery_lasts_from_the_failure_to_the_next_training() -> None:
    assert await recoveries() == [0, 0]
    count, seconds = await recoveries(Fault(kind="GpuFault", after=6))
    assert count == 1
    assert 1 < seconds < 15


async def test_an_eviction_is_recovered_from_as_well() -> None:
    count, seconds = await recoveries(Fault(kind="evict", after=6))
    assert count == 1
    assert 1 < seconds < 80


async def test_a_suspension_is_no_recovery() -> None:
    suspended = Fault(kind="suspend", after=5, attempt=0), Fault(kind="resume", after=20, attempt=0)
    assert (await recoveries(*suspended))[0] == 0

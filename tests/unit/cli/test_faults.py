"""Faults on demand: the grammar, and what is hit when."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from builders import a_job
from steadfast_cli import faults
from steadfast_cli.faults import GRAMMAR, Fault, inject, parse_fault
from steadfast_contract.folder import pulse_path
from steadfast_contract.heartbeat import PULSE_BYTES, Pulse, pack_pulse
from steadfast_operator.shell.local import LocalCluster

A_JOB = a_job(**{"spec.ranksPerWorker": 2})
"""Two workers of two ranks, ten steps."""


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        pytest.param("kill worker 1 at step 4", ("kill", "worker", 1, 4), id="the last worker"),
        pytest.param("kill rank 3 at step 1", ("kill", "rank", 3, 1), id="the last rank, after the first step"),
        pytest.param("freeze worker 0 at step 9", ("freeze", "worker", 0, 9), id="a worker, before the last step"),
        pytest.param("freeze rank 0 at step 4", ("freeze", "rank", 0, 4), id="a frozen rank"),
        pytest.param("  kill  worker 1\n at step 4 ", ("kill", "worker", 1, 4), id="any space between the words"),
    ],
)
def test_a_fault_may_be(text: str, fault: tuple[str, str, int, int]) -> None:
    parsed = parse_fault(text, job=A_JOB, steps=10)
    assert (parsed.verb, parsed.target, parsed.number, parsed.step) == fault
    assert str(parsed) == " ".join(text.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", GRAMMAR, id="empty"),
        pytest.param("kill", GRAMMAR, id="half a sentence"),
        pytest.param("hurt worker 1 at step 4", GRAMMAR, id="an unknown verb"),
        pytest.param("kill node 1 at step 4", GRAMMAR, id="an unknown target"),
        pytest.param("kill worker -1 at step 4", GRAMMAR, id="a negative number"),
        pytest.param("kill worker one at step 4", GRAMMAR, id="a number in words"),
        pytest.param("kill worker 1 at step 4.5", GRAMMAR, id="half a step"),
        pytest.param("kill worker 1 at step 4 please", GRAMMAR, id="more than a sentence"),
        pytest.param("Kill worker 1 at step 4", GRAMMAR, id="a capital letter"),
        pytest.param("kill worker 2 at step 4", "the job has 2 workers, numbered from 0", id="a worker too many"),
        pytest.param("kill rank 4 at step 4", "the job has 4 ranks, numbered from 0", id="a rank too many"),
        pytest.param("kill worker 1 at step 0", "10 steps, a fault happens after one of 1 to 9", id="before any step"),
        pytest.param("kill worker 1 at step 10", "10 steps, a fault happens after one of 1 to 9", id="after the end"),
    ],
)
def test_a_fault_is_refused_that_is(text: str, message: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_fault(text, job=A_JOB, steps=10)
    assert str(refused.value).startswith(repr(text))
    assert message in str(refused.value)


@dataclass
class Gang:
    """Two workers of two ranks that stand where a test says; pids 10 and 20 are agents, 11, 12, 21 and 22 ranks."""

    folder: Path
    attempt: int = 1
    hits: list[tuple[int, int]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    ranks_per_worker: int = 2
    pids_known: bool = True

    def member(self, node_rank: int, *, attempt: int) -> object:
        if attempt != self.attempt:
            return None
        agent = 10 * (node_rank + 1)
        status = SimpleNamespace(pids=(agent + 1, agent + 2) if self.pids_known else ())
        return SimpleNamespace(folder=self.folder, process=SimpleNamespace(pid=agent), status=status)

    def reaches(self, step: int, *, first_step_at: float = 1.0) -> None:
        page = bytearray(PULSE_BYTES)
        pack_pulse(Pulse(step=step, first_step_at=first_step_at), into=memoryview(page), sequence=0)
        pulse_path(str(self.folder), local_rank=0).write_bytes(page)

    def inject(self, *texts: str) -> asyncio.Task[None]:
        parsed = [parse_fault(text, job=A_JOB, steps=10) for text in texts]
        injecting = inject(parsed, cast(LocalCluster, self), attempt=lambda: 1, on_fault=self._on_fault)
        return asyncio.create_task(asyncio.wait_for(injecting, timeout=5))

    def _on_fault(self, fault: Fault, at: float) -> None:
        assert at > 0
        self.told.append(str(fault))


@pytest.fixture
def gang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gang:
    gang = Gang(tmp_path)
    monkeypatch.setattr(faults, "send_signal", lambda pid, number: gang.hits.append((pid, number)))
    monkeypatch.setattr(faults, "POLL_SECONDS", 0)
    return gang


async def looks(count: int = 5) -> None:
    """Let the injection look a few times."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("text", "hit"),
    [
        pytest.param("kill worker 1 at step 4", (20, signal.SIGKILL), id="a worker is its agent"),
        pytest.param("freeze worker 0 at step 4", (10, signal.SIGSTOP), id="a frozen worker is stopped"),
        pytest.param("kill rank 0 at step 4", (11, signal.SIGKILL), id="the first rank of the first worker"),
        pytest.param("kill rank 3 at step 4", (22, signal.SIGKILL), id="the last rank of the last worker"),
        pytest.param("freeze rank 2 at step 4", (21, signal.SIGSTOP), id="a frozen rank is stopped"),
    ],
)
async def test_what_is_hit(gang: Gang, text: str, hit: tuple[int, int]) -> None:
    gang.reaches(4)
    await gang.inject(text)
    assert (gang.hits, gang.told) == ([hit], [text])


async def test_faults_happen_in_the_order_of_their_steps(gang: Gang) -> None:
    injecting = gang.inject("kill worker 1 at step 6", "kill worker 0 at step 3", "kill rank 1 at step 3")
    for step, hits in ((2, []), (3, [10, 12]), (5, [10, 12]), (6, [10, 12, 20])):
        gang.reaches(step)
        await looks()
        assert [pid for pid, _ in gang.hits] == hits, f"at step {step}"
    await injecting


@pytest.mark.parametrize(
    "state",
    [
        pytest.param({"attempt": 2}, id="while no worker of the attempt runs"),
        pytest.param({"pids_known": False}, id="while the victim has no ranks"),
    ],
)
async def test_a_fault_waits(gang: Gang, state: dict[str, int]) -> None:
    gang.reaches(8)
    for name, value in state.items():
        setattr(gang, name, value)
    injecting = gang.inject("kill worker 1 at step 4")
    await looks()
    assert gang.hits == []
    gang.attempt, gang.pids_known = 1, True
    await injecting
    assert len(gang.hits) == 1


async def test_a_fault_waits_for_a_step_of_this_attempt(gang: Gang) -> None:
    gang.reaches(8, first_step_at=0.0)
    injecting = gang.inject("kill worker 1 at step 4")
    await looks()
    assert gang.hits == []
    gang.reaches(9)
    await injecting
    assert len(gang.hits) == 1

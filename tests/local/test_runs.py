"""A job's life on one machine: suspended and resumed, hung, deleted and applied again, beside others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Mapping

import pytest

from local.conftest import LocalRun, nano
from oracle import assert_same_tensors, newest_checkpoint, tensors_of

pytestmark = [pytest.mark.local, pytest.mark.timeout(300)]

MakeRun = Callable[..., LocalRun]


def test_ctrl_c_saves_and_suspends_and_the_same_command_resumes(
    local_run: MakeRun, nano_corpus: Mapping[str, str]
) -> None:
    straight = local_run(nano("straight", **{"spec.train.steps": 120}))
    assert straight.finish() == 0, straight.output

    run = local_run(nano("interrupted", **{"spec.train.steps": 120, "spec.checkpoint.intervalSeconds": 3600}))
    run.start()
    run.wait_for_steps(20)
    assert run.process is not None
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 130, run.output
    assert "Suspended" in run.true_conditions()
    _, saved = newest_checkpoint("s3://runs/default/interrupted", environ=nano_corpus)
    assert 20 <= saved.step < 120
    assert f"Suspended at step {saved.step}; the same command goes on from there." in run.output

    assert run.finish("--report", str(run.home / "report.json")) == 0, run.output
    status = run.job().status
    assert status.attempts[-1].resumed_from == saved.step
    assert status.restarts.total == 0  # neither the suspension nor the resumption is a failure
    assert json.loads((run.home / "report.json").read_text())["failures"] == []
    expected = tensors_of(*newest_checkpoint("s3://runs/default/straight", environ=nano_corpus))
    actual = tensors_of(*newest_checkpoint("s3://runs/default/interrupted", environ=nano_corpus))
    assert_same_tensors(actual, expected)


def test_a_second_ctrl_c_stops_at_once_and_the_run_goes_on_from_the_newest_checkpoint(local_run: MakeRun) -> None:
    run = local_run(nano("impatient", **{"spec.train.steps": 5000}))
    run.start()
    run.wait_until(lambda: (p := run.pulse()) is not None and p.committed > 0, "a checkpoint")
    for rank in run.agent_status(0).pids:
        os.kill(rank, signal.SIGSTOP)  # saving would take for ever
    assert run.process is not None
    run.process.send_signal(signal.SIGINT)
    run.wait_until(lambda: "Once more stops at once" in run.output, "the first Ctrl-C")
    run.process.send_signal(signal.SIGINT)
    assert run.wait(20) == 130
    assert "Stopped without saving" in run.output


def test_a_frozen_rank_is_found_by_its_silence_and_replaced(local_run: MakeRun) -> None:
    hang = {"initSeconds": 60, "firstStepSeconds": 3}
    run = local_run(nano("frozen", **{"spec.train.steps": 150, "spec.faultTolerance": {"hang": hang}}))
    assert run.finish("--fault", "freeze rank 3 at step 60") == 0, run.output
    status = run.job().status
    assert status.restarts.by_class == {"Hang": 1}
    assert status.last_failure is not None
    assert status.last_failure.evidence.startswith("No rank got on for 3 s; the last step was 6")


def test_a_job_that_was_deleted_and_applied_again_continues_its_run(
    local_run: MakeRun, nano_corpus: Mapping[str, str]
) -> None:
    first = local_run(nano("again", **{"spec.train.steps": 100}))
    first.start()
    first.wait_until(lambda: (p := first.pulse()) is not None and p.committed > 0, "a checkpoint")
    assert first.process is not None
    first.process.send_signal(signal.SIGINT)
    assert first.wait() == 130
    _, saved = newest_checkpoint("s3://runs/default/again", environ=nano_corpus)

    second = local_run(nano("again", **{"spec.train.steps": 100}))  # a home of its own: nothing is known of the first
    assert second.finish() == 0, second.output
    attempts = second.job().status.attempts
    assert [(a.number, a.resumed_from) for a in attempts] == [(1, saved.step)]

    third = local_run(nano("again", **{"spec.train.steps": 100}))  # a run that is complete has nothing left to do
    assert third.finish() == 0, third.output
    assert third.job().status.attempts[0].resumed_from == 100


def test_two_runs_at_once_do_not_collide(local_run: MakeRun) -> None:
    runs = [local_run(nano(name, **{"spec.train.steps": 60})) for name in ("left", "right")]
    runs[1].environ["STEADFAST_HOME"] = runs[0].environ["STEADFAST_HOME"]
    runs[1].folder = runs[0].folder.parent / "right"
    for run in runs:
        run.start()
    assert [run.wait() for run in runs] == [0, 0], runs[0].output + runs[1].output


def test_the_embedded_store_is_started_again_when_it_dies_during_a_run(local_run: MakeRun) -> None:
    run = local_run(nano("alone", **{"spec.train.steps": 600}), environ={})
    prepare = [
        "data", "prepare", "python-stdlib", "--out=s3://corpora/nano", "--tokenizer=train:512",
        "--sequence-length=32", "--max-tokens=100000",
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "steadfast_cli", *prepare], env=run.environ, check=True, capture_output=True)
    run.start()
    run.wait_for_steps(5)
    endpoint = json.loads((run.home / "store" / "endpoint.json").read_text())
    for pid in (endpoint["supervisor"], endpoint["pid"]):
        os.kill(pid, signal.SIGKILL)
    assert run.wait() == 0, run.output
    status = run.job().status
    assert status.restarts.total == 0
    assert status.checkpoint is not None
    assert status.checkpoint.step == 600


def test_an_agent_answers_probes_and_metrics_while_it_trains(local_run: MakeRun) -> None:
    run = local_run(nano("observed", **{"spec.train.steps": 3000}))
    run.start()
    run.wait_for_steps(5)
    address = (run.worker_folders()[1] / "agent.address").read_text()

    def answer(path: str) -> str:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as reply:
            return str(reply.read().decode())

    assert answer("/healthz") == "ok\n"
    assert answer("/readyz") == "Running\n"
    steps = [line for line in answer("/metrics").splitlines() if line.startswith("steadfast_rank_step{")]
    assert [('rank="2"' in steps[0]), ('rank="3"' in steps[1])] == [True, True]
    assert all(float(line.rpartition(" ")[2]) >= 5 for line in steps)

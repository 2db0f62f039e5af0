"""`steadfast run` before and after the training: refusals, what is stored, what is said at the end.

Whole runs with workers are in tests/local.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from builders import REMOVED, a_job, a_manifest
from steadfast_cli import run
from steadfast_cli.__main__ import main
from steadfast_cli.embedded_store import EmbeddedStoreError
from steadfast_cli.faults import GRAMMAR
from steadfast_operator.api.reasons import ConditionType
from steadfast_operator.api.types import Condition, ConditionStatus, TrainingJob, TrainingJobStatus
from steadfast_operator.shell.job_folder import JobFolder
from steadfast_operator.shell.local import LocalCluster

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, and an object store that somebody else runs."""
    monkeypatch.setenv("STEADFAST_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:1")
    return tmp_path / "home"


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces the loop by one that leaves the job with these conditions, or raises."""

    def ends_with(*conditions: Condition, error: BaseException | None = None) -> None:
        async def run_job(cluster: LocalCluster, *_: object, **__: object) -> None:
            job = await cluster.fetch_job()
            assert job is not None
            await cluster.write_status(job, TrainingJobStatus(conditions=list(conditions)))
            if error is not None:
                raise error

        monkeypatch.setattr(run, "run_job", run_job)

    return ends_with


def condition(type_: ConditionType, *, holds: bool = True, message: str = "") -> Condition:
    status = ConditionStatus.TRUE if holds else ConditionStatus.FALSE
    return Condition(type=type_, status=status, reason="Because", message=message, last_transition_time=NOW)


def steadfast_run(folder: Path, *options: str, **overrides: Any) -> Result:
    manifest = a_manifest(**{"metadata": {"namespace": "default"}} | overrides)
    (folder / "job.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))
    return CliRunner().invoke(main, ["run", str(folder / "job.yaml"), *options])


def store(home: Path, *conditions: Condition, **overrides: Any) -> TrainingJob:
    """What an earlier run of the job has left."""
    folder = JobFolder.hold(home, namespace="default", name="moe")
    job = folder.apply(a_job(**{"metadata.namespace": "default"} | overrides))
    job = folder.write(job.model_copy(update={"status": TrainingJobStatus(attempt=3, conditions=list(conditions))}))
    folder.release()
    return job


def stored(home: Path) -> TrainingJob:
    return TrainingJob.model_validate_json((home / "jobs/default/moe/job.json").read_text())


def test_a_bad_manifest_is_refused_with_every_problem(tmp_path: Path, home: Path) -> None:
    done = steadfast_run(tmp_path, **{"spec.workers": 0, "spec.image": REMOVED})
    assert (done.exit_code, done.stdout) == (2, "")
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == ["spec.image", "spec.workers"]
    assert not home.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(b"kind: \xff\n", "is not UTF-8 text (byte 6). Save the file as UTF-8.", id="no text"),
        pytest.param(b"kind: [\n", "not YAML", id="no YAML"),
        pytest.param(b"", "job.yaml", id="empty"),
    ],
)
def test_a_file_is_refused_that_is(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "job.yaml").write_bytes(text)
    done = CliRunner().invoke(main, ["run", str(tmp_path / "job.yaml")])
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr


def test_a_file_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    assert CliRunner().invoke(main, ["run", str(tmp_path / "none.yaml")]).exit_code == 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        pytest.param("hurt worker 1", GRAMMAR, id="no sentence"),
        pytest.param("kill worker 7 at step 4", "the job has 2 workers, numbered from 0", id="about no worker"),
        pytest.param("kill worker 1 at step 10", "the job has 10 steps", id="about no step"),
    ],
)
def test_a_bad_fault_is_a_usage_error_that_explains_faults(
    tmp_path: Path, home: Path, fault: str, message: str
) -> None:
    done = steadfast_run(tmp_path, "--fault", "kill worker 0 at step 1", "--fault", fault)
    assert done.exit_code == 2
    assert f"Error: --fault: {fault!r}" in done.stderr
    assert message in done.stderr
    assert not home.exists()


def test_a_report_into_no_folder_is_refused_before_the_training(tmp_path: Path, home: Path) -> None:
    done = steadfast_run(tmp_path, "--report", str(tmp_path / "none/report.json"))
    assert done.exit_code == 2
    assert f"Error: --report: there is no folder {tmp_path / 'none'}\n" in done.stderr
    assert not home.exists()


def test_without_torch_it_says_what_to_install(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else real(name))
    done = steadfast_run(tmp_path)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "Error: torch is not installed: pip install 'steadfast[trainer]'\n"
    assert not home.exists()


def test_a_job_that_another_process_runs_is_refused(tmp_path: Path, home: Path) -> None:
    held = JobFolder.hold(home, namespace="default", name="moe")
    done = steadfast_run(tmp_path)
    held.release()
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: job default/moe is already looked after by process ")


def test_a_job_that_moved_to_another_run_is_refused(tmp_path: Path, home: Path) -> None:
    before = store(home)
    done = steadfast_run(tmp_path, **{"spec.runName": "other"})
    assert done.exit_code == 1
    assert "writes to run s3://runs/default/moe, the manifest says s3://runs/other" in done.stderr
    assert "`steadfast delete default/moe`" in done.stderr
    assert stored(home) == before


def test_a_job_that_has_succeeded_is_left_alone(tmp_path: Path, home: Path) -> None:
    before = store(home, condition(ConditionType.SUCCEEDED))
    done = steadfast_run(tmp_path)
    assert (done.exit_code, done.stdout) == (
        0,
        "Job default/moe has succeeded already: run s3://runs/default/moe is complete. Give it a new runName to train "
        "again, or forget the job with `steadfast delete default/moe`.\n",
    )
    assert stored(home) == before


def test_a_job_that_has_failed_is_applied_anew(tmp_path: Path, home: Path, loop: Callable[..., None]) -> None:
    before = store(home, condition(ConditionType.FAILED))
    (home / "jobs/default/moe/attempt-3.json").touch()
    loop(condition(ConditionType.SUCCEEDED))
    assert steadfast_run(tmp_path).exit_code == 0
    assert stored(home).metadata.uid != before.metadata.uid
    assert not (home / "jobs/default/moe/attempt-3.json").exists()


def test_a_job_that_was_suspended_goes_on(tmp_path: Path, home: Path, loop: Callable[..., None]) -> None:
    before = store(home, condition(ConditionType.SUSPENDED), **{"spec.suspend": True})
    loop(condition(ConditionType.SUCCEEDED))
    assert steadfast_run(tmp_path).exit_code == 0
    assert stored(home).metadata.uid == before.metadata.uid
    assert (stored(home).metadata.generation, stored(home).spec.suspend) == (2, False)


def test_a_store_that_does_not_start_is_explained(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(_: Path) -> None:
        raise EmbeddedStoreError("the disk is nearly full")

    for name in ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(run, "acquire", acquire)
    done = steadfast_run(tmp_path)
    assert (done.exit_code, done.stderr) == (1, "Error: the disk is nearly full\n")
    JobFolder.hold(home, namespace="default", name="moe").release()


LAST_WORDS = "UserError: rank 3: ValueError: [/data] is no folder [bold]"


@pytest.mark.parametrize(
    ("ended", "code", "said"),
    [
        pytest.param([condition(ConditionType.SUCCEEDED)], 0, "Succeeded", id="a success"),
        pytest.param(
            [condition(ConditionType.FAILED, message=LAST_WORDS)], 1, f"Failed: Because: {LAST_WORDS}",
            id="a failure, in its rank's own words",
        ),
        pytest.param(
            [condition(ConditionType.SUSPENDED)], 0, "Suspended at step 0; spec.suspend is true in the manifest.",
            id="a suspension by the manifest",
        ),
        pytest.param(
            [condition(ConditionType.ACCEPTED, holds=False, message="no.")], 1, "Failed: Because: no.", id="a refusal",
        ),
        pytest.param([], 1, "Refused", id="nothing at all"),
    ],
)  # fmt: skip
def test_the_exit_code_and_the_last_words_tell_of(
    tmp_path: Path, loop: Callable[..., None], ended: list[Condition], code: int, said: str
) -> None:
    loop(*ended)
    done = steadfast_run(tmp_path, "--report", str(tmp_path / "report.json"))
    assert done.exit_code == code, done.output
    assert isinstance(done.exception, SystemExit | None)
    assert said in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["state"] in done.stdout


def test_a_run_that_crashes_lets_go_of_its_job(tmp_path: Path, home: Path, loop: Callable[..., None]) -> None:
    loop(error=RuntimeError("a bug"))
    assert isinstance(steadfast_run(tmp_path).exception, RuntimeError)
    JobFolder.hold(home, namespace="default", name="moe").release()


@pytest.mark.parametrize(
    ("presses", "said"),
    [
        pytest.param(1, "Suspended at step 0; the same command goes on from there.", id="once saves and suspends"),
        pytest.param(2, "Stopped without saving; the same command goes on", id="twice stops at once"),
    ],
)
def test_ctrl_c(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, presses: int, said: str) -> None:
    async def run_job(cluster: LocalCluster, *_: object, **__: object) -> None:
        for _press in range(presses):
            os.kill(os.getpid(), signal.SIGINT)
            async with asyncio.timeout(20):
                while not (job := stored(home)).spec.suspend:  # noqa: ASYNC110
                    await asyncio.sleep(0)
        await asyncio.sleep(20 if presses > 1 else 0)
        await cluster.write_status(job, TrainingJobStatus(conditions=[condition(ConditionType.SUSPENDED)]))

    monkeypatch.setattr(run, "run_job", run_job)
    done = steadfast_run(tmp_path)
    assert done.exit_code == 130
    assert "Saving, then suspending." in done.stdout
    assert said in done.stdout
    assert stored(home).metadata.generation == 2

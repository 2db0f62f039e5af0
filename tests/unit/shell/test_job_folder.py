"""The local runtime's API server: one holder, whole files, records written once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from builders import a_job
from core_builders import a_record
from steadfast_operator.api.types import TrainingJobStatus
from steadfast_operator.core.observation import AttemptRecord
from steadfast_operator.shell.job_folder import JobBusy, JobChanged, JobDamaged, JobFolder

HOLD_ELSEWHERE = """
import sys
from pathlib import Path
from steadfast_operator.shell.job_folder import JobBusy, JobFolder
try:
    JobFolder.hold(Path(sys.argv[1]), namespace="research", name="moe")
except JobBusy as error:
    print(error)
else:
    print("held")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[JobFolder]:
    held = JobFolder.hold(tmp_path, namespace="research", name="moe")
    yield held
    held.release()


def hold_elsewhere(home: Path) -> str:
    command = [sys.executable, "-c", HOLD_ELSEWHERE, str(home)]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()


def test_a_second_process_is_told_who_looks_after_the_job(folder: JobFolder, tmp_path: Path) -> None:
    assert hold_elsewhere(tmp_path) == f"job research/moe is already looked after by process {os.getpid()}"


def test_a_released_job_may_be_held_by_another_process(folder: JobFolder, tmp_path: Path) -> None:
    folder.release()
    assert hold_elsewhere(tmp_path) == "held"


def test_another_holder_in_this_process_is_refused_too(folder: JobFolder, tmp_path: Path) -> None:
    with pytest.raises(JobBusy):
        JobFolder.hold(tmp_path, namespace="research", name="moe")


@pytest.mark.parametrize(
    ("namespace", "name"),
    [
        pytest.param("research", "dense", id="another name"),
        pytest.param("default", "moe", id="another namespace"),
    ],
)
def test_jobs_are_held_one_by_one(folder: JobFolder, tmp_path: Path, namespace: str, name: str) -> None:
    other = JobFolder.hold(tmp_path, namespace=namespace, name=name)
    assert other.path != folder.path
    other.release()


@pytest.mark.parametrize("again", [False, True], ids=["and stays away", "and is made again"])
def test_a_lock_of_a_job_that_was_just_forgotten_holds_nothing(
    folder: JobFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """The other process had opened the lock before the folder was deleted, and takes it after."""
    real, others = Path.open, list[JobFolder]()

    def open_slowly(path: Path, mode: str) -> object:
        monkeypatch.setattr(Path, "open", real)
        opened = real(path, mode)
        folder.forget()
        folder.release()
        if again:
            others.append(JobFolder.hold(tmp_path, namespace="research", name="moe"))
        return opened

    monkeypatch.setattr(Path, "open", open_slowly)
    if again:
        with pytest.raises(JobBusy):
            JobFolder.hold(tmp_path, namespace="research", name="moe")
        others[0].release()
    else:
        late = JobFolder.hold(tmp_path, namespace="research", name="moe")
        assert late.apply(a_job()) == late.read()
        assert hold_elsewhere(tmp_path).startswith("job research/moe is already looked after")
        late.release()


def test_there_is_no_job_before_the_first_apply(folder: JobFolder) -> None:
    assert folder.read() is None


def test_a_new_job_gets_a_uid_and_an_empty_status(folder: JobFolder) -> None:
    asked = a_job(status={"attempt": 7}, **{"metadata.generation": 5})
    created = folder.apply(asked)
    assert created == folder.read()
    assert created.metadata.uid != asked.metadata.uid
    assert created.metadata.generation == 1
    assert created.metadata.creation_timestamp is not None
    assert created.status == TrainingJobStatus()
    assert created.spec == asked.spec


def test_the_same_manifest_again_changes_nothing(folder: JobFolder) -> None:
    created = folder.apply(a_job())
    assert folder.apply(a_job()) == created == folder.read()


def test_another_spec_moves_the_generation_and_keeps_the_rest(folder: JobFolder) -> None:
    created = folder.apply(a_job())
    folder.write(created.model_copy(update={"status": TrainingJobStatus(attempt=3)}))
    updated = folder.apply(a_job(**{"spec.workers": 4}))
    assert updated == folder.read()
    assert (updated.spec.workers, updated.metadata.generation, updated.status.attempt) == (4, 2, 3)
    assert updated.metadata.uid == created.metadata.uid


@pytest.mark.parametrize(
    "moved",
    [
        pytest.param({"spec.runName": "other"}, id="another run name"),
        pytest.param({"spec.checkpoint.destination": "s3://elsewhere"}, id="another destination"),
    ],
)
def test_a_job_never_changes_its_run(folder: JobFolder, moved: dict[str, str]) -> None:
    created = folder.apply(a_job())
    with pytest.raises(JobChanged) as refused:
        folder.apply(a_job(**moved))
    for part in ("job research/moe", created.run_uri, a_job(**moved).run_uri, "`steadfast delete research/moe`"):
        assert part in str(refused.value)
    assert folder.read() == created


def test_the_same_run_in_other_words_is_no_move(folder: JobFolder) -> None:
    folder.apply(a_job())
    assert folder.apply(a_job(**{"spec.runName": "research/moe"})).metadata.generation == 2


def test_a_crash_while_writing_leaves_the_old_job(folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    created = folder.apply(a_job())
    with monkeypatch.context() as crash:
        crash.setattr(Path, "rename", power_cut)
        with pytest.raises(KeyboardInterrupt):
            folder.apply(a_job(**{"spec.workers": 4}))
    assert folder.read() == created
    assert folder.apply(a_job(**{"spec.workers": 5})).spec.workers == 5


def test_a_crash_while_writing_a_record_leaves_none(folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as crash:
        crash.setattr(os, "link", power_cut)
        with pytest.raises(KeyboardInterrupt):
            folder.create_record(a_record())
    assert folder.read_record(1) is None
    assert folder.create_record(a_record())


def power_cut(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_record_is_read_back_as_it_was_written(folder: JobFolder) -> None:
    assert folder.create_record(a_record(3, number=12))
    assert folder.read_record(12) == a_record(3, number=12)
    assert folder.read_record(1) is None


def test_the_first_record_of_a_number_stays(folder: JobFolder) -> None:
    assert folder.create_record(a_record())
    assert not folder.create_record(a_record(reason="Resumed"))
    assert folder.read_record(1) == a_record()
    assert sorted(entry.name for entry in folder.path.iterdir()) == ["attempt-1.json", "lock"]


def test_a_record_is_plain_json(folder: JobFolder) -> None:
    folder.create_record(a_record())
    data = json.loads((folder.path / "attempt-1.json").read_text())
    assert data.keys() == AttemptRecord.__dataclass_fields__.keys()
    assert datetime.fromisoformat(data["created_at"]) == a_record().created_at


def fill(folder: JobFolder) -> None:
    folder.apply(a_job())
    folder.create_record(a_record())
    folder.worker_folder("moe-1").mkdir(parents=True)
    (folder.worker_folder("moe-1") / "log").touch()


def test_a_cleared_job_is_new_and_still_held(folder: JobFolder, tmp_path: Path) -> None:
    fill(folder)
    folder.clear()
    assert [entry.name for entry in folder.path.iterdir()] == ["lock"]
    assert (folder.read(), folder.read_record(1)) == (None, None)
    assert hold_elsewhere(tmp_path).startswith("job research/moe is already looked after")


@pytest.mark.parametrize("prepare", [fill, lambda folder: None], ids=["with everything", "that never began"])
def test_a_forgotten_job_leaves_nothing(folder: JobFolder, prepare: Callable[[JobFolder], None]) -> None:
    prepare(folder)
    folder.forget()
    assert not folder.path.exists()


def test_a_damaged_job_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    folder = JobFolder.hold(tmp_path, namespace="default", name="moe")
    (folder.path / "job.json").write_text('{"kind": "Train')
    with pytest.raises(JobDamaged, match=r"job\.json is damaged: forget the job with `steadfast delete`"):
        folder.read()
    folder.release()

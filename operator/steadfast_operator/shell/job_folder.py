"""The local runtime's API server: one folder per job, holding what a cluster would hold in its resources.

    <home>/jobs/<namespace>/<name>/job.json            the resource, status included
    <home>/jobs/<namespace>/<name>/attempt-<n>.json    attempt records, written once
    <home>/jobs/<namespace>/<name>/workers/<worker>/   a worker's files and log

A lock on the folder makes sure that one process at a time looks after the job.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Self

from steadfast_operator.api.types import TrainingJob, TrainingJobStatus
from steadfast_operator.core.observation import AttemptRecord


class JobBusy(Exception):
    """Another process looks after this job right now."""


class JobChanged(Exception):
    """The manifest changes what may never change."""


class JobDamaged(Exception):
    """The stored job cannot be read."""


class JobFolder:
    """One job's files, held exclusively."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def hold(cls, home: Path, *, namespace: str, name: str) -> Self:
        """Take the folder of a job, made if it is not there.

        Raises:
            JobBusy: somebody else holds it.
        """
        path = home / "jobs" / namespace / name
        while True:
            path.mkdir(parents=True, exist_ok=True)
            try:
                lock = (path / "lock").open("a+")
            except FileNotFoundError:  # forgotten in between
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip() or "unknown"
                lock.close()
                raise JobBusy(f"job {namespace}/{name} is already looked after by process {holder}") from None
            if _is_at(lock, path / "lock"):
                break
            lock.close()  # its holder has forgotten the job since we opened it: this lock guards nothing
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        return cls(path, lock)

    def release(self) -> None:
        """Let go of the folder."""
        self._lock.close()

    def apply(self, job: TrainingJob) -> TrainingJob:
        """Create or update the job from a manifest, as `kubectl apply` would; return what is stored now.

        Raises:
            JobChanged: the manifest moves the job to another run.
        """
        stored = self.read()
        if stored is None:
            fresh = {"uid": str(uuid.uuid4()), "generation": 1, "creation_timestamp": datetime.now(UTC)}
            created = job.model_copy(
                update={"metadata": job.metadata.model_copy(update=fresh), "status": TrainingJobStatus()}
            )
            return self.write(created)
        if stored.run_uri != job.run_uri:
            raise JobChanged(
                f"job {job.metadata.namespace}/{job.metadata.name} writes to run {stored.run_uri}, the manifest says "
                f"{job.run_uri}: a job never changes its run. Give the job another metadata.name, or forget the old "
                f"one with `steadfast delete {job.metadata.namespace}/{job.metadata.name}`"
            )
        return self.replace_spec(stored, job)

    def replace_spec(self, stored: TrainingJob, wanted: TrainingJob) -> TrainingJob:
        """Store another spec; the generation moves if it differs."""
        if stored.spec == wanted.spec:
            return stored
        metadata = stored.metadata.model_copy(update={"generation": stored.metadata.generation + 1})
        return self.write(stored.model_copy(update={"spec": wanted.spec, "metadata": metadata}))

    def read(self) -> TrainingJob | None:
        """The job as stored; None when there is none.

        Raises:
            JobDamaged: it cannot be read.
        """
        path = self.path / "job.json"
        try:
            return TrainingJob.model_validate_json(path.read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise JobDamaged(
                f"{path} is damaged: forget the job with `steadfast delete`; its checkpoints stay"
            ) from error

    def write(self, job: TrainingJob) -> TrainingJob:
        """Store the job whole or not at all."""
        temporary = self.path / "job.json.new"
        temporary.write_text(json.dumps(job.to_object(), indent=1))
        temporary.rename(self.path / "job.json")
        return job

    def read_record(self, number: int) -> AttemptRecord | None:
        """An attempt record; None when there is none."""
        try:
            return AttemptRecord.from_json(self._record_path(number).read_text())
        except FileNotFoundError:
            return None

    def create_record(self, record: AttemptRecord) -> bool:
        """Write a record down; False when there is one of that number."""
        temporary = self.path / f".attempt-{record.number}.{os.getpid()}"
        temporary.write_text(record.to_json())
        try:
            os.link(temporary, self._record_path(record.number))  # fails if it exists, and is never half there
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True

    def worker_folder(self, worker: str) -> Path:
        """Where a worker keeps its files."""
        return self.path / "workers" / worker

    def clear(self) -> None:
        """Delete everything about the job but the lock that we hold; its checkpoints are not here."""
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != "lock":
                entry.unlink()

    def forget(self) -> None:
        """Delete everything about the job; its checkpoints are not here."""
        shutil.rmtree(self.path)

    def _record_path(self, number: int) -> Path:
        return self.path / f"attempt-{number}.json"


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False

"""`steadfast run`: a TrainingJob on this machine, without a cluster.

The operator's own loop decides; workers are processes, resources are files, the object store is an embedded S3 unless
the manifest or the environment names another.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console

from steadfast_cli.display import Display, summary_table
from steadfast_cli.embedded_store import EmbeddedStore, EmbeddedStoreError, acquire
from steadfast_cli.faults import GRAMMAR, Fault, inject, parse_fault
from steadfast_cli.home import default_home
from steadfast_cli.summary import FailureSeen, Summary, read_history, summarise
from steadfast_cli.validate import INVALID
from steadfast_contract.folder import steps_path
from steadfast_operator.api.labels import worker_name
from steadfast_operator.api.reasons import ConditionType
from steadfast_operator.api.resolve import total_steps
from steadfast_operator.api.types import Condition, ConditionStatus, TrainingJob
from steadfast_operator.api.validate import validate_manifest
from steadfast_operator.core.actions import Decision, EmitEvent, EventType
from steadfast_operator.core.observation import Limits, Observation
from steadfast_operator.shell.job_folder import JobBusy, JobChanged, JobDamaged, JobFolder
from steadfast_operator.shell.local import LocalCluster
from steadfast_operator.shell.loop import run_job
from steadfast_operator.shell.ports import SystemClock

# One machine, one job: looking often costs nothing and shows progress at once.
LIMITS = Limits(poll_seconds=0.05, progress_seconds=0.25, stop_grace_seconds=120)
STORE_CHECK_SECONDS = 5.0
FAILED, INTERRUPTED = 1, 130
_STORE_NAMES = ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID")


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--fault", "faults", multiple=True, metavar="FAULT", help=f"Break something on purpose: {GRAMMAR}.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write the summary as JSON.")
def run(*, file: Path, faults: tuple[str, ...], report: Path | None) -> None:
    """Run the TrainingJob in FILE on this machine.

    Ctrl-C saves and suspends; the same command goes on from there. State lives in $STEADFAST_HOME (~/.steadfast).
    """
    console = Console(stderr=False)
    job = _read_manifest(file)
    try:
        parsed = [parse_fault(text, job=job, steps=total_steps(job.spec.train)) for text in faults]
    except ValueError as error:
        raise click.UsageError(f"--fault: {error}") from error
    if report is not None and not report.parent.is_dir():
        raise click.UsageError(f"--report: there is no folder {report.parent}")
    if importlib.util.find_spec("torch") is None:
        raise click.ClickException("torch is not installed: pip install 'steadfast[trainer]'")
    home = default_home()
    meta = job.metadata
    try:
        folder = JobFolder.hold(home, namespace=meta.namespace, name=meta.name)
        try:
            stored = _apply(folder, job, console)
            if stored is None:
                return
            with _object_store(job, home=home) as (environ, store):
                code = asyncio.run(
                    _Run(folder, stored, console, environ=environ, store=store).go(parsed, report=report)
                )
        finally:
            folder.release()
    except (JobBusy, JobChanged, JobDamaged, EmbeddedStoreError) as error:
        raise click.ClickException(str(error)) from error
    sys.exit(code)


def _read_manifest(file: Path) -> TrainingJob:
    try:
        text = file.read_text()
    except UnicodeDecodeError as error:
        click.echo(f"{file}: is not UTF-8 text (byte {error.start}). Save the file as UTF-8.", err=True)
        sys.exit(INVALID)
    job, problems = validate_manifest(text, source=str(file))
    if job is None or problems:
        for problem in problems:
            click.echo(str(problem), err=True)
        sys.exit(INVALID)
    return job


def _apply(folder: JobFolder, job: TrainingJob, console: Console) -> TrainingJob | None:
    """Store the job; None when there is nothing left to do. A failed job is applied anew: its run goes on."""
    stored = folder.read()
    if stored is not None and condition(stored, ConditionType.FAILED):
        folder.clear()
    stored = folder.apply(job)
    if condition(stored, ConditionType.SUCCEEDED):
        name = f"{job.metadata.namespace}/{job.metadata.name}"
        console.print(
            f"Job {name} has succeeded already: run {stored.run_uri} is complete. "
            f"Give it a new runName to train again, or forget the job with `steadfast delete {name}`.",
            soft_wrap=True,
            markup=False,
        )
        return None
    return stored


def condition(job: TrainingJob, type_: ConditionType) -> Condition | None:
    """The condition of this type, if it is true."""
    return next((c for c in job.status.conditions if c.type == type_ and c.status == ConditionStatus.TRUE), None)


@contextmanager
def _object_store(job: TrainingJob, *, home: Path) -> Iterator[tuple[Mapping[str, str], EmbeddedStore | None]]:
    """The workers' environment; where nothing else is named, the embedded store, with its address and keys."""
    if job.spec.object_store.endpoint is not None or any(name in os.environ for name in _STORE_NAMES):
        yield dict(os.environ), None
        return
    store = acquire(home)
    try:
        store.ensure_bucket(job.spec.checkpoint.destination.split("/")[2])
        yield {**os.environ, **store.environment}, store
    finally:
        store.release()


class _Run:
    """One call of `steadfast run`."""

    def __init__(
        self,
        folder: JobFolder,
        job: TrainingJob,
        console: Console,
        *,
        environ: Mapping[str, str],
        store: EmbeddedStore | None,
    ) -> None:
        self._folder, self._job, self._console, self._store = folder, job, console, store
        self._wake = asyncio.Event()
        self._cluster = LocalCluster(folder, wake=self._wake, environ=environ, on_event=self._on_event)
        self._display = Display(console, job=job.metadata.name, steps=total_steps(job.spec.train))
        self._first_attempt = job.status.attempt + 1
        self._attempt = job.status.attempt
        self._failures: list[FailureSeen] = []
        self._fault_at: float | None = None
        self._interrupted = False

    async def go(self, faults: list[Fault], *, report: Path | None) -> int:
        """Until the job is done, failed or suspended; return the exit code."""
        started_at = time.time()
        loop = asyncio.get_running_loop()
        me = asyncio.current_task()
        assert me is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_interrupt, me)
        beside = [
            asyncio.create_task(inject(faults, self._cluster, attempt=lambda: self._attempt, on_fault=self._on_fault)),
            asyncio.create_task(self._keep_store()),
        ]
        try:
            with self._display:
                self._display.say(f"Run {self._job.run_uri}, workers' logs in {self._folder.path / 'workers'}")
                await run_job(
                    self._cluster,
                    SystemClock(),
                    wake=self._wake,
                    limits=LIMITS,
                    on_decision=self._on_decision,
                    until_rest=True,
                )
        except asyncio.CancelledError:
            self._console.print("Stopped without saving; the same command goes on from the newest checkpoint.")
            return INTERRUPTED
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await self._cluster.close()
        return self._close(started_at=started_at, report=report)

    async def _keep_store(self) -> None:
        """Start the embedded store again whenever it is gone; uploads wait for it meanwhile."""
        while self._store is not None:
            await asyncio.sleep(STORE_CHECK_SECONDS)
            try:
                await asyncio.to_thread(self._store.ensure_running)
            except EmbeddedStoreError as error:
                self._display.say(f"The local object store is gone: {error}", style="yellow")

    def _close(self, *, started_at: float, report: Path | None) -> int:
        job = self._folder.read() or self._job
        state = next(
            (t for t in (ConditionType.SUCCEEDED, ConditionType.FAILED, ConditionType.SUSPENDED) if condition(job, t)),
            None,
        )
        summary = self._summary(job, str(state or "Refused"), started_at=started_at)
        self._console.print(summary_table(summary))
        if report is not None:
            report.write_text(summary.to_json())
        ended = condition(job, state) if state else next(iter(job.status.conditions), None)
        if state == ConditionType.SUCCEEDED:
            return 0
        if state == ConditionType.SUSPENDED:
            how = "the same command goes on from there" if self._interrupted else "spec.suspend is true in the manifest"
            self._console.print(f"Suspended at step {summary.steps}; {how}.")
            return INTERRUPTED if self._interrupted else 0
        if ended is not None:
            text = f"Failed: {ended.reason}: {ended.message}"  # with a rank's last words: brackets are no markup
            self._console.print(text, style="red", soft_wrap=True, markup=False)
        return FAILED

    def _summary(self, job: TrainingJob, state: str, *, started_at: float) -> Summary:
        histories = []
        for number in range(self._first_attempt, job.status.attempt + 1):
            record = self._folder.read_record(number)
            if record is not None:
                first = worker_name(job=job.metadata.name, uid=job.metadata.uid, serial=record.serials[0])
                histories.append((number, read_history(steps_path(str(self._folder.worker_folder(first))))))
        return summarise(
            state=state,
            steps=job.status.progress.step if job.status.progress else 0,
            histories=histories,
            failures=self._failures,
            started_at=started_at,
            ended_at=time.time(),
            global_batch_tokens=job.spec.train.global_batch_tokens,
        )

    def _on_decision(self, seen: Observation, decision: Decision) -> None:
        self._attempt = decision.status.attempt
        failure = decision.status.last_failure
        if failure is not None and failure != seen.status.last_failure:
            happened_at, self._fault_at = self._fault_at or failure.at.timestamp(), None
            self._failures.append(
                FailureSeen(
                    attempt=seen.status.attempt,
                    failure=failure.class_,
                    evidence=failure.evidence,
                    happened_at=happened_at,
                    decided_at=seen.now.timestamp(),
                )
            )
        self._display.progress(
            seen.pulse, state=decision.message or str(decision.reason), restarts=decision.status.restarts.total
        )

    def _on_event(self, event: EmitEvent) -> None:
        style = "yellow" if event.type == EventType.WARNING else ""
        self._display.say(f"{event.reason}: {event.message}", style=style)

    def _on_fault(self, fault: Fault, at: float) -> None:
        self._fault_at = at
        self._display.say(f"Fault injected: {fault}", style="magenta")

    def _on_interrupt(self, me: asyncio.Task[int]) -> None:
        if self._interrupted:
            me.cancel()
            return
        self._interrupted = True
        self._display.say("Saving, then suspending. Once more stops at once, without saving.", style="cyan")
        job = self._folder.read()
        if job is not None:
            suspended = job.model_copy(update={"spec": job.spec.model_copy(update={"suspend": True})})
            self._folder.replace_spec(job, suspended)
        self._wake.set()

"""`steadfast validate`: is this manifest one that a cluster would accept and workers could train?"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from steadfast_operator.api.problems import Problem
from steadfast_operator.api.resolve import training_config
from steadfast_operator.api.types import TrainingJob
from steadfast_operator.api.validate import validate_manifest

INVALID = 2
"""Exit code when a manifest has problems (frozen surface)."""


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
def validate(files: tuple[str, ...]) -> None:
    """Check TrainingJob manifests without a cluster; - is standard input.

    Prints every problem with its place and what to do about it, and exits with 2 if there is one.
    """
    problems = [problem for file in files for problem in _check(file)]
    for problem in problems:
        click.echo(str(problem), err=True)
    sys.exit(INVALID if problems else 0)


def _check(file: str) -> list[Problem]:
    """Problems of one file; a file without any is summarised on standard output."""
    source = "<stdin>" if file == "-" else file
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        job, problems = validate_manifest(raw.decode(), source=source)
    except OSError as error:
        return [Problem(path="", what=f"cannot be read: {error.strerror}", remedy="Check the path", source=source)]
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 text (byte {error.start})"
        return [Problem(path="", what=what, remedy="Save the file as UTF-8", source=source)]
    if job is not None:
        click.echo(f"{source}: {summarise(job)}")
    return problems


def summarise(job: TrainingJob) -> str:
    """The job in one line: who trains what, for how long."""
    config = training_config(job)
    workers, ranks = job.spec.workers, job.spec.ranks
    return (
        f"{job.metadata.name} is valid: {workers} x {ranks} = {workers * ranks} ranks, "
        f"{_count(config.model.total_parameters)} parameters ({_count(config.model.active_parameters)} active), "
        f"{config.steps} steps of {config.global_batch_tokens} tokens"
    )


def _count(number: int) -> str:
    for factor, suffix in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= factor:
            return f"{number / factor:.1f}{suffix}"
    return str(number)

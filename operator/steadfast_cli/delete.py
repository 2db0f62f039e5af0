"""`steadfast delete`: forget a local job. Its checkpoints stay; applying it again goes on with its run."""

from __future__ import annotations

import re

import click

from steadfast_cli.home import default_home
from steadfast_operator.shell.job_folder import JobBusy, JobFolder

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


@click.command()
@click.argument("name", metavar="[NAMESPACE/]NAME")
def delete(name: str) -> None:
    """Forget the local job NAME: its status, records and logs. Checkpoints and data stay in the object store."""
    namespace, _, short = (name if "/" in name else f"default/{name}").rpartition("/")
    for part in (namespace, short):  # they become paths below: '..' would delete what is no job
        if not _LABEL.fullmatch(part):
            raise click.UsageError(f"{name!r} is no job's name: write NAME, or NAMESPACE/NAME")
    home = default_home()
    if not (home / "jobs" / namespace / short).is_dir():
        raise click.ClickException(f"there is no job {namespace}/{short} in {home}")
    try:
        folder = JobFolder.hold(home, namespace=namespace, name=short)
    except JobBusy as error:
        raise click.ClickException(str(error)) from error
    folder.forget()
    folder.release()
    click.echo(f"Forgot job {namespace}/{short}; its checkpoints are kept.")

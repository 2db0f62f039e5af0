"""`steadfast delete`: forget a local job. Its checkpoints stay; applying it again goes on with its run."""

from __future__ import annotations

import click

from steadfast_cli.home import default_home
from steadfast_operator.shell.job_folder import JobBusy, JobFolder


@click.command()
@click.argument("name", metavar="[NAMESPACE/]NAME")
def delete(name: str) -> None:
    """Forget the local job NAME: its status, records and logs. Checkpoints and data stay in the object store."""
    namespace, _, short = name.rpartition("/")
    namespace = namespace or "default"
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

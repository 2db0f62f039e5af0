"""The `steadfast` command, also found by kubectl as `kubectl steadfast`.

Every command is a module of its own and is imported when it is asked for: `steadfast --help` loads none of them.
"""

from __future__ import annotations

import importlib

import click

COMMANDS = {
    "data": ("steadfast_cli.data:data", "Prepare training data."),
    "delete": ("steadfast_cli.delete:delete", "Forget a job of this machine; its checkpoints stay."),
    "run": ("steadfast_cli.run:run", "Run a TrainingJob on this machine, without a cluster."),
    "validate": ("steadfast_cli.validate:validate", "Check manifests without a cluster."),
}
"""Where each command is, and what `steadfast --help` says about it."""


class LazyGroup(click.Group):
    """A group that imports a command when it runs, not when it is listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; None when there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from the table above."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, help_) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="steadfast", prog_name="steadfast")
def main() -> None:
    """Train mixture-of-experts models on Kubernetes, to the end."""


if __name__ == "__main__":
    main(prog_name="steadfast")

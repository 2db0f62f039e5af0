"""`steadfast` itself: what its help lists, and that every listed command is there."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from steadfast_cli.__main__ import COMMANDS, main


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_the_help_lists_every_command_in_one_line_each(option: str) -> None:
    text = CliRunner().invoke(main, [option]).output
    for name, (_, help_) in COMMANDS.items():
        assert f"  {name} " in text
        assert help_ in " ".join(text.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_listed_command_explains_itself(name: str) -> None:
    done = CliRunner().invoke(main, [name, "--help"])
    assert done.exit_code == 0
    assert done.output.startswith(f"Usage: main {name} ")


def test_an_unknown_command_is_a_usage_error() -> None:
    done = CliRunner().invoke(main, ["fly"])
    assert done.exit_code == 2
    assert "No such command 'fly'" in done.output


def test_the_version_is_told() -> None:
    done = CliRunner().invoke(main, ["--version"])
    assert done.exit_code == 0
    assert done.output.startswith("steadfast, version ")

"""The command line: what `steadfast validate` prints, and its exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from builders import a_manifest
from steadfast_cli.__main__ import COMMANDS, main


def run(*arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(main, arguments, input=given)


def write(folder: Path, name: str, **overrides: object) -> str:
    (folder / name).write_text(yaml.safe_dump(a_manifest(**overrides), sort_keys=False))
    return str(folder / name)


def test_a_valid_file_is_summarised_in_one_line(tmp_path: Path) -> None:
    file = write(tmp_path, "job.yaml")
    result = run("validate", file)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        f"{file}: moe is valid: 2 x 1 = 2 ranks, 88.5k parameters (63.9k active), 10 steps of 256 tokens\n"
    )


def test_problems_go_to_stderr_and_the_exit_code_is_2(tmp_path: Path) -> None:
    file = write(tmp_path, "job.yaml", **{"spec.workers": 0, "spec.spares": 1})
    result = run("validate", file)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        f"{file}:8: spec.workers: 0 is not at least 1. Write a number that is at least 1.",
        f"{file}:22: spec.spares: is not supported by this version of Steadfast. Remove it.",
    ]


def test_one_bad_file_among_good_ones_fails_the_command(tmp_path: Path) -> None:
    good, bad = write(tmp_path, "good.yaml"), write(tmp_path, "bad.yaml", **{"spec.image": 1})
    result = run("validate", bad, good)
    assert result.exit_code == 2
    assert result.stdout.startswith(f"{good}: moe is valid")
    assert result.stderr.startswith(f"{bad}:7: spec.image: 1 is not a string")


def test_a_dash_is_standard_input() -> None:
    result = run("validate", "-", given=yaml.safe_dump(a_manifest()))
    assert result.exit_code == 0
    assert result.stdout.startswith("<stdin>: moe is valid")


def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    result = run("validate", str(tmp_path / "none.yaml"))
    assert result.exit_code == 2
    assert "cannot be read: No such file or directory. Check the path." in result.stderr


def test_a_file_that_is_not_text_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(b"kind: \xff\n")
    result = run("validate", str(tmp_path / "job.yaml"))
    assert result.exit_code == 2
    assert "is not UTF-8 text (byte 6)" in result.stderr


@pytest.mark.parametrize(("preset", "parameters"), [("moe-nano", "88.5k"), ("moe-tiny", "4.4M"), ("dbrx", "131.6B")])
def test_parameters_are_counted_in_words(tmp_path: Path, preset: str, parameters: str) -> None:
    overrides = {"spec.model.preset": preset, "spec.train.globalBatchTokens": 8192}
    assert f"{parameters} parameters" in run("validate", write(tmp_path, "job.yaml", **overrides)).stdout


def test_no_file_is_a_usage_error() -> None:
    assert run("validate").exit_code == 2


def test_help_lists_every_command() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for name, (_, help_) in COMMANDS.items():
        assert name in result.stdout
        assert help_ in result.stdout


def test_an_unknown_command_is_a_usage_error() -> None:
    result = run("validat")
    assert result.exit_code == 2
    assert "No such command 'validat'" in result.stderr


def test_the_version_is_printed() -> None:
    assert run("--version").stdout.startswith("steadfast, version ")


def imported_by(*arguments: str) -> set[str]:
    program = (
        "import sys\nfrom steadfast_cli.__main__ import main\n"
        "try:\n    main(sys.argv[1:])\nfinally:\n    print('MODULES', *sys.modules)"
    )
    command = [sys.executable, "-c", program, *arguments]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(printed.partition("MODULES")[2].split())


def test_help_imports_no_command_and_validate_no_heavy_library() -> None:
    assert not imported_by("--help") & {"pydantic", "yaml", "steadfast_cli.validate"}
    example = str(Path(__file__).parents[3] / "examples/moe-tiny.yaml")
    assert not imported_by("validate", example) & {"kubernetes", "kopf", "torch", "aiohttp"}

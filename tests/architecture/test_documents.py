"""What the README and `make help` promise is there."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from architecture.project import ROOT, tracked_files
from steadfast_operator.api.reasons import Reason

README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
PHONY = set(" ".join(re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)).split())
FOLDERS = {name.partition("/")[0] for name in tracked_files() if "/" in name}


def test_every_command_of_the_makefile_is_phony() -> None:
    assert set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE)) == PHONY


def test_make_help_lists_every_command() -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--no-print-directory", "-C", str(ROOT), "help"]
    text = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
    listed = dict(re.findall(r"^  make (\S+) +(\S.*)$", text, re.MULTILINE))
    assert set(listed) == PHONY


@pytest.mark.parametrize("command", ["make test", "make demo"])
def test_the_readme_names(command: str) -> None:
    assert command in README


def test_every_make_command_of_the_readme_exists() -> None:
    code = " ".join(code_of(README))
    assert set(re.findall(r"\bmake ([a-z][a-z-]*)", code)) <= PHONY


def test_every_reason_is_explained() -> None:
    rows = re.findall(r"^\| (`.+?) \|", (ROOT / "docs/reasons.md").read_text(), re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == {str(reason) for reason in Reason}


def test_every_path_of_the_readme_exists() -> None:
    assert [path for path in paths_in(README) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        pytest.param("see [the design](docs/design.md#words)", ["docs/design.md"], id="a link"),
        pytest.param("![a picture](docs/a.png)", ["docs/a.png"], id="a picture"),
        pytest.param("[site](https://example.com/docs/a) [below](#words)", [], id="links to elsewhere are no paths"),
        pytest.param("the folder `operator/steadfast_cli/`", ["operator/steadfast_cli/"], id="a path in code"),
        pytest.param("```\nkubectl apply -f examples/a.yaml\n```", ["examples/a.yaml"], id="a path in a command"),
        pytest.param("`examples/<name>.yaml` and `examples/*.yaml`", [], id="a pattern is no path"),
        pytest.param("`s3://examples/a` and `default/moe`", [], id="other things with slashes are no paths"),
    ],
)
def test_paths_are_found_in(text: str, paths: list[str]) -> None:
    assert paths_in(text) == paths


def code_of(text: str) -> list[str]:
    """What stands in fences and between backticks."""
    fence = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    return fence.findall(text) + re.findall(r"`([^`\n]+)`", fence.sub("", text))


def paths_in(text: str) -> list[str]:
    """Targets of links, and words of code that begin with one of our folders."""
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    words = [word.strip("`'\",;:()") for code in code_of(text) for word in code.split()]
    ours = [word for word in words if "/" in word and Path(word).parts[0] in FOLDERS and not set(word) & set("<>*${}")]
    return [link for link in links if "://" not in link and not link.startswith("mailto:")] + ours

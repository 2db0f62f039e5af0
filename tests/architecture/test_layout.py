"""Where modules are, what they are called and how long they get; what tracked files never say."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from architecture.project import ROOT, SOURCE_ROOTS, python_files, tracked_files, tree

MAX_LINES = 400
LONG_MODULES: dict[str, str] = {}
"""Longer modules: path to reason."""
EMPTY_NAMES = {"common", "helper", "helpers", "manager", "misc", "util", "utils"}
OUTSIDE_WORLD = ("/work/", "issue #", "pull request #")
"""A reader who has only this repository can follow none of these."""


@pytest.mark.parametrize("root", SOURCE_ROOTS)
def test_a_source_root_is_no_package(root: str) -> None:
    assert (ROOT / root).is_dir()
    assert not (ROOT / root / "__init__.py").exists(), f"{root}/ on the path would hide Python's own module"


def test_every_module_says_why_it_exists() -> None:
    silent = [name for name in python_files(*SOURCE_ROOTS, "bench", "examples") if not ast.get_docstring(tree(name))]
    assert silent == []


def test_modules_are_called_what_they_are() -> None:
    python = [Path(name) for name in tracked_files() if name.endswith(".py")]
    assert [str(path) for path in python if EMPTY_NAMES & {*path.parent.parts, path.stem}] == []


def test_modules_are_short_enough_to_read() -> None:
    lines = {name: len((ROOT / name).read_text().splitlines()) for name in python_files(*SOURCE_ROOTS)}
    long = {name for name, count in lines.items() if count > MAX_LINES}
    assert long == set(LONG_MODULES), "split them, or give the reason in LONG_MODULES; shortened ones leave it"


def test_the_project_speaks_of_itself_alone() -> None:
    found = []
    for name in tracked_files():
        if (ROOT / name) == Path(__file__):
            continue
        text = (ROOT / name).read_bytes().decode(errors="replace").lower()
        found += [f"{name}: {words!r}" for words in OUTSIDE_WORLD if words in text]
    assert found == []

"""The project's own files, as the tests of its architecture read them."""

from __future__ import annotations

import ast
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE_ROOTS = ("operator", "trainer")
_NOT_OURS = {".git", ".venv", ".demo", "__pycache__", "dist"}


@cache
def tracked_files() -> tuple[str, ...]:
    """Paths of every file under version control, from the root; every file that could be, where there is no git."""
    try:
        command = ["git", "-C", str(ROOT), "ls-files", "-z"]
        names = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        relative = (path.relative_to(ROOT) for path in ROOT.rglob("*"))
        names = [str(path) for path in relative if not _NOT_OURS & set(path.parts) and "cache" not in path.parts[0]]
    return tuple(sorted(name for name in names if name and (ROOT / name).is_file()))


def python_files(*folders: str) -> list[str]:
    """Tracked modules below these folders."""
    starts = tuple(f"{folder}/" for folder in folders)
    return [name for name in tracked_files() if name.endswith(".py") and name.startswith(starts)]


def tree(name: str) -> ast.Module:
    """A tracked module, parsed."""
    return ast.parse((ROOT / name).read_text(), filename=name)


def imported_modules(module: ast.Module) -> set[str]:
    """Absolute names of what a module imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found

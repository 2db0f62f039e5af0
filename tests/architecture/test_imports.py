"""Who may import whom, and what no process of ours ever does: unpickle, or load what it does not need."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from architecture.project import ROOT, imported_modules, python_files, tree

UNPICKLERS = {"_pickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
"""Modules whose readers execute what they read."""
LOADERS = {"torch.load", "torch.jit.load", "pandas.read_pickle"}

UNWANTED = [
    pytest.param(
        "steadfast_agent.__main__",
        {"kubernetes", "numpy", "obstore", "pydantic", "steadfast_operator", "steadfast_trainer", "torch"},
        id="the agent's own process stays small beside the ranks",
    ),
    pytest.param(
        "steadfast_cli.__main__",
        {"aiohttp", "kopf", "kubernetes", "obstore", "pydantic", "rich", "torch", "yaml"},
        id="steadfast --help answers at once",
    ),
    pytest.param(
        "steadfast_cli.run",
        {"kopf", "kubernetes", "numpy", "obstore", "steadfast_agent", "steadfast_trainer", "torch"},
        id="steadfast run needs neither a cluster's client nor the trainer in its own process",
    ),
]


def test_every_import_contract_holds() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", python_files("trainer/steadfast_contract"))
def test_the_contract_needs_the_standard_library_only(name: str) -> None:
    roots = {module.partition(".")[0] for module in imported_modules(tree(name))}
    assert roots <= {*sys.stdlib_module_names, "steadfast_contract"}


@pytest.mark.parametrize(("module", "unwanted"), UNWANTED)
def test_importing(module: str, unwanted: set[str]) -> None:
    program = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert module.partition(".")[0] in loaded
    assert loaded & unwanted == set()


@pytest.mark.parametrize("name", python_files("trainer"))
def test_nothing_that_workers_run_unpickles(name: str) -> None:
    assert unpickling(tree(name)) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        pytest.param("import pickle", ["1: pickle"], id="an import"),
        pytest.param("from pickle import loads as read", ["1: pickle"], id="an import under another name"),
        pytest.param("def f():\n    import dill", ["2: dill"], id="an import inside a function"),
        pytest.param("import torch\ntorch.load(path)", ["2: torch.load"], id="torch.load"),
        pytest.param("from torch import load", ["1: torch.load"], id="torch.load as a name"),
        pytest.param("f = torch.load", ["1: torch.load"], id="torch.load without a call"),
        pytest.param("numpy.load(path, allow_pickle=True)", ["1: allow_pickle"], id="numpy with pickles"),
        pytest.param("numpy.load(path, allow_pickle=wanted)", ["1: allow_pickle"], id="numpy with pickles, perhaps"),
        pytest.param("numpy.load(path, allow_pickle=False)", [], id="numpy without pickles is fine"),
        pytest.param("json.load(file)", [], id="json is fine"),
    ],
)
def test_unpickling_is_found_in(source: str, found: list[str]) -> None:
    assert unpickling(ast.parse(source)) == found


def unpickling(module: ast.Module) -> list[str]:
    """Line and name of everything in a module that reads pickles, or might."""
    found = []
    for node in ast.walk(module):
        match node:
            case ast.Import(names=names):
                bad = [alias.name for alias in names if alias.name.partition(".")[0] in UNPICKLERS]
            case ast.ImportFrom(module=str(source), names=names):
                full = [f"{source}.{alias.name}" for alias in names]
                bad = [source] if source.partition(".")[0] in UNPICKLERS else [name for name in full if name in LOADERS]
            case ast.Attribute():
                bad = [ast.unparse(node)] if ast.unparse(node) in LOADERS else []
            case ast.keyword(arg="allow_pickle", value=value):
                bad = [] if isinstance(value, ast.Constant) and value.value is False else ["allow_pickle"]
            case _:
                continue
        found += [f"{node.lineno}: {name}" for name in bad]
    return found

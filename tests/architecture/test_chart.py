"""The chart is what its generator writes today, and agrees with the rest of the project. Rendering it: tests/chart."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from architecture.project import ROOT

CHART = ROOT / "charts/steadfast"
CRDS = sorted(path.name for path in (ROOT / "crds").glob("*.yaml"))
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chart")
    subprocess.run([sys.executable, ROOT / "charts/generate.py", folder], check=True)
    return folder


@pytest.mark.parametrize("name", ["README.md", *(f"files/crds/{crd}" for crd in CRDS)])
def test_generated_files_are_up_to_date(generated: Path, name: str) -> None:
    assert (generated / name).read_text() == (CHART / name).read_text(), "run `make generate`"


def test_the_chart_has_exactly_our_definitions() -> None:
    assert sorted(path.name for path in (CHART / "files/crds").iterdir()) == CRDS


@pytest.mark.parametrize("name", CRDS)
def test_uninstalling_keeps_a_definition_that_is_else_ours(name: str) -> None:
    definition = yaml.safe_load((CHART / "files/crds" / name).read_text())
    assert definition["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert definition == yaml.safe_load((ROOT / "crds" / name).read_text())


def test_every_value_is_documented() -> None:
    table = (CHART / "README.md").read_text()
    assert [path for path in leaves(VALUES, ()) if not any(f"| `{above}` |" in table for above in prefixes(path))] == []


@pytest.mark.parametrize("name", ["default", "h100-infiniband"])
def test_a_profile_of_the_chart_is_the_example(name: str) -> None:
    example = yaml.safe_load((ROOT / f"examples/profiles/{name}.yaml").read_text())
    assert example["metadata"]["name"] == name
    assert VALUES["profiles"][name]["spec"] == example["spec"]


def test_only_the_default_profile_is_enabled() -> None:
    assert {name: profile["enabled"] for name, profile in VALUES["profiles"].items()} == {
        "default": True,
        "h100-infiniband": False,
    }


def test_the_chart_has_the_version_of_the_project() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (about["version"], about["appVersion"]) == (version, version)


def leaves(values: dict[str, Any], above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*above, name))
        else:
            yield (*above, name)


def prefixes(path: tuple[str, ...]) -> list[str]:
    return [".".join(path[: length + 1]) for length in range(len(path))]
